//! What is said of files that are wrong: each case with all that is said, place and way out included.

use super::*;

#[test]
fn every_mistake_is_told_with_its_place_and_a_way_out() {
    // A text, and all that is said of it.
    let rule =
        |inner: &str| format!("domain: api\ndescriptors:\n  - key: a\n    rate_limit: {{ {inner} }}\n");
    let descriptor = |inner: &str| format!("domain: api\ndescriptors:\n  - {{ {inner} }}\n");
    let unit = "unit: minute, requests_per_unit: 1";
    let number = |found: &str| {
        format!(
            "4:49 descriptors[0].rate_limit.requests_per_unit: expected a whole number from 0 to 4294967295, found {found}"
        )
    };
    let cases: Vec<(String, Vec<String>)> = vec![
        (String::new(), vec!["1:1: the file is empty: it needs a `domain` and `descriptors`".into()]),
        ("descriptors: []\n".into(), vec!["1:1 domain: missing: a file says which domain its rules are for".into()]),
        ("domain: ''\n".into(), vec!["1:9 domain: the domain is empty".into()]),
        ("- a\n".into(), vec!["1:1: expected a map with `domain`, `descriptors`, …, found a list".into()]),
        (
            "domain: api\ndescriptors: [a, b]\n".into(),
            vec![
                "2:15 descriptors[0]: expected a map with `key`, `value`, …, found `a`".into(),
                "2:18 descriptors[1]: expected a map with `key`, `value`, …, found `b`".into(),
            ],
        ),
        ("domain: api\ndescriptors: 5\n".into(), vec!["2:14 descriptors: expected a list, found `5`".into()]),
        ("domain: [a]\n".into(), vec!["1:9 domain: expected text, found a list".into()]),
        (
            "domain: api\n1: x\n".into(),
            vec!["2:1: a key is text, and `1` is not: write it in quotes if it is meant".into()],
        ),
        ("domain: api\n? [a]\n: x\n".into(), vec!["2:3: a key is text, not a list".into()]),
        (
            "domain: api\ndomain: web\n".into(),
            vec!["2:1 domain: `domain` is written twice; the first time is at 1:1".into()],
        ),
        ("domain: api\n---\ndomain: web\n".into(), vec!["2:1: a second document begins here: a file holds one, so split it in two".into()]),
        (descriptor("value: x"), vec!["3:5 descriptors[0].key: missing: a descriptor says which entry it is about".into()]),
        (descriptor("key: ''"), vec!["3:12 descriptors[0].key: the key is empty".into()]),
        (
            descriptor("key: 'a*'"),
            vec!["3:12 descriptors[0].key: a key has no wildcards: put the `*` into `value`".into()],
        ),
        (
            descriptor("key: a, valus: x"),
            vec!["3:15 descriptors[0].valus: unknown key `valus`; did you mean `value`?".into()],
        ),
        (
            descriptor("key: a, requests_per_unit: 5"),
            vec!["3:15 descriptors[0].requests_per_unit: `requests_per_unit` does not belong here: it stands in `rate_limit`".into()],
        ),
        (
            descriptor("key: a, share_threshold: true, value: b"),
            vec!["3:32 descriptors[0].share_threshold: only where several values match can they share a bucket: it wants a `*` in `value`, or `values`, `cidr` or `regex`".into()],
        ),
        (
            descriptor("key: a, shadow_mode: \"true\""),
            vec!["3:28 descriptors[0].shadow_mode: expected `true` or `false`, without quotes, found the text \"true\"".into()],
        ),
        (descriptor("key: a, shadow_mode: 1"), vec!["3:28 descriptors[0].shadow_mode: expected `true` or `false`, found `1`".into()]),
        (
            descriptor("key: a, shadow_mode: true"),
            vec!["3:28 descriptors[0].shadow_mode: warning: says nothing without a `rate_limit` beside it".into()],
        ),
        (descriptor("key: a, metadata: x"), vec!["3:25 descriptors[0].metadata: expected a map".into()]),
        (rule("requests_per_unit: 1"), vec!["4:17 descriptors[0].rate_limit.unit: missing: a limit is so many requests per `unit`, such as minute or 30s".into()]),
        (
            rule("unit: minutes, requests_per_unit: 1"),
            vec!["4:25 descriptors[0].rate_limit.unit: unknown unit `minutes`; did you mean `minute`?".into()],
        ),
        (
            rule("unit: minute"),
            vec!["4:17 descriptors[0].rate_limit.requests_per_unit: warning: missing, which is 0: nothing will be admitted. Write 0 if that is meant".into()],
        ),
        (rule("unit: minute , requests_per_unit: -1"), vec![number("`-1`").replace("4:49", "4:53")]),
        (rule("unit: day, requests_per_unit: 1.5"), vec![number("`1.5`")]),
        (rule("unit: day, requests_per_unit: 1e3"), vec![number("`1e3`")]),
        (rule("unit: day, requests_per_unit: 4294967296"), vec![number("`4294967296`")]),
        (rule("unit: day, requests_per_unit: 99999999999999999999"), vec![number("`99999999999999999999`")]),
        (rule("unit: day, requests_per_unit: [1]"), vec![number("a list")]),
        (rule("unit: day, requests_per_unit: '1'"), vec![number("the text \"1\"").replace("295, found", "295, without quotes, found")]),
        (
            rule("unit: day, requests_per_unit: 010"),
            vec!["4:49 descriptors[0].rate_limit.requests_per_unit: `010` is octal to some readers of YAML and decimal to others: write it without the leading zero".into()],
        ),
        (
            rule("unlimited: true, unit: day"),
            vec!["4:42 descriptors[0].rate_limit.unit: what is unlimited has no unit: remove `unit`, or `unlimited`".into()],
        ),
        (
            rule("unlimited: true, requests_per_unit: 5"),
            vec!["4:55 descriptors[0].rate_limit.requests_per_unit: warning: says nothing beside `unlimited`".into()],
        ),
        (
            rule(&format!("{unit}, burst: 0")),
            vec!["4:62 descriptors[0].rate_limit.burst: a burst is at least 1; to admit nothing, write `requests_per_unit: 0`".into()],
        ),
        (
            rule("unit: minute, requests_per_unit: 0, burst: 5"),
            vec!["4:62 descriptors[0].rate_limit.burst: `requests_per_unit: 0` admits nothing, so there is no burst: remove it".into()],
        ),
        (
            rule(&format!("{unit}, replaces: [{{ name: '' }}]")),
            vec!["4:74 descriptors[0].rate_limit.replaces[0].name: missing: say the `name` of the limit that gives way".into()],
        ),
        (
            rule(&format!("{unit}, replaces: [{{}}]")),
            vec!["4:66 descriptors[0].rate_limit.replaces[0].name: missing: say the `name` of the limit that gives way".into()],
        ),
        (
            rule(&format!("{unit}, name: x, replaces: [{{ name: x }}]")),
            vec!["4:83 descriptors[0].rate_limit.replaces[0].name: a limit cannot replace itself".into()],
        ),
        (
            rule(&format!("{unit}, replaces: [x]")),
            vec!["4:66 descriptors[0].rate_limit.replaces[0]: expected a map with `name`, found `x`".into()],
        ),
        (
            rule(&format!("{unit}, shadow_mode: true")),
            vec!["4:55 descriptors[0].rate_limit.shadow_mode: `shadow_mode` does not belong here: it stands in the descriptor, beside `key`".into()],
        ),
        (
            "domain: api\ndescriptors:\n  - key: a\n    rate_limit:\n  - key: b\n".into(),
            vec!["4:15 descriptors[0].rate_limit: warning: nothing is written here, so it says nothing".into()],
        ),
        (
            "domain: api\ndescriptors:\n  -\n  - key: b\n".into(),
            vec!["3:4 descriptors[0]: nothing is written here, so it says nothing".into()],
        ),
        (
            rule("unlimited: true, burst: 0"),
            vec!["4:43 descriptors[0].rate_limit.burst: what is unlimited has no burst: remove `burst`, or `unlimited`".into()],
        ),
        (
            "descriptors:\n  - key: a\n".into(),
            vec!["1:1 domain: missing: a file says which domain its rules are for".into()],
        ),
    ];
    for (text, expected) in cases {
        said_of(&text, &expected);
    }
}

