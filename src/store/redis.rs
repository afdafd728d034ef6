//! Buckets in Redis, shared by all who use the same one.
//!
//! A script decides whole batches of requests atomically (`decide.lua`), so that no two callers can both take the last
//! token, and a denied request takes none. Calls share round trips ([`queue`]), those of each thread among themselves
//! ([`desk`]). To each server ([`node`]) two connections are kept open, or one for each thread ([`link`]): a batch whose
//! connection breaks goes again over another at once, under the same number, and is not applied twice. In a Cluster
//! ([`cluster`]) there is such a node for each server that has slots, and a batch is a script run for each slot, since a
//! script may only touch one; they go to a server in one message.
//!
//! There may be other stores beside the first, each with a name and servers of its own; what a bucket is called says which of
//! them it is in.
//!
//! Connecting is done in the background, with growing pauses; no call waits for it. A call that Redis does not answer
//! before its deadline fails with a [`Failure`], whether or not its charge has landed; what became of it can be learned
//! later.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::time::Instant;

use crate::decision::Charge;
use crate::store::{Class, StoreError};

mod absence;
mod address;
mod cluster;
mod desk;
mod eviction;
mod group;
mod heartbeat;
mod link;
mod memory;
mod node;
mod pending;
mod queue;
mod refusal;
mod replicas;
mod resolver;
mod script;
mod sentinel;
mod slots;
mod target;
mod timers;
mod trouble;
mod tuning;
mod url;

pub use address::{Address, Files};
pub use desk::Threads;
pub use node::Node;
pub use pending::{Failure, Pending};
pub use script::Answered;
pub use target::Target;
pub use tuning::Tuning;

use cluster::Cluster;
use resolver::Resolver;
use sentinel::Sentinels;

/// Buckets that a request can be decided on at once: all of one server, or those of one slot of a Cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    /// 0 for the store without a name, and then by one more for each that has one.
    store: u8,
    slot: u16,
}

impl Part {
    /// The part of all buckets, where there is only one.
    pub const ONLY: Self = Self::of_slot(0);

    const fn of_slot(slot: u16) -> Self {
        Self { store: 0, slot }
    }
}

/// What buckets are kept in: a Redis, and others that have names, each with connections of its own.
#[derive(Debug)]
pub struct RedisStore {
    default: Topology,
    named: Vec<Named>,
    threads: Threads,
    /// The last epoch of any of its servers.
    epochs: Arc<AtomicU64>,
    /// How many processes there are where no server is known yet.
    replicas: NonZeroU32,
}

/// A store that buckets are in whose names begin with `prefix`.
#[derive(Debug)]
struct Named {
    name: Box<str>,
    prefix: Box<[u8]>,
    topology: Topology,
}

/// What a store is called that has no name.
const DEFAULT: &str = "default";

#[derive(Debug)]
enum Topology {
    One(Arc<Node>),
    Cluster(Cluster),
}

impl Topology {
    fn open(
        target: &Target,
        tuning: Tuning,
        threads: &Threads,
        epochs: &Arc<AtomicU64>,
    ) -> Result<Self, getrandom::Error> {
        let process = getrandom::u64()?;
        let one = |resolver| Self::One(Node::new(resolver, tuning, threads, process, epochs));
        Ok(match target.clone() {
            Target::Server(address) => one(Resolver::fixed(address)),
            Target::Sentinels { service, sentinels, server } => {
                let sentinels = Sentinels::new(service, sentinels, server, tuning.connect_timeout);
                one(Resolver::Sentinels(Arc::new(sentinels)))
            }
            Target::Cluster(seeds) => {
                Self::Cluster(Cluster::open(seeds, tuning, threads.clone(), process, Arc::clone(epochs)))
            }
        })
    }

    fn nodes(&self) -> Vec<Arc<Node>> {
        match self {
            Self::One(node) => vec![Arc::clone(node)],
            Self::Cluster(cluster) => cluster.nodes(),
        }
    }
}

