//! Fixed and sliding windows: what they admit, what they promise, and what becomes of them when limits or clocks change.

use std::collections::BTreeMap;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// Against a log of every charge: never above the limit in any window, and never a denial that a window of nine
    /// eighths of the length would not have made.
    #[test]
    fn a_sliding_window_admits_as_a_log_does_and_is_at_most_an_eighth_too_strict(
        requests in 1..40u32,
        window in prop_oneof![Just(SECOND), Just(15 * MINUTE), Just(8), 8..YEAR],
        steps in prop::collection::vec((0..1_000_000u64, 1..10u64), 1..150),
        pace in prop::sample::select(vec![16, 50, 400]),
    ) {
        let limit = sliding(requests, window);
        let eighth = window.div_ceil(8);
        let mut bucket = Bucket::FULL;
        let mut log: Vec<(Micros, u64)> = Vec::new();
        let mut now = NOW;
        let used = |log: &[(Micros, u64)], after: Micros, until: Micros| -> u64 {
            log.iter().filter(|(at, _)| *at > after && *at <= until).map(|(_, hits)| hits).sum()
        };
        for (pause, hits) in steps {
            now += pause % (window * 2 / pace + 2);
            if bucket.take(&limit, Hits::Take(hits), now) == Outcome::Fits {
                log.push((now, hits));
                prop_assert!(used(&log, now - window, now) <= u64::from(requests), "above the limit within a window");
            } else {
                let of_log = used(&log, now - 9 * eighth, now);
                prop_assert!(of_log + hits > u64::from(requests), "denied with {of_log} in the log");
            }
        }
    }

    #[test]
    fn a_fixed_window_admits_its_limit_in_each_window_and_denies_nothing_else(
        requests in 1..40u32,
        (window, calendar) in calendars(),
        steps in prop::collection::vec((0..100u64, 1..10u64), 1..150),
    ) {
        let limit = fixed(requests, window, calendar);
        let mut bucket = Bucket::FULL;
        let mut admitted: BTreeMap<Micros, u64> = BTreeMap::new();
        let mut now = NOW;
        for (pause, hits) in steps {
            now += window * pause / 700;
            let (start, length) = limit.slot(now);
            prop_assert!(start <= now && now < start + length);
            let used = admitted.entry(start).or_default();
            let fits = bucket.take(&limit, Hits::Take(hits), now) == Outcome::Fits;
            prop_assert_eq!(fits, *used + hits <= u64::from(requests));
            if fits {
                *used += hits;
            }
            prop_assert_eq!(u64::from(bucket.remaining(&limit, now)), u64::from(requests) - *used);
        }
    }

    /// Whatever came before, under whichever limits and however the clock went.
    #[test]
    fn every_promised_moment_is_exact_after_anything(
        before in prop::collection::vec((any_limit(), any_hits(), -2_000_000..10_000_000i64), 0..12),
        mine in prop::collection::vec((any_hits(), -1_000..10_000_000i64), 0..12),
        limit in any_limit(),
        asked in prop_oneof![
            4 => (1..60u64).prop_map(Hits::Take), 1 => Just(Hits::Peek), 1 => (1..60u64).prop_map(Hits::Overdraft)
        ],
    ) {
        let mut bucket = Bucket::FULL;
        let mut now = NOW;
        for (limit, hits, pause) in before {
            let _ = bucket.take(&limit, hits, now);
            now = now.saturating_add_signed(pause);
        }
        for (hits, pause) in mine {
            let _ = bucket.take(&limit, hits, now);
            now = now.saturating_add_signed(pause);
        }
        match bucket.take(&limit, asked, now) {
            Outcome::Over(Retry::In(wait)) => {
                prop_assert!(wait > 0);
                let at = |moment| bucket.clone().take(&limit, asked, moment);
                prop_assert!(at(now + wait - 1) != Outcome::Fits, "one microsecond early");
                if now + wait < HORIZON {
                    prop_assert_eq!(at(now + wait), Outcome::Fits, "at the promised moment");
                }
            }
            Outcome::Over(Retry::Never) => {
                let need = match asked { Hits::Take(hits) => hits as f64, _ => 1.0 };
                prop_assert!(need > limit.burst());
            }
            Outcome::Fits => {}
        }
        let mut settled = bucket.clone();
        settled.settle(&limit, now);
        let full = now + settled.full_in(&limit, now);
        if full < HORIZON {
            prop_assert_eq!(settled.used_at(&limit, full), 0.0);
        }
        if full > now {
            prop_assert!(settled.used_at(&limit, full - 1) > 0.0);
        }
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing_and_locks_nobody_out_of_windows(
        limit in prop_oneof![
            (1..50u32, calendars()).prop_map(|(requests, (window, calendar))| fixed(requests, window, calendar)),
            (1..50u32, windows()).prop_map(|(requests, window)| sliding(requests, window)),
        ],
        back in 1..3 * YEAR,
    ) {
        let mut bucket = Bucket::FULL;
        let all = Hits::Take(bucket.remaining(&limit, NOW).into());
        prop_assert_eq!(bucket.take(&limit, all, NOW), Outcome::Fits);
        let now = NOW - back;
        prop_assert_eq!(bucket.remaining(&limit, now), 0);
        let Outcome::Over(Retry::In(wait)) = bucket.take(&limit, all, now) else {
            return Err(TestCaseError::fail("a full window admitted"));
        };
        let (start, length) = limit.slot(now);
        prop_assert!(now + wait <= start + limit.counters() as u64 * length, "waits {} from {}", wait, now);
        prop_assert_eq!(bucket.take(&limit, all, now + wait), Outcome::Fits);
    }

    #[test]
    fn a_record_reads_as_the_bucket_that_it_was(
        before in prop::collection::vec((any_limit(), any_hits(), 0..10_000_000u64), 1..12),
    ) {
        let mut bucket = Bucket::FULL;
        let mut now = NOW;
        let mut last = None;
        for (limit, hits, pause) in before {
            now += pause;
            let _ = bucket.take(&limit, hits, now);
            last = Some(limit);
        }
        let Some(record) = bucket.to_record() else {
            prop_assert_eq!(last.map(|limit| bucket.used_at(&limit, now)), Some(0.0));
            return Ok(());
        };
        let read = Bucket::from_record(&record).unwrap();
        prop_assert_eq!(read.to_record(), Some(record));
        if let Some(limit) = last {
            prop_assert_eq!(read.used_at(&limit, now), bucket.used_at(&limit, now));
        }
    }

    #[test]
    fn whatever_bytes_are_found_they_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        if let Some(bucket) = Bucket::from_record(&bytes) {
            let _ = bucket.remaining(&sliding(5, MINUTE), NOW);
        }
    }
}