/// Checks what is said of a text, in whichever order.
pub(super) fn said_of(text: &str, expected: &[impl AsRef<str>]) {
    let mut found = problems(text);
    let mut expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "of\n{text}");
}

/// Checks what is said of a descriptor, of which a `^` stands before each place that something is said of, in their order.
pub(super) fn said_of_descriptor(inner: &str, expected: &[&str]) {
    let mut column = "  - { ".len() + 1;
    let mut places = Vec::new();
    for c in inner.chars() {
        if c == '^' { places.push(column) } else { column += 1 }
    }
    assert_eq!(places.len(), expected.len(), "a place for each: {inner}");
    let expected = places.iter().zip(expected);
    let expected: Vec<String> =
        expected.map(|(column, said)| format!("3:{column} descriptors[0]{said}")).collect();
    said_of(&format!("domain: api\ndescriptors:\n  - {{ {} }}\n", inner.replace('^', "")), &expected);
}

#[test]
fn mistakes_in_limits_of_which_there_are_several_are_told() {
    for (inner, expected) in [
        (
            "key: a, rate_limit: 9/day, rate_limits: ^[1/hour]",
            &[".rate_limits: there is a `rate_limit` beside it: put that into this list"][..],
        ),
        (
            "key: a, rate_limits: ^[]",
            &[".rate_limits: the list is empty: remove it, or write a limit into it"],
        ),
        (
            "key: a, rate_limits: [5/day, { unit: hour, requests_per_unit: 1, name: x }, ^6/day]",
            &[
                ".rate_limits[2]: a limit above has the id `day` too, and they would share a bucket: give one of them another `name`",
            ],
        ),
        (
            "key: a, rate_limits: [5/day, ^unlimited]",
            &[".rate_limits[1]: what is unlimited says nothing among other limits: remove it, or the others"],
        ),
        ("key: a, rate_limits: ^5/day", &[".rate_limits: expected a list, found `5/day`"]),
        ("key: a, rate_limits: [^5/days]", &[".rate_limits[0]: unknown unit `days`; did you mean `day`?"]),
    ] {
        said_of_descriptor(inner, expected);
    }
}

