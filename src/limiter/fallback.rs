//! What decides while a shared store does not answer: buckets of this process's own, which know where they stood.
//!
//! For each bucket that the store has decided on, its last known state is kept. When the store cannot be asked, a process
//! takes its *share* of that state, one part of as many as there are processes, and decides on it under its share of the
//! limit: so a limit means as much in an outage as before, and nobody gets a fresh bucket out of one.
//!
//! When the store can be asked again, it is told what was used meanwhile: not all that was taken, for most of that may
//! have flowed back, but what the share has used less what it would have used had nobody come ([`Bucket::contribution`]).
//! A bucket is handed over by the next request for it, in the same batch and before that request; those that nobody asks
//! for are swept up ([`Fallback::sweep`]). From there on the bucket is the store's.
//!
//! A store that came back without its memory, or with an older one, has another *epoch*. Then each bucket is first raised
//! to what is known of it here; what several processes know is told in any order, and comes to the most of it.
//!
//! All of this is held beside the buckets of one [`LocalStore`], and bounded with it: what is evicted there is forgotten
//! here, and the buckets of those who are being limited are not evicted.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::watch;

use crate::bucket::{Bucket, Corrections, Hits, Limit};
use crate::clock::{Clock, Micros};
use crate::decision::{BucketKey, Charge, Decision, Mode, RuleId};
use crate::store::{LocalStore, Usage};

mod limits;

use limits::Limits;

/// Buckets as they are known here.
#[derive(Debug)]
pub(super) struct Fallback {
    buckets: LocalStore<Beside>,
    limits: Limits,
    owing: Arc<Owing>,
}

/// Buckets that the store has to be told of.
#[derive(Debug)]
struct Owing {
    all: AtomicUsize,
    /// Of each shard.
    shards: Box<[AtomicUsize]>,
}

/// Nothing is known of a bucket that only the store's overflow made.
type Beside = Option<Box<Known>>;

/// What is known of a bucket besides its state. All of it but the name is read with each answer of the store, of as many
/// buckets as there are callers, which no cache holds: so it is small, and what is only there in an outage has a box of its
/// own.
#[derive(Debug)]
struct Known {
    /// What it is called in the store.
    name: Box<[u8]>,
    /// Under which it was charged last: the whole of it.
    limit: Arc<Limit>,
    /// Of the store that its state is from.
    epoch: u64,
    /// When the store said so, by its own clock.
    said: Micros,
    outage: Option<Box<Outage>>,
}

const _: () =
    assert!(size_of::<Known>() <= 48, "more than that takes more of the allocator, and another cache line");

/// What has become of a bucket while the store could not be asked, or had lost its memory.
#[derive(Debug, Default)]
struct Outage {
    /// If it has been decided on here. Then the bucket beside this is this process's share.
    own: Option<Box<Own>>,
    /// If the store has forgotten it, and could not be told.
    forgotten: Option<Owed>,
    /// What the store is being told of it, until that has arrived.
    told: Weak<watch::Sender<()>>,
}

impl Outage {
    /// Whether the store has yet to be told of something, and nobody does.
    fn owes(&self) -> bool {
        self.own.is_some() || self.forgotten.is_some()
    }
}

impl Known {
    fn new(name: &[u8], limit: Arc<Limit>, epoch: u64) -> Box<Self> {
        Box::new(Self { name: name.into(), limit, epoch, said: 0, outage: None })
    }

    fn own(&self) -> Option<&Own> {
        self.outage.as_ref()?.own.as_deref()
    }

    /// The one who tells the store of it, if somebody does.
    fn telling(&self) -> Option<Arc<watch::Sender<()>>> {
        self.outage.as_ref()?.told.upgrade()
    }

    fn outage(&mut self) -> &mut Outage {
        self.outage.get_or_insert_default()
    }
}

/// A bucket that has been decided on here.
#[derive(Debug)]
struct Own {
    /// As the store was known to have it.
    whole: Bucket,
    /// The same with what this process used of it while it had a larger share, if it had one.
    before: Option<Box<Bucket>>,
    /// The share that this process began with.
    start: Bucket,
    /// How many shares there were.
    replicas: NonZeroU32,
    _owed: Owed,
}

impl Own {
    /// What this process has used, of which `share` is what it has now.
    fn contribution(&self, share: &Bucket, limit: &Limit, now: Micros) -> Corrections {
        let mut used = share.contribution(&self.start, &limit.share(self.replicas), now);
        if let Some(before) = &self.before {
            used.extend(before.contribution(&self.whole, limit, now));
        }
        used
    }

