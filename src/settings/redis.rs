//! What can be set of the Redis that buckets are shared in.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::Settings;
pub(super) use super::duration;
use crate::store::{Files, Target, Tuning};

/// A URL that may hold a password: it is not shown, and read only by [`Settings::redis`], whose errors do not show it.
#[derive(Clone)]
pub struct RedisUrl(pub String);

impl From<String> for RedisUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl std::fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RedisUrl(secret)")
    }
}

/// Files that say more of the Redis; they are read anew for each connection.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RedisFiles {
    /// File with the name of Redis's user, in place of the URL's
    #[arg(long, env = "WEIR_REDIS_USERNAME_FILE", value_name = "FILE", requires = "redis")]
    pub redis_username_file: Option<PathBuf>,

    /// File with the password for Redis, in place of the URL's
    #[arg(long, env = "WEIR_REDIS_PASSWORD_FILE", value_name = "FILE", requires = "redis")]
    pub redis_password_file: Option<PathBuf>,

    /// File with the name of the sentinels' user, in place of the URL's
    #[arg(long, env = "WEIR_REDIS_SENTINEL_USERNAME_FILE", value_name = "FILE", requires = "redis")]
    pub redis_sentinel_username_file: Option<PathBuf>,

    /// File with the password for the sentinels, in place of the URL's
    #[arg(long, env = "WEIR_REDIS_SENTINEL_PASSWORD_FILE", value_name = "FILE", requires = "redis")]
    pub redis_sentinel_password_file: Option<PathBuf>,

    /// PEM file of the authorities that Redis's certificate may be signed by, in place of the system's
    #[arg(long, env = "WEIR_REDIS_CA", value_name = "FILE", requires = "redis")]
    pub redis_ca: Option<PathBuf>,

    /// PEM file of weir's own certificate for Redis
    #[arg(long, env = "WEIR_REDIS_CERT", value_name = "FILE", requires = "redis")]
    pub redis_cert: Option<PathBuf>,

    /// PEM file of the key of that
    #[arg(long, env = "WEIR_REDIS_KEY", value_name = "FILE", requires = "redis")]
    pub redis_key: Option<PathBuf>,
}

/// Other Redises beside the first.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RedisStores {
    /// Another Redis, which a domain's `redis: NAME` or --redis-per-second puts buckets in; may be given several times
    ///
    /// The URL is as of --redis, and names its files itself: `fast=redis://host?password_file=/run/secrets/fast`. Of
    /// several in the variable, spaces stand in between.
    #[arg(
        long,
        env = "WEIR_REDIS_STORE",
        value_name = "NAME=URL",
        requires = "redis",
        hide_env_values = true,
        value_delimiter = ' '
    )]
    pub redis_store: Vec<RedisUrl>,

    /// The --redis-store that limits of a second are in, where their domain does not name another one
    #[arg(long, env = "WEIR_REDIS_PER_SECOND", value_name = "NAME", requires = "redis")]
    pub redis_per_second: Option<String>,
}

/// A store's name and URL. Read here and not by the command line's parser, which would show what it does not understand.
fn named_url(RedisUrl(text): &RedisUrl) -> Result<(&str, &str), String> {
    let plain = |name: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=32).contains(&name.len()) && name.bytes().all(allowed)
    };
    match text.split_once('=') {
        Some((DEFAULT_STORE, _)) => {
            Err(format!("--redis-store: `{DEFAULT_STORE}` is what the one of --redis is called"))
        }
        Some(named) if plain(named.0) => Ok(named),
        _ => Err("--redis-store: write name=URL; a name is up to 32 letters, digits, `-` and `_`".into()),
    }
}

/// What metrics call the store that has no name.
const DEFAULT_STORE: &str = "default";

