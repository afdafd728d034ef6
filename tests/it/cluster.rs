//! Buckets in a Redis Cluster, whose slots move and whose nodes fail while calls come.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tonic::Code as Grpc;
use tonic::transport::Channel;
use weir::proto::{Code, RateLimitRequest, RateLimitServiceClient};

use crate::support::redis::{RedisCluster, RedisServer, await_that, cut_one_in_use};
use crate::support::server::{request, rules};
use crate::support::weir::Weir;

/// What holds a million gains no token during a test.
const RULES: &str = "
domain: api
descriptors:
  - { key: wide, rate_limit: { unit: year, requests_per_unit: 100, burst: 1000000 } }
  - { key: narrow, rate_limit: { unit: year, requests_per_unit: 50 } }
  - { key: beside, rate_limit: { unit: year, requests_per_unit: 100, burst: 1000000 } }
";

/// Keys that callers use in turn: they lie in about as many slots.
const KEYS: usize = 100;

fn serve(rules: &Path, cluster: &RedisCluster) -> Weir {
    let url = format!("redis+cluster://{}", cluster.hosts());
    let arguments =
        ["--grpc", "127.0.0.1:0", "--threads", "2", "--redis-timeout", "2s", "--redis", &url, "--rules"];
    let weir = Weir::start_with(arguments.into_iter().map(OsStr::new).chain([rules.as_os_str()]));
    // Two connections to each of three primaries: one for each thread.
    weir.await_log("connected", 6);
    weir
}

async fn client(weir: &Weir) -> RateLimitServiceClient<Channel> {
    RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap()
}

/// What callers have been told so far.
#[derive(Debug, Default)]
struct Told {
    admitted: AtomicU64,
    denied: AtomicU64,
    unanswered: AtomicU64,
    stop: AtomicBool,
}

impl Told {
    fn numbers(&self) -> (u64, u64, u64) {
        let number = |count: &AtomicU64| count.load(Ordering::SeqCst);
        (number(&self.admitted), number(&self.denied), number(&self.unanswered))
    }
}

