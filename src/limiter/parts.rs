//! Requests whose buckets are in several parts, none of which can be decided on together with another.
//!
//! Each part is asked, at the same time, and the answers are put together. A part decides its own charges all or nothing;
//! of quotas, which deny only all together, each is asked whether it has room, and the whole is judged here. When the
//! whole is denied, what the other parts have taken is given back.
//!
//! Until it has been, others see a little less than there is: a denial that comes of such a request is not believed for
//! long ([`BELIEVED`]). What is over and counts whatever the answer is not given back.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use smallvec::SmallVec;

use super::Names;
use crate::bucket::{Algorithm, Hits, Outcome};
use crate::clock::Micros;
use crate::decision::{BucketKey, Charge, Decision, Mode, Source, Verdict, Verdicts, denies};

/// The longest that a denial of such a request is remembered, in microseconds.
pub(super) const BELIEVED: Micros = 100_000;

/// Charges of a request.
pub(super) type Charges = SmallVec<[Charge; 4]>;

/// What of a request is in one part.
#[derive(Clone, Debug, Default)]
pub(super) struct Piece {
    pub(super) charges: Charges,
    pub(super) names: Names,
    /// Which of the request's charges they are.
    places: SmallVec<[usize; 4]>,
}

/// What has to be given back.
#[derive(Clone, Debug, Default)]
pub(super) struct Refund {
    pub(super) charges: Charges,
    pub(super) names: Names,
    /// Who has taken it.
    pub(super) source: Source,
}

/// Sorts a request by where its buckets are; none if all are in one part.
pub(super) fn split<P: Eq>(
    charges: &[Charge],
    names: &Names,
    part_of: impl Fn(&Bytes) -> P,
) -> Option<Vec<Piece>> {
    let mut parts = names.iter().map(&part_of);
    let first = parts.next()?;
    if parts.all(|part| part == first) {
        return None;
    }
    let mut pieces: Vec<Piece> = Vec::new();
    let mut found: SmallVec<[P; 4]> = SmallVec::new();
    for (place, (charge, name)) in charges.iter().zip(names).enumerate() {
        let part = part_of(name);
        let index = found.iter().position(|other| *other == part).unwrap_or_else(|| {
            found.push(part);
            pieces.push(Piece::default());
            pieces.len() - 1
        });
        if let Some(piece) = pieces.get_mut(index) {
            let mode = if charge.mode == Mode::Quota { Mode::Shadow } else { charge.mode };
            piece.charges.push(Charge { mode, ..*charge });
            piece.names.push(name.clone());
            piece.places.push(place);
        }
    }
    Some(pieces)
}

/// Puts together what was decided of each piece, and says what has to be given back: of a request that is denied, what was
/// taken. Without an answer for each piece there is none for the whole, and all that was taken has to be given back.
pub(super) fn conclude(
    charges: &[Charge],
    pieces: &[Piece],
    decisions: &[Option<Decision>],
) -> (Option<Decision>, SmallVec<[Refund; 2]>) {
    let mut verdicts: SmallVec<[Option<Verdict>; 4]> = SmallVec::from_elem(None, charges.len());
    for (piece, decision) in pieces.iter().zip(decisions) {
        for (place, verdict) in
            piece.places.iter().zip(decision.iter().flat_map(|decision| &decision.verdicts))
        {
            if let Some(slot) = verdicts.get_mut(*place) {
                *slot = Some(*verdict);
            }
        }
    }
    let whole: Option<Verdicts> = verdicts.into_iter().collect();
    let denied = whole.as_ref().is_none_or(|verdicts| {
        decisions.iter().flatten().any(|decision| decision.denied) || denies(charges, verdicts)
    });
    let mut decision = whole.map(|verdicts| {
        let at = decisions.iter().flatten().map(|decision| decision.at).max().unwrap_or_default();
        Decision { denied, at, verdicts }
    });
    let mut refunds = SmallVec::new();
    if denied {
        for (piece, decided) in pieces.iter().zip(decisions) {
            let Some(decided) = decided.as_ref().filter(|decided| !decided.denied) else { continue };
            refunds.extend(refund(piece, decided));
            if let Some(decision) = &mut decision {
                show_refunded(piece, decided, &mut decision.verdicts);
            }
        }
    }
    (decision, refunds)
}

