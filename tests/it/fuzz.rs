//! Arbitrary bytes and arbitrary YAML at the decoder, the loader and the matcher: no panic, no hang, an answer.

use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use arc_swap::ArcSwapOption;
use proptest::prelude::*;
use prost::Message as _;
use weir::clock::Clock;
use weir::limiter::Limiter;
use weir::proto::{Code, Entry, RateLimitDescriptor, RateLimitOverride, RateLimitRequest};
use weir::rules::{LoadError, Problem, RuleSet, Severity};
use weir::service::{Options, Service};
use weir::store::{KeySeed, LocalStore};
use weir::telemetry::Recorder;

fn service(rules: RuleSet) -> Service {
    let store = LocalStore::new(NonZeroUsize::new(1_000).unwrap(), Clock::manual(1_790_000_000_000_000));
    Service::new(
        Arc::new(ArcSwapOption::from_pointee(rules)),
        Arc::new(Limiter::in_memory(store, KeySeed::fixed(1))),
        Options { dynamic_metadata: true, ..Options::default() },
        Recorder::default(),
    )
}

/// What a future comes to that never waits: one over buckets in memory.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

/// Every error says where it is; a set without errors can be used.
fn check(texts: &[(&str, &str)]) -> Option<RuleSet> {
    let well_formed =
        |problem: &Problem| problem.place.line > 0 && problem.place.column > 0 && !problem.message.is_empty();
    match RuleSet::from_texts(texts.iter().copied(), 0) {
        Ok(set) => {
            assert!(
                set.warnings()
                    .iter()
                    .all(|problem| well_formed(problem) && problem.severity == Severity::Warning)
            );
            Some(set)
        }
        Err(LoadError::Rejected(problems)) => {
            assert!(problems.iter().any(|problem| problem.severity == Severity::Error));
            assert!(problems.iter().all(well_formed), "{problems:?}");
            None
        }
        Err(error @ LoadError::Nothing { .. }) => panic!("{error}"),
    }
}

/// Text that is made of what rule files are made of, in no good order.
fn yaml_soup() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        prop::sample::select(vec![
            "domain",
            "descriptors",
            "key",
            "value",
            "rate_limit",
            "unit",
            "requests_per_unit",
            "burst",
            "unlimited",
            "replaces",
            "name",
            "shadow_mode",
            "share_threshold",
            "metadata",
            ": ",
            ":",
            "\n",
            "\n  ",
            "\n    ",
            "\n  - ",
            "- ",
            "{ ",
            " }",
            "[ ",
            " ]",
            ", ",
            "&a ",
            "*a",
            "<<",
            "\"",
            "'",
            "| ",
            "> ",
            "? ",
            "!!str ",
            "!x ",
            "# ",
            "---\n",
            "...\n",
            "%YAML 1.1\n",
            "\t",
            "~",
            "null",
            "true",
            "no",
            "1",
            "-1",
            "1.5",
            "0x1f",
            "010",
            "minute",
            "30s",
            "*",
            "a*b",
            "\u{feff}",
            "é",
            "\u{0}",
            "\u{2028}",
        ])
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(token, 0..80).prop_map(|tokens| tokens.concat())
}

