use std::num::{NonZeroU32, NonZeroU64};

use proptest::prelude::*;

use super::*;

mod landing;
mod share;
mod windows;

const SECOND: Micros = 1_000_000;
const MINUTE: Micros = 60 * SECOND;
const HOUR: Micros = 60 * MINUTE;
const DAY: Micros = 24 * HOUR;
const YEAR: Micros = 365 * DAY;
const NOW: Micros = 1_790_000_000_000_000;

fn limit(requests: u32, window: Micros) -> Limit {
    Limit::new(NonZeroU32::new(requests).unwrap(), NonZeroU64::new(window).unwrap())
}

fn burst(requests: u32, window: Micros, burst: u32) -> Limit {
    limit(requests, window).with_burst(NonZeroU32::new(burst).unwrap())
}

/// A bucket with `used` tokens in use at `NOW`.
fn bucket(limit: &Limit, used: u64) -> Bucket {
    let mut bucket = Bucket::FULL;
    assert_eq!(bucket.take(limit, Hits::Take(used), NOW), Outcome::Fits);
    bucket
}

fn windows() -> impl Strategy<Value = Micros> {
    prop_oneof![Just(SECOND), Just(MINUTE), Just(HOUR), Just(DAY), Just(30 * DAY), Just(YEAR), 1_000..YEAR]
}

fn limits() -> impl Strategy<Value = (u32, Micros, u32)> {
    let amount = || prop_oneof![1..100u32, 1..1_000_000u32, Just(u32::MAX)];
    (amount(), windows(), amount())
}

fn hits() -> impl Strategy<Value = Hits> {
    prop_oneof![
        6 => (1..20u64).prop_map(Hits::Take),
        2 => (1..1_000_000u64).prop_map(Hits::Take),
        1 => Just(Hits::Take(u64::MAX)),
        1 => Just(Hits::Peek),
        1 => (0..30u64).prop_map(Hits::GiveBack),
    ]
}

fn fixed(requests: u32, window: Micros, calendar: Calendar) -> Limit {
    Limit::fixed_window(NonZeroU32::new(requests).unwrap(), NonZeroU64::new(window).unwrap(), calendar)
}

fn sliding(requests: u32, window: Micros) -> Limit {
    Limit::sliding_window(NonZeroU32::new(requests).unwrap(), NonZeroU64::new(window).unwrap())
}

fn calendars() -> impl Strategy<Value = (Micros, Calendar)> {
    prop_oneof![
        4 => windows().prop_map(|window| (window, Calendar::Epoch)),
        1 => Just((7 * DAY, Calendar::Week)),
        1 => Just((30 * DAY, Calendar::Month)),
        1 => Just((YEAR, Calendar::Year)),
    ]
}

/// Limits of every algorithm.
fn any_limit() -> impl Strategy<Value = Limit> {
    let debt = prop::sample::select(vec![0.0, 1.0, MAX_DEBT]);
    let requests = || prop_oneof![1..30u32, 1..100_000u32];
    let limit = prop_oneof![
        limits().prop_map(|(requests, window, room)| burst(requests, window, room)),
        (requests(), calendars())
            .prop_map(|(requests, (window, calendar))| fixed(requests, window, calendar)),
        (requests(), windows()).prop_map(|(requests, window)| sliding(requests, window)),
    ];
    (limit, debt).prop_map(|(limit, debt)| limit.with_max_debt(debt))
}

/// Hits of every kind, whose moments are about `NOW`.
fn any_hits() -> impl Strategy<Value = Hits> {
    let moment = || (0..2 * HOUR).prop_map(|after| NOW - HOUR + after);
    prop_oneof![
        9 => hits(),
        1 => (1..100u64).prop_map(Hits::Overdraft),
        1 => (1..20u64, moment()).prop_map(|(tokens, taken)| Hits::Refund { tokens, taken }),
        1 => (-20.0..40.0f64, moment()).prop_map(|(tokens, at)| Hits::Add { tokens, at }),
        1 => (0.0..40.0f64, moment()).prop_map(|(tokens, at)| Hits::Raise { tokens, at }),
    ]
}

