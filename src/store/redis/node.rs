//! One Redis server: calls queue for it, go in batches over the connections to it, and are answered.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, RedisError, ServerErrorKind, Value};
use smallvec::SmallVec;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::absence::Absence;
use super::cluster::{Member, Shared};
use super::desk::{Desk, Desks, Threads};
use super::eviction::Eviction;
use super::group::Group;
use super::heartbeat::Heart;
use super::link::{Link, Live};
use super::memory::Memory;
use super::pending::{Failure, Pending};
use super::queue::Lane;
use super::refusal::Refusal;
use super::replicas::{Replicas, Told};
use super::resolver::Resolver;
use super::script::{self, Answered, How, NamedCharge};
use super::slots;
use super::timers::Timer;
use super::trouble::{Trouble, class, kind};
use super::tuning::Tuning;
use super::{Address, Part};
use crate::breaker::Breaker;
use crate::bucket::{Hits, Limit};
use crate::clock;
use crate::decision::{BucketKey, Charge, Decision, Mode, RuleId, Verdicts};
use crate::store::{Class, StoreError};
use crate::telemetry::collection::{Collection, collect_breaker};
use crate::telemetry::metrics::{
    NodeMetrics, REDIS_BATCH_CALLS, REDIS_BATCH_DURATION, REDIS_CONNECTIONS, REDIS_DISAGREEMENTS,
    REDIS_ERRORS, REDIS_EVICTS, REDIS_QUEUE, REDIS_REPLICAS, REDIS_UNCOUNTED,
};

mod patience;
mod redirect;

use patience::Course;
use redirect::Elsewhere;

/// One Redis server.
#[derive(Debug)]
pub struct Node {
    name: String,
    desks: Desks,
    links: Vec<Link>,
    /// While there is no connection: when that is a failure.
    absence: Arc<Absence>,
    /// What it does when its memory is full.
    eviction: Arc<Eviction>,
    /// Whose turn it is.
    next: AtomicUsize,
    /// The script's SHA-1, by which Redis knows it.
    hash: String,
    /// Requests that the script and the arithmetic here decided differently.
    parted: AtomicU64,
    /// Whether Redis answers with errors.
    refusal: Refusal,
    /// This process, among all that use the server.
    process: u64,
    /// The Cluster that it is a node of, if it is.
    member: Option<Member>,
    /// For each batch that may be followed to it from another node at a time.
    followed: Arc<Semaphore>,
    metrics: NodeMetrics,
    tuning: Tuning,
    breaker: Arc<Breaker>,
    memory: Arc<Memory>,
    replicas: Replicas,
    /// Probes and heartbeats: they end with the node.
    tasks: OnceLock<[AbortHandle; 2]>,
}

impl Node {
    /// Begins to connect to a server. Must be called within a tokio runtime. `process` names this process among all that
    /// use the server.
    pub(super) fn new(
        resolver: Resolver,
        tuning: Tuning,
        threads: &Threads,
        process: u64,
        epochs: &Arc<AtomicU64>,
    ) -> Arc<Self> {
        Self::build(resolver, tuning, threads, process, None, epochs)
    }

    /// The same for a node of a Cluster.
    pub(super) fn of_cluster(
        resolver: Resolver,
        tuning: Tuning,
        threads: &Threads,
        process: u64,
        member: Member,
        epochs: &Arc<AtomicU64>,
    ) -> Arc<Self> {
        Self::build(resolver, tuning, threads, process, Some(member), epochs)
    }

