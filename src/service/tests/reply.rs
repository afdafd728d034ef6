//! What a client and its proxy are told besides yes or no.

use std::collections::BTreeMap;

use prost_types::Value;

use super::*;

const RULES: &str = r#"
domain: api
descriptors:
  - { key: warned, warn_at: 0.8, rate_limit: 10/minute }
  - { key: warned_all, warn_at: 100%, rate_limit: { name: 'say "x"', unit: minute, requests_per_unit: 2 } }
  - { key: half, enforce_percent: 50, rate_limit: 1/day }
  - { key: nobody, enforce_percent: 0, rate_limit: 1/day }
  - { key: said, message: Too many., rate_limits: [ { unit: day, requests_per_unit: 1, message: Come back tomorrow. }, 3/second ] }
  - key: json
    body: { content_type: application/json, text: '{"error":"slow down"}' }
    rate_limit: 1/day
  - { key: shadow, shadow_mode: true, message: never seen, warn_at: 0.1, rate_limit: 2/day }
  - { key: plain, rate_limit: 60/minute }
  - { key: several, rate_limits: [ 3/second, { name: slow, unit: 15m, requests_per_unit: 5 } ] }
  - { key: free, rate_limit: unlimited }
"#;

fn with(headers: &str, domain: &str) -> Fixture {
    let fixture = with_options(|options| {
        options.headers = headers.parse().unwrap();
        options.dynamic_metadata = true;
    });
    let text = RULES.replace("domain: api\n", &format!("domain: api\n{domain}\n"));
    let rules = RuleSet::from_texts([("test.yaml", text.as_str())], NOW).unwrap();
    fixture.service.rules.store(Some(Arc::new(rules)));
    fixture
}

fn headers(response: &RateLimitResponse) -> Vec<(&str, &str)> {
    let headers = response.response_headers_to_add.iter();
    headers.map(|header| (header.key.as_str(), header.value.as_str())).collect()
}