    /// There are more processes than there were: the share is a smaller one from here on.
    fn divide(&mut self, share: &mut Bucket, limit: &Limit, replicas: NonZeroU32, now: Micros) {
        let used = share.contribution(&self.start, &limit.share(self.replicas), now);
        let mut whole = self.before.take().map_or_else(|| self.whole.clone(), |before| *before);
        for used in used {
            _ = whole.take(limit, used, now);
        }
        *share = whole.share(limit, replicas, now);
        (self.start, self.replicas, self.before) = (share.clone(), replicas, Some(Box::new(whole)));
    }
}

impl Owing {
    fn of(&self, shard: usize) -> impl Iterator<Item = &AtomicUsize> {
        self.shards.get(shard).into_iter().chain([&self.all])
    }
}

/// One of the buckets that the store has to be told of, for as long as it is held.
#[derive(Debug)]
struct Owed {
    owing: Arc<Owing>,
    shard: usize,
}

impl Owed {
    fn count(owing: &Arc<Owing>, shard: usize) -> Self {
        owing.of(shard).for_each(|count| _ = count.fetch_add(1, Ordering::Relaxed));
        Self { owing: Arc::clone(owing), shard }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.owing.of(self.shard).for_each(|count| _ = count.fetch_sub(1, Ordering::Relaxed));
    }
}

/// What the store has to be told of a bucket, and how things stood before.
#[derive(Debug)]
pub(super) struct Handover {
    bucket: BucketKey,
    pub(super) name: Bytes,
    limit: Limit,
    /// In this order.
    pub(super) corrections: Corrections,
    /// The epoch that the bucket was of.
    epoch: u64,
    own: Option<(Bucket, Box<Own>)>,
    /// Also one that only raises what was forgotten is owed until it has arrived.
    _owed: Option<Owed>,
    /// Ends when this does.
    telling: Arc<watch::Sender<()>>,
}

/// What a shard's sweep found.
#[derive(Debug)]
pub(super) struct Swept {
    pub(super) handed: Vec<Handover>,
    /// Whether each bucket of the shard was one of these, or of no concern.
    pub(super) is_whole: bool,
}

/// Ends when what is on its way to the store has arrived there, or is owed again.
pub(super) type OnItsWay = watch::Receiver<()>;

impl Handover {
    /// The charges that tell it, and what the bucket is called.
    pub(super) fn charges(&self) -> impl Iterator<Item = (Charge, Bytes)> + '_ {
        self.corrections.iter().map(|hits| {
            let charge = Charge {
                bucket: self.bucket,
                rule: RuleId(0),
                limit: self.limit,
                hits: *hits,
                mode: Mode::Shadow,
                on_redis_failure: None,
            };
            (charge, self.name.clone())
        })
    }
}

impl Fallback {
    /// Knows about `capacity` buckets at most.
    pub(super) fn new(capacity: NonZeroUsize, clock: Clock) -> Self {
        let buckets = LocalStore::with_beside(capacity, clock);
        let shards = (0..buckets.shards()).map(|_| AtomicUsize::new(0)).collect();
        let owing = Arc::new(Owing { all: AtomicUsize::new(0), shards });
        Self { buckets, limits: Limits::default(), owing }
    }

    /// How full it is.
    pub(super) fn usage(&self) -> Usage {
        self.buckets.usage()
    }

    /// Buckets that the store has to be told of.
    pub(super) fn owing(&self) -> usize {
        self.owing.all.load(Ordering::Relaxed)
    }

    fn owed(&self, bucket: BucketKey) -> Owed {
        Owed::count(&self.owing, self.buckets.shard_of(bucket))
    }

    /// The store has decided on a bucket, and left it so; `at` is the store's present, by its own clock.
    pub(super) fn learn(&self, charge: &Charge, name: &Bytes, left: Bucket, at: Micros, epoch: u64) {
        let limit = &charge.limit;
        self.buckets.put(charge.bucket, limit, |bucket, beside, now| {
            match beside {
                // Decided on here in the meantime, or not told of: the next request tells, and learns.
                Some(known) if known.outage.as_ref().is_some_and(|outage| outage.owes()) => return,
                // Answers may overtake each other on their way.
                Some(known) if known.epoch == epoch && known.said > at => return,
                Some(known) => {
                    if *known.limit != *limit {
                        known.limit = self.limits.one(limit);
                    }
                    (known.epoch, known.said) = (epoch, at);
                    known.outage.take_if(|outage| outage.told.strong_count() == 0);
                }
                None => {
                    let known = beside.insert(Known::new(name, self.limits.one(limit), epoch));
                    known.said = at;
                }
            }
            *bucket = left.by_another_clock(limit, at, now);
        });
    }