    fn build(
        resolver: Resolver,
        tuning: Tuning,
        threads: &Threads,
        process: u64,
        member: Option<Member>,
        epochs: &Arc<AtomicU64>,
    ) -> Arc<Self> {
        // No domain begins with a `!`: it would be written as `%21`.
        let first_lane = member.as_ref().map_or(0, |member| member.first_lane);
        let note = |lane: usize| format!("weir:!lane|{process:016x}|{}", first_lane + lane).into_bytes();
        let desks = Desks::new(threads, &tuning, note);
        let eviction = Arc::new(Eviction::default());
        let memory = Arc::new(Memory::new(epochs));
        let absence = Arc::new(Absence::default());
        let link = |desk: &Arc<Desk>| {
            let (eviction, memory) = (Arc::clone(&eviction), Arc::clone(&memory));
            let _on_its_thread = desk.runtime.enter();
            Link::open(resolver.clone(), tuning, eviction, memory, Arc::clone(&absence))
        };
        let connections = tuning.connections.max(threads.desks());
        let links = desks.iter().cycle().take(connections).map(link).collect();
        let name = resolver.to_string();
        let node = Arc::new(Self {
            desks,
            links,
            absence,
            eviction,
            next: AtomicUsize::new(0),
            hash: redis::Script::new(script::DECIDE).get_hash().to_owned(),
            parted: AtomicU64::new(0),
            refusal: Refusal::default(),
            metrics: NodeMetrics::default(),
            process,
            member,
            followed: Arc::new(Semaphore::new(redirect::FOLLOWED)),
            tuning,
            breaker: Arc::new(Breaker::new(name.clone(), tuning.breaker)),
            replicas: Replicas::new(tuning.replicas),
            tasks: OnceLock::new(),
            memory,
            name,
        });
        let probing = tokio::spawn(keep_probing(Arc::downgrade(&node))).abort_handle();
        let beating = tokio::spawn(keep_beating(Arc::downgrade(&node))).abort_handle();
        _ = node.tasks.set([probing, beating]);
        node
    }

    /// Where it is, for logs and metrics: without secrets.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Decides a request, whose charges are on the buckets of these names, in order; all of them are in `part`.
    ///
    /// # Errors
    /// When there is no answer by the deadline.
    pub async fn decide(
        self: &Arc<Self>,
        part: Part,
        charges: &[Charge],
        names: impl IntoIterator<Item = Bytes>,
        deadline: Instant,
    ) -> Result<Answered, Failure> {
        if charges.is_empty() {
            let decision = Decision { denied: false, at: 0, verdicts: Verdicts::new() };
            return Ok(Answered { decision, left: SmallVec::new() });
        }
        let asked = if self.breaker.is_closed() {
            let named = charges.iter().zip(names).map(|(charge, name)| NamedCharge { charge: *charge, name });
            self.ask(part, named.collect(), deadline)
        } else {
            Err(StoreError::Open)
        };
        // Of what is above, nothing is kept in the meantime.
        let answer = match asked {
            Ok((pending, timer)) => pending.by(timer).await,
            Err(error) => Err(error.into()),
        };
        if let Err(failure) = &answer {
            self.count(failure.error.class());
        }
        answer
    }

