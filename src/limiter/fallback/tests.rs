use std::collections::HashMap;
use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;
use crate::bucket::Outcome;
use crate::decision::{Mode, RuleId, decide_one};

const SECOND: Micros = 1_000_000;
const NOW: Micros = 1_790_000_000_000_000;

/// Processes that share a store, and the store: all on one clock.
struct Fleet {
    clock: Clock,
    store: HashMap<BucketKey, Bucket>,
    epoch: u64,
    replicas: Vec<Fallback>,
}

impl Fleet {
    fn new(replicas: usize) -> Self {
        let clock = Clock::manual(NOW);
        let fallback = || Fallback::new(NonZeroUsize::new(10_000).unwrap(), clock.clone());
        Self { replicas: (0..replicas).map(|_| fallback()).collect(), store: HashMap::new(), epoch: 1, clock }
    }

    fn count(&self) -> NonZeroU32 {
        NonZeroU32::new(u32::try_from(self.replicas.len()).unwrap()).unwrap()
    }

    /// Asks the store through a replica; whether it admits.
    fn ask(&mut self, replica: usize, charge: Charge) -> bool {
        self.tell_of(replica, &[charge]);
        let now = self.clock.now();
        let bucket = self.store.entry(charge.bucket).or_insert(Bucket::FULL);
        let decision = decide_one(&charge, bucket, now);
        self.replicas[replica].learn(&charge, &name(&charge), bucket.clone(), now, self.epoch);
        !decision.denied
    }

    /// Hands over what a replica owes of these.
    fn tell_of(&mut self, replica: usize, charges: &[Charge]) {
        let handed = self.replicas[replica].hand_over(charges, self.epoch).expect("nothing is on its way");
        self.apply(handed);
    }

    fn apply(&mut self, handed: impl IntoIterator<Item = Handover>) {
        for handover in handed {
            let bucket = self.store.entry(handover.bucket).or_insert(Bucket::FULL);
            for correction in handover.corrections {
                assert_eq!(bucket.take(&handover.limit, correction, self.clock.now()), Outcome::Fits);
            }
        }
    }

    fn sweep(&mut self, replica: usize) {
        for shard in 0..self.replicas[replica].shards() {
            let swept = self.replicas[replica].sweep(shard, usize::MAX, true, |_| Some(self.epoch));
            assert!(swept.is_whole);
            self.apply(swept.handed);
        }
        assert_eq!(self.replicas[replica].owing(), 0);
    }

    /// Asks a replica that has lost the store; whether it admits.
    fn alone(&self, replica: usize, charge: Charge) -> bool {
        let decision = self.replicas[replica].decide(&[charge], &[name(&charge)], self.count(), self.epoch);
        !decision.denied
    }

    /// How many of `calls` a replica admits alone.
    fn admitted_alone(&self, replica: usize, charge: Charge, calls: u32) -> u32 {
        (0..calls).map(|_| u32::from(self.alone(replica, charge))).sum()
    }

    fn left(&self, charge: Charge) -> u32 {
        let full = Bucket::FULL;
        self.store.get(&charge.bucket).unwrap_or(&full).remaining(&charge.limit, self.clock.now())
    }
}

fn name(charge: &Charge) -> Bytes {
    format!("{:x}", charge.bucket.0).into()
}

