//! A rule file as it is written: the types that serde fills, before anything is checked.
//!
//! The format is envoyproxy/ratelimit's, with more keys. Every field may be missing or broken here;
//! [`compile`](super::compile) says what must be there.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de};

use super::problem::{LONGEST_WORD, Place, shorten};
use super::reply::HeaderStyle;
use super::unit::Unit;
use super::yaml::{Any, Field, FromText, parse_whole, text_or};
use crate::decision::OnRedisFailure;

/// A file: a domain and its rules.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["domain"]))]
pub(super) struct File {
    /// The name by which the proxy asks for these rules. Files may share it.
    pub(super) domain: Field<String>,
    /// The rules for the first entry of a descriptor.
    pub(super) descriptors: Field<Vec<Field<Descriptor>>>,
    pub(super) on_redis_failure: Field<OnRedisFailure>,
    /// The `--redis-store` that the domain's buckets are in.
    pub(super) redis: Field<String>,
    /// Headers that tell clients of limits.
    pub(super) headers: Field<HeaderChoice>,
    /// Whose keys are in one slot of a Redis Cluster.
    pub(super) redis_hash_tag: Field<HashTag>,
    /// Named sets of limits: by tier, and in it by dimension.
    pub(super) tiers: Field<BTreeMap<String, Field<TierLimits>>>,
    /// Who is on which tier, by the key of the entry that names them.
    pub(super) subjects: Field<BTreeMap<String, Field<Subject>>>,
}

/// Headers about limits: a map, or a style's name alone.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote, transform = super::schema::style_or_whole)]
pub(super) struct HeaderChoice {
    /// Which of them are sent.
    pub(super) style: Field<HeaderStyle>,
    /// The name of the header that the draft calls `RateLimit`.
    ratelimit: Field<String>,
    /// The name of the header that the draft calls `RateLimit-Policy`.
    policy: Field<String>,
    /// The name of the header with the limit.
    limit: Field<String>,
    /// The name of the header with what is left.
    remaining: Field<String>,
    /// The name of the header with the time to wait.
    reset: Field<String>,
    /// The name of the header that says when to come back.
    retry_after: Field<String>,
    /// The name of the header of `warn_at`.
    warning: Field<String>,
}

impl HeaderChoice {
    /// Headers by their keys, with the names that they are given.
    pub(super) fn names(&self) -> [(&'static str, &Field<String>); 7] {
        [
            ("ratelimit", &self.ratelimit),
            ("policy", &self.policy),
            ("limit", &self.limit),
            ("remaining", &self.remaining),
            ("reset", &self.reset),
            ("retry_after", &self.retry_after),
            ("warning", &self.warning),
        ]
    }
}

impl<'de> Deserialize<'de> for HeaderChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or(deserializer)
    }
}

impl<'de> FromText<'de> for HeaderChoice {
    fn from_text(text: &str) -> Result<Self, String> {
        // Its own place is that of the whole.
        let style = Field::Given(Place::START, shorten(text).parse()?);
        Ok(Self { style, ..Self::default() })
    }

    fn from_whole<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }
}

impl<'de> Deserialize<'de> for HeaderStyle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        shorten(&String::deserialize(deserializer)?).parse().map_err(de::Error::custom)
    }
}

/// The body of a denial.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Body {
    /// Such as `application/json`.
    pub(super) content_type: Field<String>,
    /// The body itself.
    pub(super) text: Field<String>,
}

/// A part of a whole, as `0.8` or `80%`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share(pub(super) f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let share = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|percent| percent / 100.0),
            None => text.parse::<f64>(),
        };
        match share {
            Ok(share) if share > 0.0 && share <= 1.0 => Ok(Self(share)),
            _ => {
                let text = shorten(&text);
                let message =
                    format!("expected a share above 0 and up to 1, such as 0.8 or 80%, found `{text}`");
                Err(de::Error::custom(message))
            }
        }
    }
}

/// So many of a hundred.
#[derive(Clone, Copy, Debug)]
pub(super) struct Percent(pub(super) u32);

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let percent = parse_whole(&text).and_then(|number| u32::try_from(number).ok());
        percent.filter(|percent| *percent <= 100).map(Self).ok_or_else(|| {
            let text = shorten(&text);
            de::Error::custom(format!("expected a whole number from 0 to 100, found `{text}`"))
        })
    }
}

/// The limits of a tier, by dimension.
pub(super) type TierLimits = BTreeMap<String, Field<RateLimit>>;

/// Who is on which tier, by the values of one key.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Subject {
    /// The tier of those who are no members.
    pub(super) default: Field<String>,
    /// The tiers of those who are, by the value of the entry.
    pub(super) members: Field<BTreeMap<String, Field<String>>>,
}

