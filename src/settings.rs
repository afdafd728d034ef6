//! What can be set of a serving process: flags, and a `WEIR_` variable for each.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;

/// Settings of `weir serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// Directory of rule files: every *.yaml and *.yml below it; or a single file
    #[arg(long, env = "WEIR_RULES", value_name = "PATH", default_value = "config")]
    pub rules: PathBuf,

    /// Address on which to answer gRPC; port 0 takes any free one
    #[arg(long, env = "WEIR_GRPC", value_name = "ADDR", default_value = "0.0.0.0:8081", value_parser = address)]
    pub grpc: SocketAddr,

    /// Redis that buckets are shared in; without it they are kept in memory
    ///
    /// As `redis://user:password@host:port/database`, of which only the host is needed, or
    /// `redis+unix:///path/to/socket`.
    #[arg(long, env = "WEIR_REDIS", value_name = "URL", value_parser = redis_url, hide_env_values = true)]
    pub redis: Option<RedisUrl>,

    /// Longest time that a call may take with Redis, from its arrival on
    #[arg(long, env = "WEIR_REDIS_TIMEOUT", value_name = "DURATION", default_value = "10ms",
          value_parser = humantime::parse_duration)]
    pub redis_timeout: Duration,

    /// Longest time that a denial by Redis is remembered, and not asked again; 0s for never
    ///
    /// What another instance gives back stays unseen for so long. Without that, a denial holds until the moment that was
    /// promised with it.
    #[arg(long, env = "WEIR_REMEMBER_DENIALS", value_name = "DURATION", default_value = "1s",
          value_parser = humantime::parse_duration)]
    pub remember_denials: Duration,

    /// Buckets kept in memory, about 100 bytes each
    ///
    /// At this number, buckets are forgotten that are full or soonest full again. Those of callers who are being
    /// limited are kept; when there are no others, new callers of a rule share one bucket.
    #[arg(long, env = "WEIR_MAX_BUCKETS", value_name = "COUNT", default_value = "1000000")]
    pub max_buckets: NonZeroUsize,

    /// Largest request taken, in bytes
    #[arg(long, env = "WEIR_MAX_MESSAGE_BYTES", value_name = "BYTES", default_value = "4194304")]
    pub max_message_bytes: NonZeroUsize,

    /// Descriptors that one request may have
    #[arg(long, env = "WEIR_MAX_DESCRIPTORS", value_name = "COUNT", default_value = "64")]
    pub max_descriptors: NonZeroUsize,

    /// Count every limit and enforce none, to try rules out
    #[arg(long, env = "WEIR_SHADOW_MODE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub shadow_mode: bool,

    /// Take every limit as a quota: deny a request only when all of its limits are over
    #[arg(long, env = "WEIR_QUOTA_MODE", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub quota_mode: bool,

    /// Put the request and the metadata of the rules it passed into each response's dynamic metadata
    #[arg(long, env = "WEIR_DYNAMIC_METADATA", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub dynamic_metadata: bool,

    /// Longest time to finish calls in after SIGTERM
    #[arg(long, env = "WEIR_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,

    /// What to log: error, warn, info, debug or trace, also by module as in `info,weir::rules=debug`
    #[arg(long, env = "WEIR_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// Where a Redis is. Shows no password.
#[derive(Clone)]
pub struct RedisUrl {
    client: redis::Client,
}

impl RedisUrl {
    /// A client for it, which has not connected yet.
    #[must_use]
    pub fn client(&self) -> &redis::Client {
        &self.client
    }
}

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisUrl({})", self.client.get_connection_info().addr())
    }
}

fn redis_url(text: &str) -> Result<RedisUrl, String> {
    const FORMS: &str =
        "write redis://[user:password@]host[:port][/database] or redis+unix:///path/to/socket";
    if text.starts_with("rediss://") {
        return Err("TLS to Redis is not there yet".into());
    }
    let client = redis::Client::open(text).map_err(|error| format!("{error}; {FORMS}"))?;
    Ok(RedisUrl { client })
}

/// An address to listen on.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:8081 or [::]:8081".to_owned())
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
