//! What buckets are called in Redis: `weir:api|user_id=acme|path~/login*|login`.
//!
//! After the prefix and the domain come the entries: `key=value`, or `key~pattern` where values share a bucket; then the
//! limit's id, which is `!unit` for a limit that a request brought along. Whatever else could be read as one of these
//! signs is written as `%` and two hex digits, as are braces (by which a client could choose its Cluster slot), spaces
//! and all that is not printable ASCII: so a name can be read, and is that of one bucket only. A name that would become
//! too long ends in `#` and the SHA-256 of what it would have been.
//!
//! A domain may have a *hash tag*, which brings keys together in one slot of a Cluster: then the domain stands in braces,
//! `weir:{api}|user_id=acme|login`, or the entry that was chosen does, before it: `weir:{user_id=acme}api|…`. A tag that
//! would be too long is `#` and its SHA-256. Nothing else ever writes a brace.
//!
//! In a store that has a name, `weir@name:` stands in place of `weir:`: a bucket's name says where it is.

use std::fmt::Write as _;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::Identity;

/// Every name begins with this.
const PREFIX: &str = "weir:";

/// The longest name, in bytes, that is not cut short.
const LONGEST: usize = 200;

/// Names are seldom longer than this: it is taken at once, not bit by bit.
const USUAL: usize = 128;

/// So much of the domain is left of a name that is.
const LONGEST_DOMAIN: usize = 64;

/// The longest hash tag that is written as it is.
const LONGEST_TAG: usize = 64;

/// A name in the making.
#[derive(Clone, Debug)]
#[must_use]
pub struct NameBuilder {
    name: String,
    /// Where the prefix ends.
    prefix: usize,
    /// Where the domain ends.
    domain: usize,
}

impl NameBuilder {
    /// Begins the name of a bucket in `domain`.
    pub fn new(domain: &str) -> Self {
        Self::in_store(None, domain)
    }

    /// The same, in the store of this name.
    pub fn in_store(store: Option<&str>, domain: &str) -> Self {
        let mut name = String::with_capacity(USUAL);
        match store {
            None => name.push_str(PREFIX),
            Some(store) => name.push_str(&prefix(store)),
        }
        let prefix = name.len();
        escape(&mut name, domain.as_bytes());
        Self { domain: name.len(), prefix, name }
    }

    /// Ends with the id of a rule's limit.
    #[must_use]
    pub fn limit(mut self, id: &[u8]) -> Bytes {
        self.name.push('|');
        escape(&mut self.name, id);
        self.end()
    }

    /// Ends with the unit of a limit that came with the request.
    #[must_use]
    pub fn limit_override(mut self, unit: &[u8]) -> Bytes {
        self.name.push_str("|!");
        escape(&mut self.name, unit);
        self.end()
    }

    /// Brings all names of the domain together.
    pub fn tagged_by_domain(self, domain: &str) -> Self {
        let mut tag = String::new();
        escape(&mut tag, domain.as_bytes());
        self.tagged(tag, None)
    }

    /// Brings the names together in which an entry has the same value.
    pub fn tagged_by_entry(self, domain: &str, key: &[u8], value: &[u8]) -> Self {
        self.tagged_by(domain, key, '=', value)
    }

    /// The same of an entry whose values share one bucket: the pattern stands in for the value.
    pub fn tagged_by_shared_entry(self, domain: &str, key: &[u8], pattern: &[u8]) -> Self {
        self.tagged_by(domain, key, '~', pattern)
    }

    fn tagged_by(self, domain: &str, key: &[u8], sign: char, value: &[u8]) -> Self {
        let mut tag = String::new();
        escape(&mut tag, key);
        tag.push(sign);
        escape(&mut tag, value);
        self.tagged(tag, Some(domain))
    }

    fn tagged(mut self, mut tag: String, domain: Option<&str>) -> Self {
        if tag.len() > LONGEST_TAG {
            tag = format!("#{}", hex(&Sha256::digest(tag.as_bytes())));
        }
        self.name.truncate(self.prefix);
        self.name.push('{');
        self.name.push_str(&tag);
        self.name.push('}');
        // However short the name is cut, its tag stays.
        self.prefix = self.name.len();
        if let Some(domain) = domain {
            escape(&mut self.name, domain.as_bytes());
        }
        self.domain = self.name.len();
        self
    }

