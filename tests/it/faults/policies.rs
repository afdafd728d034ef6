//! What rules say is answered without Redis, and callers who do not wait for it.

use std::time::Duration;

use tokio::time::timeout;
use weir::proto::{Code, RateLimitResponse, RateLimitServiceClient};

use super::drill::{Drill, last, of, outage, with_redis};
use crate::support::proxy::Fault;
use crate::support::redis::RedisServer;
use crate::support::server::rules;
use crate::support::weir::Weir;

const RULES: &str = "
domain: api
descriptors:
  - { key: guarded, on_redis_failure: deny, rate_limit: { unit: day, requests_per_unit: 100 } }
  - { key: open, on_redis_failure: allow, rate_limit: { unit: day, requests_per_unit: 1 } }
  - { key: held, on_redis_failure: local, rate_limit: { unit: day, requests_per_unit: 2 } }
  - { key: plain, rate_limit: { unit: day, requests_per_unit: 2 } }
";

/// What some calls for a bucket are answered, one after the other.
async fn answers(weir: &Weir, key: &'static str, calls: usize) -> Vec<RateLimitResponse> {
    let mut client = RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap();
    let mut answers = Vec::new();
    for _ in 0..calls {
        answers.push(client.should_rate_limit(of(key, "x")).await.unwrap().into_inner());
    }
    answers
}

fn codes(answers: &[RateLimitResponse]) -> Vec<Code> {
    answers.iter().map(RateLimitResponse::overall_code).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_each_rule_is_answered_as_it_says_and_the_others_as_the_flag_says() {
    let mut redis = RedisServer::start();
    let rules = rules(RULES);
    let start = |policy| with_redis(rules.path(), &redis.url(), &["--on-redis-failure", policy]);
    let weirs = ["local", "deny", "allow"].map(|policy| (policy, start(policy)));
    redis.kill();
    for (policy, weir) in weirs {
        // Calls that find it gone, until it is not asked any more.
        for _ in 0..20 {
            answers(&weir, "open", 1).await;
        }
        weir.await_log("circuit opened", 1);
        let denied = [Code::OverLimit; 3];
        let guarded = answers(&weir, "guarded", 3).await;
        assert_eq!(codes(&guarded), denied, "{policy}");
        for answer in &guarded {
            let until_probe = answer.statuses[0].duration_until_reset.as_ref().unwrap().seconds;
            let header = answer.response_headers_to_add.iter().find(|header| header.key == "retry-after");
            assert_eq!(header.map(|header| header.value.clone()), Some(until_probe.to_string()));
            assert!((1..=10).contains(&until_probe), "until the next probe: {until_probe}");
        }
        let open = answers(&weir, "open", 3).await;
        assert_eq!(codes(&open), [Code::Ok; 3], "{policy}");
        assert!(open.iter().all(|answer| answer.statuses[0].limit_remaining == 0), "nobody knows");
        let by_bucket = [Code::Ok, Code::Ok, Code::OverLimit];
        // All three weirs know of each other by now, perhaps: then each has a share of it, a token at least.
        let held = codes(&answers(&weir, "held", 3).await);
        assert!(held[0] == Code::Ok && held[2] == Code::OverLimit, "{policy}: {held:?}");
        let plain = codes(&answers(&weir, "plain", 3).await);
        match policy {
            "deny" => assert_eq!(plain, denied),
            "allow" => assert_eq!(plain, [Code::Ok; 3]),
            _ => assert!(plain == by_bucket || plain == [Code::Ok, Code::OverLimit, Code::OverLimit]),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_who_go_away_in_an_outage_leave_nothing_behind() {
    let drill = Drill::of_network("callers go away");
    let weir = drill.grpc();
    drill
        .run(|drill| {
            let proxy = drill.proxy.as_ref().unwrap();
            proxy.set(Fault::Latency(Duration::from_millis(50)));
            let leaving = tokio::spawn(async move {
                let client = RateLimitServiceClient::connect(format!("http://{weir}")).await.unwrap();
                let until = weir::clock::instant() + outage();
                let mut gone = 0;
                while weir::clock::instant() < until {
                    let calls = (0..8).map(|_| client.clone()).map(|mut client| async move {
                        let call = client.should_rate_limit(of("user", "gone"));
                        timeout(Duration::from_millis(1), call).await.is_err()
                    });
                    for call in calls.map(tokio::spawn).collect::<Vec<_>>() {
                        gone += u32::from(call.await.unwrap());
                    }
                }
                gone
            });
            last();
            proxy.set(Fault::None);
            let gone = tokio::runtime::Handle::current();
            let gone = std::thread::scope(|scope| scope.spawn(|| gone.block_on(leaving)).join().unwrap());
            assert!(gone.unwrap() > 0, "some went away");
        })
        .await;
}