    /// Decides a request by this process's shares; `epoch` is the one that the store was last known to be of.
    pub(super) fn decide(
        &self,
        charges: &[Charge],
        names: &[Bytes],
        replicas: NonZeroU32,
        epoch: u64,
    ) -> Decision {
        // Of a bucket that this process has a share of already, that remains: also if there are fewer processes by now, for
        // what the others had is used, as far as anybody knows. If there are more, it is divided anew.
        let had = |charge: &Charge| {
            let own = |_: &mut Bucket, beside: &mut Beside, _| Some(beside.as_deref()?.own()?.replicas);
            self.buckets.with(charge.bucket, own).flatten()
        };
        let counts: SmallVec<[NonZeroU32; 4]> =
            charges.iter().map(|charge| had(charge).map_or(replicas, |had| had.max(replicas))).collect();
        let shares: SmallVec<[Charge; 4]> = charges
            .iter()
            .zip(&counts)
            .map(|(charge, replicas)| Charge { limit: charge.limit.share(*replicas), ..*charge })
            .collect();
        let mut prepare = |index: usize, bucket: &mut Bucket, beside: &mut Beside, now: Micros| {
            let (Some(charge), Some(name)) = (charges.get(index), names.get(index)) else { return };
            let limit = charge.limit;
            let known = beside.get_or_insert_with(|| Known::new(name, self.limits.one(&limit), epoch));
            if *known.limit != limit {
                known.limit = self.limits.one(&limit);
            }
            let replicas = counts.get(index).copied().unwrap_or(replicas);
            let own = self.own(charge.bucket, known, bucket, replicas, now);
            if own.replicas < replicas {
                own.divide(bucket, &limit, replicas, now);
            }
        };
        self.buckets.decide_with(&shares, &mut prepare)
    }

