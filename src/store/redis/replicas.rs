//! How many processes share the limits: what each is entitled to when they cannot ask the shared store.
//!
//! Every process tells the store each second that it is there, and is told how many do. A count that rises is believed at
//! once, because too many shares too large would be too much; one that falls only when it has held for three whole intervals
//! in a row, so that a restart or a store that is just coming back does not hand out larger shares. While the store does
//! not answer, the last count stays: nobody can tell then who is still there.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::trouble::Trouble;
use crate::store::Class;

/// Intervals for which a lower count has to hold.
const PATIENCE: u32 = 3;

/// How many processes there are, to be read by each call.
#[derive(Debug)]
pub(super) struct Replicas {
    count: AtomicU32,
    /// Of an operator who knows; the count is never below it.
    least: NonZeroU32,
    /// Times that the store was there and did not count this process.
    failed: AtomicU64,
}

/// What one process has been told lately.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The highest of the lower counts in a row, and how many they are.
    lower: Option<(u32, u32)>,
    /// Whether the log says that this process may not be counted.
    forbidden: bool,
    /// Whether the store has ever counted, or the log says that it has not.
    heard: bool,
}

impl Replicas {
    /// As many as an operator says, until the store says more.
    pub(super) fn new(least: NonZeroU32) -> Self {
        Self { count: AtomicU32::new(least.get()), least, failed: AtomicU64::new(0) }
    }

    /// How many there are, as far as is known.
    pub(super) fn count(&self) -> NonZeroU32 {
        NonZeroU32::new(self.count.load(Ordering::Relaxed)).unwrap_or(self.least)
    }

    /// That there are at least so many is known from elsewhere.
    pub(super) fn rise_to(&self, count: NonZeroU32) {
        self.count.fetch_max(count.get(), Ordering::Relaxed);
    }

    /// Times that the store was there and did not count this process.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// The store called `name` is there and did not count this process. If that is for want of a right, which passes only
    /// when somebody does something, the log says so once.
    pub(super) fn fail(&self, told: &mut Told, name: &str, trouble: &Trouble) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        if trouble.class == Class::Forbidden && !std::mem::replace(&mut told.forbidden, true) {
            tracing::warn!(
                redis = name,
                replicas = self.count(),
                error = trouble.said,
                "this process may not be counted among those that share this Redis: give its user the rights that the \
                 manual lists, or set --replicas to how many there are"
            );
        }
    }

    /// The store called `name` does not answer. If it never has, and nobody else has said how many processes share it, the log
    /// says once that none is taken to.
    pub(super) fn miss(&self, told: &mut Told, name: &str) {
        if !std::mem::replace(&mut told.heard, true) && self.count() == NonZeroU32::MIN {
            tracing::warn!(
                redis = name,
                "how many processes share this Redis is not known yet: until it answers, this one admits whole limits; \
                 --replicas says how many there are"
            );
        }
    }

    /// The store has counted so many; `None` when it could not be asked. True if that changes the count.
    pub(super) fn tell(&self, told: &mut Told, counted: Option<u32>) -> bool {
        let now = self.count().get();
        let Some(counted) = counted.map(|counted| counted.max(self.least.get())) else {
            // What was heard before is too old to go on from.
            told.lower = None;
            return false;
        };
        (told.forbidden, told.heard) = (false, true);
        if counted >= now {
            told.lower = None;
            self.count.store(counted, Ordering::Relaxed);
            return counted > now;
        }
        let (highest, times) = told.lower.unwrap_or((counted, 0));
        let (highest, times) = (highest.max(counted), times + 1);
        // The first begins the first interval.
        if times <= PATIENCE {
            told.lower = Some((highest, times));
            return false;
        }
        told.lower = None;
        self.count.store(highest, Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(least: u32) -> (Replicas, Told) {
        (Replicas::new(NonZeroU32::new(least).unwrap()), Told::default())
    }

    /// The counts after each of these.
    fn after(least: u32, counted: &[Option<u32>]) -> Vec<u32> {
        let (replicas, mut told) = replicas(least);
        let count = |counted: &Option<u32>| {
            let before = replicas.count();
            assert_eq!(replicas.tell(&mut told, *counted), replicas.count() != before);
            replicas.count().get()
        };
        counted.iter().map(count).collect()
    }

    #[test]
    fn a_count_that_rises_is_believed_at_once() {
        assert_eq!(after(1, &[Some(2), Some(3), Some(7)]), [2, 3, 7]);
    }

    #[test]
    fn one_that_falls_is_believed_when_it_has_held_for_three_whole_intervals() {
        assert_eq!(after(1, &[Some(4), Some(2), Some(2), Some(2), Some(2), Some(2)]), [4, 4, 4, 4, 2, 2]);
    }

    #[test]
    fn of_lower_counts_that_differ_the_highest_is_believed() {
        assert_eq!(after(1, &[Some(5), Some(2), Some(4), Some(3), Some(2)]), [5, 5, 5, 5, 4]);
    }

    #[test]
    fn the_same_count_in_between_begins_the_wait_anew() {
        assert_eq!(
            after(1, &[Some(3), Some(2), Some(2), Some(3), Some(2), Some(2), Some(2), Some(2)]),
            [3, 3, 3, 3, 3, 3, 3, 2]
        );
    }

    #[test]
    fn what_cannot_be_read_keeps_the_last_and_begins_the_wait_anew() {
        assert_eq!(after(1, &[Some(3), None, None, None, None]), [3, 3, 3, 3, 3]);
        assert_eq!(
            after(1, &[Some(3), Some(2), Some(2), None, Some(2), Some(2), Some(2), Some(2)]),
            [3, 3, 3, 3, 3, 3, 3, 2]
        );
    }

    #[test]
    fn what_is_known_from_elsewhere_is_believed_at_once_and_falls_like_any_other() {
        let (replicas, mut told) = replicas(1);
        replicas.rise_to(NonZeroU32::new(4).unwrap());
        replicas.rise_to(NonZeroU32::new(2).unwrap());
        let counts = [1; 5].map(|counted| {
            replicas.tell(&mut told, Some(counted));
            replicas.count().get()
        });
        assert_eq!((counts[0], counts[4]), (4, 1));
    }

    #[test]
    fn it_is_never_below_what_an_operator_said() {
        assert_eq!(
            after(3, &[None, Some(1), Some(0), Some(1), Some(4), Some(1), Some(1), Some(1), Some(1)]),
            [3, 3, 3, 3, 4, 4, 4, 4, 3]
        );
    }
}
