//! The script against the arithmetic here, on a real Redis whose clock the test sets.

use std::num::{NonZeroU32, NonZeroU64};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use redis::{ConnectionLike, Value};

use super::script::{Batch, DECIDE, Decided, How, NamedCharge};
use super::server::RedisServer;
use crate::bucket::{Bucket, Calendar, Hits, Limit};
use crate::clock::Micros;
use crate::decision::{BucketKey, Charge, Decision, Mode, RuleId};
use crate::store::{Identity as _, NameBuilder};

const SECOND: Micros = 1_000_000;
const HOUR: Micros = 3_600 * SECOND;
const NOW: Micros = 1_790_000_000_000_000;
const BUCKETS: u32 = 5;

/// A Redis on which the script takes its time from the test.
struct Fixture {
    _server: RedisServer,
    connection: redis::Connection,
    script: String,
    number: u64,
}

impl Fixture {
    fn start() -> Self {
        let server = RedisServer::start();
        let script = DECIDE.replace("call('TIME')", "{ ARGV[6], ARGV[7] }");
        assert_ne!(script, DECIDE, "the script reads the time");
        Self { connection: server.connection(), _server: server, script, number: 0 }
    }

    /// Keeps records however soon they would be full: the server's own clock goes on while the test's stands still.
    fn without_expiry(mut self) -> Self {
        let script = self.script.replace("record, 'PX', left)", "record, 'PX', '100000000')");
        assert_ne!(script, self.script);
        self.script = script;
        self
    }

    fn forget(&mut self) {
        redis::cmd("FLUSHALL").query::<()>(&mut self.connection).unwrap();
    }

    /// Has requests decided as one batch at `now`.
    fn run(&mut self, requests: &[Vec<NamedCharge>], now: Micros) -> Vec<Decided> {
        self.number += 1;
        self.run_as(self.number, requests, now)
    }

    fn run_as(&mut self, number: u64, requests: &[Vec<NamedCharge>], now: Micros) -> Vec<Decided> {
        let mut batch = Batch::default();
        requests.iter().for_each(|request| batch.push(request));
        let mut command = batch.command(How::Source(&self.script), (&b"note"[..], number));
        command.arg(now / SECOND).arg(now % SECOND);
        let reply: Value = self.connection.req_packed_command(&command.get_packed_command()).unwrap();
        let reply = batch.read(reply).unwrap();
        assert_eq!(reply.parted, 0, "the script and the arithmetic decide alike");
        reply.decided
    }

    fn record(&mut self, bucket: u32) -> Option<Vec<u8>> {
        redis::cmd("GET").arg(&name(bucket)[..]).query(&mut self.connection).unwrap()
    }
}

fn name(bucket: u32) -> bytes::Bytes {
    let mut name = NameBuilder::new("api");
    name.entry(b"user", bucket.to_string().as_bytes());
    name.limit(b"minute")
}

fn charge(bucket: u32, limit: Limit, hits: Hits, mode: Mode) -> NamedCharge {
    let charge = Charge {
        bucket: BucketKey(bucket.into()),
        rule: RuleId(0),
        limit,
        hits,
        mode,
        on_redis_failure: None,
    };
    NamedCharge { charge, name: name(bucket) }
}

fn limit(requests: u32, window: Micros, burst: u32) -> Limit {
    Limit::new(NonZeroU32::new(requests).unwrap(), NonZeroU64::new(window).unwrap())
        .with_burst(NonZeroU32::new(burst).unwrap())
}

