//! What would be decided of a request if nobody had come before: for `weir explain`.

use std::num::NonZeroUsize;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use tonic::Status;

use super::{Asked, LimitSource, Options, Service, convert, is_among};
use crate::bucket::Hits;
use crate::clock::Clock;
use crate::decision::Verdict;
use crate::limiter::Limiter;
use crate::proto::{RateLimitRequest, RateLimitResponse};
use crate::rules::{Entry, Rule, RuleSet};
use crate::store::{KeySeed, LocalStore};
use crate::telemetry::Recorder;

/// The answer, and how it comes about.
pub(crate) struct Trial {
    pub(crate) response: RateLimitResponse,
    /// For each descriptor, the limits that it met and what came of them.
    pub(crate) limits: Vec<Vec<(String, Verdict)>>,
}

/// Buckets for one request, however many descriptors were written on the command line.
const ENOUGH: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1_000_000);

/// Decides a request on buckets that nobody has used, at the moment that it is.
///
/// # Errors
/// As [`Service::answer`].
pub(crate) fn on_unused_buckets(rules: Arc<RuleSet>, request: &RateLimitRequest) -> Result<Trial, Status> {
    let clock = Clock::manual(Clock::system().now());
    let store = LocalStore::new(ENOUGH, clock);
    let service = Service::new(
        Arc::new(ArcSwapOption::new(Some(Arc::clone(&rules)))),
        Arc::new(Limiter::in_memory(store, KeySeed::fixed(0))),
        Options { max_descriptors: usize::MAX, ..Options::default() },
        Recorder::default(),
    );
    let plan = service.plan(&rules, request)?;
    let decision = match service.limiter.memory() {
        Some(store) => store.decide(&plan.charges),
        None => return Err(Status::internal("a limiter in memory has none")),
    };
    let id = |limit: LimitSource<'_>| match limit {
        LimitSource::Rule(limit) => limit.limit_id.to_string(),
        LimitSource::Request(_) => "override".to_owned(),
    };
    let limits = plan.asked.iter().map(|asked| match asked {
        Asked::Charges { of, .. } => {
            plan.charged(of, &decision).map(|charged| (id(charged.limit), *charged.verdict)).collect()
        }
        Asked::Nothing | Asked::Unlimited { .. } => Vec::new(),
    });
    Ok(Trial { limits: limits.collect(), response: service.response(request, &plan, &decision) })
}

/// Whether a rule's limits are enforced on the caller whose entries these are.
pub(crate) fn is_enforced_on(entries: &[Entry<'_>], domain: &str, rule: &Rule) -> bool {
    let descriptor =
        convert::Descriptor { entries: entries.iter().copied().collect(), limit: None, hits: Hits::Peek };
    rule.enforce_percent >= 100 || is_among(rule.enforce_percent, domain, &descriptor, rule)
}
