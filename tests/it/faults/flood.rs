//! Ever new callers while Redis is down.

use std::time::Duration;

use weir::clock;
use weir::proto::{Code, RateLimitDescriptor, RateLimitRequest, RateLimitServiceClient};

use super::drill::{Held, is_soak, left, of, outage, with_redis};
use crate::support::redis::RedisServer;
use crate::support::server::{request, rules};

const RULES: &str = "
domain: api
descriptors:
  - { key: limited, rate_limit: { unit: day, requests_per_unit: 5 } }
  - { key: flood, rate_limit: { unit: day, requests_per_unit: 10 } }
";

/// Buckets that are kept. Each takes less than a kilobyte with all that is known of it.
const CAP: u64 = 20_000;

/// So many new callers in one request.
const TOGETHER: u64 = 64;

fn newcomers(first: u64) -> RateLimitRequest {
    let names: Vec<String> = (first..first + TOGETHER).map(|name| name.to_string()).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|name| ("flood", name.as_bytes())).collect();
    let RateLimitRequest { domain, descriptors, .. } = request("api", &entries);
    let descriptors: Vec<RateLimitDescriptor> = descriptors;
    RateLimitRequest { domain, descriptors, hits_addend: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_new_callers_without_redis_frees_nobody_who_is_limited_and_takes_no_more_memory() {
    let mut redis = RedisServer::start();
    let rules = rules(RULES);
    let cap = CAP.to_string();
    let weir = with_redis(rules.path(), &redis.url(), &["--max-buckets", &cap]);
    let mut client = RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap();
    redis.kill();
    // Two of its five are taken before Redis is known to be gone, or after: it is all the same.
    let mut admitted = 0;
    for _ in 0..20 {
        let answer = client.should_rate_limit(of("limited", "x")).await.unwrap().into_inner();
        admitted += u32::from(answer.overall_code() == Code::Ok);
    }
    assert_eq!(admitted, 5);
    weir.await_log("circuit opened", 1);

    let before = Held::by(&weir);
    let until = clock::instant() + outage().max(Duration::from_secs(5));
    let (mut names, mut at_the_cap) = (0, None);
    // Until the cap is passed three times over, however slow the machine; in a soak, five hundred times.
    let least = if is_soak() { 500 * CAP } else { 3 * CAP };
    while clock::instant() < until || names < least {
        let calls: Vec<_> = (0..8)
            .map(|call| (client.clone(), newcomers(names + call * TOGETHER)))
            .map(|(mut client, request)| tokio::spawn(async move { client.should_rate_limit(request).await }))
            .collect();
        for call in calls {
            call.await.unwrap().expect("it is answered");
        }
        names += 8 * TOGETHER;
        let answer = client.should_rate_limit(of("limited", "x")).await.unwrap().into_inner();
        assert_eq!(answer.overall_code(), Code::OverLimit, "after {names} newcomers");
        if names >= 3 * CAP / 2 && at_the_cap.is_none() {
            at_the_cap = Some(Held::by(&weir));
        }
    }
    let (at_the_cap, after) = (at_the_cap.unwrap(), Held::by(&weir));
    let grown = |from: Held, to: Held| to.kilobytes.saturating_sub(from.kilobytes);
    println!(
        "a flood of {names} callers, {CAP} of whom are kept: {} kB at the cap, {} kB more after",
        grown(before, at_the_cap),
        grown(at_the_cap, after)
    );
    assert!(grown(before, at_the_cap) <= CAP, "{before:?}, then {at_the_cap:?}");
    assert!(grown(at_the_cap, after) <= 8 << 10, "{at_the_cap:?}, then {after:?}");
    assert_eq!(left(weir.grpc(), "limited", "x").await, 0);
}
