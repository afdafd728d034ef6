//! What a rule says of its limits.

use super::*;
use crate::bucket::{Algorithm, Calendar, Hits};
use crate::decision::OnRedisFailure;

fn shown(rule: &Rule) -> Vec<String> {
    let limits = rule.limits.iter().map(|limit| match limit.allowance {
        Allowance::Limited { limit: bucket, requests_per_unit, unit } => {
            format!("{requests_per_unit}/{unit} {} {}", bucket.burst(), limit.limit_id)
        }
        Allowance::Unlimited => "unlimited".into(),
    });
    limits.collect()
}

#[test]
fn a_limit_can_be_written_in_short_and_a_descriptor_can_have_several() {
    let set = rules(
        "
domain: api
descriptors:
  - { key: a, rate_limit: 60/minute }
  - { key: b, rate_limit: 1_000 / 15m }
  - { key: c, rate_limit: unlimited }
  - key: d
    rate_limits:
      - { unit: second, requests_per_unit: 20, burst: 50 }
      - 1000/15m
      - { name: other, unit: second, requests_per_unit: 30 }
  - { key: e, rate_limit: 0/day }
",
    );
    assert_eq!(shown(find(&set, "a=1").unwrap()), ["60/minute 60 minute"]);
    assert_eq!(shown(find(&set, "b=1").unwrap()), ["1000/15m 1000 15m"]);
    assert_eq!(shown(find(&set, "c=1").unwrap()), ["unlimited"]);
    assert_eq!(
        shown(find(&set, "d=1").unwrap()),
        ["20/second 50 second", "1000/15m 1000 15m", "30/second 30 other"]
    );
    assert_eq!(shown(find(&set, "e=1").unwrap()), ["0/day 0 day"]);
    assert_eq!(set.len(), 7);
}

#[test]
fn each_of_several_limits_has_an_id_of_its_own_and_is_followed_by_it_through_a_reload() {
    let text = |first: &str, second: &str| {
        format!("domain: api\ndescriptors:\n  - {{ key: a, rate_limits: [{first}, {second}] }}\n")
    };
    let load = |text: String, now: Micros| RuleSet::from_texts([("api.yaml", text.as_str())], now).unwrap();
    let first = load(text("5/second", "9/day"), 1_000);
    let mut second = load(text("8/day", "5/second"), 2_000);
    second.succeed(&first);
    let since = |id: &str| {
        let limits = &find(&second, "a=1").unwrap().limits;
        let limit = limits.iter().find(|limit| &*limit.limit_id == id).unwrap();
        limit.allowance.limit().unwrap().in_force_since()
    };
    assert_eq!((since("second"), since("day")), (1_000, 2_000), "only the day's limit has changed");
}

#[test]
fn a_cost_multiplies_what_is_taken_and_given_back_and_a_peek_stays_one() {
    let set = rules("domain: api\ndescriptors:\n  - { key: a, cost: 3, rate_limit: 60/minute }\n");
    let rule = find(&set, "a=1").unwrap();
    assert_eq!(rule.cost_of(Hits::Take(2)), Hits::Take(6));
    assert_eq!(rule.cost_of(Hits::GiveBack(2)), Hits::GiveBack(6));
    assert_eq!(rule.cost_of(Hits::Peek), Hits::Peek);
    assert_eq!(rule.cost_of(Hits::Take(u64::MAX)), Hits::Take(u64::MAX));
}

#[test]
fn what_happens_without_redis_is_said_by_the_rule_or_else_by_any_file_of_its_domain() {
    let one = "domain: api\ndescriptors:\n  - { key: a, rate_limit: 1/day }\n  - { key: b, on_redis_failure: allow, rate_limit: 1/day }\n";
    let said = |files: &[(&str, &str)], descriptor: &str| {
        let set = RuleSet::from_texts(files.iter().copied(), 0).unwrap();
        find(&set, descriptor).unwrap().on_redis_failure
    };
    let two = "domain: api\non_redis_failure: deny\n";
    assert_eq!(said(&[("1", one)], "a=1"), None);
    for files in [[("1", one), ("2", two)], [("2", two), ("1", one)]] {
        assert_eq!(said(&files, "a=1"), Some(OnRedisFailure::Deny));
        assert_eq!(said(&files, "b=1"), Some(OnRedisFailure::Allow));
    }
}

