//! Counts what became of a call, by rule.

use tonic::{Code as GrpcCode, Status};

use super::{Asked, Charged, LimitSource, Plan, Service};
use crate::bucket::{Hits, Outcome as Fit};
use crate::decision::{Charge, Decision, Mode, Source, Verdict};
use crate::proto::{Code, RateLimitDescriptor, RateLimitRequest, RateLimitResponse};
use crate::telemetry::collection::OVERRIDE;
use crate::telemetry::metrics::CallResult;
use crate::telemetry::tally::{Outcome, Tally};
use crate::telemetry::{Recorder, denials};

/// How a call ended.
pub(super) fn result(answer: &Result<RateLimitResponse, Status>) -> CallResult {
    match answer {
        Ok(response) if response.overall_code == i32::from(Code::OverLimit) => CallResult::OverLimit,
        Ok(_) => CallResult::Ok,
        Err(status) if status.code() == GrpcCode::InvalidArgument => CallResult::InvalidArgument,
        Err(_) => CallResult::Unavailable,
    }
}

impl Service {
    /// Counts what was decided with the rules that decided it.
    pub(super) fn count(&self, request: &RateLimitRequest, plan: &Plan<'_>, decision: &Decision) {
        let Some(domain) = plan.domain else { return };
        for (asked, descriptor) in plan.asked.iter().zip(&request.descriptors) {
            match asked {
                Asked::Nothing => domain.unmatched.increment(),
                Asked::Unlimited { limit, hits } => {
                    limit.tally.count(Source::Local, Outcome::Ok, taken(*hits));
                }
                Asked::Charges { of, rule } => {
                    for charged in plan.charged(of, decision) {
                        let Charged { charge, verdict, limit } = charged;
                        let tally = match limit {
                            LimitSource::Rule(limit) => &limit.tally,
                            LimitSource::Request(_) => &domain.overrides,
                        };
                        let outcome = outcome(&charged, decision.denied, self.options.near_limit);
                        tally.count(verdict.source, outcome, taken(charge.hits));
                        if let (Some(rule), LimitSource::Rule(limit)) = (rule, limit)
                            && !rule.told_values.is_empty()
                        {
                            let name = rule.metric_name(limit, &request.domain);
                            let told = descriptor.entries.iter().zip(&rule.told_values);
                            let told = told.map(|(entry, told)| (&*entry.key, told.then_some(&*entry.value)));
                            self.recorder.metrics.detailed.count(&request.domain, &name, told, outcome);
                        }
                        if outcome == Outcome::OverLimit && decision.denied {
                            let rule = match (rule, limit) {
                                (Some(rule), LimitSource::Rule(limit)) => {
                                    rule.metric_name(limit, &request.domain)
                                }
                                _ => OVERRIDE.into(),
                            };
                            self.log_denial(tally, &rule, request, descriptor, verdict);
                        }
                    }
                }
            }
        }
    }
}

impl Service {
    /// Writes a denial to the log, unless there have been enough of them.
    fn log_denial(
        &self,
        tally: &Tally,
        rule: &str,
        request: &RateLimitRequest,
        descriptor: &RateLimitDescriptor,
        verdict: &Verdict,
    ) {
        let Recorder { denials, logged, clock, .. } = &self.recorder;
        if !denials.allows(tally.logged(), logged, clock.now() / 1_000_000) {
            return;
        }
        let entries = denials
            .with_keys
            .then(|| denials::entries(descriptor.entries.iter().map(|entry| (&*entry.key, &*entry.value))));
        tracing::info!(
            target: "weir::denials",
            domain = request.domain,
            rule,
            entries,
            remaining = verdict.remaining,
            source = verdict.source.label(),
            "denied"
        );
    }
}

/// What became of one charge.
fn outcome(charged: &Charged<'_, '_>, denied: bool, near_limit: f64) -> Outcome {
    let Charged { charge, verdict, .. } = charged;
    match (verdict.outcome, charge.mode) {
        (Fit::Over(_), Mode::Shadow) => Outcome::Shadowed,
        (Fit::Over(_), Mode::Enforced | Mode::Quota) => Outcome::OverLimit,
        // What is given back, and what is charged after the fact, lands whatever the answer.
        (Fit::Fits, _) if denied && !charge.hits.land_anyway() => Outcome::Uncharged,
        (Fit::Fits, _) if !denied && charged.warns() => Outcome::Warned,
        (Fit::Fits, _) if used(charge, verdict) >= charge.limit.burst() * near_limit => Outcome::NearLimit,
        (Fit::Fits, _) => Outcome::Ok,
    }
}

/// Tokens that are in use.
fn used(charge: &Charge, verdict: &Verdict) -> f64 {
    charge.limit.burst() - f64::from(verdict.remaining)
}