/// The same bucket in whole numbers: used tokens in units of 1/window of a token, so nothing is ever rounded.
struct Exact {
    used: i128,
    at: Micros,
    requests: i128,
    window: i128,
    burst: i128,
}

impl Exact {
    fn of(requests: u32, window: Micros, burst: u32) -> Self {
        Self { used: 0, at: 0, requests: requests.into(), window: window.into(), burst: burst.into() }
    }

    fn drain(&mut self, now: Micros) {
        self.used = (self.used - self.requests * i128::from(now - self.at)).max(0);
        self.at = now;
    }

    /// Tokens in use, as a double.
    fn used(&self) -> f64 {
        self.used as f64 / self.window as f64
    }

    fn room(&self) -> f64 {
        self.burst as f64 - self.used()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// The promise itself: over every interval between two admissions, not only from the start.
    #[test]
    fn never_more_than_burst_plus_rate_times_t_over_any_interval(
        (requests, window, room) in limits(),
        steps in prop::collection::vec((0..3_000_000u64, 1..20u64), 1..120),
    ) {
        let limit = burst(requests, window, room);
        let mut bucket = Bucket::FULL;
        let mut now = NOW;
        let mut admitted: Vec<(Micros, u64)> = Vec::new();
        for (pause, hits) in steps {
            now += pause;
            if bucket.take(&limit, Hits::Take(hits), now) == Outcome::Fits {
                admitted.push((now, hits));
            }
        }
        for (first, &(start, _)) in admitted.iter().enumerate() {
            let mut sum: u128 = 0;
            for &(end, hits) in &admitted[first..] {
                sum += u128::from(hits);
                // In units of 1/window of a token; the slack is a millionth of a token.
                let allowed = u128::from(room) * u128::from(window)
                    + u128::from(requests) * u128::from(end - start)
                    + u128::from(window) / 1_000_000 + 1;
                prop_assert!(sum * u128::from(window) <= allowed, "{sum} within {} µs", end - start);
            }
        }
    }

    #[test]
    fn the_promised_moment_is_exact(
        (requests, window, room) in limits(),
        before in prop::collection::vec((hits(), 0..10_000_000u64), 0..20),
        asked in hits(),
    ) {
        let limit = burst(requests, window, room);
        let mut bucket = Bucket::FULL;
        let mut now = NOW;
        for (hits, pause) in before {
            let _ = bucket.take(&limit, hits, now);
            now += pause;
        }
        let kept = bucket.clone();
        match bucket.take(&limit, asked, now) {
            Outcome::Over(Retry::In(wait)) => {
                prop_assert!(wait > 0);
                let mut early = bucket.clone();
                prop_assert!(early.take(&limit, asked, now + wait - 1) != Outcome::Fits, "one microsecond early");
                if now + wait < HORIZON {
                    let mut on_time = bucket.clone();
                    prop_assert_eq!(on_time.take(&limit, asked, now + wait), Outcome::Fits, "at the promised moment");
                }
            }
            Outcome::Over(Retry::Never) => {
                let hits = match asked { Hits::Take(hits) => hits, _ => 1 };
                prop_assert!(hits > u64::from(room));
                prop_assert_eq!(bucket, kept, "a refused charge changes nothing");
            }
            Outcome::Fits => {}
        }
    }

    #[test]
    fn full_is_told_to_the_microsecond((requests, window, room) in limits(), used in 1..1_000_000u64) {
        let limit = burst(requests, window, room);
        let bucket = bucket(&limit, used.min(u64::from(room)));
        let wait = bucket.full_in(&limit, NOW);
        if NOW + wait < HORIZON {
            prop_assert_eq!(bucket.full_in(&limit, NOW + wait), 0);
        }
        prop_assert!(bucket.full_in(&limit, NOW + wait - 1) > 0);
    }

    /// Against whole-number arithmetic: what fits is the same but for a charge that lands within a rounding of the edge.
    #[test]
    fn verdicts_agree_with_whole_number_arithmetic(
        (requests, window, room) in (1..100_000u32, windows(), 1..100_000u32),
        steps in prop::collection::vec((0..3_000_000u64, 1..50u64), 1..200),
    ) {
        let limit = burst(requests, window, room);
        let mut bucket = Bucket::FULL;
        let mut exact = Exact::of(requests, window, room);
        let mut now = NOW;
        for (pause, hits) in steps {
            now += pause;
            exact.drain(now);
            let margin = exact.room() - hits as f64;
            let outcome = bucket.take(&limit, Hits::Take(hits), now);
            if margin.abs() > 1e-6 {
                prop_assert_eq!(outcome == Outcome::Fits, margin > 0.0, "margin {}", margin);
            }
            if outcome == Outcome::Fits {
                exact.used += i128::from(hits) * exact.window;
            }
        }
    }

    #[test]
    fn what_was_used_survives_any_change_of_limit_and_never_exceeds_the_new_burst(
        (requests, window, room) in limits(),
        (requests2, window2, room2) in limits(),
        used in 1..1_000_000u64,
        (idle, after) in (0..HOUR, 0..HOUR),
    ) {
        let old = burst(requests, window, room);
        let bucket = bucket(&old, used.min(u64::from(room)));
        let changed = NOW + idle;
        let new = burst(requests2, window2, room2).since(changed);

        let at_change = bucket.used_at(&old, changed).min(new.burst());
        let expected = (at_change - new.rate() * after as f64).max(0.0);
        let kept = bucket.used_at(&new, changed + after);
        prop_assert!((kept - expected).abs() <= 1e-6 * (1.0 + expected), "{} instead of {}", kept, expected);

        // Nobody waits longer than the new limit takes to refill from nothing.
        let refill = new.burst() / new.rate();
        prop_assert!(bucket.full_in(&new, changed) as f64 <= refill.min(HORIZON as f64) + 2.0);
    }

    #[test]
    fn a_clock_that_steps_back_drains_nothing_and_locks_nobody_out(
        (requests, window, room) in limits(),
        back in 1..YEAR,
        asked in 1..1_000u64,
    ) {
        let limit = burst(requests, window, room);
        let mut bucket = bucket(&limit, u64::from(room));
        let now = NOW - back;
        prop_assert_eq!(bucket.remaining(&limit, now), 0, "nothing drained");

        let hits = asked.min(u64::from(room));
        let Outcome::Over(Retry::In(wait)) = bucket.take(&limit, Hits::Take(hits), now) else {
            return Err(TestCaseError::fail("an empty bucket admitted"));
        };
        let refill = hits as f64 / limit.rate();
        prop_assert!((wait as f64) <= refill + 2.0, "waits {} µs, not {}", wait, refill);
        if now + wait < HORIZON {
            prop_assert_eq!(bucket.take(&limit, Hits::Take(hits), now + wait), Outcome::Fits);
        }
    }
}

#[test]
fn ten_million_steps_drift_by_less_than_one_token() {
    // The same step over and over, whose roundings may all point one way, and steps that vary.
    for (requests, window, room, stride, scatter) in [
        (60, MINUTE, 60, 1_000_000, 0),
        (7, SECOND, 1_000_000, 142_857, 0),
        (1_000_003, HOUR, 100_000_000, 7_919, 0),
        (999_983, MINUTE, 1_000_000, 61, 997),
    ] {
        let limit = burst(requests, window, room);
        let mut exact = Exact::of(requests, window, room);
        let mut bucket = Bucket::FULL;
        // Half full to start with, so that neither edge hides an error.
        let _ = bucket.take(&limit, Hits::Take(u64::from(room / 2)), NOW);
        exact.drain(NOW);
        exact.used = i128::from(room / 2) * exact.window;

        let (mut now, mut noise) = (NOW, 1u64);
        for _ in 0..10_000_000u32 {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            now += stride + if scatter > 0 { (noise >> 33) % scatter } else { 0 };
            exact.drain(now);
            let refilled = exact.used() < f64::from(room) / 2.0;
            if refilled {
                let _ = bucket.take(&limit, Hits::Take(1), now);
                exact.used += exact.window;
            } else {
                // Written down without a change: every step rounds.
                let _ = bucket.take(&limit, Hits::GiveBack(0), now);
            }
        }
        let drift = (bucket.used_at(&limit, now) - exact.used()).abs();
        assert!(drift < 1.0, "{drift} tokens after ten million steps of {requests} per {window} µs");
    }
}

#[test]
fn a_full_bucket_holds_its_burst_and_then_refills_at_its_rate() {
    let limit = burst(60, MINUTE, 10);
    let mut bucket = Bucket::FULL;
    assert_eq!(bucket.remaining(&limit, NOW), 10);
    for left in (0..10).rev() {
        assert_eq!(bucket.take(&limit, Hits::Take(1), NOW), Outcome::Fits);
        assert_eq!(bucket.remaining(&limit, NOW), left);
    }
    assert_eq!(bucket.take(&limit, Hits::Take(1), NOW), Outcome::Over(Retry::In(SECOND)));
    assert_eq!(bucket.take(&limit, Hits::Take(3), NOW), Outcome::Over(Retry::In(3 * SECOND)));
    assert_eq!(bucket.full_in(&limit, NOW), 10 * SECOND);
    assert_eq!(bucket.remaining(&limit, NOW + 4 * SECOND), 4);
    assert_eq!(bucket.remaining(&limit, NOW + HOUR), 10);
}

#[test]
fn a_charge_above_the_burst_never_fits_and_costs_nothing() {
    let limit = burst(1_000, SECOND, 10);
    let mut bucket = Bucket::FULL;
    assert_eq!(bucket.take(&limit, Hits::Take(11), NOW), Outcome::Over(Retry::Never));
    assert_eq!(bucket.take(&limit, Hits::Take(u64::MAX), NOW), Outcome::Over(Retry::Never));
    assert_eq!(bucket, Bucket::FULL);
}

#[test]
fn a_blocked_limit_admits_nothing_ever_not_even_a_peek() {
    let limit = Limit::blocked(NonZeroU64::new(MINUTE).unwrap());
    let mut bucket = Bucket::FULL;
    for hits in [Hits::Take(1), Hits::Peek] {
        assert_eq!(bucket.take(&limit, hits, NOW), Outcome::Over(Retry::Never));
    }
    assert_eq!(bucket.remaining(&limit, NOW), 0);
    assert_eq!(bucket.full_in(&limit, NOW), 0);
    assert_eq!(limit.with_burst(NonZeroU32::MIN), limit, "a burst does not unblock it");
}

#[test]
fn a_peek_takes_nothing_and_is_over_without_a_whole_token() {
    let limit = limit(60, MINUTE);
    let mut bucket = bucket(&limit, 59);
    let before = bucket.clone();
    assert_eq!(bucket.take(&limit, Hits::Peek, NOW), Outcome::Fits);
    assert_eq!(bucket, before);
    assert_eq!(bucket.take(&limit, Hits::Take(1), NOW), Outcome::Fits);
    assert_eq!(bucket.take(&limit, Hits::Peek, NOW + SECOND / 2), Outcome::Over(Retry::In(SECOND / 2)));
}

#[test]
fn tokens_given_back_fill_the_bucket_and_no_more() {
    let limit = limit(60, MINUTE);
    let mut bucket = bucket(&limit, 30);
    assert_eq!(bucket.take(&limit, Hits::GiveBack(10), NOW), Outcome::Fits);
    assert_eq!(bucket.remaining(&limit, NOW), 40);
    assert_eq!(bucket.take(&limit, Hits::GiveBack(u64::MAX), NOW), Outcome::Fits);
    assert_eq!(bucket.remaining(&limit, NOW), 60);
    assert_eq!(bucket.full_in(&limit, NOW), 0);
}

#[test]
fn someone_who_moves_up_has_the_difference_at_once() {
    let bucket = bucket(&limit(60, MINUTE), 60);
    let pro = limit(600, MINUTE).since(NOW);
    assert_eq!(bucket.remaining(&pro, NOW), 540);
}

#[test]
fn someone_who_moves_down_waits_no_longer_than_the_new_limit_takes_to_refill() {
    let bucket = bucket(&limit(600, MINUTE), 600);
    let free = limit(60, MINUTE).since(NOW);
    assert_eq!(bucket.remaining(&free, NOW), 0);
    assert_eq!(bucket.full_in(&free, NOW), MINUTE);
}

#[test]
fn a_burst_that_shrinks_under_the_same_rate_locks_nobody_out() {
    let mut bucket = bucket(&burst(60, MINUTE, 6_000), 6_000);
    let new = burst(60, MINUTE, 10).since(NOW + SECOND);
    assert_eq!(bucket.take(&new, Hits::Take(1), NOW + SECOND), Outcome::Over(Retry::In(SECOND)));
}

#[test]
fn a_limit_that_changes_with_each_request_drains_at_the_rate_it_was_written_under() {
    let hourly = limit(60, HOUR).since(Micros::MAX);
    let mut bucket = bucket(&hourly, 60);
    let minutely = limit(120, MINUTE).since(Micros::MAX);
    assert_eq!(bucket.remaining(&minutely, NOW + MINUTE), 61, "one token has come back by the hour");
    // Refused once, it drains at the new rate from then on.
    assert!(bucket.take(&minutely, Hits::Take(100), NOW + MINUTE) != Outcome::Fits);
    assert_eq!(bucket.remaining(&minutely, NOW + MINUTE + SECOND), 63);
}

#[test]
fn a_slow_giant_promises_without_a_search_of_millions() {
    // One rounding of four billion tokens lasts a quarter of a minute at this rate.
    let limit = burst(1, YEAR, u32::MAX);
    let mut bucket = bucket(&limit, u64::from(u32::MAX));
    let Outcome::Over(Retry::In(wait)) = bucket.take(&limit, Hits::Take(1), NOW) else { panic!("admitted") };
    assert!((wait as f64 - YEAR as f64).abs() < MINUTE as f64, "{wait}");
}

proptest! {
    /// What is kept of a bucket says when it has a whole token again: not before it has, and next to no later.
    #[test]
    fn a_bucket_knows_when_it_has_a_whole_token_again(
        requests in 1..1_000_000_u32,
        used in 0.0..1.0,
        at in NOW..NOW + HOUR,
    ) {
        let limit = limit(requests, HOUR);
        // Half of them within a token of the burst.
        let used: f64 = if used < 0.5 { 2.0 * used * limit.burst() } else { limit.burst() - 2.0 * (used - 0.5) };
        let mut bucket = Bucket::FULL;
        bucket.write(&limit, used.max(0.0), at);
        let has_one = |then| bucket.remaining(&limit, then) >= 1;
        let token_at = bucket.token_at();
        if token_at <= at {
            prop_assert!(has_one(at), "{bucket:?}");
        } else {
            // A rounding, in microseconds.
            let slack = 2 + micros(1e-3 / limit.rate());
            prop_assert!(has_one(token_at + 2), "not before: {bucket:?}");
            prop_assert!(!has_one(token_at.saturating_sub(slack)), "nor much later: {bucket:?}");
        }
    }
}

#[test]
fn a_debt_says_when_all_of_it_is_paid_and_a_larger_limit_forgives_it() {
    let limit = limit(10, 10 * SECOND);
    let mut bucket = Bucket::FULL;
    assert_eq!(bucket.take(&limit, Hits::Overdraft(15), NOW), Outcome::Fits);
    assert_eq!(bucket.token_at(), NOW + 6 * SECOND);
    bucket.seen_under(&limit);
    assert_eq!((bucket.token_at(), bucket.full_at()), (NOW + 6 * SECOND, NOW + 15 * SECOND));
    bucket.seen_under(&self::limit(20, 20 * SECOND));
    assert_eq!((bucket.token_at(), bucket.full_at()), (0, NOW + 15 * SECOND));
}
