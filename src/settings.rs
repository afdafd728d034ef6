//! What can be set of a serving process: flags, and a `WEIR_` variable for each.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::BoolishValueParser;

use crate::rules::{Following, Headers};
use crate::serve::Endpoint;
use crate::telemetry::settings::TelemetrySettings;

mod failure;
mod http;
mod redis;
mod serving;
mod tls;

pub use failure::FailureSettings;
pub use http::{HttpEndpoint, HttpSettings};
pub use redis::{RedisFiles, RedisStores, RedisTuning, RedisUrl};
pub use serving::Serving;
pub use tls::{ClientAuth, GrpcTls, HttpTls};

/// Settings of `weir serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Directory of rule files: every *.yaml and *.yml below it; or a single file
    #[arg(long, env = "WEIR_RULES", value_name = "PATH", default_value = "config")]
    pub rules: PathBuf,

    /// How often the rule files are looked at; changes that the system tells of are seen at once
    #[arg(long, env = "WEIR_RULES_POLL", value_name = "DURATION", default_value = "10s",
          value_parser = |text: &str| duration(text, Duration::from_millis(100)..=Duration::from_secs(10)))]
    pub rules_poll: Duration,

    /// Have the system tell of changes to the rule files
    #[arg(long, env = "WEIR_RULES_EVENTS", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "true", default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub rules_events: bool,

    /// Address on which to answer gRPC, or several with commas between them; port 0 takes any free one
    ///
    /// As `0.0.0.0:8081`, `[::]:8081`, or `unix:/path/to/socket`.
    #[arg(
        long,
        env = "WEIR_GRPC",
        value_name = "ADDR",
        default_value = "0.0.0.0:8081",
        value_delimiter = ','
    )]
    pub grpc: Vec<Endpoint>,

    /// TLS on the gRPC listener.
    #[command(flatten)]
    pub grpc_tls: GrpcTls,

    /// The HTTP listener.
    #[command(flatten)]
    pub http: HttpSettings,

    /// TLS on the HTTP listener.
    #[command(flatten)]
    pub http_tls: HttpTls,

    /// Redis that buckets are shared in; without it they are kept in memory
    ///
    /// As `redis://user:password@host:port/database`, of which only the host is needed, `rediss://` for TLS,
    /// `redis+unix:///path/to/socket`, `redis+sentinel://host:port,host:port/service/database` for a primary under
    /// sentinels, or `redis+cluster://host:port,host:port` for a Cluster, of which any nodes are named.
    #[arg(long, env = "WEIR_REDIS", value_name = "URL", hide_env_values = true)]
    pub redis: Option<RedisUrl>,

    /// What files say of that Redis.
    #[command(flatten)]
    pub redis_files: RedisFiles,

    /// More of them.
    #[command(flatten)]
    pub redis_named: RedisStores,

    /// How that Redis is used.
    #[command(flatten)]
    pub redis_tuning: RedisTuning,

    /// Longest time that a call may take with Redis, from its arrival on
    #[arg(long, env = "WEIR_REDIS_TIMEOUT", value_name = "DURATION", default_value = "10ms",
          value_parser = |text: &str| duration(text, Duration::from_millis(1)..=Duration::from_secs(10)))]
    pub redis_timeout: Duration,

    /// Longest time that a denial by Redis is remembered, and not asked again; 0s for never
    ///
    /// What another instance gives back stays unseen for so long. Without that, a denial holds until the moment that was
    /// promised with it.
    #[arg(long, env = "WEIR_REMEMBER_DENIALS", value_name = "DURATION", default_value = "1s",
          value_parser = humantime::parse_duration)]
    pub remember_denials: Duration,

    /// What is done while Redis does not answer.
    #[command(flatten)]
    pub failure: FailureSettings,

    /// Buckets kept in memory, about 100 bytes each; of Redis's, in case it fails, about 600 each
    ///
    /// At this number, buckets are forgotten that are full or soonest full again. Those of callers who are being
    /// limited are kept; when there are no others, new callers of a rule share one bucket.
    #[arg(long, env = "WEIR_MAX_BUCKETS", value_name = "COUNT", default_value = "1000000", value_parser = some::<NonZeroUsize>)]
    pub max_buckets: NonZeroUsize,

    /// Largest request taken, in bytes
    #[arg(long, env = "WEIR_MAX_MESSAGE_BYTES", value_name = "BYTES", default_value = "4194304", value_parser = some::<NonZeroUsize>)]
    pub max_message_bytes: NonZeroUsize,

    /// Descriptors that one request may have
    #[arg(long, env = "WEIR_MAX_DESCRIPTORS", value_name = "COUNT", default_value = "64", value_parser = descriptors)]
    pub max_descriptors: NonZeroUsize,

    /// Count every limit and enforce none, to try rules out
    #[arg(long, env = "WEIR_SHADOW_MODE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub shadow_mode: bool,

    /// Take every limit as a quota: deny a request only when all of its limits are over
    #[arg(long, env = "WEIR_QUOTA_MODE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub quota_mode: bool,

    /// Most that a bucket may be in debt, as a multiple of its burst; 0 to 1000
    ///
    /// Charges after the fact (`overdraft: true`) land whatever is left. What they come to beyond this is forgiven, so
    /// that a caller is kept waiting no longer than it takes to pay back so much.
    #[arg(long, env = "WEIR_MAX_DEBT", value_name = "BURSTS", default_value = "10", value_parser = max_debt)]
    pub max_debt: f64,

    /// Put the request and the metadata of the rules it passed into each response's dynamic metadata
    #[arg(long, env = "WEIR_DYNAMIC_METADATA", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub dynamic_metadata: bool,

    /// Headers that tell clients of limits: none, draft, ratelimit or x-ratelimit
    ///
    /// `draft` is RateLimit and RateLimit-Policy as the IETF has them by now, `ratelimit` RateLimit-Limit, -Remaining and
    /// -Reset, `x-ratelimit` the same with X- before them. Names can be changed: `x-ratelimit,limit=X-Quota`.
    #[arg(long, env = "WEIR_HEADERS", value_name = "STYLE", default_value = "none")]
    pub headers: Headers,

    /// How connections are kept, and how the process ends.
    #[command(flatten)]
    pub serving: Serving,

    /// What is told of metrics, traces and logs.
    #[command(flatten)]
    pub telemetry: TelemetrySettings,
}

