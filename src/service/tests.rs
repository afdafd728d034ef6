use std::num::NonZeroUsize;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use prost_types::value::Kind;
use tonic::Code as Grpc;

use super::*;
use crate::clock::Clock;
use crate::proto::{Entry, RateLimit, RateLimitDescriptor, RateLimitOverride, RateLimitUnit, Unit};
use crate::store::LocalStore;

mod limits;
mod reply;
mod tiers;
mod windows;

const SECOND: Micros = 1_000_000;
const NOW: Micros = 1_790_000_000_000_000;

const RULES: &str = "
domain: api
descriptors:
  - { key: second, rate_limit: { unit: second, requests_per_unit: 10 } }
  - { key: minute, rate_limit: { unit: minute, requests_per_unit: 60 } }
  - { key: tight, rate_limit: { unit: minute, requests_per_unit: 60, burst: 3 } }
  - { key: window, rate_limit: { name: quarter, unit: 15m, requests_per_unit: 5 } }
  - { key: week, rate_limit: { unit: WEEK, requests_per_unit: 1 } }
  - { key: free, rate_limit: { unlimited: true } }
  - { key: exempt }
  - { key: blocked, rate_limit: { unit: hour, requests_per_unit: 0 } }
  - { key: shadow, shadow_mode: true, rate_limit: { unit: minute, requests_per_unit: 5 } }
  - { key: quota, quota_mode: true, rate_limit: { unit: minute, requests_per_unit: 2 } }
  - { key: several, rate_limits: [ 3/second, { name: slow, unit: 15m, requests_per_unit: 5 } ] }
  - { key: dear, cost: 10, rate_limit: 60/minute }
  - { key: wide, rate_limit: { name: wide, unit: minute, requests_per_unit: 1 } }
  - { key: special, rate_limit: { unit: minute, requests_per_unit: 9, replaces: [ { name: wide } ] } }
  - { key: file, value: 'a/*', share_threshold: true, rate_limit: { unit: minute, requests_per_unit: 3 } }
  - { key: file, value: 'b/*', rate_limit: { unit: minute, requests_per_unit: 3 } }
  - key: team
    rate_limit: { unit: minute, requests_per_unit: 2 }
    metadata: { tier: { name: one, weight: 1 }, list: [a, b] }
  - key: squad
    rate_limit: { unit: minute, requests_per_unit: 2 }
    metadata: { tier: { name: two, color: red } }
";

/// What a future comes to that never waits: one over buckets in memory.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("it waits"),
    }
}

struct Fixture {
    service: Service,
    clock: Clock,
}

fn fixture() -> Fixture {
    with_options(|_| {})
}

fn with_options(set: impl FnOnce(&mut Options)) -> Fixture {
    with_rules(RULES, set)
}

fn with_rules(text: &str, set: impl FnOnce(&mut Options)) -> Fixture {
    let clock = Clock::manual(NOW);
    let rules = RuleSet::from_texts([("test.yaml", text)], NOW).unwrap();
    let store = LocalStore::new(NonZeroUsize::new(10_000).unwrap(), clock.clone());
    let mut options = Options::default();
    set(&mut options);
    let rules: CurrentRules = Arc::new(ArcSwapOption::from_pointee(rules));
    let limiter = Arc::new(Limiter::in_memory(store, KeySeed::fixed(1)));
    Fixture { service: Service::new(rules, limiter, options, Recorder::default()), clock }
}

fn descriptor(key: &str, value: &str) -> RateLimitDescriptor {
    let entry = |(key, value): (&str, &str)| Entry {
        key: key.to_owned().into_bytes().into(),
        value: value.to_owned().into_bytes().into(),
    };
    RateLimitDescriptor { entries: vec![entry((key, value))], ..RateLimitDescriptor::default() }
}

fn hits(key: &str, hits: u64) -> RateLimitDescriptor {
    RateLimitDescriptor { hits_addend: Some(hits), ..descriptor(key, "x") }
}

fn refund(key: &str, hits: u64) -> RateLimitDescriptor {
    RateLimitDescriptor { is_negative_hits: true, ..self::hits(key, hits) }
}

