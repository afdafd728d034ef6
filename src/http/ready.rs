//! Whether calls should come here, and how the stores stand, which is nobody's reason not to come.

use http::StatusCode;
use serde::Serialize;

use super::{Answer, Http, write};

#[derive(Serialize)]
struct Ready {
    ready: bool,
    /// Whether rules are in force.
    rules: bool,
    draining: bool,
    /// For those who may know.
    #[serde(skip_serializing_if = "Option::is_none")]
    stores: Option<Vec<Store>>,
}

/// Where buckets are kept. That one is away is answered for, and no reason to be sent no calls: every replica would have
/// the same reason.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Store {
    Memory { buckets: usize, limit: usize },
    Redis { store: String, node: String, connected: bool, breaker: &'static str, waiting: usize },
}

/// Ready if rules are in force and the process is not on its way out.
pub(super) fn answer(http: &Http, with_stores: bool) -> Answer {
    let (rules, draining) = (http.watch.is_loaded(), http.is_draining());
    let ready = rules && !draining;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    write(status, &Ready { ready, rules, draining, stores: with_stores.then(|| stores(http)) })
}

fn stores(http: &Http) -> Vec<Store> {
    let memory = http.limiter.memory().map(|store| {
        let usage = store.usage();
        Store::Memory { buckets: usage.buckets, limit: usage.capacity }
    });
    let stores = http.limiter.redis().into_iter().flat_map(|redis| redis.stores());
    let redis = stores.flat_map(|(store, nodes)| {
        nodes.into_iter().map(move |node| Store::Redis {
            store: store.to_owned(),
            node: node.name().to_owned(),
            connected: node.is_connected(),
            breaker: node.breaker().state().name(),
            waiting: node.waiting(),
        })
    });
    memory.into_iter().chain(redis).collect()
}
