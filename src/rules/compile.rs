//! From files as they are written to rules that can be looked up. Says all that is wrong with them, not the first thing.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::file::{Descriptor, File, HashTag, Percent, Share};
use super::problem::{Path, Place, Problem, Problems};
use super::reply::Headers;
use super::rule::{Allowance, Rule, Source};
use super::tier::TIER_KEY;
use super::tree::{Branch, Domain, Node};
use super::yaml::{self, Any, Field};
use crate::clock::Micros;
use crate::decision::{Mode, OnRedisFailure, RuleId};

mod limit;
mod matcher;
mod odd;
mod reply;
mod tiers;
mod unreachable;

use matcher::{Kind, Matcher};
use tiers::Tiers;

/// Rules in the making.
pub(super) struct Compiler {
    /// In their order. What is said of a domain as a whole may stand in any of its files, so all are read before one is
    /// made sense of.
    files: Vec<Read>,
    /// Since when the limits are in force.
    since: Micros,
}

/// A file that has been read.
struct Read {
    problems: Problems,
    /// Nothing if it could not be made sense of, which has been noted.
    file: Option<File>,
}

/// What the files of a domain say of all of its rules, and where.
#[derive(Default)]
struct Common<'f> {
    tiers: Tiers<'f>,
    on_redis_failure: Option<(OnRedisFailure, Source)>,
    redis: Option<(String, Source)>,
    headers: Option<(Arc<Headers>, Source)>,
    redis_hash_tag: Option<(HashTag, Source)>,
}

/// The levels above a rule, and its own.
type Trail<'f> = Vec<Level<'f>>;

struct Level<'f> {
    key: &'f str,
    kind: Kind,
    /// The values that match, as rules are told apart by them.
    id: String,
    /// The same as people are shown them.
    label: Option<String>,
    /// What stands in for the value in a bucket's name.
    shared: Option<Box<[u8]>>,
    /// `value_to_metric`.
    told: bool,
}

impl Compiler {
    pub(super) fn new(since: Micros) -> Self {
        Self { files: Vec::new(), since }
    }

    /// Since when the limits are in force.
    pub(super) fn since(&self) -> Micros {
        self.since
    }

    /// Adds a file's rules, and what is wrong with them.
    pub(super) fn add(&mut self, name: Arc<str>, text: &str) {
        let problems = Problems::new(name);
        let file = yaml::parse(text, &problems).and_then(|tree| yaml::read::<File>(&tree, &problems));
        self.files.push(Read { problems, file });
    }

    /// Notes a problem with a file that could not be read as text.
    pub(super) fn unreadable(&mut self, name: Arc<str>, place: Place, message: impl Into<String>) {
        let problems = Problems::new(name);
        problems.error(place, &Path::Root, message);
        self.files.push(Read { problems, file: None });
    }

    /// The rules of all files, and all that is wrong with them or odd.
    pub(super) fn finish(self) -> (BTreeMap<Box<str>, Domain>, Vec<Problem>) {
        let nothing = Common::default();
        let mut commons: BTreeMap<&str, Common<'_>> = BTreeMap::new();
        for add in [Common::add, Common::add_subjects] {
            for Read { problems, file } in &self.files {
                let Some(file) = file else { continue };
                let domain = file.domain.get().map_or("", String::as_str);
                let scope = Scope { problems, domain, since: self.since, common: &nothing };
                add(commons.entry(domain).or_default(), file, &scope);
            }
        }
        let mut domains = BTreeMap::<Box<str>, Domain>::new();
        for Read { problems, file } in &self.files {
            let Some(file) = file else { continue };
            let name = file.domain.get().map_or("", String::as_str);
            let Some(common) = commons.get(name) else { continue };
            let scope = Scope { problems, domain: name, since: self.since, common };
            if name.is_empty() {
                // Not to be used; its rules are looked at all the same.
                scope.file(&mut Domain::default(), file);
            } else {
                let domain = domains.entry(name.into()).or_default();
                domain.redis = common.redis.clone();
                domain.hash_tag = common.redis_hash_tag.as_ref().map(|(tag, _)| tag.clone());
                scope.file(domain, file);
            }
        }
        domains.values_mut().for_each(|domain| domain.root.prepare());
        let found = self.files.into_iter().flat_map(|read| read.problems.into_found());
        let mut found: Vec<Problem> = found.collect();
        let mut odd = Vec::new();
        domains.values().for_each(|domain| unreachable::unreachable(domain, &mut odd));
        odd.sort();
        found.extend(odd);
        (domains, found)
    }
}

