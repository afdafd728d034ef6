//! From files as they are written to rules that can be looked up. Says all that is wrong with them, not the first thing.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::num::NonZeroU32;
use std::sync::Arc;

use hashbrown::hash_map::Entry as Slot;
use siphasher::sip::SipHasher13;

use super::file::{Descriptor, File, RateLimit, Unit};
use super::problem::{Path, Place, Problem, Problems};
use super::tree::{Allowance, Branch, Domain, Node, Rule, Source};
use super::yaml::{self, Any, Field};
use crate::bucket::Limit;
use crate::clock::Micros;
use crate::decision::{Mode, RuleId};

/// Rules in the making.
pub(super) struct Compiler {
    domains: BTreeMap<Box<str>, Domain>,
    found: Vec<Problem>,
    /// Since when the limits are in force.
    since: Micros,
}

/// The levels above a rule, and its own.
type Trail<'f> = Vec<Level<'f>>;

struct Level<'f> {
    key: &'f str,
    value: Option<&'f str>,
    shared: bool,
}

impl Compiler {
    pub(super) fn new(since: Micros) -> Self {
        Self { domains: BTreeMap::new(), found: Vec::new(), since }
    }

    /// Adds a file's rules, and what is wrong with them.
    pub(super) fn add(&mut self, name: Arc<str>, text: &str) {
        let problems = Problems::new(name);
        if let Some(tree) = yaml::parse(text, &problems)
            && let Some(file) = yaml::read::<File>(&tree, &problems)
        {
            self.file(&file, &problems);
        }
        self.found.extend(problems.into_found());
    }

    /// Notes a problem with a file that could not be read as text.
    pub(super) fn unreadable(&mut self, name: Arc<str>, place: Place, message: impl Into<String>) {
        let problems = Problems::new(name);
        problems.error(place, &Path::Root, message);
        self.found.extend(problems.into_found());
    }

    pub(super) fn finish(mut self) -> (BTreeMap<Box<str>, Domain>, Vec<Problem>) {
        self.domains.values_mut().for_each(|domain| domain.root.prepare());
        (self.domains, self.found)
    }

    fn file(&mut self, file: &File, problems: &Problems) {
        let path = Path::Key(&Path::Root, "domain");
        match &file.domain {
            Field::Absent => {
                problems.error(Place::START, &path, "missing: a file says which domain its rules are for")
            }
            Field::Given(place, domain) if domain.is_empty() => {
                problems.error(*place, &path, "the domain is empty")
            }
            Field::Given(..) | Field::Broken => {}
        }
        let name = file.domain.get().map_or("", String::as_str);
        let path = Path::Key(&Path::Root, "descriptors");
        let scope = Scope { problems, domain: name, since: self.since };
        if name.is_empty() {
            // Not to be used; its rules are looked at all the same.
            scope.descriptors(&mut Branch::default(), &file.descriptors, &path, &mut Vec::new());
        } else {
            let domain = self.domains.entry(name.into()).or_default();
            scope.descriptors(&mut domain.root, &file.descriptors, &path, &mut Vec::new());
        }
    }
}

/// What all rules of a file have in common.
struct Scope<'f> {
    problems: &'f Problems,
    domain: &'f str,
    since: Micros,
}

impl<'f> Scope<'f> {
    fn descriptors(
        &self,
        branch: &mut Branch,
        list: &'f Field<Vec<Field<Descriptor>>>,
        path: &Path<'_>,
        trail: &mut Trail<'f>,
    ) {
        for (index, item) in list.get().into_iter().flatten().enumerate() {
            let path = Path::Index(path, index);
            match item {
                Field::Given(place, descriptor) => self.descriptor(branch, *place, descriptor, &path, trail),
                Field::Absent | Field::Broken => {}
            }
        }
    }

