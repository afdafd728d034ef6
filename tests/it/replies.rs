//! What clients are told, through a real Envoy: bodies, headers, warnings, what its access log says, and charges that come
//! when an answer has ended.

use std::ffi::OsStr;
use std::path::Path;

use tempfile::TempDir;

use crate::support::envoy::{Envoy, Response, get, post};
use crate::support::server::rules;
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