/// A rule: what it matches, what it limits, and the rules below it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["key"]))]
pub(super) struct Descriptor {
    /// The entry that the rule is about.
    pub(super) key: Field<String>,
    /// The entry's value; `*` stands for any bytes. Without it, any value matches.
    pub(super) value: Field<String>,
    /// In place of `value`: a list of values, without wildcards.
    pub(super) values: Field<Vec<Field<String>>>,
    /// In place of `value`: address ranges; the longest prefix wins.
    pub(super) cidr: Field<OneOrMany>,
    /// In place of `value`: a regular expression for the whole value.
    pub(super) regex: Field<String>,
    /// The limit, for descriptors that end here.
    pub(super) rate_limit: Field<RateLimit>,
    /// Several limits, all of which must have room.
    pub(super) rate_limits: Field<Vec<Field<RateLimit>>>,
    /// Limits from the subject's tier, by dimension.
    pub(super) tier_limit: Field<OneOrMany>,
    /// Tokens that a hit takes; 1 if nothing is said.
    pub(super) cost: Field<u32>,
    /// Whether charges always land, as debt if need be: for what is known only afterwards.
    pub(super) overdraft: Field<bool>,
    /// The share from which on a caller is told by a header, and denied nothing.
    pub(super) warn_at: Field<Share>,
    /// On how many callers of a hundred it is enforced; for the others it is in shadow mode.
    pub(super) enforce_percent: Field<Percent>,
    /// What a client gets who is denied, as plain text.
    pub(super) message: Field<String>,
    /// What a client gets who is denied, with a content type.
    pub(super) body: Field<Body>,
    pub(super) on_redis_failure: Field<OnRedisFailure>,
    /// The rules for the next entry of the same descriptor.
    pub(super) descriptors: Field<Vec<Field<Descriptor>>>,
    /// Whether it is counted only, and denies nothing.
    pub(super) shadow_mode: Field<bool>,
    /// Whether it denies a request only when all quotas that the request meets are over.
    pub(super) quota_mode: Field<bool>,
    /// Whether metrics tell the values of all of the rule's entries apart.
    pub(super) detailed_metric: Field<bool>,
    /// Whether metrics tell this entry's values apart.
    pub(super) value_to_metric: Field<bool>,
    /// Whether all values that match share one bucket.
    pub(super) share_threshold: Field<bool>,
    /// What is passed on in the response's dynamic metadata.
    pub(super) metadata: Field<Any>,
}

/// By what the keys of a domain are brought together in a Redis Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashTag {
    /// All of them.
    Domain,
    /// Those that have the same value of the entry with this key.
    Entry(Box<[u8]>),
}

impl<'de> Deserialize<'de> for HashTag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or(deserializer)
    }
}

impl<'de> FromText<'de> for HashTag {
    fn from_text(text: &str) -> Result<Self, String> {
        if text == "domain" {
            return Ok(Self::Domain);
        }
        let text = shorten(text);
        Err(format!("expected `domain`, or an entry as in `{{ entry: user_id }}`, found `{text}`"))
    }

    fn from_whole<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct ByEntry {
            #[serde(default)]
            entry: String,
        }
        let ByEntry { entry } = ByEntry::deserialize(deserializer)?;
        if entry.is_empty() {
            return Err(de::Error::custom("missing: say the key of an entry, as in `{ entry: user_id }`"));
        }
        Ok(Self::Entry(entry.into_bytes().into()))
    }
}

/// A list of texts; of one, the text alone will do.
#[derive(Debug)]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<Field<String>>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or(deserializer)
    }
}

impl<'de> FromText<'de> for OneOrMany {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(Self::One(text.to_owned()))
    }

    fn from_whole<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::Many)
    }
}

/// A limit: a map, or short for one, `60/minute` or `unlimited`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default, remote = "Self")]
#[schemars(!remote, transform = super::schema::short_or_whole)]
pub(super) struct RateLimit {
    /// Shown in answers, and what `replaces` refers to.
    pub(super) name: Field<String>,
    pub(super) unit: Field<Unit>,
    /// How many in a unit; 0 admits nothing.
    pub(super) requests_per_unit: Field<u32>,
    /// How many at once; `requests_per_unit` if nothing is said.
    pub(super) burst: Field<u32>,
    pub(super) algorithm: Field<Algorithm>,
    /// Whether there is no limit.
    pub(super) unlimited: Field<bool>,
    /// Limits that do not apply where this one does.
    pub(super) replaces: Field<Vec<Field<Replaces>>>,
    /// What a client gets who is denied, as plain text.
    pub(super) message: Field<String>,
    /// What a client gets who is denied, with a content type.
    pub(super) body: Field<Body>,
}

impl<'de> Deserialize<'de> for RateLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or(deserializer)
    }
}

impl<'de> FromText<'de> for RateLimit {
    fn from_text(text: &str) -> Result<Self, String> {
        // What is short is told of as a whole: its parts have no places of their own.
        fn given<T>(value: T) -> Field<T> {
            Field::Given(Place::START, value)
        }
        if text == "unlimited" {
            return Ok(Self { unlimited: given(true), ..Self::default() });
        }
        let Some((requests, unit)) = text.split_once('/') else {
            let text = shorten(text);
            return Err(format!(
                "`{text}` is no limit: write `unlimited`, a number and a unit such as `60/minute`, or a map"
            ));
        };
        let number = parse_whole(requests.trim()).and_then(|number| u32::try_from(number).ok());
        let Some(requests) = number else {
            let requests = shorten(requests.trim());
            return Err(format!(
                "expected a whole number from 0 to {} before the `/`, found `{requests}`",
                u32::MAX
            ));
        };
        let unit = Unit::parse(unit.trim())?;
        Ok(Self { unit: given(unit), requests_per_unit: given(requests), ..Self::default() })
    }

