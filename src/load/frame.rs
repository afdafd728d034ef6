//! Frames of HTTP/2 (RFC 9113): their heads, and the settings.

/// What a connection begins with.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a frame's head is.
pub(super) const HEAD: usize = 9;

/// The longest frame that either side may send when nothing else was agreed.
pub(super) const LONGEST: usize = 16_384;

/// What a side may send before it is told that there is room for more, when nothing else was agreed.
pub(super) const WINDOW: u32 = 65_535;

/// Kinds of frames.
pub(super) mod kind {
    pub(in crate::load) const DATA: u8 = 0;
    pub(in crate::load) const HEADERS: u8 = 1;
    pub(in crate::load) const RST_STREAM: u8 = 3;
    pub(in crate::load) const SETTINGS: u8 = 4;
    pub(in crate::load) const PUSH_PROMISE: u8 = 5;
    pub(in crate::load) const PING: u8 = 6;
    pub(in crate::load) const GOAWAY: u8 = 7;
    pub(in crate::load) const WINDOW_UPDATE: u8 = 8;
    pub(in crate::load) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(super) mod flag {
    pub(in crate::load) const ACK: u8 = 1;
    pub(in crate::load) const END_STREAM: u8 = 1;
    pub(in crate::load) const END_HEADERS: u8 = 4;
    pub(in crate::load) const PADDED: u8 = 8;
    pub(in crate::load) const PRIORITY: u8 = 0x20;
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: &'a [u8],
}

/// Bytes that are no frame of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl<'a> Frame<'a> {
    /// The frame that `bytes` begin with, if all of it is there.
    pub(super) fn first(bytes: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let Some(([high, middle, low, kind, flags, stream @ ..], rest)) = bytes.split_first_chunk::<HEAD>()
        else {
            return Ok(None);
        };
        let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
        if length > LONGEST {
            return Err(Malformed);
        }
        let stream = u32::from_be_bytes(*stream) & 0x7fff_ffff;
        Ok(rest.get(..length).map(|payload| Self { kind: *kind, flags: *flags, stream, payload }))
    }

    /// How many bytes it takes with its head.
    pub(super) fn len(&self) -> usize {
        HEAD + self.payload.len()
    }

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// What it carries, without what only fills.
    pub(super) fn content(&self) -> Result<&'a [u8], Malformed> {
        let mut content = self.payload;
        if self.has(flag::PADDED) {
            let (padding, rest) = content.split_first().ok_or(Malformed)?;
            let length = rest.len().checked_sub(usize::from(*padding)).ok_or(Malformed)?;
            content = rest.get(..length).ok_or(Malformed)?;
        }
        if self.kind == kind::HEADERS && self.has(flag::PRIORITY) {
            content = content.get(5..).ok_or(Malformed)?;
        }
        Ok(content)
    }

    /// The number that it begins with, from a place on.
    pub(super) fn number(&self, place: usize) -> Result<u32, Malformed> {
        let bytes = self.payload.get(place..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or(Malformed)
    }
}

/// Writes a frame of which only the head is made here.
pub(super) fn write(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let [_, length @ ..] = length.to_be_bytes();
    out.extend_from_slice(&length);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// What a server has said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) table: u32,
    pub(super) streams: u32,
    pub(super) window: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { table: 4_096, streams: u32::MAX, window: WINDOW }
    }
}

impl Settings {
    /// Takes over what a frame says.
    pub(super) fn read(&mut self, frame: &Frame<'_>) -> Result<(), Malformed> {
        let (settings, rest) = frame.payload.as_chunks::<6>();
        if !rest.is_empty() {
            return Err(Malformed);
        }
        for [high, low, value @ ..] in settings {
            let value = u32::from_be_bytes(*value);
            match u16::from_be_bytes([*high, *low]) {
                1 => self.table = value,
                3 => self.streams = value,
                4 => self.window = value,
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_are_written_once_all_of_them_is_there() {
        let mut bytes = Vec::new();
        write(&mut bytes, kind::DATA, flag::END_STREAM, 7, b"content");
        write(&mut bytes, kind::PING, 0, 0, &[1; 8]);
        for length in 0..HEAD + 7 {
            assert_eq!(Frame::first(&bytes[..length]), Ok(None));
        }
        let frame = Frame::first(&bytes).unwrap().unwrap();
        assert_eq!((frame.kind, frame.stream, frame.content()), (kind::DATA, 7, Ok(&b"content"[..])));
        assert!(frame.has(flag::END_STREAM) && !frame.has(flag::PADDED));
        assert_eq!(Frame::first(&bytes[frame.len()..]).unwrap().unwrap().payload, [1; 8]);
        assert_eq!(Frame::first(b"HTTP/1.1 400 Bad Request"), Err(Malformed));
    }

    #[test]
    fn padding_and_priorities_are_no_content() {
        let frame = |kind, flags, payload| Frame { kind, flags, stream: 1, payload };
        let padded = frame(kind::DATA, flag::PADDED, &[2, b'a', b'b', 0, 0][..]);
        assert_eq!(padded.content(), Ok(&b"ab"[..]));
        let both = frame(kind::HEADERS, flag::PADDED | flag::PRIORITY, &[1, 0, 0, 0, 0, 0, b'a', 0]);
        assert_eq!(both.content(), Ok(&b"a"[..]));
        assert_eq!(frame(kind::DATA, flag::PADDED, &[2, 0]).content(), Err(Malformed));
        assert_eq!(frame(kind::DATA, flag::PADDED, &[]).content(), Err(Malformed));
    }

    #[test]
    fn settings_are_those_that_are_known() {
        let mut settings = Settings::default();
        let payload = [[0, 3, 0, 0, 0, 9], [0, 99, 1, 1, 1, 1], [0, 4, 0, 1, 0, 0]].concat();
        settings.read(&Frame { kind: kind::SETTINGS, flags: 0, stream: 0, payload: &payload }).unwrap();
        assert_eq!(settings, Settings { table: 4_096, streams: 9, window: 65_536 });
        let cut = Frame { kind: kind::SETTINGS, flags: 0, stream: 0, payload: &[0, 3, 0] };
        assert_eq!(settings.read(&cut), Err(Malformed));
    }
}