fn with_limit(key: &str, requests_per_unit: u32, unit: RateLimitUnit) -> RateLimitDescriptor {
    let limit = RateLimitOverride { requests_per_unit, unit: unit.into() };
    RateLimitDescriptor { limit: Some(limit), ..descriptor(key, "x") }
}

impl Fixture {
    fn ask(&self, descriptors: &[RateLimitDescriptor]) -> RateLimitResponse {
        let request =
            RateLimitRequest { domain: "api".into(), descriptors: descriptors.to_vec(), hits_addend: 0 };
        now(self.service.answer(&request)).unwrap()
    }

    /// Whether it is denied, what each status says, and how much each has left.
    fn short(&self, descriptors: &[RateLimitDescriptor]) -> (bool, Vec<(bool, u32)>) {
        let response = self.ask(descriptors);
        let statuses = response.statuses.iter().map(|status| (is_over(status.code), status.limit_remaining));
        (is_over(response.overall_code), statuses.collect())
    }

    fn refused(&self, request: RateLimitRequest) -> (Grpc, String) {
        let status = now(self.service.answer(&request)).unwrap_err();
        (status.code(), status.message().to_owned())
    }
}

fn is_over(code: i32) -> bool {
    match Code::try_from(code).unwrap() {
        Code::Ok => false,
        Code::OverLimit => true,
        Code::Unknown => panic!("UNKNOWN is never a code: some proxies read it as a denial"),
    }
}

fn reset(status: &DescriptorStatus) -> Option<i64> {
    status.duration_until_reset.as_ref().map(|duration| duration.seconds)
}

#[test]
fn a_status_shows_the_limit_what_is_left_and_when_the_bucket_is_full() {
    let fixture = fixture();
    let response = fixture.ask(&[hits("minute", 6)]);
    let status = &response.statuses[0];
    let limit = RateLimit { name: String::new(), requests_per_unit: 60, unit: Unit::Minute.into() };
    assert_eq!(
        (status.current_limit.as_ref(), status.limit_remaining, reset(status)),
        (Some(&limit), 54, Some(6))
    );
    assert_eq!(response.response_headers_to_add, []);

    // A window that the API has no name for; a name; and a week.
    let limit = fixture.ask(&[hits("window", 1)]).statuses[0].current_limit.clone().unwrap();
    assert_eq!((limit.unit(), limit.name.as_str(), limit.requests_per_unit), (Unit::Unknown, "quarter", 5));
    let status = &fixture.ask(&[hits("week", 1)]).statuses[0];
    assert_eq!(
        (status.current_limit.as_ref().unwrap().unit(), reset(status)),
        (Unit::Week, Some(7 * 86_400))
    );
}

#[test]
fn a_denial_says_when_this_very_charge_would_fit() {
    let fixture = fixture();
    fixture.ask(&[hits("minute", 58)]);
    let response = fixture.ask(&[hits("minute", 10)]);
    assert!(is_over(response.overall_code));
    assert_eq!((response.statuses[0].limit_remaining, reset(&response.statuses[0])), (2, Some(8)));
    let retry_after = &response.response_headers_to_add[0];
    assert_eq!((retry_after.key.as_str(), retry_after.value.as_str()), ("retry-after", "8"));
    fixture.clock.advance(8 * SECOND);
    assert!(!is_over(fixture.ask(&[hits("minute", 10)]).overall_code), "and then it does");
}

#[test]
fn seconds_are_rounded_up() {
    let fixture = fixture();
    fixture.ask(&[hits("second", 10)]);
    assert_eq!(reset(&fixture.ask(&[hits("second", 1)]).statuses[0]), Some(1), "a tenth of a second");
}

#[test]
fn a_charge_that_never_fits_shows_the_window_and_no_retry_after() {
    let fixture = fixture();
    for (key, count, window) in [("tight", 4, 60), ("window", 6, 900), ("blocked", 1, 3_600)] {
        let response = fixture.ask(&[hits(key, count)]);
        assert!(is_over(response.overall_code), "{key}");
        assert_eq!(reset(&response.statuses[0]), Some(window), "{key}");
        assert_eq!(response.response_headers_to_add, [], "{key}");
    }
    assert_eq!(fixture.short(&[hits("tight", 3)]), (false, vec![(false, 0)]), "and it cost nothing");
}

