//! When calls are due.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::clock;

/// Tells callers when the next call is due, until the end.
pub(super) struct Pace {
    start: Instant,
    end: Instant,
    open: Option<Open>,
}

/// Calls that come at a rate. Those that nobody was free to make when they were due wait here: two numbers, however many.
struct Open {
    /// Calls a second.
    rate: f64,
    /// The part of a second by which these come later than those of the first thread.
    offset: f64,
    /// How many there are by the end.
    all: u64,
    /// How many have come due.
    due: Cell<u64>,
    /// How many have been made.
    made: Cell<u64>,
    /// Wakes one who waits for calls to come due: he makes all that he can, and rings for the next if there are more.
    bell: Notify,
}

impl Pace {
    /// Each caller asks again at once, until the end.
    pub(super) fn closed(start: Instant, duration: Duration) -> Self {
        Self { start, end: start + duration, open: None }
    }

    /// Calls come at a rate, evenly; `part` is which thread of how many this is the pace of.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count that is not negative"
    )]
    pub(super) fn open(start: Instant, duration: Duration, rate: f64, part: (u64, u64)) -> Self {
        let (thread, threads) = part;
        let all = (rate * duration.as_secs_f64()).round() as u64;
        // All of them together are exactly as many as they should be.
        let all = all / threads + u64::from(thread < all % threads);
        let offset = thread as f64 / rate;
        let rate = rate / threads as f64;
        let (due, made, bell) = (Cell::new(0), Cell::new(0), Notify::new());
        Self { start, end: start + duration, open: Some(Open { rate, offset, all, due, made, bell }) }
    }

    /// Whether no call comes due any more, other than those that wait.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        match &self.open {
            None => now >= self.end,
            Some(open) => open.due.get() == open.all,
        }
    }

    /// Whether there is a call to make `now`, and when it was due.
    pub(super) fn take(&self, now: Instant) -> Option<Instant> {
        let Some(open) = &self.open else { return (now < self.end).then_some(now) };
        let made = open.made.get();
        (made < open.due.get()).then(|| {
            open.made.set(made + 1);
            self.start + open.since_start(made)
        })
    }

    /// Tells another one of calls that whoever was rung for could not make.
    pub(super) fn pass_on(&self) {
        if let Some(open) = self.open.as_ref().filter(|open| open.made.get() < open.due.get()) {
            open.bell.notify_one();
        }
    }

    /// Returns when there may be a call to make, or none will come any more.
    pub(super) async fn rung(&self) {
        match &self.open {
            Some(open) => open.bell.notified().await,
            None => std::future::pending().await,
        }
    }

    /// The calls that were due and have not been made.
    pub(super) fn waiting(&self) -> impl Iterator<Item = Instant> {
        self.open
            .iter()
            .flat_map(|open| (open.made.get()..open.due.get()).map(|n| self.start + open.since_start(n)))
    }

    /// Lets calls come due, until all have.
    pub(super) async fn run(&self) {
        /// Calls that are due within so short a time are made together: to wake up for each would cost more than the call,
        /// on a machine whose server wants the processors, too. Latencies may count so much too much.
        const LEAST: Duration = Duration::from_micros(200);

        let Some(open) = &self.open else { return };
        let timer = Timer::new();
        loop {
            let due = open.due_after(clock::stopwatch().saturating_duration_since(self.start));
            let is_due = due > open.due.get();
            open.due.set(due);
            if is_due {
                open.bell.notify_one();
            }
            if due == open.all {
                return open.bell.notify_waiters();
            }
            let next = self.start + open.since_start(due);
            let pause = next.saturating_duration_since(clock::stopwatch()).max(LEAST);
            match &timer {
                Ok(timer) if timer.wait(pause).await.is_ok() => {}
                _ => tokio::time::sleep(pause).await,
            }
        }
    }
}

impl Open {
    /// When the n-th call is due, the first being number 0.
    fn since_start(&self, n: u64) -> Duration {
        Duration::from_secs_f64(self.offset + n as f64 / self.rate)
    }

    /// How many are due after a time.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "negative is none")]
    fn due_after(&self, time: Duration) -> u64 {
        let since_first = time.as_secs_f64() - self.offset;
        if since_first < 0.0 { 0 } else { ((since_first * self.rate) as u64 + 1).min(self.all) }
    }
}

/// Waits to the microsecond, where tokio's timers wait for whole milliseconds: those are for where the system has no other.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    #[allow(
        deprecated,
        reason = "its successor is unsafe for types that name other files later; this one does not"
    )]
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?))
    }

    /// Waits for so long, which is not nothing.
    async fn wait(&self, pause: Duration) -> io::Result<()> {
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec::try_from(pause).map_err(io::Error::other)?;
        let value = Itimerspec { it_interval: once, it_value: value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &value)?;
        loop {
            let mut ready = self.0.readable().await?;
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut [0; 8])?));
            if let Ok(read) = read {
                return read.map(|_| ());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn take(pace: &Pace) -> Vec<Duration> {
        let now = clock::stopwatch();
        std::iter::from_fn(|| pace.take(now)).map(|due| due - pace.start).collect()
    }

    #[tokio::test]
    async fn at_a_rate_calls_are_due_evenly_whenever_they_are_made() {
        // As if all of it had passed before anybody was free.
        let start = clock::stopwatch().checked_sub(SECOND).unwrap();
        let pace = Pace::open(start, SECOND, 1_000.0, (0, 1));
        pace.run().await;
        assert_eq!(pace.waiting().count(), 1_000);
        let dues = take(&pace);
        assert_eq!(dues.len(), 1_000);
        for (due, millis) in dues.iter().zip(0..) {
            assert!(due.abs_diff(Duration::from_millis(millis)) < Duration::from_micros(1), "{due:?}");
        }
        assert_eq!(pace.waiting().count(), 0);
    }

    #[tokio::test]
    async fn no_call_is_made_before_it_is_due() {
        let pace = Pace::open(clock::stopwatch(), Duration::from_millis(50), 10_000.0, (0, 1));
        let callers = async {
            let mut made = 0;
            while made < 500 {
                pace.rung().await;
                let now = clock::stopwatch();
                while let Some(due) = pace.take(now) {
                    assert!(now >= due);
                    made += 1;
                }
            }
            made
        };
        let ((), made) = tokio::join!(pace.run(), callers);
        assert_eq!(made, 500);
    }

    #[tokio::test]
    async fn threads_share_a_rate_and_their_calls_lie_between_one_another() {
        let start = clock::stopwatch().checked_sub(SECOND).unwrap();
        let mut dues = Vec::new();
        for thread in 0..3 {
            let pace = Pace::open(start, SECOND, 100.0, (thread, 3));
            pace.run().await;
            dues.extend(take(&pace));
        }
        dues.sort();
        assert_eq!(dues.len(), 100);
        for (due, n) in dues.iter().zip(0..) {
            assert!(due.abs_diff(Duration::from_millis(10 * n)) < Duration::from_micros(1), "{due:?}");
        }
    }

    #[test]
    fn in_a_closed_loop_a_call_is_due_at_once_until_the_end() {
        let start = clock::stopwatch();
        let pace = Pace::closed(start, SECOND);
        let last = start + SECOND - Duration::from_nanos(1);
        assert_eq!((pace.take(start), pace.take(last)), (Some(start), Some(last)));
        assert_eq!(pace.take(start + SECOND), None);
        assert!(pace.is_over(start + SECOND) && !pace.is_over(last));
    }
}
