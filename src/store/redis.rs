//! Buckets in Redis, shared by all who use the same one.
//!
//! A script decides whole batches of requests atomically (`decide.lua`), so that no two callers can both take the last
//! token, and a denied request takes none. Calls share round trips ([`queue`]). To each server ([`node`]) two connections
//! are kept open ([`link`]): a batch whose connection breaks goes again over the other at once, under the same number, and
//! is not applied twice. In a Cluster ([`cluster`]) there is such a node for each server that has slots, and a batch is a
//! script run for each slot, since a script may only touch one; they go to a server in one message.
//!
//! Connecting is done in the background, with growing pauses; no call waits for it. A call that Redis does not answer
//! before its deadline fails with a [`Failure`], whether or not its charge has landed; what became of it can be learned
//! later.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::decision::{Charge, Decision};
use crate::store::{Class, StoreError};

mod address;
mod cluster;
mod eviction;
mod group;
mod link;
mod node;
mod pending;
mod queue;
mod resolver;
mod script;
mod sentinel;
mod slots;
mod target;
mod trouble;
mod tuning;
mod url;

pub use address::{Address, Files};
pub use node::Node;
pub use pending::{Failure, Pending};
pub use target::Target;
pub use tuning::Tuning;

use cluster::Cluster;
use resolver::Resolver;
use sentinel::Sentinels;

/// Buckets that a request can be decided on at once: all of one server, or those of one slot of a Cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part(u16);

impl Part {
    /// The part of all buckets, where there is only one.
    pub const ONLY: Self = Self(0);
}

/// A Redis that buckets are kept in.
#[derive(Debug)]
pub struct RedisStore(Topology);

#[derive(Debug)]
enum Topology {
    One(Arc<Node>),
    Cluster(Cluster),
}

impl RedisStore {
    /// Uses the Redis that `target` leads to, and begins to connect to it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system has no randomness to give for this process's name.
    pub fn new(target: &Target, tuning: Tuning) -> Result<Self, getrandom::Error> {
        let process = getrandom::u64()?;
        let one = |resolver| Topology::One(Node::new(resolver, tuning, process));
        Ok(Self(match target.clone() {
            Target::Server(address) => one(Resolver::fixed(address)),
            Target::Sentinels { service, sentinels, server } => {
                let sentinels = Sentinels::new(service, sentinels, server, tuning.connect_timeout);
                one(Resolver::Sentinels(Arc::new(sentinels)))
            }
            Target::Cluster(seeds) => Topology::Cluster(Cluster::open(seeds, tuning, process)),
        }))
    }

    /// Where the bucket of this name is. A request is decided at once when its buckets are all in one part.
    #[must_use]
    pub fn part_of(&self, name: &[u8]) -> Part {
        match &self.0 {
            Topology::One(_) => Part::ONLY,
            Topology::Cluster(_) => Part(slots::slot_of(name)),
        }
    }

    /// The server that a part is on, if that is known.
    #[must_use]
    pub fn node(&self, part: Part) -> Option<Arc<Node>> {
        match &self.0 {
            Topology::One(node) => Some(Arc::clone(node)),
            Topology::Cluster(cluster) => cluster.node(part),
        }
    }

    /// All servers that are known.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        match &self.0 {
            Topology::One(node) => vec![Arc::clone(node)],
            Topology::Cluster(cluster) => cluster.nodes(),
        }
    }

    /// Decides a request, whose charges are on the buckets of these names, in order; all of them are in `part`.
    ///
    /// # Errors
    /// When there is no answer by the deadline.
    pub async fn decide(
        &self,
        part: Part,
        charges: &[Charge],
        names: impl IntoIterator<Item = Bytes>,
        deadline: Instant,
    ) -> Result<Decision, Failure> {
        let Some(node) = self.node(part) else {
            return Err(StoreError::Disconnected(Class::ClusterDown).into());
        };
        node.decide(part, charges, names, deadline).await
    }

    /// Whether there is a connection, to any of its servers.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        match &self.0 {
            Topology::One(node) => node.is_connected(),
            Topology::Cluster(cluster) => cluster.is_connected(),
        }
    }

    /// Requests that the script and the arithmetic here decided differently. Not 0 means an error in one of them.
    #[must_use]
    pub fn parted(&self) -> u64 {
        self.nodes().iter().map(|node| node.parted()).sum()
    }
}

#[cfg(test)]
mod parity;
#[cfg(test)]
#[allow(dead_code, reason = "the integration tests, whose harness this is, use more of it")]
#[path = "../../tests/it/support/redis.rs"]
mod server;