    fn end(mut self) -> Bytes {
        if self.name.len() > LONGEST {
            let digest = hex(&Sha256::digest(self.name.as_bytes()));
            self.name.truncate(if self.domain <= self.prefix + LONGEST_DOMAIN {
                self.domain
            } else {
                self.prefix
            });
            self.name.push('#');
            self.name.push_str(&digest);
        }
        self.name.into()
    }
}

fn hex(digest: &[u8]) -> String {
    let mut hex = String::with_capacity(2 * digest.len());
    for byte in digest {
        // Writing to a String does not fail.
        _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// How names begin in the store of this name.
pub(super) fn prefix(store: &str) -> String {
    let mut prefix = "weir@".to_owned();
    escape(&mut prefix, store.as_bytes());
    prefix.push(':');
    prefix
}

impl Identity for NameBuilder {
    fn entry(&mut self, key: &[u8], value: &[u8]) {
        self.name.push('|');
        escape(&mut self.name, key);
        self.name.push('=');
        escape(&mut self.name, value);
    }

    fn shared_entry(&mut self, key: &[u8], pattern: &[u8]) {
        self.name.push('|');
        escape(&mut self.name, key);
        self.name.push('~');
        escape(&mut self.name, pattern);
    }
}

fn escape(name: &mut String, bytes: &[u8]) {
    // Mostly there is nothing to escape, and all of it is taken at once.
    if bytes.iter().all(|byte| is_plain(*byte))
        && let Ok(text) = std::str::from_utf8(bytes)
    {
        return name.push_str(text);
    }
    for byte in bytes {
        if is_plain(*byte) { name.push(char::from(*byte)) } else { _ = write!(name, "%{byte:02X}") }
    }
}

/// Whether a byte stands for itself.
fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && !matches!(byte, b'%' | b'|' | b'=' | b'~' | b'!' | b'#' | b'{' | b'}')
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Parts {
        domain: String,
        entries: Vec<(Vec<u8>, Vec<u8>, bool)>,
        id: Vec<u8>,
        is_override: bool,
        tag: Tag,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    enum Tag {
        None,
        Domain,
        /// The first entry, if there is one.
        Entry,
    }

    fn name(parts: &Parts) -> Bytes {
        let mut name = NameBuilder::new(&parts.domain);
        match (parts.tag, parts.entries.first()) {
            (Tag::None, _) | (Tag::Entry, None) => {}
            (Tag::Domain, _) => name = name.tagged_by_domain(&parts.domain),
            (Tag::Entry, Some((key, value, shared))) => {
                let domain = &parts.domain;
                name = if *shared {
                    name.tagged_by_shared_entry(domain, key, value)
                } else {
                    name.tagged_by_entry(domain, key, value)
                };
            }
        }
        for (key, value, shared) in &parts.entries {
            if *shared { name.shared_entry(key, value) } else { name.entry(key, value) }
        }
        if parts.is_override { name.limit_override(&parts.id) } else { name.limit(&parts.id) }
    }

    /// The signs of a name, some letters and some bytes, so that confusions come up if there are any.
    fn parts() -> impl Strategy<Value = Parts> {
        let part = || prop::collection::vec(prop::sample::select(b"a|=~!#%7C{}\xff\0 ".to_vec()), 0..4);
        let entries = prop::collection::vec((part(), part(), any::<bool>()), 0..3);
        let tag = prop::sample::select(vec![Tag::None, Tag::Domain, Tag::Entry]);
        ("[a|=~!#%]{1,3}", entries, part(), any::<bool>(), tag).prop_map(
            |(domain, entries, id, is_override, tag)| {
                // Without an entry there is nothing to tag by: that is the same name.
                let tag = if entries.is_empty() && tag == Tag::Entry { Tag::None } else { tag };
                Parts { domain, entries, id, is_override, tag }
            },
        )
    }

    proptest! {
        #[test]
        fn different_buckets_have_different_names(all in prop::collection::vec(parts(), 2..40)) {
            let mut names: HashMap<Bytes, Parts> = HashMap::new();
            for parts in all {
                if let Some(other) = names.insert(name(&parts), parts.clone()) {
                    prop_assert_eq!(other, parts);
                }
            }
        }

        #[test]
        fn a_name_is_printable_short_and_without_braces(
            domain in ".{0,100}",
            value in prop::collection::vec(any::<u8>(), 0..400),
            id in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let name = name(&Parts { domain, entries: vec![(b"key".to_vec(), value, false)], id, is_override: false, tag: Tag::None });
            let plain = name.iter().all(|byte| (0x21..=0x7e).contains(byte) && !b"{}".contains(byte));
            prop_assert!(plain, "not plain: {:?}", name);
            prop_assert!(name.len() <= LONGEST);
        }
    }

    #[test]
    fn a_name_can_be_read() {
        let mut builder = NameBuilder::new("api");
        builder.entry(b"user_id", b"acme");
        builder.shared_entry(b"path", b"/login*");
        assert_eq!(builder.clone().limit(b"login"), "weir:api|user_id=acme|path~/login*|login");
        assert_eq!(builder.limit_override(b"minute"), "weir:api|user_id=acme|path~/login*|!minute");
    }

    /// What stands between the braces of a name.
    fn tag(name: &[u8]) -> &str {
        let text = std::str::from_utf8(name).unwrap();
        assert_eq!((text.matches('{').count(), text.matches('}').count()), (1, 1), "{text}");
        text.split_once('{').unwrap().1.split_once('}').unwrap().0
    }

    #[test]
    fn a_hash_tag_brings_names_together_however_long_they_are() {
        let entry = |value: &[u8], more: &[u8], tag| {
            let entries =
                vec![(b"user".to_vec(), value.to_vec(), false), (b"path".to_vec(), more.to_vec(), true)];
            name(&Parts { domain: "api".to_owned(), entries, id: b"day".to_vec(), is_override: false, tag })
        };
        assert_eq!(entry(b"ann", b"/x*", Tag::Domain), "weir:{api}|user=ann|path~/x*|day");
        assert_eq!(entry(b"ann", b"/x*", Tag::Entry), "weir:{user=ann}api|user=ann|path~/x*|day");
        assert_eq!(entry(b"{b}", b"", Tag::Entry), "weir:{user=%7Bb%7D}api|user=%7Bb%7D|path~|day");
        let long = [b'x'; 500];
        for value in [&b"ann"[..], &long] {
            for kind in [Tag::Domain, Tag::Entry] {
                let (short, cut) = (entry(value, b"", kind), entry(value, &long, kind));
                assert_eq!(tag(&short), tag(&cut));
                assert_ne!(short, cut);
                assert!(cut.len() <= LONGEST, "{cut:?}");
            }
        }
        assert_ne!(tag(&entry(&long, b"", Tag::Entry)), tag(&entry(&long[1..], b"", Tag::Entry)));
    }

    #[test]
    fn long_names_are_cut_short_and_stay_different() {
        let long = |last: u8| {
            let mut builder = NameBuilder::new("api");
            let mut value = vec![b'x'; 1 << 20];
            value.push(last);
            builder.entry(b"path", &value);
            builder.limit(b"minute")
        };
        assert!(long(b'a').starts_with(b"weir:api#"));
        assert_ne!(long(b'a'), long(b'b'));
        assert_eq!(long(b'a'), long(b'a'));
    }

    #[test]
    fn a_name_in_a_named_store_says_so_also_when_it_is_cut_short() {
        let in_store = |value: &[u8]| {
            let mut builder = NameBuilder::in_store(Some("fast"), "api");
            builder.entry(b"k", value);
            builder.limit(b"second")
        };
        assert_eq!(in_store(b"v"), "weir@fast:api|k=v|second");
        assert!(in_store(&[b'x'; 300]).starts_with(b"weir@fast:api#"));
    }
}