    fn count(&self, class: Class) {
        let place = Class::ALL.iter().position(|other| *other == class);
        if let Some(count) = place.and_then(|place| self.metrics.errors.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Sees whether it decides and writes, by a charge of its own that leaves nothing behind.
    ///
    /// # Errors
    /// When it does not, or not within that time.
    pub async fn probe(self: &Arc<Self>, within: Duration) -> Result<(), StoreError> {
        // In a Cluster, where it has a slot. One that has none has nothing to do.
        let slot = match self.cluster() {
            Some(cluster) => match cluster.a_slot_of(self) {
                Some(slot) => Some(slot),
                None => return if self.is_connected() { Ok(()) } else { Err(self.disconnected()) },
            },
            None => None,
        };
        let name = self.probe_name(slot);
        let charges = SmallVec::from_elem(NamedCharge { charge: probe(), name }, 1);
        let part = slot.map_or(Part::ONLY, Part::of_slot);
        let deadline = clock::instant() + within;
        let (pending, timer) = self.ask(part, charges, deadline)?;
        match pending.by(timer).await {
            Ok(_) => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    /// What decides whether it is asked.
    #[must_use]
    pub fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// Which of its memories it has: another one may have lost what this one was told.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.memory.epoch()
    }

    /// How many processes share it, as far as is known.
    #[must_use]
    pub fn replicas(&self) -> NonZeroU32 {
        self.replicas.count()
    }

    /// That at least so many share it is known from other servers.
    pub(super) fn is_shared_by(&self, replicas: NonZeroU32) {
        self.replicas.rise_to(replicas);
    }

    /// Says that this process goes, so that the others need not wait for its silence.
    pub async fn leave(&self) {
        self.tasks.get().into_iter().flatten().for_each(AbortHandle::abort);
        if let Some((mut connection, _)) = self.connection() {
            let heart = self.heart();
            // Whoever cannot say it is missed a little later.
            _ = tokio::time::timeout(self.tuning.heartbeat, heart.leave(&mut connection)).await;
        }
    }

    /// This process, as it shows itself to the server; to a node of a Cluster, in one of its slots.
    fn heart(&self) -> Heart {
        let slot = self.cluster().and_then(|cluster| cluster.a_slot_of(self));
        Heart::new(self.process, slot.map(slots::tag_for).as_deref())
    }

    /// What a probe charges is called; of a node of a Cluster, in one of its slots.
    fn probe_name(&self, slot: Option<u16>) -> Bytes {
        let tag = slot.map(|slot| format!("|{{{}}}", slots::tag_for(slot))).unwrap_or_default();
        format!("weir:!probe|{:016x}{tag}", self.process).into()
    }

    /// A connection to ask something else over, and where it leads to.
    pub(super) fn connection(&self) -> Option<(MultiplexedConnection, Address)> {
        let (_, live) = self.any_link()?;
        Some((live.connection.clone(), live.address.clone()))
    }

    /// The Cluster that it is a node of, while somebody uses that.
    fn cluster(&self) -> Option<Arc<Shared>> {
        self.member.as_ref()?.shared.upgrade()
    }

    /// Whether there is a connection.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.links.iter().any(Link::is_connected)
    }

    /// Its `maxmemory-policy`, as it said last; it is asked each minute. With any but `noeviction` it may forget what callers
    /// have used.
    #[must_use]
    pub fn eviction_policy(&self) -> Option<Arc<String>> {
        self.eviction.policy()
    }

    /// Calls that wait for a batch now.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.desks.iter().map(|desk| desk.queue.waiting()).sum()
    }

    /// Calls that wait in the longest of its queues, and how many may.
    #[must_use]
    pub fn longest_queue(&self) -> (usize, usize) {
        let queues = self.desks.iter().map(|desk| (desk.queue.waiting(), desk.queue.max_waiting()));
        queues.max().unwrap_or_default()
    }

    /// Requests that the script and the arithmetic here decided differently. Not 0 means an error in one of them.
    #[must_use]
    pub fn parted(&self) -> u64 {
        self.parted.load(Ordering::Relaxed)
    }

    /// Tells its figures, as one of the store of this name.
    #[allow(clippy::cast_precision_loss, reason = "so many calls do not wait")]
    pub fn collect(&self, store: &str, to: &mut Collection) {
        let labels = [store, self.name()];
        to.distribution(&REDIS_BATCH_DURATION, &labels, self.metrics.batch_duration.distribution());
        to.distribution(&REDIS_BATCH_CALLS, &labels, self.metrics.batch_calls.distribution());
        to.number(&REDIS_QUEUE, &labels, self.waiting() as f64);
        let connected = self.links.iter().filter(|link| link.is_connected()).count();
        to.number(&REDIS_CONNECTIONS, &labels, connected as f64);
        let evicts = self.eviction.evicts();
        to.number(&REDIS_EVICTS, &labels, f64::from(u8::from(evicts)));
        to.count(&REDIS_DISAGREEMENTS, &labels, self.parted());
        to.number(&REDIS_REPLICAS, &labels, self.replicas().get().into());
        to.count(&REDIS_UNCOUNTED, &labels, self.replicas.failed());
        collect_breaker(store, self.name(), &self.breaker, to);
        for (class, count) in Class::ALL.into_iter().zip(&self.metrics.errors) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                to.count(&REDIS_ERRORS, &[store, self.name(), class.name()], count);
            }
        }
    }

    /// Queues a request of at least one charge. With the answer that is to come is the timer that it is waited for: due at
    /// the deadline, or a little sooner.
    fn ask(
        self: &Arc<Self>,
        part: Part,
        charges: super::queue::Charges,
        deadline: Instant,
    ) -> Result<(Pending, Timer), StoreError> {
        if !self.is_connected() {
            if let Some(cluster) = self.cluster() {
                cluster.may_be_stale();
            }
            let error = self.disconnected();
            if self.absence.counts(clock::instant(), self.tuning.timeout) {
                self.breaker.failed(error.class().name());
            }
            return Err(error);
        }
        let now = clock::instant();
        if deadline <= now {
            return Err(StoreError::Unsent);
        }
        let desk = self.desks.own();
        let timer = desk.timers.until(deadline, now);
        let (answer, lane) = desk.queue.push(part, charges, timer.due, now)?;
        if let Some(lane) = lane {
            desk.runtime.spawn(run(Arc::clone(self), Arc::clone(desk), lane));
        }
        Ok((Pending(answer), timer))
    }

    fn disconnected(&self) -> StoreError {
        StoreError::Disconnected(self.trouble())
    }

    /// What was wrong when there last was no connection.
    fn trouble(&self) -> Class {
        self.links.first().map_or(Class::Unreachable, Link::trouble)
    }

    /// A connection, each in its turn.
    fn any_link(&self) -> Option<(&Link, Arc<Live>)> {
        self.link(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// This connection, or another one if it is not there.
    fn link(&self, first: usize) -> Option<(&Link, Arc<Live>)> {
        let turns = self.links.iter().cycle().skip(first % self.links.len().max(1)).take(self.links.len());
        turns.filter_map(|link| Some((link, link.live()?))).next()
    }

    /// Has the groups of a batch decided: by the script's hash, or whole if Redis has forgotten it; over another connection
    /// if one breaks. Ends with the replies or with the connections, not with the callers' deadlines.
    ///
    /// A batch that may have been decided without our knowing is sent again as soon as there is a connection: it is
    /// decided once, and what it came to is noted. Not in a Cluster, where the note may be in another place by then.
    ///
    /// What a node of a Cluster has no more is followed to where it is; `hops` counts how often that was done before.
    ///
    /// Says how this server failed, if it did; `met` is told at once why a connection was of no use.
    async fn exchange(
        self: &Arc<Self>,
        lane: &Lane,
        groups: SmallVec<[Group; 1]>,
        hops: usize,
        met: &OnceLock<Class>,
    ) -> Result<(), Class> {
        let mut health = Ok(());
        let cluster = self.cluster();
        let mut open = groups;
        let mut elsewhere: SmallVec<[(Elsewhere, Group); 1]> = SmallVec::new();
        // Whether the script goes whole, and whether it may have run without our knowing.
        let (mut whole, mut sent) = (false, false);
        let mut condemned: Option<StoreError> = None;
        let mut give_up = None;
        while !open.is_empty() {
            let found = self.link(lane.link);
            let is_noted = sent && self.member.is_none() && open.iter().any(Group::is_awaited) && {
                let now = clock::instant();
                now < *give_up.get_or_insert(now + ASKED_AGAIN)
            };
            if is_noted && found.is_none() {
                tokio::time::sleep(RECONNECTED).await;
                continue;
            }
            if !is_noted && (sent || condemned.is_some() || found.is_none()) {
                let known = if sent { Some(StoreError::Lost) } else { condemned.clone() };
                let error = known.unwrap_or_else(|| self.disconnected());
                // What nobody waits for any more is not sent again: it would be charged beside what they were told.
                let now = clock::instant();
                let is_over = |group: &Group| found.is_none() || group.deadline <= now;
                let (over, going): (SmallVec<[Group; 1]>, _) = open.into_iter().partition(is_over);
                if !over.is_empty() {
                    health = Err(error.class());
                }
                over.into_iter().for_each(|group| group.fail(&error));
                open = going;
                if let Some(cluster) = &cluster {
                    cluster.may_be_stale();
                }
            }
            let Some((link, live)) = found.filter(|_| !open.is_empty()) else { break };
            let calls = open.iter().map(Group::calls).sum();
            let traced = open.iter().flat_map(|group| &group.traced);
            let measured = self.metrics.start(&self.name, calls, traced);
            let replies = self.send(&live, lane, &open, whole).await;
            measured.end(replies.as_ref());
            let replies = match replies {
                Some(Ok(replies)) => replies,
                Some(Err(error)) => {
                    link.found_broken(&live, &error);
                    sent = true;
                    continue;
                }
                None => {
                    sent = true;
                    continue;
                }
            };
            whole = false;
            let mut replies = replies.into_iter();
            for group in std::mem::take(&mut open) {
                let error = match replies.next().map(Value::extract_error) {
                    Some(Ok(reply)) => {
                        health = self.answer(group, reply, &live).and(health);
                        continue;
                    }
                    Some(Err(error)) => error,
                    None => {
                        group.fail(&StoreError::Lost);
                        health = Err(Class::Lost);
                        continue;
                    }
                };
                let other = cluster.as_ref().and_then(|_| Elsewhere::of(&error, &live));
                if let Some(other) = other {
                    elsewhere.push((other, group));
                } else if kind(&error) == Some(ServerErrorKind::NoScript) {
                    whole = true;
                    open.push(group);
                } else if class(&error).condemns() {
                    link.found_broken(&live, &error);
                    _ = met.set(class(&error));
                    condemned = Some(StoreError::from(&error));
                    open.push(group);
                } else {
                    if let (Class::ClusterDown, Some(cluster)) = (class(&error), &cluster) {
                        cluster.may_be_stale();
                    }
                    self.refused(&live, &error);
                    let error = StoreError::from(&error);
                    health = Err(error.class());
                    // What was sent before may have been decided then.
                    group.fail(if sent { &StoreError::Lost } else { &error });
                }
            }
        }
        if let Some(cluster) = cluster.filter(|_| !elsewhere.is_empty()) {
            self.follow(&cluster, lane, elsewhere, hops, sent);
        }
        health
    }

    /// The same, and tells the breaker how it went.
    async fn exchange_in_time(self: &Arc<Self>, lane: &Lane, groups: SmallVec<[Group; 1]>, hops: usize) {
        let met = OnceLock::new();
        let exchange = self.exchange(lane, groups, hops, &met);
        // What is late because a server was of no use, or because there is no connection any more, is told by why.
        let late = || {
            let usual = || if self.is_connected() { Class::Late } else { self.trouble() };
            self.breaker.failed(met.get().copied().unwrap_or_else(usual).name());
        };
        match patience::wait_for(exchange, self.tuning.timeout, late).await {
            Course::InTime => self.breaker.succeeded(),
            Course::Late => {}
            Course::Failed(class) => self.breaker.failed(class.name()),
        }
    }

    /// The replies to a batch, in one round trip; none when the connection is given up first.
    async fn send(
        &self,
        live: &Live,
        lane: &Lane,
        groups: &[Group],
        whole: bool,
    ) -> Option<Result<Vec<Value>, RedisError>> {
        live.is_tried();
        let mut gone = live.gone();
        let mut connection = live.connection.clone();
        let hash = How::Hash(&self.hash);
        // Where it goes whole, those behind it find it.
        let first = if whole { How::Source(script::DECIDE) } else { hash };
        let replies = async {
            if let [group] = groups {
                let note = self.note(lane, group.part);
                let command = group.batch.command(first, (&*note, lane.number));
                return connection.send_packed_command(&command).await.map(|reply| vec![reply]);
            }
            let mut pipeline = Pipeline::with_capacity(groups.len());
            for (index, group) in groups.iter().enumerate() {
                let how = if index == 0 { first } else { hash };
                let note = self.note(lane, group.part);
                pipeline.add_command(group.batch.command(how, (&*note, lane.number)));
            }
            connection.send_packed_commands(&pipeline, 0, groups.len()).await
        };
        tokio::select! {
            biased;
            replies = replies => Some(replies),
            _ = gone.wait_for(|gone| *gone) => None,
        }
    }

    /// Where a lane notes its last batch of a part.
    fn note<'l>(&self, lane: &'l Lane, Part { slot, .. }: Part) -> Cow<'l, [u8]> {
        if self.member.is_none() {
            return Cow::Borrowed(&lane.note);
        }
        let tag = format!("|{{{}}}", slots::tag_for(slot));
        Cow::Owned([&lane.note[..], tag.as_bytes()].concat())
    }

    /// Answers the calls of a group from a reply.
    fn answer(&self, group: Group, reply: Value, live: &Live) -> Result<(), Class> {
        let reply = match group.batch.read(reply) {
            Ok(reply) => reply,
            Err(error) => {
                group.fail(&StoreError::Refused { class: Class::WrongShape, said: error.to_string().into() });
                return Err(Class::WrongShape);
            }
        };
        if reply.parted > 0 && self.parted.fetch_add(reply.parted, Ordering::Relaxed) == 0 {
            tracing::error!("Redis and weir decided the same request differently: please report this");
        }
        if self.refusal.ends(clock::instant) {
            tracing::info!(redis = %live.address, "Redis decides again");
        }
        live.has_served();
        group.answer(reply.decided);
        Ok(())
    }

    /// Says once that Redis answers with errors.
    fn refused(&self, live: &Live, error: &RedisError) {
        if self.refusal.begins(clock::instant()) {
            tracing::warn!(redis = %live.address, %error, "Redis refuses to decide");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.breaker.is_closed() {
            tracing::info!(redis = self.name, "left: its circuit was open");
        }
        self.tasks.get().into_iter().flatten().for_each(AbortHandle::abort);
    }
}