    fn descriptor(
        &self,
        branch: &mut Branch,
        place: Place,
        descriptor: &'f Descriptor,
        path: &Path<'_>,
        trail: &mut Trail<'f>,
    ) {
        let at = Path::Key(path, "key");
        match &descriptor.key {
            Field::Absent => {
                self.problems.error(place, &at, "missing: a descriptor says which entry it is about")
            }
            Field::Given(place, key) if key.is_empty() => {
                self.problems.error(*place, &at, "the key is empty")
            }
            Field::Given(place, key) if key.contains('*') => {
                self.problems.error(*place, &at, "a key has no wildcards: put the `*` into `value`");
            }
            Field::Given(..) | Field::Broken => {}
        }
        let key = descriptor.key.get().map_or("", String::as_str);
        let value = descriptor.value.get().map(String::as_str).filter(|value| !value.is_empty());
        let is_pattern = value.is_some_and(|value| value.contains('*'));
        let shared = is_true(&descriptor.share_threshold);
        if shared && !is_pattern {
            self.problems.error(
                descriptor.share_threshold.place().unwrap_or(place),
                &Path::Key(path, "share_threshold"),
                "only values that match a pattern can share a bucket: `value` needs a `*` for that",
            );
        }

        trail.push(Level { key, value, shared: shared && is_pattern });
        let rule = self.rule(place, descriptor, path, trail);
        let mut node = Node { source: self.source(place), rule, below: Branch::default() };
        self.descriptors(&mut node.below, &descriptor.descriptors, &Path::Key(path, "descriptors"), trail);
        trail.pop();

        if key.is_empty() {
            return;
        }
        let choices = branch.keys.entry(key.as_bytes().into()).or_default();
        let twin = match value {
            Some(pattern) if is_pattern => choices.wildcards.insert(pattern, node).err(),
            Some(value) => match choices.exact.entry(value.as_bytes().into()) {
                Slot::Occupied(twin) => Some(twin.get().source.clone()),
                Slot::Vacant(slot) => {
                    slot.insert(node);
                    None
                }
            },
            None => match &choices.bare {
                Some(twin) => Some(twin.source.clone()),
                None => {
                    choices.bare = Some(node);
                    None
                }
            },
        };
        if let Some(twin) = twin {
            let what =
                value.map_or(format!("key `{key}`"), |value| format!("key `{key}` with value `{value}`"));
            let message =
                format!("{what} stands here twice: the other one is at {twin}. Put their rules together");
            self.problems.error(place, path, message);
        }
    }

    fn source(&self, place: Place) -> Source {
        Source { file: Arc::clone(self.problems.file()), place }
    }

    /// The rule of a descriptor, if it has a limit, and one that makes sense.
    fn rule(
        &self,
        place: Place,
        descriptor: &Descriptor,
        path: &Path<'_>,
        trail: &Trail<'_>,
    ) -> Option<Rule> {
        if let Some(metadata) = descriptor.metadata.get()
            && !matches!(metadata, Any::Map(_))
        {
            let place = descriptor.metadata.place().unwrap_or(place);
            self.problems.error(place, &Path::Key(path, "metadata"), "expected a map");
        }
        if descriptor.rate_limit.is_absent() {
            for (field, key) in
                [(&descriptor.shadow_mode, "shadow_mode"), (&descriptor.quota_mode, "quota_mode")]
            {
                if let Field::Given(place, true) = field {
                    self.problems.warning(
                        *place,
                        &Path::Key(path, key),
                        "says nothing without a `rate_limit` beside it",
                    );
                }
            }
            return None;
        }
        let rate_limit = descriptor.rate_limit.get()?;
        let path = &Path::Key(path, "rate_limit");
        let place = descriptor.rate_limit.place().unwrap_or(place);
        let allowance = self.allowance(place, rate_limit, path);
        let replaces = self.replaces(rate_limit, path);

        let name = rate_limit.name.get().map_or("", String::as_str);
        let allowance = allowance?;
        let limit_id: Box<str> = match allowance {
            _ if !name.is_empty() => name.into(),
            Allowance::Limited { unit, .. } => unit.to_string().into(),
            Allowance::Unlimited => "unlimited".into(),
        };
        let mode = match (is_true(&descriptor.shadow_mode), is_true(&descriptor.quota_mode)) {
            (true, _) => Mode::Shadow,
            (false, true) => Mode::Quota,
            (false, false) => Mode::Enforced,
        };
        let shared =
            |level: &Level<'_>| level.value.filter(|_| level.shared).map(|value| value.as_bytes().into());
        Some(Rule {
            id: rule_id(self.domain, trail, &limit_id),
            label: label(self.domain, trail),
            source: self.source(place),
            allowance,
            name: name.into(),
            limit_id,
            replaces,
            mode,
            shared: trail.iter().map(shared).collect(),
            metadata: descriptor.metadata.get().cloned(),
            detailed_metric: is_true(&descriptor.detailed_metric),
        })
    }

