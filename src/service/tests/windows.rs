//! Fixed and sliding windows, and charges after the fact, as a caller sees them.

use super::*;

const RULES: &str = "
domain: api
descriptors:
  - { key: fixed, rate_limit: { unit: minute, requests_per_unit: 5, algorithm: fixed_window } }
  - { key: month, rate_limit: { unit: month, requests_per_unit: 5, algorithm: fixed_window } }
  - { key: sliding, rate_limit: { unit: minute, requests_per_unit: 8, algorithm: sliding_window } }
  - { key: llm, overdraft: true, rate_limit: { unit: minute, requests_per_unit: 60 } }
  - { key: credits, overdraft: true, rate_limit: { unit: minute, requests_per_unit: 60, algorithm: fixed_window } }
  - { key: none, rate_limit: 0/minute }
";

/// So far into a minute; forty seconds are left of it.
const SECOND_OF_MINUTE: Micros = 20 * SECOND;

fn fixture() -> Fixture {
    with_rules(RULES, |_| {})
}

/// Of one descriptor: over or not, what is left, and the seconds until it is reset.
fn one(fixture: &Fixture, descriptor: RateLimitDescriptor) -> (bool, u32, i64) {
    let status = fixture.ask(&[descriptor]).statuses[0].clone();
    (is_over(status.code), status.limit_remaining, status.duration_until_reset.unwrap().seconds)
}

#[test]
fn a_fixed_window_says_when_it_ends() {
    let fixture = fixture();
    fixture.clock.set(NOW / (60 * SECOND) * 60 * SECOND + SECOND_OF_MINUTE);
    assert_eq!(one(&fixture, hits("fixed", 0)), (false, 5, 0), "nothing is used");
    assert_eq!(one(&fixture, hits("fixed", 3)), (false, 2, 40));
    assert_eq!(one(&fixture, hits("fixed", 3)), (true, 2, 40), "until the charge fits");
    assert_eq!(one(&fixture, hits("fixed", 6)), (true, 2, 60), "which it never will: the window");
    let response = fixture.ask(&[hits("fixed", 3)]);
    assert_eq!(response.response_headers_to_add[0].value, "40", "retry-after");
    fixture.clock.advance(40 * SECOND);
    assert_eq!(one(&fixture, hits("fixed", 5)), (false, 0, 60));
}

#[test]
fn a_month_ends_when_the_calendar_says_so() {
    let fixture = fixture();
    // 2024-02-28T12:00:00Z: a day and a half are left of a leap year's February.
    fixture.clock.set(1_709_121_600 * SECOND);
    assert_eq!(one(&fixture, hits("month", 5)), (false, 0, 36 * 3_600));
    assert_eq!(one(&fixture, hits("month", 1)), (true, 0, 36 * 3_600));
    fixture.clock.advance(36 * 3_600 * SECOND);
    assert_eq!(one(&fixture, hits("month", 1)), (false, 4, 31 * 24 * 3_600));
}

#[test]
fn a_sliding_window_gives_back_an_eighth_of_a_window_at_a_time() {
    let fixture = fixture();
    // An eighth of a minute is 7.5 seconds.
    let start = NOW / (60 * SECOND) * 60 * SECOND;
    fixture.clock.set(start);
    assert_eq!(one(&fixture, hits("sliding", 2)), (false, 6, 68), "nine eighths of a minute, rounded up");
    fixture.clock.set(start + 30 * SECOND);
    assert_eq!(one(&fixture, hits("sliding", 6)), (false, 0, 68));
    assert_eq!(one(&fixture, hits("sliding", 2)), (true, 0, 38), "when the first two leave");
    assert_eq!(one(&fixture, hits("sliding", 3)), (true, 0, 68), "when all of them have left");
    fixture.clock.set(start + 67_500_000);
    assert_eq!(one(&fixture, hits("sliding", 2)), (false, 0, 68));
}

#[test]
fn an_overdraft_lands_whatever_is_left_and_is_paid_back_before_anything_else() {
    let fixture = fixture();
    assert_eq!(one(&fixture, hits("llm", 50)), (false, 10, 50));
    assert_eq!(one(&fixture, hits("llm", 100)), (false, 0, 150), "there was a token before it");
    // 150 used of 60: one is left after 91 seconds.
    assert_eq!(one(&fixture, hits("llm", 0)), (true, 0, 91));
    assert_eq!(one(&fixture, hits("llm", 9)), (true, 0, 100), "it lands, and says that there was none left");
    fixture.clock.advance(100 * SECOND);
    assert_eq!(one(&fixture, hits("llm", 0)), (false, 1, 59));
}

#[test]
fn an_overdraft_lands_also_when_the_request_is_denied_by_another_limit() {
    let fixture = fixture();
    assert_eq!(
        fixture.short(&[hits("llm", 20), hits("credits", 70), hits("none", 1)]),
        (true, vec![(false, 40), (false, 0), (true, 0)])
    );
    assert_eq!(fixture.short(&[hits("llm", 0)]), (false, vec![(false, 40)]));
    assert_eq!(fixture.short(&[hits("credits", 0)]), (true, vec![(true, 0)]));
}

#[test]
fn a_debt_is_capped_so_that_nobody_waits_for_ever() {
    let fixture = with_rules(RULES, |options| options.max_debt = 2.0);
    let _ = fixture.ask(&[hits("llm", 1_000_000)]);
    assert_eq!(one(&fixture, hits("llm", 0)), (true, 0, 121), "two bursts of debt, and one more second");
    let none = with_rules(RULES, |options| options.max_debt = 0.0);
    let _ = none.ask(&[hits("llm", 1_000_000)]);
    assert_eq!(one(&none, hits("llm", 0)), (true, 0, 1));
}
