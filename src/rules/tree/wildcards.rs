//! Wildcards of one key: the first in the order of the file that matches a value, found without trying all.

use std::collections::BTreeMap;

use aho_corasick::AhoCorasick;
use hashbrown::HashMap;

use super::Node;
use crate::rules::rule::Source;

/// A value with `*` in it, each of which stands for any bytes, also none.
#[derive(Debug)]
struct Pattern {
    /// As it is written.
    text: Box<[u8]>,
    /// What stands between the first `*` and the last, without those: must be found in this order.
    middle: Box<[Box<[u8]>]>,
}

impl Pattern {
    /// Whether `between`, a value without the pattern's two ends, has all that is to stand between them.
    fn matches_between(&self, mut between: &[u8]) -> bool {
        self.middle.iter().all(|part| match find_bytes(between, part) {
            Some(start) => {
                between = between.get(start + part.len()..).unwrap_or_default();
                true
            }
            None => false,
        })
    }
}

fn find_bytes(text: &[u8], part: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, part)
}

/// Wildcards of one key, in the order of the file, and a way to those that may match without trying all.
#[derive(Debug, Default)]
pub(super) struct Wildcards {
    patterns: Vec<(Pattern, Node)>,
    /// Each pattern's place in the order.
    orders: HashMap<Box<[u8]>, usize>,
    /// By what stands before the first `*`, and under that by what stands after the last.
    by_prefix: Vec<ByLength<Vec<ByLength<Siblings>>>>,
}

/// What belongs to texts that are equally long, by the text. A list of these is in the order of their first pattern.
#[derive(Debug)]
struct ByLength<T> {
    length: usize,
    /// The first pattern's place in the order.
    first: usize,
    by_text: HashMap<Box<[u8]>, T>,
}

impl<T: Default> ByLength<T> {
    /// What belongs to a text, to which a pattern is added that comes behind all that are there.
    fn entry<'l>(list: &'l mut Vec<Self>, text: &[u8], order: usize) -> Option<&'l mut T> {
        let place = list.iter().position(|of_length| of_length.length == text.len()).unwrap_or_else(|| {
            list.push(Self { length: text.len(), first: order, by_text: HashMap::new() });
            list.len() - 1
        });
        Some(list.get_mut(place)?.by_text.entry_ref(text).or_default())
    }
}

/// Patterns with the same text at both ends.
#[derive(Debug, Default)]
struct Siblings {
    /// Their places in the order, ascending.
    orders: Vec<usize>,
    /// Finds those whose first part between the ends occurs in a value, where there are many of them.
    search: Option<Search>,
}

/// Patterns by their first part between the ends.
#[derive(Debug)]
struct Search {
    parts: AhoCorasick,
    /// For each of the parts, places in the order.
    orders: Vec<Vec<usize>>,
}

/// So many patterns are as soon tried one after the other.
const FEW: usize = 4;

/// What stands before a pattern's first `*`, and after its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ends<'a>(pub(super) &'a [u8], pub(super) &'a [u8]);

impl Wildcards {
    /// Adds a pattern behind those that are there; or says where the same one is written.
    pub(super) fn insert(&mut self, text: &str, node: Node) -> Result<(), Source> {
        let order = self.patterns.len();
        if let Some((_, twin)) = self.orders.get(text.as_bytes()).and_then(|twin| self.patterns.get(*twin)) {
            return Err(twin.source.clone());
        }
        self.orders.insert(text.as_bytes().into(), order);
        let mut parts = text.split('*').map(|part| Box::<[u8]>::from(part.as_bytes()));
        let prefix = parts.next().unwrap_or_default();
        let mut middle: Vec<_> = parts.collect();
        let suffix = middle.pop().unwrap_or_default();
        middle.retain(|part| !part.is_empty());

        let by_suffix = ByLength::entry(&mut self.by_prefix, &prefix, order);
        if let Some(siblings) = by_suffix.and_then(|list| ByLength::entry(list, &suffix, order)) {
            siblings.orders.push(order);
        }
        self.patterns.push((Pattern { text: text.as_bytes().into(), middle: middle.into() }, node));
        Ok(())
    }