fn limits() -> impl Strategy<Value = Limit> {
    let usual = (1..50u32, prop::sample::select(vec![SECOND, 60 * SECOND, HOUR, 365 * 24 * HOUR]), 1..50u32)
        .prop_map(|(requests, window, burst)| limit(requests, window, burst));
    let since = prop_oneof![Just(0), Just(Micros::MAX), (0..2 * HOUR).prop_map(|after| NOW + after)];
    let day = 24 * HOUR;
    let windows =
        (1..50u32, prop::sample::select(vec![1_000, SECOND, 60 * SECOND, HOUR, day, 77_777]), 0..8u8);
    let windows = windows.prop_map(move |(requests, window, kind)| {
        let requests = NonZeroU32::new(requests).unwrap();
        let length = |micros| NonZeroU64::new(micros).unwrap();
        match kind {
            0 => Limit::fixed_window(requests, length(7 * day), Calendar::Week),
            1 => Limit::fixed_window(requests, length(30 * day), Calendar::Month),
            2 => Limit::fixed_window(requests, length(365 * day), Calendar::Year),
            3 | 4 => Limit::fixed_window(requests, length(window), Calendar::Epoch),
            _ => Limit::sliding_window(requests, length(window)),
        }
    });
    let debts = prop::sample::select(vec![0.0, 0.5, 10.0]);
    prop_oneof![
        9 => usual,
        9 => windows,
        1 => Just(limit(u32::MAX, SECOND, u32::MAX)),
        1 => Just(Limit::blocked(NonZeroU64::new(HOUR).unwrap())),
    ]
    .prop_flat_map(move |limit| {
        (since.clone(), debts.clone()).prop_map(move |(since, debt)| limit.since(since).with_max_debt(debt))
    })
}

fn hits() -> impl Strategy<Value = Hits> {
    let hour = i64::try_from(HOUR).unwrap();
    let moment =
        prop_oneof![4 => -3_000_000..3_000_000i64, 2 => -2 * hour..2 * hour, 1 => -400 * 24 * hour..0]
            .prop_map(|after| NOW.saturating_add_signed(after));
    prop_oneof![
        8 => (1..20u64).prop_map(Hits::Take),
        1 => Just(Hits::Take(u64::MAX)),
        1 => Just(Hits::Peek),
        1 => (0..30u64).prop_map(Hits::GiveBack),
        1 => prop_oneof![9 => 1..60u64, 1 => Just(u64::MAX)].prop_map(Hits::Overdraft),
        1 => (1..30u64, moment.clone()).prop_map(|(tokens, taken)| Hits::Refund { tokens, taken }),
        1 => (-30.0..60.0f64, moment.clone()).prop_map(|(tokens, at)| Hits::Add { tokens, at }),
        1 => (0.0..60.0f64, moment).prop_map(|(tokens, at)| Hits::Raise { tokens, at }),
    ]
}

/// Charges of requests; most say of a bucket's limit nothing, so that it stays what it is through the case.
fn requests() -> impl Strategy<Value = Vec<(u32, Option<Limit>, Hits, Mode)>> {
    let mode = prop_oneof![4 => Just(Mode::Enforced), 1 => Just(Mode::Quota), 1 => Just(Mode::Shadow)];
    let limit = prop_oneof![9 => Just(None), 1 => limits().prop_map(Some)];
    prop::collection::vec((0..BUCKETS, limit, hits(), mode), 1..5)
}

/// What is charged to buckets of these limits.
fn charges(request: &[(u32, Option<Limit>, Hits, Mode)], own: &[Limit]) -> Vec<NamedCharge> {
    let charges = request.iter().map(|(bucket, limit, hits, mode)| {
        charge(*bucket, limit.unwrap_or(own[*bucket as usize]), *hits, *mode)
    });
    charges.collect()
}

fn own_limits() -> impl Strategy<Value = Vec<Limit>> {
    prop::collection::vec(limits(), BUCKETS as usize)
}

/// Batches, each at so many microseconds after the one before, or before it.
fn batches() -> impl Strategy<Value = Vec<(Vec<Vec<NamedCharge>>, i64)>> {
    let hour = i64::try_from(HOUR).unwrap();
    let step = prop_oneof![
        12 => 0..3_000_000i64, 4 => 0..hour, 2 => -hour..0, 2 => Just(0), 1 => 0..40 * 24 * hour, 1 => -9_000..0i64
    ];
    let batches = prop::collection::vec((prop::collection::vec(requests(), 1..6), step), 1..12);
    (own_limits(), batches).prop_map(|(own, batches)| {
        let batch =
            |requests: Vec<_>| requests.iter().map(|request: &Vec<_>| charges(request, &own)).collect();
        batches.into_iter().map(|(requests, step)| (batch(requests), step)).collect()
    })
}

