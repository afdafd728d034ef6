//! What weir tells of itself: metrics, traces and logs.
//!
//! The hot path counts in atomics that nobody waits for ([`tally`] for rules, [`metrics`] for the rest), and everything
//! else is done when somebody asks: figures are collected, and written as Prometheus's text or sent as OpenTelemetry's
//! messages ([`otlp`]). Where calls are not traced, no span is built.

use std::sync::Arc;

use crate::clock::Clock;
use crate::service::CurrentRules;

pub mod collection;
pub mod denials;
pub mod detailed;
pub mod export;
pub mod instrument;
pub mod logs;
pub mod metrics;
pub mod otlp;
mod process;
pub mod prometheus;
pub mod settings;
pub mod tally;
pub mod traces;

use denials::{DenialLog, Sampler};
pub use metrics::Metrics;
use prometheus::Format;
use traces::Traces;

/// What calls are recorded with.
#[derive(Debug)]
pub struct Recorder {
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
    /// What makes spans, if calls are traced.
    pub traces: Option<Arc<Traces>>,
    /// Which denials are logged.
    pub denials: DenialLog,
    /// Counts the lines of all limits.
    pub logged: Sampler,
    /// Dates what is recorded.
    pub clock: Clock,
}

impl Recorder {
    /// Counts calls in `metrics`, and does nothing else.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, clock: Clock) -> Self {
        let denials = DenialLog { of_each: 0, with_keys: false };
        Self { metrics, traces: None, denials, logged: Sampler::default(), clock }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new(Arc::default(), Clock::system())
    }
}

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
