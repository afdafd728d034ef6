//! Keeps the rules in force: loads them at the start, again when told to, and never gives up a good set for a bad one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::{LoadError, Problem, RuleSet, Severity, load};
use crate::clock::Clock;

/// How often a directory without rules is looked at again.
const RETRY: Duration = Duration::from_secs(1);

/// Rules of one directory, and the set of them that is in force.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    clock: Clock,
    current: Arc<ArcSwapOption<RuleSet>>,
}

impl Watch {
    /// Watches `path`; nothing is loaded yet.
    #[must_use]
    pub fn new(path: &Path, clock: Clock) -> Self {
        Self { path: path.to_owned(), clock, current: Arc::default() }
    }

    /// The set in force; empty until one has been loaded.
    #[must_use]
    pub fn current(&self) -> Arc<ArcSwapOption<RuleSet>> {
        Arc::clone(&self.current)
    }

    /// Whether a set is in force.
    #[must_use]
    pub fn is_loaded(&self) -> bool {
        self.current.load().is_some()
    }

    /// Loads the rules and puts them in force, or leaves those in force that are. Logs which, and why.
    ///
    /// # Errors
    /// As [`load`].
    pub fn reload(&self) -> Result<(), LoadError> {
        match load(&self.path, self.clock.now()) {
            Ok(set) => {
                tracing::info!(
                    path = %self.path.display(),
                    files = set.files(),
                    domains = set.domains().count(),
                    limits = set.len(),
                    "rules loaded"
                );
                set.warnings().iter().for_each(log_problem);
                self.current.store(Some(Arc::new(set)));
                Ok(())
            }
            Err(error) => {
                if let LoadError::Rejected(problems) = &error {
                    problems.iter().for_each(log_problem);
                }
                if self.is_loaded() {
                    tracing::error!(%error, "rules refused; those loaded before stay in force");
                } else {
                    tracing::warn!(%error, "no rules yet: every call is answered UNAVAILABLE until there are some");
                }
                Err(error)
            }
        }
    }

    /// Returns once rules are in force, looking every [`RETRY`]. Says so once, not each time that there are none.
    pub async fn loaded(&self) {
        while !self.is_loaded() {
            tokio::time::sleep(RETRY).await;
            // Files that are there and wrong have been told of once; they are told of again on SIGHUP.
            if let Ok(set) = load(&self.path, self.clock.now()) {
                drop(set);
                _ = self.reload();
            }
        }
    }
}

fn log_problem(problem: &Problem) {
    match problem.severity {
        Severity::Error => tracing::error!("{problem}"),
        Severity::Warning => tracing::warn!("{problem}"),
    }
}
