//! Header blocks (HPACK, RFC 7541): those of requests, written beforehand, and of answers the two fields that are read.
//!
//! A server compresses what it repeats: a block may add fields to a table, which later blocks refer to. So every block has to
//! be read whole, although only `:status` and `grpc-status` matter. Nothing else is kept of a field than its size, by which
//! the table forgets.

use std::collections::VecDeque;

/// What of a field matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// `:status`.
    Http(u16),
    /// `grpc-status`.
    Grpc(i32),
    Other,
}

/// A block that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// The largest table that this side allows: the protocol's default.
const TABLE: usize = 4_096;

/// What a table's entry takes besides its name and value (section 4.1).
const OVERHEAD: usize = 32;

/// Names of the fields that everybody knows (appendix A), from index 1 on.
const STATIC: [&str; 61] = [
    ":authority",
    ":method",
    ":method",
    ":path",
    ":path",
    ":scheme",
    ":scheme",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "accept",
    "access-control-allow-origin",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];

/// The statuses at indexes 8 to 14.
const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];

/// Reads blocks of one connection, in order.
#[derive(Debug)]
pub(super) struct Decoder {
    /// The latest first: what it is, how long its name, and how much it takes.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

#[derive(Clone, Debug)]
struct Entry {
    field: Field,
    name: Box<str>,
    size: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), size: 0, limit: TABLE }
    }
}

impl Decoder {
    /// Reads a block, and hands over each field of it.
    pub(super) fn read(&mut self, mut block: &[u8], mut each: impl FnMut(Field)) -> Result<(), Malformed> {
        while let Some(first) = block.first() {
            match first {
                // Indexed.
                0x80.. => each(self.indexed(integer(&mut block, 7)?)?),
                // With its value here, and to be kept.
                0x40.. => {
                    let (name, value) = self.literal(&mut block, 6)?;
                    let field = field(&name, &value);
                    let size = name.len() + value.len() + OVERHEAD;
                    self.insert(Entry { field, name: name.into(), size });
                    each(field);
                }
                // The table's size.
                0x20.. => {
                    self.limit = integer(&mut block, 5)?;
                    if self.limit > TABLE {
                        return Err(Malformed);
                    }
                    self.shrink();
                }
                // With its value here, and not to be kept.
                _ => {
                    let (name, value) = self.literal(&mut block, 4)?;
                    each(field(&name, &value));
                }
            }
        }
        Ok(())
    }

    fn indexed(&self, index: usize) -> Result<Field, Malformed> {
        match index {
            0 => Err(Malformed),
            8..=14 => Ok(STATUSES.get(index - 8).map_or(Field::Other, |status| Field::Http(*status))),
            1..=61 => Ok(Field::Other),
            _ => Ok(self.entries.get(index - 62).ok_or(Malformed)?.field),
        }
    }

    /// Name and value, of which the name may be an index.
    fn literal(&self, block: &mut &[u8], prefix: u32) -> Result<(String, Vec<u8>), Malformed> {
        let name = match integer(block, prefix)? {
            0 => String::from_utf8(string(block)?).map_err(|_| Malformed)?,
            index @ 1..=61 => (*STATIC.get(index - 1).ok_or(Malformed)?).to_owned(),
            index => self.entries.get(index - 62).ok_or(Malformed)?.name.to_string(),
        };
        Ok((name, string(block)?))
    }

