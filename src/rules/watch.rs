//! Keeps the rules in force: loads them at the start and whenever their files change, and never gives up a good set for a
//! bad one.
//!
//! What counts is what the files hold, not what was said to have happened to them: events, a slow poll and SIGHUP are
//! reasons to look, and a look that finds the same bytes as the last one does nothing. Files that are still changing are
//! waited for; [`follow`] says how. A set comes into force whole, by the exchange of one pointer. One that is
//! wrong is refused whole, its mistakes are told in the log and in [`Status`], and the one before stays.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use tokio::sync::{Notify, watch};

use super::files::Files;
use super::{ContentHash, LoadError, Problem, RuleSet, Severity};
use crate::clock::{Clock, Micros};

mod events;
mod follow;

pub use follow::Following;

/// Rules of one directory, and the set of them that is in force.
#[derive(Debug)]
pub struct Watch {
    path: PathBuf,
    clock: Clock,
    /// The stores in Redis that a domain may name; any, where there is no Redis.
    stores: Option<Vec<String>>,
    current: Arc<ArcSwapOption<RuleSet>>,
    status: watch::Sender<Arc<Status>>,
    /// Rings when somebody wants the rules looked at.
    asked: Notify,
    /// Held while a set is made, so that an older reading cannot overtake a newer one.
    judged: Mutex<Judged>,
}

/// How the rules stand.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The set in force; none until one has been loaded.
    pub in_force: Option<InForce>,
    /// What the directory holds now, if that is not what is in force.
    pub refused: Option<Refused>,
    /// How many readings have been refused since the start.
    pub refusals: u64,
    /// Whether the system tells of changes; otherwise they are seen when the directory is looked at next.
    pub events: bool,
}

/// A set that is in force.
#[derive(Clone, Debug)]
pub struct InForce {
    /// Counts the sets that this process has loaded, from 1.
    pub version: u64,
    /// Says which files it is from.
    pub hash: ContentHash,
    /// Since when.
    pub since: Micros,
    /// How many files it is from.
    pub files: usize,
    /// How many limits it has.
    pub limits: usize,
    /// What is odd about it.
    pub warnings: Vec<Problem>,
}

/// Files that are not in force.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Says which files they are.
    pub hash: ContentHash,
    /// When they were looked at.
    pub at: Micros,
    /// Why they are not in force, in a line.
    pub reason: String,
    /// All that is wrong or odd about them; empty when there are none.
    pub problems: Vec<Problem>,
}

/// What is known of the last reading of the files.
#[derive(Debug, Default)]
struct Judged {
    /// Whether it has been put in force or refused.
    hash: Option<ContentHash>,
    /// The files that the set in force is from.
    names: BTreeSet<PathBuf>,
    /// Sets that are in force no more. Calls may still be using them, and the last of those must not be the one to take a
    /// hundred thousand rules apart.
    retired: Vec<Arc<RuleSet>>,
}

impl Watch {
    /// Watches `path`; nothing is loaded yet.
    #[must_use]
    pub fn new(path: &Path, clock: Clock) -> Self {
        Self {
            path: path.to_owned(),
            clock,
            stores: None,
            current: Arc::default(),
            status: watch::Sender::default(),
            asked: Notify::new(),
            judged: Mutex::default(),
        }
    }

    /// The same, for rules whose domains may name these stores in Redis and no others.
    #[must_use]
    pub fn with_stores(mut self, names: Option<Vec<String>>) -> Self {
        self.stores = names;
        self
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

    /// How the rules stand.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    /// Tells each time that changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Status>> {
        self.status.subscribe()
    }

    /// Has [`follow`](Self::follow) look at the files at once, and tell in the log what it finds also when that is nothing
    /// new.
    pub fn look(&self) {
        self.asked.notify_one();
    }

    /// Loads the first rules and puts them in force. What is wrong with them is the caller's to tell.
    ///
    /// # Errors
    /// As [`load`](super::load).
    pub fn start(&self) -> Result<(), LoadError> {
        let outcome = self.judge(&Files::read_steadily(&self.path), false);
        if let Err(error @ LoadError::Nothing { .. }) = &outcome {
            self.tell(error);
        }
        outcome
    }

    /// Puts a reading in force, or refuses it.
    fn judge(&self, files: &Files, asked: bool) -> Result<(), LoadError> {
        let mut judged = self.judged();
        judged.hash = Some(files.hash());
        let status = self.status();
        if status.in_force.as_ref().is_some_and(|in_force| in_force.hash == files.hash()) {
            if status.refused.is_some() {
                tracing::info!(path = %self.path.display(), "the rule files are again those in force");
                self.change(|status| status.refused = None);
            } else if asked {
                tracing::info!(path = %self.path.display(), "the rule files have not changed");
            }
            return Ok(());
        }
        let checked = files.compile(self.clock.now()).and_then(|set| match &self.stores {
            Some(known) => set.in_stores(known),
            None => Ok(set),
        });
        match checked {
            Ok(set) => {
                self.put_in_force(set, files, &mut judged);
                Ok(())
            }
            Err(error) => {
                let refused = Refused {
                    hash: files.hash(),
                    at: self.clock.now(),
                    reason: error.to_string(),
                    problems: error.problems().to_vec(),
                };
                self.change(|status| {
                    status.refused = Some(refused);
                    status.refusals += 1;
                });
                Err(error)
            }
        }
    }

    fn put_in_force(&self, mut set: RuleSet, files: &Files, judged: &mut Judged) {
        let previous = self.current.load_full();
        if let Some(previous) = &previous {
            set.succeed(previous);
        }
        let version = self.status().in_force.as_ref().map_or(0, |in_force| in_force.version) + 1;
        let in_force = InForce {
            version,
            hash: files.hash(),
            since: self.clock.now(),
            files: set.files(),
            limits: set.len(),
            warnings: set.warnings().to_vec(),
        };
        let set = Arc::new(set);
        self.current.store(Some(Arc::clone(&set)));
        self.change(|status| {
            status.in_force = Some(in_force);
            status.refused = None;
        });
        // Not before it is true.
        tracing::info!(
            path = %self.path.display(),
            version,
            hash = %files.hash(),
            files = set.files(),
            domains = set.domains().count(),
            limits = set.len(),
            "rules loaded"
        );
        set.warnings().iter().for_each(log_problem);
        judged.names = files.names();
        judged.retired.extend(previous);
        judged.clear_retired();
    }

    /// Logs why there are no new rules.
    fn tell(&self, error: &LoadError) {
        error.problems().iter().for_each(log_problem);
        match error {
            _ if self.is_loaded() => {
                tracing::error!(%error, "rules refused; those loaded before stay in force")
            }
            LoadError::Rejected(_) => tracing::error!(%error, "rules refused"),
            LoadError::Nothing { .. } => {
                tracing::warn!(%error, "no rules yet: every call is answered UNAVAILABLE until there are some");
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        self.status.send_modify(|status| change(Arc::make_mut(status)));
    }

    fn judged(&self) -> MutexGuard<'_, Judged> {
        self.judged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Judged {
    /// Takes apart the sets that nobody uses any more.
    fn clear_retired(&mut self) {
        self.retired.retain(|set| Arc::strong_count(set) > 1);
    }
}

fn log_problem(problem: &Problem) {
    match problem.severity {
        Severity::Error => tracing::error!("{problem}"),
        Severity::Warning => tracing::warn!("{problem}"),
    }
}

#[cfg(test)]
mod tests;
