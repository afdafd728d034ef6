//! Every instrument, named once, and what is recorded with those that belong to no rule.
//!
//! Instruments are named as OpenTelemetry has it, with dots and a unit; Prometheus's name follows from that by
//! OpenTelemetry's own rules ([`Instrument::prometheus_name`]), so that a series is called the same whether it was
//! scraped here or pushed and translated elsewhere. What is counted by rule lives in the rules: see
//! [`tally`](super::tally).
//!
//! Labels are names from the configuration: of a domain, a rule, a store, a listener. Never a value from a request,
//! unless a rule asks for it, and then so many at most: see [`detailed`](super::detailed).

use std::sync::atomic::AtomicU64;
use std::sync::{PoisonError, RwLock};

use super::collection::Collection;
use super::detailed::Detailed;
use super::instrument::{COUNT, Counter, Histogram, SECONDS};
use super::traces::{BatchSpan, Traced};
use crate::clock::{self, Clock};
use crate::store::Class;

/// What kind of figure an instrument tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One instrument: a family of series.
#[derive(Debug, PartialEq, Eq)]
pub struct Instrument {
    /// As OpenTelemetry names it: `weir.call.duration`.
    pub name: &'static str,
    /// What kind of figure it tells.
    pub kind: Kind,
    /// In the notation of UCUM: `s`, `By`; in braces, what is counted.
    pub unit: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells, in a sentence.
    pub help: &'static str,
}

impl Instrument {
    /// As Prometheus names the family, without a counter's `_total`: `weir_call_duration_seconds`.
    #[must_use]
    pub fn family(&self) -> String {
        let unit = match self.unit {
            "s" => "_seconds",
            "By" => "_bytes",
            _ => "",
        };
        self.name.replace('.', "_") + unit
    }

    /// As Prometheus names it: `weir_calls_total`.
    #[must_use]
    pub fn prometheus_name(&self) -> String {
        self.family() + if self.kind == Kind::Counter { "_total" } else { "" }
    }
}

