//! `weir explain`: the way of descriptors through the rules, as text.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::descriptor::DescriptorArg;
use super::hit;
use super::stores::Stores;
use crate::bucket::{Algorithm, Outcome, Retry};
use crate::clock::Clock;
use crate::decision::{Mode, OnRedisFailure, Verdict};
use crate::rules::{
    self, Allowance, Denial, Domain, Entry, LoadError, OnTier, Resolved, Rule, RuleLimit, RuleSet,
    text as text_of,
};
use crate::service::trial::{Trial, is_enforced_on, on_unused_buckets};

/// Say which limit a descriptor meets, which bucket it charges, and why other rules do not apply
#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// Directory of rule files, or a single file
    #[arg(long, env = "WEIR_RULES", value_name = "PATH", default_value = "config")]
    rules: PathBuf,

    /// Domain, as the proxy names it
    #[arg(long)]
    domain: String,

    /// Say also what would be decided of a request of so many hits for each descriptor, if nobody had come before; 0 asks
    /// whether there is room
    #[arg(long, value_name = "COUNT")]
    hits: Option<u64>,

    #[command(flatten)]
    stores: Stores,

    /// Descriptors of one request
    #[arg(value_name = "KEY=VALUE[,KEY=VALUE]...", required = true)]
    descriptors: Vec<DescriptorArg>,
}

impl Explain {
    /// The rules that are asked about.
    ///
    /// # Errors
    /// As [`rules::load`], and when they name a store that there is not.
    pub(super) fn load(&self) -> Result<RuleSet, LoadError> {
        rules::load(&self.rules, Clock::system().now()).and_then(|set| self.stores.check(set))
    }

    /// Tells by these rules what was asked for.
    ///
    /// # Errors
    /// When no request can be made of the arguments.
    pub(super) fn run(&self, set: RuleSet) -> Result<String, String> {
        let mut text = explain(&set, &self.domain, &self.descriptors);
        if let Some(hits) = self.hits {
            let request = hit::request(&self.domain, &self.descriptors, Some(hits), false);
            let trial =
                on_unused_buckets(Arc::new(set), &request).map_err(|status| status.message().to_owned())?;
            // Writing to a String does not fail.
            _ = write_trial(&mut text, &self.descriptors, hits, &trial);
        }
        Ok(text)
    }
}

/// Tells the decision, and of descriptors with several limits what came of each.
fn write_trial(
    text: &mut String,
    descriptors: &[DescriptorArg],
    hits: u64,
    trial: &Trial,
) -> std::fmt::Result {
    let hits = match hits {
        0 => "a look at unused buckets".to_owned(),
        1 => "1 hit on unused buckets".to_owned(),
        hits => format!("{hits} hits on unused buckets"),
    };
    let never = |verdict: &Verdict| verdict.outcome == Outcome::Over(Retry::Never);
    let never = trial.limits.iter().flatten().any(|(_, verdict)| never(verdict));
    write!(text, "{hits}: {}", hit::text(descriptors, &trial.response, never))?;
    for (descriptor, limits) in descriptors.iter().zip(&trial.limits).filter(|(_, limits)| limits.len() > 1) {
        writeln!(text, "  {descriptor}: of its limits")?;
        for (id, Verdict { outcome, remaining, .. }) in limits {
            let room = match outcome {
                Outcome::Fits => "has room",
                Outcome::Over(Retry::In(_)) => "has no room now",
                Outcome::Over(Retry::Never) => "never has room for so many",
            };
            writeln!(text, "    `{id}` {room}, {remaining} left")?;
        }
    }
    Ok(())
}

/// Tells for each descriptor of a request what it meets, and why.
fn explain(set: &RuleSet, name: &str, descriptors: &[DescriptorArg]) -> String {
    let Some(domain) = set.domain(name) else {
        let known: Vec<_> = set.domains().map(|(name, _)| format!("`{name}`")).collect();
        return format!(
            "there are no rules for domain `{name}`, so every call for it is OK; there is {}\n",
            if known.is_empty() { "no domain".into() } else { known.join(", ") }
        );
    };
    let entries: Vec<Vec<Entry<'_>>> = descriptors.iter().map(DescriptorArg::entries).collect();
    let resolved = domain.resolve(entries.iter().map(|entries| Some(&entries[..])));
    let mut text = String::new();
    for (descriptor, entries) in descriptors.iter().zip(&entries) {
        // Writing to a String does not fail.
        _ = write_one(&mut text, name, domain, descriptor, entries, &resolved);
    }
    text
}

