//! Results, as tables for people.

use std::fmt::Write as _;

use super::asked::PERCENTILES;
use super::bars::bars;
use super::results::{Origin, Results, Row, Spread};

/// All results that there are, in Markdown.
pub fn markdown(results: &Results) -> String {
    let mut text = format!("Machine: {}. {}\n\n", results.machine, origin(results));
    let bars = bars(results);
    if !bars.is_empty() {
        text.push_str("| figure | is | must | aim | reached |\n|---|---|---|---|---|\n");
        for bar in &bars {
            let sign = if bar.at_least { "≥" } else { "≤" };
            // Writing to a String does not fail.
            _ = writeln!(
                text,
                "| {} | {} | {sign} {} | {sign} {} | {} |",
                bar.what,
                span(bar.is),
                bar.must,
                bar.aim,
                bar.reached()
            );
        }
        text.push('\n');
    }
    for rows in [&results.memory, &results.redis] {
        if !rows.is_empty() {
            text.push_str(&table(rows));
            text.push('\n');
        }
    }
    if !results.latency.is_empty() {
        _ = writeln!(text, "| at half of the highest rate | calls/s | {} |", PERCENTILES.join(" | "));
        _ = writeln!(text, "|---|---|{}", "---|".repeat(PERCENTILES.len()));
        for latency in &results.latency {
            let micros: Vec<String> = latency.latencies.iter().map(|micros| time(*micros)).collect();
            let rate = if latency.rate > 0.0 { format!("{:.0}", latency.rate) } else { String::new() };
            _ = writeln!(text, "| {} | {rate} | {} |", latency.server, micros.join(" | "));
        }
        text.push('\n');
    }
    if let Some(script) = &results.script {
        _ = writeln!(
            text,
            "Redis takes {} µs for a decision among {:.0} of a batch, and {} µs for reading and writing the same key only.\n",
            span(script.decided),
            script.batch,
            span(script.plain)
        );
    }
    if let (Some(memory), Some(redis)) = (results.bucket_bytes, results.bucket_bytes_with_redis) {
        _ = writeln!(
            text,
            "A bucket takes {:.0} bytes of weir's memory, and {:.0} where it is in Redis: it is known by its name then.\n",
            memory.median, redis.median
        );
    }
    text
}

/// Of what code the results are: of one run, or each section of its own.
fn origin(results: &Results) -> String {
    let mut origins: Vec<&Origin> = results.from.values().collect();
    origins.dedup();
    if let [Origin { commit, when }] = origins.as_slice() {
        return format!("Commit {commit}; begun at {when}.");
    }
    let part = |(section, from): (&String, &Origin)| format!("{section}: {} at {}", from.commit, from.when);
    let parts: Vec<String> = results.from.iter().map(part).collect();
    format!("Sections are of different runs: {}.", parts.join("; "))
}

fn table(rows: &[Row]) -> String {
    let with_redis = rows.iter().any(|row| row.redis_cpu.is_some());
    let mut text = String::from(
        "| server | keys | answer | descriptors | calls/s | against echo | CPU, µs a call | against echo | load's own CPU |",
    );
    if with_redis {
        text.push_str(" Redis's CPU, µs a call | its commands a call | script runs a call | not by Redis |");
    }
    text.push('\n');
    text.push_str(&"|---".repeat(if with_redis { 13 } else { 9 }));
    text.push_str("|\n");
    for row in rows {
        let answer = match (row.server.starts_with("echo"), row.denied) {
            (true, _) => "constant",
            (false, true) => "denied",
            (false, false) => "admitted",
        };
        _ = write!(
            text,
            "| {} | {} | {answer} | {} | {:.0} ({:.0} to {:.0}) | {} | {} | {} | {} |",
            row.server,
            row.keys,
            row.descriptors,
            row.per_second.median,
            row.per_second.least,
            row.per_second.greatest,
            span(row.per_second_ratio),
            span(row.cpu),
            span(row.cpu_ratio),
            short(row.own_cpu.median),
        );
        if with_redis {
            let span = |spread: Option<Spread>| spread.map_or(String::new(), span);
            let spans = [row.redis_cpu, row.commands, row.runs, row.local].map(span);
            _ = write!(text, " {} |", spans.join(" | "));
        }
        text.push('\n');
    }
    text
}

fn span(spread: Spread) -> String {
    if spread.least >= spread.greatest {
        return short(spread.median);
    }
    format!("{} ({} to {})", short(spread.median), short(spread.least), short(spread.greatest))
}

fn time(micros: Spread) -> String {
    let one = |micros: f64| {
        if micros < 1_000.0 { format!("{micros:.0} µs") } else { format!("{} ms", short(micros / 1_000.0)) }
    };
    format!("{} ({} to {})", one(micros.median), one(micros.least), one(micros.greatest))
}

/// A number with as many digits as say something.
fn short(number: f64) -> String {
    match number.abs() {
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        0.1.. => format!("{number:.2}"),
        0.0 => "0".to_owned(),
        _ => format!("{number:.4}"),
    }
}
