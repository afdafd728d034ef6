//! A request that is split over several stores, against the same request on one.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use proptest::prelude::*;

use super::*;
use crate::bucket::{Limit, Retry};
use crate::clock::Clock;
use crate::decision::RuleId;
use crate::store::LocalStore;

const NOW: Micros = 1_790_000_000_000_000;

/// So many microseconds bring one token back: a power of two, so that doubles hold all that comes of it.
const TOKEN: u64 = 1 << 20;

const BUCKETS: u8 = 6;
const PARTS: u8 = 3;

fn store(clock: &Clock) -> LocalStore {
    LocalStore::new(NonZeroUsize::new(1_000).unwrap(), clock.clone())
}

fn limit(bucket: u8) -> Limit {
    let burst = NonZeroU32::new(4 + u32::from(bucket)).unwrap();
    Limit::new(NonZeroU32::new(1).unwrap(), NonZeroU64::new(TOKEN).unwrap()).with_burst(burst)
}

fn charge(bucket: u8, hits: Hits, mode: Mode) -> Charge {
    let limit = limit(bucket);
    Charge { bucket: BucketKey(bucket.into()), rule: RuleId(0), limit, hits, mode, on_redis_failure: None }
}

fn names(charges: &[Charge]) -> Names {
    charges.iter().map(|charge| Bytes::from(charge.bucket.0.to_string())).collect()
}

/// The part that a bucket is in.
fn part_of(name: &Bytes) -> u8 {
    std::str::from_utf8(name).unwrap().parse::<u8>().unwrap() % PARTS
}

/// Decides part by part, each in a store of its own; a request of one part as it is.
fn in_parts(stores: &[LocalStore], charges: &[Charge]) -> Decision {
    let names = names(charges);
    let of = |name: &Bytes| &stores[usize::from(part_of(name))];
    let Some(pieces) = split(charges, &names, part_of) else {
        return of(&names[0]).decide(charges);
    };
    let decisions: Vec<Option<Decision>> =
        pieces.iter().map(|piece| Some(of(&piece.names[0]).decide(&piece.charges))).collect();
    let (decision, refunds) = conclude(charges, &pieces, &decisions);
    for refund in refunds {
        assert!(!of(&refund.names[0]).decide(&refund.charges).denied);
    }
    decision.unwrap()
}

fn requests() -> impl Strategy<Value = Vec<(Vec<Charge>, u64)>> {
    let hits = prop_oneof![
        6 => (1..6u64).prop_map(Hits::Take),
        1 => Just(Hits::Peek),
        1 => (0..6u64).prop_map(Hits::GiveBack),
        1 => (1..4u64).prop_map(Hits::Overdraft),
    ];
    let mode = prop_oneof![4 => Just(Mode::Enforced), 2 => Just(Mode::Quota), 1 => Just(Mode::Shadow)];
    let charge = (0..BUCKETS, hits, mode).prop_map(|(bucket, hits, mode)| charge(bucket, hits, mode));
    let request = prop::collection::vec(charge, 1..6).prop_map(without_corners);
    // Time passes by quarters of a token.
    prop::collection::vec((request, 0..6u64), 1..30)
}

/// Leaves out overdrafts of buckets that a request also gives back to: see [`Piece::taken`].
fn without_corners(mut charges: Vec<Charge>) -> Vec<Charge> {
    let given: Vec<BucketKey> =
        charges.iter().filter(|charge| charge.hits.give_back()).map(|charge| charge.bucket).collect();
    for charge in &mut charges {
        if matches!(charge.hits, Hits::Overdraft(_)) && given.contains(&charge.bucket) {
            charge.hits = Hits::Peek;
        }
    }
    charges
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_decided_part_by_part_is_what_is_decided_as_a_whole_when_nobody_interferes(requests in requests()) {
        let clock = Clock::manual(NOW);
        let (whole, stores) = (store(&clock), (0..PARTS).map(|_| store(&clock)).collect::<Vec<_>>());
        for (charges, quarters) in requests {
            clock.advance(quarters * TOKEN / 4);
            let expected = whole.decide(&charges);
            prop_assert_eq!(in_parts(&stores, &charges), expected, "{:?}", charges);
        }
    }
}

#[test]
fn a_request_whose_buckets_are_in_one_part_is_not_split() {
    let charges = [charge(0, Hits::Take(1), Mode::Enforced), charge(PARTS, Hits::Take(1), Mode::Enforced)];
    assert!(split(&charges, &names(&charges), part_of).is_none());
    assert!(split(&[], &Names::new(), part_of).is_none());
}

