//! Every way in which a Redis fails, under a steady load: each call is answered in time, and limits still hold.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::proxy::{Fault, Proxy};
use crate::support::redis::RedisServer;

mod drill;
mod fleet;
mod flood;
mod network;
mod policies;
mod server;
mod soak;

/// Asks Redis through a proxy.
fn ping(proxy: SocketAddr) -> Result<String, redis::RedisError> {
    let client = redis::Client::open(format!("redis://{proxy}"))?;
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(1))?;
    connection.set_read_timeout(Some(Duration::from_millis(300)))?;
    redis::cmd("PING").query(&mut connection)
}

#[test]
fn the_harness_does_to_connections_what_it_is_told_to() {
    let redis = RedisServer::start();
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], redis.port())));
    let timed = || {
        let start = weir::clock::instant();
        ping(proxy.address()).map(|_| start.elapsed())
    };
    assert!(timed().is_ok());
    proxy.set(Fault::Latency(Duration::from_millis(100)));
    assert!(timed().unwrap() >= Duration::from_millis(100));
    for fault in [Fault::BlackHole, Fault::Reset, Fault::Truncate, Fault::Garble] {
        proxy.set(fault);
        assert!(timed().is_err(), "{fault:?}");
    }
    proxy.set(Fault::None);
    assert!(timed().is_ok());
}