#[test]
fn several_denials_wait_for_the_longest() {
    let fixture = fixture();
    fixture.ask(&[hits("minute", 60), hits("window", 5), hits("second", 10)]);
    let response = fixture.ask(&[hits("minute", 1), hits("window", 1), hits("second", 1)]);
    assert_eq!(response.response_headers_to_add[0].value, "180");
    let response = fixture.ask(&[hits("minute", 1), hits("blocked", 1)]);
    assert_eq!(response.response_headers_to_add, [], "one of them never fits");
}

#[test]
fn without_a_limit_a_status_is_ok_and_says_nothing_else() {
    let fixture = fixture();
    let nothing = DescriptorStatus { code: Code::Ok.into(), ..DescriptorStatus::default() };
    let empty = RateLimitDescriptor::default();
    let response = fixture.ask(&[descriptor("unknown", "x"), descriptor("exempt", "x"), empty]);
    assert_eq!(response.statuses, vec![nothing; 3]);
    assert!(!is_over(response.overall_code));
}

#[test]
fn an_unlimited_status_has_all_that_can_be_said_remaining_and_no_limit() {
    let status =
        DescriptorStatus { code: Code::Ok.into(), limit_remaining: u32::MAX, ..DescriptorStatus::default() };
    assert_eq!(fixture().ask(&[hits("free", 1_000_000)]).statuses, [status]);
}

#[test]
fn an_unknown_domain_is_ok_also_with_a_limit_of_its_own() {
    let fixture = fixture();
    let request = RateLimitRequest {
        domain: "elsewhere".into(),
        descriptors: vec![descriptor("minute", "x"), with_limit("minute", 0, RateLimitUnit::Minute)],
        hits_addend: 0,
    };
    let response = now(fixture.service.answer(&request)).unwrap();
    let nothing = DescriptorStatus { code: Code::Ok.into(), ..DescriptorStatus::default() };
    assert_eq!((is_over(response.overall_code), response.statuses), (false, vec![nothing; 2]));
}

#[test]
fn a_denied_request_charges_none_of_its_descriptors_and_says_which_was_over() {
    let fixture = fixture();
    fixture.ask(&[hits("tight", 3)]);
    let answer = fixture.short(&[hits("minute", 1), hits("tight", 1), hits("free", 1)]);
    assert_eq!(answer, (true, vec![(false, 60), (true, 0), (false, u32::MAX)]));
    assert_eq!(fixture.short(&[hits("minute", 0)]), (false, vec![(false, 60)]));
}

#[test]
fn a_bucket_that_is_named_twice_counts_twice() {
    let fixture = fixture();
    assert_eq!(fixture.short(&[hits("tight", 2), hits("tight", 2)]), (true, vec![(false, 3), (true, 3)]));
    assert_eq!(fixture.short(&[hits("tight", 1), hits("tight", 2)]), (false, vec![(false, 2), (false, 0)]));
}

#[test]
fn the_descriptors_hits_win_over_the_requests_whose_zero_is_one() {
    let fixture = fixture();
    let ask = |request_hits: u32, own: Option<u64>| {
        let descriptor = RateLimitDescriptor { hits_addend: own, ..descriptor("minute", "x") };
        let request = RateLimitRequest {
            domain: "api".into(),
            descriptors: vec![descriptor],
            hits_addend: request_hits,
        };
        now(fixture.service.answer(&request)).unwrap().statuses[0].limit_remaining
    };
    assert_eq!(ask(0, None), 59);
    assert_eq!(ask(5, None), 54);
    assert_eq!(ask(5, Some(2)), 52);
    assert_eq!(ask(5, Some(0)), 52, "a peek charges nothing");
}

#[test]
fn a_peek_is_denied_when_not_one_whole_token_is_left_and_shows_the_limit() {
    let fixture = fixture();
    fixture.ask(&[hits("tight", 3)]);
    fixture.clock.advance(SECOND / 2);
    let response = fixture.ask(&[hits("tight", 0)]);
    assert!(is_over(response.overall_code));
    assert_eq!(response.statuses[0].current_limit.as_ref().unwrap().requests_per_unit, 60);
    fixture.clock.advance(SECOND / 2);
    assert_eq!(fixture.short(&[hits("tight", 0)]), (false, vec![(false, 1)]));
}