/// A good rule file with some of its bytes changed.
fn damaged_rules() -> impl Strategy<Value = String> {
    let good = include_str!("../../config/api.yaml");
    prop::collection::vec((0..good.len(), any::<u8>()), 1..6).prop_map(move |changes| {
        let mut bytes = good.as_bytes().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        prop::sample::select(vec![&b"a"[..], b"/x", b"/x/y", b"*", b"a*b", b"aXb", b"\xff\xfe", b"", b"_"])
            .prop_map(<[u8]>::to_vec),
    ]
}

fn requests() -> impl Strategy<Value = RateLimitRequest> {
    let entry = (prop_oneof![Just(b"k".to_vec()), bytes()], bytes())
        .prop_map(|(key, value)| Entry { key: key.into(), value: value.into() });
    let limit = (any::<u32>(), -1..10i32)
        .prop_map(|(requests_per_unit, unit)| RateLimitOverride { requests_per_unit, unit });
    let descriptor = (
        prop::collection::vec(entry, 0..4),
        prop::option::weighted(0.2, limit),
        prop::option::of(any::<u64>()),
        any::<bool>(),
    )
        .prop_map(|(entries, limit, hits_addend, is_negative_hits)| RateLimitDescriptor {
            entries,
            limit,
            hits_addend,
            is_negative_hits,
        });
    (prop::collection::vec(descriptor, 0..6), any::<u32>()).prop_map(|(descriptors, hits_addend)| {
        RateLimitRequest { domain: "api".into(), descriptors, hits_addend }
    })
}

/// Rules whose values and patterns are made of few letters, so that many match.
fn rule_texts() -> impl Strategy<Value = String> {
    let value =
        prop_oneof![Just(String::new()), "[a*b/X]{0,5}".prop_map(|value| format!(", value: '{value}'"))];
    let limit = prop_oneof![
        Just(String::new()),
        (0..5u32, "second|15m|year")
            .prop_map(|(n, unit)| format!(", rate_limit: {{ unit: {unit}, requests_per_unit: {n} }}")),
        Just(", rate_limit: { unlimited: true }".to_owned()),
    ];
    prop::collection::vec((value, limit), 1..12).prop_map(|rules| {
        let mut text = "domain: api\ndescriptors:\n".to_owned();
        for (value, limit) in rules {
            text.push_str(&format!(
                "  - {{ key: k{value}{limit}, descriptors: [ {{ key: k{value}{limit} }} ] }}\n"
            ));
        }
        text
    })
}

/// The plainest way to match a wildcard.
fn matches_naively(pattern: &[u8], value: &[u8]) -> bool {
    match pattern.split_first() {
        None => value.is_empty(),
        Some((b'*', rest)) => (0..=value.len()).any(|skip| matches_naively(rest, &value[skip..])),
        Some((first, rest)) => {
            value.split_first().is_some_and(|(byte, value)| byte == first && matches_naively(rest, value))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_rules_or_is_told_what_is_wrong_with_it(text in prop_oneof![".*", yaml_soup(), damaged_rules()]) {
        check(&[("a.yaml", &text), ("b.yaml", &text)]);
    }

    #[test]
    fn any_bytes_decode_to_a_request_that_is_answered_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let service = service(check(&[("api.yaml", include_str!("../../config/api.yaml"))]).unwrap());
        if let Ok(request) = RateLimitRequest::decode(bytes.as_slice()) {
            _ = now(service.answer(&request));
        }
    }

    #[test]
    fn damaged_messages_never_bring_the_service_down(request in requests(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let service = service(check(&[("api.yaml", include_str!("../../config/api.yaml"))]).unwrap());
        let mut bytes = request.encode_to_vec();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(request) = RateLimitRequest::decode(bytes.as_slice()) {
            _ = now(service.answer(&request));
        }
    }

    #[test]
    fn any_request_has_one_status_for_each_descriptor_and_never_an_unknown_code(
        text in rule_texts(),
        requests in prop::collection::vec(requests(), 1..6),
    ) {
        let Some(rules) = check(&[("api.yaml", &text)]) else { return Ok(()) };
        let service = service(rules);
        for request in requests {
            let Ok(response) = now(service.answer(&request)) else { continue };
            prop_assert_eq!(response.statuses.len(), request.descriptors.len());
            prop_assert!(response.overall_code() != Code::Unknown);
            prop_assert!(response.statuses.iter().all(|status| status.code() != Code::Unknown));
            let over = response.statuses.iter().any(|status| status.code() == Code::OverLimit);
            prop_assert_eq!(response.overall_code() == Code::OverLimit, over);
        }
    }

    #[test]
    fn wildcards_match_as_the_plainest_matcher_does(
        patterns in prop::collection::btree_set("[ab]{0,1}\\*[ab*]{0,4}", 1..24),
        value in "[ab]{0,6}",
    ) {
        // In an order that is not the alphabet's.
        let patterns: Vec<String> = patterns.into_iter().rev().collect();
        let rules: String = patterns
            .iter()
            .map(|pattern| format!("  - {{ key: k, value: '{pattern}', rate_limit: {{ unit: day, requests_per_unit: 1 }} }}\n"))
            .collect();
        let set = check(&[("api.yaml", &format!("domain: api\ndescriptors:\n{rules}"))]).unwrap();
        let entry = weir::rules::Entry { key: b"k", value: value.as_bytes() };
        let found = set.domain("api").unwrap().find(&[entry]).map(|rule| rule.label.to_string());
        let expected = patterns.iter().find(|pattern| matches_naively(pattern.as_bytes(), value.as_bytes()));
        prop_assert_eq!(found, expected.map(|pattern| format!("api.k_{pattern}")));
    }
}