/// Callers that ask again and again until they are told to stop.
struct Load {
    told: Arc<Told>,
    callers: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    /// `callers` on each of some processes, each of which asks at most `each` times; `request` makes the n-th call of one.
    async fn start(
        weirs: &[Weir],
        callers: usize,
        each: usize,
        request: impl Fn(usize, usize) -> RateLimitRequest + Clone + Send + 'static,
    ) -> Self {
        let told = Arc::new(Told::default());
        let mut tasks = Vec::new();
        for weir in weirs {
            // Connections are dealt out to threads, each of which has a connection of its own to Redis.
            let clients = [client(weir).await, client(weir).await];
            for caller in 0..callers {
                let (mut client, told, request) =
                    (clients[caller % 2].clone(), Arc::clone(&told), request.clone());
                tasks.push(tokio::spawn(async move {
                    for n in 0..each {
                        if told.stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let count = match client.should_rate_limit(request(caller, n)).await {
                            Ok(answer) if answer.get_ref().overall_code() == Code::Ok => &told.admitted,
                            Ok(_) => &told.denied,
                            Err(status) if status.code() == Grpc::Unavailable => {
                                // Who is told so at once would ask again at once.
                                tokio::time::sleep(Duration::from_millis(5)).await;
                                &told.unanswered
                            }
                            Err(status) => panic!("{status}"),
                        };
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                }));
            }
        }
        Self { told, callers: tasks }
    }

    /// Waits until so many calls more have been admitted.
    async fn await_admitted(&self, more: u64) {
        let told = Arc::clone(&self.told);
        let waiting = tokio::task::spawn_blocking(move || {
            let from = told.admitted.load(Ordering::SeqCst);
            await_that("calls are admitted", || told.admitted.load(Ordering::SeqCst) >= from + more);
        });
        waiting.await.unwrap();
    }

    /// What the callers were told in the end: admitted, denied, unanswered.
    async fn end(self) -> (u64, u64, u64) {
        for caller in self.callers {
            caller.await.unwrap();
        }
        self.told.numbers()
    }

    async fn stop(self) -> (u64, u64, u64) {
        self.told.stop.store(true, Ordering::Relaxed);
        self.end().await
    }
}

fn of_key(key: &str, caller: usize, n: usize) -> RateLimitRequest {
    request("api", &[(key, ((caller * 31 + n) % KEYS).to_string().as_bytes())])
}

/// What is left of a bucket.
async fn left(weir: &Weir, key: &str, value: &str) -> u64 {
    let mut peek = request("api", &[(key, value.as_bytes())]);
    peek.descriptors[0].hits_addend = Some(0);
    client(weir).await.should_rate_limit(peek).await.unwrap().into_inner().statuses[0].limit_remaining.into()
}

/// What is used of all wide buckets together.
///
/// Once Redis has been told of all that was decided without it.
async fn used(weir: &Weir) -> u64 {
    tokio::task::block_in_place(|| weir.await_closed());
    let mut before = u64::MAX;
    loop {
        let mut used = 0;
        for key in 0..KEYS {
            used += 1_000_000 - left(weir, "wide", &key.to_string()).await;
        }
        if used == before {
            return used;
        }
        before = used;
        // What nobody asks for is swept up four times a second.
        tokio::time::sleep(Duration::from_millis(800)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bucket_is_exact_wherever_its_slot_is() {
    let (cluster, rules) = (RedisCluster::start(), rules(RULES));
    let weirs: Vec<Weir> = (0..2).map(|_| serve(rules.path(), &cluster)).collect();
    // 6400 calls on 100 buckets of 50.
    let load = Load::start(&weirs, 32, 100, |caller, n| of_key("narrow", caller, n)).await;
    assert_eq!(load.end().await, (5_000, 1_400, 0));

    // Each node has a share of them, and all expire.
    let mut keys: HashMap<String, i64> = HashMap::new();
    let mut nodes = 0;
    for node in cluster.nodes().iter().take(3) {
        let mut connection = node.connection();
        let here: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
        nodes += usize::from(here.iter().any(|key| key.starts_with("weir:api|")));
        for key in here {
            let ttl = redis::cmd("PTTL").arg(&key).query(&mut connection).unwrap();
            keys.insert(key, ttl);
        }
    }
    assert_eq!(nodes, 3);
    assert_eq!(keys.keys().filter(|key| key.starts_with("weir:api|")).count(), KEYS);
    // One may have ended in between.
    assert!(keys.values().all(|ttl| *ttl > 0 || *ttl == -2), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_over_several_slots_is_admitted_in_all_or_costs_nothing_in_any() {
    let (cluster, rules) = (RedisCluster::start(), rules(RULES));
    let weirs: Vec<Weir> = (0..2).map(|_| serve(rules.path(), &cluster)).collect();
    // 1600 calls on ten buckets of fifty, each beside one of the wide ones.
    let load = Load::start(&weirs, 16, 50, |caller, n| {
        let wide = ((caller * 31 + n) % KEYS).to_string();
        let narrow = (n % 10).to_string();
        request("api", &[("wide", wide.as_bytes()), ("narrow", narrow.as_bytes())])
    })
    .await;
    assert_eq!(load.end().await, (500, 1_100, 0));
    // What denied calls took of the wide ones comes back in the background.
    let until = weir::clock::instant() + Duration::from_secs(20);
    while used(&weirs[0]).await != 500 {
        assert!(weir::clock::instant() < until, "{} used", used(&weirs[0]).await);
    }

    // The statuses of a denied one show what is left when it has.
    let both = request("api", &[("wide", b"0"), ("narrow", b"0")]);
    let answer = client(&weirs[1]).await.should_rate_limit(both).await.unwrap().into_inner();
    assert_eq!(answer.overall_code(), Code::OverLimit);
    let codes: Vec<Code> = answer.statuses.iter().map(|status| status.code()).collect();
    assert_eq!(codes, [Code::Ok, Code::OverLimit]);
    let until = weir::clock::instant() + Duration::from_secs(20);
    while u64::from(answer.statuses[0].limit_remaining) != left(&weirs[0], "wide", "0").await {
        assert!(weir::clock::instant() < until, "what it took does not come back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_hash_tag_the_keys_of_a_request_are_in_one_slot_and_it_is_one_script_run() {
    let cluster = RedisCluster::start();
    let rules = rules(&RULES.replace("domain: api", "domain: api\nredis_hash_tag: { entry: user }").replace(
        "  - { key: wide,",
        "  - key: user\n    rate_limit: 100/day\n    descriptors: [ { key: path, rate_limit: 100/hour } ]\n  - { key: wide,",
    ));
    let weir = serve(rules.path(), &cluster);
    for user in 0..20 {
        let user = user.to_string();
        let mut both = request("api", &[("user", user.as_bytes()), ("path", b"/")]);
        let by_user = both.descriptors[0].entries[0].clone();
        both.descriptors[1].entries.insert(0, by_user);
        let answer = client(&weir).await.should_rate_limit(both).await.unwrap().into_inner();
        let left: Vec<u32> = answer.statuses.iter().map(|status| status.limit_remaining).collect();
        assert_eq!(left, [99, 99]);
    }
    // A run for each request: a split one would be two. One more where a node did not know the script, for each connection.
    let calls = |node: &RedisServer, command: &str| -> u64 {
        let stats: String = redis::cmd("INFO").arg("commandstats").query(&mut node.connection()).unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    };
    let primaries = &cluster.nodes()[..3];
    let runs: u64 = primaries.iter().map(|node| calls(node, "evalsha")).sum();
    assert!((20..=26).contains(&runs), "{runs} runs");
    let keys: Vec<String> = primaries
        .iter()
        .flat_map(|node| {
            redis::cmd("KEYS").arg("weir:{*").query::<Vec<String>>(&mut node.connection()).unwrap()
        })
        .collect();
    assert_eq!(keys.len(), 40, "{keys:?}");
    assert!(keys.iter().any(|key| key == "weir:{user=7}api|user=7|path=/|hour"), "{keys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_neither_lose_nor_repeat_a_charge_in_any_slot() {
    let (cluster, rules) = (RedisCluster::start(), rules(RULES));
    let weirs = [serve(rules.path(), &cluster)];
    let load = Load::start(&weirs, 32, usize::MAX, |caller, n| of_key("wide", caller, n)).await;
    load.await_admitted(500).await;
    let cutting = tokio::task::spawn_blocking(move || {
        let mut connections: Vec<_> = cluster.nodes()[..3].iter().map(RedisServer::connection).collect();
        let mut cut = 0;
        await_that("connections are cut", || {
            for connection in &mut connections {
                cut += usize::from(cut_one_in_use(connection));
            }
            cut >= 60
        });
        cluster
    });
    let cluster = cutting.await.unwrap();
    let (admitted, denied, unanswered) = load.stop().await;
    assert_eq!((denied, unanswered), (0, 0));
    assert!(weirs[0].logged("a connection broke") > 10, "connections were cut");
    assert_eq!(used(&weirs[0]).await, admitted, "every charge landed once");
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_that_move_while_calls_come_cost_no_call_and_no_charge() {
    let (cluster, rules) = (RedisCluster::start(), rules(RULES));
    let weirs = [serve(rules.path(), &cluster)];
    // Every third call is for two buckets, mostly in two slots.
    let load = Load::start(&weirs, 16, usize::MAX, |caller, n| match n % 3 {
        0 => {
            let (one, other) = ((caller * 31 + n) % KEYS, (caller * 31 + n + 1) % KEYS);
            request("api", &[("wide", one.to_string().as_bytes()), ("beside", other.to_string().as_bytes())])
        }
        _ => of_key("wide", caller, n),
    })
    .await;
    load.await_admitted(500).await;
    let moving = tokio::task::spawn_blocking(move || {
        cluster.reshard(0, 1, 800);
        cluster.reshard(1, 2, 400);
        cluster
    });
    let cluster = moving.await.unwrap();
    load.await_admitted(500).await;
    let (admitted, denied, unanswered) = load.stop().await;
    println!("resharding: {admitted} admitted, {unanswered} unanswered");
    assert_eq!((denied, unanswered), (0, 0));
    assert_eq!(used(&weirs[0]).await, admitted, "every charge landed once");
    assert!(errors(&cluster, "MOVED") > 0, "slots have moved");
}

/// How often nodes have answered with an error.
fn errors(cluster: &RedisCluster, code: &str) -> u64 {
    let of = |node: &RedisServer| {
        let stats: String = redis::cmd("INFO").arg("errorstats").query(&mut node.connection()).unwrap();
        let count = stats.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{code}:count=")));
        count.map_or(0, |count| count.trim().parse().unwrap())
    };
    cluster.nodes().iter().map(of).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_is_half_way_is_decided_where_each_bucket_is() {
    let (cluster, rules) = (RedisCluster::start(), rules(RULES));
    let weirs = [serve(rules.path(), &cluster)];
    let ask = |redis: &mut redis::Connection, words: &str| {
        let mut words = words.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        command.arg(words.collect::<Vec<_>>()).query::<redis::Value>(redis).unwrap()
    };
    let redis::Value::Int(slot) =
        ask(&mut cluster.nodes()[0].connection(), "CLUSTER KEYSLOT weir:api|wide=7|year")
    else {
        panic!("a slot")
    };
    let from = cluster.primary_of(u16::try_from(slot).unwrap());
    let to = (from + 1) % 3;
    let (from_id, to_id) = (cluster.id(from), cluster.id(to));
    let (mut source, mut target) = (cluster.nodes()[from].connection(), cluster.nodes()[to].connection());

    let seventh = |_, _| request("api", &[("wide", b"7")]);
    let mut admitted = 0;
    // Before; on its way, with the bucket still here; with the bucket there; there.
    for step in 0..4 {
        match step {
            1 => {
                ask(&mut target, &format!("CLUSTER SETSLOT {slot} IMPORTING {from_id}"));
                ask(&mut source, &format!("CLUSTER SETSLOT {slot} MIGRATING {to_id}"));
            }
            2 => {
                let port = cluster.nodes()[to].port();
                ask(&mut source, &format!("MIGRATE 127.0.0.1 {port} weir:api|wide=7|year 0 5000"));
            }
            3 => {
                // With the notes of batches that are there, too.
                let rest: Vec<String> =
                    redis::cmd("CLUSTER").arg("GETKEYSINSLOT").arg(slot).arg(100).query(&mut source).unwrap();
                for key in rest {
                    let port = cluster.nodes()[to].port();
                    ask(&mut source, &format!("MIGRATE 127.0.0.1 {port} {key} 0 5000"));
                }
                ask(&mut target, &format!("CLUSTER SETSLOT {slot} NODE {to_id}"));
                ask(&mut source, &format!("CLUSTER SETSLOT {slot} NODE {to_id}"));
            }
            _ => {}
        }
        let told = Load::start(&weirs, 16, 10, seventh).await.end().await;
        assert_eq!(told, (160, 0, 0), "step {step}");
        admitted += told.0;
        assert_eq!(1_000_000 - left(&weirs[0], "wide", "7").await, admitted, "step {step}");
    }
    assert!(errors(&cluster, "ASK") > 0 && errors(&cluster, "MOVED") > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_failover_loses_no_charge_and_calls_go_on() {
    let (cluster, rules) = (RedisCluster::start(), rules(RULES));
    let weirs = [serve(rules.path(), &cluster)];
    let load = Load::start(&weirs, 16, usize::MAX, |caller, n| of_key("wide", caller, n)).await;
    load.await_admitted(500).await;
    let failing = tokio::task::spawn_blocking(move || {
        cluster.fail_over(0);
        cluster
    });
    let cluster = failing.await.unwrap();
    weirs[0].await_log("the Cluster's nodes", 2);
    load.await_admitted(2_000).await;
    let (admitted, denied, unanswered) = load.stop().await;
    println!("planned failover: {admitted} admitted, {unanswered} unanswered");
    assert_eq!(denied, 0);
    let used = used(&weirs[0]).await;
    assert_eq!(unanswered, 0);
    assert!((admitted..=admitted + 64).contains(&used), "{used} used, {admitted} admitted");
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_replaced_and_calls_to_its_slots_are_decided_here_meanwhile() {
    let (mut cluster, rules) = (RedisCluster::start(), rules(RULES));
    let weirs = [serve(rules.path(), &cluster)];
    let load = Load::start(&weirs, 16, usize::MAX, |caller, n| of_key("wide", caller, n)).await;
    load.await_admitted(500).await;
    let dead = cluster.node(0).host();
    cluster.node(0).kill();
    // The others have theirs.
    load.await_admitted(500).await;
    weirs[0].await_log("the Cluster's nodes", 2);
    load.await_admitted(2_000).await;
    let (admitted, denied, unanswered) = load.stop().await;
    assert_eq!(denied, 0);
    assert_eq!(unanswered, 0);
    let opened = |host: &str, reason: &str| {
        let line = "circuit opened: local buckets decide until it answers again";
        weirs[0].logged(&format!("{line} store=\"{host}\"{reason}"))
    };
    assert!(opened(&dead, "") >= 1, "the circuit of the node that died");
    for host in cluster.nodes().iter().map(RedisServer::host).filter(|host| *host != dead) {
        let down = opened(&host, " reason=\"clusterdown\"");
        assert_eq!(opened(&host, ""), down, "{host} has not died");
    }
    // All keys are decided by three nodes again, and these know what was decided without them.
    let used = used(&weirs[0]).await;
    println!("a node died: {admitted} admitted, {unanswered} unanswered, {used} used");
    // What the replica had not been sent when its primary died is lost: of 16 callers at most what they had under way, and
    // what was admitted in the last moments before.
    assert!(used + 200 >= admitted, "{used} used, {admitted} admitted");
    // What was under way when the node died counts twice, where nobody knows.
    assert!(used <= admitted + 64, "{used} used, {admitted} admitted");
}
