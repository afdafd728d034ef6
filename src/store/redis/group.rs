//! Calls of a batch whose buckets are in one part, and who waits for them.

use std::collections::HashMap;

use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Part;
use super::queue::{Answer, Waiting};
use super::script::{Batch, Decided};
use crate::decision::BucketKey;
use crate::store::StoreError;
use crate::telemetry::traces::Traced;

/// Calls that one script run decides.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) part: Part,
    pub(super) batch: Batch,
    /// When the last of them has to be answered: from then on nobody waits for it.
    pub(super) deadline: Instant,
    answers: Vec<oneshot::Sender<Answer>>,
    /// Those of its calls that are traced.
    pub(super) traced: Vec<Traced>,
}

impl Group {
    /// Sorts calls by where their buckets are.
    pub(super) fn sort(calls: Vec<Waiting>) -> SmallVec<[Self; 1]> {
        let mut groups: SmallVec<[Self; 1]> = SmallVec::new();
        let mut places: HashMap<Part, usize> = HashMap::new();
        // The first is for nearly all of them; what others there are grow.
        let mut room = calls.len();
        for Waiting { part, charges, deadline, answer, traced } in calls {
            // Mostly all are in one part, and that is found without a search.
            let place = match groups.first() {
                Some(first) if first.part == part => 0,
                _ => *places.entry(part).or_insert_with(|| {
                    let count = std::mem::take(&mut room);
                    groups.push(Self {
                        part,
                        batch: Batch::for_requests(count),
                        deadline,
                        answers: Vec::with_capacity(count),
                        traced: Vec::new(),
                    });
                    groups.len() - 1
                }),
            };
            if let Some(group) = groups.get_mut(place) {
                group.batch.push(&charges);
                group.deadline = group.deadline.max(deadline);
                group.answers.push(answer);
                group.traced.extend(traced);
            }
        }
        groups
    }

    /// The same calls, a group for each bucket, in order. Those for several buckets are told `error`.
    pub(super) fn singly(self, error: &StoreError) -> Vec<Self> {
        // Whose call is whose is not told here: the first group has the traces of all.
        let Self { part, batch, deadline, answers, mut traced } = self;
        let mut groups: Vec<Self> = Vec::new();
        let mut places: HashMap<BucketKey, usize> = HashMap::new();
        for (charges, answer) in batch.requests().zip(answers) {
            let bucket = charges.first().map(|named| named.charge.bucket);
            let Some(bucket) =
                bucket.filter(|first| charges.iter().all(|named| named.charge.bucket == *first))
            else {
                _ = answer.send(Err(error.clone()));
                continue;
            };
            let place = *places.entry(bucket).or_insert_with(|| {
                groups.push(Self {
                    part,
                    batch: Batch::default(),
                    deadline,
                    answers: Vec::new(),
                    traced: std::mem::take(&mut traced),
                });
                groups.len() - 1
            });
            if let Some(group) = groups.get_mut(place) {
                group.batch.push(&charges);
                group.answers.push(answer);
            }
        }
        groups
    }

    /// Calls that are in it.
    pub(super) fn calls(&self) -> usize {
        self.answers.len()
    }

    /// Whether anybody still wants to know what became of it.
    pub(super) fn is_awaited(&self) -> bool {
        self.answers.iter().any(|answer| !answer.is_closed())
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
