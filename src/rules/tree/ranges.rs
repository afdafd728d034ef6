//! Address ranges of one key: the longest prefix that an address has, in one table lookup for each length there is.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use hashbrown::HashMap;

use super::Node;
use crate::rules::rule::Source;

/// Addresses with a prefix in common, as in `10.0.0.0/8`.
///
/// An IPv4 address that is mapped into IPv6 (`::ffff:10.0.0.1`, RFC 4291, section 2.5.5.2) is the IPv4 address, in ranges
/// as in values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Range {
    first: IpAddr,
    length: u8,
}

impl Range {
    /// Whether an address is in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.length) == self.first
    }

    /// The address, if there is only one in it.
    pub(in crate::rules) fn address(self) -> Option<IpAddr> {
        (self.length == length_of(self.first)).then_some(self.first)
    }

    /// The range of which this is one half, and the other half; none for all addresses.
    fn whole_and_other_half(self) -> Option<(Self, Self)> {
        let bit = length_of(self.first).checked_sub(self.length)?;
        let other = match self.first {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() ^ 1u32.checked_shl(bit.into())?).into(),
            IpAddr::V6(first) => Ipv6Addr::from_bits(first.to_bits() ^ 1u128.checked_shl(bit.into())?).into(),
        };
        let whole = self.length.checked_sub(1)?;
        let half = |first, length| Self { first, length };
        Some((half(masked(self.first, whole), whole), half(other, self.length)))
    }
}

/// Bits of an address.
fn length_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Bits of an IPv6 address before a mapped IPv4 address begins.
const MAPPED: u8 = 96;

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let Ok(written) = address.parse::<IpAddr>() else {
            return Err("is no address range: write one such as 10.0.0.0/8, fd00::/8 or 192.0.2.7".into());
        };
        let longest = length_of(written);
        let length = match length {
            None => longest,
            Some(length) => match length.parse::<u8>() {
                Ok(number) if number <= longest && !length.starts_with('+') => number,
                _ => {
                    return Err(format!(
                        "is no address range: what follows the `/` is a number from 0 to {longest}"
                    ));
                }
            },
        };
        let (first, length) = match (written, written.to_canonical()) {
            (IpAddr::V6(_), mapped @ IpAddr::V4(_)) if length >= MAPPED => (mapped, length - MAPPED),
            _ => (written, length),
        };
        let range = Self { first: masked(first, length), length };
        if range.first == first {
            Ok(range)
        } else {
            Err(format!("has bits set beyond its length; did you mean {range}?"))
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

/// An address without what follows the first `length` bits.
fn masked(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}

/// The address that a value is, if it is one.
fn address(value: &[u8]) -> Option<IpAddr> {
    let address: IpAddr = std::str::from_utf8(value).ok()?.parse().ok()?;
    Some(address.to_canonical())
}

/// Ranges of one key. Several may lead to one rule.
#[derive(Debug, Default)]
pub(in crate::rules) struct Ranges {
    nodes: Vec<Node>,
    /// The node of each range.
    by_range: HashMap<Range, usize>,
    /// Lengths that there are, the longest first.
    v4: Vec<u8>,
    v6: Vec<u8>,
}

impl Ranges {
    /// Adds the ranges of a rule; or says of which one there is a rule already, and where that is written.
    pub(in crate::rules) fn insert(&mut self, ranges: &[Range], node: Node) -> Result<(), (Range, Source)> {
        let place = self.nodes.len();
        self.nodes.push(node);
        for range in ranges {
            if let Some(twin) = self.by_range.insert(*range, place)
                && let Some(twin) = self.nodes.get(twin)
            {
                return Err((*range, twin.source.clone()));
            }
            let lengths = if range.first.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
            if let Err(place) = lengths.binary_search_by(|other| range.length.cmp(other)) {
                lengths.insert(place, range.length);
            }
        }
        Ok(())
    }

    /// The longest range that a value is in, and its rule.
    pub(in crate::rules) fn find(&self, value: &[u8]) -> Option<(Range, &Node)> {
        if self.by_range.is_empty() {
            return None;
        }
        let address = address(value)?;
        let lengths = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        lengths.iter().find_map(|length| {
            let range = Range { first: masked(address, *length), length: *length };
            Some((range, self.nodes.get(*self.by_range.get(&range)?)?))
        })
    }

    /// Ranges of which every address is in a longer one as well, each with its node and one node of either half.
    pub(in crate::rules) fn covered(&self) -> Vec<(Range, &Node, [&Node; 2])> {
        let mut covered = Vec::new();
        if self.v4.len() < 2 && self.v6.len() < 2 {
            return covered;
        }
        // What is written, and what follows from that, by length: two halves are as good as the whole.
        let mut known: HashMap<Range, &Node> = self.iter().collect();
        let mut by_length: BTreeMap<u8, Vec<Range>> = BTreeMap::new();
        known.keys().for_each(|range| by_length.entry(range.length).or_default().push(*range));
        while let Some((_, ranges)) = by_length.pop_last() {
            for range in ranges {
                let Some((whole, other)) = range.whole_and_other_half() else { continue };
                // Of two halves the lower one asks.
                let (true, Some(lower), Some(upper)) =
                    (range.first < other.first, known.get(&range).copied(), known.get(&other).copied())
                else {
                    continue;
                };
                match known.insert(whole, lower) {
                    Some(node) => covered.push((whole, node, [lower, upper])),
                    None => by_length.entry(whole.length).or_default().push(whole),
                }
            }
        }
        covered
    }

    /// The ranges, in no order.
    pub(in crate::rules) fn iter(&self) -> impl Iterator<Item = (Range, &Node)> {
        self.by_range.iter().filter_map(|(range, place)| Some((*range, self.nodes.get(*place)?)))
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    pub(super) fn nodes_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.nodes.iter_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_shown_as_it_can_be_written_and_mapped_ones_are_ipv4() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::/8", "fd00::/8"),
            ("::1", "::1/128"),
            ("::/0", "::/0"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
        ] {
            assert_eq!(text.parse::<Range>().unwrap().to_string(), shown);
        }
        for (text, message) in [
            ("10.0.0.1/8", "has bits set beyond its length; did you mean 10.0.0.0/8?"),
            ("fd00::1/8", "has bits set beyond its length; did you mean fd00::/8?"),
            ("10.0.0.0/33", "is no address range: what follows the `/` is a number from 0 to 32"),
            ("10.0.0.0/+8", "is no address range: what follows the `/` is a number from 0 to 32"),
            ("10.0.0.0/", "is no address range: what follows the `/` is a number from 0 to 32"),
            ("::/129", "is no address range: what follows the `/` is a number from 0 to 128"),
            ("10.0.0/8", "is no address range: write one such as 10.0.0.0/8, fd00::/8 or 192.0.2.7"),
        ] {
            assert_eq!(text.parse::<Range>().unwrap_err(), message);
        }
    }
}
