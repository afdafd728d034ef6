//! Which of several rules with one key a value meets.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};

use super::*;

#[test]
fn exact_comes_before_lists_those_before_ranges_those_before_patterns_and_the_bare_key_is_last() {
    let set = rules(
        "
domain: api
descriptors:
  - { key: ip, rate_limit: 1/day }
  - { key: ip, value: '10.*', rate_limit: 1/day }
  - { key: ip, regex: '1[0-9.]+', rate_limit: 1/day }
  - { key: ip, cidr: [10.0.0.0/8, 'fd00::/8', 192.0.2.7], rate_limit: 1/day }
  - { key: ip, cidr: 10.1.0.0/16, rate_limit: 1/day }
  - { key: ip, cidr: '0.0.0.0/0', rate_limit: 1/day }
  - { key: ip, values: [10.1.2.3, localhost], rate_limit: 1/day }
  - { key: ip, value: 10.1.2.4, rate_limit: 1/day }
  - { key: name, regex: '[a-z]+', rate_limit: 1/day }
  - { key: name, value: 'a*', rate_limit: 1/day }
  - { key: name, regex: 'ab|abc', rate_limit: 1/day }
",
    );
    for (descriptor, label) in [
        ("ip=10.1.2.4", "api.ip_10.1.2.4"),
        ("ip=10.1.2.3", "api.ip_[10.1.2.3,…]"),
        ("ip=localhost", "api.ip_[10.1.2.3,…]"),
        ("ip=10.1.2.5", "api.ip_10.1.0.0/16"),
        ("ip=10.2.2.5", "api.ip_[10.0.0.0/8,…]"),
        ("ip=192.0.2.7", "api.ip_[10.0.0.0/8,…]"),
        ("ip=192.0.2.8", "api.ip_0.0.0.0/0"),
        ("ip=::ffff:10.1.0.1", "api.ip_10.1.0.0/16"),
        ("ip=::ffff:a01:1", "api.ip_10.1.0.0/16"),
        ("ip=fd12::1", "api.ip_[10.0.0.0/8,…]"),
        ("ip=FD12:0::1", "api.ip_[10.0.0.0/8,…]"),
        ("ip=fe80::1", "api.ip"),
        // No addresses.
        ("ip=10.1.2", "api.ip_10.*"),
        ("ip=10.1.2.3:80", "api.ip_10.*"),
        ("ip=1.2.3", "api.ip_/1[0-9.]+/"),
        ("ip=010.1.2.3", "api.ip"),
        ("ip= 10.1.2.3", "api.ip"),
        ("ip=", "api.ip"),
        // Patterns in the order of the file, of whichever kind; a regular expression matches the whole value.
        ("name=abc", "api.name_/[a-z]+/"),
        ("name=ab1", "api.name_a*"),
        ("name=1ab", "none"),
    ] {
        assert_eq!(found(&set, descriptor), label, "{descriptor}");
    }
}

#[test]
fn regular_expressions_match_whole_values_of_any_bytes() {
    let set = rules(
        "
domain: api
descriptors:
  - { key: k, regex: 'a|b', rate_limit: 1/day }
  - { key: k, regex: 'x.z', rate_limit: 1/day }
  - { key: k, regex: '(?i)get|post', rate_limit: 1/day }
  - { key: k, regex: 'grün', rate_limit: 1/day }
",
    );
    let find = |value: &[u8]| {
        let rule = set.domain("api").unwrap().find(&[Entry { key: b"k", value }]);
        rule.map_or("none", |rule| &rule.label)
    };
    for (value, label) in [
        (&b"a"[..], "api.k_/a|b/"),
        (b"ab", "none"),
        (b"x\xffz", "api.k_/x.z/"),
        (b"x\nz", "none"),
        (b"POST", "api.k_/(?i)get|post/"),
        (b"POST\n", "none"),
        ("grün".as_bytes(), "api.k_/grün/"),
    ] {
        assert_eq!(find(value), label, "{value:?}");
    }
}

#[test]
fn a_regular_expression_takes_time_in_proportion_to_the_value() {
    // By trying every way, a backtracking matcher would take 2⁵⁰⁰⁰⁰ steps.
    let set = rules("domain: api\ndescriptors:\n  - { key: k, regex: '(a|a)*(a|a)*b', rate_limit: 1/day }\n");
    let value = vec![b'a'; 50_000];
    assert!(set.domain("api").unwrap().find(&[Entry { key: b"k", value: &value }]).is_none());
}

