//! Windows and charges after the fact on buckets that real weir processes share in a real Redis.

use tonic::transport::Channel;
use weir::proto::{Code, RateLimitServiceClient};

use crate::support::redis::RedisServer;
use crate::support::server::{request, rules};
use crate::support::weir::Weir;

/// Windows of a year, so that none turns while the test runs, but on new year's eve.
const RULES: &str = "
domain: api
descriptors:
  - { key: fixed, rate_limit: { unit: year, requests_per_unit: 500, algorithm: fixed_window } }
  - { key: sliding, rate_limit: { unit: year, requests_per_unit: 500, algorithm: sliding_window } }
  - { key: llm, overdraft: true, rate_limit: 100/day }
  - { key: none, rate_limit: 0/day }
";

type Client = RateLimitServiceClient<Channel>;

/// Whether a request of so many hits of each key is denied, and what each has left.
async fn ask(client: &mut Client, hits: &[(&str, u64)]) -> (bool, Vec<u32>) {
    let mut asked = request("api", &[]);
    asked.descriptors.clear();
    for (key, hits) in hits {
        let mut descriptor = request("api", &[(key, b"x")]).descriptors.remove(0);
        descriptor.hits_addend = Some(*hits);
        asked.descriptors.push(descriptor);
    }
    let response = client.should_rate_limit(asked).await.unwrap().into_inner();
    let left = response.statuses.iter().map(|status| status.limit_remaining).collect();
    (response.overall_code == i32::from(Code::OverLimit), left)
}

async fn clients(weirs: &[Weir]) -> Vec<Client> {
    let mut clients = Vec::new();
    for weir in weirs {
        clients.push(RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap());
    }
    clients
}

fn two_on(redis: &RedisServer) -> [Weir; 2] {
    let rules = rules(RULES);
    [(), ()].map(|()| Weir::start_with_redis(rules.path(), &redis.url()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_share_a_window_admit_exactly_its_limit() {
    let redis = RedisServer::start();
    let weirs = two_on(&redis);
    for key in ["fixed", "sliding"] {
        let mut tasks = Vec::new();
        for client in clients(&weirs).await {
            for _ in 0..32 {
                let mut client = client.clone();
                tasks.push(tokio::spawn(async move {
                    let mut admitted = 0;
                    for _ in 0..10 {
                        admitted += u32::from(!ask(&mut client, &[(key, 1)]).await.0);
                    }
                    admitted
                }));
            }
        }
        let mut admitted = 0;
        for task in tasks {
            admitted += task.await.unwrap();
        }
        // 640 calls.
        assert_eq!(admitted, 500, "{key}");
        for client in &mut clients(&weirs).await {
            assert_eq!(ask(client, &[(key, 0)]).await, (true, vec![0]), "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overdraft_is_charged_also_where_the_denial_is_remembered_or_another_limits() {
    let redis = RedisServer::start();
    let weirs = two_on(&redis);
    let [one, other] = &mut clients(&weirs).await[..] else { panic!("two") };
    assert_eq!(ask(one, &[("llm", 150)]).await, (false, vec![0]));
    // Denied, and remembered; what it costs is charged all the same, there and with a limit that denies everything.
    assert_eq!(ask(one, &[("llm", 0)]).await, (true, vec![0]));
    assert_eq!(ask(one, &[("llm", 100)]).await, (true, vec![0]));
    assert_eq!(ask(one, &[("llm", 50), ("none", 1)]).await, (true, vec![0, 0]));
    // 300 used of 100: given back 199 there is still none, and with two more there is one.
    let mut refund = request("api", &[("llm", b"x")]);
    refund.descriptors[0].is_negative_hits = true;
    refund.descriptors[0].hits_addend = Some(199);
    let _ = other.should_rate_limit(refund.clone()).await.unwrap();
    assert_eq!(ask(other, &[("llm", 0)]).await, (true, vec![0]));
    refund.descriptors[0].hits_addend = Some(2);
    let _ = other.should_rate_limit(refund).await.unwrap();
    assert_eq!(ask(other, &[("llm", 0)]).await, (false, vec![1]));
}
