//! Descriptors with several limits, and with a cost.

use super::*;

/// The name of the limit that a response's only status shows, and what it has left.
fn shown(response: &RateLimitResponse) -> (bool, String, u32, u32) {
    let [status] = &response.statuses[..] else { panic!("{response:?}") };
    let limit = status.current_limit.as_ref().unwrap();
    (is_over(status.code), limit.name.clone(), limit.requests_per_unit, status.limit_remaining)
}

#[test]
fn all_limits_of_a_descriptor_must_have_room_and_its_status_shows_the_tightest() {
    let fixture = fixture();
    let ask = |count| shown(&fixture.ask(&[hits("several", count)]));
    assert_eq!(ask(2), (false, String::new(), 3, 1), "3 a second has the least left");
    assert_eq!(ask(2), (true, String::new(), 3, 1), "and is the one that denies");
    fixture.clock.advance(SECOND);
    assert_eq!(ask(0), (false, String::new(), 3, 3), "a tie shows the first");
    assert_eq!(ask(3), (false, "".into(), 3, 0), "a tie shows the first");
    fixture.clock.advance(SECOND);
    // Five are used of 5 in 15 minutes, so the other one denies, and the 3 a second lose nothing by it.
    let denied = fixture.ask(&[hits("several", 1)]);
    assert_eq!(shown(&denied), (true, "slow".into(), 5, 0));
    assert_eq!(denied.response_headers_to_add[0].value, "178", "five are used at most two seconds");
    assert_eq!(fixture.short(&[hits("several", 1), hits("minute", 1)]).1[1], (false, 60));
}

#[test]
fn of_several_limits_that_deny_the_one_that_lasts_longest_is_shown() {
    let fixture = fixture();
    assert_eq!(shown(&fixture.ask(&[hits("several", 4)])), (true, String::new(), 3, 3), "never fits");
    fixture.ask(&[hits("several", 3)]);
    fixture.clock.advance(SECOND / 2);
    fixture.ask(&[hits("several", 1)]);
    assert_eq!(shown(&fixture.ask(&[hits("several", 2)])).1, "slow");
}

#[test]
fn a_hit_takes_as_much_as_it_costs() {
    let fixture = fixture();
    assert_eq!(fixture.short(&[hits("dear", 2)]), (false, vec![(false, 40)]));
    assert_eq!(fixture.short(&[hits("dear", 0)]), (false, vec![(false, 40)]));
    assert_eq!(fixture.short(&[refund("dear", 1)]), (false, vec![(false, 50)]));
    assert_eq!(fixture.short(&[hits("dear", 6)]), (true, vec![(true, 50)]));
}
