//! Figures that their owners keep, and tell when somebody asks for metrics.

use std::sync::Arc;

use crate::limiter::Limiter;
use crate::rules::Watch;
use crate::serve::tls::Tls;
use crate::serve::{Overload, Tally};
use crate::telemetry::metrics::{
    CALLS_SHED, CALLS_UNDER_WAY, CONNECTIONS, CONNECTIONS_ACCEPTED, CONNECTIONS_FAILED, CONNECTIONS_REFUSED,
    TLS_END, TLS_REFUSED,
};
use crate::telemetry::{Metrics, collection};

/// Has it told how the rules and the stores stand.
pub(super) fn observe(metrics: &Metrics, limiter: &Arc<Limiter>, watch: &Arc<Watch>) {
    let (limiter, watch) = (Arc::clone(limiter), Arc::clone(watch));
    metrics.observe(move |to| {
        collection::collect_status(&watch.status(), to);
        limiter.collect(to);
    });
}

/// The same for calls under way.
#[allow(clippy::cast_precision_loss, reason = "so many there are not")]
pub(super) fn observe_calls(metrics: &Metrics, overload: &Arc<Overload>) {
    let overload = Arc::clone(overload);
    metrics.observe(move |to| {
        to.number(&CALLS_UNDER_WAY, &[], overload.under_way() as f64);
        to.count(&CALLS_SHED, &[], overload.shed());
    });
}

/// The same for the connections of a listener, and its certificate, if it has one.
#[allow(clippy::cast_precision_loss, reason = "so many there are not")]
pub(super) fn observe_listener(
    metrics: &Metrics,
    name: &'static str,
    tally: &Arc<Tally>,
    tls: Option<&Arc<Tls>>,
) {
    let (tally, tls) = (Arc::clone(tally), tls.cloned());
    metrics.observe(move |to| {
        to.number(&CONNECTIONS, &[name], tally.open() as f64);
        to.count(&CONNECTIONS_ACCEPTED, &[name], tally.accepted());
        to.count(&CONNECTIONS_REFUSED, &[name], tally.refused());
        to.count(&CONNECTIONS_FAILED, &[name], tally.failed());
        if let Some(tls) = &tls {
            to.number(&TLS_END, &[name], tls.end() as f64);
            to.number(&TLS_REFUSED, &[name], f64::from(u8::from(tls.is_refused())));
        }
    });
}
