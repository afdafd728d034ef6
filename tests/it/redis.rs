//! Buckets in a real Redis, shared by real weir processes.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tonic::Code as Grpc;
use tonic::transport::Channel;
use weir::proto::{Code, RateLimitRequest, RateLimitServiceClient};

use crate::support::redis::{RedisServer, await_that, cut_one_in_use};
use crate::support::server::{request, rules};
use crate::support::weir::Weir;

const RULES: &str = "
domain: api
descriptors:
  - { key: day, rate_limit: { unit: day, requests_per_unit: 1000 } }
  - { key: wide, rate_limit: { unit: year, requests_per_unit: 1000000 } }
  - { key: narrow, rate_limit: { unit: day, requests_per_unit: 50 } }
  - { key: open, rate_limit: { unit: hour, requests_per_unit: 1000000000 } }
";

async fn client(weir: &Weir) -> RateLimitServiceClient<Channel> {
    RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap()
}

/// What calls came to.
#[derive(Debug, Default)]
struct Tally {
    admitted: u64,
    denied: u64,
    unanswered: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.admitted += other.admitted;
        self.denied += other.denied;
        self.unanswered += other.unanswered;
    }
}

/// `callers` at once on each weir, `each` calls each; `request` makes the n-th call of a caller.
async fn load(
    weirs: &[Weir],
    callers: usize,
    each: usize,
    request: impl Fn(usize, usize) -> RateLimitRequest + Clone + Send + 'static,
) -> Tally {
    let mut tasks = Vec::new();
    for weir in weirs {
        for _ in 0..callers.div_ceil(64) {
            // Connections are dealt out to threads, each of which has a connection of its own to Redis.
            let clients = [client(weir).await, client(weir).await];
            for caller in 0..callers.min(64) {
                let (mut client, request) = (clients[caller % 2].clone(), request.clone());
                tasks.push(tokio::spawn(async move {
                    let mut tally = Tally::default();
                    for n in 0..each {
                        match client.should_rate_limit(request(caller, n)).await {
                            Ok(answer) if answer.get_ref().overall_code() == Code::Ok => tally.admitted += 1,
                            Ok(_) => tally.denied += 1,
                            Err(status) if status.code() == Grpc::Unavailable => tally.unanswered += 1,
                            Err(status) => panic!("{status}"),
                        }
                    }
                    tally
                }));
            }
        }
    }
    let mut total = Tally::default();
    for task in tasks {
        total.add(&task.await.unwrap());
    }
    total
}

/// Takes one of a thousand a day of a key's; how many are left.
async fn take(client: &mut RateLimitServiceClient<Channel>, key: &str) -> u32 {
    let answer = client.should_rate_limit(request("api", &[("day", key.as_bytes())])).await.unwrap();
    answer.into_inner().statuses[0].limit_remaining
}

async fn left(weir: &Weir, key: &str) -> u32 {
    let mut peek = request("api", &[(key, b"x")]);
    peek.descriptors[0].hits_addend = Some(0);
    client(weir).await.should_rate_limit(peek).await.unwrap().into_inner().statuses[0].limit_remaining
}

