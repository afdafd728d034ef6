//! The bars that weir is held to: those of its design.

use super::asked::PERCENTILES;
use super::results::{Results, Row, Spread};

/// A figure and its bars.
#[derive(Clone, Debug)]
pub struct Bar {
    pub what: String,
    pub is: Spread,
    pub must: f64,
    pub aim: f64,
    /// Whether more is better.
    pub at_least: bool,
}

impl Bar {
    pub fn reached(&self) -> &'static str {
        let meets = |bar: f64| if self.at_least { self.is.median >= bar } else { self.is.median <= bar };
        match (meets(self.must), meets(self.aim)) {
            (_, true) => "aim",
            (true, false) => "must",
            (false, false) => "**missed**",
        }
    }
}

/// All bars of which there are figures.
pub fn bars(results: &Results) -> Vec<Bar> {
    let mut bars = Vec::new();
    let mut add = |at_least, what: &str, is: Option<Spread>, must, aim| {
        if let Some(is) = is {
            bars.push(Bar { what: what.to_owned(), is, must, aim, at_least });
        }
    };
    let find = |rows: &'_ [Row], one: bool, denied: bool| -> Option<Row> {
        let of = |row: &&Row| {
            row.server.starts_with("weir")
                && row.descriptors == 1
                && (row.keys == 1) == one
                && row.denied == denied
        };
        rows.iter().find(of).cloned()
    };
    let rate = |row: Option<Row>| row.map(|row| row.per_second_ratio);
    let cpu = |row: Option<Row>| row.map(|row| row.cpu_ratio);
    let (memory, redis) = (&results.memory, &results.redis);
    add(true, "memory, 1 key: calls/s against echo", rate(find(memory, true, false)), 1.05, 1.10);
    add(true, "memory, 100,000 keys: calls/s against echo", rate(find(memory, false, false)), 1.05, 1.10);
    add(true, "Redis, 100,000 keys: calls/s against echo", rate(find(redis, false, false)), 0.75, 0.80);
    add(true, "Redis, 1 hot key, admitted: calls/s against echo", rate(find(redis, true, false)), 0.95, 1.00);
    add(true, "Redis, 1 hot key, denied: calls/s against echo", rate(find(redis, true, true)), 0.95, 1.00);
    add(
        false,
        "memory, 100,000 keys: server CPU a call against echo",
        cpu(find(memory, false, false)),
        0.95,
        0.90,
    );
    add(
        false,
        "Redis, 100,000 keys: server CPU a call against echo",
        cpu(find(redis, false, false)),
        1.25,
        1.20,
    );
    let script = results.script.as_ref();
    let plain = "Redis CPU a decision against a script that only reads and writes";
    add(false, plain, script.map(|script| script.ratio), 2.2, 1.8);
    add(false, "script runs a decision, 256 callers: uniform", script.map(|script| script.uniform), 0.1, 0.1);
    add(
        false,
        "script runs a decision, 256 callers: one hot key",
        script.map(|script| script.hot),
        0.05,
        0.05,
    );
    // One for each key, replica and second: the load may begin in the midst of one, and end in the midst of another.
    let denied = script.map(|script| script.denied);
    let most = denied.map_or(1.0, |(_, seconds)| (seconds + 1.0) / seconds);
    let denied = denied.map(|(runs, seconds)| Spread::only(runs / seconds));
    let most = (most * 100.0).ceil() / 100.0;
    add(false, "script runs a second, 256 callers: one denied key", denied, most, most);
    let tail = PERCENTILES.iter().position(|name| *name == "p99.9");
    let late = |server: &str| {
        let latency = results.latency.iter().find(|latency| latency.server == server)?;
        latency.latencies.get(tail?).map(|micros| micros.map(|micros| micros / 1_000.0))
    };
    add(false, "Redis, half of the highest rate: p99.9, ms", late("weir, Redis"), 5.0, 5.0);
    add(false, "memory: bytes a bucket", results.bucket_bytes, 100.0, 100.0);
    bars
}
