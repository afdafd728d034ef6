//! A line to a server: a connection, opened again whenever it ends, and as many callers as may be on it at a time.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

use super::answer::Verdict;
use super::connection::{Broken, Connection};
use super::pace::Pace;
use super::request::Requests;
use super::tally::{Failure, Tally};
use super::{Plan, Target};
use crate::clock;
use crate::proto::SERVICE_NAME;
use crate::serve::Wire;

/// How long nobody tries to connect after an attempt has failed.
const PAUSE: Duration = Duration::from_millis(100);

/// What is read at a time.
const CHUNK: usize = 64 << 10;

/// A line to a server. When it is dropped, calls that are under way are counted as unanswered.
pub(super) struct Line {
    target: Target,
    timeout: Duration,
    /// How many calls may be under way.
    callers: usize,
    path: String,
    requests: Rc<RefCell<Requests>>,
    tally: Arc<Mutex<Tally>>,
    link: Option<Link>,
    /// Calls that a server has not looked at before it ended its connection: when they were due.
    again: Vec<Instant>,
}

/// A connection and its bytes.
struct Link {
    reader: ReadHalf<Box<dyn Wire>>,
    writer: WriteHalf<Box<dyn Wire>>,
    connection: Connection,
    input: BytesMut,
    output: Vec<u8>,
    /// How much of that has gone out.
    written: usize,
}

impl Line {
    /// Connects.
    ///
    /// # Errors
    /// When that fails: in words.
    pub(super) async fn open(
        plan: &Plan,
        requests: Rc<RefCell<Requests>>,
        tally: Arc<Mutex<Tally>>,
    ) -> Result<Self, String> {
        let mut line = Self {
            target: plan.target.clone(),
            timeout: plan.timeout,
            callers: plan.streams,
            path: format!("/{SERVICE_NAME}/ShouldRateLimit"),
            requests,
            tally,
            link: None,
            again: Vec::new(),
        };
        let link = line.connect().await;
        let target = &plan.target;
        line.link =
            Some(link.map_err(|reason| format!("cannot reach {target}: {reason}; is weir serving there?"))?);
        Ok(line)
    }

    async fn connect(&self) -> Result<Link, String> {
        let attempt = async {
            let wire = self.target.connect().await.map_err(|error| error.to_string())?;
            let mut link = Link::begin(wire);
            while !link.connection.is_ready() {
                link.turn(|_, _| {}).await.map_err(|error| error.to_string())?;
            }
            let length = self.requests.borrow().len();
            if !link.connection.takes(length) {
                return Err(format!("requests of {length} bytes are more than it takes at once"));
            }
            Ok(link)
        };
        tokio::time::timeout(self.timeout, attempt)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)))
    }

    /// Makes calls as they come due, and returns when all have ended and no more will come.
    pub(super) async fn run(&mut self, pace: &Pace) {
        loop {
            if self.link.is_none() {
                match self.connect().await {
                    Ok(link) => self.link = Some(link),
                    Err(_) if self.cannot(pace) => return,
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            }
            if self.calls(pace).await {
                return;
            }
            self.give_up();
        }
    }

    /// Counts the calls that could not be made, as there is no connection. Whether there will be no more.
    fn cannot(&mut self, pace: &Pace) -> bool {
        let now = clock::stopwatch();
        let mut tally = lock(&self.tally);
        for due in self.again.drain(..) {
            tally.count(Err(Failure::Unreachable), due, now);
        }
        // Afterwards, nobody pauses before the others fail, too.
        let callers = if pace.is_over(now) { usize::MAX } else { self.callers };
        for due in std::iter::from_fn(|| pace.take(now)).take(callers) {
            tally.count(Err(Failure::Unreachable), due, now);
        }
        pace.is_over(now)
    }

    /// Makes calls on the connection for as long as it lasts. Whether there will be no more.
    async fn calls(&mut self, pace: &Pace) -> bool {
        let mut now = clock::stopwatch();
        loop {
            let has_room = self.begin_calls(pace, now);
            if !has_room {
                pace.pass_on();
            }
            let Some(link) = &mut self.link else { return false };
            if link.connection.open() == 0 {
                if link.connection.is_closing() {
                    return false;
                }
                if pace.is_over(now) && self.again.is_empty() {
                    return true;
                }
            }
            let tally = &self.tally;
            let turn = link.turn(|ended, verdicts| {
                now = ended;
                let mut tally = lock(tally);
                verdicts.iter().for_each(|(due, verdict)| tally.count(*verdict, *due, ended));
            });
            tokio::select! {
                biased;
                turn = turn => if turn.is_err() {
                    return false;
                },
                () = pace.rung(), if has_room => now = clock::stopwatch(),
            }
        }
    }

    /// Begins the calls that are due, as far as there is room for them. Whether there is still room.
    fn begin_calls(&mut self, pace: &Pace, now: Instant) -> bool {
        let Some(link) = &mut self.link else { return false };
        let mut requests = self.requests.borrow_mut();
        let length = requests.len();
        let authority = match &self.target {
            Target::Tcp(address) => address.as_str(),
            Target::Unix(_) => "localhost",
        };
        while link.connection.open() < self.callers && link.connection.has_room(length) {
            let Some(due) = self.again.pop().or_else(|| pace.take(now)) else { return true };
            link.connection.call(due, authority, &self.path, &mut requests, &mut link.output);
        }
        false
    }

    /// Counts what was under way on the connection, which is no more.
    fn give_up(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        self.again.extend(link.connection.untouched());
        let now = clock::stopwatch();
        let mut tally = lock(&self.tally);
        link.connection.unanswered().for_each(|due| tally.count(Err(Failure::Lost), due, now));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let now = clock::stopwatch();
        let mut tally = lock(&self.tally);
        let unanswered = self.link.iter_mut().flat_map(|link| link.connection.unanswered());
        for due in unanswered.chain(self.again.drain(..)) {
            tally.count(Err(Failure::Unanswered), due, now);
        }
    }
}

impl Link {
    fn begin(wire: Box<dyn Wire>) -> Self {
        let (reader, writer) = tokio::io::split(wire);
        let mut output = Vec::new();
        let connection = Connection::begin(&mut output);
        Self { reader, writer, connection, input: BytesMut::new(), output, written: 0 }
    }

    /// Sends what is to be sent and reads what is there, whichever is possible first. `ended` is told the moment, and of each
    /// call that has ended when it was due and what it came to.
    ///
    /// Nothing is lost when this is dropped before it returns.
    ///
    /// # Errors
    /// When the connection is no more.
    async fn turn(
        &mut self,
        ended: impl FnOnce(Instant, &[(Instant, Result<Verdict, Failure>)]),
    ) -> io::Result<()> {
        self.input.reserve(CHUNK);
        let unsent = self.output.get(self.written..).unwrap_or_default();
        tokio::select! {
            biased;
            written = self.writer.write(unsent), if !unsent.is_empty() => {
                self.written += written?;
                if self.written >= self.output.len() {
                    self.output.clear();
                    self.written = 0;
                }
            }
            read = self.reader.read_buf(&mut self.input) => {
                if read? == 0 {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closes the connection"));
                }
                let now = clock::stopwatch();
                let mut verdicts = Vec::new();
                let read = self.connection.read(&self.input, &mut self.output, |due, verdict| {
                    verdicts.push((due, verdict));
                });
                ended(now, &verdicts);
                let read = read.map_err(|Broken| {
                    io::Error::new(io::ErrorKind::InvalidData, "it does not speak HTTP/2 without TLS")
                })?;
                self.input.advance(read);
            }
        }
        Ok(())
    }
}

pub(super) fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
