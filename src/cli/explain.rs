//! `weir explain`: the way of descriptors through the rules, as text.

use std::fmt::Write as _;

use super::descriptor::DescriptorArg;
use crate::decision::Mode;
use crate::rules::{Allowance, Applies, Domain, Entry, Rule, RuleSet, text as text_of};

/// Tells for each descriptor of a request what it meets, and why.
pub(super) fn explain(set: &RuleSet, name: &str, descriptors: &[DescriptorArg]) -> String {
    let Some(domain) = set.domain(name) else {
        let known: Vec<_> = set.domains().map(|(name, _)| format!("`{name}`")).collect();
        return format!(
            "there are no rules for domain `{name}`, so every call for it is OK; there is {}\n",
            if known.is_empty() { "no domain".into() } else { known.join(", ") }
        );
    };
    let entries: Vec<Vec<Entry<'_>>> = descriptors.iter().map(DescriptorArg::entries).collect();
    let applies = domain.resolve(entries.iter().map(|entries| Some(&entries[..])));
    let mut text = String::new();
    for ((descriptor, entries), applies) in descriptors.iter().zip(&entries).zip(&applies) {
        // Writing to a String does not fail.
        _ = write_one(&mut text, name, domain, descriptor, entries, applies);
    }
    text
}

fn write_one(
    text: &mut String,
    name: &str,
    domain: &Domain,
    descriptor: &DescriptorArg,
    entries: &[Entry<'_>],
    applies: &Applies<'_>,
) -> std::fmt::Result {
    writeln!(text, "{descriptor}")?;
    let explanation = domain.explain(entries);
    for step in &explanation.steps {
        match &step.matched {
            Some((what, source)) => writeln!(text, "  {}: matches {what} ({source})", step.entry)?,
            None => writeln!(text, "  {}: matches nothing", step.entry)?,
        }
        for near in &step.near {
            writeln!(text, "    not: {near}")?;
        }
    }
    if let Some(why_not) = &explanation.why_not {
        writeln!(text, "  no limit: {why_not}")?;
    }
    match applies {
        Applies::Nothing => {}
        Applies::Replaced(rule) => {
            writeln!(text, "  no limit: another descriptor's limit replaces `{}`", rule.name)?
        }
        Applies::Rule(rule) => write_rule(text, name, entries, rule)?,
    }
    Ok(())
}

fn write_rule(text: &mut String, domain: &str, entries: &[Entry<'_>], rule: &Rule) -> std::fmt::Result {
    write!(text, "  limit: ")?;
    let Allowance::Limited { limit, requests_per_unit, unit } = &rule.allowance else {
        return writeln!(text, "none, it is unlimited ({})", rule.source);
    };
    if *requests_per_unit == 0 {
        write!(text, "0 per {unit}: nothing is admitted")?;
    } else {
        write!(text, "{requests_per_unit} per {unit}, {} at once", limit.burst())?;
    }
    let mode = match rule.mode {
        Mode::Enforced => "",
        Mode::Quota => ", a quota: denies when all quotas of a request are over",
        Mode::Shadow => ", in shadow mode: denies nothing",
    };
    writeln!(text, "{mode} ({})", rule.source)?;

    write!(text, "  bucket: domain `{domain}`")?;
    for (Entry { key, value }, shared) in entries.iter().zip(&rule.shared) {
        let (value, note) = match shared {
            Some(pattern) => (&pattern[..], " shared by all that match"),
            None => (*value, ""),
        };
        write!(text, ", {}={}{note}", text_of(key), text_of(value))?;
    }
    writeln!(text, ", limit `{}`", rule.limit_id)
}
