//! Group commit: calls that arrive while batches are under way wait together, and go as one when a batch comes back.
//!
//! There are no timers in it. A call that finds a free *lane* leaves at once, alone; the calls that come while all lanes
//! are busy queue, and go together as soon as one is free. So the busier it gets, the more calls share a round trip.
//!
//! A lane is one batch at a time: it numbers its batches and has a note in Redis of the last one that was applied, by
//! which a batch whose reply was lost is not applied twice. Whoever asks may go away at any moment: batches are run by
//! tasks of their own, and an answer that nobody waits for is dropped.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::script::{Batch, Decided, NamedCharge};
use crate::store::StoreError;

/// The charges of one request.
pub(super) type Charges = SmallVec<[NamedCharge; 2]>;

/// What a waiting call is told.
pub(super) type Answer = Result<Decided, StoreError>;

/// A call that waits.
struct Waiting {
    charges: Charges,
    deadline: Instant,
    answer: oneshot::Sender<Answer>,
}

/// Calls that go in one batch.
pub(super) struct Group {
    pub(super) batch: Batch,
    /// When the first of them has to be answered.
    pub(super) deadline: Instant,
    answers: Vec<oneshot::Sender<Answer>>,
}

impl Group {
    /// Answers each call with what became of it.
    pub(super) fn answer(self, decided: Vec<Decided>) {
        for (answer, decided) in self.answers.into_iter().zip(decided) {
            _ = answer.send(Ok(decided));
        }
    }

    /// Answers all calls alike.
    pub(super) fn fail(self, error: &StoreError) {
        for answer in self.answers {
            _ = answer.send(Err(error.clone()));
        }
    }
}

/// A place in the queue's order for one batch at a time.
#[derive(Debug)]
pub(super) struct Lane {
    /// Under which its last batch is noted in Redis.
    pub(super) note: Vec<u8>,
    /// The number of its last batch.
    pub(super) number: u64,
}

/// Calls that wait, and lanes that are free.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    max_waiting: usize,
    max_buckets: usize,
    max_charges: usize,
}

struct Inner {
    waiting: VecDeque<Waiting>,
    free: Vec<Lane>,
}

impl Queue {
    /// A queue of at most `max_waiting` calls, for batches of at most `max_buckets` distinct buckets and `max_charges`
    /// charges, or of one request.
    pub(super) fn new(lanes: Vec<Lane>, max_waiting: usize, max_buckets: usize, max_charges: usize) -> Self {
        let inner = Mutex::new(Inner { waiting: VecDeque::new(), free: lanes });
        Self { inner, max_waiting, max_buckets, max_charges }
    }

    /// Queues a call. With it comes the lane that is to run it, if one is free.
    ///
    /// # Errors
    /// When too many wait already.
    pub(super) fn push(
        &self,
        charges: Charges,
        deadline: Instant,
    ) -> Result<(oneshot::Receiver<Answer>, Option<Lane>), StoreError> {
        let (answer, answered) = oneshot::channel();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.waiting.len() >= self.max_waiting {
            return Err(StoreError::Full);
        }
        inner.waiting.push_back(Waiting { charges, deadline, answer });
        Ok((answered, inner.free.pop()))
    }

    /// The calls that a free lane takes next, in their order; without any, the lane is put back.
    pub(super) fn next(&self, lane: Lane, now: Instant) -> Option<(Lane, Group)> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut group: Option<Group> = None;
        let mut charges = 0;
        while let Some(waiting) = inner.waiting.front() {
            let late = waiting.deadline <= now;
            if let Some(Group { batch, .. }) = &group
                && !late
                && (batch.buckets() + batch.new_buckets(&waiting.charges) > self.max_buckets
                    || charges + waiting.charges.len() > self.max_charges)
            {
                break;
            }
            let Some(waiting) = inner.waiting.pop_front() else { break };
            if late {
                _ = waiting.answer.send(Err(StoreError::Late));
                continue;
            }
            if waiting.answer.is_closed() {
                continue;
            }
            let group = group.get_or_insert_with(|| Group {
                batch: Batch::default(),
                deadline: waiting.deadline,
                answers: Vec::new(),
            });
            group.deadline = group.deadline.min(waiting.deadline);
            group.batch.push(&waiting.charges);
            charges += waiting.charges.len();
            group.answers.push(waiting.answer);
        }
        match group {
            Some(group) => Some((lane, group)),
            None => {
                inner.free.push(lane);
                None
            }
        }
    }

    /// Calls that wait now.
    pub(super) fn waiting(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).waiting.len()
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}
