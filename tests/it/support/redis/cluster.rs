//! A Redis Cluster: three primaries with a replica each.

use std::process::{Command, Stdio};

use super::{RedisServer, await_that, free_port};

/// Six servers, the first three of which begin as primaries of 5461, 5462 and 5461 slots.
pub(crate) struct RedisCluster {
    nodes: Vec<RedisServer>,
}

/// What a node says of one of them in `CLUSTER NODES`.
struct Line {
    id: String,
    port: u16,
    flags: String,
    primary: String,
    connected: bool,
    slots: Vec<(u16, u16)>,
}

impl RedisCluster {
    /// How long a node is silent before the others take it for dead.
    const NODE_TIMEOUT: &str = "2000";

    /// Starts one, and waits until all its nodes agree that it works and every replica is in step.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one whose servers have more arguments.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        // Should another process take one of the ports in between, all of them are given up.
        (0..5).find_map(|_| Self::run(arguments)).expect("a Cluster starts")
    }

    fn run(arguments: &[&str]) -> Option<Self> {
        let spawn = || {
            let bus = free_port().to_string();
            let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus];
            // A replica is taken as a primary however long it has not heard of its own.
            let fast =
                ["--cluster-node-timeout", Self::NODE_TIMEOUT, "--cluster-replica-validity-factor", "0"];
            let in_step = super::IN_STEP;
            let all: Vec<&str> =
                cluster.into_iter().chain(fast).chain(in_step).chain(arguments.iter().copied()).collect();
            RedisServer::spawn(free_port(), "", &all)
        };
        let mut nodes: Vec<RedisServer> = (0..6).map(|_| spawn()).collect();
        if !nodes.iter_mut().all(RedisServer::is_ready) {
            return None;
        }
        let cluster = Self { nodes };
        let hosts = cluster.nodes.iter().map(RedisServer::host);
        let create: Vec<String> = ["create".to_owned()].into_iter().chain(hosts).collect();
        let create: Vec<&str> = create.iter().map(String::as_str).collect();
        cluster.command(&[&create[..], &["--cluster-replicas", "1"]].concat());
        cluster.await_whole();
        Some(cluster)
    }

    /// All nodes, as `host:port,host:port…`.
    pub(crate) fn hosts(&self) -> String {
        self.nodes.iter().map(RedisServer::host).collect::<Vec<_>>().join(",")
    }

    pub(crate) fn nodes(&self) -> &[RedisServer] {
        &self.nodes
    }

    /// A node, to end it or to start it again.
    pub(crate) fn node(&mut self, index: usize) -> &mut RedisServer {
        &mut self.nodes[index]
    }

    /// Which node is the primary of a slot.
    pub(crate) fn primary_of(&self, slot: u16) -> usize {
        self.try_primary_of(slot).expect("somebody has the slot")
    }

    /// The same, or `None` while nobody is.
    pub(crate) fn try_primary_of(&self, slot: u16) -> Option<usize> {
        let lines = self.lines()?;
        let has = |line: &&Line| {
            is_primary(line) && line.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot))
        };
        self.index(lines.iter().find(has)?.port)
    }

    /// A replica of a primary.
    pub(crate) fn replica_of(&self, primary: usize) -> usize {
        let lines = self.lines().expect("a node answers");
        let id = self.id(primary);
        let replica = lines.iter().find(|line| line.primary == id).expect("it has a replica");
        self.index(replica.port).unwrap()
    }

    /// A node's id.
    pub(crate) fn id(&self, node: usize) -> String {
        redis::cmd("CLUSTER").arg("MYID").query(&mut self.nodes[node].connection()).unwrap()
    }

    /// Has a primary's replica take its place, without losing anything, and waits until it has.
    pub(crate) fn fail_over(&self, primary: usize) -> usize {
        let replica = self.replica_of(primary);
        redis::cmd("CLUSTER").arg("FAILOVER").query::<()>(&mut self.nodes[replica].connection()).unwrap();
        await_that("the replica is a primary", || {
            self.nodes[replica].info("role").as_deref() == Some("master")
        });
        replica
    }

    /// Moves so many slots with their keys from one primary to another, as an operator does.
    pub(crate) fn reshard(&self, from: usize, to: usize, slots: u16) {
        let (from, to, slots) = (self.id(from), self.id(to), slots.to_string());
        let moved = ["--cluster-from", &from, "--cluster-to", &to, "--cluster-slots", &slots];
        self.await_agreed();
        self.command(&[&["reshard", &self.nodes[0].host()][..], &moved].concat());
    }

    /// Waits until all living nodes say the same of who has which slots.
    fn await_agreed(&self) {
        let said = |node: &RedisServer| {
            let mut said: Vec<(String, Vec<(u16, u16)>)> =
                lines_of(node)?.into_iter().map(|line| (line.id, line.slots)).collect();
            said.sort();
            Some(said)
        };
        await_that("all nodes of the Cluster say the same", || {
            let all: Vec<_> = self.living().map(said).collect();
            all.first().is_some_and(Option::is_some) && all.windows(2).all(|pair| pair[0] == pair[1])
        });
    }

    /// Waits until all living nodes agree: every slot has a primary, and each says that the Cluster works.
    pub(crate) fn await_ok(&self) {
        await_that("every node says that the Cluster works", || {
            self.living().all(|node| node.info("cluster_enabled").is_some() && cluster_state(node))
        });
    }

    /// Waits until besides, all six nodes are there, and every replica is connected to its primary.
    pub(crate) fn await_whole(&self) {
        let is_whole = |node: &RedisServer| {
            let lines = lines_of(node).unwrap_or_default();
            let in_step = node.info("role").as_deref() == Some("master")
                || node.info("master_link_status").as_deref() == Some("up");
            let replicas = lines.iter().filter(|line| line.flags.contains("slave"));
            let of_three = replicas.map(|line| &line.primary).collect::<std::collections::HashSet<_>>().len();
            in_step
                && of_three == 3
                && lines.len() == 6
                && lines.iter().all(|line| line.connected && !line.flags.contains("fail"))
        };
        await_that("all nodes of the Cluster are there and in step", || {
            self.nodes.iter().all(|node| cluster_state(node) && is_whole(node))
        });
    }

    /// Runs `redis-cli --cluster …`.
    ///
    /// # Panics
    /// When that says it failed.
    pub(crate) fn command(&self, arguments: &[&str]) {
        let output = Command::new("redis-cli")
            .arg("--cluster")
            .args(arguments)
            .arg("--cluster-yes")
            .stdin(Stdio::null())
            .output()
            .expect("redis-cli is there; on Debian it comes with redis-server");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "redis-cli --cluster {arguments:?}: {said}");
    }

    fn living(&self) -> impl Iterator<Item = &RedisServer> {
        self.nodes.iter().filter(|node| node.info("role").is_some())
    }

    fn lines(&self) -> Option<Vec<Line>> {
        self.nodes.iter().find_map(lines_of)
    }

    fn index(&self, port: u16) -> Option<usize> {
        self.nodes.iter().position(|node| node.port() == port)
    }
}