/// Seconds since the epoch, as `date -u -d … +%s` tells them, in microseconds.
fn at(seconds: u64) -> Micros {
    seconds * SECOND
}

#[test]
fn weeks_begin_on_mondays_and_months_and_years_when_the_calendar_says_so() {
    for (calendar, window, moment, ends) in [
        // Sunday 2026-11-22T23:59:59Z; the week ends a second later.
        (Calendar::Week, 7 * DAY, 1_795_391_999, 1_795_392_000),
        // 2024-02-28T00:00:00Z, a leap year: the month ends on 2024-03-01.
        (Calendar::Month, 30 * DAY, 1_709_078_400, 1_709_251_200),
        // 2023-02-28T00:00:00Z: on 2023-03-01.
        (Calendar::Month, 30 * DAY, 1_677_542_400, 1_677_628_800),
        // 2024-12-30T00:00:00Z, the 365th day of a leap year: it ends on 2025-01-01.
        (Calendar::Year, YEAR, 1_735_516_800, 1_735_689_600),
    ] {
        let limit = fixed(3, window, calendar);
        let mut bucket = Bucket::FULL;
        assert_eq!(bucket.take(&limit, Hits::Take(3), at(moment)), Outcome::Fits);
        let wait = at(ends) - at(moment);
        assert_eq!(
            bucket.take(&limit, Hits::Take(1), at(moment)),
            Outcome::Over(Retry::In(wait)),
            "{calendar:?}"
        );
        assert_eq!(bucket.full_in(&limit, at(moment)), wait);
        assert_eq!(bucket.remaining(&limit, at(ends) - 1), 0);
        assert_eq!(bucket.remaining(&limit, at(ends)), 3);
    }
}

