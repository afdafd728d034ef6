//! What a shared limit admits, to the token: many processes, many callers, one Redis.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use tonic::transport::Channel;
use weir::clock;
use weir::proto::{Code, RateLimitDescriptor, RateLimitRequest, RateLimitServiceClient};

use crate::support::redis::RedisServer;
use crate::support::server::{request, rules};
use crate::support::weir::Weir;

const PROCESSES: usize = 4;
const CALLERS: usize = 64;

/// How long they ask.
const LOAD: Duration = Duration::from_secs(4);

/// A limit of the rules below, a second's rate and the burst.
struct Tested {
    key: &'static str,
    rate: f64,
    burst: f64,
    buckets: usize,
}

/// Small against what is asked for, so that there is always somebody to take a token; large bursts, so that on a machine
/// that stalls no bucket is full meanwhile, and no token lost.
const RULES: &str = "
domain: api
descriptors:
  - { key: one, rate_limit: { unit: second, requests_per_unit: 40, burst: 400 } }
  - { key: many, rate_limit: { unit: second, requests_per_unit: 2, burst: 20 } }
  - { key: user, rate_limit: { unit: day, requests_per_unit: 1000 } }
";
const ONE: Tested = Tested { key: "one", rate: 40.0, burst: 400.0, buckets: 1 };
const MANY: Tested = Tested { key: "many", rate: 2.0, burst: 20.0, buckets: 100 };

/// A weir that a machine that stalls does not lead to take Redis for dead.
fn patient(rules: &Path, redis: &RedisServer) -> Weir {
    let url = redis.url();
    let arguments = [
        "--grpc",
        "127.0.0.1:0",
        "--redis",
        &url,
        "--redis-timeout",
        "10s",
        "--redis-ping-interval",
        "1m",
        "--rules",
    ];
    let weir = Weir::start_with(arguments.map(OsStr::new).into_iter().chain([rules.as_os_str()]));
    weir.await_log("connected", 2);
    weir
}

async fn client(weir: &Weir) -> RateLimitServiceClient<Channel> {
    RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap()
}

/// A request of so many hits on each of some buckets.
fn of_each(key: &str, buckets: std::ops::Range<usize>, hits: u64) -> RateLimitRequest {
    let values: Vec<String> = buckets.map(|bucket| bucket.to_string()).collect();
    let entries: Vec<(&str, &[u8])> = values.iter().map(|value| (key, value.as_bytes())).collect();
    let mut request = request("api", &entries);
    for RateLimitDescriptor { hits_addend, .. } in &mut request.descriptors {
        *hits_addend = Some(hits);
    }
    request
}

/// What each bucket has left, after so many hits on it.
async fn left(weir: &Weir, tested: &Tested, hits: u64) -> Vec<f64> {
    let mut client = client(weir).await;
    let mut left = Vec::new();
    for first in (0..tested.buckets).step_by(50) {
        let request = of_each(tested.key, first..tested.buckets.min(first + 50), hits);
        let answer = client.should_rate_limit(request).await.unwrap().into_inner();
        left.extend(answer.statuses.iter().map(|status| f64::from(status.limit_remaining)));
    }
    left
}

