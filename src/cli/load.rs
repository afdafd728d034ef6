//! `weir load`: puts a load on a server, and prints what became of the calls.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::value_parser;
use serde_json::json;

use crate::load::{self, Order, Plan, Report, Shape, Tally, Target};

/// Percentiles that are told.
const PERCENTILES: [(&str, f64); 5] =
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9), ("p99.99", 99.99)];

/// Put a load on a server that speaks the rate limit protocol, and tell how it fares
#[derive(Debug, clap::Args)]
pub(super) struct Load {
    /// Server to call, as host:port or unix:/path/to/socket
    #[arg(long, env = "WEIR_TARGET", value_name = "ADDR", default_value = "127.0.0.1:8081")]
    target: Target,

    /// Domain, as the proxy names it
    #[arg(long)]
    domain: String,

    /// Key of the descriptors' entries
    #[arg(long, default_value = "user")]
    key: String,

    /// How many values the key has, at least one for each descriptor: numbers, at random if nothing else is said
    #[arg(long, value_name = "COUNT", default_value = "100000", value_parser = value_parser!(u64).range(1..=1_000_000_000_000))]
    keys: u64,

    /// Ask for the n-th value 1 / n to the power of this as often as for the first; 0 is all alike
    #[arg(long, value_name = "EXPONENT", value_parser = exponent)]
    zipf: Option<f64>,

    /// Take the values in turn instead of at random
    #[arg(long, conflicts_with = "zipf")]
    in_turn: bool,

    /// Descriptors of each request, each with another value
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = value_parser!(u64).range(1..=1_024))]
    descriptors: u64,

    /// Hits that each descriptor charges; 0 asks without charging
    #[arg(long, value_name = "COUNT")]
    hits: Option<u64>,

    /// Calls a second, whatever becomes of the ones before; without it, each caller asks again when it has its answer
    ///
    /// Latencies then count from when a call was due: those of calls that have to wait, because the server stalls, too.
    #[arg(long, value_name = "CALLS", value_parser = rate)]
    rate: Option<f64>,

    /// How long
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    seconds: Duration,

    /// Connections to the server
    #[arg(long, value_name = "COUNT", default_value = "4", value_parser = count)]
    connections: NonZeroUsize,

    /// Calls under way at a time on each of them
    #[arg(long, value_name = "COUNT", default_value = "64", value_parser = count)]
    streams: NonZeroUsize,

    /// Threads that make the calls; each has connections of its own
    #[arg(long, value_name = "COUNT", default_value = "1", value_parser = count)]
    threads: NonZeroUsize,

    /// Longest time to connect, and to wait at the end for calls under way
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    timeout: Duration,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    /// Do not tell every second how it goes
    #[arg(long)]
    quiet: bool,
}

fn exponent(text: &str) -> Result<f64, String> {
    let exponent = text.parse().ok().filter(|exponent| (0.0..=10.0).contains(exponent));
    exponent.ok_or_else(|| "write a number from 0 to 10".into())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.1..=10_000_000.0).contains(rate));
    rate.ok_or_else(|| "write a number of calls a second, from 0.1 to 10000000".into())
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write a number of seconds, from 0.1 to 86400".into())
}

fn count(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse().ok().filter(|count: &NonZeroUsize| count.get() <= 65_536);
    count.ok_or_else(|| "write a number from 1 to 65536".into())
}

/// Why there is no result.
pub(super) enum Refused {
    /// The command line makes no sense.
    Usage(String),
    /// Nobody was reached, or nobody answered.
    Failed(String),
}

impl Load {
    /// Puts the load on, and returns what became of it as text.
    pub(super) fn run(self) -> Result<String, Refused> {
        let plan = self.plan().map_err(Refused::Usage)?;
        let quiet = self.quiet;
        let report = load::run(&plan, |elapsed, tally| {
            if !quiet {
                super::message(&progress(elapsed, tally));
            }
        });
        let report = report.map_err(Refused::Failed)?;
        let result = if self.json { self.json(&plan, &report) } else { text(&plan, &report) };
        if report.tally.answered() == 0 {
            // What there is to say is said all the same.
            super::answer(&result);
            return Err(Refused::Failed(format!("{} answered no call", plan.target)));
        }
        Ok(result)
    }

    fn plan(&self) -> Result<Plan, String> {
        for (flag, text) in [("--domain", &self.domain), ("--key", &self.key)] {
            if text.is_empty() {
                return Err(format!("{flag} is empty, which every server refuses"));
            }
        }
        if self.threads > self.connections {
            return Err(format!(
                "--threads {} is more than --connections {}: each thread needs a connection",
                self.threads, self.connections
            ));
        }
        if let Some(rate) = self.rate
            && rate * self.seconds.as_secs_f64() < 1.0
        {
            return Err(format!("--rate {rate} makes no call in {:?}", self.seconds));
        }
        Ok(Plan {
            target: self.target.clone(),
            shape: Shape {
                domain: self.domain.clone(),
                key: self.key.clone(),
                keys: self.keys,
                descriptors: self.descriptors,
                hits: self.hits,
            },
            order: match self.zipf {
                _ if self.in_turn => Order::InTurn,
                Some(exponent) if exponent > 0.0 => Order::Zipf(exponent),
                _ => Order::Uniform,
            },
            rate: self.rate,
            duration: self.seconds,
            connections: self.connections.get(),
            streams: self.streams.get(),
            threads: self.threads.get(),
            timeout: self.timeout,
        })
    }

