use std::num::{NonZeroU32, NonZeroU64};
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::bucket::{Hits, Outcome};
use crate::decision::Mode;
use crate::store::{Identity as _, KeySeed};

const SECOND: Micros = 1_000_000;
const HOUR: Micros = 3_600 * SECOND;
const NOW: Micros = 1_790_000_000_000_000;

fn store(capacity: usize, clock: &Clock) -> LocalStore {
    LocalStore::new(NonZeroUsize::new(capacity).unwrap(), clock.clone())
}

fn key(name: impl std::fmt::Display) -> BucketKey {
    let mut key = KeySeed::fixed(1).key("api");
    key.entry(b"user", name.to_string().as_bytes());
    key.limit(b"")
}

/// `hits` of a bucket of `requests` an hour.
fn charge(name: impl std::fmt::Display, requests: u32, hits: u64) -> Charge {
    let limit = Limit::new(NonZeroU32::new(requests).unwrap(), NonZeroU64::new(HOUR).unwrap());
    Charge {
        bucket: key(name),
        rule: RuleId(1),
        limit,
        hits: Hits::Take(hits),
        mode: Mode::Enforced,
        on_redis_failure: None,
    }
}

fn peek(charge: Charge) -> Charge {
    Charge { hits: Hits::Peek, ..charge }
}

fn denied(store: &LocalStore, charge: Charge) -> bool {
    store.decide(&[charge]).denied
}

#[test]
fn sixty_four_threads_on_one_bucket_admit_exactly_its_burst() {
    let store = store(1_000, &Clock::manual(NOW));
    let admitted = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                for _ in 0..200 {
                    if !denied(&store, charge("hot", 5_000, 1)) {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), 5_000);
}

