//! A batch of requests as `decide.lua` takes it, and its reply as decisions.
//!
//! The script decides what is admitted and what is written. What it says of that is short: the moment, each bucket as it
//! was found, and for each request whether it was admitted. The verdicts are worked out of these here, by the same
//! arithmetic; if the two ever came to different answers, the script's would count, and be counted.

use bytes::Bytes;
use redis::{Cmd, Value};
use smallvec::SmallVec;

use super::queue::Charges;
use crate::bucket::{Algorithm, Bucket, Calendar, Hits, Limit, Outcome};
use crate::clock::Micros;
use crate::decision::{BucketKey, Charge, Decision, HashKeys, Mode, Source, Verdict, decide, decide_one};

/// What runs in Redis.
pub(super) const DECIDE: &str = include_str!("decide.lua");

/// How long Redis remembers the last batch of a lane, in milliseconds: far longer than a lost reply is asked for.
const NOTE_TTL_MILLIS: u32 = 60_000;

/// Where each bucket is in a batch.
pub(super) type Places = hashbrown::HashMap<BucketKey, usize, HashKeys>;

/// A charge, and what its bucket is called in Redis.
#[derive(Clone, Debug)]
pub(super) struct NamedCharge {
    pub(super) charge: Charge,
    pub(super) name: Bytes,
}

/// A request of a batch: its charges, each with the place of its bucket.
type Request = SmallVec<[(Charge, usize); 1]>;

/// Requests that are decided together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    names: Vec<Bytes>,
    places: Places,
    limits: Vec<Limit>,
    requests: Vec<Request>,
    encoded_limits: Vec<u8>,
    encoded_charges: Vec<u8>,
    encoded_moments: Vec<u8>,
}

/// A request that was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// How.
    pub decision: Decision,
    /// For each charge, its bucket as the decision left it, at the decision's moment.
    pub left: SmallVec<[Bucket; 2]>,
}

/// What became of one request of a batch.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly all of them are answered")]
pub(super) enum Decided {
    /// It was decided.
    Answered(Answered),
    /// One of its buckets holds something else: another type, or bytes that are no record.
    Unreadable,
}

/// What Redis answered to a batch.
#[derive(Debug, PartialEq)]
pub(super) struct Reply {
    /// For each request.
    pub(super) decided: Vec<Decided>,
    /// Requests that the script and the arithmetic here decided differently: none, or there is an error in one of them.
    pub(super) parted: u64,
}

