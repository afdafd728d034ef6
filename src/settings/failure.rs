//! What can be set of how a Redis is done without.

use std::num::NonZeroU32;
use std::time::Duration;

use super::redis::{MINUTE, TENTH, duration};
use super::{Settings, some};
use crate::breaker::Thresholds;
use crate::decision::OnRedisFailure;
use crate::limiter::Failing;

/// What is done while Redis does not answer, and when that is so.
#[derive(Clone, Debug, clap::Args)]
pub struct FailureSettings {
    /// What is answered while Redis does not, where the rules say nothing else
    ///
    /// `local`: by buckets of this process's own, which go on from where they stood, each by its share. `deny` and `allow`:
    /// always the same.
    #[arg(long, env = "WEIR_ON_REDIS_FAILURE", value_name = "POLICY", default_value = "local",
          value_parser = policy)]
    pub on_redis_failure: OnRedisFailure,

    /// Processes that share the limits, at least: among so many they are divided while Redis does not answer
    ///
    /// How many there are is counted in Redis; this is what holds before it was ever reached.
    #[arg(long, env = "WEIR_REPLICAS", value_name = "COUNT", default_value = "1", value_parser = some::<NonZeroU32>)]
    pub replicas: NonZeroU32,

    /// How often Redis is told that this process is there
    #[arg(long, env = "WEIR_HEARTBEAT", value_name = "DURATION", default_value = "1s",
          value_parser = |text: &str| duration(text, TENTH..=MINUTE))]
    pub heartbeat: Duration,

    /// Heartbeats that another process may miss before its share is divided among the others
    #[arg(long, env = "WEIR_HEARTBEATS_MISSED", value_name = "COUNT", default_value = "3",
          value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub heartbeats_missed: u32,

    /// Failures in a row after which a server of Redis is not asked for a while; a batch of calls counts once
    #[arg(long, env = "WEIR_BREAKER_FAILURES", value_name = "COUNT", default_value = "5", value_parser = some::<NonZeroU32>)]
    pub breaker_failures: NonZeroU32,

    /// Part of what was asked lately, above 0 and up to 1, that has to fail for the same
    #[arg(long, env = "WEIR_BREAKER_RATE", value_name = "PART", default_value = "0.5", value_parser = part)]
    pub breaker_rate: f64,

    /// How far back that part is counted
    #[arg(long, env = "WEIR_BREAKER_WINDOW", value_name = "DURATION", default_value = "10s",
          value_parser = |text: &str| duration(text, TENTH..=HOUR))]
    pub breaker_window: Duration,

    /// How much has to have been asked in that time for the part to count
    #[arg(long, env = "WEIR_BREAKER_LEAST", value_name = "COUNT", default_value = "20", value_parser = some::<NonZeroU32>)]
    pub breaker_least: NonZeroU32,

    /// Shortest time that a server is not asked for
    #[arg(long, env = "WEIR_BREAKER_OPEN", value_name = "DURATION", default_value = "1s",
          value_parser = |text: &str| duration(text, SHORTEST..=HOUR))]
    pub breaker_open: Duration,

    /// Longest time that it is not asked for, while it fails again and again
    #[arg(long, env = "WEIR_BREAKER_LONGEST_OPEN", value_name = "DURATION", default_value = "10s",
          value_parser = |text: &str| duration(text, SHORTEST..=HOUR))]
    pub breaker_longest_open: Duration,

    /// Probes in a row that it has to answer before it is asked again
    #[arg(long, env = "WEIR_BREAKER_PROBES", value_name = "COUNT", default_value = "2")]
    pub breaker_probes: NonZeroU32,
}

const SHORTEST: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_secs(3_600);

impl Default for FailureSettings {
    fn default() -> Self {
        let (thresholds, tuning) = (Thresholds::default(), crate::store::Tuning::default());
        Self {
            on_redis_failure: OnRedisFailure::default(),
            replicas: tuning.replicas,
            heartbeat: tuning.heartbeat,
            heartbeats_missed: tuning.heartbeats_missed,
            breaker_failures: thresholds.failures,
            breaker_rate: thresholds.failure_rate,
            breaker_window: thresholds.window,
            breaker_least: thresholds.least_asked,
            breaker_open: thresholds.open,
            breaker_longest_open: thresholds.longest_open,
            breaker_probes: thresholds.probes,
        }
    }
}

impl FailureSettings {
    /// When a server of Redis is left in peace.
    #[must_use]
    pub fn thresholds(&self) -> Thresholds {
        Thresholds {
            failures: self.breaker_failures,
            failure_rate: self.breaker_rate,
            window: self.breaker_window,
            least_asked: self.breaker_least,
            open: self.breaker_open,
            longest_open: self.breaker_longest_open.max(self.breaker_open),
            probes: self.breaker_probes,
            ..Thresholds::default()
        }
    }
}

/// A policy by its name.
fn policy(text: &str) -> Result<OnRedisFailure, String> {
    let named = OnRedisFailure::ALL.into_iter().find(|policy| policy.name() == text);
    named.ok_or_else(|| "write local, deny or allow".to_owned())
}

/// A part of a whole.
fn part(text: &str) -> Result<f64, String> {
    let part = text.parse::<f64>().ok().filter(|part| *part > 0.0 && *part <= 1.0);
    part.ok_or_else(|| "write a number above 0 and up to 1, such as 0.5".to_owned())
}

impl Settings {
    /// What is done where Redis does not answer.
    #[must_use]
    pub fn failing(&self) -> Failing {
        Failing {
            timeout: self.redis_timeout,
            remember: self.remember_denials,
            on_failure: self.failure.on_redis_failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        failure: FailureSettings,
    }

    #[test]
    fn what_is_not_set_is_as_the_parts_have_it_by_default() {
        let line = Line::parse_from(["weir"]);
        assert_eq!(format!("{:?}", line.failure), format!("{:?}", FailureSettings::default()));
    }

    #[test]
    fn what_makes_no_sense_is_said_with_what_does() {
        for (flag, said) in [
            ("--on-redis-failure=panic", "write local, deny or allow"),
            ("--breaker-rate=0", "write a number above 0 and up to 1"),
            ("--breaker-rate=NaN", "write a number above 0 and up to 1"),
            ("--breaker-failures=0", "0"),
            ("--breaker-open=0s", "write a duration from 10ms to 1h"),
            ("--heartbeat=1ms", "write a duration from 100ms to 1m"),
            ("--heartbeats-missed=0", "0 is not in 1..=1000"),
            ("--replicas=0", "0"),
        ] {
            let error = Line::try_parse_from(["weir", flag]).err().unwrap().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