#[test]
fn on_a_running_clock_no_thread_gains_a_token() {
    let clock = Clock::system();
    let store = store(1_000, &clock);
    // A thousand tokens a second, ten at once: rounding and reordering would show.
    let limit = Limit::new(NonZeroU32::new(1_000).unwrap(), NonZeroU64::new(SECOND).unwrap())
        .with_burst(NonZeroU32::new(10).unwrap());
    let charge = Charge { limit, ..charge("hot", 1, 1) };
    let admitted = AtomicU64::new(0);
    let start = clock.now();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50_000 {
                    if !denied(&store, charge) {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let elapsed = clock.now() - start;
    assert!(admitted.into_inner() <= 10 + elapsed * 1_000 / SECOND);
}

#[test]
fn threads_that_charge_two_buckets_take_both_or_neither() {
    let store = store(1_000, &Clock::manual(NOW));
    let admitted = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..16 {
            let (store, admitted) = (&store, &admitted);
            scope.spawn(move || {
                // Both orders, so that a lock order that follows the request would deadlock.
                let mut pair = [charge("wide", 10_000, 1), charge("narrow", 1_000, 1)];
                if thread % 2 == 0 {
                    pair.reverse();
                }
                for _ in 0..500 {
                    admitted.fetch_add(u64::from(!store.decide(&pair).denied), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), 1_000, "as many as the narrow one holds");
    let left = store.decide(&[peek(charge("wide", 10_000, 1))]).verdicts[0].remaining;
    assert_eq!(left, 9_000, "what the narrow one refused cost the wide one nothing");
}

#[test]
fn a_request_may_name_one_bucket_twice_and_many_buckets_of_one_shard() {
    let store = store(1_000, &Clock::manual(NOW));
    let twice = [charge("a", 10, 6), charge("a", 10, 6)];
    assert!(store.decide(&twice).denied);
    assert!(!store.decide(&[charge("a", 10, 4), charge("a", 10, 6)]).denied);
    assert!(denied(&store, charge("a", 10, 1)));

    let many: Vec<Charge> = (0..64).map(|n| charge(n, 10, 10)).collect();
    assert!(!store.decide(&many).denied);
    assert!(many.iter().all(|charge| denied(&store, peek(*charge))));
}

#[test]
fn a_flood_of_new_keys_never_frees_a_limited_one() {
    let clock = Clock::manual(NOW);
    let store = store(10_000, &clock);
    assert!(!denied(&store, charge("victim", 3, 3)));
    for n in 0..1_000_000u32 {
        assert!(!denied(&store, charge(n, 1_000, 1)), "newcomer {n} is within its limit");
        if n % 10_000 == 0 {
            assert!(denied(&store, charge("victim", 3, 1)), "freed after {n} newcomers");
        }
    }
    let usage = store.usage();
    assert!(usage.buckets <= usage.capacity, "{usage:?}");
    assert!(usage.evicted > 900_000 && usage.overflowed == 0, "{usage:?}");
    assert!(denied(&store, charge("victim", 3, 1)));
    clock.advance(HOUR / 3);
    assert!(!denied(&store, charge("victim", 3, 1)), "freed by time alone");
}

#[test]
fn when_all_that_is_held_is_limited_newcomers_share_a_bucket_a_rule() {
    let clock = Clock::manual(NOW);
    let store = store(10_000, &clock);
    let capacity = store.usage().capacity;
    // Everyone takes all there is: more callers than there is room for, so that every shard is full.
    for n in 0..2 * capacity {
        let _ = store.decide(&[charge(n, 2, 2)]);
    }
    let usage = store.usage();
    assert!(usage.buckets <= capacity + 1, "the cap, and one overflow bucket: {usage:?}");
    assert!(usage.overflowed > 0 && usage.evicted == 0, "{usage:?}");
    assert!((0..capacity / 2).all(|n| denied(&store, charge(n, 2, 1))), "nobody who is limited was freed");

    assert!(denied(&store, charge("late", 2, 1)), "the shared bucket is empty as well");
    assert!(denied(&store, peek(charge("late", 2, 1))), "a peek sees the shared bucket too");
    let other_rule = Charge { rule: RuleId(2), ..charge("late", 2, 1) };
    assert!(!denied(&store, other_rule), "another rule has its own");
    assert!(!denied(&store, other_rule));
    assert!(denied(&store, Charge { bucket: key("later"), ..other_rule }), "which its own latecomers share");

    // As time passes there are tokens again: these buckets may go, and newcomers have their own.
    clock.advance(HOUR / 2);
    let overflowed = store.usage().overflowed;
    assert!(!denied(&store, charge("fresh", 2, 2)));
    assert!(denied(&store, charge("fresh", 2, 1)));
    assert_eq!(store.usage().overflowed, overflowed);
}

#[test]
fn overflow_buckets_take_nobodys_place_and_are_in_many_shards() {
    let store = store(10_000, &Clock::manual(NOW));
    let of_rule = |n: usize, rule: u64| Charge { rule: RuleId(rule), ..charge(n, 1, 1) };
    for n in 0..20_000 {
        let _ = store.decide(&[charge(n, 1, 1)]);
    }
    // Rules' ids are hashes.
    let rule = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let newcomer = |n: u64| of_rule(100_000 + usize::try_from(n).unwrap(), rule(n));
    (0..2_000).for_each(|n| assert!(!denied(&store, newcomer(n)), "the first of each rule"));
    let shards: std::collections::HashSet<usize> =
        (0..2_000).map(|n| store.shard_of(overflow_bucket(RuleId(rule(n))))).collect();
    assert_eq!(shards.len(), store.shards());
    let usage = store.usage();
    assert_eq!(usage.overflowed, 2_000 + 20_000 - usage.capacity as u64);
    assert_eq!(usage.buckets, usage.capacity + 2_000 + 1);

    // Whoever is full again makes room for somebody else, overflow buckets or not.
    for n in 0..20_000 {
        let _ = store.decide(&[Charge { hits: Hits::GiveBack(1), ..charge(n, 1, 1) }]);
    }
    for n in 0..1_000 {
        assert!(!denied(&store, of_rule(200_000 + n, rule(0))), "in a bucket of his own");
    }
    assert_eq!(store.usage().overflowed, usage.overflowed);
}

#[test]
fn a_request_of_several_newcomers_is_decided_as_one_also_without_room() {
    let clock = Clock::manual(NOW);
    let store = store(1_000, &clock);
    for n in 0..4_000 {
        let _ = store.decide(&[charge(n, 2, 2)]);
    }
    // The overflow bucket of rule 1 is empty; that of rule 2 has two tokens, and keeps them.
    let request = [charge("x", 2, 1), Charge { rule: RuleId(2), ..charge("y", 2, 1) }];
    assert!(store.decide(&request).denied);
    let untouched = store.decide(&[Charge { rule: RuleId(2), ..charge("z", 2, 2) }]);
    assert!(!untouched.denied);
}

#[test]
fn buckets_of_the_request_itself_are_not_evicted_for_it_and_nobody_waits_for_others() {
    // Two shards of two: a request whose own buckets are all that could go, in a shard of nothing but limited ones.
    let clock = Clock::manual(NOW);
    let store = store(4, &clock);
    for n in 0..200 {
        let _ = store.decide(&[charge(n, 1, 1)]);
        let _ = store.decide(&[peek(charge("good", 100, 1)), charge(format_args!("new {n}"), 1, 1)]);
        let _ = store.decide(&[charge("good", 100, 1), charge(format_args!("newer {n}"), 1, 1)]);
        let crowd: Vec<Charge> = (0..8).map(|m| charge(format_args!("{n} {m}"), 2, 1)).collect();
        let _ = store.decide(&crowd);
    }
    assert!(store.usage().buckets <= store.usage().capacity + 1);
}

#[test]
fn tokens_given_back_make_room_at_once() {
    let store = store(2_000, &Clock::manual(NOW));
    let capacity = store.usage().capacity;
    let callers: Vec<Charge> = (0..2 * capacity).map(|n| charge(n, 1, 1)).collect();
    for caller in &callers {
        let _ = store.decide(&[*caller]);
    }
    assert!(store.usage().overflowed > 0, "all that is held is limited");
    for caller in &callers {
        let _ = store.decide(&[Charge { hits: Hits::GiveBack(1), ..*caller }]);
    }
    let overflowed = store.usage().overflowed;
    assert!((0..capacity).all(|n| !denied(&store, charge(format_args!("new {n}"), 9, 1))));
    assert_eq!(store.usage().overflowed, overflowed);
}

/// Requests of several charges, over few keys and limits.
fn requests() -> impl Strategy<Value = (Vec<Charge>, Micros)> {
    let hits = prop_oneof![
        4 => (1..4u64).prop_map(Hits::Take),
        1 => Just(Hits::Peek),
        1 => (0..3u64).prop_map(Hits::GiveBack),
    ];
    let charge = (0..24u32, hits).prop_map(|(name, hits)| {
        let rule = name % 3;
        Charge { hits, rule: RuleId(rule.into()), ..charge(name, 1 + rule, 1) }
    });
    (prop::collection::vec(charge, 1..5), prop_oneof![3 => Just(0), 1 => 0..HOUR])
}

proptest! {
    #[test]
    fn whatever_comes_a_small_store_answers_keeps_its_cap_and_never_drops_a_limited_bucket(
        capacity in 1..17usize,
        requests in prop::collection::vec(requests(), 1..80),
    ) {
        let clock = Clock::manual(NOW);
        let store = store(capacity, &clock);
        for (request, pause) in requests {
            clock.advance(pause);
            let now = clock.now();
            let limited = held(&store, |slot| slot.bucket.token_at() > now);
            let before = held(&store, |_| true);
            let decision = store.decide(&request);
            prop_assert_eq!(decision.verdicts.len(), request.len());

            let after = held(&store, |_| true);
            for (key, slot) in limited {
                // What is given back lands, denied or not: then it is full, perhaps, and may go.
                let mut bucket = slot.bucket;
                for charge in request.iter().filter(|charge| matches!(charge.hits, Hits::GiveBack(_))) {
                    if [charge.bucket, overflow_bucket(charge.rule)].contains(&key) {
                        let _ = bucket.take(&charge.limit, charge.hits, now);
                    }
                }
                let may_go = bucket.full_at() <= now;
                prop_assert!(may_go || after.iter().any(|(other, _)| *other == key), "a limited bucket is gone");
            }
            prop_assert!(after.iter().filter(|(key, _)| !is_overflow(*key)).count() <= store.usage().capacity);
            let takes = request.iter().all(|charge| !matches!(charge.hits, Hits::GiveBack(_)));
            if decision.denied && takes {
                // What is still held has as much left as before.
                for (key, slot) in before {
                    let Some((_, kept)) = after.iter().find(|(other, _)| *other == key) else { continue };
                    prop_assert!(kept.bucket.full_at() <= slot.bucket.full_at(), "a denied request took something");
                }
            }
        }
    }
}

fn held(store: &LocalStore, which: impl Fn(&Slot<()>) -> bool) -> Vec<(BucketKey, Slot<()>)> {
    let mut held: Vec<_> =
        store.buckets.iter().map(|entry| ((*entry.key()).into(), entry.value().clone())).collect();
    held.retain(|(_, slot)| which(slot));
    held
}

#[test]
fn full_buckets_go_first_then_those_that_are_soonest_full() {
    let clock = Clock::manual(NOW);
    let store = store(2_048, &clock);
    let capacity = store.usage().capacity;
    // `used` tokens of 3600 an hour are `used` seconds from full. Half of them little used, half a lot.
    let (little, lot) = (1, 1_800);
    for n in 0..capacity {
        let _ = store.decide(&[charge(n, 3_600, if n % 2 == 0 { little } else { lot })]);
    }
    // The keys do not spread evenly: one of the shards was full a little before the other.
    let before = store.usage();
    clock.advance(2 * SECOND);
    for n in 0..capacity / 8 {
        let _ = store.decide(&[charge(format_args!("new {n}"), 3_600, 900)]);
    }
    let usage = store.usage();
    assert_eq!(usage.evicted, before.evicted, "the full ones were enough");
    assert_eq!(usage.overflowed, 0);

    for n in 0..capacity {
        let _ = store.decide(&[charge(format_args!("newer {n}"), 3_600, 900)]);
    }
    let kept = |n: usize| store.decide(&[peek(charge(n, 3_600, 1))]).verdicts[0].remaining < 3_600;
    let (mut lost_lot, mut lost_little) = (0, 0);
    for n in 0..capacity {
        if n % 2 == 0 { lost_little += usize::from(!kept(n)) } else { lost_lot += usize::from(!kept(n)) }
    }
    assert_eq!(lost_little, capacity.div_ceil(2), "all that were full are gone");
    assert!(lost_lot < capacity / 50, "{lost_lot} of {} were evicted before sooner ones", capacity / 2);
}

#[test]
fn memory_does_not_grow_with_the_number_of_callers_that_have_been() {
    let clock = Clock::manual(NOW);
    let store = store(1_000_000, &clock);
    for n in 0..300_000u32 {
        // A bucket is full again after a second; about a thousand are in use at a time.
        let _ = store.decide(&[charge(n, 3_600, 1)]);
        clock.advance(SECOND / 1_000);
    }
    let slots: usize = store.buckets.shards().iter().map(|shard| shard.read().capacity()).sum();
    assert!(slots < 60_000, "{slots} slots for a thousand buckets in use");
}

#[test]
fn keys_are_dealt_out_to_unequal_shards_and_each_has_its_share_of_the_cap() {
    for (capacity, shards) in [(1, 2), (1_000, 2), (10_000, 16), (1_000_000, 1_024), (5_000_000, 4_096)] {
        let store = store(capacity, &Clock::manual(NOW));
        assert_eq!(store.shards(), shards);
        let share = |shard: usize| store.bounds[shard].capacity as f64;
        let all = store.usage().capacity;
        assert!((capacity..=capacity + shards).contains(&all), "{all} of {capacity}");
        if capacity >= 10_000 {
            let ratio = share(shards - 1) / share(0);
            assert!((1.8..=2.0).contains(&ratio), "the last of {shards} has {ratio} times the first");
        }
    }
    let store = store(10_000, &Clock::manual(NOW));
    let mut keys = [0_u32; 16];
    (0..100_000).for_each(|n| keys[store.shard_of(key(n))] += 1);
    for (shard, keys) in keys.into_iter().enumerate() {
        let expected = store.bounds[shard].capacity as f64 * 10.0;
        assert!(
            (f64::from(keys) - expected).abs() < 0.1 * expected,
            "{keys} in shard {shard}, not {expected}"
        );
    }
    let last = store.shard_of(BucketKey(u128::MAX));
    assert_eq!((store.shard_of(BucketKey(0)), last), (0, 15));
}

/// What tables take is the same for each bucket, however many there are: not twice as much just after all have doubled.
#[test]
fn a_bucket_takes_no_more_than_twice_its_place_however_many_there_are() {
    let store = store(200_000, &Clock::manual(NOW));
    let a_slot = size_of::<(Name, SharedValue<Slot<()>>)>();
    assert_eq!(a_slot, 40);
    let mut worst = 0.0_f64;
    for n in 0..400_000_u32 {
        let _ = store.decide(&[charge(n, 10, 1)]);
        if n >= 10_000 && n % 10_000 == 0 {
            let slots = |shard: &dashmap::RwLock<Table<()>>| shard.read().buckets();
            let slots: usize = store.buckets.shards().iter().map(|shard| slots(shard)).sum();
            let listed = |bound: &Bound| bound.candidates().bytes();
            let listed: usize = store.bounds.iter().map(listed).sum();
            // A byte more of each place says whether it is taken.
            let bytes = slots * (a_slot + 1) + listed;
            worst = worst.max(bytes as f64 / store.usage().buckets as f64);
        }
    }
    assert!(worst < 85.0, "{worst} bytes");
    assert!(worst > 46.0, "{worst} bytes: less than tables can have");
}

#[test]
fn a_charge_that_changes_nothing_leaves_nothing_behind() {
    let store = store(1_000, &Clock::manual(NOW));
    let _ = store.decide(&[peek(charge("a", 10, 1))]);
    let _ = store.decide(&[charge("b", 10, 11)]);
    let _ = store.decide(&[Charge { hits: Hits::GiveBack(5), ..charge("c", 10, 1) }]);
    assert_eq!(store.usage().buckets, 0);
}

#[test]
fn the_same_answers_come_from_one_charge_and_from_a_list_of_one() {
    let clock = Clock::manual(NOW);
    let (one, list) = (store(1_000, &clock), store(1_000, &clock));
    for n in 0..500u64 {
        let charge = charge(n % 7, 20, n % 9);
        assert_eq!(one.decide_one(&charge, &mut ()), list.decide_all(&[charge], &mut ()));
        clock.advance(n * SECOND);
    }
    assert_eq!(one.decide_one(&charge(1, 20, 1), &mut ()).verdicts[0].outcome, Outcome::Fits);
}

#[test]
fn each_bucket_is_prepared_once_before_it_is_decided_on_and_what_is_beside_it_stays_as_long_as_it_does() {
    let clock = Clock::manual(NOW);
    let store: LocalStore<u32> = LocalStore::with_beside(NonZeroUsize::new(1_000).unwrap(), clock.clone());
    let charges = [charge("a", 10, 1), charge("b", 10, 1), charge("a", 10, 2)];
    let mut seen = Vec::new();
    let mut prepare = |index: usize, bucket: &mut Bucket, beside: &mut u32, _: Micros| {
        *beside += 1;
        seen.push((index, *beside));
        if *beside == 1 {
            // As if it was known from elsewhere that five are used.
            let _ = bucket.take(&charges[index].limit, Hits::Take(5), NOW);
        }
    };
    let decision = store.decide_with(&charges, &mut prepare);
    assert_eq!(decision.verdicts.iter().map(|verdict| verdict.remaining).collect::<Vec<_>>(), [4, 4, 2]);
    let _ = store.decide_with(&charges[1..2], &mut prepare);
    seen.sort_unstable();
    assert_eq!(seen, [(0, 1), (0, 2), (1, 1)]);

    assert_eq!(store.with(charges[0].bucket, |_, beside, _| *beside), Some(1));
    let mut all = 0;
    (0..store.shards()).for_each(|shard| store.look_through(shard, |_, _, beside, _| all += *beside));
    assert_eq!(all, 3);
    // A year later both are full.
    clock.advance(365 * 86_400 * SECOND);
    (0..store.shards()).for_each(|shard| store.look_through(shard, |_, _, _, _| ()));
    assert_eq!(store.usage().buckets, 0);
    assert_eq!(store.with(charges[0].bucket, |_, beside, _| *beside), None);
}

#[test]
fn what_is_put_is_kept_unless_it_is_full_and_frees_nobody_who_is_limited() {
    let clock = Clock::manual(NOW);
    let store: LocalStore<bool> = LocalStore::with_beside(NonZeroUsize::new(2).unwrap(), clock);
    let used = |hits| {
        let mut bucket = Bucket::FULL;
        let _ = bucket.take(&charge("", 10, 1).limit, Hits::Take(hits), NOW);
        bucket
    };
    let put = |name: usize, hits| {
        let charge = charge(name, 10, 1);
        store.put(charge.bucket, &charge.limit, |bucket, beside, _| (*bucket, *beside) = (used(hits), true));
        store.with(charge.bucket, |bucket, beside, _| (bucket.remaining(&charge.limit, NOW), *beside))
    };
    assert_eq!(put(0, 0), None, "it is full");
    assert_eq!(put(1, 3), Some((7, true)));
    assert_eq!(put(1, 10), Some((0, true)));
    for name in 2..100 {
        put(name, 10);
    }
    let held = store.usage();
    assert!(held.buckets <= held.capacity && held.evicted == 0 && held.overflowed == 0, "{held:?}");
    assert_eq!(
        store.with(charge(1usize, 10, 1).bucket, |bucket, _, _| bucket
            .remaining(&charge(1usize, 10, 1).limit, NOW)),
        Some(0)
    );
}