    fn from_whole<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::deserialize(deserializer)
    }
}

impl<'de> Deserialize<'de> for OnRedisFailure {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match &*String::deserialize(deserializer)? {
            "local" => Ok(Self::Local),
            "deny" => Ok(Self::Deny),
            "allow" => Ok(Self::Allow),
            other => {
                let other = shorten(other);
                Err(de::Error::custom(format!("expected local, deny or allow, found `{other}`")))
            }
        }
    }
}

/// How what is used comes back, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    TokenBucket,
    FixedWindow,
    SlidingWindow,
}

impl<'de> Deserialize<'de> for Algorithm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match &*String::deserialize(deserializer)? {
            "token_bucket" => Ok(Self::TokenBucket),
            "fixed_window" => Ok(Self::FixedWindow),
            "sliding_window" => Ok(Self::SlidingWindow),
            other => {
                let other = shorten(other);
                let message =
                    format!("expected token_bucket, fixed_window or sliding_window, found `{other}`");
                Err(de::Error::custom(message))
            }
        }
    }
}

/// Another limit that gives way to this one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Replaces {
    /// The name of the limit that gives way.
    pub(super) name: Field<String>,
}

/// What is said of a key that its map does not have: where it belongs, or which one may have been meant.
pub(super) fn unknown_key(key: &str, known: &[&str]) -> String {
    const KEYS: [(&str, &[&str]); 5] = [
        ("at the top of the file", &["domain", "redis", "redis_hash_tag", "tiers", "subjects", "headers"]),
        (
            "in the descriptor, beside `key`",
            &[
                "key",
                "value",
                "values",
                "cidr",
                "regex",
                "rate_limit",
                "rate_limits",
                "tier_limit",
                "cost",
                "overdraft",
                "warn_at",
                "enforce_percent",
                "shadow_mode",
                "quota_mode",
                "detailed_metric",
                "value_to_metric",
                "share_threshold",
                "metadata",
            ],
        ),
        (
            "in `rate_limit`",
            &["unit", "requests_per_unit", "burst", "algorithm", "unlimited", "replaces", "name"],
        ),
        ("in `rate_limit`, or in a descriptor beside `key`", &["message", "body"]),
        ("at the top of the file, or in a descriptor beside `key`", &["descriptors", "on_redis_failure"]),
    ];
    if key.len() > LONGEST_WORD {
        return "a key that is too long to be one of those known".into();
    }
    let nearest = |words: &[&str]| -> Option<String> {
        let distance = |word: &str| strsim::damerau_levenshtein(word, &key.to_lowercase());
        let (word, distance) =
            words.iter().map(|word| (*word, distance(word))).min_by_key(|(_, distance)| *distance)?;
        (distance <= 1 + word.len() / 4).then(|| word.to_owned())
    };
    if let Some((home, _)) = KEYS.iter().find(|(_, keys)| keys.contains(&key)) {
        return format!("`{key}` does not belong here: it stands {home}");
    }
    if let Some(word) = nearest(known) {
        return format!("unknown key `{key}`; did you mean `{word}`?");
    }
    for (home, keys) in KEYS {
        if let Some(word) = nearest(keys) {
            return format!("unknown key `{key}`; did you mean `{word}`, which stands {home}?");
        }
    }
    let known = known.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    format!("unknown key `{key}`; the keys here are {known}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_told_where_it_belongs_or_what_was_meant() {
        let limit = ["name", "unit", "requests_per_unit", "burst", "unlimited", "replaces"];
        let descriptor = ["key", "value", "rate_limit", "descriptors", "shadow_mode"];
        for (key, known, message) in [
            (
                "request_per_unit",
                &limit[..],
                "unknown key `request_per_unit`; did you mean `requests_per_unit`?",
            ),
            ("Unit", &limit, "unknown key `Unit`; did you mean `unit`?"),
            (
                "shadow_mode",
                &limit,
                "`shadow_mode` does not belong here: it stands in the descriptor, beside `key`",
            ),
            ("unit", &descriptor, "`unit` does not belong here: it stands in `rate_limit`"),
            ("name", &descriptor, "`name` does not belong here: it stands in `rate_limit`"),
            (
                "descriptors",
                &limit,
                "`descriptors` does not belong here: it stands at the top of the file, or in a descriptor beside `key`",
            ),
            ("ratelimit", &descriptor, "unknown key `ratelimit`; did you mean `rate_limit`?"),
            ("domain", &descriptor, "`domain` does not belong here: it stands at the top of the file"),
            ("zzz", &["name"], "unknown key `zzz`; the keys here are `name`"),
        ] {
            assert_eq!(unknown_key(key, known), message);
        }
    }
}
