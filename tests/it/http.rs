//! HTTP: every endpoint, who may ask, and what a client can do wrong.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use weir::settings::Settings;

use crate::support::http::{Answer, get, parse, send};
use crate::support::server::{Server, rules, settings};
use crate::support::weir::Weir;

const RULES: &str = "
domain: api
descriptors:
  - { key: user, rate_limit: { unit: hour, requests_per_unit: 2 } }
  - { key: path, value: /a*, share_threshold: true, shadow_mode: true, rate_limit: { name: a, unit: 15m, requests_per_unit: 60, burst: 7 } }
  - { key: free, rate_limit: { unlimited: true } }
";

/// How long a test waits for what should come soon.
const PATIENCE: Duration = Duration::from_secs(30);

async fn post(to: SocketAddr, body: impl AsRef<[u8]>) -> Answer {
    let body = body.as_ref();
    let head = format!(
        "POST /json HTTP/1.1\r\nhost: weir\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    send(to, &[head.as_bytes(), body].concat()).await
}

async fn server(change: impl FnOnce(&mut Settings)) -> (Server, tempfile::TempDir) {
    let rules = rules(RULES);
    let mut settings = settings(rules.path());
    change(&mut settings);
    (Server::start(settings).await, rules)
}

fn user(name: &str) -> String {
    json!({ "domain": "api", "descriptors": [{ "entries": [{ "key": "user", "value": name }] }] }).to_string()
}

#[tokio::test]
async fn json_is_decided_as_grpc_is_with_200_or_429() {
    let (server, _rules) = server(|_| ()).await;
    for left in [1, 0] {
        let answer = post(server.http(), user("zoe")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let json = answer.json();
        assert_eq!(json["overallCode"], "OK");
        let [status] = &json["statuses"].as_array().unwrap()[..] else { panic!("{json}") };
        assert_eq!(status["currentLimit"], json!({ "requestsPerUnit": 2, "unit": "HOUR" }));
        assert_eq!(status.get("limitRemaining").map_or(0, |left| left.as_u64().unwrap()), left);
    }
    let denied = post(server.http(), user("zoe")).await;
    assert_eq!((denied.status, &denied.json()["overallCode"]), (429, &json!("OVER_LIMIT")));
    assert_eq!(denied.header("retry-after"), Some("1800"));
    assert_eq!(post(server.http(), user("ann")).await.status, 200);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_json_is_400_and_too_much_of_it_413() {
    let (server, _rules) = server(|settings| settings.max_message_bytes = 1_000.try_into().unwrap()).await;
    for (body, said) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[1]", "invalid"),
        (r#"{"domian":"api"}"#, "domian"),
        (r#"{"domain":"","descriptors":[{"entries":[{"key":"a"}]}]}"#, "domain: empty"),
        (r#"{"domain":"api"}"#, "descriptors"),
        (r#"{"domain":"api","descriptors":[{"entries":[{"key":""}]}]}"#, "key"),
    ] {
        let answer = post(server.http(), body).await;
        assert_eq!(answer.status, 400, "{body}: {answer:?}");
        assert!(answer.error().contains(said), "{body}: {answer:?}");
    }
    let huge = user(&"x".repeat(1_000));
    let answer = post(server.http(), &huge).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    assert!(answer.error().contains("--max-message-bytes"), "{answer:?}");
    // The same without saying beforehand how long it is.
    let head = "POST /json HTTP/1.1\r\nhost: weir\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunked = format!("{head}{:x}\r\n{huge}\r\n0\r\n\r\n", huge.len());
    assert_eq!(send(server.http(), chunked.as_bytes()).await.status, 413);
    // And one that says that it is as long as no memory, and is not read at all.
    let head =
        "POST /json HTTP/1.1\r\nhost: weir\r\nconnection: close\r\ncontent-length: 99999999999\r\n\r\n";
    assert_eq!(send(server.http(), head.as_bytes()).await.status, 413);
    let browser = "POST /json HTTP/1.1\r\nhost: weir\r\norigin: http://x.example\r\nconnection: close\r\n\
        content-length: 2\r\n\r\n{}";
    assert_eq!(send(server.http(), browser.as_bytes()).await.status, 403, "another site's page");
    let told = get(server.http(), "/metrics", "").await.body;
    // The empty domain, descriptor and key could be read, and not be meant.
    for calls in ["{result=\"invalid_argument\"} 3", "{result=\"unreadable\"} 7"] {
        assert!(told.contains(&format!("weir_calls_total{calls}\n")), "{calls} is not in\n{told}");
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_is_404_and_what_cannot_be_done_405_in_json() {
    let (server, _rules) = server(|_| ()).await;
    let nothing = get(server.http(), "/", "").await;
    assert_eq!(nothing.status, 404);
    assert_eq!(
        nothing.error(),
        "nothing is at /; there is /livez, /readyz, /healthcheck, /metrics, /rules and /json"
    );
    let wrong = get(server.http(), "/json", "").await;
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("post")));
    assert_eq!(wrong.error(), "GET /json: only POST is possible");
    let head = send(server.http(), b"HEAD /livez HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    for answer in [nothing, wrong, head] {
        for (name, value) in [
            ("cache-control", "no-store"),
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "deny"),
            ("referrer-policy", "no-referrer"),
            ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{answer:?}");
        }
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn metrics_are_told_in_the_format_that_is_asked_for() {
    let (server, _rules) = server(|_| ()).await;
    post(server.http(), user("zoe")).await;
    let plain = get(server.http(), "/metrics", "").await;
    assert_eq!(plain.status, 200);
    assert!(plain.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"), "{plain:?}");
    for line in [
        "weir_calls_total{result=\"ok\"} 1",
        "weir_connections{listener=\"http\"} 1",
        "weir_connections_accepted_total{listener=\"http\"} 2",
        "weir_connections_refused_total{listener=\"grpc\"} 0",
        "weir_calls_under_way 0",
        "weir_calls_shed_total 0",
    ] {
        assert!(plain.body.contains(line), "{line} is not in\n{}", plain.body);
    }
    let open =
        get(server.http(), "/metrics", "accept: application/openmetrics-text; version=1.0.0\r\n").await;
    assert!(open.header("content-type").unwrap().starts_with("application/openmetrics-text"), "{open:?}");
    assert!(open.body.ends_with("# EOF\n"));
    server.stop().await.unwrap();
}

/// What `/rules` tells as soon as it is this.
async fn until(server: &Server, is_so: impl Fn(&Value) -> bool) -> Value {
    let told = async {
        loop {
            let told = get(server.http(), "/rules", "").await.json();
            if is_so(&told) {
                return told;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("files are seen")
}

#[tokio::test]
async fn the_rules_in_force_are_told_and_what_is_wrong_with_those_that_are_not() {
    let (server, directory) = server(|_| ()).await;
    let told = get(server.http(), "/rules", "").await.json();
    let in_force = &told["in_force"];
    assert_eq!(
        (&in_force["version"], &in_force["limits"], &in_force["files"]),
        (&json!(1), &json!(3), &json!(1))
    );
    assert_eq!(in_force["hash"].as_str().unwrap().len(), 64);
    assert!(in_force["since"].as_str().unwrap().starts_with("20"), "{in_force}");
    assert_eq!(told["refused"], Value::Null);
    let [domain] = &told["domains"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!(domain["name"], "api");
    let rules = domain["rules"].as_array().unwrap();
    let names: Vec<_> = rules.iter().map(|rule| rule["rule"].as_str().unwrap()).collect();
    assert_eq!(names, ["api.free", "api.path_/a*", "api.user"]);
    assert_eq!(rules[0]["limits"][0]["unlimited"], true);
    assert_eq!(rules[1]["mode"], "shadow");
    let limit = &rules[1]["limits"][0];
    for (field, value) in [
        ("name", json!("a")),
        ("requests_per_unit", json!(60)),
        ("unit", json!("15m")),
        ("burst", json!(7)),
        ("algorithm", json!("token_bucket")),
    ] {
        assert_eq!(limit[field], value, "{field}: {limit}");
    }
    assert!(limit["source"].as_str().unwrap().contains("rules.yaml:5:"), "{limit}");

    let tiers = "domain: tiers\ntiers: { free: { calls: 6/minute }, pro: { calls: unlimited } }\n\
        subjects: { user: { default: free } }\ndescriptors: [ { key: user, tier_limit: calls } ]\n";
    fs::write(directory.path().join("tiers.yaml"), tiers).unwrap();
    let told = until(&server, |told| told["in_force"]["version"] == 2).await;
    assert_eq!(told["domains"][1]["name"], "tiers");
    let of_tiers = &told["domains"][1]["rules"][0]["tiers"];
    assert_eq!(
        (&of_tiers[0]["tier"], &of_tiers[0]["limits"][0]["requests_per_unit"]),
        (&json!("free"), &json!(6))
    );
    assert_eq!((&of_tiers[1]["tier"], &of_tiers[1]["limits"][0]["unlimited"]), (&json!("pro"), &json!(true)));

    fs::write(directory.path().join("more.yaml"), "domain: web\ndescriptors: x\n").unwrap();
    let told = until(&server, |told| told["refused"] != Value::Null).await;
    let problem = told["refused"]["problems"][0].as_str().unwrap();
    assert!(problem.contains("more.yaml:2:14 descriptors: expected a list"), "{problem}");
    assert_eq!(told["in_force"]["version"], 2, "the last good set stays");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn readiness_waits_for_rules_and_tells_of_stores_to_those_who_may_know() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rules");
    let token = directory.path().join("token");
    fs::write(&token, "s3cret").unwrap();
    let mut settings = settings(&path);
    settings.http.http_token_file = Some(token);
    let server = Server::start(settings).await;
    for path in ["/readyz", "/healthcheck"] {
        let unready = get(server.http(), path, "").await;
        assert_eq!(unready.status, 503);
        assert_eq!(unready.json(), json!({ "ready": false, "rules": false, "draining": false }));
    }
    assert_eq!(get(server.http(), "/livez", "").await.status, 200);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("api.yaml"), RULES).unwrap();
    let ready = async {
        while get(server.http(), "/readyz", "").await.status != 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ready).await.expect("the rules are seen");
    let told = get(server.http(), "/readyz", "authorization: Bearer s3cret\r\n").await.json();
    assert_eq!(told["ready"], true);
    let store = &told["stores"][0];
    assert_eq!((&store["kind"], &store["buckets"]), (&json!("memory"), &json!(0)));
    assert!(store["limit"].as_u64().unwrap() >= 1_000_000, "{store}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_redis_that_is_away_is_told_of_and_makes_nobody_unready() {
    let directory = rules(RULES);
    // Nobody listens there.
    let arguments = ["--grpc", "127.0.0.1:0", "--redis", "redis://127.0.0.1:1", "--rules"].map(OsStr::new);
    let weir = Weir::start_with(arguments.into_iter().chain([directory.path().as_os_str()]));
    let ready = get(weir.http(), "/readyz", "").await;
    assert_eq!(ready.status, 200, "{ready:?}");
    let told = ready.json();
    let store = told["stores"].as_array().unwrap().iter().find(|store| store["kind"] == "redis").unwrap();
    assert_eq!((&store["node"], &store["connected"]), (&json!("127.0.0.1:1"), &json!(false)));
    assert!(["closed", "open", "probing"].iter().any(|state| store["breaker"] == *state), "{store}");
    tokio::task::spawn_blocking(|| weir.stop()).await.unwrap();
}

#[tokio::test]
async fn a_process_that_drains_is_alive_and_not_ready_and_answers_until_the_end() {
    let directory = rules(RULES);
    let arguments = ["--grpc", "127.0.0.1:0", "--drain-delay", "60s", "--drain-timeout", "120s", "--rules"];
    let weir = Weir::start_with(arguments.map(OsStr::new).into_iter().chain([directory.path().as_os_str()]));
    assert_eq!(get(weir.http(), "/readyz", "").await.status, 200);
    weir.signal(Signal::TERM);
    weir.await_log("draining", 1);
    let told = async {
        loop {
            let unready = get(weir.http(), "/readyz", "").await;
            if unready.status == 503 {
                return unready.json();
            }
        }
    };
    let told = tokio::time::timeout(PATIENCE, told).await.expect("not ready any more");
    assert_eq!((&told["rules"], &told["draining"]), (&json!(true), &json!(true)));
    assert_eq!(get(weir.http(), "/livez", "").await.status, 200);
    assert_eq!(get(weir.http(), "/metrics", "").await.status, 200);
    assert_eq!(post(weir.http(), user("zoe")).await.status, 200);
    weir.signal(Signal::INT);
    tokio::task::spawn_blocking(|| weir.stop()).await.unwrap();
}

#[tokio::test]
async fn only_the_right_token_opens_what_is_no_probe() {
    let directory = tempfile::tempdir().unwrap();
    let token = directory.path().join("token");
    fs::write(&token, "s3cret\n").unwrap();
    let (server, _rules) = server(|settings| settings.http.http_token_file = Some(token)).await;
    for path in ["/metrics", "/rules"] {
        for wrong in ["", "authorization: Bearer s3cre\r\n", "authorization: Basic s3cret\r\n"] {
            let answer = get(server.http(), path, wrong).await;
            assert_eq!(
                (answer.status, answer.header("www-authenticate")),
                (401, Some("bearer realm=\"weir\""))
            );
            assert!(
                answer.error().contains("--http-token-file") && !answer.body.contains("s3cre"),
                "{answer:?}"
            );
        }
        assert_eq!(get(server.http(), path, "authorization: Bearer s3cret\r\n").await.status, 200);
    }
    assert_eq!(post(server.http(), user("zoe")).await.status, 401);
    for path in ["/livez", "/readyz", "/healthcheck"] {
        assert_eq!(get(server.http(), path, "").await.status, 200, "{path}");
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn only_addresses_in_the_ranges_may_ask_for_more_than_probes() {
    let (server, _rules) =
        server(|settings| settings.http.http_allow = vec!["192.0.2.0/24".parse().unwrap()]).await;
    let refused = get(server.http(), "/metrics", "").await;
    assert_eq!(refused.status, 403);
    assert!(refused.error().starts_with("127.0.0.1 may not ask for this; --http-allow"), "{refused:?}");
    let ready = get(server.http(), "/readyz", "").await;
    assert_eq!((ready.status, ready.json().get("stores")), (200, None));
    server.stop().await.unwrap();
}

#[tokio::test]
async fn slow_senders_and_silent_connections_are_ended_and_others_served_meanwhile() {
    let (server, _rules) =
        server(|settings| settings.serving.request_timeout = Duration::from_millis(300)).await;
    const SLOW: [&[u8]; 4] = [
        b"",
        b"GET /livez HT",
        b"GET /livez HTTP/1.1\r\nhost: weir\r\n",
        b"POST /json HTTP/1.1\r\nhost: weir\r\ncontent-length: 100\r\n\r\n{",
    ];
    let http = server.http();
    let slow = SLOW.map(|sent| {
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(http).await.unwrap();
            stream.write_all(sent).await.unwrap();
            let mut answer = Vec::new();
            _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
            String::from_utf8(answer).unwrap()
        })
    });
    assert_eq!(post(server.http(), user("zoe")).await.status, 200);
    let mut answers = Vec::new();
    for slow in slow {
        answers.push(slow.await.unwrap());
    }
    assert_eq!(answers[..2], ["", ""]);
    assert!(answers[2].is_empty() || answers[2].starts_with("HTTP/1.1 408 "), "{answers:?}");
    assert!(answers[3].starts_with("HTTP/1.1 408 ") && answers[3].contains("within 300ms"), "{answers:?}");
    server.stop().await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_kept_open_keeps_nobody_waiting_at_the_end() {
    let (server, _rules) = server(|_| ()).await;
    let mut kept = TcpStream::connect(server.http()).await.unwrap();
    kept.write_all(b"GET /livez HTTP/1.1\r\nhost: weir\r\n\r\n").await.unwrap();
    kept.read_exact(&mut [0; 12]).await.unwrap();
    let silent = TcpStream::connect(server.http()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(5), server.stop()).await.expect("at once").unwrap();
    drop((kept, silent));
}

#[tokio::test]
async fn http_is_answered_on_a_unix_socket_to_whoever_may_open_it() {
    use tokio::net::UnixStream;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("http.sock");
    let (server, _rules) = server(|settings| {
        settings.http.http = format!("unix:{}", path.display()).parse().unwrap();
        // Of addresses, none would be let in.
        settings.http.http_allow = vec!["192.0.2.0/24".parse().unwrap()];
    })
    .await;
    for path_asked in ["/livez", "/metrics"] {
        let mut stream = UnixStream::connect(&path).await.unwrap();
        let message = format!("GET {path_asked} HTTP/1.1\r\nhost: weir\r\nconnection: close\r\n\r\n");
        stream.write_all(message.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        assert_eq!(parse(&answer).status, 200, "{path_asked}");
    }
    server.stop().await.unwrap();
    assert!(!path.exists());
}

#[test]
fn http_can_be_off_and_its_settings_are_checked() {
    let directory = rules(RULES);
    let arguments = ["--grpc", "127.0.0.1:0", "--http", "off", "--rules"].map(OsStr::new);
    let weir = Weir::start_with(arguments.into_iter().chain([directory.path().as_os_str()]));
    assert_eq!(weir.logged("http="), 0);
    weir.stop();
    let refused = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_weir"))
            .arg("serve")
            .args(arguments)
            .arg("--rules")
            .arg(directory.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for (arguments, said) in [
        (["--http", "nowhere"], "or off"),
        (["--http-allow", "10.0.0.1/8"], "did you mean 10.0.0.0/8?"),
        (["--http-token-file", "/nowhere/token"], "--http-token-file /nowhere/token: No such file"),
    ] {
        let (code, error) = refused(&arguments);
        assert_eq!(code, Some(64), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}
