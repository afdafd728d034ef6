//! What was measured, kept from one run of a section to the next.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use weir::clock::Clock;

/// The median of some rounds, and the least and the greatest of them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub greatest: f64,
}

impl Spread {
    /// Of what is only one figure.
    pub fn only(figure: f64) -> Self {
        Self { median: figure, least: figure, greatest: figure }
    }

    pub fn map(self, change: impl Fn(f64) -> f64) -> Self {
        Self::of([self.median, self.least, self.greatest].map(change))
    }

    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let median = if figures.len() % 2 == 1 {
            figures[middle]
        } else {
            f64::midpoint(figures[middle - 1], figures[middle])
        };
        Self { median, least: figures[0], greatest: figures[figures.len() - 1] }
    }
}

/// One server, asked in one way, round after round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    pub server: String,
    pub keys: u64,
    pub denied: bool,
    pub descriptors: u64,
    pub per_second: Spread,
    /// Against echo in the same round.
    pub per_second_ratio: Spread,
    /// The server's, microseconds a call.
    pub cpu: Spread,
    pub cpu_ratio: Spread,
    /// Redis's, microseconds a call.
    pub redis_cpu: Option<Spread>,
    /// Commands that Redis ran for a call, those of scripts too.
    pub commands: Option<Spread>,
    /// Runs of scripts in Redis for a call.
    pub runs: Option<Spread>,
    /// The part of the charges that Redis did not decide in time, so that weir did.
    pub local: Option<Spread>,
    /// The load's own, microseconds a call.
    pub own_cpu: Spread,
}

/// How long calls took at half of the highest rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latency {
    pub server: String,
    pub rate: f64,
    /// Microseconds, at the percentiles that the load tells.
    pub latencies: Vec<Spread>,
}

/// The script, and what Redis would do without deciding.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Script {
    /// Microseconds of Redis's processor for a decision.
    pub decided: Spread,
    /// The same for a script that reads and writes the same keys only.
    pub plain: Spread,
    pub ratio: Spread,
    /// Decisions of a batch.
    pub batch: f64,
    /// Runs for a decision, with 256 callers: of many keys, of one.
    pub uniform: Spread,
    pub hot: Spread,
    /// Runs while one key was denied, and for how many seconds.
    pub denied: (f64, f64),
}

/// How many calls a second so many callers get answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    pub server: String,
    /// (callers, calls a second)
    pub points: Vec<(u64, f64)>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Results {
    pub machine: String,
    pub memory: Vec<Row>,
    pub redis: Vec<Row>,
    pub latency: Vec<Latency>,
    pub bucket_bytes: Option<Spread>,
    pub bucket_bytes_with_redis: Option<Spread>,
    pub script: Option<Script>,
    pub curve: Vec<Curve>,
    /// Where the figures of each section come from.
    pub from: BTreeMap<String, Origin>,
}

/// Of what code figures are, and from when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub commit: String,
    pub when: String,
}

impl Origin {
    /// The code that is there, now.
    pub fn now() -> Self {
        let git =
            Command::new("git").args(["describe", "--always", "--dirty= with changes", "--match="]).output();
        let commit = git.ok().filter(|git| git.status.success());
        let commit = commit.map(|git| String::from_utf8_lossy(&git.stdout).trim().to_owned());
        let now = UNIX_EPOCH + Duration::from_micros(Clock::system().now());
        Self {
            commit: commit.unwrap_or_else(|| "unknown".to_owned()),
            when: humantime::format_rfc3339_seconds(now).to_string(),
        }
    }
}

impl Results {
    /// Nothing yet.
    pub fn of_this_machine() -> Self {
        Self { machine: machine(), ..Self::default() }
    }

    /// What earlier runs on this machine have left.
    pub fn kept() -> Self {
        let kept = fs::read(directory().join(name("json", false))).ok();
        let kept: Option<Self> = kept.and_then(|kept| serde_json::from_slice(&kept).ok());
        kept.filter(|kept| kept.machine == machine()).unwrap_or_else(Self::of_this_machine)
    }

    pub fn keep(&self, quick: bool) {
        let text = serde_json::to_vec_pretty(self).unwrap();
        fs::create_dir_all(directory()).unwrap();
        fs::write(directory().join(name("json", quick)), text).unwrap();
    }

    pub fn keep_table(&self, table: &str, quick: bool) {
        fs::write(directory().join(name("md", quick)), table).unwrap();
    }
}

fn name(extension: &str, quick: bool) -> String {
    format!("against{}.{extension}", if quick { "-quick" } else { "" })
}

/// Where results are kept.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench")
}

fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{cores} cores ({}), Linux {}",
        model.map_or("unknown", |(_, model)| model.trim()),
        kernel.split('-').next().unwrap_or_default().trim()
    )
}