fn write_one(
    text: &mut String,
    name: &str,
    domain: &Domain,
    descriptor: &DescriptorArg,
    entries: &[Entry<'_>],
    resolved: &Resolved<'_>,
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
    let Some(rule) = explanation.rule else { return Ok(()) };
    if let Some(OnTier { key, tier, is_default, .. }) = rule.tier(entries) {
        let how = if is_default { "the default of" } else { "named by" };
        writeln!(text, "  tier: `{}`, {how} `{key}`", tier.name)?;
    }
    for (limit, _) in rule.met(entries) {
        if resolved.is_replaced(limit) {
            writeln!(text, "  no limit: another descriptor's limit replaces `{}`", limit.name)?;
        } else {
            write_limit(text, name, domain, entries, rule, limit)?;
        }
    }
    if rule.met(entries).all(|(limit, _)| limit.allowance == Allowance::Unlimited) {
        // What is never over denies nobody, and asks no store.
        return Ok(());
    }
    if rule.enforce_percent < 100 {
        let is_enforced = is_enforced_on(entries, name, rule);
        let on_this = if is_enforced { "this is one of them" } else { "this is none of them" };
        writeln!(text, "  enforced: on {} callers of a hundred; {on_this}", rule.enforce_percent)?;
    }
    if let Some(share) = rule.all_limits().find_map(|limit| limit.warn_at) {
        writeln!(text, "  warns: from {share} of it on")?;
    }
    if rule.cost > 1 {
        writeln!(text, "  cost: a hit takes {} tokens", rule.cost)?;
    }
    match rule.on_redis_failure {
        Some(OnRedisFailure::Deny) => writeln!(text, "  without Redis: denied"),
        Some(OnRedisFailure::Allow) => writeln!(text, "  without Redis: admitted"),
        Some(OnRedisFailure::Local) | None => Ok(()),
    }
}

fn write_limit(
    text: &mut String,
    name: &str,
    domain: &Domain,
    entries: &[Entry<'_>],
    rule: &Rule,
    rule_limit: &RuleLimit,
) -> std::fmt::Result {
    write!(text, "  limit: ")?;
    let Allowance::Limited { limit, requests_per_unit, unit } = rule_limit.allowance else {
        return writeln!(text, "none, it is unlimited ({})", rule_limit.source);
    };
    if requests_per_unit == 0 {
        write!(text, "0 per {unit}: nothing is admitted")?;
    } else {
        match limit.algorithm() {
            Algorithm::TokenBucket => {
                write!(text, "{requests_per_unit} per {unit}, {} at once", limit.burst())?
            }
            Algorithm::FixedWindow(_) => write!(text, "{requests_per_unit} in each {unit} (fixed window)")?,
            Algorithm::SlidingWindow => write!(text, "{requests_per_unit} over any {unit} (sliding window)")?,
        }
    }
    let mode = match rule.mode {
        Mode::Enforced => "",
        Mode::Quota => ", a quota: denies when all quotas of a request are over",
        Mode::Shadow => ", in shadow mode: denies nothing",
    };
    let overdraft = if rule.overdraft { ", charged after the fact: lands as debt if need be" } else { "" };
    writeln!(text, "{mode}{overdraft} ({})", rule_limit.source)?;

    write!(text, "  bucket: domain `{name}`")?;
    for (Entry { key, value }, shared) in entries.iter().zip(&rule.shared) {
        let (value, note) = match shared {
            Some(pattern) => (&pattern[..], " shared by all that match"),
            None => (*value, ""),
        };
        write!(text, ", {}={}{note}", text_of(key), text_of(value))?;
    }
    write!(text, ", limit `{}`", rule_limit.limit_id)?;
    if let Some(store) = domain.redis() {
        write!(text, ", in the Redis `{store}`")?;
    }
    writeln!(text)?;
    match rule_limit.denial.as_deref() {
        Some(Denial { content_type, body }) => {
            writeln!(text, "  who is denied gets: {} ({content_type})", text_of(body))
        }
        None => Ok(()),
    }
}
