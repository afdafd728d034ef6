//! A load on a server that speaks the rate limit protocol, and what became of its calls.
//!
//! Requests are encoded beforehand but for the digits of their values, and go out as frames of HTTP/2 that are written here:
//! no client stands between them and the wire, and of an answer only the code is read. So the load costs less than what it
//! measures, and says what it costs.
//!
//! The loop is closed, when each of so many callers asks again as soon as it has its answer, or open, when calls come at a
//! rate, whatever became of the ones before. In an open loop the latency of a call counts from when it was *due*: calls
//! that have to wait for a server that stalls show the stall, each for itself, instead of never being made.
//!
//! A thread has connections of its own and a runtime of its own; nothing is shared but the tally that is read once a
//! second. A connection that ends is opened again.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::clock;

mod answer;
mod connection;
mod frame;
mod hpack;
mod keys;
mod line;
mod pace;
mod request;
mod tally;
mod target;
mod worker;

pub(crate) use request::Shape;
pub(crate) use tally::Tally;
pub(crate) use target::Target;

/// What is to be asked of whom, and how fast.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) shape: Shape,
    pub(crate) order: Order,
    /// Calls a second, when they come at a rate.
    pub(crate) rate: Option<f64>,
    pub(crate) duration: Duration,
    pub(crate) connections: usize,
    /// Calls under way on each of them, at most.
    pub(crate) streams: usize,
    pub(crate) threads: usize,
    /// Longest time to connect, and to wait at the end for calls under way.
    pub(crate) timeout: Duration,
}

/// In which order keys are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Order {
    /// At random, each as often.
    Uniform,
    /// At random, the n-th so much less often than the first: n to the power of this.
    Zipf(f64),
    /// One after the other.
    InTurn,
}

/// What a load came to.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) tally: Tally,
    /// From the first call to the end, or to the last answer if that came later.
    pub(crate) elapsed: Duration,
    /// What the load itself took of the processors.
    pub(crate) cpu: Duration,
}

/// Puts a load on a server; `progress` is told once a second how long it runs, and what that second came to.
///
/// # Errors
/// When it cannot begin, because nobody can be reached for example: in words.
pub(crate) fn run(plan: &Plan, mut progress: impl FnMut(Duration, &Tally)) -> Result<Report, String> {
    const SECOND: Duration = Duration::from_secs(1);

    let tallies: Vec<Arc<Mutex<Tally>>> = (0..plan.threads).map(|_| Arc::default()).collect();
    let (start, started) = watch::channel(None);
    let (ready, connected) = mpsc::channel();
    // A thread ends by dropping this.
    let (running, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        // Threads that have connected wait for this, or for its end.
        let start = start;
        for (index, tally) in tallies.iter().enumerate() {
            let (ready, running, started, tally) =
                (ready.clone(), running.clone(), started.clone(), Arc::clone(tally));
            thread::Builder::new()
                .name(format!("load-{index}"))
                .spawn_scoped(scope, move || {
                    let _until_the_end = running;
                    worker::run(plan, index, &tally, ready, started);
                })
                .map_err(|error| format!("cannot start threads: {error}"))?;
        }
        drop((ready, running));
        for result in connected {
            result?;
        }
        let (begun, cpu) = (clock::stopwatch(), clock::cpu());
        // Somebody listens: threads end after this.
        _ = start.send(Some(begun));
        let (mut total, mut lately) = (Tally::default(), Tally::default());
        let mut collect = |lately: &mut Tally| {
            lately.clear();
            for tally in &tallies {
                let mut spare = Tally::default();
                std::mem::swap(&mut spare, &mut *tally.lock().unwrap_or_else(PoisonError::into_inner));
                lately.add(&spare);
            }
            total.add(lately);
        };
        let mut next = begun + SECOND;
        while let Err(mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(until(next)) {
            collect(&mut lately);
            progress(begun.elapsed(), &lately);
            next += SECOND;
        }
        collect(&mut lately);
        let last = total.last_answer().map_or(Duration::ZERO, |last| last.saturating_duration_since(begun));
        Ok(Report { tally: total, elapsed: last.max(plan.duration), cpu: clock::cpu().saturating_sub(cpu) })
    })
}

/// How long it is until then.
fn until(moment: Instant) -> Duration {
    moment.saturating_duration_since(clock::stopwatch())
}
