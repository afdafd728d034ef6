//! Keeps calls away from a store that does not answer.
//!
//! A breaker is **closed** while its store answers, and everybody asks it. It **opens** after so many failures in a row,
//! or when of what was asked lately too large a part failed; what is slow has failed. While it is open nobody asks, and
//! the caller's own buckets decide. After a while it is **probing**: a question of the breaker's own goes to the store,
//! one at a time and in the background, so that no user's call finds out whether the store is back. A probe that fails
//! opens it again; so many in a row that are answered close it.
//!
//! How long it stays open grows with each opening that follows the last one soon, so that a store that comes and goes is
//! not asked ever again, and is drawn by lot within bounds, so that many processes do not come back in step. Once the
//! breaker has been closed for longer than it ever stays open, the next failure is a first one again.
//!
//! Cold starts need no protection of their own: the share of failures counts only once enough has been asked, and until
//! then it takes failures in a row. What was asked before the breaker opened and is answered after says nothing any
//! more: neither a late success closes it nor a late failure keeps it open for longer.
//!
//! [`Circuit`] is the machine, handed the moment and the lot; [`Breaker`] is what calls and the probing task share.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::field::debug;

use crate::clock;

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Failures in a row that open it.
    pub failures: NonZeroU32,
    /// Part of what was asked in the last `window` that opens it when it fails, above 0 and up to 1.
    pub failure_rate: f64,
    /// How far back that part is counted.
    pub window: Duration,
    /// How much has to have been asked in the window for that part to count.
    pub least_asked: NonZeroU32,
    /// Shortest time that it stays open.
    pub open: Duration,
    /// Longest time that it stays open before it probes.
    pub longest_open: Duration,
    /// Probes in a row that have to be answered to close it.
    pub probes: NonZeroU32,
    /// Pause between these.
    pub probe_pause: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        const fn count(count: u32) -> NonZeroU32 {
            match NonZeroU32::new(count) {
                Some(count) => count,
                None => NonZeroU32::MIN,
            }
        }
        Self {
            failures: count(5),
            failure_rate: 0.5,
            window: Duration::from_secs(10),
            least_asked: count(20),
            open: Duration::from_secs(1),
            longest_open: Duration::from_secs(10),
            probes: count(2),
            probe_pause: Duration::from_millis(100),
        }
    }
}

/// What a breaker does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The store is asked.
    Closed,
    /// It is left in peace.
    Open,
    /// It is asked by the breaker alone.
    Probing,
}

impl State {
    /// As logs and metrics name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Probing => "probing",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The parts that a window is counted in: what is older than a window is forgotten a tenth of it at a time.
const PARTS: u8 = 10;

/// How much longer than it has to a breaker may stay open, by lot.
const LOT: f64 = 0.25;

/// The state machine: pure functions of what happened, when, and a lot from 0 to 1.
#[derive(Debug)]
pub struct Circuit {
    thresholds: Thresholds,
    phase: Phase,
    /// Openings that followed one another soon.
    openings: u32,
}

#[derive(Debug)]
enum Phase {
    Closed { since: Instant, in_a_row: u32, lately: Lately },
    Open { until: Instant },
    Probing { answered: u32, next: Instant },
}

/// What was asked lately and what of it failed, by parts of the window.
#[derive(Debug)]
struct Lately {
    parts: [(u32, u32); PARTS as usize],
    /// The part that counts now, and when it began.
    current: usize,
    began: Instant,
}

impl Lately {
    fn new(now: Instant) -> Self {
        Self { parts: [(0, 0); PARTS as usize], current: 0, began: now }
    }

    fn count(&mut self, failed: bool, window: Duration, now: Instant) {
        let part = (window / u32::from(PARTS)).max(Duration::from_millis(1));
        for _ in 0..PARTS {
            if now.saturating_duration_since(self.began) < part {
                break;
            }
            self.began += part;
            self.current = (self.current + 1) % self.parts.len();
            if let Some(counts) = self.parts.get_mut(self.current) {
                *counts = (0, 0);
            }
        }
        if now.saturating_duration_since(self.began) >= part {
            // Nobody has asked for longer than a window.
            *self = Self::new(now);
        }
        if let Some((asked, failures)) = self.parts.get_mut(self.current) {
            *asked = asked.saturating_add(1);
            *failures = failures.saturating_add(u32::from(failed));
        }
    }

