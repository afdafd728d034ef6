//! Buckets in the Redis that sentinels say is the primary.

use std::ffi::OsStr;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tonic::Code as Grpc;
use weir::proto::{Code, RateLimitServiceClient};

use crate::support::redis::{Logins, RedisSentinels, await_that};
use crate::support::server::{request, rules};
use crate::support::weir::Weir;

const RULES: &str = "
domain: api
descriptors:
  - { key: wide, rate_limit: { unit: year, requests_per_unit: 1000000 } }
  - { key: day, rate_limit: { unit: day, requests_per_unit: 1000 } }
";

fn url(redis: &RedisSentinels) -> String {
    format!("redis+sentinel://{}/{}", redis.hosts(), RedisSentinels::NAME)
}

fn serve(rules: &std::path::Path, url: &str, more: &[&str]) -> Weir {
    let arguments = ["--grpc", "127.0.0.1:0", "--redis-timeout", "2s", "--redis", url];
    let arguments = arguments.iter().chain(more).map(OsStr::new);
    Weir::start_with(arguments.chain([OsStr::new("--rules"), rules.as_os_str()]))
}

/// Calls that were under way when the primary went, at most: of these nobody knows whether it charged them, and they may
/// have been charged twice.
const TWICE: u64 = 64;

/// What callers have been told so far.
#[derive(Debug, Default)]
struct Told {
    admitted: AtomicU64,
    denied: AtomicU64,
    unanswered: AtomicU64,
    stop: AtomicBool,
}

