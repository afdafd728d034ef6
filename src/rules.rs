//! The rules: which limits the descriptors of a request meet.
//!
//! Files of a directory become a [`RuleSet`], whole or not at all: [`load`] returns a set, or everything that is wrong
//! with the files. A set never changes; a reload makes a new one. Looking up is pure: no I/O, no locks, no time.

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::clock::Micros;
use crate::decision::RuleId;

mod compile;
mod explain;
mod file;
mod files;
mod problem;
mod reply;
mod rule;
mod schema;
mod tier;
mod tree;
mod unit;
mod watch;
mod yaml;

pub(crate) use explain::text;
pub use explain::{Explanation, Step};
pub use file::HashTag;
pub use files::ContentHash;
pub use problem::{Place, Problem, Severity};
pub use reply::{Denial, Header, HeaderStyle, Headers};
pub use rule::{Allowance, Rule, RuleLimit, Source};
pub use schema::schema;
pub use tier::{ByTier, OnTier, Subjects, Tier};
pub use tree::{Domain, Entry, Range as AddressRange};
pub use unit::Unit;
pub use watch::{Following, InForce, Refused, Status, Watch};
pub use yaml::Any;

use compile::Compiler;
use files::Files;

/// A rule file may be so many bytes long: a hundred thousand rules are about ten million.
pub const MAX_FILE_BYTES: u64 = 64 << 20;

/// All rules of all domains.
#[derive(Debug, Default)]
pub struct RuleSet {
    domains: BTreeMap<Box<str>, Domain>,
    files: usize,
    warnings: Vec<Problem>,
    /// Since when its limits are in force, those that are new.
    since: Micros,
    hash: Option<ContentHash>,
}

/// Why there are no rules.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The directory is not there, or holds no rule file. It may come: a volume that is not mounted yet.
    #[error("{}: {reason}", path.display())]
    Nothing {
        /// Where rules were looked for.
        path: PathBuf,
        /// What was found instead.
        reason: String,
    },
    /// The files are wrong. Holds warnings as well as errors.
    #[error("{}", summary(.0))]
    Rejected(Vec<Problem>),
}

impl LoadError {
    /// All that is wrong or odd about the files.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Nothing { .. } => &[],
            Self::Rejected(problems) => problems,
        }
    }
}

fn summary(problems: &[Problem]) -> String {
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    format!("{errors} {} in the rule files", if errors == 1 { "error" } else { "errors" })
}

