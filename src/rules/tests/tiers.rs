//! Tiers, subjects, and who is moved when.

use super::*;

const TIERS: &str = "
tiers:
  free: { requests: 60/minute, credits: 100/day }
  pro: { requests: { unit: minute, requests_per_unit: 600, burst: 100 }, credits: 5000/day }
  enterprise: { requests: unlimited, credits: unlimited }
";

const DESCRIPTORS: &str = "
descriptors:
  - { key: user_id, tier_limit: requests, descriptors: [ { key: model, tier_limit: [credits, requests] } ] }
  - { key: tier, descriptors: [ { key: user_id, tier_limit: requests } ] }
";

fn text(subjects: &str) -> String {
    format!(
        "domain: api\n{TIERS}\nsubjects: {{ user_id: {subjects}, tier: {{ default: free }} }}\n{DESCRIPTORS}"
    )
}

fn load(subjects: &str, now: Micros) -> RuleSet {
    RuleSet::from_texts([("api.yaml", text(subjects).as_str())], now)
        .unwrap_or_else(|error| panic!("{}", listed(&error)))
}

/// What a descriptor meets: each limit with its amount, and since when it is in force.
fn met(set: &RuleSet, descriptor: &[(&str, &str)]) -> Vec<(String, Micros)> {
    let entries: Vec<_> = descriptor
        .iter()
        .map(|(key, value)| Entry { key: key.as_bytes(), value: value.as_bytes() })
        .collect();
    let rule = set.domain("api").unwrap().find(&entries).unwrap();
    let shown = rule.met(&entries).map(|(limit, since)| match limit.allowance {
        Allowance::Limited { requests_per_unit, unit, limit: bucket } => {
            (format!("{} {requests_per_unit}/{unit}", limit.limit_id), bucket.in_force_since().max(since))
        }
        Allowance::Unlimited => (format!("{} unlimited", limit.limit_id), 0),
    });
    shown.collect()
}

fn limits(set: &RuleSet, descriptor: &[(&str, &str)]) -> Vec<String> {
    met(set, descriptor).into_iter().map(|(limit, _)| limit).collect()
}

#[test]
fn a_members_limits_are_its_tiers_and_everybody_elses_the_defaults() {
    let set = load("{ default: free, members: { acme: enterprise, zen: pro } }", 0);
    assert_eq!(limits(&set, &[("user_id", "zen")]), ["requests 600/minute"]);
    assert_eq!(limits(&set, &[("user_id", "ann")]), ["requests 60/minute"]);
    assert_eq!(limits(&set, &[("user_id", "acme")]), ["requests unlimited"]);
    // The subject is named by the entry above, and a rule may ask for several dimensions.
    assert_eq!(
        limits(&set, &[("user_id", "zen"), ("model", "x")]),
        ["credits 5000/day", "requests 600/minute"]
    );
}

#[test]
fn a_tier_entry_names_the_tier_and_one_that_names_none_means_the_default() {
    let set = load("{ default: pro }", 7);
    let named = |tier: &str| met(&set, &[("tier", tier), ("user_id", "zen")]);
    assert_eq!(named("pro"), [("requests 600/minute".to_owned(), Micros::MAX)]);
    assert_eq!(named("enterprise"), [("requests unlimited".to_owned(), 0)]);
    for unknown in ["gold", ""] {
        assert_eq!(named(unknown), [("requests 60/minute".to_owned(), Micros::MAX)]);
    }
    let entries = [Entry { key: b"tier", value: b"pro" }, Entry { key: b"user_id", value: b"zen" }];
    let rule = set.domain("api").unwrap().find(&entries).unwrap();
    assert_eq!(*rule.shared, [Some((*b"tier").into()), None], "the bucket is the user's, whatever the tier");
}

#[test]
fn a_tier_that_the_rule_names_needs_no_default_and_may_have_other_names() {
    let rules_of = |subjects: &str| {
        rules(&format!(
            "domain: api\n{TIERS}\n{subjects}\ndescriptors:\n  - {{ key: tier, value: pro, descriptors: [ {{ key: user_id, tier_limit: credits }} ] }}\n"
        ))
    };
    let set = rules_of("");
    assert_eq!(limits(&set, &[("tier", "pro"), ("user_id", "zen")]), ["credits 5000/day"]);
    let set = rules(&format!(
        "domain: api\n{TIERS}\nsubjects: {{ tier: {{ default: free, members: {{ gold: pro }} }} }}\n{DESCRIPTORS}"
    ).replace("  - { key: user_id, tier_limit: requests, descriptors: [ { key: model, tier_limit: [credits, requests] } ] }\n", ""));
    assert_eq!(limits(&set, &[("tier", "gold"), ("user_id", "zen")]), ["requests 600/minute"]);
}

