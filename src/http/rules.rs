//! The rules in force, and what is wrong with those that are not.

use std::time::{Duration, UNIX_EPOCH};

use http::StatusCode;
use serde::Serialize;

use super::{Answer, write};
use crate::bucket::Algorithm;
use crate::clock::Micros;
use crate::decision::{Mode, OnRedisFailure};
use crate::rules::{Allowance, Domain, InForce, Problem, Refused, Rule, RuleLimit, RuleSet, Tier, Watch};

#[derive(Serialize)]
struct Told<'r> {
    /// `null` until some are loaded.
    in_force: Option<InForceTold>,
    /// What the directory holds now, if that is not what is in force.
    refused: Option<RefusedTold>,
    refusals: u64,
    domains: Vec<DomainTold<'r>>,
}

#[derive(Serialize)]
struct InForceTold {
    version: u64,
    hash: String,
    since: String,
    files: usize,
    limits: usize,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct RefusedTold {
    hash: String,
    at: String,
    reason: String,
    problems: Vec<String>,
}

#[derive(Serialize)]
struct DomainTold<'r> {
    name: &'r str,
    rules: Vec<RuleTold<'r>>,
}

#[derive(Serialize)]
struct RuleTold<'r> {
    rule: &'r str,
    source: String,
    mode: &'static str,
    cost: u32,
    overdraft: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_redis_failure: Option<&'static str>,
    limits: Vec<LimitTold<'r>>,
    /// The limits of each tier, where the rule takes them from tiers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tiers: Vec<TierTold<'r>>,
}

#[derive(Serialize)]
struct TierTold<'r> {
    tier: &'r str,
    limits: Vec<LimitTold<'r>>,
}

#[derive(Serialize)]
struct LimitTold<'r> {
    id: &'r str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'r str,
    source: String,
    #[serde(flatten)]
    allowance: AllowanceTold,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    replaces: &'r [Box<str>],
}

#[derive(Serialize)]
#[serde(untagged)]
enum AllowanceTold {
    Unlimited { unlimited: bool },
    Limited { requests_per_unit: u32, unit: String, burst: u64, algorithm: &'static str },
}

/// All there is to say.
pub(super) fn answer(watch: &Watch) -> Answer {
    let status = watch.status();
    let rules = watch.current().load_full();
    let told = Told {
        in_force: status.in_force.as_ref().map(in_force),
        refused: status.refused.as_ref().map(refused),
        refusals: status.refusals,
        domains: rules.iter().flat_map(|rules| domains(rules)).collect(),
    };
    write(StatusCode::OK, &told)
}

fn in_force(set: &InForce) -> InForceTold {
    InForceTold {
        version: set.version,
        hash: set.hash.to_string(),
        since: time(set.since),
        files: set.files,
        limits: set.limits,
        warnings: set.warnings.iter().map(Problem::to_string).collect(),
    }
}

fn refused(set: &Refused) -> RefusedTold {
    RefusedTold {
        hash: set.hash.to_string(),
        at: time(set.at),
        reason: set.reason.clone(),
        problems: set.problems.iter().map(Problem::to_string).collect(),
    }
}

fn time(at: Micros) -> String {
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_micros(at)).to_string()
}

fn domains(rules: &RuleSet) -> impl Iterator<Item = DomainTold<'_>> {
    rules.domains().map(|(name, domain)| DomainTold { name, rules: rules_of(domain) })
}

/// The rules of a domain, in the order of their names.
fn rules_of(domain: &Domain) -> Vec<RuleTold<'_>> {
    let mut rules: Vec<_> = domain.rules().map(rule).collect();
    rules.sort_by_key(|rule| rule.rule);
    rules
}

fn rule(rule: &Rule) -> RuleTold<'_> {
    RuleTold {
        rule: &rule.label,
        source: rule.source.to_string(),
        mode: match rule.mode {
            Mode::Enforced => "enforced",
            Mode::Quota => "quota",
            Mode::Shadow => "shadow",
        },
        cost: rule.cost,
        overdraft: rule.overdraft,
        on_redis_failure: rule.on_redis_failure.map(|answer| match answer {
            OnRedisFailure::Local => "local",
            OnRedisFailure::Allow => "allow",
            OnRedisFailure::Deny => "deny",
        }),
        limits: rule.limits.iter().map(limit).collect(),
        tiers: rule.by_tier.iter().flat_map(|by_tier| by_tier.tiers()).map(tier).collect(),
    }
}

fn tier(tier: &Tier) -> TierTold<'_> {
    TierTold { tier: &tier.name, limits: tier.limits.iter().map(limit).collect() }
}

/// Tokens, which are written without a fraction in files.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a burst is a u32")]
fn whole(tokens: f64) -> u64 {
    tokens as u64
}

fn limit(limit: &RuleLimit) -> LimitTold<'_> {
    LimitTold {
        id: &limit.limit_id,
        name: &limit.name,
        source: limit.source.to_string(),
        allowance: match &limit.allowance {
            Allowance::Unlimited => AllowanceTold::Unlimited { unlimited: true },
            Allowance::Limited { limit, requests_per_unit, unit } => AllowanceTold::Limited {
                requests_per_unit: *requests_per_unit,
                unit: unit.to_string(),
                burst: whole(limit.burst()),
                algorithm: match limit.algorithm() {
                    Algorithm::TokenBucket => "token_bucket",
                    Algorithm::FixedWindow(_) => "fixed_window",
                    Algorithm::SlidingWindow => "sliding_window",
                },
            },
        },
        replaces: &limit.replaces,
    }
}