#[test]
fn a_warning_comes_from_the_share_on_and_not_with_a_denial() {
    let fixture = with("none", "");
    assert_eq!(headers(&fixture.ask(&[hits("warned", 7)])), []);
    assert_eq!(
        headers(&fixture.ask(&[hits("warned", 1), hits("warned_all", 2)])),
        [("x-ratelimit-warning", r#""minute";r=2;t=48, "say \"x\"";r=0;t=60"#)]
    );
    let denied = fixture.ask(&[hits("warned", 1), hits("warned_all", 2)]);
    assert_eq!(headers(&denied), [("retry-after", "60")]);
    assert_eq!(headers(&fixture.ask(&[hits("shadow", 1)])), [], "what denies nothing warns nobody");
    let renamed = with("none,warning=X-Slow-Down", "");
    assert_eq!(headers(&renamed.ask(&[hits("warned", 10)]))[0].0, "x-slow-down");
}

#[test]
fn a_share_of_callers_is_enforced_on_and_always_the_same_ones() {
    let enforced = |fixture: &Fixture| -> Vec<bool> {
        (0..1_000)
            .map(|caller| {
                let one = descriptor("half", &format!("caller-{caller}"));
                fixture.ask(std::slice::from_ref(&one));
                is_over(fixture.ask(&[one]).overall_code)
            })
            .collect()
    };
    let first = enforced(&with("none", ""));
    let share = first.iter().filter(|enforced| **enforced).count();
    assert!((450..=550).contains(&share), "{share} of 1000");
    // Another process, whose bucket keys are others.
    let mut other = with("none", "");
    let store = LocalStore::new(NonZeroUsize::new(10_000).unwrap(), other.clock.clone());
    other.service.limiter = Arc::new(Limiter::in_memory(store, KeySeed::fixed(2)));
    assert_eq!(enforced(&other), first);
    // More callers with a higher share, and all who were among them before.
    let more = with("none", "");
    let text = RULES.replace("enforce_percent: 50", "enforce_percent: 60");
    more.service
        .rules
        .store(Some(Arc::new(RuleSet::from_texts([("test.yaml", text.as_str())], NOW).unwrap())));
    let second = enforced(&more);
    assert!(first.iter().zip(&second).all(|(first, second)| !first || *second));
    assert!(!is_over(with("none", "").ask(&[hits("nobody", 9)]).overall_code));
}

#[test]
fn a_denial_has_the_body_of_the_limit_that_denied_or_else_of_its_rule() {
    let fixture = with("none", "");
    let body = |response: &RateLimitResponse| {
        let content_type = headers(response).into_iter().find(|(name, _)| *name == "content-type");
        let content_type = content_type.map(|(_, value)| value.to_owned());
        (String::from_utf8(response.raw_body.clone()).unwrap(), content_type)
    };
    let text = Some("text/plain; charset=utf-8".to_owned());
    assert_eq!(body(&fixture.ask(&[hits("said", 1), hits("json", 1)])), (String::new(), None));
    assert_eq!(body(&fixture.ask(&[hits("said", 1)])), ("Come back tomorrow.".into(), text.clone()));
    assert_eq!(
        body(&fixture.ask(&[hits("plain", 1), hits("json", 1)])),
        (r#"{"error":"slow down"}"#.into(), Some("application/json".into()))
    );
    fixture.clock.advance(24 * 3_600 * SECOND);
    assert_eq!(body(&fixture.ask(&[hits("said", 4)])).0, "Come back tomorrow.", "the first of several");
    let rules =
        RULES.replace("unit: day, requests_per_unit: 1, message", "unit: day, requests_per_unit: 9, message");
    fixture
        .service
        .rules
        .store(Some(Arc::new(RuleSet::from_texts([("test.yaml", rules.as_str())], NOW).unwrap())));
    assert_eq!(body(&fixture.ask(&[hits("said", 4)])), ("Too many.".into(), text));
    assert_eq!(body(&fixture.ask(&[hits("shadow", 9), hits("plain", 61)])), (String::new(), None));
}

#[test]
fn headers_of_the_draft_tell_of_all_limits_that_can_deny() {
    let fixture = with("draft", "");
    let all = [hits("several", 2), hits("plain", 6), hits("shadow", 1), hits("free", 1), hits("unknown", 1)];
    assert_eq!(
        headers(&fixture.ask(&all)),
        [
            ("ratelimit-policy", r#""second";q=3;w=1, "slow";q=5;w=900, "minute";q=60;w=60"#),
            ("ratelimit", r#""second";r=1;t=1, "slow";r=3;t=360, "minute";r=54;t=6"#),
        ]
    );
    assert_eq!(headers(&fixture.ask(&[hits("free", 1)])), []);
    // Of two by one name, the tighter.
    let twice = [hits("plain", 1), hits("warned", 1), with_limit("own", 7, RateLimitUnit::Hour)];
    assert_eq!(headers(&fixture.ask(&twice))[0].1, r#""minute";q=10;w=60, "override";q=7;w=3600"#);
    fixture.clock.advance(SECOND);
    let denied = fixture.ask(&[hits("several", 4)]);
    assert_eq!(
        headers(&denied),
        [
            ("ratelimit-policy", r#""second";q=3;w=1, "slow";q=5;w=900"#),
            ("ratelimit", r#""second";r=3;t=1, "slow";r=3;t=179"#),
        ],
        "never fits, so there is no retry-after"
    );
}

#[test]
fn headers_of_the_older_styles_tell_of_the_tightest_limit() {
    for (style, before) in [("ratelimit", ""), ("x-ratelimit", "x-")] {
        let fixture = with(style, "");
        let names = ["limit", "remaining", "reset"].map(|name| format!("{before}ratelimit-{name}"));
        let response = fixture.ask(&[hits("plain", 1), hits("several", 2)]);
        let expected: Vec<_> = names.iter().map(String::as_str).zip(["3", "1", "1"]).collect();
        assert_eq!(headers(&response), expected);
        let denied = fixture.ask(&[hits("plain", 60)]);
        let mut expected: Vec<_> = names.iter().map(String::as_str).zip(["60", "59", "1"]).collect();
        expected.push(("retry-after", "1"));
        assert_eq!(headers(&denied), expected);
    }
}

#[test]
fn a_domain_chooses_its_own_headers_and_names_can_be_changed() {
    let own = with("draft", "headers: { style: x-ratelimit, limit: X-Quota, retry_after: X-Wait }");
    let denied = own.ask(&[hits("json", 1), hits("json", 1)]);
    let names: Vec<_> = headers(&denied).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["x-quota", "x-ratelimit-remaining", "x-ratelimit-reset", "x-wait", "content-type"]);
    assert_eq!(headers(&with("draft", "headers: none").ask(&[hits("plain", 1)])), []);
    let shortly = with("none", "headers: draft");
    assert_eq!(headers(&shortly.ask(&[hits("plain", 1)]))[0].0, "ratelimit-policy");
}

fn fields(fields: &BTreeMap<String, Value>) -> BTreeMap<&str, String> {
    let shown = fields.iter().filter_map(|(key, value)| {
        let text = match value.kind.as_ref()? {
            Kind::StringValue(text) => text.clone(),
            Kind::NumberValue(number) => number.to_string(),
            Kind::BoolValue(value) => value.to_string(),
            _ => return None,
        };
        Some((key.as_str(), text))
    });
    shown.collect()
}

fn expected<const N: usize>(pairs: [(&'static str, &str); N]) -> BTreeMap<&'static str, String> {
    pairs.into_iter().map(|(key, value)| (key, value.to_owned())).collect()
}

#[test]
fn dynamic_metadata_says_which_rule_decided_with_what_left_and_who_says_so() {
    let fixture = with("none", "");
    let metadata =
        fixture.ask(&[hits("plain", 1), hits("warned", 8), hits("shadow", 9)]).dynamic_metadata.unwrap();
    let decided = expected([
        ("domain", "api"),
        ("rule", "api.warned"),
        ("limit", "10/minute"),
        ("remaining", "2"),
        ("source", "local"),
        ("over", "false"),
        ("shadow", "false"),
        ("warning", "true"),
    ]);
    assert_eq!(fields(&metadata.fields), decided);
    let Some(Kind::ListValue(list)) = &metadata.fields["descriptors"].kind else { panic!() };
    let Some(Kind::StructValue(shadow)) = &list.values[2].kind else { panic!() };
    let shadowed = expected([
        ("hitsAddend", "9"),
        ("rule", "api.shadow"),
        ("limit", "2/day"),
        ("remaining", "2"),
        ("source", "local"),
        ("over", "true"),
        ("shadow", "true"),
        ("warning", "false"),
    ]);
    assert_eq!(fields(&shadow.fields), shadowed);

    let metadata = fixture.ask(&[hits("several", 6), hits("unknown", 1)]).dynamic_metadata.unwrap();
    let decided = fields(&metadata.fields);
    assert_eq!((decided["rule"].as_str(), decided["over"].as_str()), ("api.several", "true"));
    let metadata = fixture.ask(&[with_limit("own", 7, RateLimitUnit::Hour)]).dynamic_metadata.unwrap();
    let decided = fields(&metadata.fields);
    assert_eq!((decided["rule"].as_str(), decided["limit"].as_str()), ("override", "7/hour"));
    let metadata = fixture.ask(&[hits("unknown", 1), hits("free", 1)]).dynamic_metadata.unwrap();
    assert_eq!(fields(&metadata.fields), expected([("domain", "api")]));
}