#[test]
fn who_is_moved_is_on_the_new_tier_since_the_reload_and_nobody_else_is() {
    let first = load("{ default: free, members: { a: pro, b: pro, c: free, d: pro } }", 1_000);
    // a moves down, b stays, c moves up, d is no member any more, e becomes one.
    let mut second = load("{ default: free, members: { a: free, b: pro, c: pro, e: pro } }", 2_000);
    second.succeed(&first);
    let since = |set: &RuleSet, user: &str| met(set, &[("user_id", user)])[0].1;
    let all = |set: &RuleSet| ["a", "b", "c", "d", "e", "f"].map(|user| since(set, user));
    assert_eq!(all(&second), [2_000, 1_000, 2_000, 2_000, 2_000, 1_000]);

    // Nothing changes: it stays as it is, also of those who have left.
    let mut third = load("{ default: free, members: { a: free, b: pro, c: pro, e: pro } }", 3_000);
    third.succeed(&second);
    assert_eq!(all(&third), all(&second));
    assert_eq!(limits(&third, &[("user_id", "d")]), ["requests 60/minute"]);
    let entry = [Entry { key: b"user_id", value: b"d" }];
    let rule = third.domain("api").unwrap().find(&entry).unwrap();
    assert!(rule.tier(&entry).unwrap().is_default, "who has left is no member");

    // A new default moves all who are no members.
    let mut fourth = load("{ default: pro, members: { a: free, b: pro, c: pro, e: pro } }", 4_000);
    fourth.succeed(&third);
    assert_eq!(all(&fourth), [2_000, 1_000, 2_000, 4_000, 2_000, 4_000]);
}

#[test]
fn a_tiers_new_limit_is_in_force_since_the_reload_for_all_on_it() {
    let first = load("{ default: free, members: { a: pro } }", 1_000);
    let changed = text("{ default: free, members: { a: pro } }").replace("60/minute", "90/minute");
    let mut second = RuleSet::from_texts([("api.yaml", changed.as_str())], 2_000).unwrap();
    second.succeed(&first);
    assert_eq!(met(&second, &[("user_id", "x")]), [("requests 90/minute".to_owned(), 2_000)]);
    assert_eq!(met(&second, &[("user_id", "a")]), [("requests 600/minute".to_owned(), 1_000)]);
}

#[test]
fn those_who_have_left_are_forgotten_when_their_buckets_are_full_for_certain() {
    let day = 24 * 3_600 * 1_000_000;
    let first = load("{ default: free, members: { a: pro } }", 1_000);
    let mut second = load("{ default: free }", 2_000);
    second.succeed(&first);
    let remembered = |set: &RuleSet| {
        let entry = [Entry { key: b"user_id", value: b"a" }];
        let rule = set.domain("api").unwrap().find(&entry).unwrap();
        rule.by_tier.as_ref().unwrap().subjects.members.len()
    };
    assert_eq!(remembered(&second), 1);
    let mut third = load("{ default: free }", 2_000 + day);
    third.succeed(&second);
    assert_eq!(remembered(&third), 1);
    let mut fourth = load("{ default: free }", 3_000 + 2 * day);
    fourth.succeed(&third);
    assert_eq!(remembered(&fourth), 0);
}

#[test]
fn tiers_subjects_and_rules_may_stand_in_different_files() {
    let files = [
        ("1.yaml", format!("domain: api\n{DESCRIPTORS}")),
        ("2.yaml", "domain: api\nsubjects: { user_id: { default: free, members: { zen: pro } } }\n".into()),
        ("3.yaml", format!("domain: api\n{TIERS}")),
        ("4.yaml", "domain: api\nsubjects: { tier: { default: pro } }\n".into()),
    ];
    let set = RuleSet::from_texts(files.iter().map(|(name, text)| (*name, text.as_str())), 0).unwrap();
    assert_eq!(limits(&set, &[("user_id", "zen")]), ["requests 600/minute"]);
    assert_eq!(limits(&set, &[("tier", "x"), ("user_id", "zen")]), ["requests 600/minute"]);
}

#[test]
fn a_hundred_thousand_members_are_looked_up_and_moved() {
    let members = |tier: &str| {
        let members: String = (0..100_000).map(|n| format!("u{n}: {tier}, ")).collect();
        format!("{{ default: free, members: {{ {members} }} }}")
    };
    let first = load(&members("pro"), 1_000);
    let mut second = load(&members("enterprise"), 2_000);
    second.succeed(&first);
    assert_eq!(limits(&second, &[("user_id", "u99999")]), ["requests unlimited"]);
}