#[test]
fn what_gave_back_before_more_was_charged_is_not_returned_twice() {
    let clock = Clock::manual(NOW);
    for used in 0..3 {
        let (whole, stores) = (store(&clock), (0..PARTS).map(|_| store(&clock)).collect::<Vec<_>>());
        let before = [charge(0, Hits::Take(used), Mode::Enforced)];
        whole.decide(&before);
        in_parts(&stores, &before);
        let denied = [
            charge(0, Hits::Take(1), Mode::Enforced),
            charge(0, Hits::GiveBack(1), Mode::Enforced),
            charge(0, Hits::Overdraft(1), Mode::Enforced),
            charge(1, Hits::Take(100), Mode::Enforced),
        ];
        let left = |decision: Decision| decision.verdicts[0].remaining;
        let (whole, parts) = (left(whole.decide(&denied)), left(in_parts(&stores, &denied)));
        assert!(parts <= whole && parts + 1 >= whole, "{parts} left of parts, {whole} of the whole");
    }
}

#[test]
fn quotas_in_different_parts_deny_only_together_and_cost_nothing_then() {
    let clock = Clock::manual(NOW);
    let stores: Vec<_> = (0..PARTS).map(|_| store(&clock)).collect();
    let quotas = |hits| [charge(0, Hits::Take(hits), Mode::Quota), charge(1, Hits::Take(hits), Mode::Quota)];
    // The first holds four, the second five.
    assert!(!in_parts(&stores, &quotas(4)).denied);
    let decision = in_parts(&stores, &quotas(1));
    assert!(!decision.denied);
    assert_eq!(decision.verdicts[0].outcome, Outcome::Over(Retry::In(TOKEN)));
    assert!(in_parts(&stores, &quotas(1)).denied);
}

#[test]
fn without_an_answer_from_one_part_there_is_none_and_the_others_get_back_what_was_taken() {
    let clock = Clock::manual(NOW);
    let store = store(&clock);
    let charges = [charge(0, Hits::Take(3), Mode::Enforced), charge(1, Hits::Take(1), Mode::Enforced)];
    let names = names(&charges);
    let pieces = split(&charges, &names, part_of).unwrap();
    let admitted = store.decide(&pieces[0].charges);
    let (decision, refunds) = conclude(&charges, &pieces, &[Some(admitted), None]);
    assert!(decision.is_none());
    let [refund] = &refunds[..] else { panic!("{refunds:?}") };
    assert_eq!(refund.charges[0].hits, Hits::Refund { tokens: 3, taken: NOW });
    assert_eq!(refund.names[0], names[0]);
}

#[test]
fn what_a_rule_admitted_for_want_of_a_store_is_not_given_back() {
    let clock = Clock::manual(NOW);
    let store = store(&clock);
    let charges = [charge(0, Hits::Take(3), Mode::Enforced), charge(1, Hits::Take(100), Mode::Enforced)];
    let names = names(&charges);
    let pieces = split(&charges, &names, part_of).unwrap();
    let allowed = store.decide(&pieces[0].charges).said_by(Source::Policy);
    let denied = store.decide(&pieces[1].charges);
    let (decision, refunds) = conclude(&charges, &pieces, &[Some(allowed), Some(denied)]);
    assert!(decision.unwrap().denied && refunds.is_empty());
}

#[test]
fn what_was_taken_of_a_window_that_has_turned_is_not_given_back() {
    let clock = Clock::manual(NOW);
    let store = store(&clock);
    let (ten, minute) = (NonZeroU32::new(10).unwrap(), NonZeroU64::new(60_000_000).unwrap());
    let window = Limit::fixed_window(ten, minute, crate::bucket::Calendar::Epoch);
    let take = |bucket| Charge { limit: window, ..charge(bucket, Hits::Take(4), Mode::Enforced) };
    let charges = [take(0), Charge { hits: Hits::Take(11), ..take(1) }];
    let names = names(&charges);
    let pieces = split(&charges, &names, part_of).unwrap();
    let decisions: Vec<_> = pieces.iter().map(|piece| Some(store.decide(&piece.charges))).collect();
    let (decision, refunds) = conclude(&charges, &pieces, &decisions);
    let decision = decision.unwrap();
    assert!(decision.denied);
    assert_eq!(
        (decision.verdicts[0].remaining, decision.verdicts[0].full_in),
        (10, 0),
        "as if nothing was taken"
    );
    // A minute later others have taken four of the next window.
    clock.advance(60_000_000);
    assert_eq!(store.decide(&charges[..1]).verdicts[0].remaining, 6);
    store.decide(&refunds[0].charges);
    let peek = Charge { hits: Hits::Peek, ..charges[0] };
    assert_eq!(store.decide(&[peek]).verdicts[0].remaining, 6);
}