#[test]
fn more_than_a_window_admits_never_fits() {
    for limit in [fixed(5, MINUTE, Calendar::Epoch), sliding(5, MINUTE)] {
        let mut bucket = Bucket::FULL;
        assert_eq!(bucket.take(&limit, Hits::Take(6), NOW), Outcome::Over(Retry::Never));
        assert_eq!(bucket, Bucket::FULL);
        assert_eq!(limit.with_burst(NonZeroU32::new(9).unwrap()), limit, "a window has no burst");
    }
}

#[test]
fn what_is_given_back_to_a_window_is_of_the_window_that_it_was_taken_in() {
    let limit = fixed(5, MINUTE, Calendar::Epoch);
    let (start, _) = limit.slot(NOW);
    let mut bucket = Bucket::FULL;
    let _ = bucket.take(&limit, Hits::Take(5), start);
    let _ = bucket.take(&limit, Hits::Refund { tokens: 2, taken: start }, start + 30 * SECOND);
    assert_eq!(bucket.remaining(&limit, start + 30 * SECOND), 2);
    let _ = bucket.take(&limit, Hits::GiveBack(99), start + 30 * SECOND);
    assert_eq!(bucket.remaining(&limit, start + 30 * SECOND), 5, "and no more than all");

    let later = start + MINUTE;
    let _ = bucket.take(&limit, Hits::Take(4), later);
    let _ = bucket.take(&limit, Hits::Refund { tokens: 2, taken: start }, later);
    assert_eq!(bucket.remaining(&limit, later), 1, "that window has turned");
    let _ = bucket.take(&limit, Hits::Refund { tokens: 2, taken: later + HOUR }, later);
    assert_eq!(bucket.remaining(&limit, later), 3, "a clock that is ahead means the one there is");
}

#[test]
fn what_is_given_back_to_a_sliding_window_leaves_the_slice_that_it_was_taken_in() {
    let limit = sliding(10, 8 * MINUTE);
    let (start, _) = limit.slot(NOW);
    let with_two_slices = || {
        let mut bucket = Bucket::FULL;
        let _ = bucket.take(&limit, Hits::Take(4), start);
        let _ = bucket.take(&limit, Hits::Take(6), start + 2 * MINUTE);
        bucket
    };
    // The first slice leaves after nine minutes, the other one two minutes later.
    let left = |bucket: &Bucket| [2, 9, 11].map(|minute| bucket.remaining(&limit, start + minute * MINUTE));
    assert_eq!(left(&with_two_slices()), [0, 4, 10]);

    let mut bucket = with_two_slices();
    let _ = bucket.take(&limit, Hits::Refund { tokens: 3, taken: start + 2 * MINUTE }, start + 2 * MINUTE);
    assert_eq!(left(&bucket), [3, 7, 10]);

    let mut bucket = with_two_slices();
    let _ = bucket.take(&limit, Hits::Refund { tokens: 99, taken: start + MINUTE - 1 }, start + 2 * MINUTE);
    assert_eq!(left(&bucket), [4, 4, 10], "as much as that slice has");

    let mut bucket = with_two_slices();
    let _ = bucket.take(&limit, Hits::GiveBack(5), start + 2 * MINUTE);
    assert_eq!(left(&bucket), [5, 5, 10], "of no slice in particular: the oldest first");
}