    fn insert(&mut self, entry: Entry) {
        self.size += entry.size;
        self.entries.push_front(entry);
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.size > self.limit
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

fn field(name: &str, value: &[u8]) -> Field {
    let number = || std::str::from_utf8(value).ok();
    match name {
        ":status" => Field::Http(number().and_then(|text| text.parse().ok()).unwrap_or(0)),
        "grpc-status" => Field::Grpc(number().and_then(|text| text.parse().ok()).unwrap_or(-1)),
        _ => Field::Other,
    }
}

/// An integer whose first bits are the last `prefix` of a byte (section 5.1). Nothing here is as large as 2²⁸.
fn integer(block: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let (first, rest) = block.split_first().ok_or(Malformed)?;
    *block = rest;
    let most = (1_usize << prefix) - 1;
    let mut number = usize::from(*first) & most;
    if number < most {
        return Ok(number);
    }
    for shift in [0, 7, 14, 21] {
        let (byte, rest) = block.split_first().ok_or(Malformed)?;
        *block = rest;
        number += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

fn string(block: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
    let is_short = block.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Malformed)?;
    *block = rest;
    if is_short { lengthened(text) } else { Ok(text.to_vec()) }
}

/// How many bits stand for each byte, and for the end of the text (appendix B). The code is canonical: among those of one
/// length, codes ascend with the bytes, and those of a length go on from those that are shorter.
#[rustfmt::skip]
const BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The bytes of a text that Huffman's code has made shorter. Bit by bit: servers say most things once, and refer to them.
fn lengthened(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    const LONGEST: u8 = 30;

    let mut bytes = Vec::with_capacity(2 * text.len());
    let mut bits = text.iter().flat_map(|byte| (0..8).rev().map(move |place| (byte >> place) & 1));
    'bytes: loop {
        // The code so far, and the first code of its length.
        let (mut code, mut first, mut ones) = (0_u32, 0_u32, true);
        for length in 1..=LONGEST {
            let Some(bit) = bits.next() else {
                // What is left over are fewer than eight ones.
                return if ones && length <= 8 { Ok(bytes) } else { Err(Malformed) };
            };
            ones &= bit == 1;
            code = code << 1 | u32::from(bit);
            first <<= 1;
            let mut of_this_length = BITS.iter().zip(0_u32..).filter(|(bits, _)| **bits == length);
            let count = of_this_length.clone().count();
            let count = u32::try_from(count).map_err(|_| Malformed)?;
            if code - first < count {
                let place = usize::try_from(code - first).map_err(|_| Malformed)?;
                let (_, byte) = of_this_length.nth(place).ok_or(Malformed)?;
                // The end of a text is never said.
                bytes.push(u8::try_from(byte).map_err(|_| Malformed)?);
                continue 'bytes;
            }
            first += count;
        }
        return Err(Malformed);
    }
}

/// The heads of requests: the first one of a connection, which adds to the server's table, and the others, which refer to it.
#[derive(Clone, Debug)]
pub(super) struct Heads {
    pub(super) first: Vec<u8>,
    pub(super) later: Vec<u8>,
}

impl Heads {
    /// Those of calls to `path` on `authority`, for a server that allows a table of so many bytes. It is used if it may be as
    /// large as is usual.
    pub(super) fn new(authority: &str, path: &str, table: u32) -> Self {
        // `:method: POST` and `:scheme: http` are in the static table.
        let fixed = [0x83, 0x86];
        let fields = [
            (":path", path),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ];
        let size: usize = fields.iter().map(|(name, value)| name.len() + value.len() + OVERHEAD).sum();
        let has_room = size <= TABLE && usize::try_from(table).is_ok_and(|table| table >= TABLE);
        let mut first = Vec::new();
        if !has_room {
            // A smaller table has to be agreed to.
            first.push(0x20);
        }
        first.extend(fixed);
        for (name, value) in fields {
            first.push(if has_room { 0x40 } else { 0x00 });
            write(&mut first, name);
            write(&mut first, value);
        }
        let later = if has_room {
            // The last one of the table has its first index.
            [&fixed[..], &[0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]].concat()
        } else {
            first.iter().copied().skip(1).collect()
        };
        Self { first, later }
    }
}

/// Writes a string as it is.
fn write(block: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 0x7f {
        block.push(u8::try_from(length).unwrap_or_default());
    } else {
        block.push(0x7f);
        length -= 0x7f;
        while length >= 0x80 {
            block.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        block.push(u8::try_from(length).unwrap_or_default());
    }
    block.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u32> = hex.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits.as_chunks::<2>().0.iter().map(|[high, low]| u8::try_from(16 * high + low).unwrap()).collect()
    }

    fn read(decoder: &mut Decoder, hex: &str) -> Result<Vec<Field>, Malformed> {
        let mut fields = Vec::new();
        decoder.read(&bytes(hex), |field| fields.push(field)).map(|()| fields)
    }

    /// Appendix C.6 of RFC 7541, in which the table is of 256 bytes and forgets.
    #[test]
    fn the_examples_of_the_standard_read_as_they_should() {
        let mut decoder = Decoder::default();
        assert_eq!(read(&mut decoder, "3f e1 01").unwrap(), []);
        let first = "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e \
                     919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
        assert_eq!(
            read(&mut decoder, first).unwrap(),
            [Field::Http(302), Field::Other, Field::Other, Field::Other]
        );
        assert_eq!((decoder.entries.len(), decoder.size), (4, 222));
        assert_eq!(
            read(&mut decoder, "4883 640e ffc1 c0bf").unwrap(),
            [Field::Http(307), Field::Other, Field::Other, Field::Other]
        );
        assert_eq!((decoder.entries.len(), decoder.size), (4, 222));
        let third = "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 \
                     821d d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed \
                     4ee5 b106 3d50 07";
        assert_eq!(read(&mut decoder, third).unwrap()[0], Field::Http(200));
        assert_eq!((decoder.entries.len(), decoder.size), (3, 215));
    }

    #[test]
    fn texts_made_shorter_read_as_they_were() {
        for (short, text) in [
            ("f1e3 c2e5 f23a 6ba0 ab90 f4ff", "www.example.com"),
            ("a8eb 1064 9cbf", "no-cache"),
            ("25a8 49e9 5ba9 7d7f", "custom-key"),
            ("25a8 49e9 5bb8 e8b4 bf", "custom-value"),
            ("", ""),
        ] {
            assert_eq!(lengthened(&bytes(short)).unwrap(), text.as_bytes());
        }
        // Eight ones are too many at the end, and others than ones no end.
        assert_eq!(lengthened(&bytes("a8eb 1064 9cbf ff")), Err(Malformed));
        assert_eq!(lengthened(&[0b0001_1000]), Err(Malformed));
    }

    #[test]
    fn what_is_read_of_a_request_is_what_was_written() {
        for (table, path) in [(4_096, "/a/b".to_owned()), (0, "/a/b".to_owned()), (4_096, "/x".repeat(200))] {
            let heads = Heads::new("weir:8081", &path, table);
            let mut decoder = Decoder::default();
            let mut count = 0;
            decoder.read(&heads.first, |_| count += 1).unwrap();
            decoder.read(&heads.later, |_| count += 1).unwrap();
            assert_eq!(count, 12);
            let names: Vec<&str> = decoder.entries.iter().map(|entry| &*entry.name).collect();
            let kept: &[&str] = if table == 0 { &[] } else { &["content-type", "te", ":authority", ":path"] };
            assert_eq!(names, kept);
        }
    }

    #[test]
    fn grpcs_status_is_read_however_it_is_written() {
        let mut decoder = Decoder::default();
        let mut block = vec![0x40];
        write(&mut block, "grpc-status");
        write(&mut block, "14");
        // Kept, and then referred to; and by its name with another value.
        block.extend([0x80 | 62, 0x0f, 62 - 15, 1, b'0']);
        let mut fields = Vec::new();
        decoder.read(&block, |field| fields.push(field)).unwrap();
        assert_eq!(fields, [Field::Grpc(14), Field::Grpc(14), Field::Grpc(0)]);
    }

    #[test]
    fn what_is_no_block_is_refused_wherever_it_ends() {
        for hex in ["80", "be", "3f e2 1f", "40", "40 05 61", "48", "ff ff ff ff ff ff", "00 82 ff ff 00"] {
            assert_eq!(read(&mut Decoder::default(), hex), Err(Malformed), "{hex}");
        }
    }
}
