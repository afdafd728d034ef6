//! Tiers and subjects as they are written, and the limits that rules take from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::SmallVec;

use super::matcher::Kind;
use super::{Scope, Trail, rule_id};
use crate::rules::file::{Descriptor, File, OneOrMany, Subject, TierLimits};
use crate::rules::problem::{Path, Place, shorten};
use crate::rules::reply::Denial;
use crate::rules::rule::{Allowance, RuleLimit, Source};
use crate::rules::tier::{ByTier, Membership, Subjects, TIER_KEY, Tier};
use crate::rules::yaml::Field;

/// The tiers of a domain, and who is on them.
#[derive(Default)]
pub(super) struct Tiers<'f> {
    tiers: Vec<Written<'f>>,
    subjects: BTreeMap<&'f str, (Arc<Subjects>, Source)>,
}

/// A tier as it is written.
struct Written<'f> {
    name: &'f str,
    source: Source,
    /// By dimension; nothing where one is broken, which has been noted.
    limits: BTreeMap<&'f str, Option<TierLimit>>,
}

/// What a tier says of one dimension.
struct TierLimit {
    allowance: Allowance,
    source: Source,
    denial: Option<Arc<Denial>>,
}

impl<'f> Tiers<'f> {
    fn position(&self, name: &str) -> Option<usize> {
        self.tiers.iter().position(|tier| tier.name == name)
    }

    /// That there is no such tier, and which one may have been meant.
    fn unknown(&self, name: &str) -> String {
        let names: Vec<&str> = self.tiers.iter().map(|tier| tier.name).collect();
        unknown("tier", name, &names, "`tiers` names none")
    }

    /// Adds the tiers of a file.
    pub(super) fn add_tiers(&mut self, file: &'f File, scope: &Scope<'_>) {
        let path = Path::Key(&Path::Root, "tiers");
        for (name, tier) in file.tiers.get().into_iter().flatten() {
            let path = Path::Key(&path, name);
            let Field::Given(place, limits) = tier else { continue };
            if let Some(twin) = self.position(name).and_then(|twin| self.tiers.get(twin)) {
                let message = format!("tier `{}` stands at {} too", shorten(name), twin.source);
                scope.problems.error(*place, &path, message);
                continue;
            }
            let limits = scope.tier_limits(limits, &path);
            self.tiers.push(Written { name, source: scope.source(*place), limits });
        }
    }

    /// Adds the subjects of a file, once the tiers of all are known.
    pub(super) fn add_subjects(&mut self, file: &'f File, scope: &Scope<'_>) {
        let path = Path::Key(&Path::Root, "subjects");
        for (key, subject) in file.subjects.get().into_iter().flatten() {
            let path = Path::Key(&path, key);
            let Field::Given(place, subject) = subject else { continue };
            if let Some((_, twin)) = self.subjects.get(key.as_str()) {
                let message = format!("subjects by `{}` stand at {twin} too", shorten(key));
                scope.problems.error(*place, &path, message);
                continue;
            }
            let subjects = self.subjects_of(key, *place, subject, &path, scope);
            self.subjects.insert(key, (Arc::new(subjects), scope.source(*place)));
        }
    }

    fn subjects_of(
        &self,
        key: &str,
        place: Place,
        subject: &'f Subject,
        path: &Path<'_>,
        scope: &Scope<'_>,
    ) -> Subjects {
        let on = |tier: usize| Membership { tier, ..Membership::default() };
        let mut subjects = self.by_request(key);
        match &subject.default {
            Field::Absent => {
                let message = "missing: say the tier of those who are no members";
                scope.problems.error(place, &Path::Key(path, "default"), message);
            }
            Field::Given(place, name) => match self.position(name) {
                Some(tier) => subjects.default = on(tier),
                None => scope.problems.error(*place, &Path::Key(path, "default"), self.unknown(name)),
            },
            Field::Broken => {}
        }
        let path = Path::Key(path, "members");
        for (member, tier) in subject.members.get().into_iter().flatten() {
            let Field::Given(place, name) = tier else { continue };
            match self.position(name) {
                Some(tier) => _ = subjects.members.insert(member.as_bytes().into(), on(tier)),
                None => scope.problems.error(*place, &Path::Key(&path, member), self.unknown(name)),
            }
        }
        subjects
    }

