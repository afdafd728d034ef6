//! The plots of the manual.

use std::fs;
use std::path::Path;

use super::asked::PERCENTILES;
use super::plot::{Line, Plot};
use super::results::Results;
use super::sections::MACHINE;

/// A server's colour, the same in all plots: told apart by most eyes, on white and on black.
fn colour(server: &str) -> &'static str {
    match server {
        "echo" => "#888888",
        "weir, memory" => "#0072b2",
        "weir, Redis" => "#d55e00",
        _ => "#e69f00",
    }
}

/// Draws what there are results of.
pub fn draw(results: &Results, place: &Path) {
    fs::create_dir_all(place).unwrap();
    let plots = [("throughput.svg", throughput(results)), ("latency.svg", latency(results))];
    for (name, svg) in plots {
        if let Some(svg) = svg {
            fs::write(place.join(name), svg).unwrap();
        }
    }
}

fn throughput(results: &Results) -> Option<String> {
    let callers: Vec<u64> = results.curve.first()?.points.iter().map(|point| point.0).collect();
    let rates = || results.curve.iter().flat_map(|curve| curve.points.iter().map(|point| point.1));
    let step = 10_f64.powf(rates().fold(1.0, f64::max).log10().floor()) / 2.0;
    let steps = (rates().fold(1.0, f64::max) / step).ceil();
    let place = |index: usize| index as f64 / (callers.len() - 1).max(1) as f64;
    let plot = Plot {
        title: "Calls a second, closed loop, 100,000 keys",
        across: callers
            .iter()
            .enumerate()
            .map(|(index, callers)| (place(index), callers.to_string()))
            .collect(),
        across_name: "callers at once",
        up: (0..=steps as u32)
            .map(|n| (f64::from(n) / steps, format!("{:.0}", f64::from(n) * step)))
            .collect(),
        up_name: "calls/s",
        lines: results
            .curve
            .iter()
            .map(|curve| {
                let points = curve.points.iter().enumerate();
                let points = points.map(|(index, point)| (place(index), point.1 / (steps * step)));
                Line { name: &curve.server, colour: colour(&curve.server), points: points.collect() }
            })
            .collect(),
    };
    Some(plot.svg())
}

fn latency(results: &Results) -> Option<String> {
    let served = || results.latency.iter().filter(|latency| latency.server != MACHINE);
    let all = || served().flat_map(|latency| latency.latencies.iter().map(|micros| micros.median));
    let (low, high) = (all().reduce(f64::min)?.log10().floor(), all().reduce(f64::max)?.log10().ceil());
    let place = |index: usize| index as f64 / (PERCENTILES.len() - 1) as f64;
    let power = |power: f64| match power {
        6.0.. => format!("{:.0} s", 10_f64.powf(power - 6.0)),
        3.0.. => format!("{:.0} ms", 10_f64.powf(power - 3.0)),
        _ => format!("{:.0} µs", 10_f64.powf(power)),
    };
    let plot = Plot {
        title: "Latency at half of the highest rate, open loop, 100,000 keys",
        across: PERCENTILES
            .iter()
            .enumerate()
            .map(|(index, name)| (place(index), (*name).to_owned()))
            .collect(),
        across_name: "of the calls",
        up: (low as i32..=high as i32)
            .map(|n| ((f64::from(n) - low) / (high - low), power(f64::from(n))))
            .collect(),
        up_name: "no longer than",
        lines: served()
            .map(|latency| {
                let points = latency.latencies.iter().enumerate();
                let points = points
                    .map(|(index, micros)| (place(index), (micros.median.log10() - low) / (high - low)));
                Line { name: &latency.server, colour: colour(&latency.server), points: points.collect() }
            })
            .collect(),
    };
    Some(plot.svg())
}
