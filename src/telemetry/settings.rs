//! What can be set of metrics, traces and logs.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;

use crate::settings::duration;

/// Settings of metrics, traces and logs.
#[derive(Clone, Debug, clap::Args)]
pub struct TelemetrySettings {
    /// Share of a limit from which on metrics count what is admitted as near the limit
    #[arg(long, env = "WEIR_NEAR_LIMIT", value_name = "SHARE", default_value = "0.8", value_parser = share)]
    pub near_limit: f64,

    /// Combinations of values that metrics tell apart, for rules that ask for it; later ones are counted together
    #[arg(long, env = "WEIR_MAX_DETAILED_SERIES", value_name = "COUNT", default_value = "1000")]
    pub max_detailed_series: usize,

    /// OpenTelemetry collector to send metrics and traces to, as http://host:4317
    ///
    /// Without it, OTEL_EXPORTER_OTLP_ENDPOINT is used; without either, nothing is sent. Headers such as a token come from
    /// OTEL_EXPORTER_OTLP_HEADERS, names and attributes from OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
    #[arg(long, env = "WEIR_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// How to speak to it; http is protobuf to the URL with /v1/metrics and /v1/traces
    #[arg(long, env = "WEIR_OTLP_PROTOCOL", value_name = "PROTOCOL", default_value = "grpc")]
    pub otlp_protocol: Protocol,

    /// PEM file of the authorities that its certificate may be signed by, in place of the system's
    ///
    /// For https. Without it, OTEL_EXPORTER_OTLP_CERTIFICATE is used. weir's own certificate, if the collector wants one, comes
    /// from OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY.
    #[arg(long, env = "WEIR_OTLP_CA", value_name = "FILE")]
    pub otlp_ca: Option<PathBuf>,

    /// How often metrics are sent to it
    #[arg(long, env = "WEIR_OTLP_INTERVAL", value_name = "DURATION", default_value = "15s",
          value_parser = |text: &str| duration(text, Duration::from_millis(100)..=Duration::from_secs(3_600)))]
    pub otlp_interval: Duration,

    /// Which calls are traced: off, parent (those whose caller is), or a share such as 0.01 of those without a caller's word
    #[arg(long, env = "WEIR_TRACES", value_name = "WHICH", default_value = "off", value_parser = sampling)]
    pub traces: Sampling,

    /// What to log: error, warn, info, debug or trace, also by module as in `info,weir::rules=debug`
    #[arg(long, env = "WEIR_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How to log
    #[arg(long, env = "WEIR_LOG_FORMAT", value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Denials that are logged of each limit in a second; ten times as many of all limits together
    #[arg(long, env = "WEIR_LOG_DENIALS", value_name = "COUNT", default_value = "1")]
    pub log_denials: u16,

    /// Log the values of a denied request's descriptor as well
    #[arg(long, env = "WEIR_LOG_KEYS", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub log_keys: bool,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self {
            near_limit: 0.8,
            max_detailed_series: 1_000,
            otlp_endpoint: None,
            otlp_protocol: Protocol::Grpc,
            otlp_ca: None,
            otlp_interval: Duration::from_secs(15),
            traces: Sampling::Off,
            log: "info".into(),
            log_format: LogFormat::Text,
            log_denials: 1,
            log_keys: false,
        }
    }
}

/// How to speak to a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, as protobuf.
    Http,
}

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Which calls are traced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// None.
    Off,
    /// Those whose caller is traced.
    Parent,
    /// Those, and this share of those whose caller says nothing.
    Ratio(f64),
}

fn sampling(text: &str) -> Result<Sampling, String> {
    match text {
        "off" => Ok(Sampling::Off),
        "parent" => Ok(Sampling::Parent),
        text => {
            share(text).map(Sampling::Ratio).map_err(|_| "write off, parent or a number from 0 to 1".into())
        }
    }
}

/// A part of a whole.
fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "write a number such as 0.8".to_owned())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("write a number from 0 to 1".into()) }
}
