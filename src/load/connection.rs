//! A connection to a server, and the calls under way on it: HTTP/2 as far as calls with one message each way need it.
//!
//! Nothing here waits. What the server sent goes in ([`Connection::read`]), what it is to be sent is written into a buffer, and
//! calls that have ended come out. A client of all of HTTP/2 takes longer over a call than a fast server does, and would
//! measure itself.

use std::collections::VecDeque;
use std::time::Instant;

use super::answer::{self, Verdict};
use super::frame::{self, Frame, Malformed, Settings, flag, kind};
use super::hpack::{self, Decoder, Field, Heads};
use super::request::Requests;
use super::tally::Failure;

/// More than this is no answer of this protocol.
const LONGEST_ANSWER: usize = 1 << 20;

/// Calls of which the oldest has no answer yet: with more than this, no more are begun.
const MOST_SINCE_OLDEST: usize = 1 << 20;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    settings: Settings,
    is_ready: bool,
    heads: Option<Heads>,
    is_first: bool,
    decoder: Decoder,
    /// A block of headers whose rest is to come: the call, whether it is its last, and what there is.
    block: Option<(u32, bool, Vec<u8>)>,
    calls: Calls,
    /// What may be sent yet.
    window: i64,
    /// What was received since the server was told that there is room for more.
    received: u32,
    /// The server takes no more calls.
    is_closing: bool,
    /// Calls that it says it has not looked at: when they were due.
    untouched: Vec<Instant>,
}

/// Calls in the order in which they were begun, the oldest that has no answer first.
#[derive(Debug)]
struct Calls {
    calls: VecDeque<Option<Call>>,
    /// The stream of the first.
    first: u32,
    open: usize,
}

#[derive(Debug)]
struct Call {
    due: Instant,
    /// What gRPC says of it.
    status: Option<i32>,
    /// What its body says, or the body as far as it is there.
    verdict: Option<Verdict>,
    body: Vec<u8>,
    failure: Option<Failure>,
}

/// What does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

impl From<Malformed> for Broken {
    fn from(_: Malformed) -> Self {
        Self
    }
}

impl From<hpack::Malformed> for Broken {
    fn from(_: hpack::Malformed) -> Self {
        Self
    }
}

impl Calls {
    fn place(&self, stream: u32) -> Option<usize> {
        let since = stream.checked_sub(self.first)?;
        usize::try_from(since / 2).ok().filter(|_| since % 2 == 0)
    }

    fn get(&mut self, stream: u32) -> Option<&mut Call> {
        let place = self.place(stream)?;
        self.calls.get_mut(place)?.as_mut()
    }

    fn push(&mut self, due: Instant) {
        self.calls.push_back(Some(Call {
            due,
            status: None,
            verdict: None,
            body: Vec::new(),
            failure: None,
        }));
        self.open += 1;
    }

    fn take(&mut self, stream: u32) -> Option<Call> {
        let place = self.place(stream)?;
        let call = self.calls.get_mut(place)?.take()?;
        self.open -= 1;
        while let Some(None) = self.calls.front() {
            self.calls.pop_front();
            self.first += 2;
        }
        Some(call)
    }

    /// The stream that the next call would have.
    fn next(&self) -> Option<u32> {
        let begun = u32::try_from(self.calls.len()).ok()?;
        self.first.checked_add(2 * begun).filter(|stream| *stream <= 0x7fff_ffff)
    }
}

impl Call {
    /// What it came to, now that it has ended.
    fn result(self) -> Result<Verdict, Failure> {
        match (self.failure, self.status) {
            (Some(failure), _) => Err(failure),
            (None, Some(0)) if self.body.is_empty() => self.verdict.ok_or(Failure::Unreadable),
            (None, Some(0)) => answer::verdict(&self.body),
            (None, Some(-1) | None) => Err(Failure::Unreadable),
            (None, Some(code)) => Err(Failure::Grpc(code)),
        }
    }

    /// Takes in what of the body has come.
    fn data(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        // Nearly always, this is all of it.
        if self.body.is_empty()
            && self.verdict.is_none()
            && let Ok(verdict) = answer::verdict(data)
        {
            self.verdict = Some(verdict);
        } else if self.verdict.is_some() || self.body.len() + data.len() > LONGEST_ANSWER {
            self.failure.get_or_insert(Failure::Unreadable);
        } else {
            self.body.extend_from_slice(data);
        }
    }

