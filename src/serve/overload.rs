//! More calls at once than can be answered in time.
//!
//! Calls that queue are answered late, and a late answer is none: the proxy has given up by then, and its next calls
//! queue behind those that nobody waits for. So above a number of calls under way, further ones are answered at once,
//! as the operator has chosen, without asking any bucket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::time::Instant;

use crate::clock;

/// What a call is answered with that comes when too many are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// That it may pass.
    Allow,
    /// That it is over its limit.
    Deny,
    /// With the error `UNAVAILABLE`: the proxy does what it does when it cannot reach weir
    Unavailable,
}

/// Calls under way, and what happens when they are too many.
#[derive(Debug)]
pub struct Overload {
    cap: usize,
    policy: Policy,
    under_way: AtomicUsize,
    shed: AtomicU64,
    since: Instant,
    /// When the log said so last, in seconds after `since`; 0 before that.
    told: AtomicU64,
}

/// Marks a request as one to be answered by the policy.
#[derive(Clone, Copy, Debug)]
pub struct Shed(pub Policy);

/// The log says that calls are shed once in so many seconds.
const TELL_EVERY: u64 = 10;

impl Overload {
    /// At most `cap` calls under way.
    #[must_use]
    pub fn new(cap: usize, policy: Policy) -> Self {
        Self {
            cap,
            policy,
            under_way: AtomicUsize::new(0),
            shed: AtomicU64::new(0),
            since: clock::instant(),
            told: AtomicU64::new(0),
        }
    }

    /// Calls under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way.load(Ordering::Relaxed)
    }

    /// Calls answered by the policy so far.
    #[must_use]
    pub fn shed(&self) -> u64 {
        self.shed.load(Ordering::Relaxed)
    }

    /// Counts a call that has come; it must [`leave`](Self::leave). Says if it is one too many.
    pub(super) fn enter(&self) -> Option<Shed> {
        if self.under_way.fetch_add(1, Ordering::Relaxed) < self.cap {
            return None;
        }
        self.shed.fetch_add(1, Ordering::Relaxed);
        self.tell();
        Some(Shed(self.policy))
    }

    /// Says in the log that calls are shed, unless it has lately.
    fn tell(&self) {
        let told = self.told.load(Ordering::Relaxed);
        let now = self.since.elapsed().as_secs() + 1;
        let is_due = told == 0 || now >= told + TELL_EVERY;
        if is_due && self.told.compare_exchange(told, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::warn!(
                under_way = self.cap,
                shed = self.shed(),
                answer = ?self.policy,
                "too many calls at once: further ones are answered without asking any bucket"
            );
        }
    }

    pub(super) fn leave(&self) {
        self.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a call for as long as it is under way, or says that it is one too many.
    ///
    /// # Errors
    /// When it is.
    pub fn admit(self: &Arc<Self>) -> Result<UnderWay, Shed> {
        let call = UnderWay(Arc::clone(self));
        match self.enter() {
            None => Ok(call),
            Some(shed) => Err(shed),
        }
    }
}

/// A call that is under way until this is dropped.
#[derive(Debug)]
pub struct UnderWay(Arc<Overload>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_calls_are_admitted_at_once_as_the_cap_says_and_the_rest_is_counted() {
        let overload = Arc::new(Overload::new(2, Policy::Deny));
        let (first, second) = (overload.admit().unwrap(), overload.admit().unwrap());
        for shed in 1..=3 {
            assert_eq!(overload.admit().unwrap_err().0, Policy::Deny);
            assert_eq!((overload.under_way(), overload.shed()), (2, shed));
        }
        drop(first);
        let third = overload.admit().unwrap();
        assert!(overload.admit().is_err());
        drop((second, third));
        assert_eq!((overload.under_way(), overload.shed()), (0, 4));
    }
}
