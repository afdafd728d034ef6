//! Timers that calls share: those that come together have to be answered together.
//!
//! A timer is a place in the runtime's order of timers, and a call to the system where it is the next to fire. One for each
//! call took a twentieth of all that a call takes; nearly all are answered long before it is due.

use std::sync::{Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{Shared, WeakShared};
use smallvec::SmallVec;
use tokio::runtime::{Handle, Id};
use tokio::time::{Instant, Sleep, sleep_until};

/// So much of the time until its deadline a call may do without, one part of so many: for as long calls come together.
const LESS: u32 = 16;

/// The deadline of calls that come together.
#[derive(Clone, Debug)]
pub(super) struct Timer {
    pub(super) due: Instant,
    fires: Shared<Sleep>,
}

impl Timer {
    /// Returns when it is due.
    pub(super) async fn fires(self) {
        self.fires.await;
    }
}

/// The timers of a desk.
#[derive(Debug, Default)]
pub(super) struct Timers(Mutex<SmallVec<[Last; 1]>>);

/// The last one of a runtime. Those of another are not for its calls: they end with that.
#[derive(Debug)]
struct Last {
    runtime: Id,
    due: Instant,
    timer: WeakShared<Sleep>,
}

impl Timers {
    /// One that is due at a deadline, or that others have who came shortly before: then a little sooner.
    pub(super) fn until(&self, deadline: Instant, now: Instant) -> Timer {
        let runtime = Handle::current().id();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = all.iter_mut().find(|last| last.runtime == runtime);
        let less = deadline.saturating_duration_since(now) / LESS;
        if let Some(last) = &last
            && last.due <= deadline
            && deadline.saturating_duration_since(last.due) <= less
            && let Some(fires) = last.timer.upgrade()
        {
            return Timer { due: last.due, fires };
        }
        let fires = sleep_until(deadline).shared();
        if let Some(weak) = fires.downgrade() {
            let this = Last { runtime, due: deadline, timer: weak };
            match last {
                Some(last) => *last = this,
                None => all.push(this),
            }
        }
        Timer { due: deadline, fires }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::clock;

    const TIMEOUT: Duration = Duration::from_millis(160);

    /// How long a timer that is asked for now takes to fire.
    async fn fires(timers: &Timers) -> Duration {
        let now = clock::instant();
        let timer = timers.until(now + TIMEOUT, now);
        assert!(timer.due <= now + TIMEOUT && timer.due >= now + TIMEOUT * 15 / 16);
        timer.fires().await;
        clock::instant() - now
    }

    fn until(timers: &Timers, timeout: Duration) -> Timer {
        let now = clock::instant();
        timers.until(now + timeout, now)
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_come_together_have_one_timer_and_none_waits_longer_than_it_should() {
        let timers = Timers::default();
        let first = until(&timers, TIMEOUT);
        for millis in 0..40 {
            let timer = until(&timers, TIMEOUT);
            assert_eq!(timer.fires.ptr_eq(&first.fires), millis <= 10, "{millis}");
            advance(Duration::from_millis(1)).await;
        }
        for _ in 0..40 {
            let (one, other) = tokio::join!(fires(&timers), async {
                advance(Duration::from_millis(7)).await;
                fires(&timers).await
            });
            for took in [one, other] {
                assert!(took >= TIMEOUT * 15 / 16 && took <= TIMEOUT + Duration::from_millis(2), "{took:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_nobody_waits_for_has_fired_or_is_of_other_calls_is_not_shared() {
        let timers = Timers::default();
        let first = until(&timers, TIMEOUT);
        assert!(!first.fires.ptr_eq(&until(&timers, TIMEOUT * 2).fires), "longer");
        let again = until(&timers, TIMEOUT);
        assert!(!again.fires.ptr_eq(&first.fires), "which is not the last any more");
        let sooner = until(&timers, TIMEOUT / 2);
        assert!(!sooner.fires.ptr_eq(&again.fires) && sooner.due < again.due, "shorter");
        let kept = until(&timers, TIMEOUT);
        drop(kept);
        assert!(fires(&timers).await >= TIMEOUT, "the last one has gone with who waited");
        let spent = until(&timers, TIMEOUT);
        spent.clone().fires().await;
        assert!(fires(&timers).await >= TIMEOUT, "this one has fired");
        drop(spent);
    }

    #[test]
    fn each_runtime_has_timers_of_its_own_which_another_that_ends_leaves_alone() {
        let timers = Timers::default();
        let runtime = || {
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
        };
        let (one, other) = (runtime(), runtime());
        let ends = one.block_on(async { until(&timers, TIMEOUT) });
        let stays = other.block_on(async { until(&timers, TIMEOUT) });
        assert!(!ends.fires.ptr_eq(&stays.fires));
        one.block_on(async { assert!(until(&timers, TIMEOUT).fires.ptr_eq(&ends.fires)) });
        drop(one);
        other.block_on(async {
            assert!(until(&timers, TIMEOUT).fires.ptr_eq(&stays.fires));
            stays.fires().await;
        });
    }
}
