//! Prometheus's text format, and OpenMetrics where it is asked for.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>, version 0.0.4, and
//! <https://github.com/prometheus/OpenMetrics>, version 1.0.0, which alone knows exemplars.

use std::fmt::Write as _;

use super::collection::{Collection, Point, Value};
use super::instrument::{Distribution, Exemplar};
use super::metrics::{Instrument, Kind};

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus's own, which everybody reads.
    Text,
    /// OpenMetrics.
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header prefers; without one, or without a known one in it, [`Format::Text`].
    #[must_use]
    pub fn accepted(accept: Option<&str>) -> Self {
        let mut best = (0.0, Self::Text);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
                "application/openmetrics-text" => Self::OpenMetrics,
                "text/plain" | "text/*" | "*/*" => Self::Text,
                _ => continue,
            };
            let (mut quality, mut is_known) = (1.0, true);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" if format == Self::OpenMetrics => {
                        is_known = ["1.0.0", "0.0.1"].contains(&value.trim().trim_matches('"'));
                    }
                    _ => {}
                }
            }
            if is_known && quality > best.0 {
                best = (quality, format);
            }
        }
        best.1
    }

    /// Its `Content-Type`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// All figures as text.
#[must_use]
pub fn text(collection: &Collection, format: Format) -> String {
    let mut out = String::new();
    for (instrument, points) in collection.families() {
        family(&mut out, instrument, points, format);
    }
    if format == Format::OpenMetrics {
        out.push_str("# EOF\n");
    }
    out
}

/// Writes to a string: which never fails.
macro_rules! put {
    ($out:expr, $($what:tt)*) => { _ = write!($out, $($what)*) };
}

fn family(out: &mut String, instrument: &Instrument, points: &[Point], format: Format) {
    let name = instrument.prometheus_name();
    let kind = match instrument.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
    };
    // OpenMetrics names a counter's family without the `_total` of its samples.
    let title = if format == Format::OpenMetrics { instrument.family() } else { name.clone() };
    put!(out, "# TYPE {title} {kind}\n");
    if format == Format::OpenMetrics
        && let Some(unit) = ["seconds", "bytes"].iter().find(|unit| title.ends_with(*unit))
    {
        put!(out, "# UNIT {title} {unit}\n");
    }
    put!(out, "# HELP {title} {}\n", escaped(instrument.help, format == Format::OpenMetrics));
    for point in points {
        match &point.value {
            Value::Count(count) => {
                put!(out, "{name}{} {count}\n", Labels(instrument, point, None));
            }
            Value::Number(number) => {
                put!(out, "{name}{} {}\n", Labels(instrument, point, None), Number(*number));
            }
            Value::Distribution(told) => distribution(out, &name, instrument, point, told, format),
        }
    }
}

fn distribution(
    out: &mut String,
    name: &str,
    instrument: &Instrument,
    point: &Point,
    told: &Distribution,
    format: Format,
) {
    let mut count = 0;
    let bounds = told.bounds.iter().copied().chain([f64::INFINITY]);
    let exemplars = told.exemplars.iter().copied().chain(std::iter::repeat(None));
    for ((bound, in_bucket), exemplar) in bounds.zip(&told.counts).zip(exemplars) {
        count += in_bucket;
        put!(out, "{name}_bucket{} {count}", Labels(instrument, point, Some(bound)));
        if let (Some(Exemplar { value, trace, at }), Format::OpenMetrics) = (exemplar, format) {
            let seconds = format!("{}.{:06}", at / 1_000_000, at % 1_000_000);
            let (trace, span) = (trace.trace, trace.span);
            put!(out, " # {{trace_id=\"{trace:032x}\",span_id=\"{span:016x}\"}} {} {seconds}", Number(value));
        }
        out.push('\n');
    }
    put!(out, "{name}_sum{} {}\n", Labels(instrument, point, None), Number(told.sum));
    put!(out, "{name}_count{} {count}\n", Labels(instrument, point, None));
}

/// A sample's labels in braces, with a bucket's bound if it is one's; nothing if there are none.
struct Labels<'p>(&'p Instrument, &'p Point, Option<f64>);