#[test]
fn mistakes_in_short_limits_are_told_as_those_in_long_ones() {
    for (limit, message) in [
        ("60", "`60` is no limit: write `unlimited`, a number and a unit such as `60/minute`, or a map"),
        (
            "unlimitd",
            "`unlimitd` is no limit: write `unlimited`, a number and a unit such as `60/minute`, or a map",
        ),
        (
            "60/",
            "unknown unit ``; write second, minute, hour, day, week, month or year, or a duration like 30s, 15m, 2h",
        ),
        ("/minute", "expected a whole number from 0 to 4294967295 before the `/`, found ``"),
        ("-1/minute", "expected a whole number from 0 to 4294967295 before the `/`, found `-1`"),
        (
            "4294967296/minute",
            "expected a whole number from 0 to 4294967295 before the `/`, found `4294967296`",
        ),
        ("60/minutes", "unknown unit `minutes`; did you mean `minute`?"),
        ("60/0s", "`0s` is no window: it lasts from 1ms to 365d"),
        ("[60]", "expected a map with `name`, `unit`, …, found a list"),
    ] {
        said_of_descriptor(&format!("key: a, rate_limit: ^{limit}"), &[&format!(".rate_limit: {message}")]);
    }
}

#[test]
fn mistakes_in_costs_and_in_what_happens_without_redis_are_told() {
    for (inner, expected) in [
        (
            "key: a, cost: ^0, rate_limit: 1/day",
            ".cost: a hit costs at least 1: to let hits pass without a charge, remove the limit",
        ),
        ("key: a, cost: ^2", ".cost: warning: says nothing without a `rate_limit` beside it"),
        (
            "key: a, on_redis_failure: ^pass, rate_limit: 1/day",
            ".on_redis_failure: expected local, deny or allow, found `pass`",
        ),
        (
            "key: a, on_redis_failure: ^deny",
            ".on_redis_failure: warning: says nothing without a `rate_limit` beside it",
        ),
        (
            "key: a, rate_limit: { unit: day, requests_per_unit: 1, ^cost: 2 }",
            ".rate_limit.cost: `cost` does not belong here: it stands in the descriptor, beside `key`",
        ),
    ] {
        said_of_descriptor(inner, &[expected]);
    }
    let file = "domain: api\non_redis_failure: deny\n";
    let error = RuleSet::from_texts([("one.yaml", file), ("two.yaml", file)], 0).unwrap_err();
    assert_eq!(
        listed(&error),
        "two.yaml:2:19 on_redis_failure: this domain's files say `on_redis_failure` twice: the other one is at one.yaml:2:19\n"
    );
}

