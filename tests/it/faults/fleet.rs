//! Several processes that lose Redis together, or one of them alone, and what Redis knows after.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use weir::clock;
use weir::proto::{Code, RateLimitServiceClient};

use super::drill::{BURST, LIMITED, RULES, last, left, of, with_redis};
use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::RedisServer;
use crate::support::server::rules;
use crate::support::steady::Steady;
use crate::support::weir::Weir;

/// Loads that go on until they are stopped, one on each weir; each 40 calls a second.
async fn loads(weirs: &[Weir], key: &'static str, value: &'static str) -> Vec<Steady> {
    let mut loads = Vec::new();
    for weir in weirs {
        loads.push(Steady::start(weir.grpc(), 40, move |_| of(key, value)).await);
    }
    loads
}

/// How many calls of all of these were admitted; none has failed.
async fn admitted(loads: Vec<Steady>) -> u64 {
    let mut admitted = 0;
    for load in loads {
        let outcome = load.stop().await;
        assert_eq!(outcome.failed, [""; 0]);
        admitted += outcome.admitted;
    }
    admitted
}

/// So many weirs at the Redis of this URL, who know of each other.
fn fleet(rules: &Path, urls: &[&str]) -> Vec<Weir> {
    let weirs: Vec<Weir> = urls.iter().map(|url| with_redis(rules, url, &[])).collect();
    weirs.iter().for_each(|weir| weir.await_log(&format!("replicas={}", urls.len()), 1));
    weirs
}