    fn allowance(&self, place: Place, rate_limit: &RateLimit, path: &Path<'_>) -> Option<Allowance> {
        if is_true(&rate_limit.unlimited) {
            if let Some(place) = rate_limit.unit.place() {
                let message = "what is unlimited has no unit: remove `unit`, or `unlimited`";
                self.problems.error(place, &Path::Key(path, "unit"), message);
            }
            if let Some(place) = rate_limit.requests_per_unit.place() {
                let path = Path::Key(path, "requests_per_unit");
                self.problems.warning(place, &path, "says nothing beside `unlimited`");
            }
            if let Some(place) = rate_limit.burst.place() {
                let message = "what is unlimited has no burst: remove `burst`, or `unlimited`";
                self.problems.error(place, &Path::Key(path, "burst"), message);
            }
            return Some(Allowance::Unlimited);
        }

        if rate_limit.unit.is_absent() {
            let message = "missing: a limit is so many requests per `unit`, such as minute or 30s";
            self.problems.error(place, &Path::Key(path, "unit"), message);
        }
        if rate_limit.requests_per_unit.is_absent() {
            let message = "missing, which is 0: nothing will be admitted. Write 0 if that is meant";
            self.problems.warning(place, &Path::Key(path, "requests_per_unit"), message);
        }
        let requests_per_unit = match &rate_limit.requests_per_unit {
            Field::Absent => Some(0),
            field => field.get().copied(),
        };
        let burst = self.burst(rate_limit, requests_per_unit, path);
        let (unit, requests_per_unit): (Unit, u32) = (*rate_limit.unit.get()?, requests_per_unit?);
        let limit = match (NonZeroU32::new(requests_per_unit), burst) {
            (None, _) => Limit::blocked(unit.micros()),
            (Some(requests), None) => Limit::new(requests, unit.micros()),
            (Some(requests), Some(burst)) => Limit::new(requests, unit.micros()).with_burst(burst),
        };
        Some(Allowance::Limited { limit: limit.since(self.since), requests_per_unit, unit })
    }

    fn burst(
        &self,
        rate_limit: &RateLimit,
        requests_per_unit: Option<u32>,
        path: &Path<'_>,
    ) -> Option<NonZeroU32> {
        let Field::Given(place, burst) = &rate_limit.burst else { return None };
        let path = Path::Key(path, "burst");
        if *burst == 0 {
            let message = "a burst is at least 1; to admit nothing, write `requests_per_unit: 0`";
            self.problems.error(*place, &path, message);
        } else if requests_per_unit == Some(0) {
            self.problems.error(
                *place,
                &path,
                "`requests_per_unit: 0` admits nothing, so there is no burst: remove it",
            );
        }
        NonZeroU32::new(*burst)
    }

    fn replaces(&self, rate_limit: &RateLimit, path: &Path<'_>) -> Box<[Box<str>]> {
        let own = rate_limit.name.get().filter(|name| !name.is_empty());
        let path = Path::Key(path, "replaces");
        let mut names = Vec::new();
        for (index, item) in rate_limit.replaces.get().into_iter().flatten().enumerate() {
            let path = Path::Index(&path, index);
            let Field::Given(place, replaces) = item else { continue };
            match &replaces.name {
                Field::Given(place, name) if Some(name) == own => {
                    self.problems.error(*place, &Path::Key(&path, "name"), "a limit cannot replace itself");
                }
                Field::Given(_, name) if !name.is_empty() => names.push(name.as_str().into()),
                Field::Broken => {}
                Field::Given(..) | Field::Absent => {
                    let message = "missing: say the `name` of the limit that gives way";
                    let place = replaces.name.place().unwrap_or(*place);
                    self.problems.error(place, &Path::Key(&path, "name"), message);
                }
            }
        }
        names.into()
    }
}

fn is_true(field: &Field<bool>) -> bool {
    field.get().copied().unwrap_or_default()
}

/// As the reference names a rule in its metrics: `domain.key_value.key`.
fn label(domain: &str, trail: &Trail<'_>) -> Box<str> {
    let mut label = domain.to_owned();
    for level in trail {
        label.push('.');
        label.push_str(level.key);
        if let Some(value) = level.value {
            label.push('_');
            label.push_str(value);
        }
    }
    label.into()
}

/// Says the same of the same rule in every process, and never of two: the parts go in with their lengths.
fn rule_id(domain: &str, trail: &Trail<'_>, limit_id: &str) -> RuleId {
    let mut hasher = SipHasher13::new();
    let mut part = |kind: u8, text: &str| {
        hasher.write_u8(kind);
        hasher.write_u64(text.len() as u64);
        hasher.write(text.as_bytes());
    };
    part(0, domain);
    for level in trail {
        part(1, level.key);
        part(u8::from(level.value.is_some()) + 2, level.value.unwrap_or_default());
    }
    part(4, limit_id);
    RuleId(hasher.finish())
}