#[test]
fn values_that_share_a_bucket_are_known_by_the_pattern_or_the_first_of_a_list() {
    let set = rules(
        "
domain: api
descriptors:
  - { key: k, values: ['50%', b], share_threshold: true, rate_limit: 1/day }
  - { key: k, cidr: [10.0.0.0/8, 11.0.0.0/8], share_threshold: true, rate_limit: 1/day }
  - { key: k, regex: 'a+|x*', share_threshold: true, rate_limit: 1/day }
  - { key: k, regex: 'c+', rate_limit: 1/day }
",
    );
    let shared = |descriptor: &str| {
        let rule = find(&set, descriptor).unwrap();
        rule.shared[0].as_deref().map(|text| std::str::from_utf8(text).unwrap().to_owned())
    };
    assert_eq!(shared("k=b").unwrap(), "values:50%25");
    assert_eq!(shared("k=11.1.1.1").unwrap(), "cidr:10.0.0.0/8");
    assert_eq!(shared("k=aa").unwrap(), "regex:a+|x%2A");
    assert_eq!(shared("k=cc"), None);
}

#[test]
fn a_longer_list_is_the_same_rule() {
    let id = |list: &str| {
        let text =
            format!("domain: api\ndescriptors:\n  - {{ key: k, values: [{list}], rate_limit: 1/day }}\n");
        find(&rules(&text), "k=a").unwrap().id
    };
    assert_eq!(id("a"), id("a, b"));
    assert_ne!(id("a"), id("b, a"));
}

/// What something takes of the processor, however busy the machine is, and what comes of it.
fn cost<T>(what: impl FnOnce() -> T) -> (Duration, T) {
    let begin = clock_gettime(ClockId::ThreadCPUTime);
    let result = what();
    (Duration::try_from(clock_gettime(ClockId::ThreadCPUTime) - begin).unwrap(), result)
}

/// What it costs to look up a thousand values, evenly from so many; all of them are found.
fn cost_of_lookups(set: &RuleSet, count: u32, value: fn(u32) -> String) -> Duration {
    let values: Vec<String> = (0..1_000).map(|n| value(n * count / 1_000)).collect();
    let domain = set.domain("api").unwrap();
    let once = || {
        for value in &values {
            assert!(domain.find(&[Entry { key: b"k", value: value.as_bytes() }]).is_some(), "{value}");
        }
    };
    (0..5).map(|_| cost(once).0).min().unwrap()
}

#[test]
fn a_hundred_thousand_rules_of_each_form_load_in_proportion_and_are_found_among_at_the_cost_of_a_thousand() {
    /// How the n-th rule is written, and a value that it matches.
    type Form = (fn(u32) -> String, fn(u32) -> String);
    let address = |n: u32| std::net::Ipv4Addr::from_bits(0x0a00_0000 + 4 * n);
    let forms: [Form; 5] = [
        (|n| format!("value: v{n}"), |n| format!("v{n}")),
        (|n| format!("values: [a{n}, b{n}]"), |n| format!("b{n}")),
        (|n| format!("value: 'v{n}/*'"), |n| format!("v{n}/x")),
        (|n| format!("value: '*<{n}>*'"), |n| format!("some <{n}> text")),
        (
            |n| format!("cidr: {}/30", std::net::Ipv4Addr::from_bits(0x0a00_0000 + 4 * n)),
            |n| std::net::Ipv4Addr::from_bits(0x0a00_0001 + 4 * n).to_string(),
        ),
    ];
    for (rule, value) in forms {
        let costs = |count: u32| {
            let mut text = "domain: api\ndescriptors:\n".to_owned();
            (0..count).for_each(|n| _ = writeln!(text, "- {{ key: k, {}, rate_limit: 1/day }}", rule(n)));
            let (load, set) = cost(|| rules(&text));
            assert_eq!(set.len(), count as usize);
            (load, cost_of_lookups(&set, count, value))
        };
        let ((load_few, few), (load_many, many)) = (costs(1_000), costs(100_000));
        assert!(
            load_many < 500 * load_few,
            "{}: {load_few:?} to load a thousand, {load_many:?} to load a hundred thousand",
            rule(7)
        );
        // Caches hold few of so many; if each were looked at, it would be a hundred times as much.
        assert!(many < 20 * few, "{}: {few:?} among a thousand, {many:?} among a hundred thousand", rule(7));
    }

    let mut text =
        "domain: api\ndescriptors:\n- { key: ip, cidr: 10.0.0.0/8, rate_limit: 1/day }\n".to_owned();
    let narrow = (0..1_000).map(address);
    narrow.for_each(|ip| _ = writeln!(text, "- {{ key: ip, cidr: {ip}/30, rate_limit: 1/day }}"));
    let set = rules(&text);
    assert_eq!(found(&set, "ip=10.0.15.101"), "api.ip_10.0.15.100/30");
    assert_eq!(found(&set, "ip=10.200.0.1"), "api.ip_10.0.0.0/8");

    let list: String = (0..20_000).map(|n| format!("v{n}, ")).collect();
    let set =
        rules(&format!("domain: api\ndescriptors: [{{ key: k, values: [{list}], rate_limit: 1/day }}]\n"));
    assert_eq!(found(&set, "k=v19999"), "api.k_[v0,…]");
    assert_eq!(found(&set, "k=v20000"), "none");
}