    fn field(&mut self, field: Field) {
        match field {
            Field::Http(200) | Field::Other => {}
            Field::Http(status) => _ = self.failure.get_or_insert(Failure::Http(status)),
            Field::Grpc(code) => self.status = Some(code),
        }
    }
}

impl Connection {
    /// A connection that has just been made; what it begins with is written to `out`.
    pub(super) fn begin(out: &mut Vec<u8>) -> Self {
        /// No pushes; answers never wait for leave to be sent.
        const SETTINGS: [u8; 12] = [0, 2, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
        const MORE: u32 = 0x7fff_ffff - frame::WINDOW;

        out.extend_from_slice(frame::PREFACE);
        frame::write(out, kind::SETTINGS, 0, 0, &SETTINGS);
        frame::write(out, kind::WINDOW_UPDATE, 0, 0, &MORE.to_be_bytes());
        Self {
            settings: Settings::default(),
            is_ready: false,
            heads: None,
            is_first: true,
            decoder: Decoder::default(),
            block: None,
            calls: Calls { calls: VecDeque::new(), first: 1, open: 0 },
            window: frame::WINDOW.into(),
            received: 0,
            is_closing: false,
            untouched: Vec::new(),
        }
    }

    /// Whether the server has said how it wants to be spoken to.
    pub(super) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Whether the server takes requests of this length at once.
    pub(super) fn takes(&self, length: usize) -> bool {
        u32::try_from(length).is_ok_and(|length| length <= self.settings.window.min(frame::WINDOW))
    }

    /// Whether no call may be begun any more.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing || self.calls.next().is_none()
    }

    /// Calls under way.
    pub(super) fn open(&self) -> usize {
        self.calls.open
    }

    /// Whether another call may be begun now, with a request of this length.
    pub(super) fn has_room(&self, length: usize) -> bool {
        !self.is_closing()
            && self.calls.open < usize::try_from(self.settings.streams).unwrap_or(usize::MAX)
            && self.calls.calls.len() < MOST_SINCE_OLDEST
            && usize::try_from(self.window).is_ok_and(|window| window >= length)
    }

    /// Begins a call that was due at `due`; there is room for it.
    pub(super) fn call(
        &mut self,
        due: Instant,
        authority: &str,
        path: &str,
        requests: &mut Requests,
        out: &mut Vec<u8>,
    ) {
        let Some(stream) = self.calls.next() else { return };
        let heads = self.heads.get_or_insert_with(|| Heads::new(authority, path, self.settings.table));
        let head = if self.is_first { &heads.first } else { &heads.later };
        self.is_first = false;
        frame::write(out, kind::HEADERS, flag::END_HEADERS, stream, head);
        self.window -= i64::try_from(requests.len()).unwrap_or(i64::MAX);
        if requests.len() <= frame::LONGEST {
            // Straight to its place, which is what most requests are.
            let begin = out.len();
            frame::write(out, kind::DATA, flag::END_STREAM, stream, &[]);
            requests.write(out);
            let length = u32::try_from(requests.len()).unwrap_or(u32::MAX).to_be_bytes();
            if let (Some(place), [_, length @ ..]) = (out.get_mut(begin..begin + 3), length) {
                place.copy_from_slice(&length);
            }
        } else {
            let mut request = Vec::with_capacity(requests.len());
            requests.write(&mut request);
            let mut parts = request.chunks(frame::LONGEST).peekable();
            while let Some(part) = parts.next() {
                let flags = if parts.peek().is_none() { flag::END_STREAM } else { 0 };
                frame::write(out, kind::DATA, flags, stream, part);
            }
        }
        self.calls.push(due);
    }

    /// Reads the frames that `input` begins with, and returns how many bytes they are. `ended` is told when each call that has
    /// ended was due, and what it came to; what the server is to be told is written to `out`.
    ///
    /// # Errors
    /// When the server does not speak as it should.
    pub(super) fn read(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        mut ended: impl FnMut(Instant, Result<Verdict, Failure>),
    ) -> Result<usize, Broken> {
        let mut rest = input;
        while let Some(frame) = Frame::first(rest)? {
            rest = rest.get(frame.len()..).unwrap_or_default();
            self.take_in(&frame, out, &mut ended)?;
        }
        Ok(input.len() - rest.len())
    }