impl<'f> Common<'f> {
    /// Adds what a file says of its domain as a whole.
    fn add(&mut self, file: &'f File, scope: &Scope<'_>) {
        once(&mut self.on_redis_failure, &file.on_redis_failure, "on_redis_failure", scope.problems);
        once(&mut self.redis, &file.redis, "redis", scope.problems);
        let headers = match &file.headers {
            Field::Given(place, choice) => Field::Given(*place, Arc::new(scope.headers(*place, choice))),
            Field::Absent | Field::Broken => Field::Absent,
        };
        once(&mut self.headers, &headers, "headers", scope.problems);
        once(&mut self.redis_hash_tag, &file.redis_hash_tag, "redis_hash_tag", scope.problems);
        self.tiers.add_tiers(file, scope);
    }

    /// Adds what needs to know what all files say.
    fn add_subjects(&mut self, file: &'f File, scope: &Scope<'_>) {
        self.tiers.add_subjects(file, scope);
    }
}

/// Sets what a domain may be told once, in whichever of its files.
fn once<T: Clone>(told: &mut Option<(T, Source)>, field: &Field<T>, key: &str, problems: &Problems) {
    let Field::Given(place, value) = field else { return };
    match told {
        Some((_, twin)) => {
            let message = format!("this domain's files say `{key}` twice: the other one is at {twin}");
            problems.error(*place, &Path::Key(&Path::Root, key), message);
        }
        None => {
            *told = Some((value.clone(), Source { file: Arc::clone(problems.file()), place: *place }));
        }
    }
}

/// What all rules of a file have in common.
struct Scope<'f> {
    problems: &'f Problems,
    domain: &'f str,
    since: Micros,
    common: &'f Common<'f>,
}

impl<'f> Scope<'f> {
    fn file(&self, domain: &mut Domain, file: &'f File) {
        let path = Path::Key(&Path::Root, "domain");
        match &file.domain {
            Field::Absent => {
                let message = "missing: a file says which domain its rules are for";
                self.problems.error(Place::START, &path, message);
            }
            Field::Given(place, domain) if domain.is_empty() => {
                self.problems.error(*place, &path, "the domain is empty")
            }
            Field::Given(..) | Field::Broken => {}
        }
        let path = Path::Key(&Path::Root, "descriptors");
        self.descriptors(&mut domain.root, &file.descriptors, &path, &mut Vec::new());
        domain.headers = self.common.headers.as_ref().map(|(headers, _)| Arc::clone(headers));
    }

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
        let matcher = self.matcher(descriptor, path);
        let is_shared = is_true(&descriptor.share_threshold);
        let stand_in = matcher.stand_in();
        if is_shared && stand_in.is_none() && !matches!(matcher, Matcher::Broken) {
            self.problems.error(
                descriptor.share_threshold.place().unwrap_or(place),
                &Path::Key(path, "share_threshold"),
                "only where several values match can they share a bucket: it wants a `*` in `value`, or `values`, `cidr` or `regex`",
            );
        }

        let shared = stand_in.filter(|_| is_shared).map(|text| text.into_bytes().into());
        let told = is_true(&descriptor.value_to_metric);
        trail.push(Level {
            key,
            kind: matcher.kind(),
            id: matcher.id(),
            label: matcher.label(),
            shared,
            told,
        });
        let rule = self.rule(place, descriptor, path, trail);
        let mut node = Node { source: self.source(place), rule, below: Branch::default() };
        self.descriptors(&mut node.below, &descriptor.descriptors, &Path::Key(path, "descriptors"), trail);
        trail.pop();