/// How a rule of a random set matches.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Way {
    Bare,
    Exact(String),
    Wildcard(String),
    Listed(Vec<String>),
    Ranges(Vec<(IpAddr, u8)>),
    Regex(String),
}

#[derive(Clone, Debug)]
struct RandomRule {
    way: Way,
    below: Vec<RandomRule>,
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u32..8)
            .prop_map(|low| IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + (low << 28) + low))),
        (0u128..8).prop_map(|low| IpAddr::from(std::net::Ipv6Addr::from_bits((low << 120) + low))),
    ]
}

fn values() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[ab]{0,4}",
        2 => addresses().prop_map(|address| address.to_string()),
        1 => addresses().prop_map(|address| match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_string(),
            IpAddr::V6(v6) => v6.to_string(),
        }),
    ]
}

fn ways() -> impl Strategy<Value = Way> {
    let range = (addresses(), 0u8..=128).prop_map(|(address, length)| match address {
        IpAddr::V4(v4) => {
            let length = length % 33;
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            (std::net::Ipv4Addr::from_bits(v4.to_bits() & mask).into(), length)
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            (std::net::Ipv6Addr::from_bits(v6.to_bits() & mask).into(), length)
        }
    });
    prop_oneof![
        Just(Way::Bare),
        values().prop_filter("an empty value is none", |value| !value.is_empty()).prop_map(Way::Exact),
        "[ab]{0,1}\\*[ab*]{0,3}".prop_map(Way::Wildcard),
        prop::collection::vec(values(), 1..4).prop_map(Way::Listed),
        prop::collection::vec(range, 1..4).prop_map(Way::Ranges),
        "([ab.][*?]?){1,4}".prop_map(Way::Regex),
    ]
}

fn rule_sets() -> impl Strategy<Value = Vec<RandomRule>> {
    let leaf = ways().prop_map(|way| RandomRule { way, below: Vec::new() });
    let below = prop::collection::vec(leaf, 0..6);
    prop::collection::vec((ways(), below).prop_map(|(way, below)| RandomRule { way, below }), 1..24)
}

/// Leaves out what would clash with a rule above it.
fn without_clashes(rules: Vec<RandomRule>) -> Vec<RandomRule> {
    let mut seen = HashSet::new();
    let mut kept = Vec::new();
    for rule in rules {
        let parts: Vec<Way> = match &rule.way {
            Way::Listed(values) => values.iter().map(|value| Way::Listed(vec![value.clone()])).collect(),
            Way::Ranges(ranges) => ranges.iter().map(|range| Way::Ranges(vec![*range])).collect(),
            way => vec![way.clone()],
        };
        let twice = parts.iter().collect::<HashSet<_>>().len() < parts.len();
        if !twice && parts.iter().all(|part| !seen.contains(part)) {
            seen.extend(parts);
            kept.push(RandomRule { below: without_clashes(rule.below), ..rule });
        }
    }
    kept
}

/// Writes rules as YAML; each has its own number as its limit.
fn write(rules: &[RandomRule], number: &mut u32) -> String {
    let quoted =
        |values: Vec<String>| values.iter().map(|value| format!("'{value}'")).collect::<Vec<_>>().join(", ");
    let items = rules.iter().map(|rule| {
        *number += 1;
        let own = *number;
        let way = match &rule.way {
            Way::Bare => String::new(),
            Way::Exact(text) | Way::Wildcard(text) => format!("value: '{text}', "),
            Way::Listed(values) => format!("values: [{}], ", quoted(values.clone())),
            Way::Ranges(ranges) => {
                let ranges = ranges.iter().map(|(first, length)| format!("{first}/{length}")).collect();
                format!("cidr: [{}], ", quoted(ranges))
            }
            Way::Regex(text) => format!("regex: '{text}', "),
        };
        format!("{{ key: k, {way}rate_limit: {own}/day, descriptors: [{}] }}", write(&rule.below, number))
    });
    items.collect::<Vec<_>>().join(", ")
}

