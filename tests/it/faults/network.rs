//! The network is the fault: what is said does not arrive, or not in time, or not as it was said.

use std::time::Duration;

use super::drill::{Drill, last};
use crate::support::proxy::Fault;

/// Has a proxy do this for a while.
async fn drill(name: &'static str, fault: Fault) {
    let through = |fault: Fault| move |drill: &mut Drill| drill.proxy.as_ref().unwrap().set(fault);
    Drill::of_network(name)
        .run(|drill| {
            through(fault)(drill);
            last();
            through(Fault::None)(drill);
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_milliseconds_of_latency() {
    drill("latency of 50 ms", Fault::Latency(Duration::from_millis(50))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_second_of_latency() {
    drill("latency of 500 ms", Fault::Latency(Duration::from_millis(500))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_vanish() {
    drill("packets vanish", Fault::BlackHole).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_reset_in_mid_reply() {
    drill("reset in mid-reply", Fault::Reset).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_cut_short() {
    drill("truncated replies", Fault::Truncate).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_that_are_garbled() {
    drill("garbled replies", Fault::Garble).await;
}