    fn take_in(
        &mut self,
        frame: &Frame<'_>,
        out: &mut Vec<u8>,
        ended: &mut impl FnMut(Instant, Result<Verdict, Failure>),
    ) -> Result<(), Broken> {
        // Nothing may come between the parts of a block.
        if self.block.is_some() && frame.kind != kind::CONTINUATION {
            return Err(Broken);
        }
        let is_last = frame.has(flag::END_STREAM);
        match frame.kind {
            kind::DATA => {
                self.make_room(frame.payload.len(), out);
                if let Some(call) = self.calls.get(frame.stream) {
                    call.data(frame.content()?);
                    if is_last {
                        self.end(frame.stream, ended);
                    }
                }
            }
            kind::HEADERS if frame.has(flag::END_HEADERS) => {
                self.headers(frame.stream, is_last, frame.content()?, ended)?;
            }
            kind::HEADERS => self.block = Some((frame.stream, is_last, frame.content()?.to_vec())),
            kind::CONTINUATION => {
                let (stream, is_last, mut block) = self.block.take().ok_or(Broken)?;
                if stream != frame.stream || block.len() + frame.payload.len() > LONGEST_ANSWER {
                    return Err(Broken);
                }
                block.extend_from_slice(frame.payload);
                if frame.has(flag::END_HEADERS) {
                    self.headers(stream, is_last, &block, ended)?;
                } else {
                    self.block = Some((stream, is_last, block));
                }
            }
            kind::RST_STREAM => {
                if let Some(call) = self.calls.take(frame.stream) {
                    ended(call.due, Err(Failure::Reset(frame.number(0)?)));
                }
            }
            kind::SETTINGS if !frame.has(flag::ACK) => {
                self.settings.read(frame)?;
                self.is_ready = true;
                frame::write(out, kind::SETTINGS, flag::ACK, 0, &[]);
            }
            kind::PING if !frame.has(flag::ACK) => frame::write(out, kind::PING, flag::ACK, 0, frame.payload),
            kind::GOAWAY => {
                self.is_closing = true;
                let last = frame.number(0)? & 0x7fff_ffff;
                let begun = self.calls.next().unwrap_or(u32::MAX);
                for stream in (self.calls.first..begun).step_by(2).filter(|stream| *stream > last) {
                    self.untouched.extend(self.calls.take(stream).map(|call| call.due));
                }
            }
            kind::WINDOW_UPDATE if frame.stream == 0 => self.window += i64::from(frame.number(0)?),
            kind::PUSH_PROMISE => return Err(Broken),
            // Priorities, windows of calls that have been sent whole, and what is not known.
            _ => {}
        }
        Ok(())
    }

    fn headers(
        &mut self,
        stream: u32,
        is_last: bool,
        block: &[u8],
        ended: &mut impl FnMut(Instant, Result<Verdict, Failure>),
    ) -> Result<(), Broken> {
        let mut call = self.calls.get(stream);
        self.decoder.read(block, |field| {
            if let Some(call) = call.as_mut() {
                call.field(field);
            }
        })?;
        if is_last {
            self.end(stream, ended);
        }
        Ok(())
    }

    fn end(&mut self, stream: u32, ended: &mut impl FnMut(Instant, Result<Verdict, Failure>)) {
        if let Some(call) = self.calls.take(stream) {
            ended(call.due, call.result());
        }
    }

    /// Tells the server of room for what was read, before it needs to know.
    fn make_room(&mut self, read: usize, out: &mut Vec<u8>) {
        const SELDOM: u32 = 1 << 30;

        self.received += u32::try_from(read).unwrap_or_default();
        if self.received >= SELDOM {
            frame::write(out, kind::WINDOW_UPDATE, 0, 0, &self.received.to_be_bytes());
            self.received = 0;
        }
    }

    /// Calls that the server has not looked at, to be made again elsewhere.
    pub(super) fn untouched(&mut self) -> Vec<Instant> {
        std::mem::take(&mut self.untouched)
    }

    /// When the calls were due that have no answer.
    pub(super) fn unanswered(&mut self) -> impl Iterator<Item = Instant> {
        self.calls.open = 0;
        std::mem::take(&mut self.calls.calls)
            .into_iter()
            .flatten()
            .map(|call| call.due)
            .chain(self.untouched())
    }
}
