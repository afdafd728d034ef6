//! Buckets that replicas hold shares of while the shared one is away, and what becomes of them when it is back.

use super::*;

fn replicas(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

/// Hands a replica's contribution over to the shared bucket.
fn hand_over(
    shared: &mut Bucket,
    local: &Bucket,
    start: &Bucket,
    (whole, share): (&Limit, &Limit),
    now: Micros,
) {
    for hits in local.contribution(start, share, now) {
        assert_eq!(shared.take(whole, hits, now), Outcome::Fits);
    }
}

/// A limit with room for what the tests take, of every algorithm.
fn roomy() -> impl Strategy<Value = Limit> {
    prop_oneof![
        (1_000..100_000u32, windows()).prop_map(|(requests, window)| limit(requests, window)),
        (1_000..100_000u32, calendars())
            .prop_map(|(requests, (window, calendar))| fixed(requests, window, calendar)),
        (1_000..100_000u32, windows()).prop_map(|(requests, window)| sliding(requests, window)),
    ]
}

/// What was used before an outage, and what each replica takes in it: hits, and a pause before each.
fn outages() -> impl Strategy<Value = (u64, Vec<(Micros, u64)>)> {
    let pause = prop_oneof![3 => 0..SECOND, 2 => 0..MINUTE, 1 => 0..HOUR];
    (0..900u64, prop::collection::vec((pause, 1..20u64), 0..20))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// The one replica there is: afterwards the shared bucket is as if it had never been away.
    #[test]
    fn what_one_replica_took_is_what_the_shared_bucket_would_have_been_charged(
        limit in any_limit(),
        (used, takes) in outages(),
        after in 0..HOUR,
    ) {
        let mut shared = Bucket::FULL;
        let _ = shared.take(&limit, Hits::Overdraft(used), NOW);
        let start = shared.share(&limit, replicas(1), NOW);
        let (mut oracle, mut local, mut now) = (shared.clone(), start.clone(), NOW);
        for (pause, hits) in takes {
            now += pause;
            let outcome = local.take(&limit, Hits::Take(hits), now);
            prop_assert_eq!(outcome, oracle.take(&limit, Hits::Take(hits), now));
        }
        now += after;
        hand_over(&mut shared, &local, &start, (&limit, &limit), now);
        let (is, would_be) = (shared.used_at(&limit, now), oracle.used_at(&limit, now));
        prop_assert!((is - would_be).abs() <= 1e-6 * (1.0 + would_be), "{} instead of {}", is, would_be);
    }

    /// Several replicas among which callers are spread evenly.
    #[test]
    fn what_replicas_took_is_what_the_shared_bucket_would_have_been_charged(
        limit in roomy(),
        count in 1..5u32,
        (used, takes) in outages(),
        after in 0..HOUR,
    ) {
        let share = limit.share(replicas(count));
        let mut shared = Bucket::FULL;
        let _ = shared.take(&limit, Hits::Take(used), NOW);
        let start = shared.share(&limit, replicas(count), NOW);
        let mut locals = vec![start.clone(); count as usize];
        let (mut oracle, mut now) = (shared.clone(), NOW);
        for (pause, hits) in takes {
            now += pause;
            for local in &mut locals {
                if local.take(&share, Hits::Take(hits), now) == Outcome::Fits {
                    let _ = oracle.take(&limit, Hits::Overdraft(hits), now);
                }
            }
        }
        now += after;
        for local in &locals {
            hand_over(&mut shared, local, &start, (&limit, &share), now);
        }
        let (is, would_be) = (shared.used_at(&limit, now), oracle.used_at(&limit, now));
        prop_assert!((is - would_be).abs() <= 1e-6 * (1.0 + would_be), "{} instead of {}", is, would_be);
    }

    /// However uneven: what is handed over is never less than what was taken, but for what has flowed back; nor does it
    /// come to more than the shares hold, so that nobody is locked out for longer than a refill.
    #[test]
    fn uneven_replicas_hand_over_no_less_than_was_taken_and_no_more_than_they_hold(
        (requests, window) in (1..100_000u32, windows()),
        count in 1..5u32,
        takes in prop::collection::vec((0..10 * MINUTE, 1..20u64, 0..4usize), 0..40),
    ) {
        let limit = limit(requests, window);
        let share = limit.share(replicas(count));
        let start = Bucket::FULL;
        let mut locals = vec![start.clone(); count as usize];
        let (mut shared, mut oracle, mut now) = (Bucket::FULL, Bucket::FULL, NOW);
        for (pause, hits, replica) in takes {
            now += pause;
            let replica = replica % locals.len();
            if locals[replica].take(&share, Hits::Take(hits), now) == Outcome::Fits {
                let _ = oracle.take(&limit, Hits::Overdraft(hits), now);
            }
        }
        for local in &locals {
            hand_over(&mut shared, local, &start, (&limit, &share), now);
        }
        let (is, at_least) = (shared.used_at(&limit, now), oracle.used_at(&limit, now));
        prop_assert!(is + 1e-6 * (1.0 + is) >= at_least, "{} of at least {}", is, at_least);
        let held = f64::from(count) * share.burst().max(share.largest());
        prop_assert!(is <= held + 1e-6, "{} of at most {}", is, held);
    }

    /// A Redis that came back empty is raised to what the replicas knew.
    #[test]
    fn what_a_replica_knows_raises_an_empty_bucket_to_it_and_leaves_a_fuller_one_alone(
        limit in any_limit(),
        used in 1..900u64,
        idle in 0..HOUR,
    ) {
        let mut known = Bucket::FULL;
        let _ = known.take(&limit, Hits::Overdraft(used), NOW);
        let now = NOW + idle;
        let mut shared = Bucket::FULL;
        for _ in 0..2 {
            for hits in known.at_least(&limit, now) {
                let _ = shared.take(&limit, hits, now);
            }
            prop_assert_eq!(shared.used_at(&limit, now), known.used_at(&limit, now));
        }
        let _ = shared.take(&limit, Hits::Overdraft(3), now);
        let fuller = shared.used_at(&limit, now);
        for hits in known.at_least(&limit, now) {
            let _ = shared.take(&limit, hits, now);
        }
        prop_assert_eq!(shared.used_at(&limit, now), fuller);
    }
}

#[test]
fn an_hour_long_outage_locks_nobody_out() {
    // Sixty a minute, all of it used all the time by callers of two replicas: an hour's hits are 3600.
    let limit = limit(60, MINUTE);
    let share = limit.share(replicas(2));
    let mut shared = Bucket::FULL;
    let _ = shared.take(&limit, Hits::Take(60), NOW);
    let start = shared.share(&limit, replicas(2), NOW);
    let mut locals = [start.clone(), start.clone()];
    let mut admitted = 0;
    for second in 1..=3_600 {
        for local in &mut locals {
            while local.take(&share, Hits::Take(1), NOW + second * SECOND) == Outcome::Fits {
                admitted += 1;
            }
        }
    }
    assert_eq!(admitted, 3_600);
    let now = NOW + HOUR;
    for local in &locals {
        hand_over(&mut shared, local, &start, (&limit, &share), now);
    }
    assert_eq!(shared.remaining(&limit, now), 0, "the exhausted are exhausted");
    assert_eq!(
        shared.take(&limit, Hits::Take(1), now),
        Outcome::Over(Retry::In(SECOND)),
        "and wait no longer for that"
    );
}

#[test]
fn a_share_is_at_least_a_token_and_admits_what_fits_the_whole_limit_as_debt() {
    let limit = limit(10, MINUTE);
    assert_eq!(self::limit(1, MINUTE).share(replicas(8)).burst(), 1.0);
    assert_eq!(Limit::blocked(NonZeroU64::new(MINUTE).unwrap()).share(replicas(8)).burst(), 0.0);
    let share = limit.share(replicas(4));
    let mut bucket = Bucket::FULL;
    assert_eq!(bucket.take(&share, Hits::Take(11), NOW), Outcome::Over(Retry::Never));
    assert_eq!(bucket.take(&share, Hits::Take(8), NOW), Outcome::Fits, "the bucket is full");
    // A quarter of ten a minute flows back: 8 in 192 seconds.
    assert_eq!(bucket.take(&share, Hits::Take(8), NOW), Outcome::Over(Retry::In(192 * SECOND)));
    assert_eq!(bucket.take(&share, Hits::Take(1), NOW), Outcome::Over(Retry::In(156 * SECOND)));
    assert_eq!(bucket.take(&share, Hits::Take(8), NOW + 192 * SECOND), Outcome::Fits);
}

#[test]
fn a_refund_in_an_outage_is_handed_over_too() {
    let limit = limit(60, HOUR);
    let mut shared = Bucket::FULL;
    let _ = shared.take(&limit, Hits::Take(40), NOW);
    let start = shared.share(&limit, replicas(1), NOW);
    let mut local = start.clone();
    let _ = local.take(&limit, Hits::GiveBack(10), NOW);
    hand_over(&mut shared, &local, &start, (&limit, &limit), NOW);
    assert_eq!(shared.remaining(&limit, NOW), 30);
}

#[test]
fn windows_are_handed_over_only_while_they_count() {
    let limit = fixed(100, MINUTE, Calendar::Epoch);
    let (minute, _) = limit.slot(NOW);
    let mut shared = Bucket::FULL;
    let start = shared.share(&limit, replicas(1), minute);
    let mut local = start.clone();
    let _ = local.take(&limit, Hits::Take(70), minute);
    assert_eq!(
        local.contribution(&start, &limit, minute + MINUTE),
        Corrections::new(),
        "it has turned by then"
    );
    let contribution = local.contribution(&start, &limit, minute + 59 * SECOND);
    for hits in contribution {
        let _ = shared.take(&limit, hits, minute + MINUTE);
    }
    assert_eq!(shared.remaining(&limit, minute + MINUTE), 100, "it turned on the way");
}