/// A reply that is not one of this script's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a reply of the wrong shape: {0}")]
pub(super) struct WrongShape(&'static str);

/// Bytes of an encoded charge.
const CHARGE: usize = 13;

/// Arguments of a command beside the buckets' names, and about how long those are that do not grow with the batch.
const OTHER_ARGUMENTS: usize = 9;
const OTHER_BYTES: usize = 256;

impl Batch {
    /// One with room for so many requests of a charge each.
    pub(super) fn for_requests(count: usize) -> Self {
        Self {
            names: Vec::with_capacity(count),
            places: Places::with_capacity_and_hasher(count, HashKeys::default()),
            requests: Vec::with_capacity(count),
            encoded_charges: Vec::with_capacity(count * CHARGE),
            ..Self::default()
        }
    }

    /// Adds a request, which has at least one charge.
    pub(super) fn push(&mut self, charges: &[NamedCharge]) {
        let mut request = Request::new();
        for (index, NamedCharge { charge, name }) in charges.iter().enumerate() {
            let place = *self.places.entry(charge.bucket).or_insert_with(|| {
                self.names.push(name.clone());
                self.names.len() - 1
            });
            let limit = self.limit(&charge.limit);
            let (kind, hits, moment) = match charge.hits {
                Hits::Take(hits) => (0, double(hits), None),
                Hits::Peek => (1, 0.0, None),
                Hits::GiveBack(hits) => (2, double(hits), None),
                Hits::Refund { tokens, taken } => (3, double(tokens), Some(taken)),
                Hits::Overdraft(hits) => (4, double(hits), None),
                Hits::Add { tokens, at } => (5, tokens, Some(at)),
                Hits::Raise { tokens, at } => (6, tokens, Some(at)),
            };
            let mode = match charge.mode {
                Mode::Enforced => 0,
                Mode::Quota => 8,
                Mode::Shadow => 16,
            };
            let end = if index + 1 == charges.len() { 32 } else { 0 };
            self.encoded_charges.extend_from_slice(&short(place));
            self.encoded_charges.extend_from_slice(&short(limit));
            self.encoded_charges.push(kind + mode + end);
            self.encoded_charges.extend_from_slice(&hits.to_le_bytes());
            if let Some(moment) = moment {
                self.encoded_moments.extend_from_slice(&double(moment).to_le_bytes());
            }
            request.push((*charge, place));
        }
        self.requests.push(request);
    }

    /// Its requests, in order.
    pub(super) fn requests(&self) -> impl Iterator<Item = Charges> {
        let named = |(charge, place): &(Charge, usize)| {
            Some(NamedCharge { charge: *charge, name: self.names.get(*place)?.clone() })
        };
        self.requests.iter().map(move |request| request.iter().filter_map(named).collect())
    }

    /// The place of a limit; most charges of a batch have one of a few.
    fn limit(&mut self, limit: &Limit) -> usize {
        if let Some(place) = self.limits.iter().position(|other| other == limit) {
            return place;
        }
        self.limits.push(*limit);
        let (length, before_epoch) = limit.slots();
        let (kind, how) = match limit.algorithm() {
            Algorithm::TokenBucket => (1, [limit.rate(), double(limit.in_force_since())]),
            Algorithm::FixedWindow(Calendar::Epoch | Calendar::Week) => {
                (2, [double(length), double(before_epoch)])
            }
            Algorithm::SlidingWindow => (3, [double(length), double(before_epoch)]),
            Algorithm::FixedWindow(Calendar::Month) => (4, [0.0, 0.0]),
            Algorithm::FixedWindow(Calendar::Year) => (5, [0.0, 0.0]),
        };
        self.encoded_limits.push(kind);
        for part in how.into_iter().chain([limit.burst(), limit.most()]) {
            self.encoded_limits.extend_from_slice(&part.to_le_bytes());
        }
        self.limits.len() - 1
    }

    /// The command that has it decided, as batch `number` of the lane that notes it under `note`; or without a note, when
    /// nobody is going to ask again what became of it.
    pub(super) fn command<'n>(&self, how: How<'_>, note: impl Into<Option<(&'n [u8], u64)>>) -> Cmd {
        let note = note.into();
        let number = note.map_or(0, |(_, number)| number);
        let (name, script) = match how {
            How::Hash(hash) => ("EVALSHA", hash),
            How::Source(source) => ("EVAL", source),
        };
        let names: usize = self.names.iter().map(Bytes::len).sum();
        let bytes = names + script.len() + self.encoded_charges.len() + OTHER_BYTES;
        let mut command = Cmd::with_capacity(self.names.len() + OTHER_ARGUMENTS, bytes);
        command.arg(name).arg(script).arg(self.names.len() + usize::from(note.is_some()));
        if let Some((note, _)) = note {
            command.arg(note);
        }
        for name in &self.names {
            command.arg(&name[..]);
        }
        command.arg(number).arg(NOTE_TTL_MILLIS).arg(&self.encoded_limits[..]).arg(&self.encoded_charges[..]);
        command.arg(&self.encoded_moments[..]);
        command
    }

    /// What a reply says of each request, in order.
    pub(super) fn read(&self, reply: Value) -> Result<Reply, WrongShape> {
        let Value::Array(parts) = reply else { return Err(WrongShape("no list")) };
        let mut parts = parts.into_iter().map(|part| match part {
            Value::BulkString(bytes) => Ok(bytes),
            _ => Err(WrongShape("a part is no text")),
        });
        let (Some(now), Some(decided)) = (parts.next(), parts.next()) else {
            return Err(WrongShape("too few parts"));
        };
        let (now, decided) = (moment(&now?).ok_or(WrongShape("no moment"))?, decided?);
        let mut buckets = parts
            .map(|record| Ok(Bucket::from_record(&record?).unwrap_or(Bucket::FULL)))
            .collect::<Result<Vec<_>, _>>()?;
        let (again, decided) = match decided.strip_prefix(b"a") {
            Some(decided) => (true, decided),
            None => (false, &decided[..]),
        };
        if buckets.len() != self.names.len() || decided.len() != self.requests.len() {
            return Err(WrongShape("another batch's"));
        }
        let mut parted = 0;
        let decided = self
            .requests
            .iter()
            .zip(decided)
            .map(|(request, decided)| match decided {
                b'y' if again => answered(admitted(request, &buckets, now), request, &buckets),
                b'n' if again => {
                    // What denied it is not known any more; what it would meet now is the best that can be said.
                    let mut decision = replay(request, &mut buckets.clone(), now);
                    decision.denied = true;
                    answered(decision, request, &buckets)
                }
                b'y' | b'n' => {
                    let denied = *decided == b'n';
                    let mut decision = replay(request, &mut buckets, now);
                    parted += u64::from(decision.denied != denied);
                    decision.denied = denied;
                    answered(decision, request, &buckets)
                }
                _ => Decided::Unreadable,
            })
            .collect();
        Ok(Reply { decided, parted })
    }
}

/// Which command runs the script.
#[derive(Clone, Copy)]
pub(super) enum How<'a> {
    /// By its hash: Redis has it.
    Hash(&'a str),
    /// Whole: Redis may have forgotten it.
    Source(&'a str),
}

/// Decides a request as the script did, on buckets as the script found them.
fn replay(request: &Request, buckets: &mut [Bucket], now: Micros) -> Decision {
    if let [(charge, place)] = &request[..]
        && let Some(bucket) = buckets.get_mut(*place)
    {
        return decide_one(charge, bucket, now);
    }
    let mut distinct: SmallVec<[usize; 4]> = request.iter().map(|(_, place)| *place).collect();
    distinct.sort_unstable();
    distinct.dedup();
    let mut own: SmallVec<[Bucket; 4]> =
        distinct.iter().map(|place| buckets.get(*place).cloned().unwrap_or(Bucket::FULL)).collect();
    let charges: SmallVec<[Charge; 4]> = request.iter().map(|(charge, _)| *charge).collect();
    let places: SmallVec<[usize; 4]> =
        request.iter().filter_map(|(_, place)| distinct.binary_search(place).ok()).collect();
    let decision = decide(&charges, &places, &mut own, now);
    for (place, bucket) in distinct.iter().zip(own) {
        if let Some(kept) = buckets.get_mut(*place) {
            *kept = bucket;
        }
    }
    decision
}

fn answered(decision: Decision, request: &Request, buckets: &[Bucket]) -> Decided {
    let left = |(_, place): &(Charge, usize)| buckets.get(*place).cloned().unwrap_or(Bucket::FULL);
    Decided::Answered(Answered { decision, left: request.iter().map(left).collect() })
}

/// What is said of a request that was admitted before, when its answer was lost: that, and what is left now.
fn admitted(request: &Request, buckets: &[Bucket], now: Micros) -> Decision {
    let verdict = |(charge, place): &(Charge, usize)| {
        let bucket = buckets.get(*place).unwrap_or(&Bucket::FULL);
        let (remaining, full_in) = (bucket.remaining(&charge.limit, now), bucket.full_in(&charge.limit, now));
        Verdict { outcome: Outcome::Fits, remaining, full_in, source: Source::Local }
    };
    Decision { denied: false, at: now, verdicts: request.iter().map(verdict).collect() }
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a moment is a whole number below 2⁵³"
)]
fn moment(bytes: &[u8]) -> Option<Micros> {
    Some(f64::from_le_bytes(bytes.try_into().ok()?) as Micros)
}

#[allow(clippy::cast_precision_loss, reason = "the same as the arithmetic does")]
fn double(count: u64) -> f64 {
    count as f64
}

/// A place in a batch, which holds far fewer than 65536.
fn short(place: usize) -> [u8; 2] {
    u16::try_from(place).unwrap_or(u16::MAX).to_le_bytes()
}