fn most(burst: f64, seconds: f64) -> f64 {
    burst + LIMITED * seconds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_that_lose_redis_together_admit_no_more_than_one_limit() {
    let redis = RedisServer::start();
    let rules = rules(RULES);
    let url = redis.url();
    let weirs = fleet(rules.path(), &[url.as_str(); 4]);
    weirs.iter().for_each(Weir::await_closed);
    let opened: Vec<usize> = weirs.iter().map(|weir| weir.logged("circuit opened")).collect();
    let others = loads(&weirs, "user", "x").await;
    let begun = clock::instant();
    let throughout = loads(&weirs, "limited", "throughout").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    redis.pause();
    weirs.iter().zip(&opened).for_each(|(weir, opened)| weir.await_log("circuit opened", opened + 1));

    let alone = clock::instant();
    let meanwhile = loads(&weirs, "limited", "meanwhile").await;
    last();
    let meanwhile = admitted(meanwhile).await;
    let bound = most(BURST, alone.elapsed().as_secs_f64());
    println!("four without Redis: admitted {meanwhile} of {bound:.1}");
    // Half a token more for each, by their clocks.
    assert!(meanwhile as f64 <= bound + 2.0, "{meanwhile} of {bound}");
    assert!(meanwhile as f64 >= 0.5 * bound, "{meanwhile} of {bound}");

    redis.resume();
    weirs.iter().for_each(Weir::await_closed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let throughout = admitted(throughout).await;
    let bound = most(BURST, begun.elapsed().as_secs_f64());
    println!("four before, without and after Redis: admitted {throughout} of {bound:.1}");
    // While they lose Redis and while they get it back they disagree, for a moment each.
    assert!(throughout as f64 <= bound + BURST, "{throughout} of {bound}");
    admitted(others).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_whom_one_is_cut_off_admit_no_more_than_two_limits() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], redis.port())));
    let rules = rules(RULES);
    let (direct, proxied) = (redis.url(), format!("redis://{}", proxy.address()));
    let weirs = fleet(rules.path(), &[&direct, &proxied]);
    weirs.iter().for_each(Weir::await_closed);
    let opened = weirs[1].logged("circuit opened");
    let begun = clock::instant();
    let throughout = loads(&weirs, "limited", "x").await;
    let others = loads(&weirs, "counted", "x").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    proxy.set(Fault::BlackHole);
    weirs[1].await_log("circuit opened", opened + 1);
    last();
    proxy.set(Fault::None);
    weirs.iter().for_each(Weir::await_closed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let together = admitted(throughout).await;
    let bound = most(BURST, begun.elapsed().as_secs_f64());
    println!("one of two cut off: admitted {together} of {bound:.1}, {:.2} ×", together as f64 / bound);
    assert!(together as f64 <= 2.0 * bound, "{together} of {bound}");
    admitted(others).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_exhausted_stays_so_when_redis_comes_back_empty() {
    const EXHAUSTED: &str = "
domain: api
descriptors:
  - { key: day, rate_limit: { unit: day, requests_per_unit: 5 } }
  - { key: user, rate_limit: { unit: second, requests_per_unit: 1000 } }
";
    let mut redis = RedisServer::start();
    let rules = rules(EXHAUSTED);
    let url = redis.url();
    let weirs = fleet(rules.path(), &[&url, &url]);
    weirs.iter().for_each(Weir::await_closed);
    let mut client = RateLimitServiceClient::connect(format!("http://{}", weirs[0].grpc())).await.unwrap();
    for _ in 0..5 {
        let answer = client.should_rate_limit(of("day", "x")).await.unwrap();
        assert_eq!(answer.into_inner().overall_code(), Code::Ok);
    }
    // Both have to have been told by Redis that it is exhausted.
    for weir in &weirs {
        let mut seen = u32::MAX;
        for _ in 0..100 {
            seen = left(weir.grpc(), "day", "x").await;
            if seen == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(seen, 0);
    }
    let exhausted = loads(&weirs, "day", "x").await;
    let others = loads(&weirs, "user", "x").await;
    weirs.iter().for_each(Weir::await_closed);
    let opened: Vec<usize> = weirs.iter().map(|weir| weir.logged("circuit opened")).collect();
    redis.kill();
    weirs.iter().zip(&opened).for_each(|(weir, opened)| weir.await_log("circuit opened", opened + 1));
    redis.start_again();
    weirs.iter().for_each(Weir::await_closed);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(admitted(exhausted).await, 0);
    admitted(others).await;

    // And so says one who knows it from Redis alone.
    let witness = Weir::start_with_redis(rules.path(), &url);
    assert_eq!(left(witness.grpc(), "day", "x").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_locked_out_for_what_has_flowed_back_in_an_outage() {
    let redis = RedisServer::start();
    let rules = rules(RULES);
    // Nothing stands between the test and what Redis says.
    let weirs = [with_redis(rules.path(), &redis.url(), &["--remember-denials", "0s"])];
    weirs[0].await_closed();
    let opened = weirs[0].logged("circuit opened");
    let others = loads(&weirs, "user", "x").await;
    redis.pause();
    weirs[0].await_log("circuit opened", opened + 1);
    // All of it is used, and more than twice the burst in the time that follows.
    let greedy = loads(&weirs, "limited", "x").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(admitted(greedy).await as f64 > 2.0 * BURST);
    // Then it flows back.
    tokio::time::sleep(Duration::from_secs_f64(BURST / LIMITED)).await;
    redis.resume();
    weirs[0].await_closed();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let witness = Weir::start_with_redis(rules.path(), &redis.url());
    assert_eq!(left(witness.grpc(), "limited", "x").await, 20, "it is full");
    admitted(others).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trouble_of_one_store_leaves_the_others_alone() {
    let [default, fast] = [(); 2].map(|()| RedisServer::start());
    let rules = rules(RULES);
    let store = format!("fast={}", fast.url());
    let url = default.url();
    let arguments = ["--grpc", "127.0.0.1:0", "--redis", &url, "--redis-store", &store];
    let arguments = arguments.into_iter().chain(["--redis-per-second", "fast", "--rules"]).map(OsStr::new);
    let weirs = [Weir::start_with(arguments.chain([rules.path().as_os_str()]))];
    weirs[0].await_log("connected", 4);
    weirs[0].await_closed();
    // A machine that stalls may open the other as well; then it closes again.
    let opened =
        format!("circuit opened: local buckets decide until it answers again store=\"{}\"", fast.host());
    let before = weirs[0].logged(&opened);
    let of_fast = loads(&weirs, "limited", "x").await;
    let of_default = loads(&weirs, "counted", "x").await;
    fast.pause();
    weirs[0].await_log(&opened, before + 1);
    let told: u64 = default.info("total_commands_processed").unwrap().parse().unwrap();
    last();
    // It goes on being asked, while the other is left in peace.
    let later: u64 = default.info("total_commands_processed").unwrap().parse().unwrap();
    assert!(later > told + 20, "{told}, then {later}");
    fast.resume();
    weirs[0].await_closed();
    assert!(admitted(of_fast).await > 0);
    assert!(admitted(of_default).await > 0);
}
