//! What a process writes to its log, and what it does not.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use weir::proto::RateLimitServiceClient;

use crate::support::redis::RedisServer;
use crate::support::server::{request, rules};
use crate::support::weir::Weir;

const RULES: &str = "
domain: api
descriptors:
  - { key: user, rate_limit: { unit: day, requests_per_unit: 1, name: one } }
";

/// A server with these flags, which has denied a user two hundred times.
async fn that_denies(flags: &[&str], rules: &Path) -> Weir {
    let flags = ["--grpc", "127.0.0.1:0", "--drain-delay", "0s"].iter().chain(flags).map(OsStr::new);
    let weir = Weir::start_with(flags.chain([OsStr::new("--rules"), rules.as_os_str()]));
    let mut client = RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap();
    for _ in 0..201 {
        client.should_rate_limit(request("api", &[("user", b"ann@example.org")])).await.unwrap();
    }
    weir
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denials_are_logged_by_the_second_with_their_rule_and_without_values() {
    let rules = rules(RULES);
    let start = weir::clock::instant();
    let weir = that_denies(&[], rules.path()).await;
    // A line for each second that has begun, not one a call.
    let most = 2 + usize::try_from(start.elapsed().as_secs()).unwrap();
    weir.await_log("denied", 1);
    let lines = weir.logged("denied");
    assert!((1..=most).contains(&lines), "{lines}, at most {most}");
    assert!(weir.logged("weir::denials") == lines && weir.logged("rule=\"one\"") == lines);
    assert_eq!(weir.logged("ann@example.org"), 0);
    weir.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_logged_where_that_is_allowed_and_no_denials_where_none_are_wanted() {
    let rules = rules(RULES);
    let weir = that_denies(&["--log-keys"], rules.path()).await;
    weir.await_log("user=ann@example.org", 1);
    weir.stop();
    let weir = that_denies(&["--log-denials", "0"], rules.path()).await;
    weir.signal(Signal::USR2);
    // Written after the denials would have been.
    weir.await_log("log level changed", 1);
    assert_eq!(weir.logged("denied"), 0);
    weir.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_change_what_is_logged_and_back() {
    let rules = rules(RULES);
    let weir = that_denies(&["--log-denials", "0"], rules.path()).await;
    let mut client = RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap();
    let mut elsewhere = async || {
        client.should_rate_limit(request("elsewhere", &[("user", b"ann")])).await.unwrap();
    };
    elsewhere().await;
    weir.signal(Signal::USR1);
    weir.await_log("log level changed", 1);
    assert_eq!(weir.logged("unknown domain"), 0, "that is for debugging");
    elsewhere().await;
    weir.await_log("unknown domain", 1);
    weir.signal(Signal::USR2);
    weir.await_log("log level changed", 2);
    elsewhere().await;
    weir.hang_up();
    weir.await_log("have not changed", 1);
    assert_eq!(weir.logged("unknown domain"), 1);
    weir.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_trouble_are_not_logged_one_by_one() {
    let rules = rules(RULES);
    // Nobody listens there.
    let flags = ["--redis", "redis://127.0.0.1:1", "--log-denials", "0"];
    let weir = that_denies(&flags, rules.path()).await;
    weir.await_log("circuit opened", 1);
    let troubled = weir.logged("WARN") + weir.logged("ERROR");
    assert!((1..10).contains(&troubled), "{troubled} lines of trouble for 201 calls");
    weir.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_logged_however_much_is() {
    let (redis, rules) = (RedisServer::start(), rules(RULES));
    let directory = tempfile::tempdir().unwrap();
    let [token, password] = ["token", "password"].map(|name| directory.path().join(name));
    std::fs::write(&token, "t0ken-in-a-file").unwrap();
    std::fs::write(&password, "w0rd-in-a-file").unwrap();
    let user = ["limiter", "on", ">w0rd-in-a-url", ">w0rd-in-a-file", "~*", "+@all"];
    redis::cmd("ACL").arg("SETUSER").arg(&user).query::<()>(&mut redis.connection()).unwrap();
    let (token, other) = (token.to_str().unwrap(), password.to_str().unwrap());
    let url = format!("redis://limiter:w0rd-in-a-url@{}", redis.host());
    let named = format!("other=redis://limiter@{}?password_file={other}", redis.host());
    let wrong = format!("wrong=redis://limiter:w0rd-that-is-wrong@{}", redis.host());
    let flags = [
        "--redis",
        &url,
        "--redis-store",
        &named,
        "--redis-store",
        &wrong,
        "--http-token-file",
        token,
        "--log",
        "debug,weir=trace",
    ];
    let weir = that_denies(&flags, rules.path()).await;
    weir.await_log("authentication failed", 1);
    for bearer in ["t0ken-in-a-file", "t0ken-that-is-wrong"] {
        let mut stream = tokio::net::TcpStream::connect(weir.http()).await.unwrap();
        let message = format!(
            "GET /rules HTTP/1.1\r\nhost: weir\r\nconnection: close\r\nauthorization: Bearer {bearer}\r\n\r\n"
        );
        stream.write_all(message.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(if bearer.ends_with("file") { "HTTP/1.1 200" } else { "HTTP/1.1 401" }),
            "{answer}"
        );
    }
    weir.signal(Signal::TERM);
    weir.await_log("stopped", 1);
    for secret in ["w0rd", "t0ken"] {
        assert_eq!(weir.logged(secret), 0, "{secret}");
    }
}

#[test]
fn a_log_of_json_has_an_object_a_line() {
    let rules = rules(RULES);
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(["serve", "--log-format", "json", "--grpc", "127.0.0.1:0", "--rules"])
        .arg(rules.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok) {
        let line: serde_json::Value = serde_json::from_str(&line).expect(&line);
        let is_last = line["message"] == "serving";
        told.push(line);
        if is_last {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let loaded = told.iter().find(|line| line["message"] == "rules loaded").expect("the rules are told of");
    assert_eq!((&loaded["level"], &loaded["limits"]), (&"INFO".into(), &1.into()));
    assert!(told.last().unwrap()["grpc"].as_str().unwrap().starts_with("127.0.0.1:"));
}