/// The numbers of how a Redis is used.
#[derive(Clone, Debug, clap::Args)]
pub struct RedisTuning {
    /// Connections kept open to each server of Redis
    ///
    /// With two, calls that were under way on one that breaks go over the other at once. Each thread that serves calls has one
    /// of its own, up to four.
    #[arg(long, env = "WEIR_REDIS_CONNECTIONS", value_name = "COUNT", default_value = "2",
          value_parser = |text: &str| count(text, 1..=64))]
    pub redis_connections: usize,

    /// Batches of calls under way at a time to each server of Redis
    ///
    /// Calls that come while so many are under way go together in the next. Each thread that serves calls has one at least, up
    /// to four.
    #[arg(long, env = "WEIR_REDIS_BATCHES", value_name = "COUNT", default_value = "2",
          value_parser = |text: &str| count(text, 1..=64))]
    pub redis_batches: usize,

    /// Distinct buckets of a batch, about: 256 take Redis about a millisecond
    ///
    /// Where threads have more batches under way than --redis-batches, theirs are smaller, so that no more buckets are before
    /// Redis at a time.
    #[arg(long, env = "WEIR_REDIS_BATCH_BUCKETS", value_name = "COUNT", default_value = "256",
          value_parser = |text: &str| count(text, 1..=4_096))]
    pub redis_batch_buckets: usize,

    /// Calls that may wait for a batch; more are answered as without Redis
    ///
    /// So is at once whatever could not be answered in time behind those that wait.
    #[arg(long, env = "WEIR_REDIS_QUEUE", value_name = "COUNT", default_value = "10000",
          value_parser = |text: &str| count(text, 1..=1_000_000))]
    pub redis_queue: usize,

    /// Longest time for one attempt to connect, in the background
    #[arg(long, env = "WEIR_REDIS_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "1s",
          value_parser = |text: &str| duration(text, TENTH..=MINUTE))]
    pub redis_connect_timeout: Duration,

    /// First pause between attempts to connect; each is twice the one before
    #[arg(long, env = "WEIR_REDIS_RECONNECT_PAUSE", value_name = "DURATION", default_value = "50ms",
          value_parser = |text: &str| duration(text, Duration::from_millis(1)..=MINUTE))]
    pub redis_reconnect_pause: Duration,

    /// Longest pause between attempts to connect
    #[arg(long, env = "WEIR_REDIS_RECONNECT_PAUSE_MAX", value_name = "DURATION", default_value = "2s",
          value_parser = |text: &str| duration(text, Duration::from_millis(1)..=MINUTE))]
    pub redis_reconnect_pause_max: Duration,

    /// How often a connection is asked whether it is still there, and sentinels who is primary; and how long that may take
    #[arg(long, env = "WEIR_REDIS_PING_INTERVAL", value_name = "DURATION", default_value = "1s",
          value_parser = |text: &str| duration(text, TENTH..=MINUTE))]
    pub redis_ping_interval: Duration,
}

pub(super) const TENTH: Duration = Duration::from_millis(100);
pub(super) const MINUTE: Duration = Duration::from_secs(60);

impl Default for RedisTuning {
    fn default() -> Self {
        let tuning = Tuning::default();
        Self {
            redis_connections: tuning.connections,
            redis_batches: tuning.batches,
            redis_batch_buckets: tuning.batch_buckets,
            redis_queue: tuning.queue,
            redis_connect_timeout: tuning.connect_timeout,
            redis_reconnect_pause: tuning.reconnect_first,
            redis_reconnect_pause_max: tuning.reconnect_longest,
            redis_ping_interval: tuning.ping,
        }
    }
}

fn count(text: &str, sensible: RangeInclusive<usize>) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if sensible.contains(&count) => Ok(count),
        _ => Err(format!("write a number from {} to {}", sensible.start(), sensible.end())),
    }
}

