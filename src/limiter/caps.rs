//! What is held in bounds, and how near it is to them: said once while there is time to do something.

use std::sync::atomic::{AtomicBool, Ordering};

/// Something that there may be so much of.
#[derive(Debug)]
pub(super) struct Cap {
    what: &'static str,
    /// What happens at the cap, and what can be done about it.
    advice: &'static str,
    near: AtomicBool,
}

impl Cap {
    pub(super) const fn new(what: &'static str, advice: &'static str) -> Self {
        Self { what, advice, near: AtomicBool::new(false) }
    }

    /// There is so much of it. At four fifths of what may be it is said, and not again before it has been less than half;
    /// whether it was said now.
    pub(super) fn look(&self, held: usize, most: usize) -> bool {
        if self.near.load(Ordering::Relaxed) {
            if held.saturating_mul(2) < most {
                self.near.store(false, Ordering::Relaxed);
            }
            return false;
        }
        let is_near = most > 0 && held.saturating_mul(5) >= most.saturating_mul(4);
        if is_near {
            self.near.store(true, Ordering::Relaxed);
            tracing::warn!(held, most, "nearly as many {} as there may be: {}", self.what, self.advice);
        }
        is_near
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_fifths_of_a_cap_are_said_once_until_it_was_half_empty() {
        let cap = Cap::new("things", "make room");
        let said: Vec<usize> = [0, 79, 80, 81, 100, 50, 79, 100, 49, 79, 80, 90]
            .into_iter()
            .filter(|held| cap.look(*held, 100))
            .collect();
        // The second time only after there were 49.
        assert_eq!(said, [80, 80]);
    }

    #[test]
    fn where_there_may_be_none_there_is_nothing_to_say() {
        assert!(!Cap::new("things", "").look(0, 0));
    }
}
