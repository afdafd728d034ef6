//! A Redis Cluster: which node has which slots, kept up to date in the background.
//!
//! The map is read from whichever node answers: of those that are known by now, or of the seeds. It is read again when a
//! node says that a slot has moved, when a node cannot be reached, and every so often; meanwhile the old one is used, and
//! nodes say where to go instead.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, Value};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::desk::Threads;
use super::link;
use super::node::Node;
use super::resolver::Resolver;
use super::slots::SLOTS;
use super::trouble::Trouble;
use super::tuning::Tuning;
use super::{Address, Part};
use crate::store::Class;

/// The shortest time between two readings of the map, however many calls were told that it is old.
const AT_LEAST: Duration = Duration::from_millis(50);

/// The time between two while a node cannot be reached or a slot has none.
const UNWELL: Duration = Duration::from_millis(250);

/// A Cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    shared: Arc<Shared>,
    keeping: JoinHandle<()>,
}

/// What its keeper, its nodes and their users share.
#[derive(Debug)]
pub(super) struct Shared {
    seeds: Vec<Address>,
    tuning: Tuning,
    threads: Threads,
    process: u64,
    map: ArcSwap<Map>,
    /// Rung when the map may be old.
    stale: Notify,
    /// The last epoch of any node's memory.
    epochs: Arc<AtomicU64>,
    /// Lanes that nodes have been given, since each has a number of its own.
    lanes: AtomicUsize,
    /// Whose turn it is to be asked for the map.
    turn: AtomicUsize,
}

/// Which node has which slots.
struct Map {
    nodes: Vec<Arc<Node>>,
    /// For each slot the node's place; [`Map::NOBODY`] where there is none.
    slots: Box<[u16]>,
}

impl std::fmt::Debug for Map {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(|node| node.name())).finish()
    }
}

/// Slots that one node has.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    host: String,
    port: u16,
}

impl Map {
    const NOBODY: u16 = u16::MAX;

    fn empty() -> Self {
        Self { nodes: Vec::new(), slots: vec![Self::NOBODY; usize::from(SLOTS)].into() }
    }

    fn node(&self, slot: u16) -> Option<&Arc<Node>> {
        self.nodes.get(usize::from(*self.slots.get(usize::from(slot))?))
    }

    /// How many processes share the Cluster: the most that any node knows of.
    fn replicas(&self) -> Option<NonZeroU32> {
        self.nodes.iter().map(|node| node.replicas()).max()
    }

    fn names(&self) -> BTreeSet<&str> {
        self.nodes.iter().map(|node| node.name()).collect()
    }

    /// Slots that no node has.
    fn nobodys(&self) -> usize {
        self.slots.iter().filter(|place| **place == Self::NOBODY).count()
    }

    fn is_well(&self) -> bool {
        self.nobodys() == 0 && self.nodes.iter().all(|node| node.is_connected())
    }
}

impl Cluster {
    /// Begins to read the map. Must be called within a tokio runtime.
    pub(super) fn open(
        seeds: Vec<Address>,
        tuning: Tuning,
        threads: Threads,
        process: u64,
        epochs: Arc<AtomicU64>,
    ) -> Self {
        let shared = Arc::new(Shared {
            seeds,
            tuning,
            threads,
            process,
            map: ArcSwap::from_pointee(Map::empty()),
            stale: Notify::new(),
            epochs,
            lanes: AtomicUsize::new(0),
            turn: AtomicUsize::new(0),
        });
        let keeping = tokio::spawn(keep_map(Arc::clone(&shared)));
        Self { shared, keeping }
    }

    /// The node that has a slot, if that is known.
    pub(super) fn node(&self, Part { slot, .. }: Part) -> Option<Arc<Node>> {
        let node = self.shared.map.load().node(slot).map(Arc::clone);
        if node.is_none() {
            self.shared.may_be_stale();
        }
        node
    }

    /// All nodes that have slots.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        self.shared.map.load().nodes.clone()
    }

    /// Whether any of them is connected.
    pub(super) fn is_connected(&self) -> bool {
        self.shared.map.load().nodes.iter().any(|node| node.is_connected())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.keeping.abort();
        // The nodes know those who share them.
        self.shared.map.store(Arc::new(Map::empty()));
    }
}

