//! What a request wants, and what is answered: plain types, and the rule of all or nothing.
//!
//! A request wants a [`Charge`] of each limit that it meets. [`decide`] answers them together: a request that is denied
//! charges nothing, one that is admitted charges every bucket that has room. It works on copies of the buckets and
//! knows neither where they live nor what time it is, so that every store decides alike.

use std::hash::{BuildHasherDefault, Hasher};

use smallvec::SmallVec;

use crate::bucket::{Bucket, Hits, Limit, Outcome, Retry};
use crate::clock::Micros;

/// Names one bucket: a keyed 128-bit hash of the domain, the request's entries and the limit's id.
///
/// The seed is drawn anew by each process (see [`KeySeed`](crate::store::KeySeed)), so nobody outside can choose values
/// that meet in one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketKey(pub u128);

/// The hash of a [`BucketKey`] in a table: half of the key, which is one already.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeyHasher(u64);

/// Hashes bucket keys for tables.
pub type HashKeys = BuildHasherDefault<KeyHasher>;

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    #[allow(clippy::cast_possible_truncation, reason = "a half is enough")]
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not of bucket keys.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

/// Names one rule, the same in every process and after every reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleId(pub u64);

/// How much a limit that is over means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It denies the request.
    #[default]
    Enforced,
    /// It denies the request only when every other limit in this mode is over as well.
    Quota,
    /// It is counted, and denies nothing.
    Shadow,
}

/// What is answered where a shared store has no answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRedisFailure {
    /// What this process's own buckets say.
    #[default]
    Local,
    /// A denial.
    Deny,
    /// An admission.
    Allow,
}

impl OnRedisFailure {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Local, Self::Deny, Self::Allow];

    /// As rules and settings write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }
}

/// One limit that a request meets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Charge {
    /// Whose tokens.
    pub bucket: BucketKey,
    /// By which rule: when no room is left for another bucket, its latecomers share one.
    pub rule: RuleId,
    /// How the bucket refills and what it holds.
    pub limit: Limit,
    /// How many tokens.
    pub hits: Hits,
    /// What happens when there are not as many.
    pub mode: Mode,
    /// What is answered where a shared store has no answer, if that is not the process's default.
    pub on_redis_failure: Option<OnRedisFailure>,
}

/// Who gave an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Redis.
    Redis,
    /// This process's own buckets.
    #[default]
    Local,
    /// A denial by Redis that is remembered.
    Remembered,
    /// Nobody was asked: Redis did not answer, and its rule says what is answered then.
    Policy,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Redis, Self::Local, Self::Remembered, Self::Policy];

    /// As metrics say it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Local => "local",
            Self::Remembered => "remembered",
            Self::Policy => "policy",
        }
    }
}

/// The answer for one charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it fits; also told of a charge whose request was denied for another one.
    pub outcome: Outcome,
    /// Whole tokens left: after the charge, or without it when the request was denied.
    pub remaining: u32,
    /// Microseconds until the bucket is full, if nobody else came.
    pub full_in: Micros,
    /// Who says so. Arithmetic says [`Source::Local`]; whoever asked elsewhere says where.
    pub source: Source,
}

/// The answer for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request is denied.
    pub denied: bool,
    /// When it was decided, as the store tells time: what is refunded later names this moment.
    pub at: Micros,
    /// One verdict for each charge, in their order.
    pub verdicts: Verdicts,
}

impl Decision {
    /// The same decision, as one by `source`.
    #[must_use]
    pub fn said_by(mut self, source: Source) -> Self {
        self.verdicts.iter_mut().for_each(|verdict| verdict.source = source);
        self
    }
}

/// Verdicts, in the order of the charges; a few fit without the heap.
pub type Verdicts = SmallVec<[Verdict; 2]>;