        if key.is_empty() {
            return;
        }
        let choices = branch.keys.entry(key.as_bytes().into()).or_default();
        if let (Matcher::Regex(..), Some(place)) = (&matcher, descriptor.regex.place()) {
            self.count_regexes(choices, place, path, key);
        }
        if let Err((what, twin)) = matcher.insert(key, choices, node) {
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
        if descriptor.rate_limit.is_absent()
            && descriptor.rate_limits.is_absent()
            && descriptor.tier_limit.is_absent()
        {
            self.says_nothing(descriptor, path, "says nothing without a `rate_limit` beside it");
            return None;
        }
        if let Field::Given(place, 0) = descriptor.cost {
            let message = "a hit costs at least 1: to let hits pass without a charge, remove the limit";
            self.problems.error(place, &Path::Key(path, "cost"), message);
        }
        self.enforcement(descriptor, path);
        let mut limits = self.limits(descriptor, path, trail);
        let mut by_tier = self.by_tier(descriptor, &limits, path, trail);
        let denial = self.denial(&descriptor.message, &descriptor.body, path);
        let of_tiers =
            by_tier.iter_mut().flat_map(|by_tier| &mut by_tier.tiers).flat_map(|tier| &mut tier.limits);
        for limit in limits.iter_mut().chain(of_tiers) {
            limit.warn_at = descriptor.warn_at.get().map(|Share(share)| *share);
            if limit.denial.is_none() {
                limit.denial.clone_from(&denial);
            }
        }
        if limits.is_empty() && by_tier.is_none() {
            return None;
        }
        if by_tier.is_none() && limits.iter().all(|limit| limit.allowance == Allowance::Unlimited) {
            self.says_nothing(descriptor, path, "says nothing beside `unlimited`, which denies nobody");
        }
        let written =
            [descriptor.rate_limit.place(), descriptor.rate_limits.place(), descriptor.tier_limit.place()];
        let place = written.into_iter().flatten().next().unwrap_or(place);
        let mut shared: Box<[Option<Box<[u8]>>]> = trail.iter().map(|level| level.shared.clone()).collect();
        if let Some(by_tier) = &by_tier
            && by_tier.subjects.by_request
            && let Some(shared) = shared.get_mut(by_tier.entry)
        {
            // Whoever changes tiers stays in his bucket.
            shared.get_or_insert_with(|| TIER_KEY.as_bytes().into());
        }
        let mode = match (is_true(&descriptor.shadow_mode), is_true(&descriptor.quota_mode)) {
            (true, _) => Mode::Shadow,
            (false, true) => Mode::Quota,
            (false, false) => Mode::Enforced,
        };
        let common = self.common.on_redis_failure.as_ref().map(|(choice, _)| *choice);
        let rule = Rule {
            id: rule_id(self.domain, trail, None),
            label: label(self.domain, trail),
            source: self.source(place),
            limits,
            by_tier: by_tier.map(Box::new),
            mode,
            shared,
            cost: descriptor.cost.get().copied().unwrap_or(1),
            overdraft: is_true(&descriptor.overdraft),
            enforce_percent: descriptor.enforce_percent.get().map_or(100, |Percent(percent)| *percent),
            on_redis_failure: descriptor.on_redis_failure.get().copied().or(common),
            metadata: descriptor.metadata.get().cloned(),
            told_values: told_values(trail, is_true(&descriptor.detailed_metric)),
        };
        self.odd_limits(&rule, path);
        Some(rule)
    }
}

/// Which of the entries' values metrics tell.
fn told_values(trail: &Trail<'_>, all: bool) -> Box<[bool]> {
    let any = all || trail.iter().any(|level| level.told);
    if any { trail.iter().map(|level| all || level.told).collect() } else { Box::default() }
}

impl Scope<'_> {
    /// Warns of all that a descriptor says of a limit that it does not have.
    fn says_nothing(&self, descriptor: &Descriptor, path: &Path<'_>, message: &str) {
        let is_true = |field: &Field<bool>| match field {
            Field::Given(place, true) => Some(*place),
            _ => None,
        };
        for (place, key) in [
            (is_true(&descriptor.shadow_mode), "shadow_mode"),
            (is_true(&descriptor.quota_mode), "quota_mode"),
            (is_true(&descriptor.overdraft), "overdraft"),
            (descriptor.cost.place(), "cost"),
            (descriptor.warn_at.place(), "warn_at"),
            (descriptor.enforce_percent.place(), "enforce_percent"),
            (descriptor.message.place(), "message"),
            (descriptor.body.place(), "body"),
            (descriptor.on_redis_failure.place(), "on_redis_failure"),
        ] {
            if let Some(place) = place {
                self.problems.warning(place, &Path::Key(path, key), message);
            }
        }
    }

    /// Looks at whom a rule's limits are enforced on.
    fn enforcement(&self, descriptor: &Descriptor, path: &Path<'_>) {
        let Some(place) = descriptor.enforce_percent.place() else { return };
        let path = Path::Key(path, "enforce_percent");
        if is_true(&descriptor.shadow_mode) {
            let message = "says nothing beside `shadow_mode: true`, which enforces it on nobody";
            self.problems.warning(place, &path, message);
        } else if is_true(&descriptor.share_threshold) {
            let message = "all values share one bucket, so it is enforced on all of them or on none";
            self.problems.warning(place, &path, message);
        }
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
        if let Some(values) = &level.label {
            label.push('_');
            label.push_str(values);
        }
    }
    label.into()
}

/// Says the same of the same rule in every process, and never of two: the parts go in with their lengths.
/// Without a limit's id it is that of the rule, which has several.
fn rule_id(domain: &str, trail: &Trail<'_>, limit_id: Option<&str>) -> RuleId {
    let mut hasher = SipHasher13::new();
    let mut part = |kind: u8, text: &str| {
        hasher.write_u8(kind);
        hasher.write_u64(text.len() as u64);
        hasher.write(text.as_bytes());
    };
    part(0, domain);
    for level in trail {
        part(1, level.key);
        part(level.kind as u8, &level.id);
    }
    if let Some(limit_id) = limit_id {
        part(4, limit_id);
    }
    RuleId(hasher.finish())
}
