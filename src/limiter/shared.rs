//! Decisions by a Redis that several processes share, and by this process's own buckets where it does not answer.
//!
//! A call ends by its deadline, whatever Redis does. If Redis has not answered by then, or cannot be asked, the
//! [`Fallback`] decides. What Redis says after that is not lost ([`Shared::settle_later`]): it decides what is owed to it.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::caps::Cap;
use super::denials::Denials;
use super::fallback::{Fallback, Handover, OnItsWay};
use super::parts::{self, Piece, Refund};
use super::refunds::{self, Refunds};
use super::{Failing, Names};
use crate::bucket::{Bucket, Hits, Limit, Outcome, Retry};
use crate::clock::{self, Clock, Micros};
use crate::decision::{BucketKey, Charge, Decision, OnRedisFailure, Source};
use crate::store::{Answered, Class, Failure, Node, Pending, RedisStore, StoreError};

/// Late calls whose outcome is waited for at a time. Of more than these nobody learns what became of them: what they were
/// granted here is charged, whether or not Redis has charged it.
const SETTLING: usize = 10_000;

/// How often it is looked whether Redis has to be told of something that nobody asks for.
const SWEEP: Duration = Duration::from_millis(250);

/// Buckets that are handed over at a time.
const SWEPT: usize = 128;

/// How long a hand-over may take: nobody waits for it.
const SWEEP_DEADLINE: Duration = Duration::from_secs(1);

/// What is promised to those who are denied for want of Redis while it is not known when it is asked next.
const RETRY: Duration = Duration::from_secs(1);

/// Charges of a request to Redis, what is handed over first.
type Sent = SmallVec<[Charge; 4]>;

/// What is handed over with a request: nothing, nearly always.
type Handed = Vec<Handover>;

/// A Redis and what stands in for it.
#[derive(Debug)]
pub(super) struct Shared {
    redis: Arc<RedisStore>,
    denials: Arc<Denials>,
    refunds: Arc<Refunds>,
    fallback: Fallback,
    clock: Clock,
    timeout: Duration,
    on_failure: OnRedisFailure,
    /// The epochs of Redis's memory for which all that is known here has been told.
    told: AtomicU64,
    settling: AtomicUsize,
    settled: Settled,
    caps: Caps,
}

/// What there may be so much of.
#[derive(Debug)]
struct Caps {
    queue: Cap,
    settling: Cap,
    refunds: Cap,
}

/// Late calls whose outcome is known, by what it was.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) admitted: AtomicU64,
    pub(super) denied: AtomicU64,
    /// Of which nobody will know.
    pub(super) lost: AtomicU64,
}

/// A decision, and how Redis left each charge's bucket if it was Redis's.
#[derive(Debug)]
struct Decided {
    decision: Decision,
    left: SmallVec<[Bucket; 2]>,
}

impl From<Decision> for Decided {
    fn from(decision: Decision) -> Self {
        Self { decision, left: SmallVec::new() }
    }
}

/// Stops the sweeping when it is dropped.
#[derive(Debug)]
pub(super) struct Sweeping(AbortHandle);

