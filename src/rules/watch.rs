//! Keeps the rules in force: loads them at the start, again when told to, and never gives up a good set for a bad one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::{LoadError, Problem, RuleSet, Severity, load};
use crate::clock::Clock;

/// How often a directory without good rules is looked at again.
const RETRY: Duration = Duration::from_secs(1);

/// Rules of one directory, and the set of them that is in force.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    clock: Clock,
    current: Arc<ArcSwapOption<RuleSet>>,
    /// What was wrong the last time, so that waiting says it once and not each time.
    told: Mutex<String>,
}

impl Watch {
    /// Watches `path`; nothing is loaded yet.
    #[must_use]
    pub fn new(path: &Path, clock: Clock) -> Self {
        Self { path: path.to_owned(), clock, current: Arc::default(), told: Mutex::default() }
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
        self.forget_what_was_told();
        self.try_load()
    }

    /// Returns once rules are in force, looking for them every second.
    pub async fn loaded(self: Arc<Self>) {
        while !self.is_loaded() {
            tokio::time::sleep(RETRY).await;
            let this = Arc::clone(&self);
            // Reads files, and may take a while of a hundred thousand rules. Its failures have been logged.
            _ = tokio::task::spawn_blocking(move || this.try_load()).await;
        }
    }

    fn try_load(&self) -> Result<(), LoadError> {
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
                self.forget_what_was_told();
                Ok(())
            }
            Err(error) => {
                self.tell(&error);
                Err(error)
            }
        }
    }

    /// Logs why there are no new rules, unless that is what was logged last.
    fn tell(&self, error: &LoadError) {
        let problems = match error {
            LoadError::Rejected(problems) => problems.as_slice(),
            LoadError::Nothing { .. } => &[],
        };
        let reasons = format!("{error} {problems:?}");
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if *told == reasons {
            return;
        }
        problems.iter().for_each(log_problem);
        match error {
            _ if self.is_loaded() => {
                tracing::error!(%error, "rules refused; those loaded before stay in force")
            }
            LoadError::Rejected(_) => tracing::error!(%error, "rules refused"),
            LoadError::Nothing { .. } => {
                tracing::warn!(%error, "no rules yet: every call is answered UNAVAILABLE until there are some");
            }
        }
        *told = reasons;
    }

    fn forget_what_was_told(&self) {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn log_problem(problem: &Problem) {
    match problem.severity {
        Severity::Error => tracing::error!("{problem}"),
        Severity::Warning => tracing::warn!("{problem}"),
    }
}
