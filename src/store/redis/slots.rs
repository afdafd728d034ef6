//! Slots of a Cluster: which one a key is in, and for each slot a tag that leads there.
//!
//! As the Cluster's specification says, a key is in the slot of its CRC16 (of the XMODEM kind) by 16384; where it holds
//! braces with something between them, in the slot of what is between the first `{` and the next `}`.

use std::sync::OnceLock;

/// How many there are.
pub(super) const SLOTS: u16 = 16_384;

/// The slot of a key.
pub(super) fn slot_of(key: &[u8]) -> u16 {
    crc16(tag_of(key).unwrap_or(key)) % SLOTS
}

/// What stands between a key's first braces, if anything does.
fn tag_of(key: &[u8]) -> Option<&[u8]> {
    let open = memchr::memchr(b'{', key)?;
    let (_, rest) = key.split_at_checked(open + 1)?;
    let close = memchr::memchr(b'}', rest)?;
    rest.get(..close).filter(|tag| !tag.is_empty())
}

/// A tag by which a key is in a slot: `{` and `}` go around it. They are found by trying, once.
pub(super) fn tag_for(slot: u16) -> String {
    static TAGS: OnceLock<Vec<u32>> = OnceLock::new();
    let tags = TAGS.get_or_init(|| {
        let mut tags = vec![u32::MAX; usize::from(SLOTS)];
        let mut missing = tags.len();
        for number in 0..u32::MAX {
            if missing == 0 {
                break;
            }
            let slot = crc16(number.to_string().as_bytes()) % SLOTS;
            if let Some(tag) = tags.get_mut(usize::from(slot)).filter(|tag| **tag == u32::MAX) {
                *tag = number;
                missing -= 1;
            }
        }
        tags
    });
    tags.get(usize::from(slot % SLOTS)).copied().unwrap_or_default().to_string()
}

fn crc16(bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = table();
    bytes.iter().fold(0, |crc: u16, byte| {
        let place = usize::from((crc >> 8) ^ u16::from(*byte));
        (crc << 8) ^ TABLE.get(place).copied().unwrap_or_default()
    })
}

#[allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a table of 256, built by the compiler"
)]
const fn table() -> [u16; 256] {
    const POLYNOMIAL: u16 = 0x1021;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ POLYNOMIAL };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_where_the_specification_says() {
        assert_eq!(crc16(b"123456789"), 0x31c3, "the specification's example");
        for (key, as_if) in [
            ("{user1000}.following", "user1000"),
            ("{user1000}.followers", "user1000"),
            ("foo{{bar}}zap", "{bar"),
            ("foo{bar}{zap}", "bar"),
        ] {
            assert_eq!(slot_of(key.as_bytes()), crc16(as_if.as_bytes()) % SLOTS, "{key}");
        }
        for whole in ["foo{}{bar}", "foo{bar", "foo}bar{", ""] {
            assert_eq!(slot_of(whole.as_bytes()), crc16(whole.as_bytes()) % SLOTS, "{whole}");
        }
    }

    #[test]
    fn every_slot_has_a_tag_that_leads_there_and_is_short() {
        for slot in 0..SLOTS {
            let tag = tag_for(slot);
            assert!(tag.len() <= 6, "{tag}");
            assert_eq!(slot_of(format!("weir:!lane|{{{tag}}}").as_bytes()), slot);
        }
    }
}