impl Drop for Sweeping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shared {
    /// Decides by `redis`, and while it does not answer by about `capacity` buckets of its own. Begins to sweep.
    pub(super) fn new(
        redis: RedisStore,
        clock: Clock,
        capacity: NonZeroUsize,
        failing: Failing,
    ) -> (Arc<Self>, Sweeping) {
        let shared = Arc::new(Self {
            told: AtomicU64::new(redis.epochs()),
            redis: Arc::new(redis),
            denials: Arc::new(Denials::new(failing.remember, failing.timeout)),
            refunds: Arc::default(),
            fallback: Fallback::new(capacity, clock.clone()),
            clock,
            timeout: failing.timeout,
            on_failure: failing.on_failure,
            settling: AtomicUsize::new(0),
            settled: Settled::default(),
            caps: Caps {
                queue: Cap::new(
                    "calls that wait for Redis",
                    "then further ones are decided by local buckets; --redis-queue sets how many may wait",
                ),
                settling: Cap::new(
                    "calls that Redis has not answered in time",
                    "of further ones nobody learns what became of them; Redis is slow",
                ),
                refunds: Cap::new("refunds on their way", "further ones are lost; Redis is slow"),
            },
        });
        let sweeping = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                sweeping.sweep().await;
            }
        });
        (shared, Sweeping(task.abort_handle()))
    }

    /// The Redis.
    pub(super) fn redis(&self) -> &RedisStore {
        &self.redis
    }

    /// What stands in for it.
    pub(super) fn fallback(&self) -> &Fallback {
        &self.fallback
    }

    /// What became of late calls.
    pub(super) fn settled(&self) -> &Settled {
        &self.settled
    }

    /// Refunds to Redis that have not arrived, as far as is known.
    pub(super) fn lost_refunds(&self) -> u64 {
        self.refunds.lost()
    }

    /// Warns of what is near its cap.
    pub(super) fn look_at_caps(&self) {
        let waiting = self.redis.nodes().iter().map(|node| node.longest_queue()).max();
        let (waiting, most) = waiting.unwrap_or_default();
        self.caps.queue.look(waiting, most);
        self.caps.settling.look(self.settling.load(Ordering::Relaxed), SETTLING);
        self.caps.refunds.look(self.refunds.under_way(), refunds::MOST);
    }

    /// Decides one request, by the deadline of a call that arrives now.
    pub(super) async fn decide(self: &Arc<Self>, charges: &[Charge], names: &Names) -> Decision {
        let deadline = clock::instant() + self.timeout;
        let gives_back = charges.iter().any(|charge| charge.hits.give_back());
        let _giving_back = gives_back.then(|| self.denials.giving_back(charges));
        let asked = self.clock.now();
        if let Some(decision) = self.denials.decide(charges, asked) {
            return decision.said_by(Source::Remembered);
        }
        let generations = self.denials.generations(charges);
        let (Decided { decision, left }, longest) =
            match parts::split(charges, names, |name| self.redis.part_of(name)) {
                None => match self.decide_part(charges, names, deadline).await {
                    Some(decided) => (decided, Micros::MAX),
                    // While a slot moves, its buckets may be in two places: each is a part of its own then.
                    None => {
                        let pieces = parts::split(charges, names, Bytes::clone).unwrap_or_default();
                        (self.in_parts(charges, pieces, deadline).await, parts::BELIEVED)
                    }
                },
                Some(pieces) => (self.in_parts(charges, pieces, deadline).await, parts::BELIEVED),
            };
        let by_redis = decision.verdicts.iter().all(|verdict| verdict.source == Source::Redis);
        if by_redis && !gives_back {
            self.denials.remember(charges, &decision, &left, asked, &generations, longest);
        }
        decision
    }

    /// Decides a request part by part. By a task of its own: should the caller go away in between, what is taken in one
    /// part is given back all the same when another denies.
    async fn in_parts(
        self: &Arc<Self>,
        charges: &[Charge],
        pieces: Vec<Piece>,
        deadline: Instant,
    ) -> Decided {
        let (this, own) = (Arc::clone(self), Sent::from_slice(charges));
        let deciding = tokio::spawn(async move {
            let asked = pieces.iter().map(|piece| this.decide_piece(piece, deadline));
            let decisions: Vec<Option<Decision>> = parts::all(asked).await.into_iter().map(Some).collect();
            let (decision, taken) = parts::conclude(&own, &pieces, &decisions);
            taken.into_iter().for_each(|refund| this.give_back(refund));
            decision
        });
        let decision = deciding.await.ok().flatten();
        // Each part was decided, and nothing ends this task but the end of the runtime.
        decision.unwrap_or_else(|| self.decide_here(charges, &Names::new(), None)).into()
    }

    /// Decides what of a request is in one part.
    async fn decide_piece(self: &Arc<Self>, piece: &Piece, deadline: Instant) -> Decision {
        match self.decide_part(&piece.charges, &piece.names, deadline).await {
            Some(decided) => decided.decision,
            // Its slot moves just now.
            None => self.decide_here(&piece.charges, &piece.names, None),
        }
    }

    /// Gives back what a piece of a denied request has taken, to whoever decided it.
    fn give_back(self: &Arc<Self>, refund: Refund) {
        match refund.source {
            Source::Redis => self.refunds.give_back(refund, &self.redis, &self.denials),
            _ => _ = self.decide_here(&refund.charges, &refund.names, None),
        }
    }

    /// Decides a request whose buckets are all in one part: by Redis, or if that does not answer by the deadline, here.
    /// Not at all while they are of several names and in a slot that moves.
    async fn decide_part(
        self: &Arc<Self>,
        charges: &[Charge],
        names: &Names,
        deadline: Instant,
    ) -> Option<Decided> {
        let Some(part) = names.first().map(|name| self.redis.part_of(name)) else {
            return Some(self.decide_here(charges, names, None).into());
        };
        let Some(node) = self.redis.node(part) else {
            return Some(self.decide_here(charges, names, None).into());
        };
        let (handed, epoch) = loop {
            let epoch = node.epoch();
            if !node.breaker().is_closed() {
                break (Handed::new(), epoch);
            }
            match self.hand_over(charges, epoch) {
                Ok(handed) => break (handed, epoch),
                Err(mut on_its_way) => {
                    // Ends with an error, for nothing is ever sent.
                    if timeout_at(deadline, on_its_way.changed()).await.is_err() {
                        return Some(self.decide_here(charges, names, Some(&node)).into());
                    }
                }
            }
        };
        if handed.is_empty() {
            let answer = node.decide(part, charges, names.iter().cloned(), deadline).await;
            return self.conclude(answer, &node, handed, charges, names, epoch);
        }
        // Should the caller go away, it must still be found out whether what is handed over has arrived.
        let (this, node) = (Arc::clone(self), node.into_owned());
        let (own_charges, own_names) = (charges.to_vec(), names.clone());
        let deciding = tokio::spawn(async move {
            let told = || handed.iter().flat_map(|handover| handover.charges());
            let all: Sent = told().map(|(charge, _)| charge).chain(own_charges.iter().copied()).collect();
            let all_names = told().map(|(_, name)| name).chain(own_names.iter().cloned());
            let answer = node.decide(part, &all, all_names.collect::<Names>(), deadline).await;
            this.conclude(answer, &node, handed, &own_charges, &own_names, epoch)
        });
        // Nothing ends this task but the end of the runtime.
        deciding.await.unwrap_or_else(|_| Some(self.decide_here(charges, names, None).into()))
    }

    /// Takes what Redis answered, or decides here.
    fn conclude(
        self: &Arc<Self>,
        answer: Result<Answered, Failure>,
        node: &Arc<Node>,
        handed: Handed,
        charges: &[Charge],
        names: &Names,
        epoch: u64,
    ) -> Option<Decided> {
        let Failure { error, pending } = match answer {
            // What a memory says that has been lost in between is no news of the one that there is.
            Ok(answered) => {
                let epoch = (node.epoch() == epoch).then_some(epoch);
                return Some(self.learn(answered, &handed, charges, names, epoch));
            }
            Err(failure) => failure,
        };
        if error.class() == Class::Moving && names.iter().any(|name| Some(name) != names.first()) {
            self.fallback.put_back(handed);
            return None;
        }
        let decision = self.decide_here(charges, names, Some(node));
        match pending {
            Some(pending) => self.settle_later(pending, charges, handed, node.replicas(), decision.at),
            None => self.fallback.put_back(handed),
        }
        Some(decision.into())
    }

    /// What Redis has to be told of these buckets first: nothing, nearly always. Or what it is being told already, and has
    /// to know before it is asked.
    fn hand_over(&self, charges: &[Charge], epoch: u64) -> Result<Handed, OnItsWay> {
        if self.fallback.owing() == 0 && self.told.load(Ordering::Relaxed) == self.redis.epochs() {
            return Ok(Handed::new());
        }
        self.fallback.hand_over(charges, epoch)
    }

    /// Takes note of how Redis left the buckets of a request.
    fn learn(
        &self,
        answered: Answered,
        handed: &Handed,
        charges: &[Charge],
        names: &[Bytes],
        epoch: Option<u64>,
    ) -> Decided {
        let Answered { mut decision, mut left } = answered;
        let told = corrections(handed);
        decision.verdicts.drain(..told);
        left.drain(..told.min(left.len()));
        if let Some(epoch) = epoch {
            for ((charge, name), left) in charges.iter().zip(names).zip(&left) {
                self.fallback.learn(charge, name, left.clone(), decision.at, epoch);
            }
        }
        Decided { decision: decision.said_by(Source::Redis), left }
    }

    /// Decides here, as the rules say for a Redis that does not answer.
    fn decide_here(&self, charges: &[Charge], names: &[Bytes], node: Option<&Arc<Node>>) -> Decision {
        let replicas = node.map_or_else(|| self.redis.replicas(), |node| node.replicas());
        let epoch = node.map_or(0, |node| node.epoch());
        let policies: SmallVec<[OnRedisFailure; 4]> =
            charges.iter().map(|charge| self.policy(charge)).collect();
        if policies.iter().all(|policy| *policy == OnRedisFailure::Local) {
            return self.fallback.decide(charges, names, replicas, epoch).said_by(Source::Local);
        }
        let stand_ins: Sent =
            charges.iter().zip(&policies).map(|(charge, policy)| stand_in(charge, *policy)).collect();
        let mut decision = self.fallback.decide(&stand_ins, names, replicas, epoch).said_by(Source::Local);
        let retry = node.and_then(|node| node.breaker().next_probe_in()).unwrap_or(RETRY);
        let retry = Micros::try_from(retry.as_micros()).unwrap_or(Micros::MAX).max(1);
        for (verdict, policy) in decision.verdicts.iter_mut().zip(policies) {
            match policy {
                OnRedisFailure::Local => continue,
                OnRedisFailure::Deny => verdict.outcome = Outcome::Over(Retry::In(retry)),
                OnRedisFailure::Allow => {}
            }
            (verdict.remaining, verdict.full_in, verdict.source) = (0, 0, Source::Policy);
        }
        decision
    }

    /// What is answered to a charge without Redis. What has happened already is counted in any case.
    fn policy(&self, charge: &Charge) -> OnRedisFailure {
        if charge.hits.land_anyway() {
            return OnRedisFailure::Local;
        }
        charge.on_redis_failure.unwrap_or(self.on_failure)
    }

    /// Waits in the background for what Redis says of a call that was answered without it, at the moment `decided`.
    fn settle_later(
        self: &Arc<Self>,
        pending: Pending,
        charges: &[Charge],
        handed: Handed,
        replicas: NonZeroU32,
        decided: Micros,
    ) {
        if self.settling.fetch_add(1, Ordering::Relaxed) >= SETTLING {
            self.settling.fetch_sub(1, Ordering::Relaxed);
            return self.fallback.put_back(handed);
        }
        // What was admitted by a rule alone was not counted here, and is not given back.
        let counted = |charge: &&Charge| self.policy(charge) != OnRedisFailure::Allow;
        let charges: SmallVec<[(usize, Charge); 4]> = charges
            .iter()
            .enumerate()
            .filter(|(_, charge)| counted(charge))
            .map(|(at, charge)| (at, *charge))
            .collect();
        let told = corrections(&handed);
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            match pending.outcome().await {
                Ok(Answered { decision, .. }) => {
                    let landed: SmallVec<[Charge; 4]> = charges
                        .into_iter()
                        .filter(|(at, charge)| {
                            let fits = decision.verdicts.get(told + at);
                            charge.hits.land_anyway()
                                || (!decision.denied
                                    && fits.is_some_and(|verdict| verdict.outcome == Outcome::Fits))
                        })
                        .map(|(_, charge)| charge)
                        .collect();
                    shared.fallback.landed(&landed, replicas, decided);
                    let settled = &shared.settled;
                    let count = if decision.denied { &settled.denied } else { &settled.admitted };
                    count.fetch_add(1, Ordering::Relaxed);
                }
                // What nobody will ever know counts as not charged there: towards denying.
                Err(error) => {
                    if error.may_have_landed() {
                        shared.settled.lost.fetch_add(1, Ordering::Relaxed);
                    }
                    shared.fallback.put_back(handed);
                }
            }
            shared.settling.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Tells Redis what nobody asks for.
    async fn sweep(self: &Arc<Self>) {
        let epochs = self.redis.epochs();
        let forgetful = self.told.load(Ordering::Relaxed) != epochs;
        let nodes = self.redis.nodes();
        if (self.fallback.owing() == 0 && !forgetful) || !nodes.iter().any(|node| node.breaker().is_closed())
        {
            return;
        }
        let mut is_whole = true;
        for shard in 0..self.fallback.shards() {
            loop {
                let swept = self.fallback.sweep(shard, SWEPT, forgetful, |name| {
                    let node = self.redis.node(self.redis.part_of(name))?;
                    node.breaker().is_closed().then(|| node.epoch())
                });
                let is_full = swept.handed.len() == SWEPT;
                let mut telling = JoinSet::new();
                for handover in swept.handed {
                    telling.spawn(Arc::clone(self).tell(handover));
                }
                let mut well = true;
                while let Some(told) = telling.join_next().await {
                    well &= told.unwrap_or(false);
                }
                if !is_full || !well {
                    is_whole &= swept.is_whole && well;
                    break;
                }
            }
            // Calls come first.
            tokio::task::yield_now().await;
        }
        if is_whole && self.redis.epochs() == epochs {
            self.told.store(epochs, Ordering::Relaxed);
        }
    }

    /// Hands a bucket over; whether that went well.
    async fn tell(self: Arc<Self>, handover: Handover) -> bool {
        let (charges, names): (Sent, Names) = handover.charges().unzip();
        let part = self.redis.part_of(&handover.name);
        let told = self.redis.decide(part, &charges, names, clock::instant() + SWEEP_DEADLINE).await;
        let error = match told {
            Ok(_) => return true,
            Err(Failure { pending: Some(pending), .. }) => match pending.outcome().await {
                Ok(_) => return true,
                Err(error) => error,
            },
            Err(Failure { error, .. }) => error,
        };
        // A key that holds something else can never be told.
        if error == StoreError::Unreadable {
            return true;
        }
        self.fallback.put_back([handover]);
        false
    }
}

/// How many charges tell what is handed over.
fn corrections(handed: &Handed) -> usize {
    handed.iter().map(|handover| handover.corrections.len()).sum()
}

/// What takes the place of a charge that a rule decides without looking: one that never fits, or always, of a bucket that
/// is nobody's.
fn stand_in(charge: &Charge, policy: OnRedisFailure) -> Charge {
    match policy {
        OnRedisFailure::Local => *charge,
        OnRedisFailure::Deny => {
            Charge { bucket: BucketKey(u128::MAX - 1), limit: Limit::blocked(NonZeroU64::MIN), ..*charge }
        }
        OnRedisFailure::Allow => Charge { bucket: BucketKey(u128::MAX - 2), hits: Hits::Peek, ..*charge },
    }
}