    /// Makes a bucket this process's share, if it is not yet.
    fn own<'k>(
        &self,
        key: BucketKey,
        known: &'k mut Known,
        bucket: &mut Bucket,
        replicas: NonZeroU32,
        now: Micros,
    ) -> &'k mut Own {
        let Known { limit, outage, .. } = known;
        outage.get_or_insert_default().own.get_or_insert_with(|| {
            let whole = bucket.clone();
            *bucket = whole.share(limit, replicas, now);
            Box::new(Own { whole, before: None, start: bucket.clone(), replicas, _owed: self.owed(key) })
        })
    }

    /// The store has, after all, applied charges that were decided on here at the moment `at`: it must not be told of them
    /// again, or if they were not admitted here, it has to give back what it took.
    pub(super) fn landed(&self, charges: &[Charge], replicas: NonZeroU32, at: Micros) {
        for charge in charges {
            let tokens = match charge.hits {
                Hits::Take(tokens) | Hits::Overdraft(tokens) => float(tokens),
                Hits::GiveBack(tokens) | Hits::Refund { tokens, .. } => -float(tokens),
                Hits::Add { tokens, .. } => tokens,
                Hits::Peek | Hits::Raise { .. } => continue,
            };
            self.buckets.with(charge.bucket, |bucket, beside, now| {
                let Some(known) = beside else { return };
                let limit = *known.limit;
                let own = self.own(charge.bucket, known, bucket, replicas, now);
                own.start.add_since(&limit.share(own.replicas), tokens, at, now);
                for whole in [Some(&mut own.whole), own.before.as_deref_mut()].into_iter().flatten() {
                    whole.add_since(&limit, tokens, at, now);
                }
            });
        }
    }

    /// What the store, which is of this epoch, has to be told of these buckets before it decides on them.
    ///
    /// # Errors
    /// While it is being told of one of them already: asked now, it might not know yet, and admit what has been used.
    pub(super) fn hand_over(&self, charges: &[Charge], epoch: u64) -> Result<Vec<Handover>, OnItsWay> {
        let mut handed = Vec::new();
        for charge in charges {
            let own = |handover: &Handover| handover.bucket == charge.bucket;
            let taken = self.buckets.with(charge.bucket, |bucket, beside, now| {
                let Some(known) = beside.as_deref_mut() else { return Ok(None) };
                match known.telling().filter(|_| !handed.iter().any(own)) {
                    Some(telling) => Err(telling.subscribe()),
                    None => Ok(self.take_over(charge.bucket, bucket, known, epoch, now)),
                }
            });
            match taken {
                Some(Ok(taken)) => handed.extend(taken),
                Some(Err(on_its_way)) => {
                    self.put_back(handed);
                    return Err(on_its_way);
                }
                None => {}
            }
        }
        Ok(handed)
    }

    /// What was handed over has not arrived, or nobody knows: it is still owed.
    pub(super) fn put_back(&self, handed: impl IntoIterator<Item = Handover>) {
        for Handover { bucket: key, epoch, own, telling: _telling, .. } in handed {
            self.buckets.with(key, |bucket, beside, now| {
                let Some(known) = beside else { return };
                known.epoch = epoch;
                let Some((share, own)) = own else {
                    if known.own().is_none() {
                        known.outage().forgotten = Some(self.owed(key));
                    }
                    return;
                };
                let limit = *known.limit;
                // If it has been decided on again since, both are owed.
                let newer = known.outage().own.take();
                let more = newer.map(|newer| newer.contribution(bucket, &limit, now));
                *bucket = share;
                for correction in more.into_iter().flatten() {
                    _ = bucket.take(&limit.share(own.replicas), correction, now);
                }
                known.outage().own = Some(own);
            });
        }
    }

    /// Shards to [sweep](Fallback::sweep).
    pub(super) fn shards(&self) -> usize {
        self.buckets.shards()
    }

    /// What the store has to be told of the buckets of a shard, `most` of them; `epoch` says which one a bucket's store is
    /// of, or that it cannot be told at present. With `forgetful`, the store may have forgotten any of them.
    pub(super) fn sweep(
        &self,
        shard: usize,
        most: usize,
        forgetful: bool,
        epoch: impl Fn(&[u8]) -> Option<u64>,
    ) -> Swept {
        let mut swept = Swept { handed: Vec::new(), is_whole: true };
        let owing = self.owing.shards.get(shard).is_some_and(|owing| owing.load(Ordering::Relaxed) > 0);
        if !owing && !forgetful {
            return swept;
        }
        self.buckets.look_through(shard, |key, bucket, beside, now| {
            let Some(known) = beside.as_deref_mut() else { return };
            if swept.handed.len() < most
                && known.telling().is_none()
                && let Some(epoch) = epoch(&known.name)
            {
                swept.handed.extend(self.take_over(key, bucket, known, epoch, now));
            } else {
                swept.is_whole = false;
            }
        });
        swept
    }

    /// Takes what has to be told of a bucket, which is the store's from there on; `None` if there is nothing to tell.
    fn take_over(
        &self,
        key: BucketKey,
        bucket: &mut Bucket,
        known: &mut Known,
        epoch: u64,
        now: Micros,
    ) -> Option<Handover> {
        let before = std::mem::replace(&mut known.epoch, epoch);
        let has_forgotten = before != epoch;
        if known.own().is_none() && !has_forgotten {
            return None;
        }
        let outage = known.outage.as_mut();
        let (own, _forgotten) =
            outage.map(|outage| (outage.own.take(), outage.forgotten.take())).unwrap_or_default();
        let limit = *known.limit;
        let mut corrections = Corrections::new();
        if has_forgotten {
            corrections.extend(own.as_ref().map_or(&*bucket, |own| &own.whole).at_least(&limit, now));
        }
        let own = own.map(|own| {
            let contribution = own.contribution(bucket, &limit, now);
            // As the store will have it, as far as is known.
            let mut whole = own.whole.clone();
            for correction in &contribution {
                _ = whole.take(&limit, *correction, now);
            }
            corrections.extend(contribution);
            (std::mem::replace(bucket, whole), own)
        });
        if corrections.is_empty() {
            return None;
        }
        let telling = Arc::new(watch::Sender::new(()));
        known.outage().told = Arc::downgrade(&telling);
        Some(Handover {
            bucket: key,
            name: Bytes::copy_from_slice(&known.name),
            limit,
            corrections,
            epoch: before,
            _owed: own.is_none().then(|| self.owed(key)),
            own,
            telling,
        })
    }
}

#[allow(clippy::cast_precision_loss, reason = "what is that large fits no bucket")]
fn float(tokens: u64) -> f64 {
    tokens as f64
}

#[cfg(test)]
mod tests;