fn is_primary(line: &Line) -> bool {
    line.flags.contains("master") && !line.flags.contains("fail")
}

fn cluster_state(node: &RedisServer) -> bool {
    let Some(mut connection) = node.connect() else { return false };
    let info: Option<String> = redis::cmd("CLUSTER").arg("INFO").query(&mut connection).ok();
    info.is_some_and(|info| info.contains("cluster_state:ok"))
}

fn lines_of(node: &RedisServer) -> Option<Vec<Line>> {
    let text: String = redis::cmd("CLUSTER").arg("NODES").query(&mut node.connect()?).ok()?;
    text.lines().map(line).collect()
}

/// `id host:port@bus flags primary ping pong epoch state slot first-last …`
fn line(text: &str) -> Option<Line> {
    let words: Vec<&str> = text.split(' ').collect();
    let [id, host, flags, primary, _, _, _, state, slots @ ..] = &words[..] else { return None };
    // Slots that are on their way stand in brackets.
    let slots = slots.iter().filter(|slots| !slots.starts_with('[')).map(|slots| {
        let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    Some(Line {
        id: (*id).to_owned(),
        port: host.split('@').next()?.rsplit(':').next()?.parse().ok()?,
        flags: (*flags).to_owned(),
        primary: (*primary).to_owned(),
        connected: *state == "connected",
        slots: slots.collect::<Option<_>>()?,
    })
}