impl Settings {
    /// The Redis, with its files; they have been read once.
    ///
    /// # Errors
    /// When a file cannot be read, or makes no sense with the rest, in a line.
    pub fn redis(&self) -> Result<Option<Target>, String> {
        let files = self.redis_files.clone();
        let files = Files {
            username: files.redis_username_file,
            password: files.redis_password_file,
            ca: files.redis_ca,
            certificate: files.redis_cert,
            key: files.redis_key,
            sentinel_username: files.redis_sentinel_username_file,
            sentinel_password: files.redis_sentinel_password_file,
        };
        let parse = |RedisUrl(url): &RedisUrl| Target::parse(url, &files);
        self.redis.as_ref().map(parse).transpose().map_err(|error| format!("--redis: {error}"))
    }

    /// The other ones, by name.
    ///
    /// # Errors
    /// When one makes no sense, is there twice, or is wanted and not there, in a line.
    pub fn redis_stores(&self) -> Result<Vec<(String, Target)>, String> {
        let RedisStores { redis_store, redis_per_second } = &self.redis_named;
        let mut stores: Vec<(String, Target)> = Vec::new();
        for store in redis_store {
            let (name, url) = named_url(store)?;
            if stores.iter().any(|(other, _)| other == name) {
                return Err(format!("--redis-store: there are two called `{name}`"));
            }
            let target = Target::parse(url, &Files::default())
                .map_err(|error| format!("--redis-store {name}: {error}"))?;
            stores.push((name.to_owned(), target));
        }
        match redis_per_second {
            Some(name) if !stores.iter().any(|(other, _)| other == name) => {
                Err(format!("--redis-per-second: no --redis-store is called `{name}`"))
            }
            _ => Ok(stores),
        }
    }

    /// What rules may call them; `None` where there is no Redis at all.
    #[must_use]
    pub fn redis_store_names(&self) -> Option<Vec<String>> {
        let names = self.redis_named.redis_store.iter().filter_map(|store| named_url(store).ok());
        self.redis.as_ref().map(|_| names.map(|(name, _)| name.to_owned()).collect())
    }

    /// How that is used.
    ///
    /// # Errors
    /// When two numbers make no sense together, in a line.
    pub fn redis_tuning(&self) -> Result<Tuning, String> {
        let tuning = &self.redis_tuning;
        if tuning.redis_reconnect_pause > tuning.redis_reconnect_pause_max {
            return Err(
                "--redis-reconnect-pause: the first pause is longer than --redis-reconnect-pause-max".into(),
            );
        }
        Ok(Tuning {
            connections: tuning.redis_connections,
            batches: tuning.redis_batches,
            batch_buckets: tuning.redis_batch_buckets,
            queue: tuning.redis_queue,
            connect_timeout: tuning.redis_connect_timeout,
            reconnect_first: tuning.redis_reconnect_pause,
            reconnect_longest: tuning.redis_reconnect_pause_max,
            ping: tuning.redis_ping_interval,
            timeout: self.redis_timeout,
            breaker: self.failure.thresholds(),
            heartbeat: self.failure.heartbeat,
            heartbeats_missed: self.failure.heartbeats_missed,
            replicas: self.failure.replicas,
            ..Tuning::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        tuning: RedisTuning,
    }

    #[test]
    fn what_is_not_set_is_as_the_store_has_it_by_default() {
        let line = Line::parse_from(["weir"]);
        assert_eq!(format!("{:?}", line.tuning), format!("{:?}", RedisTuning::default()));
    }

    #[test]
    fn numbers_that_make_no_sense_are_said_with_those_that_do() {
        for (flag, said) in [
            ("--redis-connections=0", "write a number from 1 to 64"),
            ("--redis-batch-buckets=many", "write a number from 1 to 4096"),
            ("--redis-queue=1000001", "write a number from 1 to 1000000"),
            ("--redis-connect-timeout=1", "write a duration from 100ms to 1m"),
            ("--redis-ping-interval=1ms", "write a duration from 100ms to 1m"),
        ] {
            let error = Line::try_parse_from(["weir", flag]).err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
