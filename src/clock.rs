//! The only reader of time.
//!
//! Everything else is handed the moment as microseconds since the Unix epoch, UTC. The system clock is read once, at
//! start, and from there on a monotonic clock counts, so that a stepping wall clock can neither refill nor lock a
//! bucket. Tests hold a [`Clock::manual`] and set the hour themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// A moment or a length of time in microseconds; a moment counts from the Unix epoch.
///
/// Stays below 2⁵³ until the year 2255, so it is exact as a double too: the shape in which Redis's Lua knows it.
pub type Micros = u64;

/// Tells the time to whoever decides.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System { epoch_at_start: Micros, start: Instant },
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// The machine's time as it stands now, counted on by the monotonic clock.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "the one place that reads time")]
    pub fn system() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(Source::System { epoch_at_start: micros(wall), start: Instant::now() })
    }

    /// A clock that stands still at `now` until [`Clock::set`] moves it; copies share the hand.
    #[must_use]
    pub fn manual(now: Micros) -> Self {
        Self(Source::Manual(Arc::new(AtomicU64::new(now))))
    }

    /// The present moment.
    #[must_use]
    #[inline]
    pub fn now(&self) -> Micros {
        match &self.0 {
            Source::System { epoch_at_start, start } => epoch_at_start + micros(start.elapsed()),
            Source::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Moves a manual clock to `now`, forwards or back; a system clock takes no orders.
    pub fn set(&self, now: Micros) {
        if let Source::Manual(hand) = &self.0 {
            hand.store(now, Ordering::Relaxed);
        }
    }

    /// Moves a manual clock forward by `micros`.
    pub fn advance(&self, micros: Micros) {
        if let Source::Manual(hand) = &self.0 {
            hand.fetch_add(micros, Ordering::Relaxed);
        }
    }
}

/// The present moment as timers count it, for deadlines. Under tokio's paused clock it stands still.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that reads time")]
pub fn instant() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// The present moment as a stopwatch has it, to measure with.
#[must_use]
#[inline]
#[allow(clippy::disallowed_methods, reason = "the one place that reads time")]
pub fn stopwatch() -> Instant {
    Instant::now()
}

/// How long this process has kept processors busy so far, all its threads together.
#[must_use]
pub fn cpu() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    std::time::Duration::try_from(time).unwrap_or_default()
}

#[inline]
fn micros(duration: std::time::Duration) -> Micros {
    Micros::try_from(duration.as_micros()).unwrap_or(Micros::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_never_runs_backwards() {
        let clock = Clock::system();
        let mut last = clock.now();
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
        assert!(last > 1_600_000_000_000_000, "microseconds since 1970, not {last}");
    }

    #[test]
    fn a_manual_clock_stands_still_until_it_is_moved_and_copies_share_its_hand() {
        let clock = Clock::manual(5);
        let copy = clock.clone();
        clock.advance(10);
        assert_eq!(copy.now(), 15);
        copy.set(3);
        assert_eq!(clock.now(), 3);
    }
}