    fn json(&self, plan: &Plan, report: &Report) -> String {
        let tally = &report.tally;
        let failures: serde_json::Map<_, _> =
            tally.failures().map(|(failure, count)| (failure.to_string(), count.into())).collect();
        let mut latency: serde_json::Map<_, _> = PERCENTILES
            .iter()
            .map(|(name, percent)| ((*name).to_owned(), micros(tally.percentile(*percent)).into()))
            .collect();
        latency.insert("mean".into(), micros(tally.mean()).into());
        latency.insert("max".into(), micros(tally.max()).into());
        let result = json!({
            "target": plan.target.to_string(),
            "domain": self.domain,
            "key": self.key,
            "keys": self.keys.max(self.descriptors),
            "zipf": self.zipf,
            "in_turn": self.in_turn,
            "descriptors": self.descriptors,
            "hits": self.hits,
            "rate": self.rate,
            "connections": self.connections,
            "streams": self.streams,
            "threads": self.threads,
            "seconds": report.elapsed.as_secs_f64(),
            "calls": tally.answered() + tally.failed(),
            "calls_per_second": report.per_second(),
            "ok": tally.ok(),
            "unlimited": tally.unlimited(),
            "over": tally.over(),
            "errors": tally.failed(),
            "errors_by_kind": failures,
            "latency_micros": latency,
            "own_cpu_micros_per_call": report.cpu_per_call() * 1e6,
            "own_cpu_share": report.cpu_share(plan),
        });
        format!("{result:#}\n")
    }
}

impl Report {
    /// Answered calls a second.
    fn per_second(&self) -> f64 {
        self.tally.answered() as f64 / self.elapsed.as_secs_f64()
    }

    /// Seconds that a call took of the load's own processors.
    fn cpu_per_call(&self) -> f64 {
        let calls = self.tally.answered() + self.tally.failed();
        self.cpu.as_secs_f64() / (calls.max(1)) as f64
    }

    /// The part of its threads' time in which the load was busy itself.
    fn cpu_share(&self, plan: &Plan) -> f64 {
        self.cpu.as_secs_f64() / (self.elapsed.as_secs_f64() * plan.threads as f64)
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// What a second came to, on a line.
fn progress(elapsed: Duration, tally: &Tally) -> String {
    format!(
        "{:>4.0} s  {} answered, {} ok, {} over, {} errors; p50 {}, p99 {}, max {}",
        elapsed.as_secs_f64(),
        tally.answered(),
        tally.ok(),
        tally.over(),
        tally.failed(),
        human(tally.percentile(50.0)),
        human(tally.percentile(99.0)),
        human(tally.max()),
    )
}

/// The result, for people.
fn text(plan: &Plan, report: &Report) -> String {
    /// From here on, it may be the load itself that limits.
    const BUSY: f64 = 0.9;

    let tally = &report.tally;
    let mut text = format!(
        "{:.0} calls/s: {} calls in {:.2} s; {} ok, {} over, {} errors\n",
        report.per_second(),
        tally.answered() + tally.failed(),
        report.elapsed.as_secs_f64(),
        tally.ok(),
        tally.over(),
        tally.failed(),
    );
    // Writing to a String does not fail.
    if tally.unlimited() > 0 {
        _ = writeln!(text, "  {} of the ok met no limit: see `weir explain`", tally.unlimited());
    }
    for (failure, count) in tally.failures() {
        _ = writeln!(text, "  {count} of the errors: {failure}");
    }
    text.push_str("latency");
    for (name, percent) in PERCENTILES {
        _ = write!(text, "  {name} {}", human(tally.percentile(percent)));
    }
    _ = writeln!(text, "  max {}", human(tally.max()));
    let share = report.cpu_share(plan);
    let limits = if share > BUSY { ", so that may be what limits; --threads has more" } else { "" };
    _ = writeln!(
        text,
        "own CPU {:.2} µs a call, {:.0}% of its threads{limits}",
        report.cpu_per_call() * 1e6,
        share * 100.0,
    );
    text
}

/// A duration with three digits that count.
fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let (number, unit) = match seconds {
        1.0.. => (seconds, "s"),
        0.001.. => (seconds * 1e3, "ms"),
        _ => (seconds * 1e6, "µs"),
    };
    let decimals = match number {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    format!("{number:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits_that_count() {
        for (nanos, text) in
            [(1_500, "1.50 µs"), (999_400, "999 µs"), (12_340_000, "12.3 ms"), (61_000_000_000, "61.0 s")]
        {
            assert_eq!(human(Duration::from_nanos(nanos)), text);
        }
    }
}