impl RedisStore {
    /// Uses the Redis that `target` leads to, and begins to connect to it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system has no randomness to give for this process's name.
    pub fn new(target: &Target, tuning: Tuning) -> Result<Self, getrandom::Error> {
        Self::on(Threads::default(), target, tuning)
    }

    /// The same for calls that come from these threads: each of them has a connection of its own.
    ///
    /// # Errors
    /// The same.
    pub fn on(threads: Threads, target: &Target, tuning: Tuning) -> Result<Self, getrandom::Error> {
        let (epochs, replicas) = (Arc::default(), tuning.replicas);
        let default = Topology::open(target, tuning, &threads, &epochs)?;
        Ok(Self { default, named: Vec::new(), threads, epochs, replicas })
    }

    /// Uses another Redis besides, for the buckets whose names say that they are in the store of this name.
    ///
    /// # Errors
    /// The same.
    pub fn with_store(
        mut self,
        name: &str,
        target: &Target,
        tuning: Tuning,
    ) -> Result<Self, getrandom::Error> {
        let prefix = super::name::prefix(name).into_bytes().into();
        let topology = Topology::open(target, tuning, &self.threads, &self.epochs)?;
        self.named.push(Named { name: name.into(), prefix, topology });
        Ok(self)
    }

    /// Where the bucket of this name is. A request is decided at once when its buckets are all in one part.
    #[must_use]
    pub fn part_of(&self, name: &[u8]) -> Part {
        let named = self.named.iter().position(|store| name.starts_with(&store.prefix));
        let store = named.and_then(|place| u8::try_from(place + 1).ok()).unwrap_or(0);
        let slot = match self.topology(store) {
            Some(Topology::Cluster(_)) => slots::slot_of(name),
            Some(Topology::One(_)) | None => 0,
        };
        Part { store, slot }
    }

    fn topology(&self, store: u8) -> Option<&Topology> {
        match store.checked_sub(1) {
            None => Some(&self.default),
            Some(place) => self.named.get(usize::from(place)).map(|store| &store.topology),
        }
    }

    fn topologies(&self) -> impl Iterator<Item = (&str, &Topology)> {
        let named = self.named.iter().map(|store| (&*store.name, &store.topology));
        std::iter::once((DEFAULT, &self.default)).chain(named)
    }

    /// The server that a part is on, if that is known.
    #[must_use]
    pub fn node(&self, part: Part) -> Option<Cow<'_, Arc<Node>>> {
        match self.topology(part.store)? {
            // Not counted as in use, by each call on each core.
            Topology::One(node) => Some(Cow::Borrowed(node)),
            Topology::Cluster(cluster) => cluster.node(part).map(Cow::Owned),
        }
    }

    /// All servers that are known.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.topologies().flat_map(|(_, topology)| topology.nodes()).collect()
    }

    /// The same by store: what each is called, and its servers.
    pub fn stores(&self) -> impl Iterator<Item = (&str, Vec<Arc<Node>>)> {
        self.topologies().map(|(name, topology)| (name, topology.nodes()))
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
    ) -> Result<Answered, Failure> {
        let Some(node) = self.node(part) else {
            return Err(StoreError::Disconnected(Class::ClusterDown).into());
        };
        node.decide(part, charges, names, deadline).await
    }

    /// The last epoch of any server's memory: see [`Node::epoch`].
    #[must_use]
    pub fn epochs(&self) -> u64 {
        self.epochs.load(Ordering::Acquire)
    }

    /// How many processes share it: the most that any server knows of.
    #[must_use]
    pub fn replicas(&self) -> NonZeroU32 {
        self.nodes().iter().map(|node| node.replicas()).max().unwrap_or(self.replicas)
    }

    /// Whether there is a connection, to any of its servers.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.topologies().any(|(_, topology)| match topology {
            Topology::One(node) => node.is_connected(),
            Topology::Cluster(cluster) => cluster.is_connected(),
        })
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
