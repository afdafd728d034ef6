//! Headers that a response asks the proxy to add.

use std::fmt::Write as _;

use smallvec::SmallVec;

use super::convert::seconds;
use super::{Charged, LimitSource, Plan, tightest};
use crate::bucket::{Outcome, Retry};
use crate::clock::Micros;
use crate::decision::{Charge, Decision, Mode};
use crate::proto::HeaderValue;
use crate::rules::{Allowance, Denial, Header, HeaderStyle, Headers};

/// All headers of a response.
pub(super) fn of(headers: &Headers, plan: &Plan<'_>, decision: &Decision) -> Vec<HeaderValue> {
    let mut added = Vec::new();
    // Limits that deny nothing are none of a client's business.
    let told = || plan.all_charged(decision).filter(|charged| charged.charge.mode != Mode::Shadow);
    match headers.style {
        HeaderStyle::None => {}
        HeaderStyle::Draft => add_draft(&mut added, headers, told()),
        HeaderStyle::RateLimit | HeaderStyle::XRateLimit => {
            if let Some(charged) = tightest(told()) {
                let requests = requests_per_unit(&charged);
                added.push(header(headers.name(Header::Limit), requests.to_string()));
                added.push(header(headers.name(Header::Remaining), charged.verdict.remaining.to_string()));
                added.push(header(headers.name(Header::Reset), reset(&charged).to_string()));
            }
        }
    }
    if decision.denied {
        added.extend(retry_after(headers, &plan.charges, decision));
    } else {
        let warnings: Vec<String> =
            told().filter(Charged::warns).map(|charged| item(&charged, State::Left)).collect();
        if !warnings.is_empty() {
            added.push(header(headers.name(Header::Warning), warnings.join(", ")));
        }
    }
    added
}

/// What a denial's body is.
pub(super) fn content_type(denial: &Denial) -> HeaderValue {
    header("content-type", denial.content_type.to_string())
}

fn header(name: &str, value: String) -> HeaderValue {
    HeaderValue { key: name.to_owned(), value, raw_value: Vec::new() }
}

/// `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers-10: lists of structured fields (RFC 9651), one
/// item for each limit. Of limits that are called the same, the tightest.
fn add_draft<'p, 'r: 'p>(
    added: &mut Vec<HeaderValue>,
    headers: &Headers,
    told: impl Iterator<Item = Charged<'p, 'r>>,
) {
    let mut shown: SmallVec<[Charged<'_, '_>; 4]> = SmallVec::new();
    for charged in told {
        match shown.iter_mut().find(|other| id(other) == id(&charged)) {
            Some(other) => *other = tightest([*other, charged].into_iter()).unwrap_or(charged),
            None => shown.push(charged),
        }
    }
    if !shown.is_empty() {
        let list = |state: State| shown.iter().map(|charged| item(charged, state)).collect::<Vec<_>>();
        added.push(header(headers.name(Header::Policy), list(State::Policy).join(", ")));
        added.push(header(headers.name(Header::State), list(State::Left).join(", ")));
    }
}

/// What an item says of a limit.
#[derive(Clone, Copy)]
enum State {
    /// What it is: so many (`q`) in so many seconds (`w`).
    Policy,
    /// What is left (`r`), and in how many seconds (`t`) it is full, or a denied request would fit.
    Left,
}

fn item(charged: &Charged<'_, '_>, state: State) -> String {
    let mut item = String::from('"');
    // What a string of structured fields may hold (RFC 9651, section 3.3.3).
    for c in id(charged).chars() {
        match c {
            '"' | '\\' => item.extend(['\\', c]),
            ' '..='~' => item.push(c),
            _ => item.push('?'),
        }
    }
    item.push('"');
    let (verdict, window) = (charged.verdict, charged.charge.limit.window());
    // Writing to a String does not fail.
    _ = match state {
        State::Policy => write!(item, ";q={};w={}", requests_per_unit(charged), seconds(window)),
        State::Left => write!(item, ";r={};t={}", verdict.remaining, reset(charged)),
    };
    item
}

/// What a limit is called.
fn id<'r>(charged: &Charged<'_, 'r>) -> &'r str {
    match charged.limit {
        LimitSource::Rule(limit) => &limit.limit_id,
        LimitSource::Request(_) => "override",
    }
}

fn requests_per_unit(charged: &Charged<'_, '_>) -> u32 {
    match charged.limit {
        LimitSource::Rule(limit) => match limit.allowance {
            Allowance::Limited { requests_per_unit, .. } => requests_per_unit,
            Allowance::Unlimited => u32::MAX,
        },
        LimitSource::Request(limit) => limit.requests_per_unit,
    }
}

/// Seconds until a limit is full, or until what was denied would fit.
fn reset(charged: &Charged<'_, '_>) -> i64 {
    seconds(match charged.verdict.outcome {
        Outcome::Fits => charged.verdict.full_in,
        Outcome::Over(Retry::In(wait)) => wait,
        Outcome::Over(Retry::Never) => charged.charge.limit.window(),
    })
}

/// `Retry-After` (RFC 9110, section 10.2.3) for a denied request: the seconds until it would be admitted if nobody else
/// came. None when it never would be.
fn retry_after(headers: &Headers, charges: &[Charge], decision: &Decision) -> Option<HeaderValue> {
    let wait = wait(charges, decision)?;
    Some(header(headers.name(Header::RetryAfter), seconds(wait).to_string()))
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
