//! Several Redises: one for each domain that says so, one for limits of a second.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;
use std::time::Duration;

use weir::proto::{Code, RateLimitRequest, RateLimitServiceClient};

use crate::support::redis::{RedisServer, await_that};
use crate::support::server::{request, rules};
use crate::support::weir::Weir;

const RULES: &str = "
domain: api
descriptors:
  - { key: day, rate_limit: { unit: day, requests_per_unit: 2 } }
  - { key: second, rate_limit: { unit: second, requests_per_unit: 1, burst: 1000 } }
";
const OF_ITS_OWN: &str = "
domain: apart
redis: apart
descriptors:
  - { key: second, rate_limit: { unit: second, requests_per_unit: 1, burst: 1000 } }
";

/// The names of all buckets in a server.
fn buckets(redis: &RedisServer) -> Vec<String> {
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("weir*").query(&mut redis.connection()).unwrap();
    keys.retain(|key| !key.starts_with("weir:!"));
    keys.sort_unstable();
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_limit_is_counted_in_the_store_that_the_rules_or_the_settings_say() {
    let [default, fast, apart] = [(); 3].map(|()| RedisServer::start());
    for (redis, keys) in [(&default, "~weir:*"), (&fast, "~weir@fast:*"), (&apart, "~weir@apart:*")] {
        // Its own keys and the notes of batches, and no other store's.
        let user = ["limiter", "on", ">secret", keys, "~weir:!*", "+@all"];
        redis::cmd("ACL").arg("SETUSER").arg(&user).query::<()>(&mut redis.connection()).unwrap();
    }
    let rules = rules(RULES);
    fs::write(rules.path().join("apart.yaml"), OF_ITS_OWN).unwrap();
    let password = tempfile::NamedTempFile::new().unwrap();
    fs::write(password.path(), "secret\n").unwrap();
    let file = password.path().to_str().unwrap();
    let named = |name: &str, redis: &RedisServer| {
        format!("{name}=redis://limiter@{}?password_file={file}", redis.host())
    };
    let (fast_url, apart_url) = (named("fast", &fast), named("apart", &apart));
    let url = format!("redis://limiter:secret@{}", default.host());
    let arguments = [
        "--grpc",
        "127.0.0.1:0",
        "--threads",
        "2",
        "--redis-timeout",
        "5s",
        "--redis",
        &url,
        "--redis-store",
        &fast_url,
        "--redis-store",
        &apart_url,
        "--remember-denials",
        "0s",
        "--redis-per-second",
        "fast",
        "--rules",
    ];
    let weir = Weir::start_with(arguments.map(OsStr::new).into_iter().chain([rules.path().as_os_str()]));
    // To each of three, one for each thread.
    weir.await_log("connected", 6);
    let mut client = RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap();
    let mut ask = async |request: RateLimitRequest| {
        client.should_rate_limit(request).await.unwrap().into_inner().overall_code()
    };
    for code in [Code::Ok, Code::Ok, Code::OverLimit] {
        assert_eq!(ask(request("api", &[("day", b"x")])).await, code);
    }
    // As many that the bucket is not full again, and gone, before it has been looked for.
    let many = |domain| {
        let mut request = request(domain, &[("second", b"x")]);
        request.descriptors[0].hits_addend = Some(500);
        request
    };
    assert_eq!(ask(many("api")).await, Code::Ok);
    assert_eq!(ask(many("apart")).await, Code::Ok);
    assert_eq!(buckets(&default), ["weir:api|day=x|day"]);
    assert_eq!(buckets(&fast), ["weir@fast:api|second=x|second"]);
    assert_eq!(buckets(&apart), ["weir@apart:apart|second=x|second"]);

    // A request over two stores is charged whole or not at all: what the one admitted is given back.
    let used = redis::cmd("GET").arg("weir@fast:api|second=y|second").to_owned();
    let mut both = request("api", &[("second", b"y"), ("day", b"y")]);
    both.descriptors[0].hits_addend = Some(300);
    for code in [Code::Ok, Code::Ok, Code::OverLimit] {
        assert_eq!(ask(both.clone()).await, code);
    }
    let mut rest = request("api", &[("second", b"y")]);
    rest.descriptors[0].hits_addend = Some(400);
    // There are 400 once the 300 are back, and before that a hundred.
    let start = weir::clock::instant();
    while ask(rest.clone()).await != Code::Ok {
        assert!(start.elapsed() < Duration::from_secs(20), "the other store's hits are not given back");
    }
    rest.descriptors[0].hits_addend = Some(1_000);
    rest.descriptors[0].is_negative_hits = true;
    assert_eq!(ask(rest).await, Code::Ok);
    let mut connection = fast.connection();
    await_that("a full bucket has no key", || {
        used.query::<Option<Vec<u8>>>(&mut connection).unwrap().is_none()
    });
    assert_eq!(buckets(&default), ["weir:api|day=x|day", "weir:api|day=y|day"]);

    // A store that nobody knows: the rules before stay.
    fs::write(rules.path().join("apart.yaml"), OF_ITS_OWN.replace("redis: apart", "redis: apartt")).unwrap();
    weir.hang_up();
    weir.await_log("did you mean `apart`?", 1);
    assert_eq!(weir.logged("secret"), 0, "no password is in the log");
}

#[test]
fn stores_that_make_no_sense_end_the_start_with_a_line_and_without_secrets() {
    let of_its_own = rules(OF_ITS_OWN);
    for (arguments, said) in [
        (&["--redis-store", "a b=redis://:secret@host"][..], "write name=URL"),
        (
            &["--redis-store", "default=redis://:secret@host"],
            "`default` is what the one of --redis is called",
        ),
        (&["--redis-store", "x=redis://:secret@host:none"], "--redis-store x: host 1 has a port"),
        (&["--redis-store", "x=redis://host", "--redis-store", "x=redis://host"], "there are two called `x`"),
        (
            &["--redis-store", "x=redis://host", "--remember-denials", "0s", "--redis-per-second", "y"],
            "no --redis-store is called `y`",
        ),
        (&["--redis-store", "apard=redis://host"], "apart"),
        (&[], "no store in Redis is called `apart`; there are none: --redis-store name=URL makes one"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.args(["serve", "--grpc", "127.0.0.1:0", "--redis", "redis://127.0.0.1:1", "--rules"]);
        let output = command.arg(of_its_own.path()).args(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {error}");
        assert!(error.contains(said) && !error.contains("secret"), "{arguments:?}: {error}");
    }
}
