//! What is said of rules that can be used and are hardly meant.

use super::mistakes::{said_of, said_of_descriptor};

#[test]
fn rules_that_nothing_ever_reaches_are_warned_about() {
    let first = |line: usize| format!("the rule at api.yaml:{line}:3 matches first");
    let says = "is never reached, so it says nothing";
    let exempts = "is never reached, so it exempts nobody";
    let limited = "rate_limit: 1/day";
    for (rules, said) in [
        (
            format!(
                "- {{ key: a, value: 'x*', {limited} }}\n- {{ key: a, value: 'xy*z', {limited} }}\n- {{ key: a, value: 'y*', {limited} }}\n"
            ),
            vec![format!("4:3: warning: value `xy*z` {says}: {}", first(3))],
        ),
        (
            format!(
                "- {{ key: a, value: '*', {limited} }}\n- {{ key: a, value: '*b' }}\n- {{ key: a, {limited} }}\n"
            ),
            vec![
                format!("4:3: warning: value `*b` {exempts}: {}", first(3)),
                format!("5:3: warning: the key without a value {says}: {}", first(3)),
            ],
        ),
        (
            format!("- {{ key: a, values: [b, c] }}\n- {{ key: a, value: c, {limited} }}\n"),
            vec![format!("3:3: warning: value `c` of this list {exempts}: {}", first(4))],
        ),
        (
            format!("- {{ key: z, descriptors: [ {{ key: a, value: '**' }}, {{ key: a, {limited} }} ] }}\n"),
            vec![format!(
                "3:53: warning: the key without a value {says}: the rule at api.yaml:3:28 matches first"
            )],
        ),
        (
            format!("- {{ key: a, values: [b, c, d] }}\n- {{ key: a, value: d }}\n- {{ key: a, value: c, {limited} }}\n"),
            vec![
                "3:3: warning: values `c`, `d` of this list are never reached, so it exempts nobody: the rules at \
                 api.yaml:5:3, api.yaml:4:3 match first"
                    .to_owned(),
            ],
        ),
        // In this order both are reached, and so is what only a regular expression stands before.
        (
            format!("- {{ key: a, value: 'xy*', {limited} }}\n- {{ key: a, value: 'x*', {limited} }}\n"),
            vec![],
        ),
        (
            format!("- {{ key: a, regex: 'x.*', {limited} }}\n- {{ key: a, value: 'x*', {limited} }}\n"),
            vec![],
        ),
    ] {
        said_of(&format!("domain: api\ndescriptors:\n{rules}"), &said);
    }
}

#[test]
fn ranges_that_longer_ones_or_single_values_leave_nothing_of_are_warned_about() {
    let warning =
        |line: usize, what: &str, then: &str| format!("{line}:3: warning: {what} never reached, {then}");
    let limited = "rate_limit: 1/day";
    for (rules, said) in [
        // Both halves, of which one is in halves again.
        (
            format!(
                "- {{ key: a, cidr: 10.0.0.0/8 }}\n- {{ key: a, cidr: 10.0.0.0/9, {limited} }}\n\
                 - {{ key: a, cidr: [10.128.0.0/10, 10.192.0.0/10], {limited} }}\n"
            ),
            vec![warning(
                3,
                "range `10.0.0.0/8` is",
                "so it exempts nobody: the rules at api.yaml:4:3, api.yaml:5:3 match first",
            )],
        ),
        (
            format!(
                "- {{ key: a, cidr: ['::/0', '8000::/1'], {limited} }}\n- {{ key: a, cidr: '::/1', {limited} }}\n"
            ),
            vec![warning(
                3,
                "range `::/0` is",
                "so it says nothing: the rules at api.yaml:4:3, api.yaml:3:3 match first",
            )],
        ),
        // A part of it is left.
        (
            format!(
                "- {{ key: a, cidr: 10.0.0.0/8 }}\n- {{ key: a, cidr: [10.0.0.0/9, 10.128.0.0/10], {limited} }}\n"
            ),
            vec![],
        ),
        (
            format!(
                "- {{ key: a, cidr: 0.0.0.0/0 }}\n- {{ key: a, cidr: ['::/1', '8000::/1'], {limited} }}\n"
            ),
            vec![],
        ),
        // One address.
        (
            format!(
                "- {{ key: a, cidr: [192.0.2.7, 192.0.2.8] }}\n- {{ key: a, value: 192.0.2.7, {limited} }}\n\
                 - {{ key: a, cidr: 2001:DB8::1/128, {limited} }}\n- {{ key: a, values: ['2001:db8::1', x] }}\n"
            ),
            vec![
                warning(
                    3,
                    "range `192.0.2.7/32`, but for other spellings of the address, is",
                    "so it exempts nobody: the rule at api.yaml:4:3 matches first",
                ),
                warning(
                    5,
                    "range `2001:db8::1/128`, but for other spellings of the address, is",
                    "so it says nothing: the rule at api.yaml:6:3 matches first",
                ),
            ],
        ),
    ] {
        said_of(&format!("domain: api\ndescriptors:\n{rules}"), &said);
    }
}

