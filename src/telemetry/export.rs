//! Sends what weir tells of itself to a collector, from the start to the end of serving.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_proto::tonic::resource::v1::Resource as ResourceMessage;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_sdk::Resource;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::Telemetry;
use super::otlp::{Extras, Sender, encode};
use super::settings::{Protocol, TelemetrySettings};
use super::traces::Traces;
use crate::clock::{Clock, Micros};

/// How long what is left may take to be sent at the end.
const FLUSH: Duration = Duration::from_secs(5);

/// A collector that is sent to.
#[derive(Debug)]
pub struct Export {
    sender: Sender,
    resource: Resource,
    traces: Option<Arc<Traces>>,
    interval: Duration,
    clock: Clock,
    start: Micros,
}

impl Export {
    /// What the settings and the environment say; none without an endpoint. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When they make no sense, in a line.
    pub fn new(settings: &TelemetrySettings, clock: Clock) -> Result<Option<Self>, String> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = settings.otlp_endpoint.clone().or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let Some(endpoint) = endpoint else {
            if settings.traces != super::settings::Sampling::Off {
                return Err("--traces: where to? --otlp-endpoint says it".into());
            }
            return Ok(None);
        };
        let protocol = match variable("OTEL_EXPORTER_OTLP_PROTOCOL").as_deref() {
            Some("http/protobuf") if settings.otlp_endpoint.is_none() => Protocol::Http,
            _ => settings.otlp_protocol,
        };
        let mut extras = Extras::from_env(variable)?;
        extras.ca = settings.otlp_ca.clone().or(extras.ca);
        let sender = Sender::new(&endpoint, protocol, &extras)?;
        let resource = resource(&variable)?;
        let traces = Traces::new(settings.traces, sender.clone(), resource.clone());
        let start = clock.now();
        Ok(Some(Self { sender, resource, traces, interval: settings.otlp_interval, clock, start }))
    }

    /// What makes spans, if calls are traced.
    #[must_use]
    pub fn traces(&self) -> Option<Arc<Traces>> {
        self.traces.clone()
    }

    /// Begins to send `telemetry`, until [`Exporting::finish`].
    #[must_use]
    pub fn start(self, telemetry: Telemetry) -> Exporting {
        let export = Arc::new(self);
        let sending = tokio::spawn({
            let (export, telemetry) = (Arc::clone(&export), telemetry.clone());
            async move {
                let mut turn = tokio::time::interval(export.interval);
                turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
                // The first turn is at once, and there is nothing to tell yet.
                turn.tick().await;
                loop {
                    turn.tick().await;
                    export.send(&telemetry).await;
                }
            }
        });
        Exporting { export, telemetry, sending }
    }

    async fn send(&self, telemetry: &Telemetry) {
        let telemetry = telemetry.clone();
        // Takes a while of many rules, for which no call is to wait.
        let collected = tokio::task::spawn_blocking(move || telemetry.metrics.collect()).await;
        let Ok(collection) = collected else { return };
        let attributes = ResourceAttributesWithSchema::from(&self.resource).attributes.0;
        let resource = ResourceMessage { attributes, ..ResourceMessage::default() };
        self.sender.metrics(encode::metrics(&collection, resource, self.start, self.clock.now())).await;
    }
}

/// Sends until it is told to finish.
#[derive(Debug)]
pub struct Exporting {
    export: Arc<Export>,
    telemetry: Telemetry,
    sending: JoinHandle<()>,
}

impl Exporting {
    /// Sends what has not been sent yet, within a bound.
    pub async fn finish(self) {
        self.sending.abort();
        let traces = self.export.traces.clone();
        let spans =
            tokio::task::spawn_blocking(move || traces.iter().for_each(|traces| traces.shut_down(FLUSH)));
        let metrics = self.export.send(&self.telemetry);
        _ = tokio::time::timeout(FLUSH, async { tokio::join!(metrics, spans) }).await;
    }
}

/// Who tells: `service.name` is weir unless the environment says otherwise, as it may of all attributes.
fn resource(variable: &impl Fn(&str) -> Option<String>) -> Result<Resource, String> {
    let told = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_told =
        |name: &str| told.split(',').any(|pair| pair.split('=').next().map(str::trim) == Some(name));
    let mut resource = Resource::builder();
    if variable("OTEL_SERVICE_NAME").is_none() && !is_told("service.name") {
        resource = resource.with_service_name(env!("CARGO_PKG_NAME"));
    }
    if !is_told("service.version") {
        resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    }
    if !is_told("service.instance.id") {
        let id =
            getrandom::u64().map_err(|error| format!("no randomness for this process's name: {error}"))?;
        resource = resource.with_attribute(KeyValue::new("service.instance.id", format!("{id:016x}")));
    }
    Ok(resource.build())
}
