//! What weir tells of itself: metrics and logs.
//!
//! The hot path counts in atomics that nobody waits for ([`tally`] for rules, [`metrics`] for the rest), and everything
//! else is done when somebody asks: figures are collected, and written as Prometheus's text.

use std::sync::Arc;

use crate::service::CurrentRules;

pub mod collection;
pub mod detailed;
pub mod instrument;
pub mod logs;
pub mod metrics;
mod process;
pub mod prometheus;
pub mod tally;

pub use metrics::Metrics;
use prometheus::Format;

/// What weir tells of itself.
#[derive(Clone, Debug)]
pub struct Telemetry {
    metrics: Arc<Metrics>,
}

impl Telemetry {
    /// Tells what is recorded in `metrics`, and what the rules in force count.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, rules: CurrentRules) -> Self {
        metrics.observe(move |to| collection::collect_rules(rules.load().as_deref(), to));
        Self { metrics }
    }

    /// All figures, in the format that an `Accept` header asks for, and its `Content-Type`.
    ///
    /// Takes a while of many rules: not for a thread that answers calls.
    #[must_use]
    pub fn render(&self, accept: Option<&str>) -> (&'static str, String) {
        let format = Format::accepted(accept);
        (format.content_type(), prometheus::text(&self.metrics.collect(), format))
    }
}
