//! weir behind a real Envoy: what a client sees.
//!
//! Limits are a few requests a day, so that nothing refills while a test runs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use tempfile::TempDir;

use crate::support::envoy::{Envoy, Response, get, post};
use crate::support::server::rules;
use crate::support::weir::Weir;

const DAY: u64 = 86400;

/// A directory with these rules for the domain of `envoy/envoy.yaml`.
fn api_rules(descriptors: &str) -> TempDir {
    rules(&format!("domain: api\ndescriptors:\n{descriptors}"))
}

/// `envoy/envoy.yaml` in front of a weir with these rules, which last as long as what comes second.
fn api(descriptors: &str) -> (Envoy, (Weir, TempDir)) {
    let rules = api_rules(descriptors);
    let weir = Weir::start(rules.path());
    (Envoy::start("envoy.yaml", weir.grpc()), (weir, rules))
}

/// `envoy/features.yaml` in front of a weir with its rules.
fn features() -> (Envoy, Weir) {
    let weir = Weir::start(Path::new("envoy/features"));
    (Envoy::start("features.yaml", weir.grpc()), weir)
}

#[test]
fn requests_pass_until_the_limit_and_then_get_429_with_all_headers() {
    let (envoy, _weir) = api("
  - { key: generic_key, value: api, rate_limit: { unit: day, requests_per_unit: 3 } }
");
    // Until the bucket is full again; once denied, until one more request fits. Rounded up to a second, and what
    // refilled while the test ran is taken off.
    let until = |answer: &Response, thirds: u64| {
        let seconds = answer.number("x-ratelimit-reset").unwrap();
        let most = DAY * thirds / 3;
        assert!((most - 120..=most).contains(&seconds), "{seconds} of at most {most}");
    };
    for passed in 1..=3 {
        let answer = envoy.send(&get("/"));
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-ratelimit-limit"), Some("3, 3;w=86400"));
        assert_eq!(answer.number("x-ratelimit-remaining"), Some(3 - passed));
        until(&answer, passed);
        assert_eq!(answer.header("retry-after"), None);
    }
    for _ in 0..3 {
        let answer = envoy.send(&get("/"));
        assert_eq!(answer.status, 429);
        assert_eq!(answer.header("x-envoy-ratelimited"), Some("true"));
        assert_eq!(answer.header("x-ratelimit-limit"), Some("3, 3;w=86400"));
        assert_eq!(answer.number("x-ratelimit-remaining"), Some(0));
        until(&answer, 1);
        assert_eq!(answer.header("retry-after"), answer.header("x-ratelimit-reset"));
    }
}

#[test]
fn each_address_has_its_own_limit_whatever_the_client_says_its_address_is() {
    let (envoy, _weir) = api("
  - { key: remote_address, rate_limit: { unit: day, requests_per_unit: 2 } }
  - { key: remote_address, value: 127.0.0.9 }
");
    assert_eq!(envoy.statuses(&get("/"), 3), [200, 200, 429]);
    assert_eq!(envoy.send(&get("/").header("x-forwarded-for", "192.0.2.1")).status, 429);
    assert_eq!(envoy.statuses(&get("/").from([127, 0, 0, 2]), 3), [200, 200, 429]);
    assert_eq!(envoy.statuses(&get("/").from([127, 0, 0, 9]), 5), [200; 5], "an exempt address");
}

#[test]
fn each_value_of_a_header_has_its_own_limit_and_a_request_without_it_has_none() {
    let (envoy, _weir) = api("
  - { key: user_id, rate_limit: { unit: day, requests_per_unit: 2 } }
");
    assert_eq!(envoy.statuses(&get("/").header("x-user-id", "zoe"), 3), [200, 200, 429]);
    assert_eq!(envoy.statuses(&get("/").header("x-user-id", "ann"), 3), [200, 200, 429]);
    assert_eq!(
        envoy.statuses(&get("/").header("x-user-id", ""), 3),
        [200, 200, 429],
        "an empty value is a value"
    );
    assert_eq!(envoy.statuses(&get("/"), 3), [200; 3]);
}

#[test]
fn a_descriptor_of_two_entries_limits_the_combination() {
    let (envoy, _weir) = api("
  - key: user_id
    descriptors:
      - { key: method, value: POST, rate_limit: { unit: day, requests_per_unit: 1 } }
");
    assert_eq!(envoy.statuses(&post("/").header("x-user-id", "zoe"), 2), [200, 429]);
    assert_eq!(envoy.statuses(&get("/").header("x-user-id", "zoe"), 2), [200; 2]);
    assert_eq!(envoy.statuses(&post("/").header("x-user-id", "ann"), 2), [200, 429]);
    assert_eq!(envoy.statuses(&post("/"), 2), [200; 2]);
}

#[test]
fn a_route_has_limits_of_its_own_beside_those_for_every_request() {
    let (envoy, _weir) = api("
  - { key: login_address, rate_limit: { unit: day, requests_per_unit: 2 } }
  - { key: path, value: /reports/*, share_threshold: true, rate_limit: { unit: day, requests_per_unit: 3 } }
  - { key: generic_key, value: api, rate_limit: { unit: day, requests_per_unit: 7 } }
");
    assert_eq!(envoy.statuses(&post("/login"), 3), [200, 200, 429]);
    assert_eq!(envoy.statuses(&post("/login").from([127, 0, 0, 2]), 1), [200], "another address");
    assert_eq!(envoy.statuses(&get("/reports/a?page=1"), 1), [200]);
    assert_eq!(envoy.statuses(&get("/reports/b"), 1), [200]);
    assert_eq!(envoy.statuses(&get("//x/../reports//c"), 2), [200, 429], "the same path, spelt differently");
    assert_eq!(envoy.send(&get("/reports%2Fd")).header("location"), Some("/reports/d"));
    // Six have passed, so the API has room for one.
    assert_eq!(envoy.statuses(&get("/"), 2), [200, 429]);
}

#[test]
fn a_request_that_one_descriptor_denies_is_charged_to_no_other() {
    let (envoy, _weir) = api("
  - { key: generic_key, value: api, rate_limit: { unit: day, requests_per_unit: 5 } }
  - { key: user_id, rate_limit: { unit: day, requests_per_unit: 2 } }
");
    assert_eq!(
        envoy.statuses(&get("/").header("x-user-id", "zoe"), 9),
        [200, 200, 429, 429, 429, 429, 429, 429, 429]
    );
    assert_eq!(envoy.statuses(&get("/"), 4), [200, 200, 200, 429], "of 5, zoe had 2");
    assert_eq!(
        envoy.statuses(&get("/").header("x-user-id", "ann"), 2),
        [429; 2],
        "now it is the other that denies"
    );
}

#[test]
fn a_header_that_is_not_utf_8_is_limited_like_any_other() {
    let (envoy, _weir) = api("
  - { key: user_id, rate_limit: { unit: day, requests_per_unit: 2 } }
");
    assert_eq!(envoy.statuses(&get("/").header("x-user-id", b"\xff\xfe"), 3), [200, 200, 429]);
    assert_eq!(
        envoy.statuses(&get("/").header("x-user-id", b"\xff\xfd"), 3),
        [200, 200, 429],
        "a different value"
    );
}

#[test]
fn a_header_of_50_kilobytes_is_limited_like_any_other() {
    let (envoy, _weir) = api("
  - { key: user_id, rate_limit: { unit: day, requests_per_unit: 2 } }
");
    let long = "x".repeat(50 * 1024);
    let [zoe, ann] = ["zoe", "ann"].map(|name| long.clone() + name);
    assert_eq!(envoy.statuses(&get("/").header("x-user-id", &zoe), 3), [200, 200, 429]);
    assert_eq!(
        envoy.statuses(&get("/").header("x-user-id", &ann), 3),
        [200, 200, 429],
        "they differ at the end"
    );
}

#[test]
fn each_action_of_features_yaml_is_limited_by_its_rule() {
    let (envoy, _weir) = features();
    let limited = [
        (get("/header-value").header("x-plan", "trial"), 3),
        (get("/header-missing"), 2),
        (get("/query?key=k1"), 3),
        (get("/query?key=k2"), 3),
        (get("/query-value?format=csv"), 2),
        (get("/network"), 4),
        (get("/clusters"), 3),
        (get("/metadata"), 2),
        (get("/expression?a=1"), 2),
        (get("/own-limit"), 4),
    ];
    for (request, limit) in limited {
        let mut expected = vec![200; limit];
        expected.extend([429; 2]);
        assert_eq!(envoy.statuses(&request, limit + 2), expected, "{request:?}");
    }
    assert_eq!(envoy.send(&get("/network").from([127, 0, 0, 2])).status, 429, "the same network");
    assert_eq!(envoy.send(&get("/network").from([127, 0, 1, 1])).status, 200, "another");
    let unlimited = [
        get("/header-value").header("x-plan", "paid"),
        get("/header-missing").header("authorization", "Basic em9lOg=="),
        get("/query"),
        get("/query-value?format=json"),
    ];
    for request in unlimited {
        assert_eq!(envoy.statuses(&request, 5), [200; 5], "{request:?}");
    }
}

#[test]
fn a_request_costs_what_its_hits_addend_says() {
    let (envoy, _weir) = features();
    assert_eq!(envoy.statuses(&get("/cost"), 3), [200, 200, 429], "3 hits each, of 7");
    assert_eq!(envoy.send(&get("/give-back")).number("x-ratelimit-remaining"), Some(4));
    assert_eq!(envoy.statuses(&get("/cost"), 2), [200, 429]);

    let costs = |hits| get("/cost-from-header").header("x-cost", hits);
    assert_eq!(envoy.send(&costs("0")).number("x-ratelimit-remaining"), Some(10));
    assert_eq!(envoy.send(&costs("7")).number("x-ratelimit-remaining"), Some(3));
    assert_eq!(envoy.send(&costs("4")).status, 429);
    assert_eq!(
        envoy.send(&costs("0")).number("x-ratelimit-remaining"),
        Some(3),
        "the denied request cost nothing"
    );
    assert_eq!(envoy.send(&costs("3")).number("x-ratelimit-remaining"), Some(0));
    assert_eq!(envoy.send(&costs("0")).status, 429, "nothing left to look at");
    let too_many = envoy.send(&costs("11"));
    assert_eq!((too_many.status, too_many.header("retry-after")), (429, None), "no use in waiting");
}

#[test]
fn requests_pass_while_weir_is_away_and_are_limited_again_when_it_is_back() {
    let rules = api_rules(
        "
  - { key: user_id, rate_limit: { unit: day, requests_per_unit: 2 } }
",
    );
    // An address that nobody else uses, so that nobody takes the port while weir is away.
    let weir = Weir::start_at("127.0.0.3:0", rules.path());
    let address = weir.grpc();
    let envoy = Envoy::start("envoy.yaml", address);
    let zoe = get("/").header("x-user-id", "zoe");
    assert_eq!(envoy.statuses(&zoe, 3), [200, 200, 429]);

    let restart = || {
        weir.stop();
        let answer = envoy.send(&zoe);
        assert_eq!(
            (answer.status, answer.header("x-ratelimit-limit")),
            (200, None),
            "nobody is there to deny"
        );
        assert_eq!(envoy.statuses(&zoe, 5), [200; 5]);

        let weir = Weir::start_at(address, rules.path());
        assert_eq!(envoy.statuses(&zoe, 3), [200, 200, 429], "from the first request on");
        weir
    };
    thread::scope(|scope| {
        let restart = scope.spawn(restart);
        while !restart.is_finished() {
            assert_eq!(envoy.send(&get("/")).status, 200, "no request fails over it");
        }
        restart.join().unwrap();
    });
}

#[test]
fn rules_that_change_in_mid_load_hold_from_then_on_and_no_request_fails() {
    let text = |limit: u64| {
        format!(
            "
  - {{ key: user_id, rate_limit: {{ unit: day, requests_per_unit: {limit} }} }}
  - {{ key: country, value: ZZ, rate_limit: {{ unit: day, requests_per_unit: 0 }} }}
"
        )
    };
    let rules = api_rules(&text(1_000));
    let weir = Weir::start(rules.path());
    let envoy = Envoy::start("envoy.yaml", weir.grpc());
    let (limits, seen) = mpsc::channel();
    let change = || {
        // What is sent was there before `limit`, up to the first that has it.
        let until = |limit| {
            let earlier: BTreeSet<u64> = seen.iter().take_while(|seen| *seen != limit).collect();
            assert!(earlier.len() <= 1, "{earlier:?} before {limit}");
        };
        until(1_000);
        for (version, limit) in [(2, 800), (3, 50_000), (4, 1_200)] {
            let text = format!("domain: api\ndescriptors:\n{}", text(limit));
            fs::write(rules.path().join("rules.yaml"), text).unwrap();
            weir.await_log(&format!(" version={version} "), 1);
            until(limit);
        }
        // A mistake changes nothing.
        fs::write(rules.path().join("rules.yaml"), "domain: api\ndescriptors: none\n").unwrap();
        weir.await_log("rules refused", 1);
        drop(seen);
    };
    thread::scope(|scope| {
        scope.spawn(change);
        for request in 0.. {
            // A bucket for each hundred, so that no limit is reached.
            let user = format!("user-{}", request / 100);
            let answer = envoy.send(&get("/").header("x-user-id", &user));
            let limit =
                answer.header("x-ratelimit-limit").and_then(|all| all.split_once(',')?.0.parse().ok());
            let limit: u64 = limit.unwrap_or_else(|| panic!("{answer:?}"));
            let remaining = limit - request % 100 - 1;
            assert_eq!((answer.status, answer.number("x-ratelimit-remaining")), (200, Some(remaining)));
            assert_eq!(envoy.send(&get("/").header("x-country", "ZZ")).status, 429);
            if limits.send(limit).is_err() {
                assert_eq!(limit, 1_200);
                break;
            }
        }
    });
}

#[test]
fn requests_are_refused_while_weir_is_away_where_failure_mode_deny_says_so() {
    let (envoy, weir) = features();
    assert_eq!(envoy.send(&get("/query?key=k1")).status, 200);
    weir.stop();
    assert_eq!(envoy.statuses(&get("/query?key=k1"), 3), [503; 3]);
}

#[test]
fn the_rules_of_config_have_one_for_each_descriptor_of_envoy_yaml() {
    let weir = Weir::start(Path::new("config"));
    let envoy = Envoy::start("envoy.yaml", weir.grpc());
    let all_but_login = post("/reports/2026").header("x-user-id", "zoe").header("x-country", "NZ");
    let answer = envoy.send(&all_but_login);
    // First the limit of the descriptor that has the least left, then those of all, in the order of the bootstrap.
    let limits = "30, 1000;w=3600, 1000;w=1, 20;w=1, 300;w=60, 30;w=60, 600;w=60";
    assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, Some(limits)));
    assert_eq!(answer.number("x-ratelimit-remaining"), Some(29));

    assert_eq!(envoy.statuses(&post("/login"), 6), [200, 200, 200, 200, 200, 429]);
    let denied = envoy.send(&post("/login"));
    // 15 minutes are no unit that the protocol knows, so this limit's window is not told.
    assert_eq!(denied.header("x-ratelimit-limit"), Some("5, 1000;w=1, 20;w=1"));
    assert!((60..=180).contains(&denied.number("retry-after").unwrap()), "{denied:?}");
}

#[test]
fn every_bootstrap_runs_as_it_is() {
    let shipped: BTreeSet<_> =
        fs::read_dir("envoy").unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(
        shipped,
        ["envoy.yaml", "features", "features.yaml", "llm.yaml", "replicas.yaml", "tls.yaml"]
            .map(Into::into)
            .into(),
        "and no other is there; the last two run in tests of their own, with more than a weir's port to fill in"
    );

    for (bootstrap, rules, path) in [
        ("envoy.yaml", "config", "/"),
        ("features.yaml", "envoy/features", "/metadata"),
        ("llm.yaml", "config/examples/llm.yaml", "/"),
    ] {
        let weir = Weir::start(Path::new(rules));
        let envoy = Envoy::start_as_shipped(bootstrap, weir.grpc());
        // It gives weir 20 ms, which may be too little while other tests have the machine.
        let limited = (0..100).any(|_| {
            let answer = envoy.send(&get(path).header("x-user-id", "zoe"));
            answer.status == 429 || answer.header("x-ratelimit-limit").is_some()
        });
        assert!(limited, "{bootstrap}: weir never answered in time");
    }
}