#[test]
fn mistakes_in_what_a_descriptor_is_about_are_told() {
    let beside = |first: &str| {
        format!("there is `{first}` beside it: a descriptor says in one way which values it is about")
    };
    for (inner, said) in [
        ("key: a, value: b, values: ^[c]", format!(".values: {}", beside("value"))),
        ("key: a, values: [b], cidr: ^10.0.0.0/8", format!(".cidr: {}", beside("values"))),
        ("key: a, cidr: 10.0.0.0/8, regex: ^b", format!(".regex: {}", beside("cidr"))),
        ("key: a, value: b, regex: ^c", format!(".regex: {}", beside("value"))),
        ("key: a, values: ^[]", ".values: the list is empty, so it matches nothing: write a value into it".into()),
        ("key: a, values: ^b", ".values: expected a list, found `b`".into()),
        ("key: a, values: [b, ^{ c: d }]", ".values[1]: expected text, found a map".into()),
        (
            "key: a, values: [b, ^'c*']",
            ".values[1]: a list has no wildcards: a rule with a `value` of its own may have one".into(),
        ),
        (
            "key: a, cidr: ^10.0.0.0/33",
            ".cidr: `10.0.0.0/33` is no address range: what follows the `/` is a number from 0 to 32".into(),
        ),
        (
            "key: a, cidr: [10.0.0.0/8, ^10.0.0.1/8]",
            ".cidr[1]: `10.0.0.1/8` has bits set beyond its length; did you mean 10.0.0.0/8?".into(),
        ),
        (
            "key: a, cidr: ^localhost",
            ".cidr: `localhost` is no address range: write one such as 10.0.0.0/8, fd00::/8 or 192.0.2.7".into(),
        ),
        ("key: a, cidr: ^[]", ".cidr: the list is empty, so it matches nothing: write a range into it".into()),
        ("key: a, regex: ^'a('", ".regex: `a(` is no regular expression: unclosed group".into()),
        ("key: a, regex: ^'a)|(b'", ".regex: `a)|(b` is no regular expression: unopened group".into()),
        (
            "key: a, regex: ^'(a{1000}){1000}'",
            ".regex: `(a{1000}){1000}` is no regular expression: too large when compiled: use smaller repetitions, or fewer alternatives".into(),
        ),
        (
            "key: a, regex: ^'(?<!a)b'",
            ".regex: `(?<!a)b` is no regular expression: look-around, including look-ahead and look-behind, is not supported".into(),
        ),
    ] {
        said_of_descriptor(inner, &[&said]);
    }
}

