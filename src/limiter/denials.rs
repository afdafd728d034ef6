//! Denials that are known, so that a shared store is not asked again while the answer cannot change.
//!
//! What is kept of a denied request is an upper bound of what its buckets hold: as they were, refilled since the moment
//! when the request was *made*, which is before it was decided. Others can only have taken from them meanwhile. So a
//! charge that does not fit by this bound does not fit, however small it is, until the promised moment.
//!
//! Only giving tokens back could make the bound wrong. Where this process gives back to a bucket, a new *generation* of
//! it begins, before and after: what was asked in an older one is not remembered. Buckets share generations by the
//! thousandth, so that giving back to one leaves most others as they are. What other processes give back stays unseen
//! for as long as a denial is remembered at most, which is a setting.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use smallvec::SmallVec;

use crate::bucket::{Algorithm, Bucket, Hits, Limit, Outcome, Retry};
use crate::clock::Micros;
use crate::decision::{BucketKey, Charge, Decision, HashKeys, Verdict, decide};

/// Buckets that are remembered at most.
const CAPACITY: usize = 100_000;

/// How often room is made at the most, in microseconds: each time looks at all that is remembered.
const PURGE: Micros = 100_000;

/// Denials that are known.
#[derive(Debug)]
pub(super) struct Denials {
    known: DashMap<BucketKey, Known, HashKeys>,
    /// Each of the buckets of one stripe.
    generations: Box<[AtomicU64]>,
    /// The longest that one is remembered, in microseconds.
    longest: Micros,
    /// How long an answer may take, in microseconds.
    timeout: Micros,
    next_purge: AtomicU64,
}

/// An upper bound of what a bucket holds.
#[derive(Clone, Debug)]
struct Known {
    bucket: Bucket,
    /// Of the charge that it is known from: under another limit, nothing is known.
    limit: Limit,
    generation: u64,
    /// When it is forgotten.
    until: Micros,
    /// By how many microseconds the clock that its bucket goes by is ahead of this process's, at most.
    ahead: i64,
    /// When somebody asks again, so that it need not be forgotten first.
    refresh: Micros,
}

/// A denial is asked about again as long before it is forgotten as an answer may take, and for one part at most of so many of
/// the time that it is remembered for.
const REFRESH: Micros = 10;

/// How many generations there are for all buckets together.
const STRIPES: usize = 1_024;

/// The generations of a request's buckets, in the order of its charges.
pub(super) type Generations = SmallVec<[u64; 4]>;

/// Begins a new generation when it is dropped: what was given back has landed by then, or nobody knows.
pub(super) struct GivingBack<'d> {
    denials: &'d Denials,
    buckets: SmallVec<[BucketKey; 2]>,
}

impl Drop for GivingBack<'_> {
    fn drop(&mut self) {
        self.denials.begin_generation(&self.buckets);
    }
}

impl Denials {
    /// Remembers denials until their promised moment, and `longest` at most. An answer takes no longer than `timeout`.
    pub(super) fn new(longest: Duration, timeout: Duration) -> Self {
        let [longest, timeout] =
            [longest, timeout].map(|time| Micros::try_from(time.as_micros()).unwrap_or(Micros::MAX));
        let generations = (0..STRIPES).map(|_| AtomicU64::new(0)).collect();
        Self { known: DashMap::default(), generations, longest, timeout, next_purge: AtomicU64::new(0) }
    }

