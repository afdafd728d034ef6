//! Headers that a response asks the proxy to add.

use super::convert::seconds;
use crate::bucket::{Outcome, Retry};
use crate::clock::Micros;
use crate::decision::{Charge, Decision, Mode};
use crate::proto::HeaderValue;

/// `Retry-After` (RFC 9110, section 10.2.3) for a denied request: the seconds until it would be admitted if nobody else
/// came. None when it never would be.
pub(super) fn retry_after(charges: &[Charge], decision: &Decision) -> Option<HeaderValue> {
    if !decision.denied {
        return None;
    }
    let wait = wait(charges, decision)?;
    Some(HeaderValue { key: "retry-after".into(), value: seconds(wait).to_string(), raw_value: Vec::new() })
}

/// Every enforced limit must fit, so the longest wait counts; of quotas that are all over one must, so the shortest.
fn wait(charges: &[Charge], decision: &Decision) -> Option<Micros> {
    let mut enforced = 0;
    let mut quotas: Option<Micros> = None;
    let mut all_quotas_over = true;
    for (charge, verdict) in charges.iter().zip(&decision.verdicts) {
        match (charge.mode, verdict.outcome) {
            (Mode::Enforced, Outcome::Over(Retry::In(wait))) => enforced = enforced.max(wait),
            (Mode::Enforced, Outcome::Over(Retry::Never)) => return None,
            (Mode::Quota, Outcome::Over(Retry::In(wait))) => {
                quotas = Some(quotas.map_or(wait, |other| other.min(wait)))
            }
            (Mode::Quota, Outcome::Fits) => all_quotas_over = false,
            _ => {}
        }
    }
    let has_quotas = charges.iter().any(|charge| charge.mode == Mode::Quota);
    if has_quotas && all_quotas_over { quotas.map(|quotas| quotas.max(enforced)) } else { Some(enforced) }
}