    /// The first pattern of the file that matches, with its place among them.
    pub(super) fn find(&self, value: &[u8]) -> Option<(usize, &Node)> {
        let mut best: Option<(usize, &Node)> = None;
        for of_prefix in &self.by_prefix {
            if best.is_some_and(|(order, _)| order < of_prefix.first) {
                break;
            }
            let Some((prefix, rest)) = value.split_at_checked(of_prefix.length) else { continue };
            for of_suffix in of_prefix.by_text.get(prefix).into_iter().flatten() {
                if best.is_some_and(|(order, _)| order < of_suffix.first) {
                    break;
                }
                let at = rest.len().checked_sub(of_suffix.length);
                let Some((between, suffix)) = at.and_then(|at| rest.split_at_checked(at)) else { continue };
                let Some(siblings) = of_suffix.by_text.get(suffix) else { continue };
                if let Some((order, node)) = self.first_of(siblings, between)
                    && best.is_none_or(|(other, _)| order < other)
                {
                    best = Some((order, node));
                }
            }
        }
        best
    }

    /// The first of some patterns whose middle matches what stands between the ends.
    fn first_of(&self, siblings: &Siblings, between: &[u8]) -> Option<(usize, &Node)> {
        let matching = |order: usize| {
            let (pattern, node) = self.patterns.get(order)?;
            pattern.matches_between(between).then_some((order, node))
        };
        let tried = siblings.orders.iter().find_map(|order| matching(*order));
        let Some(search) = &siblings.search else { return tried };
        let mut first: Option<(usize, &Node)> = tried;
        for found in search.parts.find_overlapping_iter(between) {
            for order in search.orders.get(found.pattern().as_usize()).into_iter().flatten() {
                if first.is_some_and(|(other, _)| other <= *order) {
                    break;
                }
                first = matching(*order).or(first);
            }
        }
        first
    }

    /// Makes ready to be searched what has been inserted.
    pub(super) fn prepare(&mut self) {
        let by_suffix =
            self.by_prefix.iter_mut().flat_map(|of_prefix| of_prefix.by_text.values_mut()).flatten();
        for siblings in by_suffix.flat_map(|of_suffix| of_suffix.by_text.values_mut()) {
            if siblings.orders.len() <= FEW {
                continue;
            }
            let mut by_part: BTreeMap<&[u8], Vec<usize>> = BTreeMap::new();
            let mut without = Vec::new();
            for order in &siblings.orders {
                match self.patterns.get(*order).and_then(|(pattern, _)| pattern.middle.first()) {
                    Some(part) => by_part.entry(part).or_default().push(*order),
                    None => without.push(*order),
                }
            }
            // An automaton that cannot be built, for being too large, leaves them to be tried one after the other.
            if let Ok(parts) = AhoCorasick::new(by_part.keys()) {
                siblings.search = Some(Search { parts, orders: by_part.into_values().collect() });
                siblings.orders = without;
            }
        }
    }

    /// Patterns in the order of the file.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.patterns.iter().map(|(pattern, node)| (&*pattern.text, node))
    }

    /// For each pattern, what stands before and behind its `*`, of which several in a row are as good as one; nothing where
    /// there is more to it.
    pub(super) fn iter_with_ends(&self) -> impl Iterator<Item = (Option<Ends<'_>>, &Node)> {
        self.patterns.iter().map(|(Pattern { text, middle }, node)| {
            let ends = || {
                let first = text.iter().position(|byte| *byte == b'*')?;
                let last = text.iter().rposition(|byte| *byte == b'*')?;
                Some(Ends(text.get(..first)?, text.get(last + 1..)?))
            };
            (if middle.is_empty() { ends() } else { None }, node)
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.patterns.len()
    }

    pub(super) fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.patterns.iter_mut().map(|(_, node)| node)
    }
}
