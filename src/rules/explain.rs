//! Why a descriptor meets the limit that it meets, or none: the steps of the lookup, and what came near.

use super::rule::{Rule, Source};
use super::tree::{Branch, Choices, Domain, Entry, Matched};

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
        Matched::Wildcard => {
            let first = branch.keys.get(entry.key).and_then(|choices| first_pattern(choices, entry));
            format!("`{key}` with value `{}`", first.unwrap_or_default())
        }
        Matched::Bare => format!("`{key}` with any value"),
    }
}

/// The text of the pattern whose node the lookup returned.
fn first_pattern(choices: &Choices, entry: &Entry<'_>) -> Option<String> {
    let found = choices.wildcards.find(entry.value)?;
    let (pattern, _) = choices.wildcards.iter().find(|(_, node)| std::ptr::eq(node, found))?;
    Some(text(pattern.text()))
}

/// Rules of the same key that were asked before the one that matched, or that nearly did.
fn near(branch: &Branch, entry: &Entry<'_>, matched: Option<Matched>) -> Vec<String> {
    let Some(choices) = branch.keys.get(entry.key) else { return Vec::new() };
    if matched == Some(Matched::Exact) {
        return Vec::new();
    }
    let value = text(entry.value);
    let mut exact: Vec<_> = choices
        .exact
        .iter()
        .map(|(other, node)| {
            (strsim::normalized_damerau_levenshtein(&text(other), &value), text(other), &node.source)
        })
        .collect();
    exact.sort_by(|(one, a, _), (other, b, _)| other.total_cmp(one).then_with(|| a.cmp(b)));
    let exact =
        exact.into_iter().map(|(_, other, source)| format!("value `{other}` is another value ({source})"));

    let found = choices.wildcards.find(entry.value);
    let wildcards = choices
        .wildcards
        .iter()
        .take_while(|(_, node)| found.is_none_or(|found| !std::ptr::eq(node, found)))
        .map(|(pattern, node)| format!("value `{}` does not match ({})", text(pattern.text()), node.source));
    exact.take(MAX_NEAR).chain(wildcards.take(MAX_NEAR)).collect()
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