/// Every caller of every process asks for a token of one bucket after the other, without a pause. Each bucket then has
/// admitted what its limit says, and what is left.
async fn admits_what_the_limit_says(tested: Tested) {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weirs: Vec<Weir> = (0..PROCESSES).map(|_| patient(rules.path(), &redis)).collect();
    // From the first token on, each bucket refills; so many are taken before the load.
    let before_first = clock::instant();
    left(&weirs[0], &tested, 1).await;
    let after_first = clock::instant();
    let mut callers = Vec::new();
    for (process, weir) in weirs.iter().enumerate() {
        let client = client(weir).await;
        for caller in 0..CALLERS {
            let (mut client, key, buckets) = (client.clone(), tested.key, tested.buckets);
            let mut bucket = (process * CALLERS + caller) % buckets;
            callers.push(tokio::spawn(async move {
                let (mut admitted, mut denied) = (vec![0.0; buckets], 0u64);
                while after_first.elapsed() < LOAD {
                    let request = of_each(key, bucket..bucket + 1, 1);
                    match client.should_rate_limit(request).await.unwrap().into_inner().overall_code() {
                        Code::Ok => admitted[bucket] += 1.0,
                        _ => denied += 1,
                    }
                    bucket = (bucket + 1) % buckets;
                }
                (admitted, denied)
            }));
        }
    }
    let (mut admitted, mut denied) = (vec![1.0; tested.buckets], 0);
    for caller in callers {
        let (of_each, refused) = caller.await.unwrap();
        admitted.iter_mut().zip(of_each).for_each(|(all, of_one)| *all += of_one);
        denied += refused;
    }
    let before_last = clock::instant();
    let left = left(&weirs[0], &tested, 0).await;
    let after_last = clock::instant();

    let [least, most] = [before_last - after_first, after_last - before_first]
        .map(|time| tested.burst + tested.rate * time.as_secs_f64());
    let all: f64 = admitted.iter().sum();
    println!("{}: {all} admitted, {denied} denied, {least:.1} to {most:.1} a bucket", tested.key);
    for (bucket, (admitted, left)) in admitted.iter().zip(&left).enumerate() {
        assert!(*admitted <= most, "bucket {bucket}: {admitted} admitted, at most {most}");
        // What nobody has taken yet when the load ends is still there. A remaining part of a token is not told.
        let missing = least - admitted - left;
        let tolerated = 1.0 + 0.010 * tested.rate;
        assert!(missing <= tolerated, "bucket {bucket}: {missing} too few of {least}, {admitted} admitted");
    }
    assert!(denied > 1_000, "there was always somebody to take a token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bucket_of_four_processes_admits_what_its_limit_says_and_no_less() {
    admits_what_the_limit_says(ONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_buckets_of_four_processes_admit_what_their_limits_say_and_no_less() {
    admits_what_the_limit_says(MANY).await;
}

/// What the manual says that a key takes of Redis's memory, in bytes.
const STATED: f64 = 200.0;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_takes_no_more_memory_than_the_manual_says_and_every_one_expires() {
    // Redis's tables grow by doubling: with these they are as full as with a million.
    const USERS: usize = 62_464;
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weir = patient(rules.path(), &redis);
    let memory = || redis.info("used_memory").unwrap().parse::<f64>().unwrap();
    // The script and the connections take theirs.
    let mut client = client(&weir).await;
    client.should_rate_limit(request("api", &[("one", b"x")])).await.unwrap();
    let before = memory();
    for first in (0..USERS).step_by(64) {
        // As long as a UUID.
        let values: Vec<String> = (first..first + 64).map(|user| format!("{user:036}")).collect();
        let entries: Vec<(&str, &[u8])> = values.iter().map(|value| ("user", value.as_bytes())).collect();
        client.should_rate_limit(request("api", &entries)).await.unwrap();
    }
    let each = (memory() - before) / USERS as f64;
    let mut connection = redis.connection();
    let own: u64 = redis::cmd("MEMORY")
        .arg("USAGE")
        .arg(format!("weir:api|user={:036}|day", 7))
        .query(&mut connection)
        .unwrap();
    println!("{each:.0} bytes a key, {own} of them its own");
    assert!(each <= STATED, "{each} bytes a key");
    let manual = include_str!("../../README.md");
    assert!(manual.contains("200 MB for a million keys"), "the manual states it");

    let (keys, expires) = {
        let space = redis.info("db0").unwrap();
        let field = |name: &str| {
            let value = space.split(',').find_map(|field| field.strip_prefix(name)).unwrap();
            value.parse::<usize>().unwrap()
        };
        (field("keys="), field("expires="))
    };
    assert!(keys > USERS, "{keys}");
    assert_eq!(keys, expires, "every key has an expiry");
}
