//! Logs, written to standard error.

use std::io::{IsTerminal as _, stderr};

use tracing_subscriber::EnvFilter;

/// A log filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("--log {filter}: {reason}; write a level such as info, or info,weir::rules=debug")]
pub struct BadFilter {
    filter: String,
    reason: String,
}

/// Starts logging what `filter` lets through. Does nothing if the process logs already, as in tests.
///
/// # Errors
/// When the filter cannot be read.
pub fn start(filter: &str) -> Result<(), BadFilter> {
    let bad = |reason: String| BadFilter { filter: filter.to_owned(), reason };
    // A bare word would be taken for the name of a module, and a misspelt level would silence everything.
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let odd = |part: &&str| !part.contains('=') && !LEVELS.contains(&part.to_lowercase().as_str());
    if let Some(part) = filter.split(',').map(str::trim).find(odd) {
        return Err(bad(format!("`{part}` is no level")));
    }
    let filter = EnvFilter::builder().parse(filter).map_err(|error| bad(error.to_string()))?;
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr);
    // An error means that somebody has started logging before.
    _ = logs.try_init();
    Ok(())
}