/// A lane with a batch under way; it is put back whatever becomes of the batch.
struct Held<'n> {
    node: &'n Arc<Node>,
    desk: &'n Arc<Desk>,
    lane: Option<Lane>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(lane) = self.lane.take().and_then(|lane| self.desk.queue.put_back(lane)) {
            self.desk.runtime.spawn(run(Arc::clone(self.node), Arc::clone(self.desk), lane));
        }
    }
}

/// For how long a batch is sent again of which it is not known whether it was decided. The note of it is kept for longer.
const ASKED_AGAIN: Duration = Duration::from_secs(5);

/// How often it is looked whether there is a connection again for it.
const RECONNECTED: Duration = Duration::from_millis(10);

/// Runs batches, one after the other, until nobody waits any more.
async fn run(node: Arc<Node>, desk: Arc<Desk>, lane: Lane) {
    let mut held = Held { node: &node, desk: &desk, lane: Some(lane) };
    loop {
        // Calls that have come by now, and have only to be read, go too.
        tokio::task::yield_now().await;
        let calls = desk.queue.next(&mut held.lane, clock::instant());
        let Some(lane) = &mut held.lane else { break };
        lane.number += 1;
        node.exchange_in_time(lane, Group::sort(calls), 0).await;
    }
}

/// Probes that this process may sleep through before one of them counts.
const STALLED_PROBES: usize = 10;