/// The number of the rule that some values meet, found by looking at every one.
fn find_naively(rules: &[RandomRule], values: &[&str], number: &mut u32) -> Option<u32> {
    let (value, rest) = values.split_first()?;
    let address = value.parse::<IpAddr>().ok().map(|address| address.to_canonical());
    // The first bits, as text.
    let bits = |address: IpAddr, length: u8| {
        let bits = match address {
            IpAddr::V4(address) => format!("4 {:032b}", address.to_bits()),
            IpAddr::V6(address) => format!("6 {:0128b}", address.to_bits()),
        };
        bits.chars().take(2 + usize::from(length)).collect::<String>()
    };
    let in_range = |(first, length): &(IpAddr, u8)| {
        address.is_some_and(|address| bits(address, *length) == bits(*first, *length))
    };
    // How early a way is asked, the smallest first; none when it does not match.
    let rank = |way: &Way, place: usize| match way {
        Way::Exact(text) => (text == value).then_some((0, 0)),
        Way::Listed(values) => values.iter().any(|other| other == value).then_some((1, 0)),
        Way::Ranges(ranges) => {
            let longest = ranges.iter().filter(|range| in_range(range)).map(|(_, length)| *length).max();
            longest.map(|length| (2, 128 - usize::from(length)))
        }
        Way::Wildcard(text) => wildcard_matches(text.as_bytes(), value.as_bytes()).then_some((3, place)),
        Way::Regex(text) => regex_matches(text.as_bytes(), value.as_bytes()).then_some((3, place)),
        Way::Bare => Some((4, 0)),
    };
    let mut best = None;
    for (place, rule) in rules.iter().enumerate() {
        *number += 1;
        let own = *number;
        let mut below = own;
        let first = below;
        // Numbers of what is below are passed over, whether it is looked at or not.
        let found = if rest.is_empty() { Some(own) } else { find_naively(&rule.below, rest, &mut below) };
        *number = first + u32::try_from(rule.below.len()).unwrap();
        if let Some(rank) = rank(&rule.way, place)
            && best.is_none_or(|(other, _)| rank < other)
        {
            best = Some((rank, found));
        }
    }
    best?.1
}

fn wildcard_matches(pattern: &[u8], value: &[u8]) -> bool {
    match pattern.split_first() {
        None => value.is_empty(),
        Some((b'*', rest)) => (0..=value.len()).any(|skip| wildcard_matches(rest, &value[skip..])),
        Some((first, rest)) => value.first() == Some(first) && wildcard_matches(rest, &value[1..]),
    }
}

/// Of expressions made of letters and dots, each perhaps with a `*` or a `?` behind it.
fn regex_matches(pattern: &[u8], value: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return value.is_empty() };
    let fits = value.first().is_some_and(|byte| *first == b'.' || byte == first);
    match rest.split_first() {
        Some((b'*', after)) => regex_matches(after, value) || fits && regex_matches(pattern, &value[1..]),
        Some((b'?', after)) => regex_matches(after, value) || fits && regex_matches(after, &value[1..]),
        _ => fits && regex_matches(rest, &value[1..]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_rule_sets_match_as_the_plainest_matcher_does_and_never_what_is_said_to_be_out_of_reach(
        random in rule_sets(),
        first in prop::collection::vec(values(), 1..8),
        second in prop::collection::vec(values(), 1..4),
    ) {
        let random = without_clashes(random);
        let set = rules(&format!("domain: api\ndescriptors: [{}]\n", write(&random, &mut 0)));
        // Warnings about a part of a rule leave the rest of it.
        let is_whole = |message: &str| {
            message.contains(" is never reached") && !message.contains("of this list") && !message.starts_with("range")
        };
        let hidden = set.warnings().iter().filter(|warning| is_whole(&warning.message));
        let hidden: HashSet<_> = hidden.map(|warning| (warning.place.line, warning.place.column)).collect();
        let number = |values: &[&str]| {
            let entries: Vec<_> =
                values.iter().map(|value| Entry { key: b"k", value: value.as_bytes() }).collect();
            for step in set.domain("api").unwrap().explain(&entries).steps {
                let met = step.matched.map(|(_, source)| (source.place.line, source.place.column));
                assert!(met.is_none_or(|met| !hidden.contains(&met)), "{values:?}: {:?}", set.warnings());
            }
            let rule = set.domain("api").unwrap().find(&entries)?;
            let Allowance::Limited { requests_per_unit, .. } = rule.limits[0].allowance else { return None };
            Some(requests_per_unit)
        };
        for first in &first {
            prop_assert_eq!(number(&[first]), find_naively(&random, &[first], &mut 0), "{}", first);
            for second in &second {
                let values = [first.as_str(), second];
                prop_assert_eq!(number(&values), find_naively(&random, &values, &mut 0), "{:?}", values);
            }
        }
    }
}