impl RuleSet {
    /// Builds a set from the texts of files, each with the name by which messages call it.
    ///
    /// `since` is the moment from which the limits are in force, see [`Limit::since`](crate::bucket::Limit::since).
    ///
    /// # Errors
    /// [`LoadError::Rejected`] with every problem of every file.
    pub fn from_texts<'t>(
        texts: impl IntoIterator<Item = (&'t str, &'t str)>,
        since: Micros,
    ) -> Result<Self, LoadError> {
        let mut compiler = Compiler::new(since);
        let mut files = 0;
        for (name, text) in texts {
            compiler.add(name.into(), text);
            files += 1;
        }
        Self::finish(compiler, files)
    }

    fn finish(compiler: Compiler, files: usize) -> Result<Self, LoadError> {
        let since = compiler.since();
        let (domains, found) = compiler.finish();
        if found.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(LoadError::Rejected(found));
        }
        Ok(Self { domains, files, warnings: found, since, hash: None })
    }

    /// Says so when a domain is to be in a store that is none of these.
    ///
    /// # Errors
    /// [`LoadError::Rejected`] with every such domain, and with the warnings that there are.
    pub fn in_stores(self, known: &[String]) -> Result<Self, LoadError> {
        let told = self.domains.values().filter_map(|domain| domain.redis.as_ref());
        let unknown = told.filter(|(name, _)| !known.contains(name)).map(|(name, source)| {
            let near = |known: &&String| strsim::damerau_levenshtein(known, name) <= 2;
            let hint = match (known.iter().find(near), known) {
                (Some(near), _) => format!("did you mean `{near}`?"),
                (None, []) => "there are none: --redis-store name=URL makes one".to_owned(),
                (None, _) => format!("there are `{}`", known.join("`, `")),
            };
            Problem {
                file: Arc::clone(&source.file),
                place: source.place,
                path: "redis".to_owned(),
                severity: Severity::Error,
                message: format!("no store in Redis is called `{}`; {hint}", problem::shorten(name)),
            }
        });
        let mut problems: Vec<Problem> = unknown.collect();
        if problems.is_empty() {
            return Ok(self);
        }
        problems.extend(self.warnings);
        problems.sort();
        Err(LoadError::Rejected(problems))
    }

    /// Takes the place of `previous`: a limit that is the same as there is in force since then, not only since now, and
    /// rules that were there count on. So is who is on which tier.
    ///
    /// Otherwise each reload would look like a change of every limit to the buckets that have not been used since.
    pub fn succeed(&mut self, previous: &Self) {
        let before: HashMap<RuleId, &RuleLimit> = previous
            .domains
            .values()
            .flat_map(Domain::rules)
            .flat_map(Rule::all_limits)
            .map(|limit| (limit.id, limit))
            .collect();
        for (name, domain) in &mut self.domains {
            if let Some(previous) = previous.domain(name) {
                domain.unmatched = Arc::clone(&previous.unmatched);
                domain.overrides = previous.overrides.clone();
                domain.succeed_subjects(previous, self.since);
            }
            domain.root.for_each_rule(&mut |rule| {
                for limit in rule.all_limits_mut() {
                    let Some(before) = before.get(&limit.id) else { continue };
                    limit.tally = before.tally.clone();
                    if let (Allowance::Limited { limit: now, .. }, Some(before)) =
                        (&mut limit.allowance, before.allowance.limit())
                        && now.since(before.in_force_since()) == before
                    {
                        *now = before;
                    }
                }
            });
        }
    }

    /// The rules of a domain.
    #[must_use]
    pub fn domain(&self, name: &str) -> Option<&Domain> {
        self.domains.get(name)
    }

    /// All domains, by name.
    pub fn domains(&self) -> impl Iterator<Item = (&str, &Domain)> {
        self.domains.iter().map(|(name, domain)| (&**name, domain))
    }

    /// Says which files the rules are from, if they are from files.
    #[must_use]
    pub fn hash(&self) -> Option<ContentHash> {
        self.hash
    }

    /// How many files the rules are from.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files
    }

    /// How many limits there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.domains.values().map(Domain::len).sum()
    }

    /// Whether there is no limit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is odd about the files.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }
}

/// What the descriptors of a request meet.
#[derive(Debug)]
pub struct Resolved<'r> {
    /// The rule of each descriptor, in order.
    pub rules: SmallVec<[Option<&'r Rule>; 4]>,
    /// Limits that replace others.
    replacing: SmallVec<[&'r RuleLimit; 2]>,
}

impl Resolved<'_> {
    /// Whether a limit does not apply because another one that the request meets replaces it.
    #[must_use]
    pub fn is_replaced(&self, limit: &RuleLimit) -> bool {
        !limit.name.is_empty() && self.replacing.iter().any(|other| other.replaces.contains(&limit.name))
    }
}

impl Domain {
    /// What each descriptor of one request meets; `None` stands for a descriptor that brings its own limit.
    #[must_use]
    pub fn resolve<'e>(&self, descriptors: impl Iterator<Item = Option<&'e [Entry<'e>]>>) -> Resolved<'_> {
        let rules: SmallVec<[Option<&Rule>; 4]> =
            descriptors.map(|entries| entries.and_then(|entries| self.find(entries))).collect();
        let limits = rules.iter().flatten().flat_map(|rule| &rule.limits);
        let replacing = limits.filter(|limit| !limit.replaces.is_empty()).collect();
        Resolved { rules, replacing }
    }
}

/// Loads every `*.yaml` and `*.yml` file below a directory, in the order of their names; names that begin with a dot are
/// passed over, with what is below them. A path to a single file is taken as well.
///
/// # Errors
/// [`LoadError::Nothing`] when there is no rule file, [`LoadError::Rejected`] when one of them is wrong or cannot be read.
pub fn load(path: &FilePath, since: Micros) -> Result<RuleSet, LoadError> {
    Files::read_steadily(path).compile(since)
}

#[cfg(test)]
mod tests;