    /// What was asked before now of buckets that are given back to, or is asked while this is held, is not remembered.
    pub(super) fn giving_back(&self, charges: &[Charge]) -> GivingBack<'_> {
        let given = charges.iter().filter(|charge| charge.hits.give_back());
        let buckets: SmallVec<[BucketKey; 2]> = given.map(|charge| charge.bucket).collect();
        self.begin_generation(&buckets);
        GivingBack { denials: self, buckets }
    }

    fn begin_generation(&self, buckets: &[BucketKey]) {
        for bucket in buckets {
            if let Some(generation) = self.stripe(*bucket) {
                generation.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// To be told to [`Denials::remember`] with what is asked from here on.
    pub(super) fn generations(&self, charges: &[Charge]) -> Generations {
        charges.iter().map(|charge| self.generation(charge.bucket)).collect()
    }

    fn generation(&self, bucket: BucketKey) -> u64 {
        self.stripe(bucket).map_or(0, |generation| generation.load(Ordering::Acquire))
    }

    /// Keys are hashes: any of their bits do.
    #[allow(clippy::cast_possible_truncation, reason = "any bits do")]
    fn stripe(&self, bucket: BucketKey) -> Option<&AtomicU64> {
        self.generations.get(bucket.0 as usize % STRIPES)
    }

    /// The decision on a request, if it is known to be denied. One of which a charge lands whatever the answer is always
    /// asked.
    pub(super) fn decide(&self, charges: &[Charge], now: Micros) -> Option<Decision> {
        let mut keys: SmallVec<[BucketKey; 4]> = charges.iter().map(|charge| charge.bucket).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut buckets: SmallVec<[Bucket; 4]> = SmallVec::new();
        // All are looked at by the clock that is ahead the most: the later it is, the more may be available.
        let mut ahead = i64::MIN;
        for key in &keys {
            let known = self.known.get(key)?;
            if known.refresh <= now && known.until > now {
                // Whoever comes first asks; the others know meanwhile, and do not all come at once when it is forgotten.
                drop(known);
                self.known.get_mut(key)?.refresh = Micros::MAX;
                return None;
            }
            let of_this = |charge: &&Charge| charge.bucket == *key;
            let same = charges
                .iter()
                .filter(of_this)
                .all(|charge| charge.limit == known.limit && !charge.hits.land_anyway());
            if known.generation != self.generation(*key) || known.until <= now || !same {
                return None;
            }
            ahead = ahead.max(known.ahead);
            buckets.push(known.bucket.clone());
        }
        let places: SmallVec<[usize; 4]> =
            charges.iter().filter_map(|charge| keys.binary_search(&charge.bucket).ok()).collect();
        let decision = decide(charges, &places, &mut buckets, now.saturating_add_signed(ahead));
        decision.denied.then_some(decision)
    }

    /// Remembers what a denied request, made at `asked` in `generations`, says of its buckets: for so long at most. `left`
    /// has each charge's bucket as the store left it, or is empty where that is not known.
    pub(super) fn remember(
        &self,
        charges: &[Charge],
        decision: &Decision,
        left: &[Bucket],
        asked: Micros,
        generations: &Generations,
        longest: Micros,
    ) {
        let longest = longest.min(self.longest);
        if !decision.denied || longest == 0 {
            return;
        }
        // Of a bucket that is named twice, a verdict does not say what it holds.
        let once =
            |charge: &Charge| charges.iter().filter(|other| other.bucket == charge.bucket).count() == 1;
        let waits = decision.verdicts.iter().filter_map(|verdict| match verdict.outcome {
            Outcome::Over(Retry::In(wait)) => Some(wait),
            Outcome::Over(Retry::Never) | Outcome::Fits => None,
        });
        let wait = waits.max().unwrap_or(longest).min(longest);
        for (place, ((charge, verdict), generation)) in
            charges.iter().zip(&decision.verdicts).zip(generations).enumerate()
        {
            let generation = *generation;
            if !once(charge) || generation != self.generation(charge.bucket) {
                continue;
            }
            let (bucket, ahead) = match (charge.limit.algorithm(), left.get(place)) {
                (Algorithm::TokenBucket, _) => (bound(charge, verdict, asked), 0),
                // When what windows hold leaves them, one after the other, a verdict does not say.
                (_, Some(left)) => (
                    left.clone(),
                    i64::try_from(decision.at).unwrap_or(i64::MAX).saturating_sub_unsigned(asked),
                ),
                (_, None) => continue,
            };
            let until = asked.saturating_add(wait);
            if self.has_room(asked) {
                // At the promised moment it is over; before that, somebody else may have given something back.
                let refresh = if wait < longest {
                    Micros::MAX
                } else {
                    until.saturating_sub(self.timeout.min(wait / REFRESH))
                };
                let known = Known { bucket, limit: charge.limit, generation, until, ahead, refresh };
                self.known.insert(charge.bucket, known);
            }
        }
    }

    fn has_room(&self, now: Micros) -> bool {
        if self.known.len() < CAPACITY {
            return true;
        }
        if self.next_purge.load(Ordering::Relaxed) <= now {
            self.next_purge.store(now.saturating_add(PURGE), Ordering::Relaxed);
            self.known.retain(|_, known| known.until > now);
        }
        self.known.len() < CAPACITY
    }
}

/// The bucket that a verdict was given on.
#[allow(clippy::cast_precision_loss, reason = "waits are below 2⁵³, and hits above fit no bucket")]
fn bound(charge: &Charge, verdict: &Verdict, asked: Micros) -> Bucket {
    let limit = &charge.limit;
    let need = match charge.hits {
        Hits::Take(hits) => hits as f64,
        _ => 1.0,
    };
    let used = match verdict.outcome {
        // It fits in `wait` and not a microsecond sooner: so much is missing, and a little more.
        Outcome::Over(Retry::In(wait)) => limit.burst() - need + limit.rate() * wait.saturating_sub(1) as f64,
        // It is full in so long: so much is used, and a little more.
        Outcome::Over(Retry::Never) | Outcome::Fits => {
            limit.rate() * verdict.full_in.saturating_sub(1) as f64
        }
    };
    Bucket::with_used(limit, used.max(0.0), asked)
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use super::*;
    use crate::bucket::Calendar;
    use crate::decision::{Mode, RuleId};

    const SECOND: Micros = 1_000_000;
    const NOW: Micros = 1_790_000_000_000_000;

    /// `hits` of a bucket of ten that refills one every ten seconds.
    fn charge(bucket: u128, hits: Hits) -> Charge {
        let limit = Limit::new(NonZeroU32::new(10).unwrap(), NonZeroU64::new(100 * SECOND).unwrap());
        Charge {
            bucket: BucketKey(bucket),
            rule: RuleId(0),
            limit,
            hits,
            mode: Mode::Enforced,
            on_redis_failure: None,
        }
    }

    fn take(bucket: u128, hits: u64) -> Charge {
        charge(bucket, Hits::Take(hits))
    }

    /// Decides on buckets with so much used, and remembers that.
    fn learn(denials: &Denials, charges: &[Charge], used: &[u64]) -> Decision {
        let mut buckets: Vec<Bucket> = used
            .iter()
            .zip(charges)
            .map(|(used, charge)| {
                let mut bucket = Bucket::FULL;
                assert_eq!(bucket.take(&charge.limit, Hits::Take(*used), NOW), Outcome::Fits);
                bucket
            })
            .collect();
        let places: Vec<usize> = (0..charges.len()).collect();
        let decision = decide(charges, &places, &mut buckets, NOW);
        denials.remember(charges, &decision, &[], NOW, &denials.generations(charges), Micros::MAX);
        decision
    }

    /// That are remembered for three seconds, and asked about again thirty milliseconds before.
    fn denials() -> Denials {
        Denials::new(Duration::from_secs(3), Duration::from_millis(30))
    }

    fn is_known(denials: &Denials, charge: Charge, now: Micros) -> bool {
        denials.decide(&[charge], now).is_some()
    }

    #[test]
    fn a_denial_is_known_until_it_is_forgotten_and_no_longer_than_the_setting() {
        let denials = denials();
        assert!(!is_known(&denials, take(1, 1), NOW));
        let decision = learn(&denials, &[take(1, 1)], &[10]);
        let known = denials.decide(&[take(1, 1)], NOW).unwrap();
        assert_eq!(known.verdicts[0].remaining, decision.verdicts[0].remaining);
        assert!(is_known(&denials, take(1, 1), NOW + 297 * SECOND / 100 - 1));
        assert!(!is_known(&denials, take(1, 1), NOW + 297 * SECOND / 100), "one asks in time");
        assert!(is_known(&denials, take(1, 1), NOW + 3 * SECOND - 1), "the others know meanwhile");
        assert!(
            !is_known(&denials, take(1, 1), NOW + 3 * SECOND),
            "ten seconds were promised, three are the most"
        );
        assert!(!is_known(&denials, take(2, 1), NOW), "another bucket");
    }

    #[test]
    fn a_denial_is_forgotten_at_the_promised_moment() {
        let denials = Denials::new(Duration::from_secs(60), Duration::ZERO);
        learn(&denials, &[take(1, 1)], &[10]);
        // To the microsecond, but for the one that the bound leaves to be on the safe side.
        assert!(is_known(&denials, take(1, 1), NOW + 10 * SECOND - 2));
        assert!(!is_known(&denials, take(1, 1), NOW + 10 * SECOND));
    }

    #[test]
    fn a_smaller_charge_is_judged_by_what_is_available_at_most() {
        let denials = denials();
        learn(&denials, &[take(1, 5)], &[8]);
        assert!(is_known(&denials, take(1, 3), NOW), "two are left");
        assert!(is_known(&denials, take(1, 100), NOW));
        assert!(!is_known(&denials, take(1, 2), NOW), "which may be taken");
        assert!(!is_known(&denials, charge(1, Hits::Peek), NOW));
    }

    #[test]
    fn what_lands_whatever_the_answer_is_always_asked() {
        let denials = denials();
        learn(&denials, &[take(1, 1)], &[10]);
        for hits in
            [Hits::Overdraft(1), Hits::Add { tokens: 1.0, at: NOW }, Hits::Raise { tokens: 1.0, at: NOW }]
        {
            assert!(!is_known(&denials, charge(1, hits), NOW), "{hits:?}");
            assert!(denials.decide(&[take(1, 1), charge(1, hits)], NOW).is_none(), "{hits:?}");
        }
        assert!(is_known(&denials, take(1, 1), NOW), "and ends nothing");
    }

    #[test]
    fn what_is_given_back_is_always_asked_and_begins_a_new_generation() {
        let denials = denials();
        learn(&denials, &[take(1, 1)], &[10]);
        assert!(!is_known(&denials, charge(1, Hits::GiveBack(1)), NOW));
        let before = denials.generations(&[take(1, 1)]);
        let giving = denials.giving_back(&[charge(1, Hits::GiveBack(1))]);
        assert!(!is_known(&denials, take(1, 1), NOW), "it may have room by now");
        let during = denials.generations(&[take(1, 1)]);
        drop(giving);

        let denied = learn(&Denials::new(Duration::ZERO, Duration::ZERO), &[take(1, 1)], &[10]);
        for older in [before, during] {
            denials.remember(&[take(1, 1)], &denied, &[], NOW, &older, Micros::MAX);
            assert!(!is_known(&denials, take(1, 1), NOW), "asked before the tokens were back");
        }
        let now = denials.generations(&[take(1, 1)]);
        denials.remember(&[take(1, 1)], &denied, &[], NOW, &now, Micros::MAX);
        assert!(is_known(&denials, take(1, 1), NOW));
    }

    #[test]
    fn what_is_given_back_to_one_bucket_leaves_what_is_known_of_others() {
        let denials = denials();
        learn(&denials, &[take(1, 1)], &[10]);
        learn(&denials, &[take(2, 1)], &[10]);
        // A request that gives back may take elsewhere.
        drop(denials.giving_back(&[charge(1, Hits::GiveBack(1)), take(2, 1)]));
        assert!(!is_known(&denials, take(1, 1), NOW));
        assert!(is_known(&denials, take(2, 1), NOW));
    }

    #[test]
    fn what_may_soon_change_is_remembered_for_a_shorter_time() {
        let denials = denials();
        let decision = learn(&Denials::new(Duration::ZERO, Duration::ZERO), &[take(1, 1)], &[10]);
        let now = denials.generations(&[take(1, 1)]);
        denials.remember(&[take(1, 1)], &decision, &[], NOW, &now, SECOND / 10);
        // The answer may take longer than a tenth of that.
        assert!(is_known(&denials, take(1, 1), NOW + SECOND * 9 / 100 - 1));
        assert!(!is_known(&denials, take(1, 1), NOW + SECOND * 9 / 100), "one asks");
        assert!(is_known(&denials, take(1, 1), NOW + SECOND / 10 - 1));
        assert!(!is_known(&denials, take(1, 1), NOW + SECOND / 10));
    }

    #[test]
    fn another_limit_is_asked() {
        let denials = denials();
        learn(&denials, &[take(1, 1)], &[10]);
        let raised =
            Charge { limit: take(1, 1).limit.with_burst(NonZeroU32::new(20).unwrap()), ..take(1, 1) };
        assert!(!is_known(&denials, raised, NOW));
    }

    #[test]
    fn a_request_ends_only_when_that_settles_its_answer_and_shows_what_was_last_known() {
        let denials = denials();
        let decision = learn(&denials, &[take(1, 1), take(2, 1)], &[10, 4]);
        assert_eq!(decision.verdicts[1].remaining, 6);
        let known = denials.decide(&[take(1, 1), take(2, 1)], NOW).unwrap();
        assert_eq!((known.verdicts[0].remaining, known.verdicts[1].remaining), (0, 6));
        assert!(denials.decide(&[take(1, 1), take(3, 1)], NOW).is_none(), "nothing is known of the third");
        let shadowed = Charge { mode: Mode::Shadow, ..take(1, 1) };
        assert!(!is_known(&denials, shadowed, NOW), "which denies nothing");
        assert!(!is_known(&denials, take(2, 1), NOW), "which has room");
        assert!(is_known(&denials, take(2, 8), NOW), "but not for so many");
    }

    #[test]
    fn a_bucket_that_is_named_twice_is_not_remembered() {
        let denials = denials();
        let twice = [take(1, 6), take(1, 6)];
        let decision = decide(&twice, &[0, 0], &mut [Bucket::FULL], NOW);
        denials.remember(&twice, &decision, &[], NOW, &denials.generations(&twice), Micros::MAX);
        assert!(denials.known.is_empty());
    }

    #[test]
    fn windows_are_remembered_by_what_they_hold_and_by_the_clock_of_the_store() {
        let (requests, window) = (NonZeroU32::new(10).unwrap(), NonZeroU64::new(80 * SECOND).unwrap());
        let start = NOW - NOW % (80 * SECOND);
        for limit in
            [Limit::fixed_window(requests, window, Calendar::Epoch), Limit::sliding_window(requests, window)]
        {
            // The store's clock is an hour ahead, or behind.
            for (here, there) in [(start, start + 3_600 * SECOND), (start + 3_600 * SECOND, start)] {
                let there = there - there % (80 * SECOND);
                let denials = Denials::new(Duration::from_secs(600), Duration::ZERO);
                let charges = [Charge { limit, ..take(1, 3) }];
                let mut bucket = Bucket::FULL;
                assert_eq!(bucket.take(&limit, Hits::Take(9), there), Outcome::Fits);
                let decision = decide(&charges, &[0], std::slice::from_mut(&mut bucket), there);
                assert!(decision.denied && decision.at == there);
                let generations = denials.generations(&charges);
                denials.remember(&charges, &decision, &[], here, &generations, Micros::MAX);
                assert!(denials.known.is_empty(), "a verdict alone does not say when they have room");
                denials.remember(&charges, &decision, &[bucket], here, &generations, Micros::MAX);

                assert!(is_known(&denials, charges[0], here));
                let one = Charge { limit, ..take(1, 1) };
                assert!(!is_known(&denials, one, here), "one is left");
                let Outcome::Over(Retry::In(wait)) = decision.verdicts[0].outcome else { panic!() };
                assert!(is_known(&denials, charges[0], here + wait - 1));
                assert!(!is_known(&denials, charges[0], here + wait));
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let denials = denials();
        let denied = learn(&Denials::new(Duration::ZERO, Duration::ZERO), &[take(1, 1)], &[10]);
        for bucket in 0..CAPACITY as u128 + 10_000 {
            denials.remember(&[take(bucket, 1)], &denied, &[], NOW, &smallvec::smallvec![0], Micros::MAX);
        }
        assert!(denials.known.len() <= CAPACITY);
        denials.remember(
            &[take(u128::MAX, 1)],
            &denied,
            &[],
            NOW + 60 * SECOND,
            &smallvec::smallvec![0],
            Micros::MAX,
        );
        assert_eq!(denials.known.len(), 1, "what has run out makes room");
    }
}
