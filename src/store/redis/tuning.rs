//! The numbers of how a Redis is used.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::breaker::Thresholds;

/// The numbers of how a Redis is used, each of its nodes if it is a Cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tuning {
    /// Connections that are kept open, if threads do not need more. With two, what was under way on one that breaks goes over
    /// the other at once.
    pub connections: usize,
    /// Batches under way at a time: of each thread that serves calls one at least, up to four. One that is being decided and
    /// one that is on its way keep Redis busy; more would only leave fewer calls to each.
    pub batches: usize,
    /// Distinct buckets of a batch, about: 256 are about a millisecond of Redis.
    pub batch_buckets: usize,
    /// Charges of a batch: many for one bucket take their time too.
    pub batch_charges: usize,
    /// Calls that may wait for a batch; each thread that serves calls has its part of them.
    pub queue: usize,
    /// How often a connection is asked whether it is still there, and how long it may take to say so. One that was closed
    /// while nobody used it, or that leads nowhere any more, is found by this, not by a call.
    pub ping: Duration,
    /// How often a server is asked what it does when its memory is full.
    pub policy: Duration,
    /// Longest time for one attempt to connect.
    pub connect_timeout: Duration,
    /// The first pause between attempts to connect; each is twice the one before.
    pub reconnect_first: Duration,
    /// The longest.
    pub reconnect_longest: Duration,
    /// How often a Cluster is asked which node has which slots, when there is no other reason to.
    pub map_refresh: Duration,
    /// How long a batch and a probe may take: what is slower has failed. A call's deadline.
    pub timeout: Duration,
    /// When a server is left in peace.
    pub breaker: Thresholds,
    /// How often a server is told that this process is there.
    pub heartbeat: Duration,
    /// How many of these may be missed before a process is taken for gone.
    pub heartbeats_missed: u32,
    /// How many processes there are at least.
    pub replicas: NonZeroU32,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            connections: 2,
            batches: 2,
            batch_buckets: 256,
            batch_charges: 1_000,
            queue: 10_000,
            ping: Duration::from_secs(1),
            policy: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(1),
            reconnect_first: Duration::from_millis(50),
            reconnect_longest: Duration::from_secs(2),
            map_refresh: Duration::from_secs(10),
            timeout: Duration::from_millis(10),
            breaker: Thresholds::default(),
            heartbeat: Duration::from_secs(1),
            heartbeats_missed: 3,
            replicas: NonZeroU32::MIN,
        }
    }
}
