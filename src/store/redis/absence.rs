//! When having no connection to a server is a failure of it.
//!
//! A call that finds no connection is answered at once, and there may be thousands of them before a connection that was
//! cut is made anew, which takes milliseconds. So it is not calls that are counted: a failure is an attempt to connect
//! that failed, and each deadline of a call that passes while there is none and somebody wants it. A server that has
//! never been connected is only on its way: of that one, attempts alone count.
//!
//! Connections to a server break together, and calls find each of them broken: that is news once.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::store::Class;

/// Connections that break within so long of one another break together.
const TOGETHER: Duration = Duration::from_millis(25);

/// For how long there has been no connection, and what was tried meanwhile.
#[derive(Debug, Default)]
pub(super) struct Absence(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Whether there has ever been a connection.
    was_there: bool,
    /// Whether an attempt to connect has failed since that was counted last.
    attempt_failed: bool,
    /// When being away counts next. Nobody has missed the server yet if it is not known.
    due: Option<Instant>,
    /// When it was told last that one broke, and by what.
    broke: Option<(Instant, Class)>,
}

impl Absence {
    /// There is a connection.
    pub(super) fn ends(&self) {
        let mut inner = self.inner();
        *inner = Inner { was_there: true, broke: inner.broke, ..Inner::default() };
    }

    /// A call has found a connection broken: whether that is news, or another one of them has just broken by the same.
    pub(super) fn broke(&self, class: Class, now: Instant) -> bool {
        let mut inner = self.inner();
        let is_known = inner
            .broke
            .is_some_and(|(last, told)| told == class && now.saturating_duration_since(last) < TOGETHER);
        if !is_known {
            inner.broke = Some((now, class));
        }
        !is_known
    }

    /// An attempt to connect has failed.
    pub(super) fn attempt_failed(&self) {
        self.inner().attempt_failed = true;
    }

    /// A call finds no connection: whether that is to be counted as a failure.
    pub(super) fn counts(&self, now: Instant, deadline: Duration) -> bool {
        let mut inner = self.inner();
        let Some(due) = inner.due else {
            inner.due = Some(now + deadline);
            // What was tried while another connection served is none of it.
            return std::mem::take(&mut inner.attempt_failed) && !inner.was_there;
        };
        let counts = std::mem::take(&mut inner.attempt_failed) || inner.was_there && due <= now;
        if counts {
            inner.due = Some(now + deadline);
        }
        counts
    }

    fn inner(&self) -> impl std::ops::DerefMut<Target = Inner> + '_ {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const DEADLINE: Duration = Duration::from_millis(10);

    /// How many of the calls count that come each millisecond for so long.
    fn counted(absence: &Absence, from: Instant, millis: u64) -> usize {
        let moments = (0..millis).map(|millis| from + Duration::from_millis(millis));
        moments.filter(|now| absence.counts(*now, DEADLINE)).count()
    }

    #[test]
    fn a_connection_that_is_made_anew_at_once_was_not_missed_however_many_calls_came() {
        let (absence, now) = (Absence::default(), clock::instant());
        absence.ends();
        assert!((0..10_000).all(|_| !absence.counts(now, DEADLINE)));
        assert_eq!(counted(&absence, now, 10), 0);
        absence.ends();
        assert_eq!(counted(&absence, now + DEADLINE, 10), 0);
    }

    #[test]
    fn each_deadline_without_a_connection_counts_once() {
        let (absence, now) = (Absence::default(), clock::instant());
        absence.ends();
        assert_eq!(counted(&absence, now, 56), 5);
    }

    #[test]
    fn each_attempt_that_failed_counts_once() {
        let (absence, now) = (Absence::default(), clock::instant());
        absence.ends();
        assert_eq!(counted(&absence, now, 5), 0);
        for _ in 0..3 {
            absence.attempt_failed();
            assert_eq!((0..100).filter(|_| absence.counts(now, DEADLINE)).count(), 1);
        }
    }

    #[test]
    fn attempts_that_failed_while_another_connection_served_do_not_count() {
        let (absence, now) = (Absence::default(), clock::instant());
        absence.ends();
        absence.attempt_failed();
        assert_eq!(counted(&absence, now, 10), 0);
    }

    #[test]
    fn a_server_that_was_never_connected_has_failed_when_an_attempt_has_and_not_by_time() {
        let (absence, now) = (Absence::default(), clock::instant());
        assert_eq!(counted(&absence, now, 1_000), 0);
        absence.attempt_failed();
        assert_eq!(counted(&absence, now, 1_000), 1);
    }

    #[test]
    fn connections_that_break_together_are_told_once_and_those_that_break_again_are_told_again() {
        let (absence, now) = (Absence::default(), clock::instant());
        let broke = |class, after| absence.broke(class, now + Duration::from_millis(after));
        let told = |after: u64| (0..4).filter(|_| broke(Class::Lost, after)).count();
        assert_eq!([0, 5, 24].map(told), [1, 0, 0]);
        absence.ends();
        assert_eq!([24, 25, 49, 1_000].map(told), [0, 1, 0, 1]);
        assert!(broke(Class::ReadOnly, 1_000), "by something else");
    }
}
