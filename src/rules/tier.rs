//! Tiers: named sets of limits, and who is on which.
//!
//! A rule may take its limit from the tier of its *subject*: the value of one of the descriptor's entries. Its bucket is
//! the subject's, whatever the tier, so somebody who is moved keeps what was used. What is used drains at the old tier's
//! rate until the move and at the new one's after, which is why each member remembers since when it is on its tier.

use std::sync::Arc;

use hashbrown::HashMap;
use smallvec::SmallVec;

use super::rule::RuleLimit;
use super::tree::{Domain, Entry};
use crate::bucket::Limit;
use crate::clock::Micros;

/// The key of an entry by which the proxy itself names a tier.
pub(super) const TIER_KEY: &str = "tier";

/// Who is on which tier, by the values of one key. Tiers are told by their places in the domain's list.
#[derive(Clone, Debug, Default)]
pub struct Subjects {
    /// Those who are no members.
    pub(super) default: Membership,
    pub(super) members: HashMap<Box<[u8]>, Membership>,
    /// Whether the request says the tier, so that nobody knows since when: then the change is seen when it comes.
    pub(super) by_request: bool,
}

/// Since when somebody is on a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Membership {
    pub(super) tier: usize,
    pub(super) since: Micros,
    /// Whether this is only to remember since when somebody who is no member any more is on the default.
    pub(super) has_left: bool,
}

/// Limits that depend on the subject's tier.
#[derive(Clone, Debug)]
pub struct ByTier {
    /// The key that names the subject.
    pub(super) key: Box<str>,
    /// The place of its entry in the descriptor.
    pub(super) entry: usize,
    pub(super) subjects: Arc<Subjects>,
    /// The limits of each tier, by its place.
    pub(super) tiers: Box<[Tier]>,
}

/// What a rule takes from one tier.
#[derive(Clone, Debug)]
pub struct Tier {
    /// Its name.
    pub name: Box<str>,
    /// What it admits.
    pub limits: SmallVec<[RuleLimit; 1]>,
}

/// The tier that a subject is on.
#[derive(Clone, Copy, Debug)]
pub struct OnTier<'r> {
    /// The key that names the subject.
    pub key: &'r str,
    /// The tier.
    pub tier: &'r Tier,
    /// Since when, where that matters.
    pub since: Micros,
    /// Whether that is for not being named in the file.
    pub is_default: bool,
}

impl Subjects {
    /// The tier that a value is on, and since when.
    pub(super) fn of(&self, value: &[u8]) -> Membership {
        self.members.get(value).copied().unwrap_or(self.default)
    }

    /// Takes the place of `previous`: who is on the same tier as before is so since then, and who is not, since `now`.
    ///
    /// `same` says whether a tier here is a tier there. What is older than `longest` need not be remembered: a bucket
    /// that was written before then is full.
    pub(super) fn succeed(
        &mut self,
        previous: &Self,
        same: impl Fn(usize, usize) -> bool,
        now: Micros,
        longest: Micros,
    ) {
        let since =
            |now_on: usize, before: Membership| if same(now_on, before.tier) { before.since } else { now };
        for (value, member) in &mut self.members {
            member.since = since(member.tier, previous.of(value));
        }
        self.default.since = since(self.default.tier, previous.default);
        for (value, before) in &previous.members {
            let since = since(self.default.tier, *before);
            if since != self.default.since && now.saturating_sub(since) <= longest {
                let left = Membership { since, has_left: true, ..self.default };
                self.members.entry_ref(&**value).or_insert(left);
            }
        }
    }
}

impl ByTier {
    /// What the rule takes from each tier.
    #[must_use]
    pub fn tiers(&self) -> &[Tier] {
        &self.tiers
    }

    /// The tier of a descriptor's subject.
    pub(super) fn of(&self, entries: &[Entry<'_>]) -> Option<OnTier<'_>> {
        let subject = entries.get(self.entry)?;
        let membership = self.subjects.of(subject.value);
        let is_named = self.subjects.members.get(subject.value).is_some_and(|member| !member.has_left);
        Some(OnTier {
            key: &self.key,
            tier: self.tiers.get(membership.tier)?,
            since: if self.subjects.by_request { Micros::MAX } else { membership.since },
            is_default: !is_named,
        })
    }
}

impl Domain {
    /// Remembers since when each subject is on its tier, as [`RuleSet::succeed`](super::RuleSet::succeed) says.
    ///
    /// Subjects are told by their key. Rules share them, and each set of them is gone through once.
    pub(super) fn succeed_subjects(&mut self, previous: &Self, now: Micros) {
        let mut before: HashMap<&str, &ByTier> = HashMap::new();
        let mut longest: f64 = 0.0;
        for rule in previous.rules() {
            if let Some(by_tier) = rule.by_tier.as_deref() {
                before.insert(&by_tier.key, by_tier);
                let limits = rule.all_limits().filter_map(|limit| limit.allowance.limit());
                // The window as well: that of a calendar is not quite what the rate says.
                let refill = |limit: Limit| 2.0 * (limit.burst() / limit.rate()).max(limit.window() as f64);
                longest = limits.map(refill).filter(|refill| refill.is_finite()).fold(longest, f64::max);
            }
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, which is right"
        )]
        let longest = longest as Micros;
        let mut after: HashMap<Box<str>, Arc<Subjects>> = HashMap::new();
        self.root.for_each_rule(&mut |rule| {
            let Some(by_tier) = rule.by_tier.as_deref_mut() else { return };
            let Some(before) = before.get(&*by_tier.key) else { return };
            if by_tier.subjects.by_request {
                return;
            }
            let subjects = after.entry_ref(&*by_tier.key).or_insert_with(|| {
                let name = |tiers: &[Tier], place: usize| tiers.get(place).map(|tier| tier.name.clone());
                let same = |now: usize, then: usize| name(&by_tier.tiers, now) == name(&before.tiers, then);
                let mut subjects = Subjects::clone(&by_tier.subjects);
                subjects.succeed(&before.subjects, same, now, longest);
                Arc::new(subjects)
            });
            by_tier.subjects = Arc::clone(subjects);
        });
    }
}
