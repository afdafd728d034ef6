//! The limits that buckets are known under: however many buckets have one, it is kept once.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashTable;

use crate::bucket::Limit;

/// So many are not looked through for those that no bucket has any more.
const FEW: usize = 64;

/// Limits, each for as long as a bucket has it, and until room is wanted for others.
#[derive(Debug, Default)]
pub(super) struct Limits(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    limits: HashTable<Arc<Limit>>,
    /// A request may bring its own limit: nobody is to choose those that meet in this table.
    hasher: RandomState,
    /// With so many, it is looked which of them are still wanted.
    crowded: usize,
}

impl Limits {
    /// The one that is equal to `limit`.
    pub(super) fn one(&self, limit: &Limit) -> Arc<Limit> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { limits, hasher, crowded } = &mut *inner;
        let hash = hasher.hash_one(limit);
        if let Some(kept) = limits.find(hash, |kept| **kept == *limit) {
            return Arc::clone(kept);
        }
        if limits.len() >= (*crowded).max(FEW) {
            limits.retain(|kept| Arc::strong_count(kept) > 1);
            *crowded = 2 * limits.len();
        }
        let kept = Arc::new(*limit);
        limits.insert_unique(hash, Arc::clone(&kept), |kept| hasher.hash_one(**kept));
        kept
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use super::*;

    fn limit(requests: u32) -> Limit {
        Limit::new(NonZeroU32::new(requests).unwrap(), NonZeroU64::new(1_000_000).unwrap())
    }

    fn kept(limits: &Limits) -> usize {
        limits.0.lock().unwrap().limits.len()
    }

    #[test]
    fn equal_limits_are_kept_once_and_others_apart() {
        let limits = Limits::default();
        let one = limits.one(&limit(10));
        assert_eq!(*one, limit(10));
        assert!(Arc::ptr_eq(&one, &limits.one(&limit(10))));
        let since = limit(10).since(7);
        assert_eq!((*limits.one(&limit(11)), *limits.one(&since)), (limit(11), since));
        assert_eq!(kept(&limits), 3);
    }

    #[test]
    fn however_many_come_and_go_few_are_kept_that_no_bucket_has() {
        let limits = Limits::default();
        let wanted: Vec<_> = (1..=100).map(|requests| limits.one(&limit(requests))).collect();
        for requests in 101..10_000 {
            limits.one(&limit(requests));
        }
        assert!(kept(&limits) <= 200, "{}", kept(&limits));
        for limit in &wanted {
            assert!(Arc::ptr_eq(limit, &limits.one(limit)), "it is still the one");
        }
    }
}
