//! The compiled rules of a domain, and how a descriptor finds its own.
//!
//! A descriptor is matched entry by entry from the top. At each level the order is: the exact value, then lists of
//! values, then the longest address range, then wildcards and regular expressions in the order of the file, then the key
//! without a value. What matched is final: there is no way back up to try another, a limit further up is not inherited,
//! and a limit applies only to descriptors that end where it stands.
//!
//! A level costs one table lookup for the key, one for the value, one among the values of lists, one for each length of
//! prefix that ranges have, one for each length of what wildcards have before their first `*`, and where that is found, one
//! for each length of what they have after their last, however many rules there are. Of wildcards with the same text at both
//! ends, such as `*a*` and `*b*`, one pass over the value finds those whose middle occurs in it. Only regular expressions are
//! tried one after the other, and there are few of them.

use std::sync::Arc;

use hashbrown::HashMap;

use super::file::HashTag;
use super::reply::Headers;
use super::rule::{Rule, Source};
use crate::telemetry::instrument::Counter;
use crate::telemetry::tally::Tally;

mod language;
mod patterns;
mod ranges;
mod wildcards;

pub(super) use patterns::{MAX_REGEXES, Pattern, Patterns, regex};
pub use ranges::Range;
pub(super) use ranges::Ranges;

/// One entry of a request's descriptor. Bytes, for that is what a header holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// All rules of one domain.
#[derive(Debug, Default)]
pub struct Domain {
    pub(super) root: Branch,
    /// The store in Redis that its buckets are in, and where that is written.
    pub(super) redis: Option<(String, Source)>,
    /// Headers that tell of its limits, if not those of the process.
    pub headers: Option<Arc<Headers>>,
    /// By what its keys are brought together in a Cluster.
    pub(super) hash_tag: Option<HashTag>,
    /// Counts descriptors that meet no limit.
    pub unmatched: Arc<Counter>,
    /// Counts what limits decide that requests bring along.
    pub overrides: Tally,
}

/// Rules on one level, by entry key.
#[derive(Debug, Default)]
pub(super) struct Branch {
    pub(super) keys: HashMap<Box<[u8]>, Choices>,
}

/// Rules with one key, in the order in which they are tried.
#[derive(Debug, Default)]
pub(super) struct Choices {
    pub(super) exact: HashMap<Box<[u8]>, Node>,
    pub(super) lists: Lists,
    pub(super) ranges: Ranges,
    pub(super) patterns: Patterns,
    pub(super) bare: Option<Node>,
}

/// Rules for several values each.
#[derive(Debug, Default)]
pub(super) struct Lists {
    nodes: Vec<Node>,
    /// The node of each value.
    by_value: HashMap<Box<[u8]>, usize>,
}

impl Lists {
    /// Adds a rule for some values; or says of which one there is a rule already, and where that is written.
    pub(super) fn insert<'v>(&mut self, values: &[&'v str], node: Node) -> Result<(), (&'v str, Source)> {
        let place = self.nodes.len();
        self.nodes.push(node);
        for value in values {
            if let Some(twin) = self.by_value.insert(value.as_bytes().into(), place)
                && let Some(twin) = self.nodes.get(twin)
            {
                return Err((value, twin.source.clone()));
            }
        }
        Ok(())
    }

    fn find(&self, value: &[u8]) -> Option<&Node> {
        if self.by_value.is_empty() {
            return None;
        }
        self.nodes.get(*self.by_value.get(value)?)
    }

    /// The values, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.by_value.iter().filter_map(|(value, place)| Some((&**value, self.nodes.get(*place)?)))
    }
}

/// What matched an entry.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) source: Source,
    pub(super) rule: Option<Rule>,
    pub(super) below: Branch,
}

/// How an entry was matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matched {
    Exact,
    Listed,
    Range(Range),
    Pattern,
    Bare,
}

impl Domain {
    /// The store in Redis that its buckets are in, if it names one.
    #[must_use]
    pub fn redis(&self) -> Option<&str> {
        self.redis.as_ref().map(|(name, _)| name.as_str())
    }

    /// By what its keys are brought together in a Redis Cluster, if they are.
    #[must_use]
    pub fn hash_tag(&self) -> Option<&HashTag> {
        self.hash_tag.as_ref()
    }

    /// The rule whose limit applies to a descriptor, if there is one.
    #[must_use]
    pub fn find(&self, entries: &[Entry<'_>]) -> Option<&Rule> {
        let (last, way) = entries.split_last()?;
        let mut branch = &self.root;
        for entry in way {
            branch = &branch.step(entry)?.1.below;
        }
        branch.step(last)?.1.rule.as_ref()
    }

    /// How many limits there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules().map(|rule| rule.all_limits().count()).sum()
    }

    /// Whether there is no limit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Domain {
    /// All rules.
    pub fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.root.nodes().filter_map(|node| node.rule.as_ref())
    }
}

impl Branch {
    /// Does something to every rule here and below.
    pub(super) fn for_each_rule(&mut self, change: &mut impl FnMut(&mut Rule)) {
        for node in self.keys.values_mut().flat_map(Choices::nodes_mut) {
            node.rule.iter_mut().for_each(&mut *change);
            node.below.for_each_rule(change);
        }
    }

    /// Makes ready to be searched what has been put here and below.
    pub(super) fn prepare(&mut self) {
        for choices in self.keys.values_mut() {
            choices.patterns.prepare();
            choices.nodes_mut().for_each(|node| node.below.prepare());
        }
    }

    /// What one entry matches on this level.
    pub(super) fn step(&self, entry: &Entry<'_>) -> Option<(Matched, &Node)> {
        self.keys.get(entry.key)?.find(entry.value)
    }

    /// All nodes here and below.
    fn nodes(&self) -> Box<dyn Iterator<Item = &Node> + '_> {
        let here = self.keys.values().flat_map(Choices::nodes);
        Box::new(here.flat_map(|node| std::iter::once(node).chain(node.below.nodes())))
    }
}

impl Choices {
    /// What a value matches.
    pub(super) fn find(&self, value: &[u8]) -> Option<(Matched, &Node)> {
        if let Some(node) = self.exact.get(value) {
            return Some((Matched::Exact, node));
        }
        if let Some(node) = self.lists.find(value) {
            return Some((Matched::Listed, node));
        }
        if let Some((range, node)) = self.ranges.find(value) {
            return Some((Matched::Range(range), node));
        }
        if let Some(node) = self.patterns.find(value) {
            return Some((Matched::Pattern, node));
        }
        self.bare.as_ref().map(|node| (Matched::Bare, node))
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.exact
            .values()
            .chain(&self.lists.nodes)
            .chain(self.ranges.nodes())
            .chain(self.patterns.iter().map(|(_, node)| node))
            .chain(&self.bare)
    }

    fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.exact
            .values_mut()
            .chain(&mut self.lists.nodes)
            .chain(self.ranges.nodes_mut())
            .chain(self.patterns.nodes_mut())
            .chain(&mut self.bare)
    }
}
