//! All at once and for long: callers who are ever new, rules that are replaced each second, a Redis that is restarted.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use weir::clock;

use super::drill::{Held, IN_TIME, may_take, of, soak, with_redis};
use crate::support::redis::RedisServer;
use crate::support::server::rules;
use crate::support::steady::Steady;
use crate::support::weir::Weir;

/// Calls a second.
const RATE: u32 = 200;

/// Local buckets, fewer than there are callers in a part.
const CAP: &str = "500";

/// The rules, as they are after so many changes.
fn text(changes: u32) -> String {
    format!(
        "domain: api
descriptors:
  - {{ key: user, rate_limit: {{ unit: minute, requests_per_unit: {} }} }}
",
        10 + changes % 50
    )
}

/// Replaces the rules each second and restarts Redis after every fifth time, until it is told to stop. Returns how often it
/// did which.
fn disturb(rules: &Path, redis: &mut RedisServer, stop: &AtomicBool) -> (usize, usize) {
    let (mut reloads, mut restarts) = (0, 0);
    while !stop.load(Ordering::SeqCst) {
        let (new, old) = (rules.join(".new"), rules.join("rules.yaml"));
        fs::write(&new, text(reloads)).unwrap();
        fs::rename(new, old).unwrap();
        reloads += 1;
        thread::sleep(Duration::from_secs(1));
        if reloads % 5 == 3 {
            redis.kill();
            thread::sleep(Duration::from_millis(500));
            redis.start_again();
            restarts += 1;
        }
    }
    (reloads.try_into().unwrap(), restarts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_memory_nor_latency_grows_with_time_and_no_call_fails() {
    let mut redis = RedisServer::start();
    let rules = rules(&text(0));
    let weir = with_redis(rules.path(), &redis.url(), &["--max-buckets", CAP]);
    let control = Weir::start(rules.path());
    weir.await_closed();

    let stop = Arc::new(AtomicBool::new(false));
    let (path, stopped) = (rules.path().to_owned(), Arc::clone(&stop));
    let disturbing = thread::spawn(move || {
        let done = disturb(&path, &mut redis, &stopped);
        (redis, done)
    });

    // The first one is for what is paid once only.
    let mut parts = Vec::new();
    for part in 0..5_u64 {
        let newcomer = move |n: u64| of("user", &format!("{part}-{n}"));
        let load = Steady::start(weir.grpc(), RATE, newcomer).await;
        let beside = Steady::start(control.grpc(), RATE, newcomer).await;
        let until = clock::instant() + soak() / 4;
        tokio::time::sleep_until(until).await;
        let (outcome, beside) = (load.stop().await, beside.stop().await);
        assert_eq!(outcome.failed, [""; 0], "in part {part}");
        assert!(outcome.calls() > u64::from(RATE), "there was a load");
        let held = Held::by(&weir);
        println!(
            "soak, part {part}: {} calls, p99 {:.1?}, p99.9 {:.1?}; without Redis {:.1?}; {held:?}",
            outcome.calls(),
            outcome.per_mille(990),
            outcome.per_mille(999),
            beside.per_mille(999),
        );
        let bound = may_take(&beside);
        let most = outcome.per_mille(999);
        assert!(most <= bound, "part {part}: p99.9 is {most:?}, and may be {bound:?}");
        parts.push((held, [&outcome, &beside].map(|load| [500, 990].map(|calls| load.per_mille(calls)))));
    }
    stop.store(true, Ordering::SeqCst);
    let (redis, (reloads, restarts)) = disturbing.join().unwrap();
    println!("soak: {reloads} reloads, {restarts} restarts of Redis");
    assert!(restarts > 0 && weir.logged("connected") > 2);
    // Of changes that come while one is being read, one is seen.
    assert!(weir.logged("rules loaded") > reloads / 2, "of {reloads}");
    assert_eq!(weir.logged("refused;"), 0);
    let (Some((first, before)), Some((last, after))) = (parts.get(1), parts.last()) else {
        panic!("{parts:?}")
    };
    assert!(last.kilobytes < first.kilobytes + (4 << 10), "memory grows: {parts:?}");
    assert!(last.files <= first.files + 4, "files are left open: {parts:?}");
    // The median and the 99th percentile, with what the machine has meanwhile done to the weir without Redis. The latter may
    // be of calls that a Redis which the machine keeps waiting did not decide: they take as long as Envoy waits at most.
    let [grown, beside] = [0, 1].map(|load| {
        let growth = after[load].iter().zip(before[load]).map(|(after, before)| after.saturating_sub(before));
        growth.collect::<Vec<Duration>>()
    });
    for (percentile, most) in [Duration::from_millis(5), IN_TIME].into_iter().enumerate() {
        let most = 2 * beside[percentile] + most;
        assert!(grown[percentile] <= most, "latency grows: {parts:?}");
    }
    assert_eq!(weir.logged("panicked"), 0);
    weir.stop();
    control.stop();
    drop(redis);
}
