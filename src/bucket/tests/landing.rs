//! Hits that land whatever is left: charges after the fact, and corrections between stores.

use super::*;

/// A bucket on which anything may have happened.
fn used_bucket() -> impl Strategy<Value = (Limit, Bucket, Micros)> {
    let before = prop::collection::vec((any_hits(), 0..10_000_000u64), 0..12);
    (any_limit(), before).prop_map(|(limit, before)| {
        let mut bucket = Bucket::FULL;
        let mut now = NOW;
        for (hits, pause) in before {
            let _ = bucket.take(&limit, hits, now);
            now += pause;
        }
        (limit, bucket, now)
    })
}

fn near(one: f64, other: f64) -> bool {
    (one - other).abs() <= 1e-9 * (1.0 + one.abs())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn an_overdraft_always_lands_within_the_cap_and_is_over_when_no_token_was_left(
        (limit, mut bucket, now) in used_bucket(),
        hits in prop_oneof![1..100u64, Just(u64::MAX)],
    ) {
        let before = bucket.used_at(&limit, now);
        let outcome = bucket.take(&limit, Hits::Overdraft(hits), now);
        prop_assert_eq!(outcome == Outcome::Fits, before + 1.0 <= limit.burst());
        let after = bucket.used_at(&limit, now);
        let expected = (before + hits as f64).min(limit.most().max(before));
        prop_assert!(near(after, expected), "{before} + {hits} is {after}, not {expected}");
    }

    /// A debt is a level like any other: it is paid back at the rate, and only then is anything admitted again.
    #[test]
    fn a_debt_of_tokens_is_paid_back_at_the_rate(
        (requests, window, room) in (1..1_000u32, windows(), 1..1_000u32),
        hits in 1..10_000u64,
    ) {
        let limit = burst(requests, window, room);
        let mut bucket = Bucket::FULL;
        let _ = bucket.take(&limit, Hits::Overdraft(hits), NOW);
        let used = (hits as f64).min(limit.most());
        let wait = ((used + 1.0 - limit.burst()) / limit.rate()).max(0.0);
        match bucket.take(&limit, Hits::Take(1), NOW) {
            Outcome::Fits => prop_assert!(wait == 0.0),
            Outcome::Over(Retry::In(told)) => {
                prop_assert!(wait > 0.0 && (told as f64 - wait.min((HORIZON - NOW) as f64)).abs() <= 2.0 + wait * 1e-9, "{} and not {}", told, wait);
            }
            Outcome::Over(Retry::Never) => prop_assert!(false, "nobody waits for ever"),
        }
    }

    #[test]
    fn what_is_added_or_raised_never_denies_and_stays_within_the_cap(
        (limit, mut bucket, now) in used_bucket(),
        tokens in -100.0..1_000_000.0f64,
        ago in 0..HOUR,
    ) {
        let before = bucket.used_at(&limit, now);
        let most = limit.most().max(before) + 1e-6;
        for hits in [Hits::Add { tokens, at: now - ago }, Hits::Raise { tokens: tokens.abs(), at: now - ago }] {
            prop_assert_eq!(bucket.take(&limit, hits, now), Outcome::Fits);
            prop_assert!((0.0..=most).contains(&bucket.used_at(&limit, now)));
        }
    }

    /// Any number of replicas may say what they know, any number of times, in any order.
    #[test]
    fn raising_comes_to_the_same_in_any_order_and_number(
        limit in any_limit(),
        known in prop::collection::vec((0.0..20.0f64, 0..HOUR), 1..5),
    ) {
        // Below the cap: there, who comes first counts.
        let limit = limit.with_max_debt(1_000.0);
        let raise = |known: &[(f64, Micros)]| {
            let mut bucket = Bucket::FULL;
            for (tokens, ago) in known {
                let _ = bucket.take(&limit, Hits::Raise { tokens: *tokens, at: NOW - ago }, NOW);
            }
            bucket.used_at(&limit, NOW)
        };
        let twice = [known.clone(), known.clone()].concat();
        let backwards: Vec<_> = known.iter().rev().copied().collect();
        prop_assert_eq!(raise(&known), raise(&twice));
        prop_assert_eq!(raise(&known), raise(&backwards));
    }
}

#[test]
fn a_debt_survives_reading_and_a_changed_limit_forgives_what_is_above_the_new_burst() {
    let limit = limit(60, MINUTE);
    let mut bucket = Bucket::FULL;
    let _ = bucket.take(&limit, Hits::Overdraft(300), NOW);
    let mut read = Bucket::from_record(&bucket.to_record().unwrap()).unwrap();
    assert_eq!(read.full_in(&limit, NOW), 5 * MINUTE);
    // A reload that changes nothing of the limit forgives nothing.
    assert_eq!(read.full_in(&limit.since(NOW), NOW), 5 * MINUTE);
    assert_eq!(read.take(&limit, Hits::Take(1), NOW), Outcome::Over(Retry::In(241 * SECOND)));
    for (changed, refill) in [(burst(60, MINUTE, 30), 30 * SECOND), (self::limit(30, MINUTE), MINUTE)] {
        assert_eq!(read.full_in(&changed.since(NOW), NOW), refill);
    }
}

#[test]
fn a_debt_of_a_window_ends_with_it() {
    let limit = fixed(5, MINUTE, Calendar::Epoch).with_max_debt(2.0);
    let (start, _) = limit.slot(NOW);
    let mut bucket = Bucket::FULL;
    assert_eq!(bucket.take(&limit, Hits::Overdraft(7), start), Outcome::Fits);
    assert_eq!(bucket.take(&limit, Hits::Overdraft(70), start), Outcome::Over(Retry::In(MINUTE)));
    assert_eq!(bucket.used_at(&limit, start), 15.0, "five, and two times five");
    assert_eq!(bucket.remaining(&limit, start + MINUTE), 5);
}

#[test]
fn nothing_lands_on_a_limit_that_admits_nothing() {
    let limit = Limit::blocked(NonZeroU64::new(MINUTE).unwrap());
    let mut bucket = Bucket::FULL;
    assert_eq!(bucket.take(&limit, Hits::Overdraft(5), NOW), Outcome::Over(Retry::Never));
    assert_eq!(bucket.take(&limit, Hits::Add { tokens: 5.0, at: NOW }, NOW), Outcome::Fits);
    assert_eq!(bucket.take(&limit, Hits::Raise { tokens: 5.0, at: NOW }, NOW), Outcome::Fits);
    assert_eq!(bucket.to_record(), None);
}

#[test]
fn what_is_added_to_windows_lands_in_the_one_it_names_or_nowhere() {
    let limit = fixed(10, MINUTE, Calendar::Epoch);
    let (start, _) = limit.slot(NOW);
    let mut bucket = Bucket::FULL;
    let _ = bucket.take(&limit, Hits::Add { tokens: 2.5, at: start + SECOND }, start + 2 * SECOND);
    assert_eq!(bucket.remaining(&limit, start + 2 * SECOND), 7);
    for late in [Hits::Add { tokens: 2.0, at: start - 1 }, Hits::Raise { tokens: 9.0, at: start - 1 }] {
        let _ = bucket.take(&limit, late, start + 2 * SECOND);
        assert_eq!(bucket.remaining(&limit, start + 2 * SECOND), 7, "{late:?}");
    }
    let _ = bucket.take(&limit, Hits::Raise { tokens: 4.0, at: start }, start + 2 * SECOND);
    assert_eq!(bucket.remaining(&limit, start + 2 * SECOND), 6);
}