#[test]
fn rules_that_are_about_the_same_values_clash() {
    let twice = |what: &str| {
        format!(
            "4:3 descriptors[1]: {what} stands here twice: the other one is at api.yaml:3:3. Put their rules together"
        )
    };
    for (first, second, what) in [
        ("values: [b, c]", "values: [d, c]", "key `a` with value `c`"),
        ("cidr: [10.0.0.0/8, 'fd00::/8']", "cidr: '::ffff:10.0.0.0/104'", "key `a` with range `10.0.0.0/8`"),
        ("regex: 'b+'", "regex: 'b+'", "key `a` with regex `b+`"),
    ] {
        let text = format!("domain: api\ndescriptors:\n- {{ key: a, {first} }}\n- {{ key: a, {second} }}\n");
        said_of(&text, &[twice(what)]);
    }
    let in_itself = "domain: api\ndescriptors:\n- { key: a, values: [b, b] }\n";
    said_of(
        in_itself,
        &[
            "3:3 descriptors[0]: key `a` with value `b` stands here twice: the other one is at api.yaml:3:3. Put their rules together",
        ],
    );
}

#[test]
fn a_key_has_only_so_many_regular_expressions() {
    let mut text = "domain: api\ndescriptors:\n".to_owned();
    (0..101).for_each(|n| text.push_str(&format!("- {{ key: a, regex: 'x{n}' }}\n")));
    said_of(
        &text,
        &[
            "103:20 descriptors[100].regex: key `a` has 100 regular expressions on this level, and each is tried on every value: use `values`, `cidr` or wildcards, or put several into one",
        ],
    );
}

#[test]
fn mistakes_in_tiers_and_subjects_are_told() {
    let file = |subjects: &str, descriptor: &str| {
        format!(
            "domain: api\ntiers:\n  free: {{ requests: 60/minute }}\n  pro: {{ requests: 600/minute, tokens: 9/day }}\n{subjects}\ndescriptors:\n  - {{ {descriptor} }}\n"
        )
    };
    let subjects = "subjects: { user: { default: free } }";
    for (subjects, descriptor, said) in [
        (
            "subjects: { user: { members: { a: free } } }",
            "key: user",
            "5:19 subjects.user.default: missing: say the tier of those who are no members",
        ),
        (
            "subjects: { user: { default: fre } }",
            "key: user",
            "5:30 subjects.user.default: there is no tier `fre`; did you mean `free`?",
        ),
        (
            "subjects: { user: { default: free, members: { a: gold } } }",
            "key: user",
            "5:50 subjects.user.members.a: there is no tier `gold`; there is `free`, `pro`",
        ),
        (
            "subjects: { user: { default: free, member: { a: pro } } }",
            "key: user",
            "5:36 subjects.user.member: unknown key `member`; did you mean `members`?",
        ),
        ("subjects: [user]", "key: user", "5:11 subjects: expected a map, found a list"),
        (
            subjects,
            "key: user, tier_limit: requets",
            "7:30 descriptors[0].tier_limit: tier `free` (api.yaml:3:9): there is no limit `requets`; did you mean `requests`?",
        ),
        (
            subjects,
            "key: user, tier_limit: tokens",
            "7:30 descriptors[0].tier_limit: tier `free` (api.yaml:3:9): there is no limit `tokens`; there is `requests`",
        ),
        (
            subjects,
            "key: user, tier_limit: [requests, requests]",
            "7:41 descriptors[0].tier_limit: a limit of this descriptor has the id `requests` too, and they would share a bucket",
        ),
        (
            subjects,
            "key: ip, tier_limit: requests",
            "7:28 descriptors[0].tier_limit: nobody knows whose tier: neither this descriptor nor one above has a key that `subjects` names, which is `user`, or `tier`",
        ),
        (
            subjects,
            "key: tier, tier_limit: requests",
            "7:30 descriptors[0].tier_limit: what the request calls a tier may be none: say which one counts then, in `subjects: { tier: { default: … } }`",
        ),
        (
            subjects,
            "key: tier, value: gold, tier_limit: requests",
            "7:43 descriptors[0].tier_limit: there is no tier `gold`; there is `free`, `pro`",
        ),
        (
            subjects,
            "key: user, rate_limit: { tiers: x, unit: day, requests_per_unit: 1 }",
            "7:32 descriptors[0].rate_limit.tiers: `tiers` does not belong here: it stands at the top of the file",
        ),
    ] {
        let mut found = problems(&file(subjects, descriptor));
        found.retain(|found| !(found.contains("`requets`") && found.contains("tier `pro`")));
        assert_eq!(found, [said]);
    }
    said_of(
        "domain: api\ndescriptors: [ { key: user, tier_limit: requests } ]\n",
        &[
            "2:41 descriptors[0].tier_limit: there are no tiers to take it from: no file of this domain has `tiers`",
        ],
    );
    for (limit, said) in [
        ("60/minutes", "2:28 tiers.free.requests: unknown unit `minutes`; did you mean `minute`?"),
        (
            "{ unit: day, requests_per_unit: 1, name: x }",
            "2:69 tiers.free.requests.name: a tier's limit is called `requests`, and replaces none: remove `name`",
        ),
        (
            "{ unit: day, burst: 0, requests_per_unit: 1 }",
            "2:48 tiers.free.requests.burst: a burst is at least 1; to admit nothing, write `requests_per_unit: 0`",
        ),
    ] {
        said_of(&format!("domain: api\ntiers: {{ free: {{ requests: {limit} }} }}\n"), &[said]);
    }
    let file = "domain: api\ntiers: { free: { requests: 1/day } }\nsubjects: { user: { default: free } }\n";
    let error = RuleSet::from_texts([("one.yaml", file), ("two.yaml", file)], 0).unwrap_err();
    assert_eq!(
        listed(&error),
        "two.yaml:2:16 tiers.free: tier `free` stands at one.yaml:2:16 too\n\
         two.yaml:3:19 subjects.user: subjects by `user` stand at one.yaml:3:19 too\n"
    );
}