    /// Subjects by a key before anything is said of them: of the key that names tiers, each tier's name.
    fn by_request(&self, key: &str) -> Subjects {
        let mut subjects = Subjects { by_request: key == TIER_KEY, ..Subjects::default() };
        if subjects.by_request {
            let names = self.tiers.iter().enumerate();
            let names = names.map(|(tier, written)| {
                (written.name.as_bytes().into(), Membership { tier, ..Membership::default() })
            });
            subjects.members = names.collect();
        }
        subjects
    }
}

impl Scope<'_> {
    /// What a tier admits, by dimension.
    fn tier_limits<'f>(
        &self,
        limits: &'f TierLimits,
        path: &Path<'_>,
    ) -> BTreeMap<&'f str, Option<TierLimit>> {
        let mut compiled = BTreeMap::new();
        for (dimension, limit) in limits {
            let path = &Path::Key(path, dimension);
            let mut allowance = None;
            if let Field::Given(place, rate_limit) = limit {
                for (key, place) in
                    [("name", rate_limit.name.place()), ("replaces", rate_limit.replaces.place())]
                {
                    if let Some(place) = place {
                        let message = format!(
                            "a tier's limit is called `{}`, and replaces none: remove `{key}`",
                            shorten(dimension)
                        );
                        self.problems.error(place, &Path::Key(path, key), message);
                    }
                }
                let admitted = self.allowance(*place, rate_limit, path);
                let denial = self.denial(&rate_limit.message, &rate_limit.body, path);
                allowance =
                    admitted.map(|allowance| TierLimit { allowance, source: self.source(*place), denial });
            }
            compiled.insert(dimension.as_str(), allowance);
        }
        compiled
    }

    /// The limits that a rule takes from its subject's tier.
    pub(super) fn by_tier(
        &self,
        descriptor: &Descriptor,
        own: &[RuleLimit],
        path: &Path<'_>,
        trail: &Trail<'_>,
    ) -> Option<ByTier> {
        let Field::Given(place, asked) = &descriptor.tier_limit else { return None };
        let path = &Path::Key(path, "tier_limit");
        let mut dimensions: Vec<(Place, &str)> = Vec::new();
        match asked {
            OneOrMany::One(dimension) => dimensions.push((*place, dimension)),
            OneOrMany::Many(list) => dimensions.extend(list.iter().filter_map(|item| match item {
                Field::Given(place, dimension) => Some((*place, dimension.as_str())),
                Field::Absent | Field::Broken => None,
            })),
        }
        for (index, (place, dimension)) in dimensions.iter().enumerate() {
            let above = dimensions.get(..index).unwrap_or_default();
            let is_twin = above.iter().any(|(_, other)| other == dimension);
            if is_twin || own.iter().any(|limit| *limit.limit_id == **dimension) {
                let message = format!(
                    "a limit of this descriptor has the id `{dimension}` too, and they would share a bucket"
                );
                self.problems.error(*place, path, message);
            }
        }

        let tiers = &self.common.tiers;
        let (entry, subjects) = self.subjects(*place, path, trail)?;
        let mut compiled = Vec::with_capacity(tiers.tiers.len());
        for tier in &tiers.tiers {
            let mut limits = SmallVec::new();
            for (place, dimension) in &dimensions {
                match tier.limits.get(dimension) {
                    Some(Some(limit)) => limits.push(self.limit_of(tier.name, dimension, limit, trail)),
                    Some(None) => {}
                    None => {
                        let known: Vec<&str> = tier.limits.keys().copied().collect();
                        let message = format!(
                            "tier `{}` ({}): {}",
                            tier.name,
                            tier.source,
                            unknown("limit", dimension, &known, "it has none")
                        );
                        self.problems.error(*place, path, message);
                    }
                }
            }
            compiled.push(Tier { name: tier.name.into(), limits });
        }
        let key = trail.get(entry).map_or("", |level| level.key);
        Some(ByTier { key: key.into(), entry, subjects, tiers: compiled.into() })
    }

    /// A tier's limit for one rule. Its bucket is that of its dimension, whatever the tier.
    fn limit_of(&self, tier: &str, dimension: &str, limit: &TierLimit, trail: &Trail<'_>) -> RuleLimit {
        RuleLimit {
            // A unit separator: no limit of the rule's own is called so by accident.
            id: rule_id(self.domain, trail, Some(&format!("{dimension}\u{1f}{tier}"))),
            source: limit.source.clone(),
            allowance: limit.allowance,
            name: dimension.into(),
            limit_id: dimension.into(),
            replaces: Box::default(),
            warn_at: None,
            denial: limit.denial.clone(),
            tally: Default::default(),
        }
    }

    /// The entry that names the subject: one that names the tier itself, or else the nearest that `subjects` knows.
    fn subjects(&self, place: Place, path: &Path<'_>, trail: &Trail<'_>) -> Option<(usize, Arc<Subjects>)> {
        let tiers = &self.common.tiers;
        if tiers.tiers.is_empty() {
            let message = "there are no tiers to take it from: no file of this domain has `tiers`";
            self.problems.error(place, path, message);
            return None;
        }
        let by_request = trail.iter().rposition(|level| level.key == TIER_KEY);
        let by_file = || trail.iter().rposition(|level| tiers.subjects.contains_key(level.key));
        let Some((entry, level)) =
            by_request.or_else(by_file).and_then(|entry| Some((entry, trail.get(entry)?)))
        else {
            let known = tiers.subjects.keys().map(|key| format!("`{}`", shorten(key))).collect::<Vec<_>>();
            let why = if known.is_empty() {
                format!(
                    "no file of this domain has `subjects`, and neither this descriptor nor one above has the key `{TIER_KEY}`"
                )
            } else {
                let known = known.join(", ");
                format!(
                    "neither this descriptor nor one above has a key that `subjects` names, which is {known}, or `{TIER_KEY}`"
                )
            };
            let message = format!("nobody knows whose tier: {why}");
            self.problems.error(place, path, message);
            return None;
        };
        if let Some((subjects, _)) = tiers.subjects.get(level.key) {
            return Some((entry, Arc::clone(subjects)));
        }
        let subjects = tiers.by_request(level.key);
        let is_exact = level.kind == Kind::Value && !level.id.contains('*');
        if !is_exact {
            let message = format!(
                "what the request calls a tier may be none: say which one counts then, in `subjects: {{ {TIER_KEY}: {{ default: … }} }}`"
            );
            self.problems.error(place, path, message);
        } else if tiers.position(&level.id).is_none() {
            self.problems.error(place, path, tiers.unknown(&level.id));
        }
        Some((entry, Arc::new(subjects)))
    }
}

/// That something is not known, and what may have been meant.
fn unknown(what: &str, name: &str, known: &[&str], none: &str) -> String {
    let short = shorten(name);
    let nearest = known.iter().map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
    match nearest {
        None => format!("there is no {what} `{short}`; {none}"),
        Some((distance, known)) if distance <= 2 => {
            format!("there is no {what} `{short}`; did you mean `{known}`?")
        }
        Some(_) => {
            let known = known.iter().map(|known| format!("`{}`", shorten(known))).collect::<Vec<_>>();
            format!("there is no {what} `{short}`; there is {}", known.join(", "))
        }
    }
}
