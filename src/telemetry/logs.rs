//! Logs, written to standard error.

use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::settings::LogFormat;

/// What is logged while somebody looks for something: see [`Logs::obey_signals`].
const LOUDER: &str = "info,weir=debug";

/// A log filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("--log {filter}: {reason}; write a level such as info, or info,weir::rules=debug")]
pub struct BadFilter {
    filter: String,
    reason: String,
}

/// The logs of this process: what they let through can be changed at any time. Copies change the same.
#[derive(Clone, Debug)]
pub struct Logs {
    /// As it was at the start.
    configured: Arc<str>,
    /// None where somebody else had started logging before, as in tests.
    handle: Option<reload::Handle<EnvFilter, Registry>>,
}

impl Logs {
    /// Starts logging what `filter` lets through.
    ///
    /// # Errors
    /// When the filter cannot be read.
    pub fn start(filter: &str, format: LogFormat) -> Result<Self, BadFilter> {
        let (layer, handle) = reload::Layer::new(parse(filter)?);
        let lines = fmt::layer().with_ansi(stderr().is_terminal()).with_writer(stderr);
        let lines: Box<dyn Layer<_> + Send + Sync> = match format {
            LogFormat::Text => Box::new(lines),
            LogFormat::Json => Box::new(lines.json().flatten_event(true).with_ansi(false)),
        };
        let started = tracing_subscriber::registry().with(layer).with(lines).try_init();
        Ok(Self { configured: filter.into(), handle: started.is_ok().then_some(handle) })
    }

    /// Lets through what `filter` does, from now on.
    ///
    /// # Errors
    /// When the filter cannot be read.
    pub fn set(&self, filter: &str) -> Result<(), BadFilter> {
        let parsed = parse(filter)?;
        if let Some(handle) = &self.handle {
            // Fails only where nobody logs any more.
            _ = handle.reload(parsed);
        }
        tracing::info!(filter, "log level changed");
        Ok(())
    }

    /// What is let through.
    #[must_use]
    pub fn filter(&self) -> String {
        let current = self.handle.as_ref().and_then(|handle| handle.with_current(ToString::to_string).ok());
        current.unwrap_or_else(|| self.configured.to_string())
    }

    /// On SIGUSR1 logs more, on SIGUSR2 as at the start again, for ever.
    pub async fn obey_signals(self) {
        let listen = |kind| {
            signal(kind)
                .inspect_err(|error| tracing::warn!(%error, "log levels cannot be changed by signals"))
        };
        let (Ok(mut louder), Ok(mut as_before)) =
            (listen(SignalKind::user_defined1()), listen(SignalKind::user_defined2()))
        else {
            return;
        };
        loop {
            let filter = tokio::select! {
                _ = louder.recv() => LOUDER,
                _ = as_before.recv() => &*self.configured,
            };
            // Both have been read before, or are written here.
            _ = self.set(filter);
        }
    }
}

fn parse(filter: &str) -> Result<EnvFilter, BadFilter> {
    let bad = |reason: String| BadFilter { filter: filter.to_owned(), reason };
    // A bare word would be taken for the name of a module, and a misspelt level would silence everything.
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let odd = |part: &&str| !part.contains('=') && !LEVELS.contains(&part.to_lowercase().as_str());
    if let Some(part) = filter.split(',').map(str::trim).find(odd) {
        return Err(bad(format!("`{part}` is no level")));
    }
    EnvFilter::builder().parse(filter).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_or_levels_of_modules_and_anything_else_is_refused_by_name() {
        for good in ["info", "WARN", "info,weir::rules=debug", "off", LOUDER] {
            parse(good).unwrap();
        }
        for (bad, named) in [("loud", "`loud`"), ("info,wier", "`wier`"), ("weir=loud", "weir=loud")] {
            let error = parse(bad).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("write a level"), "{error}");
        }
    }
}