/// Decides `charges` on `buckets`, at the moment `now`.
///
/// `places` says for each charge which of the buckets is its own; two charges may share one and are then counted one
/// after the other. Afterwards the buckets are as the decision leaves them. A charge without a place, which a store
/// never makes, is taken as one of an empty bucket: towards denying.
pub fn decide(charges: &[Charge], places: &[usize], buckets: &mut [Bucket], now: Micros) -> Decision {
    let before: SmallVec<[Bucket; 4]> = buckets.iter().cloned().collect();
    let mut verdicts: Verdicts = charges
        .iter()
        .zip(places)
        .map(|(charge, place)| match buckets.get_mut(*place) {
            Some(bucket) => verdict(charge, bucket, now),
            None => Verdict {
                outcome: Outcome::Over(Retry::Never),
                remaining: 0,
                full_in: 0,
                source: Source::Local,
            },
        })
        .collect();

    let denied = denies(charges, &verdicts);
    if denied {
        // As they were, but for what lands whatever the answer, and what a denial must not leave unsaid.
        buckets.clone_from_slice(&before);
        for (charge, place) in charges.iter().zip(places) {
            let Some(bucket) = buckets.get_mut(*place) else { continue };
            if charge.hits.land_anyway() {
                _ = bucket.take(&charge.limit, charge.hits, now);
            } else {
                bucket.settle(&charge.limit, now);
            }
        }
        for ((charge, place), verdict) in charges.iter().zip(places).zip(&mut verdicts) {
            if let Some(bucket) = buckets.get(*place) {
                verdict.remaining = bucket.remaining(&charge.limit, now);
                verdict.full_in = bucket.full_in(&charge.limit, now);
            }
        }
    }
    Decision { denied, at: now, verdicts }
}

/// Decides a request of one charge: the same as [`decide`], with nothing to put back.
pub fn decide_one(charge: &Charge, bucket: &mut Bucket, now: Micros) -> Decision {
    let verdict = verdict(charge, bucket, now);
    let denied = denies(std::slice::from_ref(charge), &[verdict]);
    Decision { denied, at: now, verdicts: SmallVec::from_slice(&[verdict]) }
}

fn verdict(charge: &Charge, bucket: &mut Bucket, now: Micros) -> Verdict {
    let outcome = bucket.take(&charge.limit, charge.hits, now);
    Verdict {
        outcome,
        remaining: bucket.remaining(&charge.limit, now),
        full_in: bucket.full_in(&charge.limit, now),
        source: Source::Local,
    }
}

