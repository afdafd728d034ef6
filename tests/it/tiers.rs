//! Tiers on buckets in Redis: a move by editing the file, seen by every process.

use std::fs;
use std::path::Path;

use tonic::transport::Channel;
use weir::proto::{Code, RateLimitServiceClient};

use crate::support::redis::RedisServer;
use crate::support::server::{request, rules};
use crate::support::weir::Weir;

/// Limits for days, so that next to nothing comes back while the test runs.
fn text(members: &str) -> String {
    format!(
        "
domain: api
tiers:
  free: {{ requests: 60/day, credits: 10/day }}
  pro: {{ requests: 600/day, credits: 100/day }}
subjects: {{ user: {{ default: free, members: {{ {members} }} }} }}
descriptors:
  - {{ key: user, tier_limit: requests, descriptors: [ {{ key: plan, tier_limit: [requests, credits] }} ] }}
"
    )
}

async fn clients(weirs: &[Weir]) -> Vec<RateLimitServiceClient<Channel>> {
    let mut clients = Vec::new();
    for weir in weirs {
        clients.push(RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap());
    }
    clients
}

/// Whether so many hits of a user are admitted, and what is left.
async fn ask(client: &mut RateLimitServiceClient<Channel>, user: &str, hits: u64) -> (bool, u32) {
    let mut request = request("api", &[("user", user.as_bytes())]);
    request.descriptors[0].hits_addend = Some(hits);
    let response = client.should_rate_limit(request).await.unwrap().into_inner();
    (response.overall_code() == Code::Ok, response.statuses[0].limit_remaining)
}

/// Puts other members into the file, and waits until every process has them.
fn move_to(path: &Path, weirs: &[Weir], members: &str, loads: usize) {
    fs::write(path, text(members)).unwrap();
    for weir in weirs {
        weir.hang_up();
        weir.await_log("rules loaded", loads);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moves_between_tiers_keep_what_was_used_in_redis_and_lock_nobody_out() {
    let (redis, directory) = (RedisServer::start(), rules(&text("zen: pro")));
    let timeout = ["--redis-timeout", "5s", "--remember-denials", "1s"];
    let weirs: Vec<Weir> = (0..2)
        .map(|_| {
            let path = directory.path().to_str().unwrap();
            let arguments = ["--grpc", "127.0.0.1:0", "--rules", path, "--redis", &redis.url()]
                .map(str::to_owned)
                .into_iter()
                .chain(timeout.map(str::to_owned))
                .map(std::ffi::OsString::from)
                .collect::<Vec<_>>();
            Weir::start_with(arguments.iter().map(std::ffi::OsString::as_os_str))
        })
        .collect();
    let mut clients = clients(&weirs).await;
    let file = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();

    // Ann has used up her tier, which each process knows; zen most of his.
    assert_eq!(ask(&mut clients[0], "ann", 60).await, (true, 0));
    assert_eq!(ask(&mut clients[1], "ann", 1).await, (false, 0));
    assert_eq!(ask(&mut clients[0], "zen", 590).await, (true, 10));

    // Up for her: at once, and what was used is. Down for him: nothing is left, and one token of the new tier's will be
    // in 24 minutes, however much he had used.
    move_to(&file, &weirs, "ann: pro", 2);
    for client in &mut clients {
        assert_eq!(ask(client, "ann", 0).await, (true, 540));
        assert_eq!(ask(client, "zen", 0).await, (false, 0));
    }
    let mut peek = request("api", &[("user", b"zen")]);
    peek.descriptors[0].hits_addend = Some(1);
    let response = clients[1].should_rate_limit(peek).await.unwrap().into_inner();
    let wait = response.statuses[0].duration_until_reset.as_ref().unwrap().seconds;
    assert!((1..=24 * 60).contains(&wait), "{wait} s");

    // And back: what both have used since is kept as well.
    assert_eq!(ask(&mut clients[1], "ann", 40).await, (true, 500));
    move_to(&file, &weirs, "zen: pro", 3);
    for client in &mut clients {
        assert_eq!(ask(client, "ann", 0).await, (false, 0));
        assert_eq!(ask(client, "zen", 0).await, (true, 540));
    }

    // Several dimensions in one request: all or nothing.
    let mut both = request("api", &[("user", b"bob"), ("plan", b"x")]);
    let second = both.descriptors.remove(1);
    both.descriptors[0].entries.extend(second.entries);
    both.descriptors[0].hits_addend = Some(11);
    let denied = clients[0].should_rate_limit(both.clone()).await.unwrap().into_inner();
    let limit = denied.statuses[0].current_limit.as_ref().unwrap();
    assert_eq!((denied.overall_code(), limit.name.as_str()), (Code::OverLimit, "credits"));
    both.descriptors[0].hits_addend = Some(10);
    let admitted = clients[1].should_rate_limit(both).await.unwrap().into_inner();
    assert_eq!((admitted.overall_code(), admitted.statuses[0].limit_remaining), (Code::Ok, 0));
}