#[test]
fn mistakes_in_soft_limits_are_told() {
    let share = |found: &str| {
        format!(".warn_at: expected a share above 0 and up to 1, such as 0.8 or 80%, found `{found}`")
    };
    for (inner, said) in [
        ("key: a, warn_at: ^0, rate_limit: 1/day", share("0")),
        ("key: a, warn_at: ^1.1, rate_limit: 1/day", share("1.1")),
        ("key: a, warn_at: ^80, rate_limit: 1/day", share("80")),
        ("key: a, warn_at: ^101%, rate_limit: 1/day", share("101%")),
        ("key: a, warn_at: ^much, rate_limit: 1/day", share("much")),
        ("key: a, warn_at: ^NaN, rate_limit: 1/day", share("NaN")),
        ("key: a, warn_at: ^[1], rate_limit: 1/day", ".warn_at: expected text, found a list".into()),
        ("key: a, warn_at: ^0.8", ".warn_at: warning: says nothing without a `rate_limit` beside it".into()),
        (
            "key: a, enforce_percent: ^101, rate_limit: 1/day",
            ".enforce_percent: expected a whole number from 0 to 100, found `101`".into(),
        ),
        (
            "key: a, enforce_percent: ^-1, rate_limit: 1/day",
            ".enforce_percent: expected a whole number from 0 to 100, found `-1`".into(),
        ),
        (
            "key: a, enforce_percent: ^5, shadow_mode: true, rate_limit: 1/day",
            ".enforce_percent: warning: says nothing beside `shadow_mode: true`, which enforces it on nobody".into(),
        ),
        (
            "key: a, value: 'b*', share_threshold: true, enforce_percent: ^5, rate_limit: 1/day",
            ".enforce_percent: warning: all values share one bucket, so it is enforced on all of them or on none".into(),
        ),
        (
            "key: a, rate_limit: { unit: day, requests_per_unit: 1, ^warn_at: 0.5 }",
            ".rate_limit.warn_at: `warn_at` does not belong here: it stands in the descriptor, beside `key`".into(),
        ),
    ] {
        said_of_descriptor(inner, &[&said]);
    }
}