macro_rules! instruments {
    ($($constant:ident: $kind:ident $name:literal $unit:literal [$($label:ident),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Instrument = Instrument {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                labels: &[$(stringify!($label)),*],
                help: $help,
            };
        )*

        /// All instruments, in the order in which they are told.
        pub const ALL: &[&Instrument] = &[$(&$constant),*];
    };
}

instruments! {
    CALLS: Counter "weir.calls" "{call}" [result]
        "Calls answered: ok, over_limit, the gRPC status of a call that was refused, or unreadable: too long, broken, compressed, or not there in time.";
    CALL_DURATION: Histogram "weir.call.duration" "s" []
        "Time from a decoded request to its response.";
    CALLS_UNDER_WAY: Gauge "weir.calls.under_way" "{call}" []
        "Calls that are being answered.";
    CALLS_SHED: Counter "weir.calls.shed" "{call}" []
        "Calls that were one too many, and were answered as --overload says without asking any bucket.";
    UNKNOWN_DOMAIN: Counter "weir.calls.unknown_domain" "{call}" []
        "Calls for a domain that has no rules; they are answered OK.";
    DECISIONS: Counter "weir.decisions" "{decision}" [domain, rule, outcome, source]
        "Charges decided by a rule's limit: ok, near_limit, warned, over_limit, shadowed (over, and denied nothing) or uncharged (another limit denied the request); by redis, local buckets or a remembered denial.";
    HITS: Counter "weir.hits" "{hit}" [domain, rule, outcome]
        "Hits that those charges asked for.";
    DETAILED: Counter "weir.detailed.decisions" "{decision}" [domain, rule, values, outcome]
        "The same for rules with detailed_metric or value_to_metric, by values of requests; at most --max-detailed-series of them, and the rest as (overflow).";
    UNMATCHED: Counter "weir.unmatched" "{descriptor}" [domain]
        "Descriptors that meet no limit of their domain.";
    REDIS_BATCH_DURATION: Histogram "weir.redis.batch.duration" "s" [store, node]
        "Time of a batch's round trip to Redis.";
    REDIS_BATCH_CALLS: Histogram "weir.redis.batch.calls" "{call}" [store, node]
        "Calls that shared a round trip to Redis.";
    REDIS_QUEUE: Gauge "weir.redis.queue.length" "{call}" [store, node]
        "Calls that wait for a batch to Redis.";
    REDIS_CONNECTIONS: Gauge "weir.redis.connections" "{connection}" [store, node]
        "Connections to Redis that work, as far as is known.";
    REDIS_EVICTS: Gauge "weir.redis.evicts" "" [store, node]
        "1 if Redis's maxmemory-policy lets it forget buckets, else 0.";
    REDIS_DISAGREEMENTS: Counter "weir.redis.disagreements" "{call}" [store, node]
        "Requests that the script in Redis and weir's own arithmetic decided differently; more than 0 is an error in weir.";
    REDIS_ERRORS: Counter "weir.redis.errors" "{call}" [store, node, reason]
        "Calls that Redis did not decide, by reason: late, queue_full, circuit_open, unreachable, loading, oom and so on.";
    REDIS_REPLICAS: Gauge "weir.redis.replicas" "{process}" [store, node]
        "Processes that share the limits, as far as is known: among so many they are divided while Redis does not answer.";
    REDIS_UNCOUNTED: Counter "weir.redis.heartbeats.failed" "{heartbeat}" [store, node]
        "Times that this process could not be counted among those: Redis forbade it, or did not answer.";
    BREAKER_STATE: Gauge "weir.breaker.state" "" [store, node, state]
        "1 for the state that the breaker before a server of Redis is in: closed, open or probing.";
    BREAKER_OPENINGS: Counter "weir.breaker.openings" "{change}" [store, node]
        "Times that it opened, or opened again after a probe.";
    LATE_SETTLED: Counter "weir.late.settled" "{reply}" [result]
        "Calls that were answered before Redis had decided them, by what it said afterwards: admitted, denied, or lost if nobody will know.";
    REFUNDS_FAILED: Counter "weir.refunds.failed" "{refund}" []
        "Refunds that could not be made: what a denied request left charged.";
    OWED: Gauge "weir.local.owed" "{bucket}" []
        "Buckets that were decided on without Redis, and that it has to be told of.";
    LOCAL_BUCKETS: Gauge "weir.local.buckets" "{bucket}" []
        "Buckets in this process's memory.";
    LOCAL_BUCKETS_LIMIT: Gauge "weir.local.buckets.limit" "{bucket}" []
        "Buckets that may be in this process's memory.";
    LOCAL_EVICTED: Counter "weir.local.buckets.evicted" "{bucket}" []
        "Buckets that were forgotten before they were full again, for want of room.";
    LOCAL_OVERFLOWED: Counter "weir.local.overflowed" "{charge}" []
        "Charges to the bucket that a rule's newcomers share when there is no room.";
    RULES_LOADED: Gauge "weir.rules.loaded" "" []
        "1 if rules are in force, else 0.";
    RULES_LIMITS: Gauge "weir.rules.limits" "{limit}" []
        "Limits in force.";
    RULES_FILES: Gauge "weir.rules.files" "{file}" []
        "Files that they are from.";
    RULES_VERSION: Counter "weir.rules.loads" "{load}" []
        "Sets of rules that came into force since the start: the version of the one that is.";
    RULES_TIME: Gauge "weir.rules.loaded_at" "s" []
        "When the set in force came into force, since the epoch.";
    RULES_INFO: Gauge "weir.rules.info" "" [hash]
        "Always 1; the hash of the files in force, the same wherever they are the same.";
    RULES_REFUSALS: Counter "weir.rules.refusals" "{load}" []
        "Sets of rules that were refused.";
    RULES_REFUSED: Gauge "weir.rules.refused" "" []
        "1 if the files as they are now are refused, else 0.";
    CONNECTIONS: Gauge "weir.connections" "{connection}" [listener]
        "Connections of clients.";
    CONNECTIONS_ACCEPTED: Counter "weir.connections.accepted" "{connection}" [listener]
        "Connections of clients that were accepted.";
    CONNECTIONS_REFUSED: Counter "weir.connections.refused" "{connection}" [listener]
        "Connections that were closed at once, because there were as many as there may be.";
    CONNECTIONS_FAILED: Counter "weir.connections.failed" "{connection}" [listener]
        "Connections that never came to a request: their handshake failed, or took too long.";
    TLS_END: Gauge "weir.tls.certificate.expires_at" "s" [listener]
        "When the certificate that is shown ends, or one that it rests on, since the epoch.";
    TLS_REFUSED: Gauge "weir.tls.certificate.refused" "" [listener]
        "1 if the files of certificates as they are now cannot be used, and those from before are, else 0.";
    PROCESS_CPU: Counter "weir.process.cpu" "s" []
        "CPU time that the process has used.";
    PROCESS_MEMORY: Gauge "weir.process.resident_memory" "By" []
        "Memory that the process holds.";
    PROCESS_FDS: Gauge "weir.process.open_fds" "{file}" []
        "Files and connections that the process has open.";
    PROCESS_MAX_FDS: Gauge "weir.process.max_fds" "{file}" []
        "Files and connections that it may have open.";
    PROCESS_START: Gauge "weir.process.start_time" "s" []
        "When the process started, since the epoch.";
    BUILD: Gauge "weir.build.info" "" [version]
        "Always 1; which weir this is.";
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// Admitted.
    Ok,
    /// Denied.
    OverLimit,
    /// The request cannot be meant.
    InvalidArgument,
    /// There was nothing to decide it with.
    Unavailable,
    /// The request never came to be one.
    Unreadable,
}

impl CallResult {
    const ALL: [Self; 5] =
        [Self::Ok, Self::OverLimit, Self::InvalidArgument, Self::Unavailable, Self::Unreadable];

    /// As the label says it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::OverLimit => "over_limit",
            Self::InvalidArgument => "invalid_argument",
            Self::Unavailable => "unavailable",
            Self::Unreadable => "unreadable",
        }
    }
}

