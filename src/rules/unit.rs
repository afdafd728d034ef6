//! The windows of limits: how they are written, how long they are, and what the API calls them.

use std::num::NonZeroU64;

use serde::{Deserialize, Deserializer, de};

use super::problem::LONGEST_WORD;
use crate::clock::Micros;

const SECOND: Micros = 1_000_000;
const MINUTE: Micros = 60 * SECOND;
const HOUR: Micros = 60 * MINUTE;
const DAY: Micros = 24 * HOUR;
const WEEK: Micros = 7 * DAY;
/// A month refills over 30 days.
const MONTH: Micros = 30 * DAY;
/// A year refills over 365 days.
const YEAR: Micros = 365 * DAY;

/// The window of a limit: one of the API's units, or any other length of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// A second.
    Second,
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day of 24 hours.
    Day,
    /// Seven days.
    Week,
    /// 30 days.
    Month,
    /// 365 days.
    Year,
    /// So many microseconds, which the API has no name for.
    Other(NonZeroU64),
}

/// Names in files, in the API and in messages, the shortest first.
const NAMED: [(&str, Unit, Micros); 7] = [
    ("second", Unit::Second, SECOND),
    ("minute", Unit::Minute, MINUTE),
    ("hour", Unit::Hour, HOUR),
    ("day", Unit::Day, DAY),
    ("week", Unit::Week, WEEK),
    ("month", Unit::Month, MONTH),
    ("year", Unit::Year, YEAR),
];

/// What a duration may end in.
pub(super) const SUFFIXES: [(&str, Micros); 6] =
    [("ms", 1_000), ("s", SECOND), ("m", MINUTE), ("h", HOUR), ("d", DAY), ("w", WEEK)];

/// What units are called for short elsewhere.
const SHORT: [(&str, &str); 10] = [
    ("s", "second"),
    ("sec", "second"),
    ("m", "minute"),
    ("min", "minute"),
    ("h", "hour"),
    ("hr", "hour"),
    ("d", "day"),
    ("w", "week"),
    ("mo", "month"),
    ("yr", "year"),
];

impl Unit {
    /// The length of the window in microseconds.
    #[must_use]
    pub fn micros(self) -> NonZeroU64 {
        let named = NAMED
            .iter()
            .find(|(_, unit, _)| *unit == self)
            .and_then(|(_, _, micros)| NonZeroU64::new(*micros));
        match self {
            Self::Other(micros) => micros,
            _ => named.unwrap_or(NonZeroU64::MIN),
        }
    }

    /// The names of those that have one.
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        NAMED.iter().map(|(name, ..)| *name)
    }

    /// The API's name for it, if it has one.
    pub(crate) fn name(self) -> Option<&'static str> {
        NAMED.iter().find(|(_, unit, _)| *unit == self).map(|(name, ..)| *name)
    }

    /// Reads `minute`, in any case, or a duration such as `30s`, `15m`, `2h`.
    ///
    /// `60s` is a minute: second, minute, hour and day are the same however they are written. A week, a month and a
    /// year are calendar things to other algorithms, and are not the same as their number of days.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some((_, unit, _)) = NAMED.iter().find(|(name, ..)| name.eq_ignore_ascii_case(text)) {
            return Ok(*unit);
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at_checked(digits).unwrap_or((text, ""));
        let Some((_, micros)) = SUFFIXES.iter().find(|(name, _)| *name == suffix).filter(|_| digits > 0)
        else {
            return Err(unknown_unit(text));
        };
        let length =
            number.parse::<u64>().ok().and_then(|number| number.checked_mul(*micros)).unwrap_or(u64::MAX);
        let Some(length) = NonZeroU64::new(length).filter(|length| length.get() <= YEAR) else {
            return Err(format!("`{text}` is no window: it lasts from 1ms to 365d"));
        };
        let same = NAMED.iter().take(4).find(|(_, _, micros)| *micros == length.get());
        Ok(same.map_or(Self::Other(length), |(_, unit, _)| *unit))
    }
}

