//! What is said of a server that answers with errors: one line when that begins, and one when it is over.
//!
//! A server that refuses some batches and decides others, such as one that is full and is asked for denials too, would
//! otherwise be told of twice for each: it is over when nothing has been refused for a while.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How long nothing may be refused before it is over.
const QUIET: Duration = Duration::from_secs(10);

/// Whether a server answers with errors.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// The same as whether there is a last one, to be read for each batch.
    refuses: AtomicBool,
    /// When it did so last.
    last: Mutex<Option<Instant>>,
}

impl Refusal {
    /// It answered with an error. Whether that is to be said.
    pub(super) fn begins(&self, now: Instant) -> bool {
        let before = self.last.lock().unwrap_or_else(PoisonError::into_inner).replace(now);
        self.refuses.store(true, Ordering::Relaxed);
        before.is_none()
    }

    /// It decided something; `now` tells when. Whether it is to be said that it does so again.
    pub(super) fn ends(&self, now: impl FnOnce() -> Instant) -> bool {
        if !self.refuses.load(Ordering::Relaxed) {
            return false;
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = last.is_some_and(|last| now().saturating_duration_since(last) >= QUIET);
        if is_over {
            *last = None;
            self.refuses.store(false, Ordering::Relaxed);
        }
        is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn a_server_that_refuses_some_and_decides_others_is_told_of_once_and_again_when_it_has_been_quiet() {
        let (refusal, start) = (Refusal::default(), clock::instant());
        assert!(!refusal.ends(|| start), "it never refused");
        let mut said = Vec::new();
        for second in 0..100 {
            let now = start + Duration::from_secs(second);
            // For half a minute it refuses every third.
            if second < 30 && second % 3 == 0 && refusal.begins(now) {
                said.push((second, "refuses"));
            }
            if second % 3 != 0 && refusal.ends(|| now) {
                said.push((second, "decides"));
            }
        }
        assert_eq!(said, [(0, "refuses"), (37, "decides")]);
        assert!(refusal.begins(start + Duration::from_secs(100)), "it is another time");
    }
}