#[test]
fn mistakes_in_bodies_and_headers_are_told() {
    for (inner, said) in [
        (
            "key: a, message: b, body: ^{ content_type: text/html, text: c }, rate_limit: 1/day",
            ".body: `message` beside it is short for a `body` of plain text: write one of them",
        ),
        (
            "key: a, body: ^{ text: c }, rate_limit: 1/day",
            ".body.content_type: missing: say what it is, such as application/json",
        ),
        (
            "key: a, rate_limit: { unit: day, requests_per_unit: 1, body: ^{ content_type: a/b } }",
            ".rate_limit.body.text: missing: say what the client gets",
        ),
        (
            "key: a, body: { text: c, content_type: ^\"a\\nb\" }, rate_limit: 1/day",
            ".body.content_type: a content type is printable ASCII, such as application/json",
        ),
        (
            "key: a, body: ^text, rate_limit: 1/day",
            ".body: expected a map with `content_type` or `text`, found `text`",
        ),
        ("key: a, message: ^[b], rate_limit: 1/day", ".message: expected text, found a list"),
        ("key: a, message: ^b", ".message: warning: says nothing without a `rate_limit` beside it"),
    ] {
        said_of_descriptor(inner, &[said]);
    }
    for (headers, said) in [
        ("x", "2:10 headers: unknown style `x`: write none, draft, ratelimit or x-ratelimit"),
        ("[x]", "2:10 headers: expected a map with `style`, `ratelimit`, …, found a list"),
        ("{ limit: x }", "2:10 headers.style: missing: write none, draft, ratelimit or x-ratelimit"),
        (
            "{ style: rfc }",
            "2:19 headers.style: unknown style `rfc`: write none, draft, ratelimit or x-ratelimit",
        ),
        (
            "{ style: draft, limit: x }",
            "2:33 headers.limit: there is no header `limit` in this style; there is `ratelimit`, `policy`, `retry_after`, `warning`",
        ),
        (
            "{ style: x-ratelimit, limit: 'a b' }",
            "2:39 headers.limit: a header's name is made of letters, digits and `-`",
        ),
        (
            "{ style: draft, colour: red }",
            "2:26 headers.colour: unknown key `colour`; the keys here are `style`, `ratelimit`, `policy`, `limit`, `remaining`, `reset`, `retry_after`, `warning`",
        ),
    ] {
        said_of(&format!("domain: api\nheaders: {headers}\n"), &[said]);
    }
}

#[test]
fn a_hash_tag_is_the_domain_or_an_entry_and_mistakes_in_it_are_told() {
    let set = |tag: &str| rules(&format!("domain: api\nredis_hash_tag: {tag}\ndescriptors: []\n"));
    assert_eq!(set("domain").domain("api").unwrap().hash_tag(), Some(&HashTag::Domain));
    let by_user = HashTag::Entry(b"user".as_slice().into());
    assert_eq!(set("{ entry: user }").domain("api").unwrap().hash_tag(), Some(&by_user));
    assert_eq!(rules("domain: api\n").domain("api").unwrap().hash_tag(), None);
    let missing = "2:17 redis_hash_tag: missing: say the key of an entry, as in `{ entry: user_id }`";
    for (tag, said) in [
        (
            "user",
            &["2:17 redis_hash_tag: expected `domain`, or an entry as in `{ entry: user_id }`, found `user`"]
                [..],
        ),
        ("[domain]", &["2:17 redis_hash_tag: expected a map with `entry`, found a list"]),
        ("{ entry: '' }", &[missing]),
        ("{}", &[missing]),
        (
            "{ key: user }",
            &[
                missing,
                "2:19 redis_hash_tag.key: `key` does not belong here: it stands in the descriptor, beside `key`",
            ],
        ),
    ] {
        said_of(&format!("domain: api\nredis_hash_tag: {tag}\n"), said);
    }
}
