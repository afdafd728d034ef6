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

use smallvec::SmallVec;

use super::limit::SLIDING_COUNTERS;
use super::windows::Windows;
use super::{Bucket, HORIZON, Kind, Tokens, tokens};
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
        match self.kind() {
            Kind::Tokens(state) => (state.used > 0.0).then(|| {
                let Tokens { used, at, rate, burst } = state;
                if state.is_debt() {
                    record(IN_DEBT, &[used, tokens(at), rate, burst])
                } else {
                    record(TOKENS, &[used, tokens(at), rate])
                }
            }),
            Kind::Windows(windows) => {
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
            (TOKENS, [used, at, rate]) => token_bucket(*used, *at, *rate, f64::INFINITY),
            (IN_DEBT, [used, at, rate, burst]) => token_bucket(*used, *at, *rate, *burst),
            (WINDOWS, [start, length, counts @ ..])
                if *length >= 1.0 && (counts.len() == 1 || counts.len() == SLIDING_COUNTERS) =>
            {
                let (start, length) = (moment(*start), moment(*length));
                Some(Windows { start, length, burst: f64::INFINITY, counts: counts.into() }.into())
            }
            _ => None,
        }
    }
}

fn token_bucket(used: f64, at: f64, rate: f64, burst: f64) -> Option<Bucket> {
    (used == 0.0 || rate > 0.0).then(|| Tokens { used, at: moment(at), rate, burst }.into())
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number up to 2⁵³")]
fn moment(double: f64) -> Micros {
    double as Micros
}