/// The n-th bucket, spread as a hash would.
fn key(n: u128) -> BucketKey {
    BucketKey(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

/// One of sixty a minute, as many of which may come at once.
fn charge(bucket: u128) -> Charge {
    let limit = Limit::new(NonZeroU32::new(60).unwrap(), NonZeroU64::new(60 * SECOND).unwrap());
    Charge {
        bucket: key(bucket),
        rule: RuleId(0),
        limit,
        hits: Hits::Take(1),
        mode: Mode::Enforced,
        on_redis_failure: None,
    }
}

fn hits(hits: Hits) -> Charge {
    Charge { hits, ..charge(1) }
}

#[test]
fn a_bucket_that_nobody_knows_starts_full() {
    let fleet = Fleet::new(1);
    assert_eq!(fleet.admitted_alone(0, charge(1), 100), 60);
}

#[test]
fn a_known_bucket_goes_on_from_where_it_stood() {
    let mut fleet = Fleet::new(1);
    assert!(fleet.ask(0, hits(Hits::Take(50))));
    fleet.clock.advance(5 * SECOND);
    assert_eq!(fleet.admitted_alone(0, charge(1), 100), 15);
}

#[test]
fn each_replica_has_its_share_and_together_they_have_one_limit() {
    let mut fleet = Fleet::new(3);
    for replica in 0..3 {
        assert!(fleet.ask(replica, hits(Hits::Take(10))));
    }
    // What each saw last: 10, 20 and 30 of 60 used.
    let admitted: Vec<u32> = (0..3).map(|replica| fleet.admitted_alone(replica, charge(1), 100)).collect();
    assert_eq!(admitted, [16, 13, 10]);
    fleet.clock.advance(30 * SECOND);
    let admitted: Vec<u32> = (0..3).map(|replica| fleet.admitted_alone(replica, charge(1), 100)).collect();
    assert_eq!(admitted, [10, 10, 10], "and together its rate");
}

#[test]
fn a_share_is_at_least_one_whole_token() {
    let fleet = Fleet::new(200);
    for replica in 0..200 {
        assert_eq!(fleet.admitted_alone(replica, charge(1), 5), 1);
    }
}

#[test]
fn a_charge_that_fits_the_limit_and_not_the_share_passes_on_a_full_bucket_as_debt() {
    let fleet = Fleet::new(4);
    let large = hits(Hits::Take(40));
    assert!(fleet.alone(0, large));
    assert!(!fleet.alone(0, charge(1)), "in debt");
    // 40 are used of a share of 15, which refills 15 a minute: 14 are in 104 seconds.
    fleet.clock.advance(103 * SECOND);
    assert!(!fleet.alone(0, charge(1)));
    fleet.clock.advance(SECOND);
    assert!(fleet.alone(0, charge(1)));
    assert!(!fleet.alone(0, large), "it is not full");
    assert!(!fleet.alone(1, hits(Hits::Take(61))), "more than the limit");
}

#[test]
fn after_an_outage_the_store_holds_what_was_used() {
    let mut fleet = Fleet::new(1);
    assert!(fleet.ask(0, hits(Hits::Take(20))));
    assert_eq!(fleet.admitted_alone(0, charge(1), 30), 30);
    assert_eq!(fleet.replicas[0].owing(), 1);
    assert!(fleet.ask(0, charge(1)), "the next request hands the bucket over");
    assert_eq!((fleet.left(charge(1)), fleet.replicas[0].owing()), (9, 0));
    fleet.sweep(0);
    assert_eq!(fleet.left(charge(1)), 9, "and it is not told twice");
}

#[test]
fn of_an_outage_that_is_over_nothing_is_kept() {
    let mut fleet = Fleet::new(1);
    let has_outage = |fleet: &Fleet| {
        let known = |_: &mut Bucket, known: &mut Beside, _| known.as_ref().unwrap().outage.is_some();
        fleet.replicas[0].buckets.with(key(1), known).unwrap()
    };
    fleet.ask(0, charge(1));
    assert!(!has_outage(&fleet));
    fleet.alone(0, charge(1));
    assert!(has_outage(&fleet));
    fleet.ask(0, charge(1));
    assert!(!has_outage(&fleet), "it has been told, and has answered");
}

#[test]
fn what_the_store_is_being_told_stays_so_when_there_is_nothing_more_to_tell() {
    let mut fleet = Fleet::new(1);
    fleet.ask(0, charge(1));
    fleet.alone(0, charge(1));
    let on_its_way = fleet.replicas[0].hand_over(&[charge(1)], fleet.epoch).unwrap();
    fleet.alone(0, hits(Hits::Peek));
    let fallback = &fleet.replicas[0];
    // As for a request's second charge to the bucket.
    let more = |bucket: &mut Bucket, known: &mut Beside, now| {
        fallback.take_over(key(1), bucket, known.as_mut().unwrap(), fleet.epoch, now).is_some()
    };
    assert_eq!(fallback.buckets.with(key(1), more), Some(false));
    assert!(fallback.hand_over(&[charge(1)], fleet.epoch).is_err(), "others wait until it has arrived");
    drop(on_its_way);
    assert!(fallback.hand_over(&[charge(1)], fleet.epoch).is_ok());
}

#[test]
fn buckets_of_equal_limits_know_one() {
    let mut fleet = Fleet::new(1);
    let limit = |fleet: &Fleet, bucket: u128| {
        let limit = |_: &mut Bucket, known: &mut Beside, _| Arc::clone(&known.as_ref().unwrap().limit);
        fleet.replicas[0].buckets.with(key(bucket), limit).unwrap()
    };
    fleet.ask(0, charge(1));
    fleet.alone(0, charge(2));
    assert!(Arc::ptr_eq(&limit(&fleet, 1), &limit(&fleet, 2)));
    let burst = NonZeroU32::new(7).unwrap();
    let other = |bucket| Charge { limit: charge(1).limit.with_burst(burst), ..charge(bucket) };
    fleet.ask(0, other(1));
    fleet.alone(0, other(2));
    assert_eq!([1, 2].map(|bucket| *limit(&fleet, bucket)), [other(1).limit; 2], "the one that it had last");
}

#[test]
fn what_has_flowed_back_meanwhile_is_not_owed() {
    let mut fleet = Fleet::new(1);
    for _ in 0..3_600 {
        // A call a second for an hour: as many as flow back.
        assert!(fleet.alone(0, charge(1)));
        fleet.clock.advance(SECOND);
    }
    fleet.sweep(0);
    assert_eq!(fleet.left(charge(1)), 60, "nobody is locked out");
}

#[test]
fn what_nobody_asks_for_is_swept_up() {
    let mut fleet = Fleet::new(2);
    for bucket in 0..500 {
        assert_eq!(fleet.admitted_alone(0, charge(bucket), 20), 20);
        assert_eq!(fleet.admitted_alone(1, charge(bucket), 5), 5);
    }
    fleet.sweep(0);
    fleet.sweep(1);
    for bucket in 0..500 {
        assert_eq!(fleet.left(charge(bucket)), 35);
    }
}

#[test]
fn those_who_were_exhausted_stay_so_when_the_store_comes_back_empty() {
    let mut fleet = Fleet::new(2);
    assert!(fleet.ask(0, hits(Hits::Take(30))));
    assert!(fleet.ask(1, hits(Hits::Take(30))));
    fleet.store.clear();
    fleet.epoch += 1;
    assert!(!fleet.ask(1, charge(1)), "who knows of it raises it first");
    assert_eq!(fleet.left(charge(1)), 0);
    fleet.sweep(0);
    assert_eq!(fleet.left(charge(1)), 0, "the other knew less, and adds nothing to it");

    // The same in an outage: each uses what it has left of its share, and the store begins empty again.
    fleet.clock.advance(20 * SECOND);
    assert_eq!(fleet.admitted_alone(1, charge(1), 100), 10);
    fleet.store.clear();
    fleet.epoch += 1;
    fleet.sweep(0);
    fleet.sweep(1);
    assert_eq!(fleet.left(charge(1)), 10, "the first knew it with 40 used; the second used 10 of its share");
}

#[test]
fn both_admitted_a_late_charge_counts_once() {
    let mut fleet = Fleet::new(1);
    assert!(fleet.ask(0, charge(1)));
    // The store has taken it, and its answer is late.
    let bucket = fleet.store.get_mut(&key(1)).unwrap();
    assert_eq!(bucket.take(&charge(1).limit, Hits::Take(5), NOW), Outcome::Fits);
    assert!(fleet.alone(0, hits(Hits::Take(5))));
    fleet.replicas[0].landed(&[hits(Hits::Take(5))], fleet.count(), NOW);
    fleet.sweep(0);
    assert_eq!(fleet.left(charge(1)), 54);
}

#[test]
fn a_late_charge_counts_once_however_much_has_flowed_back_before_that_is_known() {
    let mut fleet = Fleet::new(1);
    let five = hits(Hits::Take(5));
    fleet.store.insert(key(1), Bucket::with_used(&five.limit, 5.0, NOW));
    assert!(fleet.alone(0, five));
    fleet.clock.advance(3 * SECOND);
    fleet.replicas[0].landed(&[five], fleet.count(), NOW);
    fleet.sweep(0);
    assert_eq!(fleet.left(five), 58, "what the store charged is not given back");
}

#[test]
fn a_late_charge_counts_in_the_window_that_it_came_in() {
    let mut fleet = Fleet::new(1);
    let minute = NonZeroU64::new(60 * SECOND).unwrap();
    let limit = Limit::fixed_window(NonZeroU32::new(60).unwrap(), minute, crate::bucket::Calendar::Epoch);
    let five = Charge { limit, ..hits(Hits::Take(5)) };
    let came = fleet.clock.now();
    assert!(fleet.ask(0, five) && fleet.alone(0, five), "what is late is charged here beside");
    // The window turns, and another has used the new one.
    fleet.clock.advance(60 * SECOND);
    let bucket = fleet.store.get_mut(&key(1)).unwrap();
    assert_eq!(bucket.take(&limit, Hits::Take(20), fleet.clock.now()), Outcome::Fits);
    fleet.replicas[0].landed(&[five], fleet.count(), came);
    fleet.sweep(0);
    assert_eq!(fleet.left(five), 40, "what others have used is not given back");
}

#[test]
fn of_answers_that_overtake_each_other_the_latest_is_believed() {
    let fleet = Fleet::new(1);
    let learn = |used, at| {
        let left = Bucket::with_used(&charge(1).limit, used, at);
        fleet.replicas[0].learn(&charge(1), &name(&charge(1)), left, at, 1);
    };
    learn(20.0, NOW + 2);
    learn(10.0, NOW + 1);
    assert_eq!(fleet.admitted_alone(0, charge(1), 100), 40);
}

#[test]
fn what_was_used_before_there_were_more_processes_is_used() {
    for (used, more, left) in [(60, 0, 0), (10, 25, 25)] {
        let mut fleet = Fleet::new(1);
        assert_eq!(fleet.admitted_alone(0, charge(1), used), used);
        // Another one comes, and is seen.
        fleet.replicas.push(Fallback::new(NonZeroUsize::new(10).unwrap(), fleet.clock.clone()));
        assert_eq!(fleet.admitted_alone(0, charge(1), 100), more, "of {used}");
        fleet.sweep(0);
        assert_eq!(fleet.left(charge(1)), left);
    }
}

#[test]
fn what_was_used_before_a_share_shrank_is_owed_less_what_has_flowed_back() {
    let mut fleet = Fleet::new(1);
    assert_eq!(fleet.admitted_alone(0, charge(1), 60), 60);
    fleet.replicas.push(Fallback::new(NonZeroUsize::new(10).unwrap(), fleet.clock.clone()));
    assert!(!fleet.alone(0, charge(1)));
    fleet.clock.advance(20 * SECOND);
    assert_eq!(fleet.admitted_alone(0, charge(1), 100), 10, "half of the rate");
    // What is handed over and does not arrive is owed still.
    let handed = fleet.replicas[0].hand_over(&[charge(1)], fleet.epoch).unwrap();
    fleet.replicas[0].put_back(handed);
    fleet.sweep(0);
    assert_eq!(fleet.left(charge(1)), 10, "60 used, 20 have flowed back, 10 used again");
}

#[test]
fn a_share_does_not_grow_when_there_are_fewer_processes() {
    let mut fleet = Fleet::new(4);
    assert_eq!(fleet.admitted_alone(0, charge(1), 100), 15);
    fleet.replicas.truncate(2);
    assert_eq!(fleet.admitted_alone(0, charge(1), 100), 0, "the others have had their shares");
    fleet.clock.advance(4 * SECOND);
    assert_eq!(fleet.admitted_alone(0, charge(1), 100), 1);
}

#[test]
fn no_more_is_taken_from_a_shard_at_a_time_than_can_be_told() {
    let fleet = Fleet::new(1);
    for bucket in 0..500 {
        assert!(fleet.alone(0, charge(bucket)));
    }
    let mut told = 0;
    for shard in 0..fleet.replicas[0].shards() {
        loop {
            let swept = fleet.replicas[0].sweep(shard, 3, false, |_| Some(fleet.epoch));
            assert!(swept.handed.len() <= 3);
            told += swept.handed.len();
            if swept.is_whole {
                break;
            }
        }
    }
    assert_eq!((told, fleet.replicas[0].owing()), (500, 0));
}

#[test]
fn what_the_store_admitted_late_and_was_denied_here_is_given_back() {
    let mut fleet = Fleet::new(2);
    assert_eq!(fleet.admitted_alone(0, charge(1), 100), 30);
    let late = hits(Hits::Take(5));
    fleet.store.insert(key(1), Bucket::with_used(&late.limit, 5.0, NOW));
    assert!(!fleet.alone(0, late));
    fleet.replicas[0].landed(&[late], fleet.count(), NOW);
    fleet.sweep(0);
    assert_eq!(fleet.left(charge(1)), 30);
}

#[test]
fn what_the_store_denied_late_and_was_admitted_here_is_charged_as_debt() {
    let mut fleet = Fleet::new(1);
    assert!(fleet.ask(0, hits(Hits::Take(30))));
    // Another process has taken the rest; this one does not know.
    fleet.store.insert(key(1), Bucket::with_used(&charge(1).limit, 60.0, NOW));
    assert_eq!(fleet.admitted_alone(0, charge(1), 10), 10);
    fleet.sweep(0);
    fleet.clock.advance(10 * SECOND);
    assert_eq!(fleet.left(charge(1)), 0, "70 used of 60");
    fleet.clock.advance(SECOND);
    assert_eq!(fleet.left(charge(1)), 1);
}

#[test]
fn a_late_charge_that_has_been_handed_over_already_is_given_back() {
    let mut fleet = Fleet::new(1);
    assert!(fleet.alone(0, hits(Hits::Take(5))));
    assert!(fleet.ask(0, charge(1)));
    // Only now it turns out that the store had taken it before.
    let bucket = fleet.store.get_mut(&key(1)).unwrap();
    assert_eq!(bucket.take(&charge(1).limit, Hits::Take(5), NOW), Outcome::Fits);
    assert_eq!(fleet.left(charge(1)), 49);
    fleet.replicas[0].landed(&[hits(Hits::Take(5))], fleet.count(), NOW);
    fleet.sweep(0);
    assert_eq!(fleet.left(charge(1)), 54);
}

#[test]
fn what_could_not_be_handed_over_is_still_owed() {
    let mut fleet = Fleet::new(1);
    assert!(fleet.ask(0, hits(Hits::Take(20))));
    assert_eq!(fleet.admitted_alone(0, charge(1), 10), 10);
    let handed = fleet.replicas[0].hand_over(&[charge(1)], fleet.epoch).unwrap();
    assert_eq!(fleet.replicas[0].owing(), 1, "as long as it is on its way");
    let now = fleet.clock.now();
    fleet.replicas[0].learn(&charge(1), &name(&charge(1)), Bucket::FULL, now, fleet.epoch);
    assert!(fleet.replicas[0].hand_over(&[charge(1)], fleet.epoch).is_err(), "not twice at a time");
    fleet.replicas[0].put_back(handed);
    // Nor does an answer that comes now tell of what was used here.
    fleet.replicas[0].learn(&charge(1), &name(&charge(1)), Bucket::FULL, now, fleet.epoch);
    assert_eq!(fleet.replicas[0].owing(), 1);

    // In between there may have been more.
    let handed = fleet.replicas[0].hand_over(&[charge(1)], fleet.epoch).unwrap();
    assert_eq!(fleet.admitted_alone(0, charge(1), 3), 3);
    fleet.replicas[0].put_back(handed);
    assert_eq!(fleet.admitted_alone(0, hits(Hits::Take(27)), 1), 1, "nothing is counted twice here either");
    assert_eq!(fleet.admitted_alone(0, hits(Hits::GiveBack(27)), 1), 1);
    fleet.sweep(0);
    assert_eq!(fleet.left(charge(1)), 27);

    // Also when it was to raise what the store had forgotten.
    fleet.store.clear();
    fleet.epoch += 1;
    let handed = fleet.replicas[0].hand_over(&[charge(1)], fleet.epoch).unwrap();
    fleet.replicas[0].put_back(handed);
    // And when somebody is answered who asked before that.
    let now = fleet.clock.now();
    fleet.replicas[0].learn(&charge(1), &name(&charge(1)), Bucket::FULL, now, fleet.epoch);
    assert_eq!(fleet.replicas[0].owing(), 1);
    fleet.sweep(0);
    assert_eq!(fleet.left(charge(1)), 27);
}

#[tokio::test]
async fn nobody_asks_the_store_about_a_bucket_while_it_is_being_told_of_it() {
    let mut fleet = Fleet::new(1);
    assert!(fleet.ask(0, charge(1)));
    assert_eq!(fleet.admitted_alone(0, charge(1), 100), 59);
    let handed = fleet.replicas[0].hand_over(&[charge(1)], fleet.epoch).unwrap();
    // Asked now, the store would still admit what has been used.
    let mut waiting = fleet.replicas[0].hand_over(&[charge(2), charge(1)], fleet.epoch).unwrap_err();
    let (mut swept, mut is_whole) = (0, true);
    for shard in 0..fleet.replicas[0].shards() {
        let found = fleet.replicas[0].sweep(shard, usize::MAX, true, |_| Some(fleet.epoch));
        is_whole &= found.is_whole;
        swept += found.handed.len();
    }
    assert_eq!((swept, is_whole), (0, false), "nor is it told of it twice");
    assert!(fleet.replicas[0].hand_over(&[charge(2)], fleet.epoch).unwrap().is_empty(), "others are free");
    assert!(waiting.has_changed().is_ok(), "it is on its way");
    fleet.apply(handed);
    assert!(waiting.changed().await.is_err(), "it has arrived");
    assert!(!fleet.ask(0, charge(1)));

    // And so it is with what the store has forgotten.
    fleet.store.clear();
    fleet.epoch += 1;
    let handed = fleet.replicas[0].hand_over(&[charge(1)], fleet.epoch).unwrap();
    assert_eq!((handed.len(), fleet.replicas[0].owing()), (1, 1));
    assert!(fleet.replicas[0].hand_over(&[charge(1)], fleet.epoch).is_err());
    fleet.replicas[0].put_back(handed);
    assert_eq!(fleet.replicas[0].owing(), 1, "it has not arrived");
    assert!(!fleet.ask(0, charge(1)), "it is raised first");
    assert_eq!(fleet.replicas[0].owing(), 0);
}

#[test]
fn what_a_store_that_cannot_be_told_owes_waits() {
    let fleet = Fleet::new(1);
    assert!(fleet.alone(0, charge(1)));
    for shard in 0..fleet.replicas[0].shards() {
        assert!(fleet.replicas[0].sweep(shard, usize::MAX, true, |_| None).handed.is_empty());
    }
    assert_eq!(fleet.replicas[0].owing(), 1);
}

#[test]
fn what_is_evicted_is_not_owed_and_a_flood_frees_nobody_who_is_limited() {
    let fallback = Fallback::new(NonZeroUsize::new(2_000).unwrap(), Clock::manual(NOW));
    let decide = |charge: Charge| !fallback.decide(&[charge], &[name(&charge)], NonZeroU32::MIN, 1).denied;
    let limited = charge(u128::MAX / 3);
    (0..60).for_each(|_| assert!(decide(limited)));
    for flood in 0..200_000u64 {
        // Spread over the shards, as hashes are.
        assert!(decide(charge(u128::from(flood).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_0cd1_b54a_32d9))));
        if flood % 1_000 == 0 {
            assert!(!decide(limited), "still limited");
        }
    }
    let usage = fallback.usage();
    assert!(usage.buckets <= usage.capacity && fallback.owing() <= usage.capacity, "{usage:?}");
    assert!(!fallback.hand_over(&[limited], 1).unwrap().is_empty());
}

/// What happens to one bucket.
#[derive(Clone, Debug)]
enum Step {
    /// So many calls at a replica, which has lost the store.
    Alone(usize, u32),
    /// So many calls at a replica that can ask.
    Ask(usize, u32),
    /// So many milliseconds pass.
    Pass(u64),
    Sweep,
    /// The store loses its memory.
    Lose,
}

fn steps(replicas: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..replicas, 1..40u32).prop_map(|(replica, calls)| Step::Alone(replica, calls)),
        4 => (0..replicas, 1..40u32).prop_map(|(replica, calls)| Step::Ask(replica, calls)),
        3 => (0..40_000u64).prop_map(Step::Pass),
        1 => Just(Step::Sweep),
        1 => Just(Step::Lose),
    ];
    prop::collection::vec(step, 1..40)
}