#[test]
fn hits_given_back_land_whatever_the_verdict_and_never_deny() {
    let fixture = fixture();
    fixture.ask(&[hits("minute", 60)]);
    let answer = fixture.short(&[refund("minute", 20), hits("blocked", 1)]);
    assert_eq!(answer, (true, vec![(false, 20), (true, 0)]));
    assert_eq!(fixture.short(&[refund("minute", 1_000)]), (false, vec![(false, 60)]), "up to a full bucket");
    assert_eq!(fixture.short(&[refund("blocked", 1)]), (false, vec![(false, 0)]));
    let unset = RateLimitDescriptor { hits_addend: None, ..refund("minute", 0) };
    fixture.ask(&[hits("minute", 10)]);
    assert_eq!(fixture.short(&[unset]), (false, vec![(false, 51)]), "one, when it is not said how many");
}

#[test]
fn more_hits_than_a_burst_holds_are_denied_however_many() {
    let fixture = fixture();
    for count in [61, u64::from(u32::MAX) + 1, u64::MAX] {
        assert_eq!(fixture.short(&[hits("minute", count)]), (true, vec![(true, 60)]));
    }
}

#[test]
fn a_limit_of_the_requests_own_beats_the_rules_and_has_buckets_of_its_own() {
    let fixture = fixture();
    let own = |requests| with_limit("tight", requests, RateLimitUnit::Hour);
    assert_eq!(fixture.short(&[own(2)]), (false, vec![(false, 1)]));
    assert_eq!(fixture.short(&[hits("tight", 1)]), (false, vec![(false, 2)]), "the rule's bucket is another");
    assert_eq!(fixture.short(&[own(2)]), (false, vec![(false, 0)]));
    let response = fixture.ask(&[own(2)]);
    assert!(is_over(response.overall_code));
    let limit = response.statuses[0].current_limit.clone().unwrap();
    assert_eq!((limit.requests_per_unit, limit.unit()), (2, Unit::Hour));
    // It may change with each request, and keeps what was used; another unit is another bucket.
    assert_eq!(fixture.short(&[own(10)]), (false, vec![(false, 7)]));
    assert_eq!(fixture.short(&[with_limit("tight", 10, RateLimitUnit::Day)]), (false, vec![(false, 9)]));
    assert_eq!(fixture.short(&[with_limit("exempt", 0, RateLimitUnit::Day)]), (true, vec![(true, 0)]));
    for unit in [RateLimitUnit::Second, RateLimitUnit::Minute, RateLimitUnit::Month, RateLimitUnit::Year] {
        assert_eq!(fixture.short(&[with_limit("any", 10, unit)]), (false, vec![(false, 9)]));
    }
}

#[test]
fn quotas_deny_only_when_all_of_them_are_over() {
    let fixture = fixture();
    let quota = |value: &str| descriptor("quota", value);
    fixture.ask(&[quota("a"), quota("a")]);
    assert_eq!(fixture.short(&[quota("a"), quota("b")]), (false, vec![(true, 0), (false, 1)]));
    assert_eq!(fixture.short(&[quota("a"), quota("b")]), (false, vec![(true, 0), (false, 0)]));
    let response = fixture.ask(&[quota("a"), quota("b")]);
    assert!(is_over(response.overall_code));
    assert_eq!(response.response_headers_to_add[0].value, "30", "until the first of them has room");
}

#[test]
fn a_shadowed_rule_counts_and_never_denies() {
    let fixture = fixture();
    assert_eq!(fixture.short(&[hits("shadow", 3)]), (false, vec![(false, 2)]));
    let response = fixture.ask(&[hits("shadow", 3)]);
    let status = &response.statuses[0];
    assert_eq!(
        (is_over(response.overall_code), is_over(status.code), status.limit_remaining),
        (false, false, 0)
    );
    assert_eq!(status.current_limit.as_ref().unwrap().requests_per_unit, 5);
    assert_eq!(
        fixture.short(&[hits("shadow", 2)]),
        (false, vec![(false, 0)]),
        "what was over was not charged"
    );
}