fn taken(hits: Hits) -> u64 {
    match hits {
        Hits::Take(hits) | Hits::Overdraft(hits) => hits,
        Hits::Peek | Hits::GiveBack(_) | Hits::Refund { .. } | Hits::Add { .. } | Hits::Raise { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use arc_swap::ArcSwapOption;

    use super::*;
    use crate::clock::Clock;
    use crate::limiter::Limiter;
    use crate::proto::Entry;
    use crate::rules::RuleSet;
    use crate::service::{CurrentRules, Options};
    use crate::store::{KeySeed, LocalStore};
    use crate::telemetry::collection::{Collection, collect_rules};
    use crate::telemetry::metrics::{
        CALL_DURATION, CALLS, DECISIONS, DETAILED, HITS, UNKNOWN_DOMAIN, UNMATCHED,
    };
    use crate::telemetry::{Metrics, Telemetry};

    const NOW: u64 = 1_790_000_000_000_000;
    const RULES: &str = "
domain: api
descriptors:
  - { key: ten, rate_limit: { unit: minute, requests_per_unit: 10 } }
  - { key: five, value: x, rate_limit: { unit: minute, requests_per_unit: 5, name: few } }
  - { key: shadowed, shadow_mode: true, rate_limit: { unit: minute, requests_per_unit: 1 } }
  - { key: warned, warn_at: 0.5, rate_limit: { unit: minute, requests_per_unit: 4 } }
  - { key: two, rate_limits: [ { unit: second, requests_per_unit: 9 }, { unit: minute, requests_per_unit: 9 } ] }
  - { key: told, detailed_metric: true, rate_limit: { unit: minute, requests_per_unit: 9 } }
  - key: above
    value_to_metric: true
    descriptors: [ { key: below, rate_limit: { unit: minute, requests_per_unit: 9 } } ]
  - { key: free, rate_limit: { unlimited: true } }
";

    struct Fixture {
        service: Service,
        rules: CurrentRules,
        metrics: Arc<Metrics>,
    }

    fn fixture() -> Fixture {
        let rules: CurrentRules = Arc::new(ArcSwapOption::from_pointee(set(RULES)));
        let metrics = Arc::<Metrics>::default();
        let store = LocalStore::new(NonZeroUsize::new(100_000).unwrap(), Clock::manual(NOW));
        let limiter = Arc::new(Limiter::in_memory(store, KeySeed::fixed(1)));
        let recorder = Recorder::new(Arc::clone(&metrics), Clock::manual(NOW));
        Fixture {
            service: Service::new(Arc::clone(&rules), limiter, Options::default(), recorder),
            rules,
            metrics,
        }
    }

    fn set(text: &str) -> RuleSet {
        RuleSet::from_texts([("test.yaml", text)], NOW).unwrap()
    }

    impl Fixture {
        fn ask(&self, domain: &str, entries: &[(&str, &str)], hits: u32) {
            let descriptor = |(key, value): &(&str, &str)| RateLimitDescriptor {
                entries: vec![Entry {
                    key: key.as_bytes().to_vec().into(),
                    value: value.as_bytes().to_vec().into(),
                }],
                ..RateLimitDescriptor::default()
            };
            let request = RateLimitRequest {
                domain: domain.into(),
                descriptors: entries.iter().map(descriptor).collect(),
                hits_addend: hits,
            };
            self.call(&request);
        }

        fn call(&self, request: &RateLimitRequest) {
            let answer = pin!(self.service.answer(request)).poll(&mut Context::from_waker(Waker::noop()));
            assert!(answer.is_ready());
        }

        fn told(&self) -> Collection {
            let mut told = self.metrics.collect();
            collect_rules(self.rules.load().as_deref(), &mut told);
            told
        }

        fn decided(&self, rule: &str, outcome: &str) -> Option<f64> {
            self.told().find(&DECISIONS, &["api", rule, outcome, "local"])
        }
    }

    #[test]
    fn charges_are_counted_by_rule_and_outcome_with_their_hits() {
        let all = fixture();
        (0..12).for_each(|_| all.ask("api", &[("ten", "a")], 1));
        // 9, 8, ... 3 left; 2, 1 and 0 are near the limit; two are over.
        assert_eq!(all.decided("ten", "ok"), Some(7.0));
        assert_eq!(all.decided("ten", "near_limit"), Some(3.0));
        assert_eq!(all.decided("ten", "over_limit"), Some(2.0));
        all.ask("api", &[("five", "x")], 3);
        assert_eq!(all.decided("few", "ok"), Some(1.0), "by its name");
        assert_eq!(all.told().find(&HITS, &["api", "few", "ok"]), Some(3.0));
        (0..3).for_each(|_| all.ask("api", &[("shadowed", "a")], 1));
        assert_eq!(all.decided("shadowed", "shadowed"), Some(2.0));
        (0..5).for_each(|_| all.ask("api", &[("warned", "a")], 1));
        let warned = ["ok", "warned", "over_limit"].map(|outcome| all.decided("warned", outcome));
        assert_eq!(warned, [Some(1.0), Some(3.0), Some(1.0)]);
        all.ask("api", &[("free", "a")], 1);
        assert_eq!(all.decided("free", "ok"), Some(1.0));
        all.ask("api", &[("two", "a")], 1);
        assert_eq!(all.decided("two:second", "ok"), Some(1.0), "each of several limits for itself");
        assert_eq!(all.decided("two:minute", "ok"), Some(1.0));
    }

    #[test]
    fn what_another_limit_denied_is_told_apart_and_not_counted_as_admitted() {
        let all = fixture();
        all.ask("api", &[("ten", "a"), ("five", "x")], 6);
        assert_eq!(all.decided("few", "over_limit"), Some(1.0));
        assert_eq!(all.decided("ten", "uncharged"), Some(1.0));
        assert_eq!(all.decided("ten", "ok"), None);
    }

    #[test]
    fn calls_are_counted_by_how_they_ended_and_timed() {
        let all = fixture();
        all.ask("api", &[("five", "x")], 6);
        all.ask("api", &[("five", "x"), ("nobody", "knows")], 1);
        all.ask("elsewhere", &[("five", "x")], 1);
        all.ask("", &[("five", "x")], 1);
        let told = all.told();
        assert_eq!(told.find(&CALLS, &["ok"]), Some(2.0));
        assert_eq!(told.find(&CALLS, &["over_limit"]), Some(1.0));
        assert_eq!(told.find(&CALLS, &["invalid_argument"]), Some(1.0));
        assert_eq!(told.find(&CALL_DURATION, &[]), Some(4.0));
        assert_eq!(told.find(&UNKNOWN_DOMAIN, &[]), Some(1.0));
        assert_eq!(told.find(&UNMATCHED, &["api"]), Some(1.0));
        all.rules.store(None);
        all.ask("api", &[("five", "x")], 1);
        assert_eq!(all.told().find(&CALLS, &["unavailable"]), Some(1.0));
    }

    #[test]
    fn values_of_requests_are_told_where_a_rule_asks_for_them_and_nowhere_else() {
        let all = fixture();
        all.ask("api", &[("told", "ann"), ("ten", "bob")], 1);
        let told = all.told();
        assert_eq!(told.find(&DETAILED, &["api", "told", "told=ann", "ok"]), Some(1.0));
        assert_eq!(
            told.find(&DECISIONS, &["api", "told", "ok", "local"]),
            Some(1.0),
            "beside the rule's own"
        );
        let entry = |key: &str, value: &str| Entry {
            key: key.as_bytes().to_vec().into(),
            value: value.as_bytes().to_vec().into(),
        };
        let descriptor = RateLimitDescriptor {
            entries: vec![entry("above", "x"), entry("below", "y")],
            ..RateLimitDescriptor::default()
        };
        all.call(&RateLimitRequest { domain: "api".into(), descriptors: vec![descriptor], hits_addend: 1 });
        assert_eq!(all.told().find(&DETAILED, &["api", "above.below", "above=x,below", "ok"]), Some(1.0));
        let telemetry = Telemetry::new(Arc::clone(&all.metrics), Arc::clone(&all.rules));
        let text = telemetry.render(None).1;
        assert!(!text.contains("bob") && !text.contains("\"y\""), "{text}");
    }

    #[test]
    fn a_rule_that_a_reload_keeps_counts_on_and_one_that_it_drops_is_told_no_more() {
        let all = fixture();
        all.ask("api", &[("ten", "a"), ("five", "x"), ("nobody", "knows")], 1);
        let mut next = set(
            "domain: api\ndescriptors: [{ key: ten, rate_limit: { unit: minute, requests_per_unit: 99 } }]\n",
        );
        next.succeed(all.rules.load().as_deref().unwrap());
        all.rules.store(Some(Arc::new(next)));
        all.ask("api", &[("ten", "a")], 1);
        assert_eq!(all.decided("ten", "ok"), Some(2.0));
        assert_eq!(all.decided("few", "ok"), None);
        assert_eq!(all.told().find(&UNMATCHED, &["api"]), Some(1.0));
    }

    #[test]
    fn a_hundred_thousand_users_leave_the_number_of_series_as_it_is() {
        let all = fixture();
        let telemetry = Telemetry::new(Arc::clone(&all.metrics), Arc::clone(&all.rules));
        let series = || telemetry.render(None).1.lines().filter(|line| !line.starts_with('#')).count();
        all.ask("api", &[("ten", "first"), ("nobody", "first")], 1);
        all.ask("domain-first", &[("ten", "first")], 1);
        let before = series();
        for user in 0..100_000 {
            let user = format!("user-{user}");
            all.ask("api", &[("ten", &user), (&user, "x")], 1);
            if user.ends_with('7') {
                all.ask(&user, &[("ten", &user)], 1);
            }
        }
        assert_eq!(series(), before);
        assert_eq!(all.decided("ten", "ok"), Some(100_001.0));
    }
}
