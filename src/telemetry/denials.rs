//! Denials in the log: a few of them, so that an attack does not become a second one on the disk.
//!
//! Of each limit so many lines a second are written, and ten times as many of all limits together. How many denials there
//! were in all, the metrics say.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many denials may be logged, and what of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DenialLog {
    /// Lines in a second for each limit.
    pub of_each: u16,
    /// Whether values of requests are logged.
    pub with_keys: bool,
}

/// Lines of all limits for each line that one may have.
const TOGETHER: u64 = 10;

/// Counts lines, second by second.
#[derive(Debug, Default)]
pub struct Sampler(AtomicU64);

/// How many of the number's bits are the count; the others are the second.
const COUNT_BITS: u32 = 24;

impl Sampler {
    /// Whether another line may be written in this second, of so many.
    fn allows(&self, second: u64, most: u64) -> bool {
        let next = |before: u64| {
            let count = if before >> COUNT_BITS == second { before & ((1 << COUNT_BITS) - 1) } else { 0 };
            (count < most).then_some(second << COUNT_BITS | (count + 1))
        };
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

impl DenialLog {
    /// Whether a denial by a limit may be logged in this second, of which `all` samples those of all limits.
    #[must_use]
    pub fn allows(&self, of_limit: &Sampler, all: &Sampler, second: u64) -> bool {
        let most = u64::from(self.of_each);
        most > 0 && of_limit.allows(second, most) && all.allows(second, most * TOGETHER)
    }
}

/// Entries of a descriptor for a line of the log: what is no plain text is escaped, and what is long is cut.
#[must_use]
pub fn entries<'e>(entries: impl Iterator<Item = (&'e [u8], &'e [u8])>) -> String {
    const LONGEST: usize = 120;
    let mut text = String::new();
    for (key, value) in entries {
        if !text.is_empty() {
            text.push(',');
        }
        let told = value.split_at_checked(LONGEST).map_or(value, |(told, _)| told);
        text.push_str(&format!("{}={}", key.escape_ascii(), told.escape_ascii()));
        if told.len() < value.len() {
            text.push('…');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_has_its_lines_in_each_second_and_all_together_have_a_bound() {
        let log = DenialLog { of_each: 2, with_keys: false };
        let (all, one, other) = (Sampler::default(), Sampler::default(), Sampler::default());
        let lines = |of: &Sampler, second| (0..1_000).filter(|_| log.allows(of, &all, second)).count();
        assert_eq!((lines(&one, 7), lines(&other, 7)), (2, 2));
        assert_eq!(lines(&one, 8), 2, "the next second");
        let many: usize = (0..1_000).map(|_| lines(&Sampler::default(), 9)).sum();
        assert_eq!(many, 20);
        let none = DenialLog { of_each: 0, with_keys: false };
        assert!(!none.allows(&one, &all, 10));
    }

    #[test]
    fn entries_are_escaped_and_cut() {
        let long = [b'x'; 500];
        let text = entries([(&b"a"[..], &b"\n\xff"[..]), (b"b", &long)].into_iter());
        assert_eq!(text, format!("a=\\n\\xff,b={}…", "x".repeat(120)));
    }
}
