//! Group commit: calls that arrive while batches are under way wait together, and go as one when a batch comes back.
//!
//! There are no timers in it. A call that finds a free *lane* leaves at once, with what else has come by then; the calls
//! that come while all lanes are busy queue, and go together as soon as one is free. So the busier it gets, the more calls
//! share a round trip.
//!
//! When more come than fit into a batch, for longer than Redis takes for it, each would wait until its deadline in vain, and
//! what Redis then decides would be for calls that have gone. So a call that has more than a batch before it is told at once
//! that too many wait, if by what batches have lately taken it could not be answered in time. Then Redis decides as many as
//! it can, nearly all of them in time.
//!
//! A lane is one batch at a time, until Redis has answered it or its connection is gone, however long its callers wait: a
//! Redis that stalls is not sent more and more. A lane numbers its batches, and has a note in Redis of the last one that
//! was applied, by which a batch whose reply was lost is not applied twice. Whoever asks may go away at any moment:
//! batches are run by tasks of their own, and an answer that nobody waits for is dropped.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Part;
use super::script::{Decided, NamedCharge};
use crate::store::StoreError;
use crate::telemetry::traces::{self, Traced};

/// The charges of one request.
pub(super) type Charges = SmallVec<[NamedCharge; 1]>;

/// What a waiting call is told.
pub(super) type Answer = Result<Decided, StoreError>;

/// A call that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Where its buckets are.
    pub(super) part: Part,
    pub(super) charges: Charges,
    /// When it has to be answered.
    pub(super) deadline: Instant,
    pub(super) answer: oneshot::Sender<Answer>,
    /// The call, if it is traced.
    pub(super) traced: Option<Traced>,
}

/// A place in the queue's order for one batch at a time.
#[derive(Debug)]
pub(super) struct Lane {
    /// Under which its last batch is noted in Redis; in a Cluster, in each slot, which a tag behind it leads to.
    pub(super) note: Vec<u8>,
    /// The number of its last batch.
    pub(super) number: u64,
    /// The connection that it takes, if that is there.
    pub(super) link: usize,
    /// When it took its last batch, if that has not been given up.
    pub(super) taken: Option<Instant>,
}

impl Lane {
    /// The same batch of it, to be sent on while the lane takes the next. Should that come to the same place first, its note
    /// is the newer one, and this batch is not applied any more.
    pub(super) fn as_it_is(&self) -> Self {
        Self { note: self.note.clone(), ..*self }
    }
}

/// How fast batches go.
#[derive(Debug, Default)]
struct Pace {
    /// How long one lately took, from its being taken to the next one's: an average in which the last one is a quarter.
    round: Duration,
    /// When the last one was taken.
    taken: Option<Instant>,
    /// Charges of a batch, if lately more waited than fitted into one.
    fitted: Option<usize>,
}

impl Pace {
    /// A batch took so long.
    fn took(&mut self, round: Duration) {
        self.round = (self.round * 3 + round) / 4;
    }

    /// A batch of so many charges was taken, and so many calls still wait. One that leaves none may well have had room.
    fn taken(&mut self, charges: usize, waiting: usize, now: Instant) {
        self.taken = Some(now);
        self.fitted = if waiting > 0 { Some(charges) } else { self.fitted.map(|before| before.max(charges)) };
    }

    /// When a call that comes now, behind so many charges, is answered if batches go on as they did. Nothing, if it goes with
    /// the next one.
    fn answered(&self, waiting: usize, lanes: usize, now: Instant) -> Option<Instant> {
        let batches = waiting / self.fitted?.max(1);
        if batches == 0 {
            return None;
        }
        let rounds = u32::try_from(batches / lanes.max(1) + 1).unwrap_or(u32::MAX);
        let under_way = self.round.saturating_sub(now.saturating_duration_since(self.taken?));
        now.checked_add(under_way.saturating_add(self.round.saturating_mul(rounds)))
    }
}

/// Calls that wait, and lanes that are free.
pub(super) struct Queue {
    inner: Mutex<Inner>,
    max_waiting: usize,
    max_buckets: usize,
    max_charges: usize,
    lanes: usize,
    longest: Duration,
}

struct Inner {
    waiting: VecDeque<Waiting>,
    /// Charges of those that wait.
    charges: usize,
    free: Vec<Lane>,
    pace: Pace,
}

impl Inner {
    fn pop(&mut self) -> Option<Waiting> {
        let waiting = self.waiting.pop_front()?;
        self.charges -= waiting.charges.len();
        Some(waiting)
    }
}

