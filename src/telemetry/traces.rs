//! Traces: a span for a call, and one for each batch to Redis that traced calls are part of.
//!
//! Whether a call is traced is decided before anything is built for it: as its caller says in `traceparent` (W3C Trace
//! Context, in gRPC's metadata), or by lot where it says nothing. For the others, and where traces are off, no span is
//! made. A batch serves many calls: its span is the child of the first one that is traced, and links to all of them.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanExporter};
use tokio::runtime::Handle;
use tonic::metadata::{KeyRef, MetadataMap};

use super::instrument::TraceRef;
use super::otlp::Sender;
use super::settings::Sampling;
use crate::proto::SERVICE_NAME;

/// Makes spans, and has them sent.
pub struct Traces {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    /// Share of the calls whose caller says nothing.
    share: f64,
}

impl std::fmt::Debug for Traces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traces").field("share", &self.share).finish_non_exhaustive()
    }
}

impl Traces {
    /// Traces that go to a collector; none where they are off. Must be called within a tokio runtime.
    #[must_use]
    pub fn new(sampling: Sampling, sender: Sender, resource: Resource) -> Option<Arc<Self>> {
        let share = match sampling {
            Sampling::Off => return None,
            Sampling::Parent => 0.0,
            Sampling::Ratio(share) => share,
        };
        let exporter =
            Exporter { sender, runtime: Handle::current(), resource: Resource::builder_empty().build() };
        // What is to be traced has been decided by the time a span is made.
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_sampler(Sampler::AlwaysOn)
            .with_batch_exporter(exporter)
            .build();
        Some(Arc::new(Self { tracer: provider.tracer(env!("CARGO_PKG_NAME")), provider, share }))
    }

    /// The span of a call, if it is to be traced.
    #[must_use]
    pub fn call(self: &Arc<Self>, metadata: &MetadataMap) -> Option<CallSpan> {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier(metadata));
        let caller = parent.span().span_context().clone();
        let is_traced = if caller.is_valid() { caller.is_sampled() } else { drawn() < self.share };
        is_traced.then(|| {
            let builder = SpanBuilder::from_name(format!("{SERVICE_NAME}/ShouldRateLimit"))
                .with_kind(SpanKind::Server)
                .with_attributes([
                    KeyValue::new("rpc.system", "grpc"),
                    KeyValue::new("rpc.service", SERVICE_NAME),
                    KeyValue::new("rpc.method", "ShouldRateLimit"),
                ]);
            CallSpan { span: self.tracer.build_with_context(builder, &parent), traces: Arc::clone(self) }
        })
    }

    /// Sends what has not been sent yet, for as long at most; then no more spans are made. Blocks.
    pub fn shut_down(&self, within: Duration) {
        // What cannot be delivered has been said.
        _ = self.provider.shutdown_with_timeout(within);
    }
}

/// The span of a call that is under way.
#[derive(Debug)]
pub struct CallSpan {
    span: Span,
    traces: Arc<Traces>,
}

impl CallSpan {
    /// Runs a call's work: what is asked of Redis for it knows that it is traced.
    pub async fn around<T>(&self, work: impl Future<Output = T>) -> T {
        let call = Traced { traces: Arc::clone(&self.traces), context: self.span.span_context().clone() };
        CALL.scope(call, work).await
    }

    /// Where an example of a measurement is found.
    #[must_use]
    pub fn place(&self) -> TraceRef {
        place(self.span.span_context())
    }

    /// Ends it, with what came of the call: an outcome, or the error that it was answered with.
    pub fn end(mut self, domain: &str, descriptors: usize, outcome: Result<&'static str, &tonic::Status>) {
        self.span.set_attribute(KeyValue::new("weir.domain", domain.to_owned()));
        self.span
            .set_attribute(KeyValue::new("weir.descriptors", i64::try_from(descriptors).unwrap_or(i64::MAX)));
        let code = match outcome {
            Ok(outcome) => {
                self.span.set_attribute(KeyValue::new("weir.result", outcome));
                tonic::Code::Ok
            }
            Err(status) => {
                self.span.set_status(Status::error(status.message().to_owned()));
                status.code()
            }
        };
        self.span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code as i32)));
        self.span.end();
    }
}

