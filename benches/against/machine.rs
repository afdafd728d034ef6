//! What the machine itself takes of the time: its stalls, which no server can answer in.

use std::thread;
use std::time::Duration;

use super::asked::PERCENTILES;

/// Calls are thought to come at such distances.
const STEP: Duration = Duration::from_micros(10);

/// The latencies, in microseconds, of calls that take no time: a thread a core does nothing but read the clock for so long,
/// and a call that would have come while one did not run waits until it does.
pub fn stalls(seconds: f64) -> [f64; PERCENTILES.len()] {
    let duration = Duration::from_secs_f64(seconds);
    let cores = thread::available_parallelism().unwrap().get();
    let mut waits: Vec<f64> = thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(move || waits(duration))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    waits.sort_by(f64::total_cmp);
    // Those that did not wait are not listed.
    let all = duration.as_secs_f64() / STEP.as_secs_f64() * cores as f64;
    let at = |percentile: &str| {
        let part = percentile.strip_prefix('p').map_or(1.0, |number| number.parse::<f64>().unwrap() / 100.0);
        let from_the_end = ((1.0 - part) * all) as usize;
        waits.len().checked_sub(from_the_end + 1).map_or(0.0, |index| waits[index])
    };
    PERCENTILES.map(at)
}

/// How long the calls waited that one core was not there for.
fn waits(duration: Duration) -> Vec<f64> {
    let begun = weir::clock::stopwatch();
    let (mut waits, mut last) = (Vec::new(), Duration::ZERO);
    while last < duration {
        let now = begun.elapsed();
        let mut wait = now - last;
        while wait >= STEP {
            waits.push(wait.as_secs_f64() * 1e6);
            wait -= STEP;
        }
        last = now;
    }
    waits
}