impl Shared {
    /// Has the map read again soon.
    pub(super) fn may_be_stale(&self) {
        self.stale.notify_one();
    }

    /// The node at an address that another one named, if it has been heard of.
    pub(super) fn node_at(&self, address: &str) -> Option<Arc<Node>> {
        self.map.load().nodes.iter().find(|node| node.name() == address).map(Arc::clone)
    }

    /// A slot that a node has, if it has any.
    pub(super) fn a_slot_of(&self, node: &Node) -> Option<u16> {
        let map = self.map.load();
        let place = map.nodes.iter().position(|other| std::ptr::eq(Arc::as_ptr(other), node))?;
        let slot = map.slots.iter().position(|owner| usize::from(*owner) == place)?;
        u16::try_from(slot).ok()
    }

    /// Reads the map from somebody, and uses it.
    async fn read(self: &Arc<Self>) -> Result<(), Trouble> {
        let (map, turn) = (self.map.load_full(), self.turn.fetch_add(1, Ordering::Relaxed));
        let mut trouble = Trouble::new(Class::Unreachable, "no node can be reached");
        // Each time another one first: one that the others have left would tell of old times for ever.
        for node in map.nodes.iter().cycle().skip(turn % map.nodes.len().max(1)).take(map.nodes.len()) {
            if let Some((connection, address)) = node.connection() {
                match self.ask(connection, &address).await {
                    Ok(ranges) => return self.take(ranges),
                    Err(error) => trouble = error,
                }
            }
        }
        for seed in self.seeds.iter().cycle().skip(turn % self.seeds.len().max(1)).take(self.seeds.len()) {
            let connected =
                tokio::time::timeout(2 * self.tuning.connect_timeout, link::connect_to(seed, &self.tuning));
            match connected.await {
                Ok(Ok((connection, _))) => match self.ask(connection, seed).await {
                    Ok(ranges) => return self.take(ranges),
                    Err(error) => trouble = error,
                },
                Ok(Err(error)) => trouble = error,
                Err(_) => trouble = Trouble::new(Class::Late, "no answer"),
            }
        }
        Err(trouble)
    }

    /// What a node says of who has which slots.
    async fn ask(
        &self,
        mut connection: MultiplexedConnection,
        address: &Address,
    ) -> Result<Vec<Range>, Trouble> {
        let mut slots = redis::cmd("CLUSTER");
        slots.arg("SLOTS");
        let reply =
            tokio::time::timeout(self.tuning.connect_timeout, slots.query_async::<Value>(&mut connection));
        let reply = reply.await.map_err(|_| Trouble::new(Class::Late, "no answer to CLUSTER SLOTS"))?;
        let reply = reply.map_err(|error: RedisError| Trouble::from(error))?;
        ranges(&reply, address)
            .ok_or_else(|| Trouble::new(Class::WrongShape, "an unknown answer to CLUSTER SLOTS"))
    }

    /// Uses a map: nodes that are known stay as they are, new ones are connected to, and old ones are left.
    fn take(self: &Arc<Self>, ranges: Vec<Range>) -> Result<(), Trouble> {
        let Some(seed) = self.seeds.first() else { return Ok(()) };
        let before = self.map.load_full();
        let mut map = Map::empty();
        let mut places: HashMap<String, u16> = HashMap::new();
        for Range { first, last, host, port } in ranges {
            let address = seed.at(&host, port);
            let place = match places.get(&address.to_string()) {
                Some(place) => *place,
                None => {
                    let name = address.to_string();
                    let place = u16::try_from(map.nodes.len()).unwrap_or(Map::NOBODY);
                    let known = before.nodes.iter().find(|node| node.name() == name).map(Arc::clone);
                    map.nodes.push(known.unwrap_or_else(|| self.node(address, before.replicas())));
                    places.insert(name, place);
                    place
                }
            };
            if let Some(slots) = map.slots.get_mut(usize::from(first)..=usize::from(last)) {
                slots.fill(place);
            }
        }
        if map.nodes.is_empty() {
            return Err(Trouble::new(Class::ClusterDown, "no node has any slots: is the Cluster made?"));
        }
        // Slots that move from one to another are many, and of interest to few.
        let told = map.names() != before.names() || map.nobodys() != before.nobodys();
        if told {
            tracing::info!(nodes = ?map, slots_of_nobody = map.nobodys(), "the Cluster's nodes");
        }
        if told || map.slots != before.slots {
            self.map.store(Arc::new(map));
        }
        Ok(())
    }