/// Calls of a command since the server's statistics were reset.
fn calls(redis: &mut redis::Connection, command: &str) -> u64 {
    let stats: String = redis::cmd("INFO").arg("commandstats").query(redis).unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_processes_of_sixty_four_callers_admit_exactly_what_a_bucket_holds() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weirs: Vec<Weir> = (0..4).map(|_| Weir::start_with_redis(rules.path(), &redis.url())).collect();
    let tally = load(&weirs, 64, 8, |_, _| request("api", &[("day", b"x")])).await;
    // 2048 calls; one token comes back every 86 seconds.
    assert_eq!((tally.admitted, tally.denied, tally.unanswered), (1_000, 1_048, 0));

    // A hundred buckets: 20 calls for each from every process and caller's turn, all of which have room.
    let tally = load(&weirs, 64, 25, |caller, n| {
        let key = format!("{}", (caller * 25 + n) % 100);
        request("api", &[("narrow", key.as_bytes())])
    })
    .await;
    // 6400 calls on 100 buckets of 50, 64 each.
    assert_eq!((tally.admitted, tally.denied, tally.unanswered), (5_000, 1_400, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_bucket_refuses_costs_the_other_nothing_under_any_concurrency() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weirs: Vec<Weir> = (0..2).map(|_| Weir::start_with_redis(rules.path(), &redis.url())).collect();
    let tally = load(&weirs, 32, 20, |caller, _| {
        let mut pair = [("wide", &b"x"[..]), ("narrow", b"x")];
        if caller % 2 == 0 {
            pair.reverse();
        }
        request("api", &pair)
    })
    .await;
    assert_eq!((tally.admitted, tally.unanswered), (50, 0), "as many as the narrow one holds");
    assert_eq!(left(&weirs[0], "wide").await, 1_000_000 - 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_that_is_forgotten_and_connections_that_are_cut_neither_lose_nor_repeat_a_charge() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weirs = [Weir::start_with_redis(rules.path(), &redis.url())];
    let mut connection = redis.connection();
    let disturbing = tokio::task::spawn_blocking(move || {
        let (mut rounds, mut cut) = (0, 0);
        await_that("the script is forgotten and connections are cut", || {
            redis::cmd("SCRIPT").arg("FLUSH").query::<()>(&mut connection).unwrap();
            // One of weir's two connections, wherever its batch is just then; the other has to be there.
            cut += usize::from(rounds % 4 == 0 && cut_one_in_use(&mut connection));
            rounds += 1;
            rounds >= 60 && cut >= 10
        });
        connection
    });
    // For as long as that takes.
    let mut tally = Tally::default();
    while !disturbing.is_finished() {
        tally.add(&load(&weirs, 64, 20, |_, _| request("api", &[("wide", b"x")])).await);
    }
    let mut connection = disturbing.await.unwrap();
    assert_eq!((tally.denied, tally.unanswered), (0, 0), "{tally:?}");
    assert_eq!(
        u64::from(left(&weirs[0], "wide").await),
        1_000_000 - tally.admitted,
        "every charge landed once"
    );
    assert!(weirs[0].logged("a connection broke") > 3, "connections were cut");
    assert!(calls(&mut connection, "eval") > 3, "the script was forgotten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_come_together_share_a_script_run() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weirs = [Weir::start_with_redis(rules.path(), &redis.url())];
    let mut connection = redis.connection();
    for (most, what) in [(0.1, "a key of its own each"), (0.05, "one key")] {
        redis::cmd("CONFIG").arg("RESETSTAT").query::<()>(&mut connection).unwrap();
        let tally = load(&weirs, 256, 40, move |caller, n| {
            let key = if most < 0.1 { String::new() } else { format!("{caller} {n}") };
            request("api", &[("open", key.as_bytes())])
        })
        .await;
        let runs = calls(&mut connection, "evalsha") + calls(&mut connection, "eval");
        let ratio = runs as f64 / tally.admitted as f64;
        println!("{what}: {ratio:.3} script runs a decision");
        assert_eq!((tally.denied, tally.unanswered), (0, 0));
        assert!(ratio <= most, "{what}: {runs} runs for {} decisions", tally.admitted);
    }

    // A key that is denied: once it is known, it is asked about once a second.
    load(&weirs, 1, 60, |_, _| request("api", &[("narrow", b"x")])).await;
    redis::cmd("CONFIG").arg("RESETSTAT").query::<()>(&mut connection).unwrap();
    let start = weir::clock::instant();
    let tally = load(&weirs, 256, 40, |_, _| request("api", &[("narrow", b"x")])).await;
    let seconds = start.elapsed().as_secs_f64();
    let runs = calls(&mut connection, "evalsha") + calls(&mut connection, "eval");
    println!("a denied key: {runs} script runs for {} decisions in {seconds:.1} s", tally.denied);
    assert_eq!((tally.admitted, tally.unanswered), (0, 0));
    // Callers that come in the moment when it is forgotten all ask, and share a run or two.
    assert!(runs as f64 <= 3.0 * (1.0 + seconds), "{runs} runs in {seconds} s");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_back_is_seen_at_once_by_who_gave_it_and_soon_by_the_others() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weirs: Vec<Weir> = (0..2).map(|_| Weir::start_with_redis(rules.path(), &redis.url())).collect();
    let take = || request("api", &[("narrow", b"x")]);
    let give = || {
        let mut give = take();
        give.descriptors[0].is_negative_hits = true;
        give
    };
    let (mut one, mut other) = (client(&weirs[0]).await, client(&weirs[1]).await);
    load(&weirs[..1], 1, 50, move |_, _| request("api", &[("narrow", b"x")])).await;
    let code = async |client: &mut RateLimitServiceClient<Channel>, request| {
        client.should_rate_limit(request).await.unwrap().into_inner().overall_code()
    };
    // Both know now that it is empty.
    assert_eq!(code(&mut one, take()).await, Code::OverLimit);
    assert_eq!(code(&mut other, take()).await, Code::OverLimit);
    assert_eq!(code(&mut one, give()).await, Code::Ok);
    assert_eq!(code(&mut one, take()).await, Code::Ok, "who gave back knows");

    assert_eq!(code(&mut one, give()).await, Code::Ok);
    let start = weir::clock::instant();
    while code(&mut other, take()).await == Code::OverLimit {
        assert!(start.elapsed() < Duration::from_secs(3), "the other has not seen it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_has_an_expiry_and_a_name_that_can_be_read() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weir = Weir::start_with_redis(rules.path(), &redis.url());
    let mut client = client(&weir).await;
    for value in [&b"a"[..], b"{tag}", b"\xff|=", &[b'x'; 1_000]] {
        client.should_rate_limit(request("api", &[("day", value)])).await.unwrap();
    }
    let mut connection = redis.connection();
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
    let ttls: HashMap<String, i64> = keys
        .into_iter()
        .map(|key| {
            let ttl = redis::cmd("PTTL").arg(&key).query(&mut connection).unwrap();
            (key, ttl)
        })
        .collect();
    assert!(ttls.values().all(|ttl| *ttl > 0), "{ttls:?}");
    for name in ["weir:api|day=a|day", "weir:api|day=%7Btag%7D|day", "weir:api|day=%FF%7C%3D|day"] {
        assert!(ttls.contains_key(name), "{name} is not among {:?}", ttls.keys());
    }
    assert!(ttls.keys().any(|name| name.starts_with("weir:api#")), "{:?}", ttls.keys());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_holds_something_else_fails_its_own_calls_only() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weir = Weir::start_with_redis(rules.path(), &redis.url());
    redis::cmd("RPUSH").arg("weir:api|day=bad|day").arg("x").query::<()>(&mut redis.connection()).unwrap();
    let mut client = client(&weir).await;
    // By a bucket of its own, for as long as that is so.
    for left in [999, 998] {
        assert_eq!(take(&mut client, "bad").await, left);
    }
    assert_eq!(take(&mut client, "good").await, 999);
    let mut connection = redis.connection();
    let length: u32 = redis::cmd("LLEN").arg("weir:api|day=bad|day").query(&mut connection).unwrap();
    assert_eq!(length, 1, "it is left as it was");
    redis::cmd("DEL").arg("weir:api|day=bad|day").query::<()>(&mut connection).unwrap();
    assert_eq!(take(&mut client, "bad").await, 997, "and what was used is not forgotten");
    assert_eq!(weir.logged("circuit opened"), 0, "Redis has not failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_it_starts_answers_at_once_and_joins_when_redis_comes() {
    let rules = rules(RULES);
    // A port on which there is nobody yet.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("redis://127.0.0.1:{port}");
    let arguments =
        ["--grpc", "127.0.0.1:0", "--redis", &url, "--redis-timeout", "1s", "--rules"].map(OsStr::new);
    let weir = Weir::start_with(arguments.into_iter().chain([rules.path().as_os_str()]));
    let mut client = client(&weir).await;
    let start = weir::clock::instant();
    assert_eq!(take(&mut client, "x").await, 999);
    assert!(start.elapsed() < Duration::from_secs(1), "no call waits for a connection");
    let unknown = "how many processes share this Redis is not known yet";
    for _ in 0..1_000 {
        take(&mut client, "y").await;
        if weir.logged(unknown) > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(weir.logged(unknown), 1);

    let redis = RedisServer::start_at(port).expect("the port is still free");
    weir.await_log("connected", 2);
    weir.await_log("circuit closed", 1);
    assert_eq!(take(&mut client, "x").await, 998);
    let ttl: i64 = redis::cmd("PTTL").arg("weir:api|day=x|day").query(&mut redis.connection()).unwrap();
    assert!(ttl > 86_400, "two of a thousand a day are used in Redis: {ttl}");
    drop(redis);
    assert_eq!(take(&mut client, "x").await, 997);
    assert_eq!(weir.logged(unknown), 1, "it is said once, and not when it has been known");
    weir.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_stalls_is_waited_for_until_the_deadline_and_is_used_again_after() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let url = redis.url();
    let arguments =
        ["--grpc", "127.0.0.1:0", "--redis", &url, "--redis-timeout", "50ms", "--rules"].map(OsStr::new);
    let weir = Weir::start_with(arguments.into_iter().chain([rules.path().as_os_str()]));
    weir.await_log("connected", 2);
    let mut client = client(&weir).await;
    assert_eq!(take(&mut client, "x").await, 999);

    let mut connection = redis.connection();
    let asleep = tokio::task::spawn_blocking(move || {
        redis::cmd("DEBUG").arg("SLEEP").arg("1.5").query::<()>(&mut connection).unwrap();
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = weir::clock::instant();
    assert_eq!(take(&mut client, "x").await, 998);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    asleep.await.unwrap();
    tokio::task::block_in_place(|| weir.await_closed());
    // The call in between has landed there as well, late: once that is known, it counts once.
    let is_settled = async {
        while weir.metric("weir_late_settled_total{result=\"admitted\"}").await < 1.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), is_settled).await.expect("the late reply comes");
    assert_eq!(take(&mut client, "x").await, 997);
}

/// A directory with an authority, and a certificate and key that it signed for `localhost`.
fn certificates() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.distinguished_name.push(DnType::CommonName, "an authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, key).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    for (name, text) in
        [("ca.pem", authority.pem()), ("cert.pem", certificate.pem()), ("key.pem", key.serialize_pem())]
    {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_with_certificates_on_both_sides_and_a_user_of_its_own_whose_password_is_replaced() {
    let (certificates, rules) = (certificates(), rules(RULES));
    let file = |name: &str| certificates.path().join(name).to_str().unwrap().to_owned();
    let (ca, cert, key, password) = (file("ca.pem"), file("cert.pem"), file("key.pem"), file("password"));
    let tls_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let redis = RedisServer::start_with(&[
        "--tls-port",
        &tls_port,
        "--tls-cert-file",
        &cert,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "yes",
    ]);
    let mut connection = redis.connection();
    let mut acl = |rules: &[&str]| {
        redis::cmd("ACL").arg("SETUSER").arg("limiter").arg(rules).query::<()>(&mut connection).unwrap()
    };
    // What the manual says is needed, and no more.
    acl(&[
        "on", ">first", "~weir:*", "-@all", "+eval", "+evalsha", "+info", "+get", "+set", "+mget", "+exists",
        "+del", "+time",
    ]);
    fs::write(&password, "first\n").unwrap();

    let url = format!("rediss://limiter@localhost:{tls_port}");
    let serve = |more: &[&str]| {
        let arguments =
            ["--grpc", "127.0.0.1:0", "--redis", &url, "--redis-timeout", "2s", "--redis-ca", &ca];
        let arguments = arguments.iter().chain(&["--threads", "2"]).chain(more).map(OsStr::new);
        Weir::start_with(arguments.chain([OsStr::new("--rules"), rules.path().as_os_str()]))
    };
    let weir = serve(&["--redis-cert", &cert, "--redis-key", &key, "--redis-password-file", &password]);
    weir.await_log("connected", 2);
    let mut client = client(&weir).await;
    let mut left = async || {
        let answer = client.should_rate_limit(request("api", &[("narrow", b"x")])).await;
        answer.map(|answer| answer.into_inner().statuses[0].limit_remaining).map_err(|status| status.code())
    };
    assert_eq!(left().await, Ok(49));

    // The password is replaced, and connections that were made with the old one are cut.
    fs::write(&password, "second\n").unwrap();
    acl(&[">second", "<first"]);
    redis::cmd("CLIENT").arg("KILL").arg("USER").arg("limiter").query::<()>(&mut redis.connection()).unwrap();
    weir.await_log("connected", 4);
    let start = weir::clock::instant();
    while left().await != Ok(48) {
        assert!(start.elapsed() < Duration::from_secs(10), "it does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // Without a certificate of its own, or with a wrong password: said, and tried on, while it serves.
    fs::write(&password, "wrong\n").unwrap();
    let refused = serve(&["--redis-cert", &cert, "--redis-key", &key, "--redis-password-file", &password]);
    refused.await_log("cannot connect; trying on", 1);
    refused.await_log("authentication failed", 1);
    assert_eq!(refused.logged("wrong\n"), 0, "the password is nowhere in the log");
    serve(&["--redis-password-file", &password]).await_log("cannot connect; trying on", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_evicts_keys_is_warned_about() {
    let rules = rules(RULES);
    let redis = RedisServer::start_with(&["--maxmemory-policy", "allkeys-lru"]);
    Weir::start_with_redis(rules.path(), &redis.url()).await_log("set maxmemory-policy to noeviction", 1);
    let redis = RedisServer::start();
    let weir = Weir::start_with_redis(rules.path(), &redis.url());
    assert_eq!(weir.logged("maxmemory-policy"), 0);
}

/// A weir that has two connections to Redis, one for each thread, and all of them.
fn on_two_threads(rules: &Path, url: &str, timeout: &str) -> Weir {
    let arguments =
        ["--grpc", "127.0.0.1:0", "--threads", "2", "--redis", url, "--redis-timeout", timeout, "--rules"];
    let weir = Weir::start_with(arguments.into_iter().map(OsStr::new).chain([rules.as_os_str()]));
    weir.await_log("connected", 2);
    weir
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_lead_nowhere_are_given_up_and_others_take_their_place() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let url = redis.url();
    let weir = on_two_threads(rules.path(), &url, "20ms");
    redis.pause();
    let mut client = client(&weir).await;
    assert_eq!(take(&mut client, "x").await, 999);
    weir.await_log("no answer to PING", 2);
    assert_eq!(take(&mut client, "x").await, 998);
    redis.resume();
    weir.await_log("connected", 4);
    tokio::task::block_in_place(|| weir.await_closed());
    assert_eq!(take(&mut client, "x").await, 997);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_cut_while_nobody_asks_are_back_before_somebody_does() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weir = on_two_threads(rules.path(), &redis.url(), "2s");
    let mut connection = redis.connection();
    // Long enough connected to be connected to again at once.
    tokio::time::sleep(Duration::from_millis(2_200)).await;
    redis::cmd("CLIENT")
        .arg("KILL")
        .arg("TYPE")
        .arg("normal")
        .arg("SKIPME")
        .arg("yes")
        .query::<()>(&mut connection)
        .unwrap();
    weir.await_log("connected", 4);
    client(&weir).await.should_rate_limit(request("api", &[("day", b"x")])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_circuit_open_is_named_also_if_it_is_not_what_opened_it() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weir = Weir::start_with_redis(rules.path(), &redis.url());
    let mut connection = redis.connection();
    let mut tell =
        |words: &[&str]| redis::cmd(words[0]).arg(&words[1..]).query::<()>(&mut connection).unwrap();
    let mut client = client(&weir).await;
    tell(&["CONFIG", "SET", "maxmemory", "1"]);
    for _ in 0..20 {
        take(&mut client, "x").await;
    }
    let says = |what: &str, why: &str| {
        let said = |line: &str| line.contains(what) && line.contains(&format!("reason=\"{why}\""));
        weir.log().lines().any(said)
    };
    assert!(says("circuit opened", "oom"));
    tell(&["REPLICAOF", "127.0.0.1", "1"]);
    tokio::task::block_in_place(|| {
        await_that("a probe meets a replica", || says("circuit stays open", "readonly"));
    });
    assert!(!says("circuit opened", "readonly"));
    assert!(!weir.log().contains("Some("), "as Rust has it, not as its reader: {}", weir.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_redis_refuses_is_said_once_and_a_server_that_is_no_primary_is_left() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let weir = Weir::start_with_redis(rules.path(), &redis.url());
    let mut connection = redis.connection();
    let mut config = |name: &str, value: &str| {
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query::<()>(&mut connection).unwrap();
    };
    let mut client = client(&weir).await;
    assert_eq!(take(&mut client, "x").await, 999);
    config("maxmemory", "1");
    for left in (979..999).rev() {
        assert_eq!(take(&mut client, "x").await, left);
    }
    assert_eq!(weir.logged("Redis refuses to decide"), 1);
    assert_eq!(weir.logged("circuit opened"), 1);
    config("maxmemory", "0");
    weir.await_log("circuit closed", 1);
    assert_eq!(
        weir.logged("circuit probing"),
        1 + weir.logged("circuit stays open"),
        "each change is said once"
    );
    assert_eq!(take(&mut client, "x").await, 978);

    let mut connection = redis.connection();
    redis::cmd("REPLICAOF").arg("127.0.0.1").arg("1").query::<()>(&mut connection).unwrap();
    let mut left = 978;
    while weir.logged("circuit opened") < 2 || left > 958 {
        left -= 1;
        assert_eq!(take(&mut client, "x").await, left);
        assert!(left > 100, "each new connection is to a replica, which is a failure");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(weir.logged("a connection broke") >= 2);
    assert!(weir.logged("a connection broke") < 10, "not one for each call");
    redis::cmd("REPLICAOF").arg("NO").arg("ONE").query::<()>(&mut connection).unwrap();
    weir.await_log("circuit closed", 2);
    assert_eq!(take(&mut client, "x").await, left - 1);
}

#[test]
fn files_that_cannot_be_used_end_the_start_and_are_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    for (arguments, said) in [
        (["--redis", "redis://localhost", "--redis-password-file", "/nowhere"], "/nowhere: No such file"),
        (["--redis", "redis://localhost", "--redis-ca", path], "the URL begins with rediss://"),
        (
            ["--redis", "rediss://localhost", "--redis-cert", path],
            "come together: --redis-cert and --redis-key",
        ),
        (["--redis", "rediss://localhost", "--redis-ca", path], "no certificate in it"),
    ] {
        let rules = rules(RULES);
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_weir"));
        command.arg("serve").args(["--grpc", "127.0.0.1:0", "--rules"]).arg(rules.path()).args(arguments);
        let output = command.output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}

#[test]
fn a_url_that_is_none_is_said_at_the_start() {
    for (url, said) in [
        ("http://localhost", "redis://user:password@host"),
        ("rediss://localhost/#insecure", "name its authority with --redis-ca"),
        ("redis://:secret@localhost:notaport", "redis://user:password@host"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
            .args(["serve", "--grpc", "127.0.0.1:0", "--redis", url])
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{error}");
        assert!(error.contains(said) && !error.contains("secret"), "{error}");
    }
}