impl std::fmt::Display for Labels<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(instrument, point, bound) = self;
        let mut opening = "{";
        for (name, value) in instrument.labels.iter().zip(&point.labels) {
            write!(f, "{opening}{name}=\"{}\"", escaped(value, true))?;
            opening = ",";
        }
        if let Some(bound) = bound {
            write!(f, "{opening}le=\"{}\"", Number(*bound))?;
            opening = ",";
        }
        if opening == "," { f.write_str("}") } else { Ok(()) }
    }
}

/// A number as both formats write it.
struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            f64::INFINITY => f.write_str("+Inf"),
            // With a fraction, also of whole numbers: OpenMetrics wants bounds of buckets so.
            number => write!(f, "{number:?}"),
        }
    }
}

/// A text between quotes, or in a line of help, where Prometheus's own format leaves quotes as they are.
fn escaped(text: &str, quotes: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\n' => escaped.push_str("\\n"),
            '"' if quotes => escaped.push_str("\\\""),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::instrument::{Histogram, SECONDS, TraceRef};
    use crate::telemetry::metrics::{CALL_DURATION, CALLS, DECISIONS, PROCESS_MEMORY};

    fn collection() -> Collection {
        let mut told = Collection::default();
        told.count(&CALLS, &["ok"], 7);
        told.count(&DECISIONS, &["api", "pa\"th_\\a\n", "ok", "local"], 1);
        told.number(&PROCESS_MEMORY, &[], 1e7);
        let histogram = Histogram::new(SECONDS);
        histogram.record(30_000);
        histogram.record_time_in(
            std::time::Duration::from_secs(2),
            TraceRef { trace: 0xabc, span: 0xd },
            1_500_000_000_000_001,
        );
        told.distribution(&CALL_DURATION, &[], histogram.distribution());
        told
    }

    #[test]
    fn the_text_format_names_escapes_and_accumulates() {
        let text = text(&collection(), Format::Text);
        for line in [
            "# TYPE weir_calls_total counter",
            "weir_calls_total{result=\"ok\"} 7",
            r#"weir_decisions_total{domain="api",rule="pa\"th_\\a\n",outcome="ok",source="local"} 1"#,
            "weir_process_resident_memory_bytes 10000000.0",
            "weir_call_duration_seconds_bucket{le=\"2.5e-5\"} 0",
            "weir_call_duration_seconds_bucket{le=\"5e-5\"} 1",
            "weir_call_duration_seconds_bucket{le=\"1.0\"} 1",
            "weir_call_duration_seconds_bucket{le=\"+Inf\"} 2",
            "weir_call_duration_seconds_sum 2.00003",
            "weir_call_duration_seconds_count 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\nis not in\n{text}");
        }
        assert!(!text.contains("EOF") && !text.contains("trace_id") && !text.contains("# UNIT"));
    }

    #[test]
    fn openmetrics_has_units_exemplars_and_an_end() {
        let text = text(&collection(), Format::OpenMetrics);
        for line in [
            "# TYPE weir_calls counter",
            "weir_calls_total{result=\"ok\"} 7",
            "# UNIT weir_call_duration_seconds seconds",
            "weir_call_duration_seconds_bucket{le=\"+Inf\"} 2 # {trace_id=\"00000000000000000000000000000abc\",\
             span_id=\"000000000000000d\"} 2.0 1500000000.000001",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\nis not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_format_is_the_one_that_is_accepted_most() {
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (None, Format::Text),
            (Some(""), Format::Text),
            (Some("*/*"), Format::Text),
            (Some("text/html"), Format::Text),
            (Some(prometheus), Format::OpenMetrics),
            (Some("application/openmetrics-text"), Format::OpenMetrics),
            (Some("application/openmetrics-text; version=9.0.0"), Format::Text),
            (Some("application/openmetrics-text;q=0.2, text/plain;q=0.9"), Format::Text),
            (Some("application/openmetrics-text;q=0"), Format::Text),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept:?}");
        }
    }
}
