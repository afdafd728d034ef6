//! Keeps the rules in force: loads them at the start, again when told to, and never gives up a good set for a bad one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::{LoadError, Problem, RuleSet, Severity, load};
use crate::clock::Clock;

/// How often a directory is looked at for its first good rules.
const RETRY: Duration = Duration::from_secs(1);

/// Rules of one directory, and the set of them that is in force.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    clock: Clock,
    current: Arc<ArcSwapOption<RuleSet>>,
    /// Held while files are read.
    loading: Mutex<()>,
    /// What was wrong the last time, so that waiting says it once and not each time.
    told: Mutex<String>,
}

impl Watch {
    /// Watches `path`; nothing is loaded yet.
    #[must_use]
    pub fn new(path: &Path, clock: Clock) -> Self {
        Self {
            path: path.to_owned(),
            clock,
            current: Arc::default(),
            loading: Mutex::default(),
            told: Mutex::default(),
        }
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

    /// Loads the first rules and puts them in force. What is wrong with them is the caller's to tell.
    ///
    /// # Errors
    /// As [`load`].
    pub fn start(&self) -> Result<(), LoadError> {
        let outcome = load(&self.path, self.clock.now()).map(|set| self.put_in_force(set));
        if let Err(error @ LoadError::Nothing { .. }) = &outcome {
            self.tell(error);
        }
        outcome
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
        // One at a time, or an older reading of the files could overtake a newer one.
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = load(&self.path, self.clock.now()).map(|set| self.put_in_force(set));
        if let Err(error) = &outcome {
            self.tell(error);
        }
        outcome
    }

    fn put_in_force(&self, mut set: RuleSet) {
        if let Some(previous) = &*self.current.load() {
            set.succeed(previous);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "domain: api\n";

    fn watch() -> (tempfile::TempDir, Arc<Watch>) {
        let directory = tempfile::tempdir().unwrap();
        let watch = Arc::new(Watch::new(&directory.path().join("rules"), Clock::manual(0)));
        (directory, watch)
    }

    fn write(watch: &Watch, text: &str) {
        std::fs::create_dir_all(&watch.path).unwrap();
        std::fs::write(watch.path.join("api.yaml"), text).unwrap();
    }

    fn told(watch: &Watch) -> String {
        watch.told.lock().unwrap().clone()
    }

    #[test]
    fn a_bad_set_leaves_the_last_good_one_in_force() {
        let (_directory, watch) = watch();
        write(&watch, GOOD);
        watch.start().unwrap();
        write(&watch, "domain: [");
        assert!(matches!(watch.reload(), Err(LoadError::Rejected(_))));
        assert!(watch.current().load_full().unwrap().domain("api").is_some());
        std::fs::remove_dir_all(&watch.path).unwrap();
        assert!(matches!(watch.reload(), Err(LoadError::Nothing { .. })));
        assert!(watch.is_loaded());
        write(&watch, "domain: web\n");
        watch.reload().unwrap();
        assert!(watch.current().load_full().unwrap().domain("web").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_tells_what_is_wrong_when_that_changes_and_ends_with_good_rules() {
        let (_directory, watch) = watch();
        assert!(matches!(watch.start(), Err(LoadError::Nothing { .. })));
        let missing = told(&watch);
        assert!(missing.contains("No such file"), "{missing}");
        let waiting = tokio::spawn(Arc::clone(&watch).loaded());
        tokio::time::sleep(RETRY * 3).await;
        assert_eq!(told(&watch), missing, "the same, and so told once");
        write(&watch, "domain: [");
        tokio::time::sleep(RETRY * 3).await;
        assert!(told(&watch).contains("not YAML"), "{}", told(&watch));
        assert!(!waiting.is_finished());
        write(&watch, GOOD);
        waiting.await.unwrap();
        assert_eq!(told(&watch), "");
    }
}