/// Probes the server for the breaker, for as long as there is a node.
async fn keep_probing(node: Weak<Node>) {
    let Some(alive) = node.upgrade() else { return };
    // Ends with the node, which it must not keep alive.
    let breaker = Arc::clone(&alive.breaker);
    drop(alive);
    let probe = || async {
        let node = node.upgrade().ok_or(StoreError::Open)?;
        for _ in 1..STALLED_PROBES {
            match node.probe(node.tuning.timeout).await {
                // It was this process that did not run: that says nothing of the server.
                Err(StoreError::Stalled) => {}
                probed => return probed,
            }
        }
        node.probe(node.tuning.timeout).await
    };
    breaker.keep_probing(probe, |error: &StoreError| error.class().name()).await;
}

/// Tells the server every so often that this process is there, and learns who else is.
async fn keep_beating(node: Weak<Node>) {
    let mut told = Told::default();
    loop {
        let Some(node) = node.upgrade() else { return };
        let Tuning { heartbeat, heartbeats_missed, .. } = node.tuning;
        let pulse = match node.connection() {
            Some((mut connection, _)) => {
                let heart = node.heart();
                let beat = heart.beat(&mut connection, heartbeat * heartbeats_missed);
                let beaten = tokio::time::timeout(heartbeat, beat).await;
                // Perhaps its first slot has moved, and with it what says that this process is there.
                if let (Ok(Err(error)), Some(cluster)) = (&beaten, node.cluster())
                    && kind(error).is_some()
                {
                    cluster.may_be_stale();
                }
                let beaten = match beaten {
                    Ok(beaten) => beaten.map_err(Trouble::from),
                    Err(_) => Err(Trouble::new(Class::Late, "no answer in time")),
                };
                beaten.inspect_err(|trouble| node.replicas.fail(&mut told, &node.name, trouble)).ok()
            }
            None => None,
        };
        let heard = pulse.is_some();
        match &pulse {
            Some(pulse) => node.memory.is_called(&pulse.epoch),
            None if !node.breaker.is_closed() => node.replicas.miss(&mut told, &node.name),
            None => {}
        }
        if node.replicas.tell(&mut told, pulse.map(|pulse| pulse.processes)) {
            tracing::info!(redis = node.name, replicas = node.replicas.count(), "processes share this Redis");
        }
        drop(node);
        // Who has just come is counted soon.
        tokio::time::sleep(if heard { heartbeat } else { heartbeat / 10 }).await;
    }
}

/// What a probe charges: one token of many, of which a thousand come back every millisecond. It is written, and has expired
/// when it is looked for.
fn probe() -> Charge {
    use std::num::NonZeroU64;
    let limit = Limit::new(NonZeroU32::MAX, NonZeroU64::MIN);
    Charge {
        bucket: BucketKey(u128::MAX),
        rule: RuleId(0),
        limit,
        hits: Hits::Take(1),
        mode: Mode::Shadow,
        on_redis_failure: None,
    }
}

#[cfg(test)]
mod tests;
