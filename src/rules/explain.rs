//! Why a descriptor meets the limit that it meets, or none: the steps of the lookup, and what came near.

use super::rule::{Rule, Source};
use super::tree::{Branch, Domain, Entry, Matched, Pattern};

/// So many near misses are told of one entry.
const MAX_NEAR: usize = 5;

/// The way of a descriptor through the rules.
#[derive(Debug)]
pub struct Explanation<'r> {
    /// One for each entry that was looked at.
    pub steps: Vec<Step>,
    /// The rule that applies; without one, `why_not` says why.
    pub rule: Option<&'r Rule>,
    /// Why no limit applies.
    pub why_not: Option<String>,
}

/// One entry's way.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// The entry, as `key=value`.
    pub entry: String,
    /// What it matched, and where that is written.
    pub matched: Option<(String, Source)>,
    /// Rules that it did not match, and why not.
    pub near: Vec<String>,
}

impl Domain {
    /// Follows a descriptor as [`Domain::find`] does, and tells the way.
    #[must_use]
    pub fn explain(&self, entries: &[Entry<'_>]) -> Explanation<'_> {
        let mut explanation = Explanation { steps: Vec::new(), rule: None, why_not: None };
        if entries.is_empty() {
            explanation.why_not = Some("the descriptor has no entries".into());
            return explanation;
        }
        let mut branch = &self.root;
        for (index, entry) in entries.iter().enumerate() {
            let found = branch.step(entry);
            explanation.steps.push(Step {
                entry: format!("{}={}", text(entry.key), text(entry.value)),
                matched: found.map(|(matched, node)| (describe(branch, entry, matched), node.source.clone())),
                near: near(branch, entry, found.map(|(matched, _)| matched)),
            });
            let Some((_, node)) = found else {
                explanation.why_not = Some(no_match(branch, entry));
                return explanation;
            };
            let more = entries.len() - index - 1;
            if more > 0 && node.below.keys.is_empty() {
                let tail = if more == 1 { "another entry" } else { "further entries" };
                explanation.why_not = Some(format!("the rule ends here, and the descriptor has {tail}"));
                return explanation;
            }
            if more == 0 {
                explanation.rule = node.rule.as_ref();
                if explanation.rule.is_none() {
                    explanation.why_not = Some(if node.below.keys.is_empty() {
                        "the rule has no limit, so it exempts what it matches".into()
                    } else {
                        format!(
                            "the rule has no limit on this level; the rules below want another entry: {}",
                            keys(&node.below)
                        )
                    });
                }
            }
            branch = &node.below;
        }
        explanation
    }
}

fn describe(branch: &Branch, entry: &Entry<'_>, matched: Matched) -> String {
    let key = text(entry.key);
    match matched {
        Matched::Exact => format!("`{key}` with value `{}`", text(entry.value)),
        Matched::Listed => format!("`{key}` with value `{}` of a list", text(entry.value)),
        Matched::Range(range) => format!("`{key}` in range `{range}`"),
        Matched::Pattern => {
            // The one whose node the lookup returned.
            let patterns = branch.keys.get(entry.key).and_then(|choices| {
                let found = choices.patterns.find(entry.value)?;
                choices.patterns.iter().find(|(_, node)| std::ptr::eq(*node, found))
            });
            format!(
                "`{key}` with {}",
                patterns.map_or_else(String::new, |(pattern, _)| pattern_text(pattern))
            )
        }
        Matched::Bare => format!("`{key}` with any value"),
    }
}

fn pattern_text(pattern: Pattern<'_>) -> String {
    match pattern {
        Pattern::Wildcard(wildcard) => format!("value `{}`", text(wildcard)),
        Pattern::Regex(regex) => format!("regex `{regex}`"),
    }
}

/// Rules of the same key that were asked before the one that matched, or that nearly did.
fn near(branch: &Branch, entry: &Entry<'_>, matched: Option<Matched>) -> Vec<String> {
    let Some(choices) = branch.keys.get(entry.key) else { return Vec::new() };
    if matches!(matched, Some(Matched::Exact | Matched::Listed)) {
        return Vec::new();
    }
    let value = text(entry.value);
    let values = choices.exact.iter().map(|(other, node)| (&**other, node)).chain(choices.lists.iter());
    let mut values: Vec<_> = values
        .map(|(other, node)| {
            (strsim::normalized_damerau_levenshtein(&text(other), &value), text(other), &node.source)
        })
        .collect();
    values.sort_by(|(one, a, _), (other, b, _)| other.total_cmp(one).then_with(|| a.cmp(b)));
    let values =
        values.into_iter().map(|(_, other, source)| format!("value `{other}` is another value ({source})"));
    let mut ranges: Vec<_> = choices.ranges.iter().map(|(range, node)| (range.to_string(), node)).collect();
    ranges.sort_by(|(one, _), (other, _)| one.cmp(other));
    let ranges = ranges.into_iter().map(|(range, node)| format!("not in range `{range}` ({})", node.source));
    if matches!(matched, Some(Matched::Range(_))) {
        return values.take(MAX_NEAR).collect();
    }

    let found = choices.patterns.find(entry.value);
    let patterns = choices
        .patterns
        .iter()
        .take_while(|(_, node)| found.is_none_or(|found| !std::ptr::eq(*node, found)))
        .map(|(pattern, node)| format!("{} does not match ({})", pattern_text(pattern), node.source));
    values.take(MAX_NEAR).chain(ranges.take(MAX_NEAR)).chain(patterns.take(MAX_NEAR)).collect()
}

fn no_match(branch: &Branch, entry: &Entry<'_>) -> String {
    let key = text(entry.key);
    if branch.keys.contains_key(entry.key) {
        return format!("no rule with key `{key}` matches this value, and none has the key without a value");
    }
    format!("no rule on this level has the key `{key}`; there is {}", keys(branch))
}

/// The keys of a level, in order; of many only the first.
fn keys(branch: &Branch) -> String {
    let mut keys: Vec<_> = branch.keys.keys().map(|key| format!("`{}`", text(key))).collect();
    keys.sort();
    let more = keys.len().saturating_sub(MAX_NEAR);
    keys.truncate(MAX_NEAR);
    match (keys.is_empty(), more) {
        (true, _) => "none".into(),
        (false, 0) => keys.join(", "),
        (false, more) => format!("{} and {more} more", keys.join(", ")),
    }
}

/// Bytes for people to read: what cannot be printed is written as it can be typed, `\xff`.
pub(crate) fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                c.to_string().bytes().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
            } else {
                text.push(c);
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}
