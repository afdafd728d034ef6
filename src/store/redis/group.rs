//! Calls of a batch whose buckets are in one part, and who waits for them.

use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Part;
use super::queue::{Answer, Waiting};
use super::script::{Batch, Decided};
use crate::store::StoreError;

/// Calls that one script run decides.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) part: Part,
    pub(super) batch: Batch,
    /// When the last of them has to be answered: from then on nobody waits for it.
    pub(super) deadline: Instant,
    answers: Vec<oneshot::Sender<Answer>>,
}

impl Group {
    /// Sorts calls by where their buckets are.
    pub(super) fn sort(calls: Vec<Waiting>) -> SmallVec<[Self; 1]> {
        let mut groups: SmallVec<[Self; 1]> = SmallVec::new();
        for Waiting { part, charges, deadline, answer } in calls {
            let place = groups.iter().position(|group| group.part == part);
            let place = place.unwrap_or_else(|| {
                groups.push(Self { part, batch: Batch::default(), deadline, answers: Vec::new() });
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(place) {
                group.batch.push(&charges);
                group.deadline = group.deadline.max(deadline);
                group.answers.push(answer);
            }
        }
        groups
    }

    /// Calls that are in it.
    pub(super) fn calls(&self) -> usize {
        self.answers.len()
    }

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