    /// A node that is new here. Until it has counted the processes itself, they are as many as on the others.
    fn node(self: &Arc<Self>, address: Address, replicas: Option<NonZeroU32>) -> Arc<Node> {
        let first_lane = self.lanes.fetch_add(self.threads.lanes(&self.tuning), Ordering::Relaxed);
        let cluster = Member { shared: Arc::downgrade(self), first_lane };
        let node = Node::of_cluster(
            Resolver::fixed(address),
            self.tuning,
            &self.threads,
            self.process,
            cluster,
            &self.epochs,
        );
        replicas.into_iter().for_each(|replicas| node.is_shared_by(replicas));
        node
    }
}

/// What makes a node one of a Cluster.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// The Cluster, for as long as anybody uses it.
    pub(super) shared: Weak<Shared>,
    /// The number of the node's first lane.
    pub(super) first_lane: usize,
}

/// Reads the map again and again. Says what is wrong when that changes, not each time.
async fn keep_map(shared: Arc<Shared>) {
    let mut said = None;
    loop {
        match shared.read().await {
            Ok(()) => said = None,
            Err(trouble) => {
                if said.as_ref() != Some(&trouble) {
                    tracing::warn!(
                        error = trouble.said,
                        "cannot learn which node of the Cluster has which slots; trying on"
                    );
                    said = Some(trouble);
                }
            }
        }
        tokio::time::sleep(AT_LEAST).await;
        let is_well = said.is_none() && shared.map.load().is_well();
        let pause = if is_well { shared.tuning.map_refresh } else { UNWELL };
        _ = tokio::time::timeout(link::jitter(pause), shared.stale.notified()).await;
    }
}