#[test]
fn a_limit_says_by_which_algorithm_it_counts_and_calendar_units_have_calendar_windows() {
    let algorithm = |limit: &str| {
        let set = rules(&format!(
            "domain: api\ndescriptors:\n  - {{ key: a, rate_limit: {{ requests_per_unit: 5, {limit} }} }}\n"
        ));
        find(&set, "a=1").unwrap().limits[0].allowance.limit().unwrap().algorithm()
    };
    assert_eq!(algorithm("unit: day"), Algorithm::TokenBucket);
    assert_eq!(algorithm("unit: day, algorithm: token_bucket"), Algorithm::TokenBucket);
    assert_eq!(algorithm("unit: 15m, algorithm: sliding_window"), Algorithm::SlidingWindow);
    for (unit, calendar) in [
        ("second", Calendar::Epoch),
        ("15m", Calendar::Epoch),
        ("day", Calendar::Epoch),
        ("7d", Calendar::Epoch),
        ("week", Calendar::Week),
        ("month", Calendar::Month),
        ("year", Calendar::Year),
    ] {
        let limit = format!("unit: {unit}, algorithm: fixed_window");
        assert_eq!(algorithm(&limit), Algorithm::FixedWindow(calendar), "{unit}");
    }
}

#[test]
fn an_overdraft_charges_after_the_fact_what_it_costs_and_a_peek_stays_one() {
    let set =
        rules("domain: api\ndescriptors:\n  - { key: a, cost: 3, overdraft: true, rate_limit: 60/minute }\n");
    let rule = find(&set, "a=1").unwrap();
    assert_eq!(rule.cost_of(Hits::Take(2)), Hits::Overdraft(6));
    assert_eq!(rule.cost_of(Hits::Peek), Hits::Peek);
    assert_eq!(rule.cost_of(Hits::GiveBack(2)), Hits::GiveBack(6));
}

#[test]
fn what_makes_no_sense_of_an_algorithm_is_told_with_the_way_out() {
    let told = |limit: &str| {
        let text = format!("domain: api\ndescriptors:\n  - {{ key: a, {limit} }}\n");
        match RuleSet::from_texts([("api.yaml", text.as_str())], 0) {
            Ok(set) => set.warnings().iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
            Err(LoadError::Rejected(problems)) => {
                problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            }
            Err(error) => panic!("{error}"),
        }
    };
    for (limit, message) in [
        (
            "rate_limit: { unit: day, requests_per_unit: 5, burst: 2, algorithm: fixed_window }",
            "rate_limit.burst: a window admits its `requests_per_unit` at once, so there is no burst: remove it, or use \
             `algorithm: token_bucket`",
        ),
        (
            "rate_limit: { unit: day, requests_per_unit: 5, algorithm: leaky_bucket }",
            "rate_limit.algorithm: expected token_bucket, fixed_window or sliding_window, found `leaky_bucket`",
        ),
        (
            "rate_limit: { unlimited: true, algorithm: fixed_window }",
            "rate_limit.algorithm: what is unlimited has no algorithm: remove `algorithm`, or `unlimited`",
        ),
        ("overdraft: true", "overdraft: warning: says nothing without a `rate_limit` beside it"),
        (
            "algorithm: fixed_window, rate_limit: 5/day",
            "algorithm: `algorithm` does not belong here: it stands in `rate_limit`",
        ),
        (
            "rate_limit: { unit: day, requests_per_unit: 5, overdraft: true }",
            "overdraft: `overdraft` does not belong here: it stands in the descriptor, beside `key`",
        ),
    ] {
        let told = told(limit);
        assert!(told.ends_with(message), "{told}");
    }
}