#[test]
fn regular_expressions_that_leave_nothing_to_match_are_warned_about() {
    let warning =
        |line: usize, what: &str, then: &str| format!("{line}:3: warning: {what} never reached, {then}");
    let limited = "rate_limit: 1/day";
    for (rules, said) in [
        // All that it matches stands elsewhere.
        (
            format!(
                "- {{ key: a, regex: 'get|head|10.0.0.1' }}\n- {{ key: a, value: get, {limited} }}\n\
                 - {{ key: a, values: [head, post], {limited} }}\n- {{ key: a, cidr: 10.0.0.0/8, {limited} }}\n"
            ),
            // A dot stands for any byte, and so it is reached.
            vec![],
        ),
        (
            format!(
                "- {{ key: a, regex: 'get|head|10[.]0[.]0[.]1' }}\n- {{ key: a, value: get, {limited} }}\n\
                 - {{ key: a, values: [head, post], {limited} }}\n- {{ key: a, cidr: 10.0.0.0/8, {limited} }}\n"
            ),
            vec![warning(
                3,
                "regex `get|head|10[.]0[.]0[.]1` is",
                "so it exempts nobody: the rules at api.yaml:4:3, api.yaml:5:3, api.yaml:6:3 match first",
            )],
        ),
        // A pattern before it matches it all.
        (
            format!("- {{ key: a, regex: '[bc]', {limited} }}\n- {{ key: a, regex: 'b|c', {limited} }}\n"),
            vec![warning(4, "regex `b|c` is", "so it says nothing: the rule at api.yaml:3:3 matches first")],
        ),
        (
            format!("- {{ key: a, value: '*', {limited} }}\n- {{ key: a, regex: '.*x' }}\n"),
            vec![warning(
                4,
                "regex `.*x` is",
                "so it exempts nobody: the rule at api.yaml:3:3 matches first",
            )],
        ),
        (
            format!(
                "- {{ key: a, value: '/v*.png', {limited} }}\n- {{ key: a, regex: '/v[12]/.*[.]png', {limited} }}\n"
            ),
            vec![warning(
                4,
                "regex `/v[12]/.*[.]png` is",
                "so it says nothing: the rule at api.yaml:3:3 matches first",
            )],
        ),
        (
            format!("- {{ key: a, regex: '[b&&c]', {limited} }}\n"),
            vec!["3:3: warning: regex `[b&&c]` matches no value at all".to_owned()],
        ),
        // It stands before them, or matches more.
        (format!("- {{ key: a, regex: 'b.*', {limited} }}\n- {{ key: a, value: '*', {limited} }}\n"), vec![]),
        (
            format!("- {{ key: a, value: 'b*', {limited} }}\n- {{ key: a, regex: 'b.*|c', {limited} }}\n"),
            vec![],
        ),
        (
            format!("- {{ key: a, value: 'b*b', {limited} }}\n- {{ key: a, regex: 'b|bb', {limited} }}\n"),
            vec![],
        ),
        (format!("- {{ key: a, value: b, {limited} }}\n- {{ key: a, regex: 'b|c', {limited} }}\n"), vec![]),
    ] {
        said_of(&format!("domain: api\ndescriptors:\n{rules}"), &said);
    }
}

#[test]
fn limits_of_tiers_that_never_matter_are_warned_about_at_the_rule() {
    let tiers = "domain: api\ntiers:\n  free: { requests: 1/second, daily: 1000/day }\n  pro: { requests: 1/second, daily: 90000/day }\n";
    said_of(
        &format!(
            "{tiers}subjects: {{ user: {{ default: free }} }}\ndescriptors:\n  - {{ key: user, tier_limit: [requests, daily] }}\n"
        ),
        &[
            "7:30 descriptors[0]: warning: on tier `pro` limit `daily` (api.yaml:4:37) can never be met: limit `requests` \
           beside it always denies before",
        ],
    );
}

