//! `weir load`, run on a server.

use std::process::{Command, Stdio};

use serde_json::Value;

use super::process::Server;

/// What a server is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The rule: `wide` and `hot` let everything through, `shut` nothing after the first.
    pub key: &'static str,
    pub keys: u64,
    pub descriptors: u64,
    pub connections: u64,
    pub streams: u64,
    pub rate: Option<f64>,
    pub in_turn: bool,
    pub seconds: f64,
}

/// What became of it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub calls: f64,
    pub per_second: f64,
    pub over: f64,
    /// Microseconds, at [`PERCENTILES`].
    pub latencies: [f64; 6],
    /// Microseconds of the load's own processor for a call.
    pub own_cpu: f64,
}

pub const PERCENTILES: [&str; 6] = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];

impl Ask {
    /// 256 callers on four connections, as fast as they are answered.
    pub const fn closed(key: &'static str, keys: u64, seconds: f64) -> Self {
        Self { key, keys, descriptors: 1, connections: 4, streams: 64, rate: None, in_turn: false, seconds }
    }

    /// Asks, and returns when the server has nothing more to do. A call that fails ends the bench, since what it measured
    /// would be something else.
    pub fn of(self, server: &Server) -> Asked {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.args(["load", "--json", "--quiet", "--domain", "bench", "--key", self.key]);
        for (flag, number) in [
            ("--keys", self.keys as f64),
            ("--descriptors", self.descriptors as f64),
            ("--connections", self.connections as f64),
            ("--streams", self.streams as f64),
            ("--seconds", self.seconds),
        ]
        .into_iter()
        .chain(self.rate.map(|rate| ("--rate", rate)))
        {
            command.args([flag, &number.to_string()]);
        }
        if self.in_turn {
            command.arg("--in-turn");
        }
        command.args(["--target", &server.address.to_string()]).stdin(Stdio::null()).stderr(Stdio::inherit());
        let output = command.output().unwrap();
        server.rest();
        let text = String::from_utf8(output.stdout).unwrap();
        let result: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{command:?} says {text}"));
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("no number in {result}"));
        assert!(number(&result["errors"]) < 1.0, "calls fail, which measures nothing: {result:#}");
        Asked {
            calls: number(&result["calls"]),
            per_second: number(&result["calls_per_second"]),
            over: number(&result["over"]),
            latencies: PERCENTILES.map(|name| number(&result["latency_micros"][name])),
            own_cpu: number(&result["own_cpu_micros_per_call"]),
        }
    }
}