impl Piece {
    /// The charges on a bucket, what each came to, and how the bucket was left by it.
    fn of<'a>(
        &'a self,
        bucket: BucketKey,
        decision: &'a Decision,
    ) -> impl DoubleEndedIterator<Item = (&'a Charge, &'a Verdict)> {
        self.charges.iter().zip(&decision.verdicts).filter(move |(charge, _)| charge.bucket == bucket)
    }

    /// What has been taken of a bucket, and is to be given back.
    ///
    /// In a request that also gives back to the same bucket, part of that may have found nothing to give back to once the
    /// rest is undone. Where more has landed after it, it cannot be told any more: then so much less is returned, because
    /// too much would be admitted otherwise.
    fn taken(&self, bucket: BucketKey, decision: &Decision) -> u64 {
        let (mut taken, mut given, mut landed_after) = (0_u64, 0_u64, false);
        for (charge, verdict) in self.of(bucket, decision) {
            match charge.hits {
                // Admitted by a rule for want of a store: nothing was taken of anything.
                Hits::Take(_) if verdict.source == Source::Policy => {}
                Hits::Take(tokens) if verdict.outcome == Outcome::Fits => {
                    taken = taken.saturating_add(tokens)
                }
                Hits::Take(_) | Hits::Peek => {}
                Hits::GiveBack(tokens) | Hits::Refund { tokens, .. } if taken > 0 => {
                    given = given.saturating_add(tokens);
                }
                _ => landed_after |= given > 0,
            }
        }
        if landed_after { taken.saturating_sub(given) } else { taken }
    }
}

/// Exactly what a piece has taken: of windows, as long as it counts there.
fn refund(piece: &Piece, decision: &Decision) -> Option<Refund> {
    let mut refund = Refund::default();
    for (charge, name) in piece.charges.iter().zip(&piece.names) {
        if refund.charges.iter().any(|other| other.bucket == charge.bucket) {
            continue;
        }
        let tokens = piece.taken(charge.bucket, decision);
        if tokens > 0 {
            let hits = Hits::Refund { tokens, taken: decision.at };
            refund.charges.push(Charge { hits, mode: Mode::Shadow, ..*charge });
            refund.names.push(name.clone());
        }
    }
    refund.source = decision.verdicts.first().map(|verdict| verdict.source).unwrap_or_default();
    (!refund.charges.is_empty()).then_some(refund)
}

/// Shows of a piece's buckets what is left of them when they have got back what was taken.
fn show_refunded(piece: &Piece, decision: &Decision, verdicts: &mut Verdicts) {
    for (place, charge) in piece.places.iter().zip(&piece.charges) {
        let tokens = piece.taken(charge.bucket, decision);
        // How the last charge left it, which is how it was left.
        let last = piece.of(charge.bucket, decision).next_back();
        if let (Some((_, last)), Some(verdict)) = (last, verdicts.get_mut(*place)) {
            (verdict.remaining, verdict.full_in) = refunded(charge, last, tokens);
        }
    }
}

/// What remains of a bucket that is given tokens back, and in how long it is full.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the same as the arithmetic does; what is cut off is told as the most that can be"
)]
fn refunded(charge: &Charge, left: &Verdict, tokens: u64) -> (u32, Micros) {
    let (limit, tokens) = (&charge.limit, tokens as f64);
    let (burst, rate) = (limit.burst(), limit.rate());
    if limit.algorithm() != Algorithm::TokenBucket || rate <= 0.0 {
        let remaining = (f64::from(left.remaining) + tokens).min(burst);
        // When one of several counters is full again is not known; when nothing is used, it is.
        return (remaining as u32, if remaining < burst { left.full_in } else { 0 });
    }
    // What is owed, and thus not there when it is given back; the wait is rounded up.
    let debt = (rate * (left.full_in as f64 - 1.0) - burst).max(0.0);
    let remaining = (f64::from(left.remaining) + tokens - debt).clamp(0.0, burst);
    let full_in = (left.full_in as f64 - tokens / rate).max(0.0);
    (remaining as u32, full_in.ceil() as Micros)
}

/// Waits for all of some futures at the same time.
pub(super) async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut outputs: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    poll_fn(|context| {
        let mut is_done = true;
        for (future, output) in futures.iter_mut().zip(&mut outputs).filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(context) {
                Poll::Ready(ready) => *output = Some(ready),
                Poll::Pending => is_done = false,
            }
        }
        if is_done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    outputs.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