#[test]
fn limits_that_never_matter_or_admit_nothing_are_warned_about() {
    let never = |limit: &str, other: &str| {
        format!(": warning: limit `{limit}` can never be met: limit `{other}` beside it always denies before")
    };
    for (inner, said) in [
        ("key: a, rate_limits: [20/second, ^2000/minute]", vec![never("minute", "second")]),
        ("key: a, rate_limits: [^{ unit: minute, requests_per_unit: 90, burst: 30 }, 1/second]", vec![never("minute", "second")]),
        // An hour and an eighth are counted together.
        ("key: a, rate_limits: [1/second, { unit: hour, requests_per_unit: 4050, algorithm: sliding_window }]", vec![]),
        ("key: a, rate_limits: [1/second, ^{ unit: hour, requests_per_unit: 4051, algorithm: sliding_window }]", vec![never("hour", "second")]),
        ("key: a, rate_limits: [1/second, ^{ unit: hour, requests_per_unit: 3601, algorithm: fixed_window }]", vec![never("hour", "second")]),
        (
            "key: a, rate_limits: [{ unit: day, requests_per_unit: 5, algorithm: fixed_window }, ^{ name: b, unit: day, requests_per_unit: 9, algorithm: fixed_window }]",
            vec![never("b", "day")],
        ),
        (
            "key: a, rate_limits: [^{ name: b, unit: 15m, requests_per_unit: 9, algorithm: sliding_window }, { unit: 15m, requests_per_unit: 5, algorithm: sliding_window }]",
            vec![never("b", "15m")],
        ),
        ("key: a, rate_limits: [{ unit: minute, requests_per_unit: 5, algorithm: sliding_window }, ^400/hour]", vec![never("hour", "minute")]),
        ("key: a, rate_limits: [{ unit: minute, requests_per_unit: 5, algorithm: sliding_window }, 200/hour]", vec![]),
        // Around midnight, ten.
        ("key: a, rate_limits: [{ unit: day, requests_per_unit: 5, algorithm: fixed_window }, { name: b, unit: day, requests_per_unit: 9 }]", vec![]),
        ("key: a, rate_limits: [{ unit: day, requests_per_unit: 5, algorithm: fixed_window }, ^{ name: b, unit: day, requests_per_unit: 10 }]", vec![never("b", "day")]),
        // 31 days.
        ("key: a, rate_limits: [1/day, { unit: month, requests_per_unit: 31, algorithm: fixed_window }]", vec![]),
        ("key: a, rate_limits: [1/day, ^{ unit: month, requests_per_unit: 32, algorithm: fixed_window }]", vec![never("month", "day")]),
        ("key: a, rate_limits: [20/second, 1000/15m]", vec![]),
        ("key: a, rate_limits: [{ unit: second, requests_per_unit: 20, burst: 50 }, 45/2s]", vec![]),
        ("key: a, rate_limits: [1/second, { unit: hour, requests_per_unit: 3600, algorithm: fixed_window }]", vec![]),
        (
            "key: a, cost: 10, rate_limit: ^{ unit: minute, requests_per_unit: 60, burst: 5 }",
            vec![": warning: a hit costs 10 and at most 5 are there at once (limit `minute`): nothing is ever admitted".to_owned()],
        ),
        ("key: a, cost: 10, overdraft: true, rate_limit: 5/minute", vec![]),
        ("key: a, cost: 10, rate_limit: 10/minute", vec![]),
        ("key: a, cost: 10, rate_limit: 0/minute", vec![]),
    ] {
        let said: Vec<&str> = said.iter().map(String::as_str).collect();
        said_of_descriptor(inner, &said);
    }
}

#[test]
fn what_is_said_beside_a_limit_that_denies_nobody_is_warned_about() {
    let nothing =
        |key: &str| format!(".{key}: warning: says nothing beside `unlimited`, which denies nobody");
    for key in ["shadow_mode: ^true", "quota_mode: ^true", "overdraft: ^true", "cost: ^2", "warn_at: ^0.5"] {
        let (name, _) = key.split_once(':').unwrap();
        said_of_descriptor(&format!("key: a, {key}, rate_limit: unlimited"), &[&nothing(name)]);
    }
    said_of_descriptor(
        "key: a, enforce_percent: ^5, message: ^b, on_redis_failure: ^deny, rate_limits: [ unlimited ]",
        &[&nothing("enforce_percent"), &nothing("message"), &nothing("on_redis_failure")],
    );
    // The limit of a tier counts.
    said_of(
        "domain: api\ntiers: { free: { calls: 5/day }, pro: { calls: unlimited } }\nsubjects: { a: { default: free } }\n\
         descriptors:\n  - { key: a, cost: 2, tier_limit: calls }\n",
        &[""; 0],
    );
}
