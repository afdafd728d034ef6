//! What clients are told, through a real Envoy: bodies, headers, warnings, what its access log says, and charges that come
//! when an answer has ended. And who says so: Redis, this process by itself, or its memory of what Redis said.

use std::ffi::OsStr;
use std::path::Path;

use prost_types::value::Kind;
use tempfile::TempDir;
use tonic::transport::Channel;
use weir::proto::{Code, RateLimitResponse, RateLimitServiceClient};

use crate::support::envoy::{Envoy, Response, get, post};
use crate::support::redis::{RedisServer, await_that};
use crate::support::server::{request, rules};
use crate::support::weir::Weir;

/// `envoy/envoy.yaml` in front of a weir with this file, for as long as what comes second.
fn api(file: &str) -> (Envoy, (Weir, TempDir)) {
    let rules = rules(file);
    let weir = Weir::start(rules.path());
    (Envoy::start("envoy.yaml", weir.grpc()), (weir, rules))
}

fn headers<'a>(answer: &'a Response, names: &[&str]) -> Vec<Option<&'a str>> {
    names.iter().map(|name| answer.header(name)).collect()
}

#[test]
fn a_denial_has_its_body_its_content_type_and_retry_after() {
    let (envoy, _weir) = api("
domain: api
descriptors:
  - { key: generic_key, value: api, rate_limit: { unit: day, requests_per_unit: 3 } }
  - { key: login_address, rate_limit: { unit: day, requests_per_unit: 1, message: Too many attempts. } }
  - key: user_id
    body: { content_type: application/json, text: '{\"error\":\"slow down\"}' }
    rate_limit: 1/day
");
    let user = get("/").header("x-user-id", "zoe");
    assert_eq!(envoy.send(&user).body, "hello\n");
    let denied = envoy.send(&user);
    assert_eq!((denied.status, denied.body.as_str()), (429, "{\"error\":\"slow down\"}"));
    assert_eq!(denied.header("content-type"), Some("application/json"));
    assert!((86_000..=86_400).contains(&denied.number("retry-after").unwrap()), "{denied:?}");

    assert_eq!(envoy.statuses(&post("/login"), 1), [200]);
    let denied = envoy.send(&post("/login"));
    assert_eq!((denied.status, denied.body.as_str()), (429, "Too many attempts."));
    assert_eq!(denied.header("content-type"), Some("text/plain; charset=utf-8"));
    assert_eq!(envoy.statuses(&get("/"), 2), [200, 429]);
    assert_eq!(envoy.send(&get("/")).body, "", "a limit that says nothing");
}

#[test]
fn headers_come_in_the_chosen_style_with_answers_and_denials() {
    let file = |headers: &str| {
        format!(
            "
domain: api
headers: {headers}
descriptors:
  - {{ key: generic_key, value: api, rate_limit: {{ name: all, unit: day, requests_per_unit: 2, algorithm: sliding_window }} }}
  - {{ key: user_id, rate_limit: 9/day }}
"
        )
    };
    let user = get("/").header("x-user-id", "zoe");
    {
        let (envoy, _weir) = api(&file("draft"));
        let answer = envoy.send(&user);
        let policy = "\"all\";q=2;w=86400, \"day\";q=9;w=86400";
        assert_eq!(headers(&answer, &["ratelimit-policy", "retry-after"]), [Some(policy), None]);
        let left = answer.header("ratelimit").unwrap();
        assert!(left.starts_with("\"all\";r=1;t=") && left.contains(", \"day\";r=8;t="), "{left}");
        assert_eq!(envoy.statuses(&user, 2), [200, 429]);
        let denied = envoy.send(&user);
        assert_eq!(denied.header("ratelimit-policy"), Some(policy));
        let left = denied.header("ratelimit").unwrap();
        assert!(left.starts_with("\"all\";r=0;t=") && left.contains(", \"day\";r=7;t="), "{left}");
    }
    {
        let (envoy, _weir) = api(&file("ratelimit"));
        let names = ["ratelimit-limit", "ratelimit-remaining"];
        assert_eq!(headers(&envoy.send(&user), &names), [Some("2"), Some("1")]);
        assert_eq!(headers(&envoy.send(&user), &names), [Some("2"), Some("0")]);
        let denied = envoy.send(&user);
        assert_eq!((denied.status, headers(&denied, &names)), (429, vec![Some("2"), Some("0")]));
        assert_eq!(denied.number("ratelimit-reset"), denied.number("retry-after"));
    }
    let (envoy, _weir) =
        api(&file("{ style: x-ratelimit, limit: X-Quota, remaining: X-Quota-Left, reset: X-Quota-Reset }"));
    for (status, left) in [(200, "1"), (200, "0"), (429, "0")] {
        let answer = envoy.send(&user);
        assert_eq!(answer.status, status);
        assert_eq!(headers(&answer, &["x-quota", "x-quota-left"]), [Some("2"), Some(left)]);
        assert!(answer.number("x-quota-reset").unwrap() > 0);
    }
}

#[test]
fn a_warning_comes_with_requests_that_pass() {
    let (envoy, _weir) = api("
domain: api
descriptors:
  - { key: user_id, warn_at: 0.5, rate_limit: 3/day }
");
    let warnings: Vec<_> = (0..4)
        .map(|_| {
            let answer = envoy.send(&get("/").header("x-user-id", "zoe"));
            let warning =
                answer.header("x-ratelimit-warning").map(|warning| warning.get(..9).unwrap().to_owned());
            (answer.status, warning)
        })
        .collect();
    let warning = |left: u8| Some(format!("\"day\";r={left}"));
    assert_eq!(warnings, [(200, None), (200, warning(1)), (200, warning(0)), (429, None)]);
}

#[test]
fn what_an_answer_took_is_charged_at_its_end_and_the_access_log_says_what_was_decided() {
    let weir = Weir::start_with(
        ["--grpc", "127.0.0.1:0", "--dynamic-metadata", "--rules"]
            .map(OsStr::new)
            .into_iter()
            .chain([Path::new("config/examples/llm.yaml").as_os_str()]),
    );
    let envoy = Envoy::start("llm.yaml", weir.grpc());
    let zoe = get("/").header("x-user-id", "zoe");
    // Nothing is known of its cost before it has been answered: it passes, and takes more than a minute's tokens.
    assert_eq!(envoy.send(&zoe.clone().header("x-tokens", "30000")).status, 200);
    // Envoy charges when the stream has ended, by a call that nobody waits for.
    let denied =
        (0..100).map(|_| envoy.send(&zoe)).find(|answer| answer.status == 429).expect("the debt counts");
    // 10000 tokens of debt and one more, at 333 a second.
    assert!((20..=31).contains(&denied.number("retry-after").unwrap()), "{denied:?}");
    assert_eq!(envoy.send(&get("/").header("x-user-id", "ann")).status, 200, "another user has none");

    let lines =
        envoy.accessed(|log| log.lines().any(|line| line.starts_with("429 ")) && log.lines().count() >= 3);
    let first = lines.lines().next().unwrap();
    assert_eq!(
        first,
        "200 rule=llm.user_id limit=60/minute remaining=9 over=false warning=false source=local"
    );
    let denied = lines.lines().find(|line| line.starts_with("429 ")).unwrap();
    assert_eq!(
        denied,
        "429 rule=llm.tokens_large.user_id limit=20000/minute remaining=0 over=true warning=false source=local"
    );
}

/// What is said of a request of so many hits of one key.
struct Said {
    denied: bool,
    left: u32,
    body: String,
    headers: Vec<(String, String)>,
    /// By the dynamic metadata.
    source: String,
    warning: bool,
}

impl Said {
    fn of(response: RateLimitResponse) -> Self {
        let metadata = response.dynamic_metadata.clone().unwrap_or_default().fields;
        let kind = |key: &str| metadata.get(key).and_then(|value| value.kind.clone());
        assert_eq!(kind("rule"), Some(Kind::StringValue("api.user".into())), "{response:?}");
        assert_eq!(kind("limit"), Some(Kind::StringValue("4/day".into())));
        let left = response.statuses[0].limit_remaining;
        assert_eq!(kind("remaining"), Some(Kind::NumberValue(left.into())));
        let denied = response.overall_code() == Code::OverLimit;
        assert_eq!(kind("over"), Some(Kind::BoolValue(denied)));
        let Some(Kind::StringValue(source)) = kind("source") else { panic!("{response:?}") };
        let headers = response.response_headers_to_add.into_iter();
        Self {
            denied,
            left,
            body: String::from_utf8(response.raw_body).unwrap(),
            headers: headers.map(|header| (header.key, header.value)).collect(),
            source,
            warning: kind("warning") == Some(Kind::BoolValue(true)),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

async fn say(client: &mut RateLimitServiceClient<Channel>, user: &str, hits: u64) -> Said {
    let mut asked = request("api", &[("user", user.as_bytes())]);
    asked.descriptors[0].hits_addend = Some(hits);
    Said::of(client.should_rate_limit(asked).await.unwrap().into_inner())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_told_the_same_by_redis_by_what_is_remembered_of_it_and_without_it() {
    let mut redis = RedisServer::start();
    let directory = rules(
        "
domain: api
headers: draft
descriptors:
  - { key: user, warn_at: 0.5, message: Come back tomorrow., rate_limit: 4/day }
",
    );
    let (path, url) = (directory.path().to_str().unwrap(), redis.url());
    let arguments = [
        "--grpc",
        "127.0.0.1:0",
        "--redis",
        &url,
        "--redis-timeout",
        "2s",
        "--dynamic-metadata",
        "--rules",
        path,
    ];
    let weir = Weir::start_with(arguments.map(OsStr::new));
    weir.await_log("connected", 2);
    let mut client = RateLimitServiceClient::connect(format!("http://{}", weir.grpc())).await.unwrap();

    let policy = Some("\"day\";q=4;w=86400");
    let check = |said: &Said, source: &str, left: u32| {
        assert_eq!((said.source.as_str(), said.left), (source, left));
        assert_eq!(said.header("ratelimit-policy"), policy);
        let state = said.header("ratelimit").unwrap();
        assert!(state.starts_with(&format!("\"day\";r={left};t=")), "{state}");
        let warned = !said.denied && left <= 2;
        assert_eq!((said.warning, said.header("x-ratelimit-warning").is_some()), (warned, warned));
        let wait = said.header("retry-after").map(|wait| wait.parse::<u32>().unwrap());
        assert_eq!(wait.is_some(), said.denied);
        assert!(wait.is_none_or(|wait| (21_500..=21_600).contains(&wait)), "{wait:?}");
        let body =
            if said.denied { ("Come back tomorrow.", Some("text/plain; charset=utf-8")) } else { ("", None) };
        assert_eq!((said.body.as_str(), said.header("content-type")), body);
    };

    check(&say(&mut client, "ann", 1).await, "redis", 3);
    check(&say(&mut client, "ann", 3).await, "redis", 0);
    let denied = say(&mut client, "ann", 1).await;
    assert!(denied.denied);
    check(&denied, "redis", 0);
    // For a second it is not asked again. Should the test have been away for longer, it is, and then remembered anew.
    let mut remembered = say(&mut client, "ann", 1).await;
    while remembered.source != "remembered" {
        assert!(remembered.denied);
        remembered = say(&mut client, "ann", 1).await;
    }
    check(&remembered, "remembered", 0);

    redis.kill();
    await_that("what is decided without Redis says so", || {
        tokio::task::block_in_place(|| {
            let said = tokio::runtime::Handle::current().block_on(say(&mut client, "bob", 0));
            said.source == "local"
        })
    });
    for left in [3, 2, 1, 0] {
        check(&say(&mut client, "bob", 1).await, "local", left);
    }
    let denied = say(&mut client, "bob", 1).await;
    assert!(denied.denied);
    check(&denied, "local", 0);
    tokio::task::spawn_blocking(|| weir.stop()).await.unwrap();
}