/// So many callers that each ask again and again for one token of the wide bucket, until they are told to stop.
async fn load(weir: &Weir, callers: usize) -> (Arc<Told>, Vec<tokio::task::JoinHandle<()>>) {
    let told = Arc::new(Told::default());
    // Connections are dealt out to threads, each of which has a connection of its own to Redis.
    let client = || RateLimitServiceClient::connect(format!("http://{}", weir.grpc()));
    let clients = [client().await.unwrap(), client().await.unwrap()];
    let callers = (0..callers).map(|caller| {
        let (told, mut client) = (Arc::clone(&told), clients[caller % 2].clone());
        tokio::spawn(async move {
            while !told.stop.load(Ordering::Relaxed) {
                let count = match client.should_rate_limit(request("api", &[("wide", b"x")])).await {
                    Ok(answer) if answer.get_ref().overall_code() == Code::Ok => &told.admitted,
                    Ok(_) => &told.denied,
                    Err(status) if status.code() == Grpc::Unavailable => &told.unanswered,
                    Err(status) => panic!("{status}"),
                };
                count.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    });
    (Arc::clone(&told), callers.collect())
}

/// What is left in Redis, once it has been told of all that was decided without it.
async fn left(weir: &Weir) -> u64 {
    tokio::task::block_in_place(|| weir.await_closed());
    let mut left = u64::MAX;
    loop {
        let now = peek(weir).await;
        if now == left {
            return left;
        }
        left = now;
        // What nobody asks for is swept up four times a second.
        tokio::time::sleep(Duration::from_millis(800)).await;
    }
}

async fn peek(weir: &Weir) -> u64 {
    let mut peek = request("api", &[("wide", b"x")]);
    peek.descriptors[0].hits_addend = Some(0);
    let mut client = RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap();
    client.should_rate_limit(peek).await.unwrap().into_inner().statuses[0].limit_remaining.into()
}

/// Waits until callers have been admitted so many times more.
async fn await_admitted(told: &Arc<Told>, more: u64) {
    let told = Arc::clone(told);
    let waiting = tokio::task::spawn_blocking(move || {
        let from = told.admitted.load(Ordering::Relaxed);
        await_that("calls are admitted", || told.admitted.load(Ordering::Relaxed) >= from + more);
    });
    waiting.await.unwrap();
}

/// Has the primary replaced in mid-load. Says how much was admitted, counted, unanswered, and admitted meanwhile.
async fn replaced_in_mid_load(servers: &[&str]) -> (u64, u64, u64, u64) {
    let redis = RedisSentinels::start_with(Logins::default(), servers);
    let rules = rules(RULES);
    let weir = serve(rules.path(), &url(&redis), &[]);
    weir.await_log("connected", 2);
    let (told, callers) = load(&weir, 16).await;
    await_admitted(&told, 500).await;
    let before = told.admitted.load(Ordering::Relaxed);
    // Planned: the old primary stays there, and goes on as a primary until the sentinels tell it.
    let redis = tokio::task::spawn_blocking(move || {
        redis.fail_over();
        redis
    });
    let redis = redis.await.unwrap();
    weir.await_log(&format!("connected redis={}", redis.servers()[1].host()), 2);
    let during = told.admitted.load(Ordering::Relaxed) - before;
    await_admitted(&told, 500).await;
    told.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let (admitted, unanswered) =
        (told.admitted.load(Ordering::Relaxed), told.unanswered.load(Ordering::Relaxed));
    let used = 1_000_000 - left(&weir).await;
    println!("{admitted} admitted, {used} counted, {unanswered} unanswered; {during} in the failover");
    assert_eq!(told.denied.load(Ordering::Relaxed), 0);
    assert_eq!(unanswered, 0, "{told:?}");
    assert!(used <= admitted + TWICE, "{used} counted of {told:?}");
    (admitted, used, unanswered, during)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_replaced_in_mid_load_is_left_for_the_new_one() {
    let (admitted, used, _, during) = replaced_in_mid_load(&[]).await;
    // What the old primary admitted after the new one had taken its copy is lost.
    assert!(
        used + during >= admitted,
        "{used} counted, {admitted} admitted, {during} of them in the failover"
    );
    assert!(used >= 1_000, "what was counted before and after is there: {used}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_needs_its_replica_admits_next_to_nothing_that_is_lost_when_it_is_replaced() {
    let (admitted, used, ..) = replaced_in_mid_load(&["--min-replicas-to-write", "1"]).await;
    // What was on its way to the replica just then, of sixteen callers.
    assert!(used + 100 >= admitted, "{used} counted, {admitted} admitted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_dies_in_mid_load_is_replaced_and_all_but_its_last_moment_is_kept() {
    let mut redis = RedisSentinels::start();
    let rules = rules(RULES);
    let weir = serve(rules.path(), &url(&redis), &[]);
    weir.await_log("connected", 2);
    let (told, callers) = load(&weir, 16).await;
    await_admitted(&told, 500).await;
    redis.server(0).kill();
    let redis = tokio::task::spawn_blocking(move || {
        redis.await_other_than(0);
        redis
    });
    let redis = redis.await.unwrap();
    weir.await_log(&format!("connected redis={}", redis.servers()[1].host()), 2);
    await_admitted(&told, 500).await;
    told.stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let (admitted, unanswered) =
        (told.admitted.load(Ordering::Relaxed), told.unanswered.load(Ordering::Relaxed));
    let used = 1_000_000 - left(&weir).await;
    println!("killed: {admitted} admitted, {used} counted, {unanswered} unanswered");
    assert!(used <= admitted + TWICE, "{used} counted of {told:?}");
    assert!(
        used + 100 >= admitted,
        "no more is lost than what was on its way to the replica: {used} of {told:?}"
    );
    assert!(unanswered == 0 && told.denied.load(Ordering::Relaxed) == 0, "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_servers_have_logins_of_their_own_and_one_sentinel_in_three_may_be_missing() {
    let logins = Logins { password: Some("of-the-servers"), sentinel: Some(("watcher", "of-the-sentinels")) };
    let mut redis = RedisSentinels::start_with(logins, &[]);
    let rules = rules(RULES);
    let url = |login: &str| {
        format!("redis+sentinel://:of-the-servers@{}/{}?{login}", redis.hosts(), RedisSentinels::NAME)
    };
    // In the URL, or in files.
    let (in_url, in_files) = (
        url("sentinel_username=watcher&sentinel_password=of-the-sentinels"),
        url("sentinel_username=watcher"),
    );
    let password = rules.path().join("password");
    fs::write(&password, "of-the-sentinels\n").unwrap();
    let password = password.to_str().unwrap();
    let weir = serve(rules.path(), &in_url, &[]);
    weir.await_log("connected", 2);
    assert_eq!(left(&weir).await, 1_000_000);
    serve(rules.path(), &in_files, &["--redis-sentinel-password-file", password]).await_log("connected", 2);

    // A wrong one, or another name: said, and tried on.
    let wrong = serve(rules.path(), &url("sentinel_username=watcher&sentinel_password=wrong"), &[]);
    wrong.await_log("cannot connect; trying on", 2);
    wrong.await_log("no sentinel says who is primary", 2);
    assert_eq!(wrong.logged("of-the-s"), 0, "no password is in the log");
    let wrong = serve(rules.path(), &in_url.replace("/mymaster?", "/other?"), &[]);
    wrong.await_log("it knows no primary that is called `other`", 2);

    // The first that is asked does not answer, and another one is gone.
    redis.sentinel(0).pause();
    let start = weir::clock::instant();
    serve(rules.path(), &in_url, &[]).await_log("connected", 2);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    redis.sentinel(1).kill();
    serve(rules.path(), &in_url, &[]).await_log("connected", 2);
}

#[test]
fn a_wrong_url_ends_the_start_with_one_line_and_without_the_password() {
    for (url, said) in [
        ("redis+sentinel://:secret@one,two", "behind the sentinels stands what they call the primary"),
        ("redis+sentinel://:secret@one,two/main?sentinel_pass=secret", "unknown option `sentinel_pass`"),
        ("redis://:secret@one,two", "redis+sentinel:// for sentinels"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["serve", "--grpc", "127.0.0.1:0", "--redis", url])
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{error}");
        assert!(error.contains(said) && !error.contains("secret"), "{error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    }
}