#[test]
fn all_rules_can_be_shadowed_or_made_quotas() {
    let shadow = with_options(|options| options.shadow_mode = true);
    assert_eq!(
        shadow.short(&[hits("blocked", 1), hits("minute", 1)]),
        (false, vec![(false, 0), (false, 59)])
    );
    assert_eq!(shadow.short(&[with_limit("any", 0, RateLimitUnit::Day)]), (false, vec![(false, 0)]));

    let quota = with_options(|options| options.quota_mode = true);
    assert_eq!(quota.short(&[hits("blocked", 1), hits("minute", 1)]), (false, vec![(true, 0), (false, 59)]));
    assert_eq!(quota.short(&[hits("blocked", 1)]), (true, vec![(true, 0)]));
    assert_eq!(quota.short(&[hits("blocked", 1), hits("shadow", 9)]), (true, vec![(true, 0), (false, 0)]));
}

#[test]
fn a_replaced_limit_is_not_charged_and_says_nothing() {
    let fixture = fixture();
    for left in (4..9).rev() {
        let response = fixture.ask(&[hits("wide", 1), hits("special", 1)]);
        let nothing = DescriptorStatus { code: Code::Ok.into(), ..DescriptorStatus::default() };
        assert_eq!(response.statuses[0], nothing);
        assert_eq!(response.statuses[1].limit_remaining, left);
    }
    assert_eq!(fixture.short(&[hits("wide", 1)]), (false, vec![(false, 0)]), "alone, it is as it was");
}

#[test]
fn values_share_a_bucket_where_the_rule_says_so_and_else_have_their_own() {
    let fixture = fixture();
    let file = |path: &str| descriptor("file", path);
    assert_eq!(
        fixture.short(&[file("a/1"), file("a/2"), file("a/3")]).1,
        [(false, 2), (false, 1), (false, 0)]
    );
    assert_eq!(fixture.short(&[file("a/4")]), (true, vec![(true, 0)]));
    assert_eq!(fixture.short(&[file("b/1"), file("b/2")]), (false, vec![(false, 2), (false, 2)]));
    // A caller who sends the pattern itself is in the shared bucket like everyone else.
    assert_eq!(fixture.short(&[file("a/*")]), (true, vec![(true, 0)]));
}

#[test]
fn values_of_any_bytes_and_any_length_are_limited_like_any_other() {
    let fixture = fixture();
    for value in [b"\xff\xfe".to_vec(), vec![0; 1], Vec::new(), vec![b'x'; 1 << 20], vec![0x80; 50_000]] {
        let entry = Entry { key: "tight".into(), value: value.into() };
        let descriptor = RateLimitDescriptor { entries: vec![entry], ..RateLimitDescriptor::default() };
        for left in (0..3).rev() {
            assert_eq!(fixture.short(std::slice::from_ref(&descriptor)), (false, vec![(false, left)]));
        }
        assert_eq!(fixture.short(&[descriptor]), (true, vec![(true, 0)]));
    }
}

#[test]
fn what_only_a_proxy_can_get_wrong_is_an_invalid_argument_that_names_it() {
    let fixture = fixture();
    let request = |domain: &str, descriptors: Vec<RateLimitDescriptor>| RateLimitRequest {
        domain: domain.into(),
        descriptors,
        hits_addend: 0,
    };
    let good = descriptor("minute", "x");
    let unknown_unit = with_limit("minute", 1, RateLimitUnit::Unknown);
    let odd_unit = RateLimitDescriptor {
        limit: Some(RateLimitOverride { requests_per_unit: 1, unit: 99 }),
        ..descriptor("minute", "x")
    };
    for (request, message) in [
        (request("", vec![good.clone()]), "domain: empty; a rate limit filter names the domain of its rules"),
        (request("api", vec![]), "descriptors: none; a request asks about at least one"),
        (request("api", vec![good.clone(), descriptor("", "x")]), "descriptors[1].entries[0].key: empty"),
        (request("api", vec![unknown_unit]), "descriptors[0].limit.unit: 0 is no unit"),
        (request("api", vec![odd_unit]), "descriptors[0].limit.unit: 99 is no unit"),
        (
            request("api", vec![good.clone(); 65]),
            "descriptors: 65, and at most 64 are taken (--max-descriptors)",
        ),
    ] {
        assert_eq!(fixture.refused(request), (Grpc::InvalidArgument, message.to_owned()));
    }
    assert_eq!(fixture.ask(&vec![good; 64]).statuses.len(), 64);
}

