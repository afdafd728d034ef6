//! How long Redis may take over a batch before that counts as a failure.

use std::future::Future;
use std::time::Duration;

use super::super::pending::{STALL, look_again};
use crate::clock;
use crate::store::Class;

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Course {
    /// Redis decided it in time, or said why not in a way that is no failure of its own.
    InTime,
    /// Redis decided it late: that has been told already.
    Late,
    /// Redis failed.
    Failed(Class),
}

/// Waits for a batch, however long it takes, and tells `late` when it has taken as long as callers wait, and again when it
/// has been late for twice as long, four times, and so on: others may wait behind it. What is over after a few of their
/// deadlines is not worth doing without Redis for seconds.
///
/// A timer that fires late has found this process asleep, not Redis, and counts for nothing.
pub(super) async fn wait_for(
    batch: impl Future<Output = Result<(), Class>>,
    patience: Duration,
    mut late: impl FnMut(),
) -> Course {
    tokio::pin!(batch);
    let mut patience = patience;
    let mut due = clock::instant() + patience;
    let mut was_late = false;
    let health = loop {
        tokio::select! {
            biased;
            health = &mut batch => break health,
            () = tokio::time::sleep_until(due) => {
                let now = clock::instant();
                // A reply that can be read by now beats the timer.
                tokio::select! {
                    biased;
                    health = &mut batch => break health,
                    () = look_again() => {}
                }
                if now.saturating_duration_since(due) <= STALL {
                    was_late = true;
                    late();
                }
                patience = patience.saturating_mul(2);
                due = now + patience;
            }
        }
    };
    match health {
        Err(class) if class.is_of_redis() => Course::Failed(class),
        _ if was_late => Course::Late,
        _ => Course::InTime,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::sync::oneshot;
    use tokio::time::{advance, sleep};

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(10);

    /// A batch that takes so long, and when it was called late.
    async fn taking(time: Duration, health: Result<(), Class>) -> (Course, Vec<u128>) {
        let start = clock::instant();
        let mut late = Vec::new();
        let batch = async {
            sleep(time).await;
            health
        };
        let course = wait_for(batch, PATIENCE, || late.push(start.elapsed().as_millis())).await;
        (course, late)
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_is_decided_in_time_is_never_called_late() {
        assert_eq!(taking(PATIENCE / 2, Ok(())).await, (Course::InTime, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_called_late_after_one_deadline_and_each_time_after_twice_as_long() {
        let (course, late) = taking(PATIENCE * 40, Ok(())).await;
        assert_eq!(course, Course::Late);
        // A timer of tokio's has steps of a millisecond.
        let deadlines: Vec<u128> = late.iter().map(|at| at / 10).collect();
        assert_eq!(deadlines, [1, 3, 7, 15, 31], "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_redis_says_of_itself_counts_and_what_it_says_of_a_batch_does_not() {
        let loading = taking(PATIENCE / 2, Err(Class::Loading)).await;
        assert_eq!(loading, (Course::Failed(Class::Loading), vec![]));
        let unreadable = taking(PATIENCE / 2, Err(Class::Unreadable)).await;
        assert_eq!(unreadable, (Course::InTime, vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_that_slept_past_the_deadline_does_not_blame_redis() {
        let (decided, is_decided) = oneshot::channel::<()>();
        let late = Cell::new(0);
        let batch = async {
            _ = is_decided.await;
            Ok(())
        };
        let sleeping = async {
            tokio::task::yield_now().await;
            // The whole process: no timer fires in between.
            advance(PATIENCE * 10).await;
            sleep(PATIENCE).await;
            decided.send(()).unwrap();
        };
        let count = || late.set(late.get() + 1);
        let (course, ()) = tokio::join!(wait_for(batch, PATIENCE, count), sleeping);
        assert_eq!((course, late.get()), (Course::InTime, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_that_can_be_read_when_the_timer_fires_is_in_time() {
        let (decided, is_decided) = oneshot::channel::<()>();
        let batch = async {
            _ = is_decided.await;
            Ok(())
        };
        let replying = async {
            // Both are due in the same millisecond, and the timer's turn comes first.
            sleep(PATIENCE).await;
            tokio::task::yield_now().await;
            decided.send(()).unwrap();
        };
        let late = Cell::new(0);
        let count = || late.set(late.get() + 1);
        let (course, ()) = tokio::join!(wait_for(batch, PATIENCE, count), replying);
        assert_eq!((course, late.get()), (Course::InTime, 0));
    }
}