/// What is recorded of a process, but for what its rules count.
pub struct Metrics {
    calls: [Counter; CallResult::ALL.len()],
    /// See [`CALL_DURATION`].
    pub call_duration: Histogram,
    /// See [`UNKNOWN_DOMAIN`].
    pub unknown_domain: Counter,
    /// See [`DETAILED`].
    pub detailed: Detailed,
    observers: RwLock<Vec<Observer>>,
}

/// Tells figures that their owner keeps, when somebody asks for them.
type Observer = Box<dyn Fn(&mut Collection) + Send + Sync>;

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(1_000)
    }
}

impl Metrics {
    /// Nothing recorded yet; of values of requests, so many at most will be.
    #[must_use]
    pub fn new(most_detailed: usize) -> Self {
        Self {
            detailed: Detailed::new(most_detailed),
            calls: Default::default(),
            call_duration: Histogram::new(SECONDS),
            unknown_domain: Counter::default(),
            observers: RwLock::default(),
        }
    }

    /// Counts a call that has ended.
    #[inline]
    pub fn called(&self, result: CallResult) {
        if let Some(calls) = self.calls.get(result as usize) {
            calls.increment();
        }
    }

    /// Has `observer` asked for its figures whenever some are collected.
    pub fn observe(&self, observer: impl Fn(&mut Collection) + Send + Sync + 'static) {
        self.observers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(observer));
    }

    /// All figures as they are now.
    #[must_use]
    pub fn collect(&self) -> Collection {
        let mut to = Collection::default();
        to.number(&BUILD, &[env!("CARGO_PKG_VERSION")], 1.0);
        for (result, calls) in CallResult::ALL.iter().zip(&self.calls) {
            to.count(&CALLS, &[result.label()], calls.value());
        }
        to.distribution(&CALL_DURATION, &[], self.call_duration.distribution());
        to.count(&UNKNOWN_DOMAIN, &[], self.unknown_domain.value());
        self.detailed.collect(&mut to);
        super::process::collect(&mut to);
        for observer in self.observers.read().unwrap_or_else(PoisonError::into_inner).iter() {
            observer(&mut to);
        }
        to
    }
}

