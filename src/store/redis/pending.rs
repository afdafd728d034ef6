//! The answer of a call, and what is left of it when it does not come in time.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::queue::Answer;
use super::script::{Answered, Decided};
use super::timers::Timer;
use crate::clock;
use crate::store::StoreError;

/// A timer that fires so much late has found this process asleep, not Redis.
pub(super) const STALL: Duration = Duration::from_millis(5);

/// So much longer Redis's answer is then waited for: it may be there, and only has to be read.
const GRACE: Duration = Duration::from_millis(2);

/// How many times a late call looks again: once for the connection to read, once for the batch to be told, once for the
/// call to be.
const LOOKS: usize = 3;

/// A call that has no answer.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Failure {
    /// Why.
    pub error: StoreError,
    /// How to learn later what became of it, if it was late.
    pub pending: Option<Pending>,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self { error, pending: None }
    }
}

/// An answer that is still to come.
#[derive(Debug)]
pub struct Pending(pub(super) oneshot::Receiver<Answer>);

impl Pending {
    /// The answer, when it comes: with the reply, or with the end of the connection that it was waited for over. An error
    /// for which [`StoreError::may_have_landed`] is true means that nobody will ever know.
    ///
    /// # Errors
    /// When there was none.
    pub async fn outcome(self) -> Result<Answered, StoreError> {
        read(self.0.await)
    }

    /// The answer, if it comes before this timer fires.
    pub(super) async fn by(mut self, timer: Timer) -> Result<Answered, Failure> {
        let deadline = timer.due;
        tokio::select! {
            biased;
            answer = &mut self.0 => return read(answer).map_err(Failure::from),
            () = timer.fires() => {}
        }
        let stalled = clock::instant().saturating_duration_since(deadline) > STALL;
        if stalled && let Ok(answer) = timeout_at(clock::instant() + GRACE, &mut self.0).await {
            return read(answer).map_err(Failure::from);
        }
        // An answer that can be read by now beats the timer.
        for _ in 0..LOOKS {
            tokio::task::yield_now().await;
            match self.0.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => {}
                Err(oneshot::error::TryRecvError::Closed) => return Err(StoreError::Lost.into()),
                Ok(answer) => return read(Ok(answer)).map_err(Failure::from),
            }
        }
        let error = if stalled { StoreError::Stalled } else { StoreError::Late };
        Err(Failure { error, pending: Some(self) })
    }
}

/// Lets what is there be read: as often as a late call looks again.
pub(super) async fn look_again() {
    for _ in 0..LOOKS {
        tokio::task::yield_now().await;
    }
}

fn read(answer: Result<Answer, oneshot::error::RecvError>) -> Result<Answered, StoreError> {
    // A batch that ended without a word was ended from outside, or by an error of ours.
    match answer.unwrap_or(Err(StoreError::Lost))? {
        Decided::Answered(answered) => Ok(answered),
        Decided::Unreadable => Err(StoreError::Unreadable),
    }
}