#[test]
fn before_rules_are_loaded_every_call_is_unavailable() {
    let fixture = fixture();
    fixture.service.rules.store(None);
    let request = RateLimitRequest { domain: "api".into(), ..RateLimitRequest::default() };
    assert_eq!(fixture.refused(request), (Grpc::Unavailable, "no rules are loaded yet".into()));
}

#[test]
fn a_limit_that_changes_keeps_what_was_used() {
    let fixture = fixture();
    fixture.ask(&[hits("minute", 60)]);
    let more = RULES.replace(
        "key: minute, rate_limit: { unit: minute, requests_per_unit: 60",
        "key: minute, rate_limit: { unit: minute, requests_per_unit: 600",
    );
    assert_ne!(more, RULES);
    fixture.clock.advance(SECOND);
    let rules = RuleSet::from_texts([("test.yaml", more.as_str())], fixture.clock.now()).unwrap();
    fixture.service.rules.store(Some(Arc::new(rules)));
    // 60 used, one of which came back while the old limit was in force.
    assert_eq!(fixture.short(&[hits("minute", 0)]), (false, vec![(false, 541)]));
    fixture.clock.advance(SECOND);
    assert_eq!(fixture.short(&[hits("minute", 0)]), (false, vec![(false, 551)]));
}

#[test]
fn dynamic_metadata_is_off_unless_chosen_and_then_tells_the_request_and_what_it_passed() {
    assert_eq!(fixture().ask(&[hits("team", 1)]).dynamic_metadata, None);

    let fixture = with_options(|options| options.dynamic_metadata = true);
    let metadata = fixture.ask(&[hits("team", 1), hits("squad", 2)]).dynamic_metadata.unwrap();
    let text = |kind: &str| Kind::StringValue(kind.into());
    assert_eq!(metadata.fields["domain"].kind, Some(text("api")));
    let Some(Kind::ListValue(descriptors)) = &metadata.fields["descriptors"].kind else {
        panic!("{metadata:?}")
    };
    let Some(Kind::StructValue(first)) = &descriptors.values[0].kind else { panic!("{descriptors:?}") };
    let Some(Kind::ListValue(entries)) = &first.fields["entries"].kind else { panic!("{first:?}") };
    assert_eq!(entries.values[0].kind, Some(text("team=x")));
    assert_eq!(first.fields["hitsAddend"].kind, Some(Kind::NumberValue(1.0)));

    let tier = |response: RateLimitResponse| {
        let metadata = response.dynamic_metadata.unwrap();
        let Some(Kind::StructValue(merged)) = metadata.fields.get("metadata")?.kind.clone() else { panic!() };
        let Some(Kind::StructValue(tier)) = merged.fields["tier"].kind.clone() else { panic!() };
        Some(tier.fields.into_iter().map(|(key, value)| (key, value.kind.unwrap())).collect::<Vec<_>>())
    };
    // The first that says something is heard; maps are merged.
    let (color, name, weight) = (("color".into(), text("red")), "name".to_owned(), "weight".to_owned());
    // Squad is used up, so the request is denied, and team alone has passed.
    assert_eq!(
        tier(fixture.ask(&[hits("team", 0), hits("squad", 0)])).unwrap(),
        [(name.clone(), text("one")), (weight.clone(), Kind::NumberValue(1.0))]
    );
    assert_eq!(tier(fixture.ask(&[hits("squad", 0)])), None);
    fixture.clock.advance(60 * SECOND);
    assert_eq!(
        tier(fixture.ask(&[hits("team", 0), hits("squad", 0)])).unwrap(),
        [color, (name, text("one")), (weight, Kind::NumberValue(1.0))]
    );
}