/// The answer to `CLUSTER SLOTS`: of each range first and last slot, then the primary and its replicas, each as host, port
/// and more. `asked` is where it comes from: a node that does not know its own host leaves it out.
fn ranges(reply: &Value, asked: &Address) -> Option<Vec<Range>> {
    let Value::Array(ranges) = reply else { return None };
    let number = |value: &Value| match value {
        Value::Int(number) => u16::try_from(*number).ok(),
        _ => None,
    };
    let range = |range: &Value| {
        let Value::Array(range) = range else { return None };
        let [first, last, primary, ..] = &range[..] else { return None };
        let Value::Array(primary) = primary else { return None };
        let [host, port, ..] = &primary[..] else { return None };
        let host = match host {
            Value::BulkString(host) => String::from_utf8(host.clone()).ok()?,
            Value::SimpleString(host) => host.clone(),
            Value::Nil => String::new(),
            _ => return None,
        };
        let host = if host.is_empty() || host == "?" { asked.host()?.to_owned() } else { host };
        Some(Range { first: number(first)?, last: number(last)?, host, port: number(port)? })
    };
    ranges.iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::server::RedisCluster;
    use super::super::{Files, Target};
    use super::*;
    use crate::bucket::{Hits, Limit};
    use crate::clock;
    use crate::decision::{BucketKey, Charge, Mode, RuleId};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Never, while a test lasts.
    const NEVER: Duration = Duration::from_secs(3_600);

    /// The Cluster with all its connections.
    async fn connected(redis: &RedisCluster, tuning: Tuning) -> Cluster {
        let url = format!("redis+cluster://{}", redis.hosts());
        let Ok(Target::Cluster(seeds)) = Target::parse(&url, &Files::default()) else { panic!("{url}") };
        let cluster = Cluster::open(seeds, tuning, Threads::default(), 7, Arc::default());
        let until = clock::instant() + PATIENCE;
        while cluster.nodes().len() < 3 || !cluster.shared.map.load().is_well() {
            assert!(clock::instant() < until, "it does not connect");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cluster
    }

    /// Takes a token of a bucket in a slot, by the node that had it.
    async fn take(node: &Arc<Node>, slot: u16, within: Duration) -> bool {
        let charge = Charge {
            bucket: BucketKey(slot.into()),
            rule: RuleId(0),
            limit: Limit::new(1_000.try_into().unwrap(), 86_400_000_000.try_into().unwrap()),
            hits: Hits::Take(1),
            mode: Mode::Enforced,
            on_redis_failure: None,
        };
        let name = Bytes::from(format!("weir:test|{{{}}}", crate::store::redis::slots::tag_for(slot)));
        node.decide(Part::of_slot(slot), &[charge], [name], clock::instant() + within).await.is_ok()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_node_that_hangs_holds_up_no_other_that_has_sent_calls_on_to_it() {
        let redis = RedisCluster::start();
        // Nothing but calls finds out that slots have moved, or that a node hangs.
        let tuning = Tuning {
            map_refresh: NEVER,
            heartbeat: NEVER,
            ping: PATIENCE,
            timeout: PATIENCE,
            ..Tuning::default()
        };
        let cluster = connected(&redis, tuning).await;
        let node = cluster.node(Part::of_slot(0)).unwrap();
        assert_eq!(node.name(), redis.nodes()[0].host());
        assert!(take(&node, 0, PATIENCE).await);
        tokio::task::block_in_place(|| redis.reshard(0, 1, 10));
        redis.nodes()[1].pause();
        // One for each lane.
        let within = Duration::from_millis(500);
        assert_eq!(tokio::join!(take(&node, 0, within), take(&node, 1, within)), (false, false));
        assert!(take(&node, 5_000, PATIENCE).await, "what it still has, it decides");
        assert!(node.breaker().is_closed());
        redis.nodes()[1].resume();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_heartbeat_finds_out_that_slots_have_moved() {
        let redis = RedisCluster::start();
        let tuning =
            Tuning { map_refresh: NEVER, heartbeat: Duration::from_millis(200), ..Tuning::default() };
        let cluster = connected(&redis, tuning).await;
        tokio::task::block_in_place(|| redis.reshard(0, 1, 10));
        let until = clock::instant() + PATIENCE;
        while cluster.node(Part::of_slot(0)).is_none_or(|node| node.name() != redis.nodes()[1].host()) {
            assert!(clock::instant() < until, "nobody has asked for the map");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn a_node_that_is_new_is_shared_by_as_many_as_the_others_are() {
        let Ok(Target::Cluster(seeds)) = Target::parse("redis+cluster://127.0.0.1:1", &Files::default())
        else {
            panic!("a Cluster")
        };
        let cluster = Cluster::open(seeds, Tuning::default(), Threads::default(), 7, Arc::default());
        let range = |first, last, port| Range { first, last, host: "127.0.0.1".to_owned(), port };
        let replicas = || cluster.nodes().iter().map(|node| node.replicas().get()).collect::<Vec<_>>();
        cluster.shared.take(vec![range(0, 99, 1), range(100, 199, 2)]).unwrap();
        assert_eq!(replicas(), [1, 1]);
        cluster.nodes()[1].is_shared_by(NonZeroU32::new(4).unwrap());
        cluster.shared.take(vec![range(0, 99, 1), range(100, 149, 2), range(150, 199, 3)]).unwrap();
        assert_eq!(replicas(), [1, 4, 4]);
    }

    #[test]
    fn what_a_node_says_is_understood_also_if_it_does_not_know_its_own_host() {
        let node =
            |host: Value, port| Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".to_vec())]);
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let range = |first, last, nodes: Vec<Value>| {
            Value::Array([Value::Int(first), Value::Int(last)].into_iter().chain(nodes).collect())
        };
        let reply = Value::Array(vec![
            range(0, 5460, vec![node(text("10.0.0.1"), 7000), node(text("10.0.0.4"), 7003)]),
            range(5461, 16383, vec![node(Value::Nil, 7001)]),
        ]);
        let target = Target::parse("redis://seed:1", &Files::default()).unwrap();
        let Target::Server(asked) = target else { panic!("{target:?}") };
        let found = ranges(&reply, &asked).unwrap();
        let expected = [(0, 5460, "10.0.0.1", 7000), (5461, 16383, "seed", 7001)];
        let expected =
            expected.map(|(first, last, host, port)| Range { first, last, host: host.to_owned(), port });
        assert_eq!(found, expected);
        for odd in [Value::Nil, Value::Array(vec![Value::Nil]), Value::Array(vec![range(0, 99_999, vec![])])]
        {
            assert_eq!(ranges(&odd, &asked), None, "{odd:?}");
        }
    }
}