/// A duration that makes sense where it stands.
pub(crate) fn duration(text: &str, sensible: RangeInclusive<Duration>) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if sensible.contains(&duration) => Ok(duration),
        _ => {
            let [least, most] =
                [sensible.start(), sensible.end()].map(|end| humantime::format_duration(*end));
            Err(format!("write a duration from {least} to {most}"))
        }
    }
}

/// A number that is not zero.
pub(crate) fn some<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "write a whole number, 1 or more".into())
}

/// How many bursts a bucket may be in debt.
fn max_debt(text: &str) -> Result<f64, String> {
    let bursts = text.parse().ok().filter(|bursts| (0.0..=1_000.0).contains(bursts));
    bursts.ok_or_else(|| "write a number from 0 to 1000".into())
}

/// How many descriptors a request may have: each may be a bucket, and a script reads all of them at once.
fn descriptors(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= 1_024);
    count.ok_or_else(|| "write a number from 1 to 1024".into())
}

impl Settings {
    /// How changes to the rule files are seen.
    #[must_use]
    pub fn following(&self) -> Following {
        Following { poll: self.rules_poll, events: self.rules_events }
    }
}

/// Variables of the environment that begin with `WEIR_` and set nothing, each with the nearest one that does.
#[must_use]
pub fn unknown_variables(
    environment: impl Iterator<Item = (OsString, OsString)>,
    command: &clap::Command,
) -> Vec<(String, Option<String>)> {
    let known: Vec<String> = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .filter_map(|argument| argument.get_env())
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let names = environment.map(|(name, _)| name.to_string_lossy().into_owned());
    let unknown = names.filter(|name| name.starts_with("WEIR_") && !known.contains(name));
    unknown
        .map(|name| {
            let distance = |known: &str| strsim::damerau_levenshtein(known, &name);
            let nearest = known.iter().map(|known| (distance(known), known)).min();
            // What all names begin with is no likeness.
            let near = |known: &str| 1 + (known.len() - "WEIR_".len()) / 4;
            let nearest =
                nearest.filter(|(distance, known)| *distance <= near(known)).map(|(_, known)| known.clone());
            (name, nearest)
        })
        .collect()
}
