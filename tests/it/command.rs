//! The command line as a person or an init system meets it: what is printed, exit codes, signals.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use weir::proto::RateLimitServiceClient;

use crate::support::server::{request, rules};
use crate::support::weir::Weir;

const RULES: &str =
    "domain: api\ndescriptors:\n  - { key: user, rate_limit: { unit: hour, requests_per_unit: 2 } }\n";

/// Exit code, standard output and standard error of a command that ends by itself.
fn run(arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.args(arguments).envs(environment.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn hit(weir: &Weir, arguments: &[&str]) -> (i32, String, String) {
    let target = weir.grpc().to_string();
    run(&[&["hit", "--target", &target, "--domain", "api"], arguments].concat(), &[])
}

#[test]
fn a_wrong_command_line_ends_with_64_and_says_what_is_wrong() {
    for (arguments, said) in [
        (&["serve", "--grcp", "x"][..], "--grpc"),
        (&["serve", "--grpc", "nowhere"], "write an IP address and a port"),
        (&["serve", "--max-buckets", "0"], "--max-buckets <COUNT>': write a whole number, 1 or more"),
        (&["serve", "--max-streams", "5000000000"], "write a whole number"),
        (&["serve", "--max-descriptors", "0"], "write a number from 1 to 1024"),
        (&["serve", "--drain-timeout", "soon"], "--drain-timeout"),
        (&["serve", "--log", "weir=louder"], "--log weir=louder: "),
        (&["serve", "--log", "infoo"], "`infoo` is no level"),
        (&["serve", "--log", ""], "`` is no level"),
        (&["hit", "--target", "::", "--domain", "api", "a=b"], "write host:port"),
        (&["explain", "--domain", "api", "user"], "`user` has no `=`"),
        (&["hit", "user=a"], "--domain"),
        (&["frobnicate"], "frobnicate"),
        (&[], "Usage: weir"),
    ] {
        let (code, printed, error) = run(arguments, &[]);
        assert_eq!((code, printed.as_str()), (64, ""), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}

#[test]
fn help_and_version_are_answers() {
    for arguments in
        [&["--help"][..], &["--version"], &["serve", "--help"], &["check", "--help"], &["hit", "--help"]]
    {
        let (code, printed, error) = run(arguments, &[]);
        assert_eq!((code, error.as_str()), (0, ""), "{arguments:?}");
        assert!(!printed.is_empty(), "{arguments:?}");
    }
}

#[test]
fn every_setting_has_a_variable_and_an_unknown_one_is_warned_about() {
    let (code, _, error) = run(&["serve"], &[("WEIR_GRPC", "nowhere")]);
    assert_eq!(code, 64, "{error}");
    let directory = rules("domain: [");
    let environment = [
        ("WEIR_RULES", directory.path().to_str().unwrap()),
        ("WEIR_MAX_BUKETS", "5"),
        ("WEIR_WHATEVER", "5"),
        ("WEIR_BOGUS", "5"),
        ("WEIR_SHADOW_MODE", "yes"),
    ];
    let (code, _, error) = run(&["serve"], &environment);
    assert_eq!(code, 64, "{error}");
    assert!(error.contains("WEIR_MAX_BUKETS sets nothing; did you mean WEIR_MAX_BUCKETS?"), "{error}");
    for name in ["WEIR_WHATEVER", "WEIR_BOGUS"] {
        let said = format!("{name} sets nothing; `weir serve --help` lists the variables");
        assert!(error.contains(&said), "{error}");
    }
}

#[test]
fn a_delay_that_leaves_no_time_to_drain_is_warned_about() {
    let directory = rules("domain: [");
    for (delay, timeout, is_odd) in [("5s", "5s", true), ("5s", "6s", false), ("0s", "0s", false)] {
        let arguments = ["serve", "--drain-delay", delay, "--drain-timeout", timeout, "--rules"];
        let (_, _, error) = run(&[&arguments[..], &[directory.path().to_str().unwrap()]].concat(), &[]);
        let said = "--drain-delay (5s) leaves nothing of --drain-timeout (5s)";
        assert_eq!(error.contains(said), is_odd, "{error}");
    }
}

#[test]
fn bad_rules_end_the_start_with_64_and_all_that_is_wrong() {
    let directory =
        rules("domain: api\ndescriptors:\n  - key: ''\n  - key: a\n    rate_limit: { unit: hors }\n");
    let path = directory.path().to_str().unwrap();
    for arguments in [&["serve", "--grpc", "127.0.0.1:0", "--rules", path][..], &["check", path]] {
        let (code, printed, error) = run(arguments, &[]);
        assert_eq!((code, printed.as_str()), (64, ""), "{error}");
        for said in [
            "rules.yaml:3:10 descriptors[0].key: the key is empty",
            "did you mean `hour`?",
            "weir: 2 errors in the rule files",
        ] {
            assert!(error.contains(said), "{said} is not in: {error}");
        }
    }
}

#[test]
fn an_address_that_is_taken_ends_the_start_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = rules(RULES);
    let address = taken.local_addr().unwrap().to_string();
    let (code, _, error) =
        run(&["serve", "--grpc", &address, "--rules", directory.path().to_str().unwrap()], &[]);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains(&format!("cannot listen on {address}")), "{error}");
}

/// A directory with two good files, of which one is odd.
fn odd_rules() -> TempDir {
    let directory = rules(RULES);
    let odd = "domain: web\ndescriptors:\n  - { key: a, shadow_mode: true }\n";
    fs::write(directory.path().join("more.yml"), odd).unwrap();
    directory
}

#[test]
fn check_says_what_is_there_and_what_is_odd() {
    let directory = odd_rules();
    let path = directory.path().to_str().unwrap();
    let (code, printed, error) = run(&["check", path], &[]);
    assert_eq!(code, 0, "{error}");
    let said = printed.lines().skip(1).collect::<Vec<_>>();
    assert!(said[0].starts_with("  hash ") && said[0].len() == "  hash ".len() + 64, "{printed}");
    assert_eq!(said[1..], ["  domain api: 1 limit", "  domain web: 0 limits", "ok, with 1 warning"]);
    assert!(error.contains("descriptors[0].shadow_mode: warning: says nothing without"), "{error}");

    for strict in ["--deny-warnings", "--strict"] {
        let (code, printed, _) = run(&["check", strict, path], &[]);
        assert_eq!(code, 64);
        assert!(printed.ends_with("not ok: 1 warning, and --deny-warnings\n"), "{printed}");
    }

    let empty = tempfile::tempdir().unwrap();
    let (code, _, error) = run(&["check", empty.path().to_str().unwrap()], &[]);
    assert_eq!(code, 64);
    assert!(error.contains("no *.yaml or *.yml file in this directory"), "{error}");
}

#[test]
fn check_answers_in_json_with_everything_that_is_wrong() {
    let check = |path: &Path, arguments: &[&str]| {
        let (code, printed, error) =
            run(&[&["check", "--format", "json", path.to_str().unwrap()], arguments].concat(), &[]);
        assert_eq!(error, "", "all of it is on standard output");
        (
            code,
            serde_json::from_str::<serde_json::Value>(&printed.replace(path.to_str().unwrap(), "RULES"))
                .unwrap(),
        )
    };
    let odd = odd_rules();
    for (arguments, code) in [(&[][..], 0), (&["--deny-warnings"], 64)] {
        let (exit, mut report) = check(odd.path(), arguments);
        let hash = report.as_object_mut().unwrap().remove("hash").unwrap();
        assert_eq!((exit, hash.as_str().unwrap().len()), (code, 64));
        let expected = serde_json::json!({
            "ok": code == 0,
            "path": "RULES",
            "files": 2,
            "domains": [ { "name": "api", "limits": 1 }, { "name": "web", "limits": 0 } ],
            "errors": 0,
            "warnings": 1,
            "problems": [ {
                "severity": "warning", "file": "RULES/more.yml", "line": 3, "column": 28,
                "path": "descriptors[0].shadow_mode", "message": report["problems"][0]["message"],
            } ],
        });
        assert_eq!(report, expected);
    }

    fs::write(odd.path().join("bad.yaml"), "domain: api\ndescriptors: [ { key: '' }, { kye: a } ]\n")
        .unwrap();
    let (code, report) = check(odd.path(), &[]);
    assert_eq!(
        (code, &report["ok"], &report["errors"], &report["warnings"]),
        (64, &false.into(), &3.into(), &1.into())
    );
    assert_eq!(report["problems"][0]["message"], "the key is empty");
    assert_eq!(report["problems"][0]["file"], "RULES/bad.yaml");

    let empty = tempfile::tempdir().unwrap();
    let (code, report) = check(empty.path(), &[]);
    let problem = serde_json::json!(
        { "severity": "error", "file": "RULES", "message": "no *.yaml or *.yml file in this directory" }
    );
    assert_eq!(
        (code, &report["errors"], &report["problems"]),
        (64, &1.into(), &serde_json::json!([problem]))
    );
}

#[test]
fn check_and_explain_know_the_stores_in_redis_that_they_are_told() {
    let directory = rules(RULES);
    let apart = "domain: web\nredis: apart\ndescriptors:\n  - { key: a, shadow_mode: true }\n  - { key: b, rate_limit: 1/day }\n";
    fs::write(directory.path().join("web.yaml"), apart).unwrap();
    let path = directory.path().to_str().unwrap();
    let check = |arguments: &[&str], environment: &[(&str, &str)]| {
        let (code, printed, error) = run(&[&["check", path], arguments].concat(), environment);
        (code, printed.lines().find(|line| line.contains("domain web")).unwrap_or_default().to_owned(), error)
    };
    let (code, line, _) = check(&[], &[]);
    let unchecked = "  domain web: 1 limit, in the Redis `apart`, if the server has one of that name (--redis-store apart says so here)";
    assert_eq!((code, line.as_str()), (0, unchecked));
    for arguments in [
        &["--redis-store", "fast", "--redis-store", "apart"][..],
        &["--redis-store", "apart=redis://:secret@nowhere"],
    ] {
        let (code, line, _) = check(arguments, &[]);
        assert_eq!((code, line.as_str()), (0, "  domain web: 1 limit, in the Redis `apart`"));
    }
    // As the server has it; and what is odd is told beside what is wrong.
    let (code, _, error) =
        check(&[], &[("WEIR_REDIS_STORE", "aparte=redis://:secret@nowhere fast=redis://x")]);
    assert_eq!(code, 64);
    for said in [
        "web.yaml:2:8 redis: no store in Redis is called `apart`; did you mean `aparte`?",
        "descriptors[0].shadow_mode: warning: says nothing",
        "weir: 1 error in the rule files",
    ] {
        assert!(error.contains(said), "{said}: {error}");
    }
    assert!(!error.contains("secret"), "{error}");

    let explain = |arguments: &[&str]| {
        run(&[&["explain", "--rules", path, "--domain", "web", "b=c"], arguments].concat(), &[])
    };
    let (code, printed, _) = explain(&[]);
    assert!(
        code == 0 && printed.contains("  bucket: domain `web`, b=c, limit `day`, in the Redis `apart`\n"),
        "{printed}"
    );
    let (code, _, error) = explain(&["--redis-store", "fast"]);
    assert!(code == 64 && error.contains("no store in Redis is called `apart`; there are `fast`"), "{error}");

    let (_, printed, _) = run(&["check", "--format", "json", path], &[]);
    let report: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(report["domains"][1], serde_json::json!({ "name": "web", "limits": 1, "redis": "apart" }));
}

#[test]
fn check_tells_github_what_is_wrong_beside_the_line() {
    let directory = odd_rules();
    fs::write(directory.path().join("a,b.yaml"), "domain: x\ndescriptors:\n  - { key: '100%*' }\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    let output =
        command.args(["check", "--format=github", "."]).current_dir(directory.path()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let mut lines = printed.lines();
    assert_eq!(
        lines.next(),
        Some(
            "::error file=a%2Cb.yaml,line=3,col=12,title=weir check::descriptors[0].key: \
             a key has no wildcards: put the `*` into `value`"
        )
    );
    let warning = "::warning file=more.yml,line=3,col=28,title=weir check::descriptors[0].shadow_mode: ";
    assert!(lines.next().unwrap().starts_with(warning), "{printed}");
    assert_eq!((lines.next(), lines.next()), (Some("not ok: 1 error, 1 warning"), None));
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn explain_tells_the_rule_the_limit_and_the_bucket_or_why_there_is_none() {
    let directory = rules(
        "
domain: api
descriptors:
  - { key: file, value: 'a/*', share_threshold: true, rate_limit: { unit: hour, requests_per_unit: 2, burst: 1 } }
  - { key: plan, rate_limit: { name: old, unit: hour, requests_per_unit: 2 } }
  - { key: offer, shadow_mode: true, rate_limit: { unit: 30s, requests_per_unit: 0, replaces: [ { name: old } ] } }
  - { key: free, rate_limit: { unlimited: true } }
",
    );
    let path = directory.path().to_str().unwrap();
    let explain = |domain: &str, descriptors: &[&str]| {
        let (code, printed, error) =
            run(&[&["explain", "--rules", path, "--domain", domain], descriptors].concat(), &[]);
        assert_eq!((code, error.as_str()), (0, ""));
        printed.replace(path, "")
    };
    assert_eq!(
        explain("api", &["file=a/x", "plan=p", "offer=o", "free=f", "none=n"]),
        "file=a/x
  file=a/x: matches `file` with value `a/*` (/rules.yaml:4:5)
  limit: 2 per hour, 1 at once (/rules.yaml:4:67)
  bucket: domain `api`, file=a/* shared by all that match, limit `hour`
plan=p
  plan=p: matches `plan` with any value (/rules.yaml:5:5)
  no limit: another descriptor's limit replaces `old`
offer=o
  offer=o: matches `offer` with any value (/rules.yaml:6:5)
  limit: 0 per 30s: nothing is admitted, in shadow mode: denies nothing (/rules.yaml:6:50)
  bucket: domain `api`, offer=o, limit `30s`
free=f
  free=f: matches `free` with any value (/rules.yaml:7:5)
  limit: none, it is unlimited (/rules.yaml:7:30)
none=n
  none=n: matches nothing
  no limit: no rule on this level has the key `none`; there is `file`, `free`, `offer`, `plan`
"
    );
    assert_eq!(
        explain("web", &["a=b"]),
        "there are no rules for domain `web`, so every call for it is OK; there is `api`\n"
    );
}

#[test]
fn explain_tells_of_lists_ranges_expressions_tiers_and_all_that_a_rule_says() {
    let directory = rules(
        "
domain: api
tiers:
  free: { requests: 60/minute }
  pro: { requests: 600/minute }
subjects: { user: { default: free, members: { zen: pro } } }
descriptors:
  - { key: ip, values: [localhost, home] }
  - { key: ip, cidr: [10.0.0.0/8], share_threshold: true, rate_limits: [20/second, 1000/15m] }
  - { key: ip, cidr: 10.1.0.0/16, rate_limit: unlimited }
  - { key: ip, regex: '[0-9.]+', rate_limit: 1/day }
  - { key: user, tier_limit: requests, cost: 2, warn_at: 0.8, enforce_percent: 50, on_redis_failure: deny }
",
    );
    let path = directory.path().to_str().unwrap();
    let descriptors = ["ip=home", "ip=10.2.0.1", "ip=10.1.0.1", "ip=1.2", "user=zen", "user=ann"];
    let arguments = ["explain", "--rules", path, "--domain", "api"];
    let (code, printed, error) = run(&[&arguments[..], &descriptors].concat(), &[]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(
        printed.replace(path, ""),
        "ip=home
  ip=home: matches `ip` with value `home` of a list (/rules.yaml:8:5)
  no limit: the rule has no limit, so it exempts what it matches
ip=10.2.0.1
  ip=10.2.0.1: matches `ip` in range `10.0.0.0/8` (/rules.yaml:9:5)
    not: value `home` is another value (/rules.yaml:8:5)
    not: value `localhost` is another value (/rules.yaml:8:5)
  limit: 20 per second, 20 at once (/rules.yaml:9:73)
  bucket: domain `api`, ip=cidr:10.0.0.0/8 shared by all that match, limit `second`
  limit: 1000 per 15m, 1000 at once (/rules.yaml:9:84)
  bucket: domain `api`, ip=cidr:10.0.0.0/8 shared by all that match, limit `15m`
ip=10.1.0.1
  ip=10.1.0.1: matches `ip` in range `10.1.0.0/16` (/rules.yaml:10:5)
    not: value `home` is another value (/rules.yaml:8:5)
    not: value `localhost` is another value (/rules.yaml:8:5)
  limit: none, it is unlimited (/rules.yaml:10:47)
ip=1.2
  ip=1.2: matches `ip` with regex `[0-9.]+` (/rules.yaml:11:5)
    not: value `home` is another value (/rules.yaml:8:5)
    not: value `localhost` is another value (/rules.yaml:8:5)
    not: not in range `10.0.0.0/8` (/rules.yaml:9:5)
    not: not in range `10.1.0.0/16` (/rules.yaml:10:5)
  limit: 1 per day, 1 at once (/rules.yaml:11:46)
  bucket: domain `api`, ip=1.2, limit `day`
user=zen
  user=zen: matches `user` with any value (/rules.yaml:12:5)
  tier: `pro`, named by `user`
  limit: 600 per minute, 600 at once (/rules.yaml:5:20)
  bucket: domain `api`, user=zen, limit `requests`
  enforced: on 50 callers of a hundred; this is none of them
  warns: from 0.8 of it on
  cost: a hit takes 2 tokens
  without Redis: denied
user=ann
  user=ann: matches `user` with any value (/rules.yaml:12:5)
  tier: `free`, the default of `user`
  limit: 60 per minute, 60 at once (/rules.yaml:4:21)
  bucket: domain `api`, user=ann, limit `requests`
  enforced: on 50 callers of a hundred; this is one of them
  warns: from 0.8 of it on
  cost: a hit takes 2 tokens
  without Redis: denied
"
    );
}

#[test]
fn explain_shows_the_whole_decision_on_unused_buckets() {
    let directory = rules(
        "
domain: api
descriptors:
  - { key: user, rate_limits: [ 5/second, { name: daily, unit: day, requests_per_unit: 15 } ] }
  - { key: plan, cost: 2, rate_limit: 5/day }
  - { key: trial, shadow_mode: true, rate_limit: 1/day }
",
    );
    let path = directory.path().to_str().unwrap();
    let decision = |hits: &str, descriptors: &[&str]| {
        let arguments = ["explain", "--rules", path, "--domain", "api", "--hits", hits];
        let (code, printed, error) = run(&[&arguments, descriptors].concat(), &[]);
        assert_eq!((code, error.as_str()), (0, ""));
        let (_, decision) = printed.split_once("unused buckets: ").unwrap();
        decision.to_owned()
    };
    assert_eq!(
        decision("1", &["user=a", "plan=b", "none=c"]),
        "OK
  user=a: OK, 5 per second, 4 left, full in 1 s
  plan=b: OK, 5 per day, 3 left, full in 34560 s
  none=c: OK, no limit applies
  user=a: of its limits
    `second` has room, 4 left
    `daily` has room, 14 left
"
    );
    assert_eq!(
        decision("6", &["user=a", "trial=t"]),
        "OVER_LIMIT
  user=a: OVER_LIMIT, 5 per second, 5 left, never fits
  trial=t: OK, 1 per day, 0 left, full in 86400 s
  user=a: of its limits
    `second` never has room for so many, 5 left
    `daily` has room, 15 left
"
    );
    assert!(decision("0", &["plan=b"]).starts_with("OK\n  plan=b: OK, 5 per day, 5 left"));

    let (code, _, error) = run(&["explain", "--rules", path, "--domain", "api", "--hits", "1", "=b"], &[]);
    assert_eq!(code, 64, "{error}");
}

#[test]
fn explain_shows_headers_and_bodies_as_the_client_gets_them() {
    let directory = rules(
        "
domain: api
headers: { style: draft, retry_after: X-Wait }
descriptors:
  - { key: slow, rate_limit: 6/minute, message: Not so fast. }
  - { key: never, rate_limit: 0/minute }
",
    );
    let path = directory.path().to_str().unwrap();
    let explain = |descriptors: &[&str]| {
        let arguments = ["explain", "--rules", path, "--domain", "api", "--hits", "7"];
        let (code, printed, error) = run(&[&arguments[..], descriptors].concat(), &[]);
        assert_eq!((code, error.as_str()), (0, ""));
        printed.replace(path, "")
    };
    assert_eq!(
        explain(&["slow=a", "never=b"]),
        "slow=a
  slow=a: matches `slow` with any value (/rules.yaml:5:5)
  limit: 6 per minute, 6 at once (/rules.yaml:5:30)
  bucket: domain `api`, slow=a, limit `minute`
  who is denied gets: Not so fast. (text/plain; charset=utf-8)
never=b
  never=b: matches `never` with any value (/rules.yaml:6:5)
  limit: 0 per minute: nothing is admitted (/rules.yaml:6:31)
  bucket: domain `api`, never=b, limit `minute`
7 hits on unused buckets: OVER_LIMIT
  slow=a: OVER_LIMIT, 6 per minute, 6 left, does not fit, or another descriptor never will
  never=b: OVER_LIMIT, 0 per minute, 0 left, does not fit, or another descriptor never will
  ratelimit-policy: \"minute\";q=0;w=60
  ratelimit: \"minute\";r=0;t=60
  content-type: text/plain; charset=utf-8
  body: Not so fast.
"
    );
}

#[test]
fn schema_prints_the_schema_that_is_shipped() {
    let (code, printed, error) = run(&["schema"], &[]);
    assert_eq!((code, error.as_str()), (0, ""));
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/schema.json");
    assert_eq!(printed, fs::read_to_string(shipped).unwrap());
}

#[test]
fn hit_prints_the_answer_for_people_and_as_the_protocols_json() {
    let directory = rules(RULES);
    let weir = Weir::start(directory.path());
    let (code, printed, error) = hit(&weir, &["user=a", "ip=x"]);
    assert_eq!(
        (code, printed.as_str(), error.as_str()),
        (0, "OK\n  user=a: OK, 2 per hour, 1 left, full in 1800 s\n  ip=x: OK, no limit applies\n", "")
    );
    let (_, printed, _) = hit(&weir, &["--hits", "2", "user=a"]);
    assert_eq!(
        printed,
        "OVER_LIMIT\n  user=a: OVER_LIMIT, 2 per hour, 1 left, fits in 1800 s\n  retry-after: 1800\n"
    );
    let (_, printed, _) = hit(&weir, &["--hits", "0", "user=a"]);
    assert!(printed.contains("1 left"), "a peek charges nothing: {printed}");
    let (_, printed, _) = hit(&weir, &["--give-back", "user=a"]);
    assert!(printed.contains("2 left"), "{printed}");

    let (code, printed, _) = hit(&weir, &["--json", "user=b"]);
    let answer: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(code, 0);
    assert_eq!(
        answer,
        serde_json::json!({
            "overallCode": "OK",
            "statuses": [{
                "code": "OK",
                "currentLimit": { "requestsPerUnit": 2, "unit": "HOUR" },
                "limitRemaining": 1,
                "durationUntilReset": "1800s",
            }],
        })
    );
    weir.stop();
}

#[test]
fn hit_says_why_there_is_no_answer_and_ends_with_1() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let (code, printed, error) = run(&["hit", "--target", &nobody, "--domain", "api", "a=b"], &[]);
    assert_eq!((code, printed.as_str()), (1, ""));
    assert!(error.contains(&format!("cannot reach {nobody}: Connection refused")), "{error}");

    let directory = rules(RULES);
    let weir = Weir::start(directory.path());
    let target = weir.grpc().to_string();
    let (code, _, error) = run(&["hit", "--target", &target, "--domain", "", "a=b"], &[]);
    assert_eq!(code, 1);
    assert!(error.contains("answers InvalidArgument: domain: empty"), "{error}");

    // Somebody who is there and says nothing.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = deaf.local_addr().unwrap().to_string();
    let (code, _, error) =
        run(&["hit", "--target", &target, "--timeout", "300ms", "--domain", "api", "a=b"], &[]);
    assert!(code == 1 && error.contains("Timeout expired") && !error.contains("TLS"), "{error}");
}

#[tokio::test]
async fn sigterm_ends_the_process_with_0_at_once_also_with_idle_clients() {
    let directory = rules(RULES);
    let weir = Weir::start(directory.path());
    let url = format!("http://{}", weir.grpc());
    let mut client = RateLimitServiceClient::connect(url).await.unwrap();
    client.should_rate_limit(request("api", &[("user", b"a")])).await.unwrap();
    #[allow(clippy::disallowed_methods, reason = "how long a real process takes")]
    let start = Instant::now();
    tokio::task::spawn_blocking(|| weir.stop()).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?} of the thirty seconds", start.elapsed());
    client.should_rate_limit(request("api", &[("user", b"a")])).await.unwrap_err();
}

#[test]
fn the_drain_waits_for_no_connection_that_has_never_spoken() {
    let directory = rules(RULES);
    let weir = Weir::start(directory.path());
    let idle: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(weir.grpc()).unwrap()).collect();
    #[allow(clippy::disallowed_methods, reason = "how long a real process takes")]
    let start = Instant::now();
    weir.stop();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?} of the thirty seconds", start.elapsed());
    drop(idle);
}

fn write(directory: &Path, text: &str) {
    // As editors do: a new file in place of the old one.
    let new = directory.join(".rules.yaml.new");
    fs::write(&new, text).unwrap();
    fs::rename(new, directory.join("rules.yaml")).unwrap();
}

#[test]
fn sighup_loads_the_rules_again_and_refuses_bad_ones() {
    let directory = rules(RULES);
    let weir = Weir::start(directory.path());
    hit(&weir, &["user=a"]);
    write(directory.path(), &RULES.replace("requests_per_unit: 2", "requests_per_unit: 10"));
    weir.hang_up();
    weir.await_log("rules loaded", 2);
    assert_eq!(
        hit(&weir, &["--hits", "0", "user=a"]).1,
        "OK\n  user=a: OK, 10 per hour, 9 left, full in 360 s\n"
    );

    write(directory.path(), "domain: api\ndescriptors: x\n");
    weir.hang_up();
    weir.await_log("rules refused; those loaded before stay in force", 1);
    assert!(weir.logged("rules.yaml:2:14 descriptors: expected a list, found `x`") >= 1);
    assert!(hit(&weir, &["--hits", "0", "user=a"]).1.contains("10 per hour, 9 left"));
    write(directory.path(), &RULES.replace("requests_per_unit: 2", "requests_per_unit: 20"));
    weir.hang_up();
    weir.await_log("rules loaded", 3);
    assert!(hit(&weir, &["--hits", "0", "user=a"]).1.contains("20 per hour, 19 left"));
    weir.stop();
}

/// So many rules that reading them takes a while.
fn many_rules() -> String {
    let mut text = RULES.to_owned();
    for n in 0..50_000 {
        text.push_str(&format!("  - {{ key: k{n}, rate_limit: {{ unit: hour, requests_per_unit: 2 }} }}\n"));
    }
    text
}

#[test]
fn signals_are_heeded_from_the_start_also_while_rules_are_read() {
    let directory = rules(&many_rules());
    for (signal, code) in [(Signal::HUP, None), (Signal::TERM, Some(0))] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command
            .args(["serve", "--grpc", "127.0.0.1:0", "--http", "off", "--drain-delay", "0s", "--rules"])
            .arg(directory.path())
            .stderr(Stdio::null());
        let mut weir = command.spawn().unwrap();
        // Long enough to have begun, far too short to have read it all in a debug build.
        std::thread::sleep(Duration::from_millis(150));
        kill_process(Pid::from_child(&weir), signal).unwrap();
        match code {
            Some(code) => assert_eq!(weir.wait().unwrap().code(), Some(code)),
            None => {
                std::thread::sleep(Duration::from_millis(200));
                assert!(weir.try_wait().unwrap().is_none(), "SIGHUP has ended it");
                kill_process(Pid::from_child(&weir), Signal::TERM).unwrap();
                assert_eq!(weir.wait().unwrap().code(), Some(0));
            }
        }
    }
}

#[test]
fn the_log_says_once_that_there_is_no_room_for_buckets_and_what_to_do() {
    let directory = rules(
        "domain: api\ndescriptors:\n  - { key: user, rate_limit: { unit: day, requests_per_unit: 1 } }\n",
    );
    let arguments = ["--grpc", "127.0.0.1:0", "--max-buckets", "2", "--rules"].map(OsStr::new);
    let weir = Weir::start_with(arguments.into_iter().chain([directory.path().as_os_str()]));
    let users: Vec<String> = (0..40).map(|n| format!("user={n}")).collect();
    for user in &users {
        hit(&weir, &[user]);
    }
    assert!(hit(&weir, &["user=latecomer"]).1.starts_with("OVER_LIMIT"));
    weir.await_log("no room for new buckets", 1);
    // That there are nearly as many as may be is said too, and has the same way out.
    assert_eq!(weir.logged("no room for new buckets"), 1);
    assert_eq!(weir.logged("until there is room; to have more, raise --max-buckets"), 1);
    weir.stop();
}