fn unknown_unit(text: &str) -> String {
    if text.len() > LONGEST_WORD {
        return "unknown unit, and too long to be a misspelt one".into();
    }
    let lower = text.to_lowercase();
    let one = lower.strip_suffix('s').filter(|one| one.len() > 1).unwrap_or(&lower);
    let short = SHORT.iter().find(|(short, _)| *short == one);
    let nearest = || {
        let nearest = NAMED.iter().map(|(name, ..)| (*name, strsim::damerau_levenshtein(name, &lower)));
        let nearest = nearest.min_by_key(|(_, distance)| *distance);
        // What begins with a number is no name that has been misspelt.
        nearest.filter(|(_, distance)| *distance <= 2 && !lower.starts_with(|c: char| c.is_ascii_digit()))
    };
    match short.map(|(_, name)| *name).or_else(|| nearest().map(|(name, _)| name)) {
        Some(name) => format!("unknown unit `{text}`; did you mean `{name}`?"),
        None => format!(
            "unknown unit `{text}`; write second, minute, hour, day, week, month or year, or a duration like 30s, 15m, 2h"
        ),
    }
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(name) = self.name() {
            return f.write_str(name);
        }
        let micros = self.micros().get();
        let coarsest = SUFFIXES.iter().rev().find(|(_, length)| micros.is_multiple_of(*length));
        match coarsest {
            Some((suffix, length)) => write!(f, "{}{suffix}", micros / length),
            None => write!(f, "{micros}us"),
        }
    }
}

impl<'de> Deserialize<'de> for Unit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_in_any_case_and_as_durations() {
        for (text, unit) in [
            ("minute", Unit::Minute),
            ("MINUTE", Unit::Minute),
            ("Week", Unit::Week),
            ("60s", Unit::Minute),
            ("1000ms", Unit::Second),
            ("24h", Unit::Day),
            ("30s", Unit::Other(NonZeroU64::new(30 * SECOND).unwrap())),
            ("15m", Unit::Other(NonZeroU64::new(15 * MINUTE).unwrap())),
            // Not the calendar's month and week.
            ("30d", Unit::Other(NonZeroU64::new(MONTH).unwrap())),
            ("7d", Unit::Other(NonZeroU64::new(WEEK).unwrap())),
        ] {
            assert_eq!(Unit::parse(text), Ok(unit), "{text}");
        }
    }

    #[test]
    fn a_unit_is_shown_as_it_can_be_written() {
        for text in [
            "second", "minute", "hour", "day", "week", "month", "year", "30s", "15m", "2h", "250ms", "90s",
            "2d",
        ] {
            assert_eq!(Unit::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_unit_is_refused_with_a_way_out() {
        for (text, message) in [
            ("minutes", "unknown unit `minutes`; did you mean `minute`?"),
            ("hors", "unknown unit `hors`; did you mean `hour`?"),
            ("s", "unknown unit `s`; did you mean `second`?"),
            ("Mins", "unknown unit `Mins`; did you mean `minute`?"),
            ("hr", "unknown unit `hr`; did you mean `hour`?"),
            (
                "40y",
                "unknown unit `40y`; write second, minute, hour, day, week, month or year, or a duration like 30s, 15m, 2h",
            ),
            ("0s", "`0s` is no window: it lasts from 1ms to 365d"),
            ("400d", "`400d` is no window: it lasts from 1ms to 365d"),
            ("99999999999999999999s", "`99999999999999999999s` is no window: it lasts from 1ms to 365d"),
        ] {
            assert_eq!(Unit::parse(text).unwrap_err(), message);
        }
        for text in ["", "s", "1.5s", "-1s", "1 s", "unknown", "1M"] {
            assert!(Unit::parse(text).unwrap_err().starts_with("unknown unit"), "{text}");
        }
    }
}
