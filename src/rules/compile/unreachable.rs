//! Rules that nothing ever meets, since others of their key come first for all that they match.
//!
//! A warning is certain. Where it depends on more than a few values, nothing is said: of what a regular expression leaves
//! to the patterns behind it, for one.

use std::sync::Arc;

use crate::rules::explain::text;
use crate::rules::problem::{Problem, Severity, shorten};
use crate::rules::rule::Source;
use crate::rules::tree::{Branch, Choices, Domain, Node, Pattern};

/// So many of a rule's values, and of the rules that come before it, are told.
const MAX_TOLD: usize = 5;

/// Warns of all rules of a domain that nothing ever meets.
pub(super) fn unreachable(domain: &Domain, found: &mut Vec<Problem>) {
    of_branch(&domain.root, found);
}

fn of_branch(branch: &Branch, found: &mut Vec<Problem>) {
    for choices in branch.keys.values() {
        of_choices(choices, found);
        choices.nodes().for_each(|node| of_branch(&node.below, found));
    }
}

fn of_choices(choices: &Choices, found: &mut Vec<Problem>) {
    of_lists(choices, found);
    of_ranges(choices, found);
    of_patterns(choices, found);
    if let (Some(bare), Some(first)) = (&choices.bare, choices.patterns.any_value()) {
        warn(bare, "the key without a value is", &[first], found);
    }
}

fn of_lists(choices: &Choices, found: &mut Vec<Problem>) {
    let values = choices.lists.iter();
    let mut hidden: Vec<(&Node, &[u8], &Node)> =
        values.filter_map(|(value, node)| Some((node, value, choices.exact.get(value)?))).collect();
    // One warning for each rule: a list may be long.
    hidden.sort_unstable_by_key(|(node, value, _)| (std::ptr::from_ref(*node), *value));
    for values in hidden.chunk_by(|(one, ..), (other, ..)| std::ptr::eq(*one, *other)) {
        let Some((node, ..)) = values.first() else { continue };
        let firsts: Vec<&Node> = values.iter().map(|(.., first)| *first).collect();
        let told = values.iter().take(MAX_TOLD).map(|(_, value, _)| format!("`{}`", shorten(&text(value))));
        let told = told.collect::<Vec<_>>().join(", ");
        let what = match values.len() {
            1 => format!("value {told} of this list is"),
            count if count > MAX_TOLD => {
                format!("values {told} and {} more of this list are", count - MAX_TOLD)
            }
            _ => format!("values {told} of this list are"),
        };
        warn(node, &what, &firsts, found);
    }
}

fn of_ranges(choices: &Choices, found: &mut Vec<Problem>) {
    for (range, node, longer) in choices.ranges.covered() {
        warn(node, &format!("range `{range}` is"), &longer, found);
    }
    if choices.exact.is_empty() && choices.lists.iter().next().is_none() {
        return;
    }
    for (range, node) in choices.ranges.iter() {
        let Some(address) = range.address() else { continue };
        let address = address.to_string();
        if let Some((_, first)) = choices.find(address.as_bytes())
            && !std::ptr::eq(first, node)
        {
            // An IPv4 address may come mapped, and an IPv6 address with other zeros.
            let what = format!("range `{range}`, but for other spellings of the address, is");
            warn(node, &what, &[first], found);
        }
    }
}

fn of_patterns(choices: &Choices, found: &mut Vec<Problem>) {
    let mut covered: Vec<*const Node> = Vec::new();
    for (pattern, node, first) in choices.patterns.covered() {
        covered.push(node);
        let what = match pattern {
            Pattern::Wildcard(wildcard) => format!("value `{}` is", shorten(&text(wildcard))),
            Pattern::Regex(regex) => format!("regex `{}` is", shorten(regex)),
        };
        warn(node, &what, &[first], found);
    }
    for (regex, node, values) in choices.patterns.narrow() {
        if covered.contains(&std::ptr::from_ref(node)) {
            continue;
        }
        let firsts: Vec<&Node> =
            values.iter().filter_map(|value| choices.find(value)).map(|(_, first)| first).collect();
        let is_met = firsts.iter().any(|first| std::ptr::eq(*first, node));
        if values.is_empty() {
            push(node, format!("regex `{}` matches no value at all", shorten(regex)), found);
        } else if !is_met {
            warn(node, &format!("regex `{}` is", shorten(regex)), &firsts, found);
        }
    }
}

/// Warns that what `node` says, or a part of it, is never reached, because of the rules that come before.
fn warn(node: &Node, what: &str, firsts: &[&Node], found: &mut Vec<Problem>) {
    let is_exemption = node.rule.is_none() && node.below.keys.is_empty();
    let so = if is_exemption { "so it exempts nobody" } else { "so it says nothing" };
    let mut sources: Vec<&Source> = Vec::new();
    for first in firsts {
        if sources.len() < MAX_TOLD && !sources.contains(&&first.source) {
            sources.push(&first.source);
        }
    }
    let rules = match &sources[..] {
        [one] => format!("the rule at {one} matches first"),
        several => {
            let several: Vec<String> = several.iter().map(ToString::to_string).collect();
            format!("the rules at {} match first", several.join(", "))
        }
    };
    push(node, format!("{what} never reached, {so}: {rules}"), found);
}

fn push(node: &Node, message: String, found: &mut Vec<Problem>) {
    found.push(Problem {
        file: Arc::clone(&node.source.file),
        place: node.source.place,
        path: String::new(),
        severity: Severity::Warning,
        message,
    });
}
