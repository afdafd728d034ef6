//! Tiers, as a caller meets them.

use super::*;

const TIERS: &str = "
domain: api
tiers:
  free: { requests: 60/minute, tokens: 1000/minute, credits: 10/day }
  pro: { requests: 600/minute, tokens: 20000/minute, credits: 500/day }
  enterprise: { requests: unlimited, tokens: 2000000/minute, credits: unlimited }
subjects:
  user: { default: free, members: { zen: pro, acme: enterprise } }
  tier: { default: free }
descriptors:
  - { key: user, tier_limit: requests, descriptors: [ { key: model, tier_limit: tokens }, { key: plan, tier_limit: [requests, credits] } ] }
  - { key: tier, descriptors: [ { key: user, tier_limit: requests } ] }
";

fn tiers() -> Fixture {
    let fixture = fixture();
    put(&fixture, TIERS);
    fixture
}

/// Puts other rules in force, as a reload does.
fn put(fixture: &Fixture, text: &str) {
    let mut rules = RuleSet::from_texts([("test.yaml", text)], fixture.clock.now()).unwrap();
    if let Some(previous) = &*fixture.service.rules.load() {
        rules.succeed(previous);
    }
    fixture.service.rules.store(Some(Arc::new(rules)));
}

fn of(entries: &[(&str, &str)], hits: u64) -> RateLimitDescriptor {
    let entries = entries.iter().map(|(key, value)| Entry {
        key: key.as_bytes().to_vec().into(),
        value: value.as_bytes().to_vec().into(),
    });
    RateLimitDescriptor {
        entries: entries.collect(),
        hits_addend: Some(hits),
        ..RateLimitDescriptor::default()
    }
}

fn user(name: &str, hits: u64) -> RateLimitDescriptor {
    of(&[("user", name)], hits)
}

#[test]
fn several_dimensions_are_charged_in_one_request_all_or_none() {
    let fixture = tiers();
    let ask = |tokens: u64| {
        let tokens = of(&[("user", "ann"), ("model", "m")], tokens);
        let plan = of(&[("user", "ann"), ("plan", "p")], 1);
        fixture.short(&[user("ann", 1), tokens, plan])
    };
    assert_eq!(ask(400), (false, vec![(false, 59), (false, 600), (false, 9)]));
    assert_eq!(ask(700), (true, vec![(false, 59), (true, 600), (false, 9)]), "and nothing is charged");
    assert_eq!(ask(600), (false, vec![(false, 58), (false, 0), (false, 8)]));
}

#[test]
fn an_unlimited_dimension_says_so_and_another_one_beside_it_still_counts() {
    let fixture = tiers();
    assert_eq!(fixture.short(&[user("acme", 1_000_000)]), (false, vec![(false, u32::MAX)]));
    let both = [user("acme", 1), of(&[("user", "acme"), ("model", "m")], 10)];
    assert_eq!(fixture.short(&both), (false, vec![(false, u32::MAX), (false, 1_999_990)]));
}

#[test]
fn a_status_names_the_dimension() {
    let status = tiers().ask(&[user("zen", 1)]).statuses.remove(0);
    let limit = status.current_limit.unwrap();
    assert_eq!((limit.name.as_str(), limit.requests_per_unit, limit.unit()), ("requests", 600, Unit::Minute));
}

#[test]
fn who_moves_up_in_mid_minute_has_at_once_what_the_new_tier_leaves_and_keeps_what_was_used() {
    let fixture = tiers();
    assert_eq!(fixture.short(&[user("ann", 60)]), (false, vec![(false, 0)]));
    assert_eq!(fixture.short(&[user("ann", 1)]), (true, vec![(true, 0)]));
    fixture.clock.advance(30 * SECOND);
    put(&fixture, &TIERS.replace("zen: pro", "zen: pro, ann: pro"));
    // Half of the 60 came back at one a second, and from here on ten come a second.
    assert_eq!(fixture.short(&[user("ann", 0)]), (false, vec![(false, 570)]));
    fixture.clock.advance(SECOND);
    assert_eq!(fixture.short(&[user("ann", 0)]), (false, vec![(false, 580)]));
    fixture.clock.advance(2 * SECOND);
    assert_eq!(fixture.short(&[user("ann", 0)]), (false, vec![(false, 600)]));
}

#[test]
fn the_move_counts_from_the_reload_and_not_from_the_next_call() {
    let fixture = tiers();
    fixture.ask(&[user("zen", 600)]);
    put(&fixture, &TIERS.replace("zen: pro, ", ""));
    fixture.clock.advance(30 * SECOND);
    // From the reload on one a second comes back, not ten; and what is used is never above the new burst.
    assert_eq!(fixture.short(&[user("zen", 0)]), (false, vec![(false, 30)]));
}

#[test]
fn who_moves_down_in_mid_minute_is_locked_out_no_longer_than_the_new_limit_takes_to_refill() {
    let fixture = tiers();
    fixture.ask(&[user("zen", 590)]);
    put(&fixture, &TIERS.replace("zen: pro", "zen: free"));
    let response = fixture.ask(&[user("zen", 1)]);
    assert!(is_over(response.overall_code));
    assert_eq!(reset(&response.statuses[0]), Some(1));
    fixture.clock.advance(SECOND);
    assert_eq!(fixture.short(&[user("zen", 1)]), (false, vec![(false, 0)]));
    fixture.clock.advance(60 * SECOND);
    assert_eq!(fixture.short(&[user("zen", 0)]), (false, vec![(false, 60)]));
}

#[test]
fn little_used_stays_little_used_after_a_move_down() {
    let fixture = tiers();
    fixture.ask(&[user("zen", 20)]);
    put(&fixture, &TIERS.replace("zen: pro", "zen: free"));
    assert_eq!(fixture.short(&[user("zen", 0)]), (false, vec![(false, 40)]));
}

#[test]
fn back_and_forth_between_tiers_is_no_way_to_a_full_bucket() {
    let fixture = tiers();
    for round in 0..20 {
        let admitted = fixture.short(&[user("ann", 60)]).0;
        assert_eq!(!admitted, round == 0, "60 are used, at any tier of 60");
        put(&fixture, &TIERS.replace("zen: pro", "zen: pro, ann: free"));
        put(&fixture, TIERS);
    }
    assert_eq!(fixture.short(&[user("ann", 0)]), (true, vec![(true, 0)]));
}

#[test]
fn a_tier_that_the_request_names_has_the_same_bucket_as_any_other() {
    let fixture = tiers();
    let ask = |tier: &str, hits| fixture.short(&[of(&[("tier", tier), ("user", "ann")], hits)]);
    assert_eq!(ask("free", 60), (false, vec![(false, 0)]));
    assert_eq!(ask("pro", 1), (false, vec![(false, 539)]), "moved up, with 60 of 600 used");
    assert_eq!(ask("free", 1), (true, vec![(true, 0)]));
    assert_eq!(ask("nonsense", 1), (true, vec![(true, 0)]), "the default is free");
    fixture.clock.advance(SECOND);
    assert_eq!(ask("free", 1), (false, vec![(false, 0)]));
}
