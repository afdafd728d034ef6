//! From figures to OpenTelemetry's messages.

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, exemplar, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;

use crate::clock::Micros;
use crate::telemetry::collection::{Collection, Point, Value};
use crate::telemetry::instrument::Distribution;
use crate::telemetry::metrics::{Instrument, Kind};

/// A report of all figures at the moment `now`, which have been counted since `start`.
pub(in crate::telemetry) fn metrics(
    collection: &Collection,
    resource: Resource,
    start: Micros,
    now: Micros,
) -> ExportMetricsServiceRequest {
    let when = When { start: start.saturating_mul(1_000), now: now.saturating_mul(1_000) };
    let metrics =
        collection.families().map(|(instrument, points)| family(instrument, points, when)).collect();
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..InstrumentationScope::default()
    };
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, schema_url: String::new() }];
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource),
            scope_metrics,
            schema_url: String::new(),
        }],
    }
}

/// In nanoseconds since the epoch.
#[derive(Clone, Copy)]
struct When {
    start: u64,
    now: u64,
}

fn family(instrument: &Instrument, points: &[Point], when: When) -> Metric {
    let cumulative = AggregationTemporality::Cumulative.into();
    let numbers = || points.iter().filter_map(|point| number(instrument, point, when)).collect();
    let data = match instrument.kind {
        Kind::Counter => metric::Data::Sum(Sum {
            data_points: numbers(),
            aggregation_temporality: cumulative,
            is_monotonic: true,
        }),
        Kind::Gauge => metric::Data::Gauge(Gauge { data_points: numbers() }),
        Kind::Histogram => metric::Data::Histogram(Histogram {
            data_points: points.iter().filter_map(|point| distribution(instrument, point, when)).collect(),
            aggregation_temporality: cumulative,
        }),
    };
    Metric {
        name: instrument.name.into(),
        description: instrument.help.into(),
        unit: instrument.unit.into(),
        data: Some(data),
        ..Metric::default()
    }
}

fn number(instrument: &Instrument, point: &Point, when: When) -> Option<NumberDataPoint> {
    let value = match point.value {
        Value::Count(count) => number_data_point::Value::AsInt(i64::try_from(count).unwrap_or(i64::MAX)),
        Value::Number(number) => number_data_point::Value::AsDouble(number),
        Value::Distribution(_) => return None,
    };
    Some(NumberDataPoint {
        attributes: attributes(instrument, point),
        start_time_unix_nano: when.start,
        time_unix_nano: when.now,
        value: Some(value),
        ..NumberDataPoint::default()
    })
}

fn distribution(instrument: &Instrument, point: &Point, when: When) -> Option<HistogramDataPoint> {
    let Value::Distribution(told) = &point.value else { return None };
    Some(HistogramDataPoint {
        attributes: attributes(instrument, point),
        start_time_unix_nano: when.start,
        time_unix_nano: when.now,
        count: told.count(),
        sum: Some(told.sum),
        bucket_counts: told.counts.clone(),
        explicit_bounds: told.bounds.clone(),
        exemplars: exemplars(told),
        ..HistogramDataPoint::default()
    })
}

fn exemplars(told: &Distribution) -> Vec<Exemplar> {
    let of = |known: &crate::telemetry::instrument::Exemplar| Exemplar {
        time_unix_nano: known.at.saturating_mul(1_000),
        trace_id: known.trace.trace.to_be_bytes().to_vec(),
        span_id: known.trace.span.to_be_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(known.value)),
        ..Exemplar::default()
    };
    told.exemplars.iter().flatten().map(of).collect()
}

fn attributes(instrument: &Instrument, point: &Point) -> Vec<KeyValue> {
    let labels = instrument.labels.iter().zip(&point.labels);
    labels.map(|(name, value)| text(name, value)).collect()
}

/// An attribute that is a text.
pub(in crate::telemetry) fn text(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.into())) };
    KeyValue { key: key.into(), value: Some(value), ..KeyValue::default() }
}