/// A call that is traced, as it is known to what is done for it.
#[derive(Clone, Debug)]
pub struct Traced {
    traces: Arc<Traces>,
    context: SpanContext,
}

tokio::task_local! {
    static CALL: Traced;
}

/// The call that this task works for, if it is traced.
#[must_use]
pub fn current() -> Option<Traced> {
    CALL.try_with(Clone::clone).ok()
}

/// The span of a batch.
#[derive(Debug)]
pub struct BatchSpan(Span);

impl BatchSpan {
    /// The span of a batch to a Redis for these calls, if one of them is traced.
    pub fn start<'t>(
        node: &str,
        calls: usize,
        mut traced: impl Iterator<Item = &'t Traced> + Clone,
    ) -> Option<Self> {
        let links = traced.clone().map(|call| Link::with_context(call.context.clone())).collect();
        let Traced { traces, context } = traced.next()?;
        let builder = SpanBuilder::from_name("redis batch")
            .with_kind(SpanKind::Client)
            .with_links(links)
            .with_attributes([
                KeyValue::new("db.system.name", "redis"),
                KeyValue::new("server.address", node.to_owned()),
                KeyValue::new("weir.batch.calls", i64::try_from(calls).unwrap_or(i64::MAX)),
            ]);
        let parent = Context::new().with_remote_span_context(context.clone());
        Some(Self(traces.tracer.build_with_context(builder, &parent)))
    }

    /// Where an example of a measurement is found.
    #[must_use]
    pub fn place(&self) -> TraceRef {
        place(self.0.span_context())
    }

    /// Ends it; what went wrong was said by Redis or by the connection to it.
    pub fn end(mut self, error: Option<String>) {
        if let Some(error) = error {
            self.0.set_status(Status::error(error));
        }
        self.0.end();
    }
}

fn place(context: &SpanContext) -> TraceRef {
    TraceRef {
        trace: u128::from_be_bytes(context.trace_id().to_bytes()),
        span: u64::from_be_bytes(context.span_id().to_bytes()),
    }
}

/// From 0 to 1, and never 1: xorshift, seeded for each thread. Nobody gains by guessing which call is traced.
#[allow(clippy::cast_precision_loss, reason = "of 53 bits none is lost")]
fn drawn() -> f64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(getrandom::u64().unwrap_or(0x9e37_79b9_7f4a_7c15) | 1);
    }
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        (x >> 11) as f64 / (1_u64 << 53) as f64
    })
}

/// Reads headers of the W3C Trace Context from a call's metadata.
struct Carrier<'m>(&'m MetadataMap);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        let name = |key| match key {
            KeyRef::Ascii(key) => Some(key.as_str()),
            KeyRef::Binary(_) => None,
        };
        self.0.keys().filter_map(name).collect()
    }
}

/// Hands spans to the sender. The SDK calls it from a thread of its own.
#[derive(Debug)]
struct Exporter {
    sender: Sender,
    runtime: Handle,
    resource: Resource,
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource = ResourceAttributesWithSchema::from(&self.resource);
        let report =
            ExportTraceServiceRequest { resource_spans: group_spans_by_resource_and_scope(batch, &resource) };
        let sender = self.sender.clone();
        match self.runtime.spawn(async move { sender.traces(report).await }).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(OTelSdkError::InternalFailure("the collector did not take it".into())),
            Err(error) => Err(OTelSdkError::InternalFailure(error.to_string())),
        }
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lots_are_drawn_evenly() {
        let below = (0..100_000).filter(|_| drawn() < 0.1).count();
        assert!((9_000..11_000).contains(&below), "{below}");
        assert!((0..1_000).all(|_| (0.0..1.0).contains(&drawn())));
    }

    #[test]
    fn outside_of_a_traced_call_there_is_none() {
        assert!(current().is_none());
        assert!(BatchSpan::start("node", 1, [].iter()).is_none());
    }
}
