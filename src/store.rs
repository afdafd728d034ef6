//! Where buckets live, and what they are called there.
//!
//! A bucket belongs to a domain, to the (key, value) pairs of a request and to one limit: to the limit's id, not to its
//! place in a file nor to its amount, so that a limit may change and keep what was used of it.

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

use crate::decision::BucketKey;

mod error;
mod local;
mod name;
mod redis;

pub use error::{Class, StoreError};
pub use local::{LocalStore, Usage};
pub use name::NameBuilder;
pub use redis::{
    Address, Answered, Failure, Files, Node, Part, Pending, RedisStore, Target, Threads, Tuning,
};

/// What a bucket is called is told part by part, in the order of the request's entries.
pub trait Identity {
    /// Adds an entry with the value that the request brought.
    fn entry(&mut self, key: &[u8], value: &[u8]);
    /// Adds an entry whose values share one bucket: the pattern stands in for the value.
    fn shared_entry(&mut self, key: &[u8], pattern: &[u8]);
}

/// Makes bucket keys, under a seed that is drawn anew by each process.
///
/// SipHash is a keyed function: who does not know the seed cannot find values that collide, and with 128 bits nobody
/// meets a collision by chance. So two callers never share a bucket that should be two, whatever they send.
#[derive(Clone, Copy)]
pub struct KeySeed(SipHasher13);

impl KeySeed {
    /// A seed from the system's randomness.
    ///
    /// # Errors
    /// When the system has none to give.
    pub fn random() -> Result<Self, getrandom::Error> {
        Ok(Self(SipHasher13::new_with_keys(getrandom::u64()?, getrandom::u64()?)))
    }

    /// A seed that is always the same: for tests, and for names that are not secret.
    #[must_use]
    pub fn fixed(seed: u64) -> Self {
        Self(SipHasher13::new_with_keys(seed, !seed))
    }

    /// Begins the key of a bucket in `domain`.
    pub fn key(self, domain: &str) -> KeyBuilder {
        let mut key = KeyBuilder(self.0);
        key.part(domain.as_bytes());
        key
    }
}

impl std::fmt::Debug for KeySeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeySeed(secret)")
    }
}

/// A key in the making. Every part is preceded by its kind and its length, so no two lists of parts read alike.
#[derive(Clone, Copy)]
#[must_use]
pub struct KeyBuilder(SipHasher13);

impl Identity for KeyBuilder {
    fn entry(&mut self, key: &[u8], value: &[u8]) {
        self.0.write_u8(0);
        self.part(key);
        self.part(value);
    }

    fn shared_entry(&mut self, key: &[u8], pattern: &[u8]) {
        self.0.write_u8(1);
        self.part(key);
        self.part(pattern);
    }
}

impl KeyBuilder {
    /// Ends with the id of a rule's limit.
    #[must_use]
    pub fn limit(self, id: &[u8]) -> BucketKey {
        self.end(2, id)
    }

    /// Ends with the unit of a limit that came with the request.
    #[must_use]
    pub fn limit_override(self, unit: &[u8]) -> BucketKey {
        self.end(3, unit)
    }

    fn end(mut self, kind: u8, id: &[u8]) -> BucketKey {
        self.0.write_u8(kind);
        self.part(id);
        BucketKey(self.0.finish128().as_u128())
    }

    fn part(&mut self, bytes: &[u8]) {
        self.0.write_u64(bytes.len() as u64);
        self.0.write(bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Name = (Vec<(Vec<u8>, Vec<u8>, bool)>, Vec<u8>);

    fn key((entries, id): &Name) -> BucketKey {
        let mut builder = KeySeed::fixed(7).key("api");
        for (key, value, shared) in entries {
            if *shared { builder.shared_entry(key, value) } else { builder.entry(key, value) }
        }
        builder.limit(id)
    }

    /// Names made of few letters, so that shifted borders and joined parts come up often.
    fn names() -> impl Strategy<Value = Name> {
        let part = || prop::collection::vec(prop_oneof![Just(b'a'), Just(b'_'), Just(0)], 0..4);
        (prop::collection::vec((part(), part(), any::<bool>()), 0..3), part())
    }

    proptest! {
        #[test]
        fn different_names_have_different_keys(one in names(), other in names()) {
            prop_assert_eq!(key(&one) == key(&other), one == other);
        }
    }

    #[test]
    fn each_process_names_its_buckets_differently() {
        let key = |seed: KeySeed| seed.key("api").limit(b"minute");
        assert_ne!(key(KeySeed::random().unwrap()), key(KeySeed::random().unwrap()));
    }
}
