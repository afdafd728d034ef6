//! A thread of a load: its lines, and when their calls are due.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};

use super::Plan;
use super::line::{Line, lock};
use super::pace::Pace;
use super::request::Requests;
use super::tally::{Failure, Tally};
use crate::clock;

/// Connects, says whether that went well, and makes calls from the moment that is then told until the plan's end.
pub(super) fn run(
    plan: &Plan,
    thread: usize,
    tally: &Arc<Mutex<Tally>>,
    ready: mpsc::Sender<Result<(), String>>,
    started: watch::Receiver<Option<Instant>>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            // If nobody listens any more, another thread has failed before.
            _ = ready.send(Err(format!("cannot start a runtime: {error}")));
            return;
        }
    };
    LocalSet::new().block_on(&runtime, work(plan, thread, tally, ready, started));
}

async fn work(
    plan: &Plan,
    thread: usize,
    tally: &Arc<Mutex<Tally>>,
    ready: mpsc::Sender<Result<(), String>>,
    mut started: watch::Receiver<Option<Instant>>,
) {
    let part = (thread as u64, plan.threads as u64);
    let requests = Rc::new(RefCell::new(Requests::new(&plan.shape, plan.order, part.0, part.1)));
    let mut lines = Vec::new();
    for _ in (thread..plan.connections).step_by(plan.threads) {
        match Line::open(plan, Rc::clone(&requests), Arc::clone(tally)).await {
            Ok(line) => lines.push(line),
            Err(error) => {
                _ = ready.send(Err(error));
                return;
            }
        }
    }
    _ = ready.send(Ok(()));
    drop(ready);
    let start = started.wait_for(Option::is_some).await.ok().and_then(|start| *start);
    // Another thread could not connect.
    let Some(start) = start else { return };

    let pace = Rc::new(match plan.rate {
        Some(rate) => Pace::open(start, plan.duration, rate, part),
        None => Pace::closed(start, plan.duration),
    });
    let mut running = JoinSet::new();
    for mut line in lines {
        let pace = Rc::clone(&pace);
        running.spawn_local(async move { line.run(&pace).await });
    }
    let until = tokio::time::Instant::from_std(start + plan.duration + plan.timeout);
    let given_up = tokio::time::timeout_at(until, async {
        pace.run().await;
        while running.join_next().await.is_some() {}
    });
    if given_up.await.is_err() {
        // What is under way counts itself.
        running.shutdown().await;
        let (mut tally, now) = (lock(tally), clock::stopwatch());
        pace.waiting().for_each(|due| tally.count(Err(Failure::Unanswered), due, now));
    }
}
