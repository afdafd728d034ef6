//! weir against a stock server, side by side: `make bench`.
//!
//! The stock server ("echo") is tonic as it comes, with an answer that is always the same: what gRPC costs with nothing
//! behind it. It and weir run as processes of their own, `weir load` asks them in turn, round after round, so that what else
//! happens on the machine happens to all of them, and each figure is a median of rounds beside the least and the greatest.
//!
//! `cargo bench --bench against -- SECTION...` runs sections of it: `memory`, `redis`, `latency`, `buckets`, `script`,
//! `curve`; without one, all of them. `--quick` is for seeing that it works, and judges nothing. Results are kept in
//! `target/bench/`, section by section, and so are the table and the plots that are made from all that are there;
//! `manual` measures nothing, and puts them into the manual.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench: what goes wrong ends it"
)]

mod against {
    pub mod asked;
    pub mod bars;
    pub mod echo;
    pub mod machine;
    pub mod manual;
    pub mod plot;
    pub mod plots;
    pub mod process;
    pub mod results;
    pub mod rounds;
    pub mod sections;
    pub mod table;
}

use against::results::{self, Origin, Results};
use against::sections::Effort;
use against::{echo, manual, plots, sections, table};

/// What is said to have the manual written.
const MANUAL: &str = "manual";

const SECTIONS: [&str; 6] = ["memory", "redis", "latency", "buckets", "script", "curve"];

fn main() {
    // Cargo passes `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [role, shape, descriptors] = arguments.as_slice()
        && role == echo::ROLE
    {
        return echo::serve(shape.parse().unwrap(), descriptors.parse().unwrap());
    }
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let named: Vec<&str> = arguments.iter().map(String::as_str).filter(|name| *name != "--quick").collect();
    if let Some(unknown) = named.iter().find(|name| !SECTIONS.contains(name) && named != [MANUAL]) {
        eprintln!("there is no section `{unknown}`; there are {}, {MANUAL} and --quick", SECTIONS.join(", "));
        std::process::exit(64);
    }
    if named == [MANUAL] {
        let results = Results::kept();
        manual::write(&table::markdown(&results));
        return plots::draw(&results, &manual::plots());
    }
    let effort = if quick { Effort::QUICK } else { Effort::FULL };
    let origin = Origin::now();
    let mut results = if quick { Results::of_this_machine() } else { Results::kept() };
    for section in SECTIONS.into_iter().filter(|section| named.is_empty() || named.contains(section)) {
        eprintln!("{section}:");
        match section {
            "memory" => results.memory = sections::memory(&effort),
            "redis" => results.redis = sections::redis(&effort),
            "latency" => results.latency = sections::latency(&effort),
            "buckets" => {
                let (memory, redis) = sections::buckets(&effort);
                (results.bucket_bytes, results.bucket_bytes_with_redis) = (Some(memory), Some(redis));
            }
            "script" => results.script = Some(sections::script(&effort)),
            _ => results.curve = sections::curve(&effort),
        }
        results.from.insert(section.to_owned(), origin.clone());
        // What is done is done, also when what comes next fails.
        results.keep(quick);
    }
    let table = table::markdown(&results);
    println!("{table}");
    results.keep_table(&table, quick);
    plots::draw(&results, &results::directory());
}