fn decision(decided: &Decided) -> &Decision {
    match decided {
        Decided::Answered(answered) => &answered.decision,
        Decided::Unreadable => panic!("unreadable"),
    }
}

/// The arithmetic here, one request after the other, and what it leaves.
fn by_hand(buckets: &mut [Bucket], request: &[NamedCharge], now: Micros) -> Decision {
    let charges: Vec<Charge> = request.iter().map(|named| named.charge).collect();
    let places: Vec<usize> = charges.iter().map(|charge| usize::try_from(charge.bucket.0).unwrap()).collect();
    crate::decision::decide(&charges, &places, buckets, now)
}

#[test]
fn the_script_decides_and_stores_what_the_arithmetic_does_in_thousands_of_batches() {
    let mut fixture = Fixture::start().without_expiry();
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 1_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let fixture = std::cell::RefCell::new(&mut fixture);
    runner
        .run(&batches(), |batches| {
            let mut fixture = fixture.borrow_mut();
            fixture.forget();
            let mut buckets = vec![Bucket::FULL; BUCKETS as usize];
            let mut now = NOW;
            for (requests, step) in batches {
                now = now.saturating_add_signed(step);
                let decided = fixture.run(&requests, now);
                for (request, decided) in requests.iter().zip(&decided) {
                    prop_assert_eq!(decision(decided), &by_hand(&mut buckets, request, now));
                }
                for (number, bucket) in (0..BUCKETS).zip(&buckets) {
                    prop_assert_eq!(fixture.record(number), bucket.to_record());
                }
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_batch_decides_as_its_requests_would_be_decided_one_by_one() {
    let mut fixture = Fixture::start().without_expiry();
    let mut runner = TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let fixture = std::cell::RefCell::new(&mut fixture);
    runner
        .run(&(own_limits(), prop::collection::vec(requests(), 1..40)), |(own, requests)| {
            let requests: Vec<_> = requests.iter().map(|request| charges(request, &own)).collect();
            let mut fixture = fixture.borrow_mut();
            fixture.forget();
            let one_by_one: Vec<Decided> =
                requests.iter().flat_map(|request| fixture.run(std::slice::from_ref(request), NOW)).collect();
            fixture.forget();
            let batched = fixture.run(&requests, NOW);
            // A bucket that is full may be kept or not.
            let decisions = |all: &[Decided]| all.iter().map(|one| decision(one).clone()).collect::<Vec<_>>();
            prop_assert_eq!(decisions(&batched), decisions(&one_by_one));
            Ok(())
        })
        .unwrap();
}

#[test]
fn the_same_batch_sent_twice_is_applied_once() {
    let mut fixture = Fixture::start();
    let limit = limit(10, HOUR, 10);
    let take = |hits| vec![charge(0, limit, Hits::Take(hits), Mode::Enforced)];
    let requests = [take(6), take(6), take(3)];
    let first = fixture.run_as(1, &requests, NOW);
    let again = fixture.run_as(1, &requests, NOW);
    let denied =
        |decided: &[Decided]| decided.iter().map(|decided| decision(decided).denied).collect::<Vec<_>>();
    assert_eq!(denied(&first), [false, true, false]);
    assert_eq!(denied(&again), denied(&first));
    assert_eq!(decision(&again[0]).verdicts[0].remaining, 1, "what is left by now");
    assert_eq!(
        decision(&fixture.run_as(2, &[take(1)], NOW)[0]).verdicts[0].remaining,
        0,
        "nothing was charged twice"
    );
}

#[test]
fn a_batch_without_a_note_touches_its_buckets_only_and_is_decided_each_time() {
    let mut fixture = Fixture::start();
    let limit = limit(10, HOUR, 10);
    let mut batch = Batch::default();
    batch.push(&[charge(0, limit, Hits::Take(3), Mode::Enforced)]);
    for left in [7, 4] {
        let mut command = batch.command(How::Source(&fixture.script), None);
        command.arg(NOW / SECOND).arg(NOW % SECOND);
        let reply: Value = command.query(&mut fixture.connection).unwrap();
        assert_eq!(decision(&batch.read(reply).unwrap().decided[0]).verdicts[0].remaining, left);
    }
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut fixture.connection).unwrap();
    assert_eq!(keys, [String::from_utf8(name(0).to_vec()).unwrap()]);
}

#[test]
fn a_batch_that_comes_after_a_newer_one_of_its_lane_is_not_applied_and_does_not_hide_it() {
    let mut fixture = Fixture::start();
    let limit = limit(10, HOUR, 10);
    let take = [vec![charge(0, limit, Hits::Take(1), Mode::Enforced)]];
    fixture.run_as(2, &take, NOW);
    let mut late = Batch::default();
    late.push(&take[0]);
    let mut command = late.command(How::Source(&fixture.script), (&b"note"[..], 1));
    command.arg(NOW / SECOND).arg(0);
    let error = command.query::<Value>(&mut fixture.connection).unwrap_err();
    assert!(error.to_string().contains("after a newer one"), "{error}");
    let again = fixture.run_as(2, &take, NOW);
    assert_eq!(decision(&again[0]).verdicts[0].remaining, 9, "applied once");
}

#[test]
fn a_key_of_another_kind_fails_its_own_requests_and_no_neighbours() {
    let mut fixture = Fixture::start();
    let limit = limit(10, HOUR, 10);
    let take = |bucket| charge(bucket, limit, Hits::Take(4), Mode::Enforced);
    redis::cmd("RPUSH").arg(&name(0)[..]).arg("x").query::<()>(&mut fixture.connection).unwrap();
    redis::cmd("SET").arg(&name(1)[..]).arg("no record").query::<()>(&mut fixture.connection).unwrap();
    let odd = [
        [f64::NAN, 0.0, 1.0],
        [1.0, 0.0, f64::INFINITY],
        [f64::INFINITY, 0.0, 1.0],
        [1.0, f64::NEG_INFINITY, 1.0],
        [-1.0, 0.0, 1.0],
        [1.0, 0.0, 0.0],
    ];
    for odd in odd {
        let mut record = vec![1];
        record.extend(odd.into_iter().flat_map(f64::to_le_bytes));
        redis::cmd("SET").arg(&name(2)[..]).arg(&record).query::<()>(&mut fixture.connection).unwrap();
        let give_back = charge(2, limit, Hits::GiveBack(1), Mode::Enforced);
        assert_eq!(fixture.run(&[vec![give_back]], NOW), [Decided::Unreadable], "{odd:?}");
    }

    let requests =
        [vec![take(3)], vec![take(0)], vec![take(3), take(1)], vec![take(2)], vec![take(3)], vec![take(4)]];
    for round in [0, 1] {
        let decided = fixture.run(&requests, NOW);
        let unreadable: Vec<bool> = decided.iter().map(|decided| *decided == Decided::Unreadable).collect();
        assert_eq!(unreadable, [false, true, true, true, false, false], "round {round}");
    }
    let peek = fixture.run(&[vec![charge(3, limit, Hits::Peek, Mode::Enforced)]], NOW);
    assert_eq!(decision(&peek[0]).verdicts[0].remaining, 2, "two of the four takes fitted");
    let kind: String = redis::cmd("TYPE").arg(&name(0)[..]).query(&mut fixture.connection).unwrap();
    assert_eq!(kind, "list", "what is not ours is left alone");
}

#[test]
fn what_lands_anyway_lands_in_a_denied_request_but_nothing_beside_a_bucket_that_cannot_be_read() {
    let mut fixture = Fixture::start();
    let limit = limit(10, HOUR, 10);
    let of = |bucket, hits| charge(bucket, limit, hits, Mode::Enforced);
    redis::cmd("RPUSH").arg(&name(4)[..]).arg("x").query::<()>(&mut fixture.connection).unwrap();
    let decided = fixture.run(
        &[
            vec![of(0, Hits::Overdraft(25)), of(1, Hits::Take(11)), of(2, Hits::Take(1))],
            vec![of(0, Hits::Overdraft(5)), of(4, Hits::Take(1)), of(2, Hits::Take(2))],
            vec![of(3, Hits::Add { tokens: 2.5, at: NOW }), of(3, Hits::Raise { tokens: 4.0, at: NOW })],
        ],
        NOW,
    );
    assert!(decision(&decided[0]).denied && decided[1] == Decided::Unreadable);
    let used = |bucket| {
        let record = fixture.record(bucket).map(|record| Bucket::from_record(&record).unwrap());
        record.map_or(0, |bucket| bucket.full_in(&limit, NOW) / (HOUR / 10))
    };
    let mut used = used;
    assert_eq!((used(0), used(1), used(2), used(3)), (25, 0, 0, 4));
}

#[test]
fn a_bucket_of_windows_expires_when_it_counts_nothing_any_more_and_a_debt_when_it_is_paid() {
    let mut fixture = Fixture::start();
    let (requests, hour) = (NonZeroU32::new(10).unwrap(), NonZeroU64::new(HOUR).unwrap());
    let fixed = Limit::fixed_window(requests, hour, Calendar::Epoch);
    let sliding = Limit::sliding_window(requests, hour);
    let start = NOW / HOUR * HOUR;
    let take = |bucket, limit, hits| vec![charge(bucket, limit, hits, Mode::Enforced)];
    fixture.run(
        &[
            take(0, fixed, Hits::Take(1)),
            take(1, sliding, Hits::Take(1)),
            take(2, limit(10, HOUR, 10), Hits::Overdraft(20)),
        ],
        start + HOUR / 4,
    );
    for (bucket, millis) in [(0, 2_700_000), (1, 4_050_000), (2, 7_200_000)] {
        let ttl: i64 = redis::cmd("PTTL").arg(&name(bucket)[..]).query(&mut fixture.connection).unwrap();
        assert!((millis - 60_000..=millis).contains(&ttl), "{ttl} of {millis} ms");
    }
    fixture.run(&[take(0, fixed, Hits::GiveBack(9)), take(1, sliding, Hits::GiveBack(9))], start + HOUR / 4);
    assert_eq!((fixture.record(0), fixture.record(1)), (None, None));
}

#[test]
fn the_script_knows_the_calendar_day_by_day() {
    let mut fixture = Fixture::start().without_expiry();
    let requests = NonZeroU32::new(1).unwrap();
    let day = 24 * HOUR;
    let units = [(7, Calendar::Week), (30, Calendar::Month), (365, Calendar::Year)];
    // 2023-01-01 to 2029-01-01, of which 2024 and 2028 are leap years; and the turn of 2100, which is none.
    let days = (19_358..21_550).chain(47_479..47_485).chain(47_535..47_545);
    for n in days {
        for now in [n * day, n * day + day - 1] {
            let requests: Vec<_> = units
                .iter()
                .zip(0..)
                .map(|((days, calendar), bucket)| {
                    let window = NonZeroU64::new(days * day).unwrap();
                    let limit = Limit::fixed_window(requests, window, *calendar);
                    vec![charge(bucket, limit, Hits::Overdraft(1), Mode::Enforced)]
                })
                .collect();
            fixture.forget();
            let decided = fixture.run(&requests, now);
            let mut buckets = vec![Bucket::FULL; BUCKETS as usize];
            for (request, decided) in requests.iter().zip(&decided) {
                assert_eq!(decision(decided), &by_hand(&mut buckets, request, now));
            }
            for (number, bucket) in (0..3).zip(&buckets) {
                assert_eq!(fixture.record(number), bucket.to_record(), "day {n}, {now}");
            }
        }
    }
}

#[test]
fn every_key_expires_when_its_bucket_would_be_full_and_a_full_bucket_has_none() {
    let mut fixture = Fixture::start();
    let limit = limit(60, HOUR, 60);
    fixture.run(&[vec![charge(0, limit, Hits::Take(30), Mode::Enforced)]], NOW);
    let ttl: i64 = redis::cmd("PTTL").arg(&name(0)[..]).query(&mut fixture.connection).unwrap();
    assert!((1_799_000..=1_800_000).contains(&ttl), "half an hour, not {ttl} ms");
    let ttl: i64 = redis::cmd("PTTL").arg("note").query(&mut fixture.connection).unwrap();
    assert!(ttl > 0);
    fixture.run(&[vec![charge(0, limit, Hits::GiveBack(30), Mode::Enforced)]], NOW);
    assert_eq!(fixture.record(0), None);
}

#[test]
fn a_batch_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut fixture = Fixture::start();
    let doubles = [1.0, 0.0, 10.0, 10.0f64].into_iter().flat_map(f64::to_le_bytes);
    let limits: Vec<u8> = std::iter::once(1).chain(doubles).collect();
    let charge = |bucket: u16, limit: u16, kind: u8| -> Vec<u8> {
        let mut charge = [bucket.to_le_bytes(), limit.to_le_bytes()].concat();
        charge.push(kind);
        charge.extend(1.0f64.to_le_bytes());
        charge
    };
    for (limits, charges) in [
        (vec![], charge(0, 0, 32)),
        (limits.clone(), vec![]),
        (limits.clone(), charge(0, 0, 32 + 7)),
        (limits.clone(), charge(0, 0, 32 + 3)),
        (limits.clone(), charge(0, 0, 32 + 32)),
        (limits.clone(), charge(0, 0, 64 + 8)),
        (limits.clone(), vec![0; 5]),
        (limits[1..].to_vec(), charge(0, 0, 32)),
        (limits.clone(), charge(1, 0, 32)),
        (limits.clone(), charge(0, 1, 32)),
        (limits.clone(), [charge(0, 0, 32), charge(0, 0, 0)].concat()),
    ] {
        let mut command = redis::cmd("EVAL");
        command.arg(&fixture.script).arg(2).arg("note").arg(&name(0)[..]);
        command.arg(7).arg(1_000).arg(limits).arg(charges).arg("").arg(NOW / SECOND).arg(0);
        let error = command.query::<Value>(&mut fixture.connection).unwrap_err();
        assert!(error.to_string().contains("weir: "), "{error}");
        assert_eq!(fixture.record(0), None);
    }
}

#[test]
fn the_script_uses_no_command_that_redis_6_does_not_have() {
    let mut fixture = Fixture::start();
    let mut names: Vec<&str> =
        DECIDE.split("call('").skip(1).filter_map(|rest| rest.split('\'').next()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(
        names,
        ["DEL", "EXISTS", "GET", "MGET", "SET", "TIME"],
        "those that the manual says a user needs"
    );
    for name in names {
        let documented: Vec<std::collections::HashMap<String, Value>> =
            match redis::cmd("COMMAND").arg("DOCS").arg(name).query(&mut fixture.connection).unwrap() {
                Value::Array(pair) => pair
                    .into_iter()
                    .filter(|part| matches!(part, Value::Array(_) | Value::Map(_)))
                    .map(|docs| redis::from_redis_value(docs).unwrap())
                    .collect(),
                other => panic!("{other:?}"),
            };
        let since: String = redis::from_redis_value(documented[0]["since"].clone()).unwrap();
        assert!(since.split('.').next().unwrap().parse::<u32>().unwrap() < 6, "{name} since {since}");
    }
    // Of SET, only what has been there since 2.6; a header such as `#!lua` is understood since 7.0.
    assert!(!DECIDE.starts_with("#!"));
    for newer in ["KEEPTTL", "GETEX", "PXAT", "redis.setresp", "redis.REDIS_VERSION", "redis.acl_check_cmd"] {
        assert!(!DECIDE.contains(newer), "{newer} is newer");
    }
}