proptest! {
    /// However the store comes and goes, one process admits what the limit says: as if it had never gone.
    #[test]
    fn one_process_admits_no_more_and_no_less_than_the_limit_whatever_the_store_does(steps in steps(1)) {
        let mut fleet = Fleet::new(1);
        let mut oracle = Bucket::FULL;
        for step in steps {
            match step {
                Step::Alone(_, calls) | Step::Ask(_, calls) => {
                    for _ in 0..calls {
                        let expected = oracle.take(&charge(1).limit, Hits::Take(1), fleet.clock.now());
                        let admitted = match step {
                            Step::Ask(..) => fleet.ask(0, charge(1)),
                            _ => fleet.alone(0, charge(1)),
                        };
                        prop_assert_eq!(admitted, expected == Outcome::Fits);
                    }
                }
                // Whole seconds, so that no rounding decides between a token and none.
                Step::Pass(millis) => fleet.clock.advance(millis / 1_000 * SECOND + SECOND / 2),
                Step::Sweep => fleet.sweep(0),
                Step::Lose => {
                    fleet.store.clear();
                    fleet.epoch += 1;
                }
            }
        }
    }

    /// When all have lost the store, together they admit one limit, and a token for each at the most on top.
    #[test]
    fn processes_that_have_all_lost_the_store_admit_one_limit_together(
        replicas in 1usize..5,
        known in 0u32..60,
        steps in steps(4),
    ) {
        let mut fleet = Fleet::new(replicas);
        for replica in 0..replicas {
            if known > 0 {
                let _ = fleet.ask(replica, Charge { hits: Hits::Take(1), ..charge(1) });
            }
        }
        // All have seen the same last.
        for replica in 0..replicas {
            let _ = fleet.ask(replica, hits(Hits::Peek));
        }
        let before = f64::from(fleet.left(charge(1)));
        let (start, mut admitted) = (fleet.clock.now(), 0.0);
        // What one bucket would hold that refills at the whole rate, or at that of one share.
        let slow = Limit::new(
            NonZeroU32::new(60).unwrap(),
            NonZeroU64::new(60 * SECOND * replicas as u64).unwrap(),
        );
        let mut oracles =
            [charge(1).limit, slow].map(|limit| (limit, Bucket::with_used(&limit, 60.0 - before, start)));
        for step in steps {
            match step {
                Step::Alone(replica, calls) | Step::Ask(replica, calls) if replica < replicas => {
                    let more = fleet.admitted_alone(replica, charge(1), calls);
                    admitted += f64::from(more);
                    for (limit, bucket) in &mut oracles {
                        let now = fleet.clock.now();
                        let _ = bucket.take(limit, Hits::Add { tokens: f64::from(more), at: now }, now);
                    }
                }
                Step::Pass(millis) => fleet.clock.advance(millis * 1_000),
                _ => {}
            }
            let seconds = (fleet.clock.now() - start) as f64 / SECOND as f64;
            prop_assert!(admitted <= before + seconds + 1e-6, "{admitted} of {before} in {seconds} s");
        }
        // What they used is what the store is told: nobody has more left, and nobody is locked out for what has flowed
        // back, though what one of them used flows back by its own share only.
        (0..replicas).for_each(|replica| fleet.sweep(replica));
        let left = fleet.left(charge(1));
        let [most, least] = oracles.map(|(limit, bucket)| bucket.remaining(&limit, fleet.clock.now()));
        prop_assert!(left <= most + 1 && left + 1 >= least, "{left} left, not {least} to {most}");
        fleet.clock.advance(60 * SECOND * replicas as u64);
        prop_assert_eq!(fleet.left(charge(1)), 60);
    }

    /// While they disagree whether the store is there, together they admit two limits at the most.
    #[test]
    fn processes_that_disagree_admit_two_limits_at_the_most(cut_off in 1usize..3, steps in steps(4)) {
        let mut fleet = Fleet::new(4);
        let (start, mut admitted) = (fleet.clock.now(), 0.0);
        for step in steps {
            match step {
                Step::Alone(replica, calls) | Step::Ask(replica, calls) => {
                    for _ in 0..calls {
                        let fits = if replica < cut_off {
                            fleet.alone(replica, charge(1))
                        } else {
                            fleet.ask(replica, charge(1))
                        };
                        admitted += f64::from(u8::from(fits));
                    }
                }
                Step::Pass(millis) => fleet.clock.advance(millis * 1_000),
                Step::Sweep | Step::Lose => {}
            }
            let seconds = (fleet.clock.now() - start) as f64 / SECOND as f64;
            prop_assert!(admitted <= 2.0 * (60.0 + seconds) + 1e-6, "{admitted} in {seconds} s");
        }
    }
}

/// Ten million in `make soak`, otherwise as many as are soon told.
#[test]
fn a_flood_of_other_keys_frees_nobody_who_is_limited_and_is_bounded_with_all_that_is_owed() {
    const CAPACITY: usize = 10_000;
    let fallback = Fallback::new(NonZeroUsize::new(CAPACITY).unwrap(), Clock::manual(NOW));
    let alone = |key: u128| {
        // As keys are: hashes.
        let key = key.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
        let charge = charge(key);
        !fallback.decide(&[charge], &[name(&charge)], NonZeroU32::MIN, 1).denied
    };
    let admitted = (0..100).filter(|_| alone(0)).count();
    assert_eq!(admitted, 60);
    let flood = if std::env::var_os("WEIR_SOAK_SECONDS").is_some() { 10_000_000 } else { 100_000 };
    for key in 1..=flood {
        assert!(alone(key), "newcomers are let in");
        if key % 1_000 == 0 {
            assert!(!alone(0), "after {key} of them");
            let held = fallback.usage();
            assert!(held.buckets <= held.capacity && fallback.owing() <= held.capacity, "{held:?}");
        }
    }
    assert_eq!(fallback.usage().overflowed, 0);
}