impl Queue {
    /// A queue of at most `max_waiting` calls, for batches of about `max_buckets` distinct buckets and at most
    /// `max_charges` charges, or of one request. A batch that takes longer than `longest` has failed, and says no more of
    /// how long others will take.
    pub(super) fn new(
        lanes: Vec<Lane>,
        max_waiting: usize,
        max_buckets: usize,
        max_charges: usize,
        longest: Duration,
    ) -> Self {
        let count = lanes.len();
        let inner =
            Mutex::new(Inner { waiting: VecDeque::new(), charges: 0, free: lanes, pace: Pace::default() });
        Self { inner, max_waiting, max_buckets, max_charges, lanes: count, longest }
    }

    /// Queues a call that comes `now`. With it comes the lane that is to run it, if one is free.
    ///
    /// # Errors
    /// When too many wait already: as many as may, or more than can be answered by its deadline.
    pub(super) fn push(
        &self,
        part: Part,
        charges: Charges,
        deadline: Instant,
        now: Instant,
    ) -> Result<(oneshot::Receiver<Answer>, Option<Lane>), StoreError> {
        let (answer, answered) = oneshot::channel();
        let traced = traces::current();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let before = inner.charges;
        let is_in_time =
            || inner.pace.answered(before, self.lanes, now).is_none_or(|answered| answered <= deadline);
        if inner.waiting.len() >= self.max_waiting || (inner.free.is_empty() && !is_in_time()) {
            return Err(StoreError::Full);
        }
        inner.charges += charges.len();
        inner.waiting.push_back(Waiting { part, charges, deadline, answer, traced });
        Ok((answered, inner.free.pop()))
    }

    /// The calls that a lane takes next, in their order; without any, the lane is put back.
    ///
    /// Calls that nobody waits for are left out, and those that could not be answered in time are told so.
    pub(super) fn next(&self, lane: &mut Option<Lane>, now: Instant) -> Vec<Waiting> {
        let mut unsent: SmallVec<[Waiting; 4]> = SmallVec::new();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = lane.as_mut().and_then(|lane| lane.taken.take()) {
            inner.pace.took(now.saturating_duration_since(before).min(self.longest));
        }
        let mut taken: Vec<Waiting> = Vec::with_capacity(inner.waiting.len().min(self.max_charges));
        // Where all fit, however many buckets they have, buckets need not be counted.
        let fits = inner.charges <= self.max_buckets.min(self.max_charges);
        let mut distinct = (!fits).then(Distinct::new);
        let (mut charges, mut taken_charges) = (0, 0);
        while let Some(waiting) = inner.waiting.front() {
            if waiting.deadline > now && !waiting.answer.is_closed() {
                charges += waiting.charges.len();
                if let Some(distinct) = &mut distinct {
                    distinct.add_all(waiting.charges.iter().map(|named| named.charge.bucket.0));
                    let is_full = distinct.count > self.max_buckets || charges > self.max_charges;
                    if is_full && !taken.is_empty() {
                        break;
                    }
                }
                taken_charges = charges;
                taken.extend(inner.pop());
            } else {
                unsent.extend(inner.pop());
            }
        }
        if taken.is_empty() {
            inner.free.extend(lane.take());
            // Whoever comes next goes alone.
            inner.pace.fitted = None;
        } else {
            let waiting = inner.waiting.len();
            inner.pace.taken(taken_charges, waiting, now);
            lane.iter_mut().for_each(|lane| lane.taken = Some(now));
        }
        drop(inner);
        for waiting in unsent {
            _ = waiting.answer.send(Err(StoreError::Unsent));
        }
        taken
    }

    /// Puts a lane back whose batch ended without an answer. With calls waiting, it is handed out again at once.
    pub(super) fn put_back(&self, mut lane: Lane) -> Option<Lane> {
        lane.taken = None;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.waiting.is_empty() {
            inner.free.push(lane);
            return None;
        }
        Some(lane)
    }