    fn totals(&self) -> (u32, u32) {
        let add = |(asked, failed): (u32, u32), part: &(u32, u32)| {
            (asked.saturating_add(part.0), failed.saturating_add(part.1))
        };
        self.parts.iter().fold((0, 0), add)
    }
}

impl Circuit {
    /// A closed circuit.
    #[must_use]
    pub fn new(thresholds: Thresholds, now: Instant) -> Self {
        Self { thresholds, phase: Self::closed(now), openings: 0 }
    }

    fn closed(now: Instant) -> Phase {
        Phase::Closed { since: now, in_a_row: 0, lately: Lately::new(now) }
    }

    /// What it does at present.
    #[must_use]
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::Probing { .. } => State::Probing,
        }
    }

    /// When the next probe is due; `None` while it is closed.
    #[must_use]
    pub fn next_probe(&self) -> Option<Instant> {
        match self.phase {
            Phase::Closed { .. } => None,
            Phase::Open { until } => Some(until),
            Phase::Probing { next, .. } => Some(next),
        }
    }

    /// A call was answered.
    pub fn succeeded(&mut self, now: Instant) {
        if let Phase::Closed { in_a_row, lately, .. } = &mut self.phase {
            *in_a_row = 0;
            lately.count(false, self.thresholds.window, now);
        }
    }

    /// A call failed, or was answered too late.
    pub fn failed(&mut self, now: Instant, lot: f64) {
        let Thresholds { failures, failure_rate, window, least_asked, longest_open, .. } = self.thresholds;
        let Phase::Closed { since, in_a_row, lately } = &mut self.phase else { return };
        *in_a_row = in_a_row.saturating_add(1);
        lately.count(true, window, now);
        let (asked, failed) = lately.totals();
        let rate_is_high = asked >= least_asked.get() && f64::from(failed) >= failure_rate * f64::from(asked);
        if *in_a_row >= failures.get() || rate_is_high {
            if now.saturating_duration_since(*since) > longest_open {
                self.openings = 0;
            }
            self.open(now, lot);
        }
    }

    /// A probe begins, if one is due.
    #[must_use]
    pub fn begin_probe(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::Open { until } if until <= now => {
                self.phase = Phase::Probing { answered: 0, next: now };
                true
            }
            Phase::Probing { next, .. } => next <= now,
            Phase::Open { .. } | Phase::Closed { .. } => false,
        }
    }

    /// The probe was answered.
    pub fn probe_succeeded(&mut self, now: Instant) {
        let Phase::Probing { answered, next } = &mut self.phase else { return };
        *answered = answered.saturating_add(1);
        *next = now + self.thresholds.probe_pause;
        if *answered >= self.thresholds.probes.get() {
            self.phase = Self::closed(now);
        }
    }

    /// The probe was not answered, or too late.
    pub fn probe_failed(&mut self, now: Instant, lot: f64) {
        if let Phase::Probing { .. } = self.phase {
            self.open(now, lot);
        }
    }

    fn open(&mut self, now: Instant, lot: f64) {
        let Thresholds { open, longest_open, .. } = self.thresholds;
        let doubled = open.saturating_mul(1_u32.checked_shl(self.openings).unwrap_or(u32::MAX));
        // So that the longest lot is the longest time, and the shortest one the shortest.
        let length = doubled.min(longest_open.div_f64(1.0 + LOT)).max(open);
        let length = length.mul_f64(1.0 + LOT * lot.clamp(0.0, 1.0)).min(longest_open.max(open));
        self.openings = self.openings.saturating_add(1);
        self.phase = Phase::Open { until: now + length };
    }
}

/// A circuit that many share.
#[derive(Debug)]
pub struct Breaker {
    /// What it guards, for the log.
    name: String,
    circuit: Mutex<Circuit>,
    /// The same as the circuit's state, to be read by each call.
    closed: AtomicBool,
    /// Rung when it opens.
    opened: Notify,
    openings: AtomicU64,
}