/// What is recorded of one Redis server.
#[derive(Debug)]
pub struct NodeMetrics {
    /// See [`REDIS_BATCH_DURATION`].
    pub batch_duration: Histogram,
    /// See [`REDIS_BATCH_CALLS`].
    pub batch_calls: Histogram,
    /// See [`REDIS_ERRORS`]: for each of [`Class::ALL`].
    pub errors: [AtomicU64; Class::ALL.len()],
}

/// A batch that is under way.
#[derive(Debug)]
pub struct MeasuredBatch<'n> {
    metrics: &'n NodeMetrics,
    start: std::time::Instant,
    span: Option<BatchSpan>,
}

impl NodeMetrics {
    /// Begins to measure a batch of so many calls to this node, of which these are traced.
    pub fn start<'t>(
        &self,
        node: &str,
        calls: usize,
        traced: impl Iterator<Item = &'t Traced> + Clone,
    ) -> MeasuredBatch<'_> {
        self.batch_calls.record(calls as u64);
        MeasuredBatch {
            metrics: self,
            start: clock::stopwatch(),
            span: BatchSpan::start(node, calls, traced),
        }
    }
}

impl MeasuredBatch<'_> {
    /// It has ended: with replies, with an error, or because its connection was given up.
    pub fn end<T, E: std::fmt::Display>(self, replies: Option<&Result<T, E>>) {
        let took = self.start.elapsed();
        let Some(span) = self.span else { return self.metrics.batch_duration.record_time(took) };
        self.metrics.batch_duration.record_time_in(took, span.place(), Clock::system().now());
        span.end(match replies {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(error.to_string()),
            None => Some("the connection was given up".to_owned()),
        });
    }
}

impl Default for NodeMetrics {
    fn default() -> Self {
        Self {
            batch_duration: Histogram::new(SECONDS),
            batch_calls: Histogram::new(COUNT),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions_of_opentelemetry_and_prometheus() {
        let mut names = BTreeSet::new();
        for instrument in ALL {
            let is_name = |text: &str| {
                text.starts_with(|c: char| c.is_ascii_lowercase())
                    && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            };
            assert!(instrument.name.starts_with("weir."), "{}", instrument.name);
            assert!(instrument.name.split('.').all(is_name), "{}", instrument.name);
            assert!(instrument.labels.iter().copied().all(is_name), "{}", instrument.name);
            assert!(!instrument.name.ends_with("total"), "{}: told by its kind", instrument.name);
            assert!(!instrument.name.contains("seconds"), "{}: told by its unit", instrument.name);
            assert!(instrument.help.ends_with('.'), "{}", instrument.help);
            let is_unit = ["", "s", "By"].contains(&instrument.unit) || instrument.unit.starts_with('{');
            assert!(is_unit, "{}", instrument.unit);
            assert!(names.insert(instrument.prometheus_name()), "{} twice", instrument.name);
        }
        assert_eq!(CALLS.prometheus_name(), "weir_calls_total");
        assert_eq!(CALL_DURATION.prometheus_name(), "weir_call_duration_seconds");
        assert_eq!(PROCESS_CPU.prometheus_name(), "weir_process_cpu_seconds_total");
        assert_eq!(PROCESS_MEMORY.prometheus_name(), "weir_process_resident_memory_bytes");
    }

    #[test]
    fn calls_are_told_by_kind() {
        let metrics = Metrics::default();
        metrics.called(CallResult::OverLimit);
        let told = metrics.collect();
        assert_eq!(told.find(&CALLS, &["over_limit"]), Some(1.0));
        assert_eq!(told.find(&CALLS, &["ok"]), Some(0.0));
    }
}
