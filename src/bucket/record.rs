//! A bucket as bytes, as `decide.lua` keeps it.
//!
//! A byte for the kind, then doubles, the lowest byte first:
//!
//! | kind | doubles |
//! |---|---|
//! | 1: a token bucket | used, at, rate |
//! | 2: windows | start of the newest counter, length of each, the counters, the newest first: 1 or 9 |
//! | 3: a token bucket in debt | used, at, rate, burst |
//!
//! Of a bucket that owes nothing, the burst does not matter to anybody who reads it.

use std::num::NonZeroU64;

use smallvec::SmallVec;

use super::limit::SLIDING_COUNTERS;
use super::windows::Windows;
use super::{Bucket, HORIZON, State, Tokens, tokens};
use crate::clock::Micros;

const TOKENS: u8 = 1;
const WINDOWS: u8 = 2;
const IN_DEBT: u8 = 3;

impl Bucket {
    /// The bytes that it is kept as; none of a bucket that is full, which need not be kept.
    #[must_use]
    pub fn to_record(&self) -> Option<Vec<u8>> {
        let record = |kind, doubles: &[f64]| {
            let doubles = doubles.iter().flat_map(|double| double.to_le_bytes());
            std::iter::once(kind).chain(doubles).collect()
        };
        match &self.0 {
            State::Tokens(Tokens { used, at, rate, burst }) => {
                let at = tokens(at.get());
                let in_debt = used > burst;
                (*used > 0.0).then(|| {
                    if in_debt {
                        record(IN_DEBT, &[*used, at, *rate, *burst])
                    } else {
                        record(TOKENS, &[*used, at, *rate])
                    }
                })
            }
            State::Windows(windows) => {
                let mut doubles: SmallVec<[f64; 11]> =
                    SmallVec::from_slice(&[tokens(windows.start), tokens(windows.length)]);
                doubles.extend_from_slice(&windows.counts);
                windows.counts.iter().any(|count| *count > 0.0).then(|| record(WINDOWS, &doubles))
            }
        }
    }

    /// The bucket of a record, if it is one.
    #[must_use]
    pub fn from_record(record: &[u8]) -> Option<Self> {
        let (kind, rest) = record.split_first()?;
        let (chunks, []) = rest.as_chunks::<8>() else { return None };
        let doubles: SmallVec<[f64; 11]> = chunks.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        let horizon = tokens(HORIZON);
        if doubles.iter().any(|double| !(0.0..=horizon).contains(double)) {
            return None;
        }
        match (*kind, &doubles[..]) {
            (TOKENS, [used, at, rate]) => {
                Some(Self(State::Tokens(token_bucket(*used, *at, *rate, f64::INFINITY)?)))
            }
            (IN_DEBT, [used, at, rate, burst]) => {
                Some(Self(State::Tokens(token_bucket(*used, *at, *rate, *burst)?)))
            }
            (WINDOWS, [start, length, counts @ ..])
                if *length >= 1.0 && (counts.len() == 1 || counts.len() == SLIDING_COUNTERS) =>
            {
                Some(Self(State::Windows(Box::new(Windows {
                    start: moment(*start),
                    length: moment(*length),
                    burst: f64::INFINITY,
                    counts: counts.into(),
                }))))
            }
            _ => None,
        }
    }
}

fn token_bucket(used: f64, at: f64, rate: f64, burst: f64) -> Option<Tokens> {
    let at = NonZeroU64::new(moment(at)).unwrap_or(NonZeroU64::MIN);
    (used == 0.0 || rate > 0.0).then_some(Tokens { used, at, rate, burst })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number up to 2⁵³")]
fn moment(double: f64) -> Micros {
    double as Micros
}