impl Breaker {
    /// A closed breaker before the store of this name.
    #[must_use]
    pub fn new(name: impl Into<String>, thresholds: Thresholds) -> Self {
        Self {
            name: name.into(),
            circuit: Mutex::new(Circuit::new(thresholds, clock::instant())),
            closed: AtomicBool::new(true),
            opened: Notify::new(),
            openings: AtomicU64::new(0),
        }
    }

    /// Whether the store is to be asked.
    #[must_use]
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// What it does at present.
    #[must_use]
    pub fn state(&self) -> State {
        self.circuit().state()
    }

    /// How often it has opened, or opened again after a probe.
    #[must_use]
    pub fn openings(&self) -> u64 {
        self.openings.load(Ordering::Relaxed)
    }

    /// How long until the store is asked again; nothing while it is.
    #[must_use]
    pub fn next_probe_in(&self) -> Option<Duration> {
        remaining(self.circuit().next_probe())
    }

    /// The store answered.
    pub fn succeeded(&self) {
        if self.is_closed() {
            self.circuit().succeeded(clock::instant());
        }
    }

    /// The store did not answer, or too late; `reason` is for the log.
    pub fn failed(&self, reason: &str) {
        if !self.is_closed() {
            return;
        }
        let mut circuit = self.circuit();
        circuit.failed(clock::instant(), lot());
        if circuit.state() == State::Open && self.closed.swap(false, Ordering::AcqRel) {
            self.openings.fetch_add(1, Ordering::Relaxed);
            let open_for = remaining(circuit.next_probe()).map(debug);
            drop(circuit);
            self.opened.notify_one();
            tracing::warn!(
                store = self.name,
                reason,
                open_for,
                "circuit opened: local buckets decide until it answers again"
            );
        }
    }

    /// Probes the store whenever that is due, for ever. `probe` says why it failed, and `reason` what that is called where a
    /// circuit opens: what keeps it open may be something else. A probe has to end by itself.
    pub async fn keep_probing<P, E>(&self, probe: impl Fn() -> P, reason: impl Fn(&E) -> &'static str)
    where
        P: Future<Output = Result<(), E>>,
        E: fmt::Display,
    {
        loop {
            let next = self.circuit().next_probe();
            let Some(next) = next else {
                self.opened.notified().await;
                continue;
            };
            tokio::time::sleep_until(next).await;
            if !self.begin_probe() {
                continue;
            }
            let result = probe().await;
            let mut circuit = self.circuit();
            match result {
                Ok(()) => circuit.probe_succeeded(clock::instant()),
                Err(error) => {
                    circuit.probe_failed(clock::instant(), lot());
                    self.openings.fetch_add(1, Ordering::Relaxed);
                    let open_for = remaining(circuit.next_probe()).map(debug);
                    // In other words than its opening, which is said once however long it lasts.
                    let reason = reason(&error);
                    tracing::info!(
                        store = self.name,
                        reason,
                        %error,
                        open_for,
                        "circuit stays open: a probe failed"
                    );
                }
            }
            if circuit.state() == State::Closed {
                drop(circuit);
                self.closed.store(true, Ordering::Release);
                tracing::info!(store = self.name, "circuit closed: the store decides again");
            }
        }
    }

    /// A probe begins, if one is due. The first is the beginning of a state, which is said.
    fn begin_probe(&self) -> bool {
        let mut circuit = self.circuit();
        let before = circuit.state();
        let begins = circuit.begin_probe(clock::instant());
        drop(circuit);
        if begins && before == State::Open {
            tracing::info!(store = self.name, "circuit probing: it is asked whether it is back");
        }
        begins
    }

    fn circuit(&self) -> impl std::ops::DerefMut<Target = Circuit> + '_ {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long it is until then.
fn remaining(next: Option<Instant>) -> Option<Duration> {
    next.map(|next| next.saturating_duration_since(clock::instant()))
}

/// From 0 to 1.
fn lot() -> f64 {
    f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