    /// Calls that wait now.
    pub(super) fn waiting(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).waiting.len()
    }

    /// Distinct buckets of a batch, about.
    #[cfg(test)]
    pub(super) fn max_buckets(&self) -> usize {
        self.max_buckets
    }

    /// Calls that may wait.
    pub(super) fn max_waiting(&self) -> usize {
        self.max_waiting
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

/// About how many distinct buckets there are: counted by a bit for each, which now and then two share. It costs next to
/// nothing, since it is counted while callers wait for the lock.
struct Distinct {
    bits: [u64; Self::WORDS],
    count: usize,
}

impl Distinct {
    const WORDS: usize = 256;

    fn new() -> Self {
        Self { bits: [0; Self::WORDS], count: 0 }
    }

    /// Counts those of these that are new.
    fn add_all(&mut self, keys: impl Iterator<Item = u128>) {
        self.count += keys.filter(|key| self.add(*key)).count();
    }

    /// Whether a bucket is a new one. Keys are hashes, so any of their bits do.
    #[allow(clippy::cast_possible_truncation, reason = "any bits do")]
    fn add(&mut self, key: u128) -> bool {
        let bit = 1 << (key % 64);
        let Some(word) = self.bits.get_mut((key >> 64) as usize % Self::WORDS) else { return true };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bucket::{Hits, Limit};
    use crate::clock;
    use crate::decision::{BucketKey, Charge, Mode, RuleId};

    fn charges(buckets: impl IntoIterator<Item = u128>) -> Charges {
        let limit = Limit::new(10.try_into().unwrap(), 1_000_000.try_into().unwrap());
        let charge = |bucket: u128| Charge {
            bucket: BucketKey(bucket.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)),
            rule: RuleId(0),
            limit,
            hits: Hits::Take(1),
            mode: Mode::Enforced,
            on_redis_failure: None,
        };
        buckets
            .into_iter()
            .map(|bucket| NamedCharge { charge: charge(bucket), name: "name".into() })
            .collect()
    }

    const LONGEST: Duration = Duration::from_millis(10);

    fn queue(max_waiting: usize) -> Queue {
        Queue::new(
            vec![Lane { note: Vec::new(), number: 0, link: 0, taken: None }],
            max_waiting,
            20,
            50,
            LONGEST,
        )
    }

    type Pushed = Result<(oneshot::Receiver<Answer>, Option<Lane>), StoreError>;

    fn push(queue: &Queue, buckets: impl IntoIterator<Item = u128>, deadline: Instant) -> Pushed {
        queue.push(Part::ONLY, charges(buckets), deadline, clock::instant())
    }

    fn soon() -> Instant {
        clock::instant() + Duration::from_secs(1)
    }

    #[test]
    fn the_first_call_gets_the_lane_and_those_that_come_while_it_is_busy_wait_until_it_comes_back() {
        let queue = queue(10);
        let (_answer, lane) = push(&queue, [1], soon()).unwrap();
        let mut lane = Some(lane.expect("it is free"));
        assert_eq!(queue.next(&mut lane, clock::instant()).len(), 1);
        let waiting: Vec<_> = (0..3).map(|_| push(&queue, [1], soon()).unwrap()).collect();
        assert!(waiting.iter().all(|(_, lane)| lane.is_none()));
        assert_eq!(queue.next(&mut lane, clock::instant()).len(), 3);
        assert!(queue.next(&mut lane, clock::instant()).is_empty());
        assert!(lane.is_none(), "it was put back");
        assert!(push(&queue, [1], soon()).unwrap().1.is_some());
    }

    #[test]
    fn a_batch_is_bounded_by_buckets_and_by_charges_and_takes_a_request_that_is_larger_alone() {
        let queue = queue(1_000);
        let mut answers = Vec::new();
        let (answer, lane) = push(&queue, 0..30, soon()).unwrap();
        answers.push(answer);
        for bucket in 100..200 {
            answers.push(push(&queue, [bucket], soon()).unwrap().0);
        }
        for _ in 0..100 {
            answers.push(push(&queue, [7], soon()).unwrap().0);
        }
        let mut lane = lane;
        let mut sizes = Vec::new();
        loop {
            let taken = queue.next(&mut lane, clock::instant());
            if taken.is_empty() {
                break;
            }
            sizes.push(taken.len());
        }
        assert_eq!(sizes[0], 1, "thirty buckets are more than twenty");
        assert!(sizes[1..5].iter().all(|size| (20..=22).contains(size)), "{sizes:?}");
        assert!(sizes[5..].contains(&50), "{sizes:?}");
        assert_eq!(sizes.iter().sum::<usize>(), 201, "{sizes:?}");
    }

    #[test]
    fn calls_that_nobody_waits_for_and_calls_whose_time_is_over_are_not_sent() {
        let queue = queue(10);
        let now = clock::instant();
        let (gone, lane) = push(&queue, [1], soon()).unwrap();
        drop(gone);
        let (mut late, _) = push(&queue, [2], now).unwrap();
        let (_answer, _) = push(&queue, [3], soon()).unwrap();
        let mut lane = lane;
        let taken = queue.next(&mut lane, now);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].charges[0].charge.bucket, charges([3])[0].charge.bucket);
        assert_eq!(late.try_recv().unwrap(), Err(StoreError::Unsent));
    }

    #[test]
    fn no_more_wait_than_may() {
        let queue = queue(2);
        let _one = push(&queue, [1], soon()).unwrap();
        let _two = push(&queue, [1], soon()).unwrap();
        assert_eq!(push(&queue, [1], soon()).unwrap_err(), StoreError::Full);
    }

    /// A queue before which Redis has been busy: batches of twenty took so long, and a hundred calls wait behind one.
    fn busy(round: Duration) -> (Queue, Vec<oneshot::Receiver<Answer>>, Option<Lane>, Instant) {
        let (queue, mut now) = (queue(1_000), clock::instant());
        let far = now + Duration::from_secs(60);
        let (answer, mut lane) = push(&queue, [0], far).unwrap();
        let mut answers = vec![answer];
        for bucket in 1..500 {
            answers.push(push(&queue, [bucket], far).unwrap().0);
        }
        while queue.waiting() > 100 {
            assert!(!queue.next(&mut lane, now).is_empty());
            now += round;
        }
        (queue, answers, lane, now)
    }

    #[test]
    fn a_call_behind_more_batches_than_redis_decides_by_its_deadline_is_not_queued() {
        let round = Duration::from_millis(2);
        let (queue, _answers, mut lane, now) = busy(round);
        // What is under way is due now. About five batches wait before a call that comes, which goes in the one after them.
        let push = |deadline| queue.push(Part::ONLY, charges([1_000]), deadline, now);
        assert_eq!(push(now + round * 4).unwrap_err(), StoreError::Full);
        let in_time = push(now + round * 7).unwrap();
        // Each batch that goes makes room.
        let mut later = now;
        for _ in 0..3 {
            later += round;
            assert!(!queue.next(&mut lane, later).is_empty());
        }
        let push = |deadline| queue.push(Part::ONLY, charges([1_001]), deadline, later);
        assert_eq!(push(later + round * 2).unwrap_err(), StoreError::Full);
        drop((in_time, push(later + round * 5).unwrap()));
    }

    #[test]
    fn large_requests_before_do_not_make_small_ones_look_like_many_batches() {
        let (queue, now) = (queue(1_000), clock::instant());
        let far = now + Duration::from_secs(60);
        let (first, mut lane) = push(&queue, [0], far).unwrap();
        let mut answers = vec![first];
        assert_eq!(queue.next(&mut lane, now).len(), 1);
        // A batch each, and five milliseconds.
        for request in 1..=4 {
            answers.push(push(&queue, request * 100..request * 100 + 20, far).unwrap().0);
        }
        for round in 1..=3 {
            assert_eq!(queue.next(&mut lane, now + LONGEST / 2 * round).len(), 1);
        }
        // These are as many requests as make eighteen such batches, and have charges for one.
        let now = now + LONGEST / 2 * 3;
        for call in 1_000..1_019 {
            answers.push(queue.push(Part::ONLY, charges([call]), now + LONGEST, now).unwrap().0);
        }
    }

    #[test]
    fn a_batch_that_takes_all_that_wait_does_not_lift_the_bound_and_an_end_of_the_waiting_does() {
        let round = Duration::from_millis(4);
        let (queue, mut answers, mut lane, mut now) = busy(round);
        while queue.waiting() > 0 {
            assert!(!queue.next(&mut lane, now).is_empty());
            now += round;
        }
        let burst = |answers: &mut Vec<_>, now| {
            let pushed = (0..100).filter_map(|bucket| {
                queue.push(Part::ONLY, charges([1_000 + bucket]), now + LONGEST, now).ok()
            });
            let before = answers.len();
            answers.extend(pushed.map(|(answer, _)| answer));
            answers.len() - before
        };
        // Of the batches that wait, the first is answered after four milliseconds, the second after eight.
        let queued = burst(&mut answers, now);
        assert!((20..60).contains(&queued), "{queued}");
        while !queue.next(&mut lane, now).is_empty() {}
        assert!(lane.is_none(), "nobody waits any more");
        assert_eq!(burst(&mut answers, now), 100, "the first of them goes at once");
    }

    #[test]
    fn what_took_too_long_counts_as_a_deadline_and_is_forgotten_as_batches_are_fast_again() {
        let (queue, mut answers, mut lane, mut now) = busy(LONGEST * 9);
        let push = |bucket, deadline, now| queue.push(Part::ONLY, charges([bucket]), deadline, now);
        // Behind five batches, of which none has failed.
        assert_eq!(push(1_000, now + LONGEST * 4, now).unwrap_err(), StoreError::Full);
        answers.push(push(1_000, now + LONGEST * 8, now).unwrap().0);
        while queue.waiting() > 20 {
            assert!(!queue.next(&mut lane, now).is_empty());
        }
        answers.push(push(1_001, now + LONGEST / 10, now).expect("it goes with the next batch").0);

        let far = now + Duration::from_secs(60);
        for round in 2_000..2_040 {
            for call in 0..20 {
                answers.extend(push(round * 20 + call, far, now).map(|(answer, _)| answer));
            }
            now += LONGEST / 100;
            assert!(!queue.next(&mut lane, now).is_empty());
        }
        for call in 0..60 {
            answers.extend(push(call, far, now).map(|(answer, _)| answer));
        }
        assert!(queue.waiting() >= 60, "{}", queue.waiting());
        assert!(
            push(1_002, now + LONGEST / 10, now).is_ok(),
            "four batches take four tenths of a millisecond"
        );
    }
}
