//! How connections are kept, and how the process ends.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use super::some;
use crate::serve::Policy;
use crate::serve::grpc::Bounds;

/// How connections are kept, and how the process ends.
#[derive(Clone, Debug, clap::Args)]
pub struct Serving {
    /// Threads that gRPC connections are served on; if not said, one for each core, and with Redis one more, up to four
    ///
    /// A connection stays on one thread, and goes to the one that has the fewest. Calls of a thread go to Redis together:
    /// where cores are few, one thread works while others wait.
    #[arg(long, env = "WEIR_THREADS", value_name = "COUNT", value_parser = threads)]
    pub threads: Option<NonZeroUsize>,

    /// Connections to the gRPC port; further ones are closed at once
    #[arg(long, env = "WEIR_MAX_CONNECTIONS", value_name = "COUNT", default_value = "16384", value_parser = some::<NonZeroUsize>)]
    pub max_connections: NonZeroUsize,

    /// Calls under way on one gRPC connection
    ///
    /// A proxy that has more opens another connection.
    #[arg(long, env = "WEIR_MAX_STREAMS", value_name = "COUNT", default_value = "1024", value_parser = some::<NonZeroU32>)]
    pub max_streams: NonZeroU32,

    /// Calls under way at once; further ones are answered as --overload says
    #[arg(long, env = "WEIR_MAX_CALLS", value_name = "COUNT", default_value = "10000", value_parser = some::<NonZeroUsize>)]
    pub max_calls: NonZeroUsize,

    /// Answer to a call that is one too many, given at once and without asking any bucket
    #[arg(long, env = "WEIR_OVERLOAD", value_name = "ANSWER", default_value = "unavailable", value_enum)]
    pub overload: Policy,

    /// Longest time in which a connection must begin to speak, and a request be there once it has begun
    #[arg(long, env = "WEIR_REQUEST_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = some_time)]
    pub request_timeout: Duration,

    /// Age at which a gRPC connection is ended, a tenth more or less, so that load spreads over replicas; 0s for never
    #[arg(long, env = "WEIR_MAX_CONNECTION_AGE", value_name = "DURATION", default_value = "30m",
          value_parser = humantime::parse_duration)]
    pub max_connection_age: Duration,

    /// Longest time to finish calls in after that
    #[arg(long, env = "WEIR_MAX_CONNECTION_AGE_GRACE", value_name = "DURATION", default_value = "30s",
          value_parser = humantime::parse_duration)]
    pub max_connection_age_grace: Duration,

    /// How often a gRPC client is asked whether it is still there; 0s for never
    #[arg(long, env = "WEIR_KEEPALIVE", value_name = "DURATION", default_value = "60s",
          value_parser = humantime::parse_duration)]
    pub keepalive: Duration,

    /// Longest time in which it must say so
    #[arg(long, env = "WEIR_KEEPALIVE_TIMEOUT", value_name = "DURATION", default_value = "20s", value_parser = some_time)]
    pub keepalive_timeout: Duration,

    /// Time after SIGTERM in which calls are still taken, for proxies to see that weir is not ready any more
    #[arg(long, env = "WEIR_DRAIN_DELAY", value_name = "DURATION", default_value = "5s",
          value_parser = humantime::parse_duration)]
    pub drain_delay: Duration,

    /// Longest time from SIGTERM to the end, the delay included
    #[arg(long, env = "WEIR_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,
}

/// More threads than any machine has cores for.
const MAX_THREADS: usize = 1024;

/// Threads up to which there is one more than cores with Redis. A thread's calls go to Redis together, and with one thread
/// a core a machine of few cores waits: all threads for a Redis that decides their batches at once, then Redis for all of
/// them. With one more, there is work while their batches are under way. On more cores, there is anyway.
const THREADS_ON_FEW_CORES: usize = 4;

/// A number of threads.
fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= MAX_THREADS);
    count.ok_or_else(|| format!("write a number from 1 to {MAX_THREADS}"))
}

/// So many threads on so many cores, when they wait for Redis.
fn threads_that_wait(cores: NonZeroUsize) -> NonZeroUsize {
    if cores.get() < THREADS_ON_FEW_CORES { cores.saturating_add(1) } else { cores }
}

/// A duration that is not nothing.
fn some_time(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() { Err("write more than 0s".into()) } else { Ok(duration) }
}

impl Serving {
    /// Threads that connections are served on: as many as are set, or as suit the cores that the system says this process
    /// may keep busy.
    #[must_use]
    pub fn threads(&self, asks_redis: bool) -> NonZeroUsize {
        self.threads.unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
            if asks_redis { threads_that_wait(cores) } else { cores }
        })
    }

    /// What is odd about them, in a line.
    #[must_use]
    pub fn odd(&self) -> Option<String> {
        let [delay, timeout] = [self.drain_delay, self.drain_timeout].map(humantime::format_duration);
        let is_odd = self.drain_delay >= self.drain_timeout && !self.drain_delay.is_zero();
        is_odd.then(|| {
            format!(
                "--drain-delay ({delay}) leaves nothing of --drain-timeout ({timeout}) for calls under way to finish in"
            )
        })
    }

    /// The bounds of each gRPC connection.
    #[must_use]
    pub fn bounds(&self) -> Bounds {
        let unless_zero = |duration: Duration| (!duration.is_zero()).then_some(duration);
        Bounds {
            max_streams: self.max_streams.get(),
            request_timeout: self.request_timeout,
            max_age: unless_zero(self.max_connection_age),
            max_age_grace: self.max_connection_age_grace,
            keepalive: unless_zero(self.keepalive),
            keepalive_timeout: self.keepalive_timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_cores_have_one_thread_more_for_redis_and_many_have_one_each() {
        let threads = |cores| threads_that_wait(NonZeroUsize::new(cores).unwrap()).get();
        assert_eq!([1, 2, 3, 4, 5, 64].map(threads), [2, 3, 4, 4, 5, 64]);
    }
}