#[test]
fn a_changed_algorithm_starts_from_what_the_current_unit_has_used() {
    let tokens = limit(60, MINUTE);
    let limits =
        [tokens, fixed(60, HOUR, Calendar::Epoch), sliding(60, HOUR), fixed(60, 30 * DAY, Calendar::Month)];
    for old in &limits {
        for new in &limits {
            let mut bucket = Bucket::FULL;
            let _ = bucket.take(old, Hits::Take(40), NOW);
            assert_eq!(bucket.remaining(&new.since(NOW), NOW), 20, "{old:?} {new:?}");
            assert_eq!(bucket.take(new, Hits::Take(21), NOW), Outcome::Over(bucket_wait(new, 21)));
            assert_eq!(bucket.take(new, Hits::Take(20), NOW), Outcome::Fits);
        }
    }
}

/// How long somebody who has 20 of 60 left waits for so many.
fn bucket_wait(limit: &Limit, hits: u64) -> Retry {
    Retry::In(match limit.algorithm() {
        Algorithm::TokenBucket => (hits - 20) * SECOND,
        Algorithm::FixedWindow(_) => {
            let (start, length) = limit.slot(NOW);
            start + length - NOW
        }
        Algorithm::SlidingWindow => {
            let (start, length) = limit.slot(NOW);
            start + 9 * length - NOW
        }
    })
}

#[test]
fn a_window_that_becomes_a_token_bucket_forgets_what_its_old_windows_used() {
    let old = fixed(60, MINUTE, Calendar::Epoch);
    let mut bucket = Bucket::FULL;
    let _ = bucket.take(&old, Hits::Take(60), NOW);
    let new = limit(30, HOUR).since(NOW);
    assert_eq!(bucket.remaining(&new, NOW), 0, "never above the new burst");
    assert_eq!(bucket.full_in(&new, NOW), HOUR, "nobody waits longer than the new limit takes to refill");
    assert_eq!(bucket.remaining(&new, NOW + MINUTE), 30, "that window has turned");
}

#[test]
fn a_longer_or_shorter_window_keeps_what_the_current_one_has_used() {
    let mut bucket = Bucket::FULL;
    let _ = bucket.take(&sliding(10, MINUTE), Hits::Take(8), NOW);
    let slower = sliding(10, HOUR);
    assert_eq!(bucket.remaining(&slower, NOW), 2);
    assert_eq!(bucket.take(&slower, Hits::Take(2), NOW), Outcome::Fits);
    assert_eq!(bucket.remaining(&slower, NOW + 50 * MINUTE), 0);
    let larger = sliding(30, HOUR);
    assert_eq!(bucket.remaining(&larger, NOW), 20, "and a larger limit has the difference at once");
}

#[test]
fn buckets_of_windows_know_when_they_may_be_forgotten() {
    let limit = sliding(4, 8 * MINUTE);
    let (start, _) = limit.slot(NOW);
    let mut bucket = Bucket::FULL;
    assert_eq!((bucket.full_at(), bucket.token_at()), (0, 0));
    let _ = bucket.take(&limit, Hits::Take(2), start);
    let _ = bucket.take(&limit, Hits::Take(1), start + MINUTE);
    assert_eq!((bucket.full_at(), bucket.token_at()), (start + 10 * MINUTE, 0));
    let _ = bucket.take(&limit, Hits::Take(1), start + MINUTE);
    assert_eq!((bucket.full_at(), bucket.token_at()), (start + 10 * MINUTE, start + 9 * MINUTE));
    let _ = bucket.take(&limit, Hits::GiveBack(4), start + MINUTE);
    assert_eq!((bucket.full_at(), bucket.token_at()), (0, 0));
    assert_eq!(bucket.to_record(), None);
}