/// One enforced limit over is enough; of quotas it takes all.
pub(crate) fn denies(charges: &[Charge], verdicts: &[Verdict]) -> bool {
    let (mut quotas, mut quotas_over) = (0, 0);
    for (charge, verdict) in charges.iter().zip(verdicts) {
        let over = verdict.outcome != Outcome::Fits;
        match charge.mode {
            Mode::Enforced if over => return true,
            Mode::Quota => {
                quotas += 1;
                quotas_over += u32::from(over);
            }
            Mode::Enforced | Mode::Shadow => {}
        }
    }
    quotas > 0 && quotas == quotas_over
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use super::*;

    const SECOND: Micros = 1_000_000;
    const NOW: Micros = 1_790_000_000_000_000;

    fn charge(mode: Mode, hits: Hits) -> Charge {
        let limit = Limit::new(NonZeroU32::new(10).unwrap(), NonZeroU64::new(10 * SECOND).unwrap());
        Charge { bucket: BucketKey(0), rule: RuleId(0), limit, hits, mode, on_redis_failure: None }
    }

    fn with_used(used: u64) -> Bucket {
        let mut bucket = Bucket::FULL;
        let _ = bucket.take(&charge(Mode::Enforced, Hits::Peek).limit, Hits::Take(used), NOW);
        bucket
    }

    /// Charges of a bucket each, with so much used; what each has left after the decision.
    fn left(buckets: &[Bucket]) -> Vec<u32> {
        let limit = charge(Mode::Enforced, Hits::Peek).limit;
        buckets.iter().map(|bucket| bucket.remaining(&limit, NOW)).collect()
    }

    fn over(decision: &Decision) -> Vec<bool> {
        decision.verdicts.iter().map(|verdict| verdict.outcome != Outcome::Fits).collect()
    }

    #[test]
    fn a_denied_request_charges_nothing_and_still_shows_who_was_over() {
        let charges = [charge(Mode::Enforced, Hits::Take(1)), charge(Mode::Enforced, Hits::Take(1))];
        let mut buckets = [with_used(3), with_used(10)];
        let decision = decide(&charges, &[0, 1], &mut buckets, NOW);
        assert!(decision.denied);
        assert_eq!(over(&decision), [false, true]);
        assert_eq!(decision.verdicts[0].remaining, 7, "what it still has");
        assert_eq!(decision.verdicts[1].outcome, Outcome::Over(Retry::In(SECOND)));
        assert_eq!(left(&buckets), [7, 0]);
    }

    #[test]
    fn an_admitted_request_charges_every_bucket_that_has_room() {
        let charges = [
            charge(Mode::Enforced, Hits::Take(2)),
            charge(Mode::Shadow, Hits::Take(2)),
            charge(Mode::Shadow, Hits::Take(2)),
        ];
        let mut buckets = [with_used(0), with_used(0), with_used(9)];
        let decision = decide(&charges, &[0, 1, 2], &mut buckets, NOW);
        assert!(!decision.denied);
        assert_eq!(over(&decision), [false, false, true]);
        assert_eq!(left(&buckets), [8, 8, 1]);
    }

    #[test]
    fn one_bucket_named_twice_counts_cumulatively() {
        let charges = [charge(Mode::Enforced, Hits::Take(6)), charge(Mode::Enforced, Hits::Take(6))];
        let mut buckets = [with_used(0)];
        let decision = decide(&charges, &[0, 0], &mut buckets, NOW);
        assert!(decision.denied);
        assert_eq!(over(&decision), [false, true]);
        // Both would fit once two more tokens were there than a bucket of ten has.
        assert_eq!(decision.verdicts[1].outcome, Outcome::Over(Retry::In(2 * SECOND)));
        assert_eq!(left(&buckets), [10]);

        let charges = [charge(Mode::Enforced, Hits::Take(4)), charge(Mode::Enforced, Hits::Take(6))];
        let decision = decide(&charges, &[0, 0], &mut buckets, NOW);
        assert!(!decision.denied);
        assert_eq!(decision.verdicts.iter().map(|verdict| verdict.remaining).collect::<Vec<_>>(), [6, 0]);
    }

    #[test]
    fn quotas_deny_only_when_all_of_them_are_over() {
        let charges = [charge(Mode::Quota, Hits::Take(1)), charge(Mode::Quota, Hits::Take(1))];
        let mut buckets = [with_used(10), with_used(9)];
        let decision = decide(&charges, &[0, 1], &mut buckets, NOW);
        assert!(!decision.denied);
        assert_eq!(over(&decision), [true, false]);

        let decision = decide(&charges, &[0, 1], &mut buckets, NOW);
        assert!(decision.denied);
        assert_eq!(over(&decision), [true, true]);
    }

    #[test]
    fn a_quota_that_is_over_does_not_deny_beside_an_enforced_limit_with_room_unless_it_stands_alone() {
        let charges = [charge(Mode::Enforced, Hits::Take(1)), charge(Mode::Quota, Hits::Take(1))];
        let mut buckets = [with_used(0), with_used(10)];
        assert!(
            decide(&charges, &[0, 1], &mut buckets, NOW).denied,
            "all of the quotas, which is one, are over"
        );
        assert_eq!(left(&buckets), [10, 0]);
    }

    #[test]
    fn a_shadowed_limit_never_denies_and_a_shadowed_quota_is_no_quota() {
        let mut bucket = with_used(10);
        let decision = decide_one(&charge(Mode::Shadow, Hits::Take(1)), &mut bucket, NOW);
        assert!(!decision.denied);
        assert_eq!(over(&decision), [true]);
    }

    #[test]
    fn what_is_given_back_lands_whatever_the_answer_and_in_order() {
        let charges = [
            charge(Mode::Enforced, Hits::GiveBack(3)),
            charge(Mode::Enforced, Hits::Take(3)),
            charge(Mode::Enforced, Hits::Take(1)),
        ];
        let mut buckets = [with_used(10), with_used(10)];
        let decision = decide(&charges, &[0, 0, 1], &mut buckets, NOW);
        assert!(decision.denied);
        assert_eq!(over(&decision), [false, false, true]);
        assert_eq!(left(&buckets), [3, 0], "given back, and not taken again");
        assert_eq!(decision.verdicts[0].remaining, 3);
    }

    #[test]
    fn a_denied_request_still_notes_a_clock_that_stepped_back() {
        let charges = [charge(Mode::Enforced, Hits::Take(1)), charge(Mode::Enforced, Hits::Take(1))];
        let mut buckets = [with_used(10), with_used(0)];
        let earlier = NOW - 3_600 * SECOND;
        assert!(decide(&charges, &[0, 1], &mut buckets, earlier).denied);
        assert!(!decide(&charges, &[0, 1], &mut buckets, earlier + SECOND).denied);
    }

    #[test]
    fn one_charge_is_decided_as_a_request_of_one() {
        for used in 0..=10 {
            for hits in [Hits::Take(1), Hits::Take(5), Hits::Peek, Hits::GiveBack(2)] {
                for mode in [Mode::Enforced, Mode::Quota, Mode::Shadow] {
                    let (mut alone, mut listed) = (with_used(used), [with_used(used)]);
                    let charge = charge(mode, hits);
                    let decision = decide_one(&charge, &mut alone, NOW);
                    assert_eq!(decision, decide(&[charge], &[0], &mut listed, NOW));
                    assert_eq!(alone, listed[0]);
                }
            }
        }
    }
}
