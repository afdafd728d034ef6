//! An HTTP/2 connection: its requests are taken as they come, and its client is asked now and then whether it is still there.
//!
//! hyper would do this for requests and answers of any kind: it gives each request a task, bodies of its own and half a dozen
//! readings of the clock. Here those that need not be waited for are answered by the task that has read them.

use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, Connection as Http2, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::{HeaderMap, Request};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};

use super::Bounds;
use crate::clock;

/// Bytes of requests that may be on their way on a connection, and on one of its streams.
const WINDOW: u32 = 1 << 20;

/// Bytes of a request's headers, as they are counted in HTTP/2.
const MAX_HEADERS: u32 = 16 << 10;

/// Bytes of a body that are taken before the client has room for them.
const MAX_UNSENT: usize = 400 << 10;

/// Requests that are taken at a time, if more have come: then it is the turn of others on the same thread. A client that gives
/// up its calls may have sent any number of them.
const AT_ONCE: usize = 64;

/// What takes the requests of a connection.
pub(super) trait Take {
    /// What one is counted as.
    type Counted;

    /// Counts one that has come, before any that came with it is taken.
    fn count(&mut self, request: &Request<RecvStream>) -> Self::Counted;

    /// Takes one. It may be answered at once, or later by a task of its own.
    fn take(
        &mut self,
        request: Request<Received>,
        counted: Self::Counted,
        respond: SendResponse<Bytes>,
        context: &mut Context<'_>,
    );
}

/// How a connection ended that nobody wanted to end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// Its client broke the protocol, or went away.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// Its client did not answer.
    #[error("no answer to a ping in time")]
    Silent,
}

/// How connections begin.
#[derive(Clone, Debug)]
pub(super) struct Beginning {
    builder: Builder,
    /// How often a client is asked whether it is there, and how long it may take to say so.
    keepalive: Option<(Duration, Duration)>,
}

impl Beginning {
    /// Connections within these bounds.
    pub(super) fn new(bounds: &Bounds) -> Self {
        let mut builder = Builder::new();
        builder
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_header_list_size(MAX_HEADERS)
            .max_send_buffer_size(MAX_UNSENT)
            .max_concurrent_streams(bounds.max_streams);
        // A proxy that we have kept waiting gives up all of its calls at once. That is no attack, and must not cost it the
        // connection, with those that it still waits for.
        if let Ok(max) = usize::try_from(bounds.max_streams) {
            builder.max_pending_accept_reset_streams(max);
        }
        let keepalive = bounds.keepalive.map(|every| (every, bounds.keepalive_timeout));
        Self { builder, keepalive }
    }

    /// Begins one on this wire; its requests are for `taker`.
    ///
    /// # Errors
    /// When its client goes away, or breaks the protocol.
    pub(super) async fn on<W, T>(&self, wire: W, taker: T) -> io::Result<Connection<W, T>>
    where
        W: AsyncRead + AsyncWrite + Unpin,
        T: Take,
    {
        let mut http2 = self.builder.handshake(wire).await.map_err(io::Error::other)?;
        let pings = self.keepalive.and_then(|keepalive| Some((http2.ping_pong()?, keepalive)));
        let keepalive = pings.map(|(pings, (every, within))| Keepalive::new(pings, every, within));
        Ok(Connection { http2, keepalive, taker, requests: Vec::new(), is_silent: false })
    }
}

/// A connection; it ends when all of its requests are answered and no more come.
pub(super) struct Connection<W, T: Take> {
    http2: Http2<W, Bytes>,
    keepalive: Option<Keepalive>,
    taker: T,
    /// Those that have come and are to be taken: none, but in between.
    requests: Vec<Come<T::Counted>>,
    is_silent: bool,
}

/// A request that has come, where its answer goes, and what it is counted as.
type Come<C> = (Request<RecvStream>, SendResponse<Bytes>, C);

impl<W: AsyncRead + AsyncWrite + Unpin, T: Take> Connection<W, T> {
    /// Tells the client to send no more requests here, and ends when those that are under way are answered.
    pub(super) fn graceful_shutdown(&mut self) {
        self.http2.graceful_shutdown();
    }
}

impl<W, T> Future for Connection<W, T>
where
    W: AsyncRead + AsyncWrite + Unpin,
    T: Take<Counted: Unpin> + Unpin,
{
    type Output = Result<(), Broken>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let mut end = None;
            while this.requests.len() < AT_ONCE
                && let Poll::Ready(next) = this.http2.poll_accept(context)
            {
                match next {
                    Some(Ok((request, respond))) => {
                        let counted = this.taker.count(&request);
                        this.requests.push((request, respond, counted));
                    }
                    Some(Err(error)) => end = Some(Err(error.into())),
                    None if this.is_silent => end = Some(Err(Broken::Silent)),
                    None => end = Some(Ok(())),
                }
                if end.is_some() {
                    break;
                }
            }
            let (is_heard, is_more) = (!this.requests.is_empty(), this.requests.len() == AT_ONCE);
            // All that are there, before any is answered: each look for the next one writes what is to be sent.
            for (request, mut respond, counted) in this.requests.drain(..) {
                // Nobody waits for what its client has given up by now.
                if respond.poll_reset(context).is_pending() {
                    let request = request.map(Received);
                    let take = || this.taker.take(request, counted, respond, context);
                    // One that panics costs its own call, which is reset as it is dropped, and none that came with it. The
                    // panic has been told where it happened.
                    _ = catch_unwind(AssertUnwindSafe(take));
                }
            }
            if let Some(end) = end {
                return Poll::Ready(end);
            }
            if is_more {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if this.is_silent {
                // It does not even take that it is told so.
                return Poll::Ready(Err(Broken::Silent));
            }
            let Some(keepalive) = &mut this.keepalive else { return Poll::Pending };
            if is_heard {
                keepalive.heard = clock::instant();
            }
            ready!(keepalive.poll_silence(context));
            this.is_silent = true;
            this.http2.abrupt_shutdown(Reason::NO_ERROR);
        }
    }
}

/// Asks a client of whom nothing has been heard for a while whether it is still there.
struct Keepalive {
    pings: PingPong,
    every: Duration,
    within: Duration,
    heard: Instant,
    /// Fires when it is to be asked, or when its answer is late.
    timer: Pin<Box<Sleep>>,
    is_asked: bool,
}

impl Keepalive {
    fn new(pings: PingPong, every: Duration, within: Duration) -> Self {
        let timer = Box::pin(sleep(every));
        Self { pings, every, within, heard: clock::instant(), timer, is_asked: false }
    }

    /// Ready when the client has not answered in time.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.is_asked && self.pings.poll_pong(context).is_ready() {
                // Or the connection is at its end, which it says itself.
                self.is_asked = false;
                self.heard = clock::instant();
                self.timer.as_mut().reset(self.heard + self.every);
            }
            ready!(self.timer.as_mut().poll(context));
            if self.is_asked {
                return Poll::Ready(());
            }
            let (now, due) = (clock::instant(), self.heard + self.every);
            if now < due {
                self.timer.as_mut().reset(due);
            } else {
                // It fails only for a connection that is at its end.
                self.is_asked = self.pings.send_ping(Ping::opaque()).is_ok();
                self.timer.as_mut().reset(now + if self.is_asked { self.within } else { self.every });
            }
        }
    }
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct Received(RecvStream);

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match ready!(self.0.poll_data(context)) {
            Some(Ok(data)) => {
                // So that more of it may come.
                let released = self.0.flow_control().release_capacity(data.len());
                Poll::Ready(Some(released.map(|()| Frame::data(data))))
            }
            // A client that wants no answer any more need not say more.
            Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                Poll::Ready(None)
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                let trailers: Option<HeaderMap> = ready!(self.0.poll_trailers(context))?;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use http::Response;

    use super::*;

    /// Panics at one path, and answers at any other.
    struct Panicking;

    impl Take for Panicking {
        type Counted = ();

        fn count(&mut self, _: &Request<RecvStream>) {}

        fn take(
            &mut self,
            request: Request<Received>,
            (): (),
            mut respond: SendResponse<Bytes>,
            _: &mut Context<'_>,
        ) {
            assert_ne!(request.uri().path(), "/panic");
            respond.send_response(Response::new(()), true).unwrap();
        }
    }

    #[tokio::test]
    async fn a_panic_costs_the_call_that_it_happens_in_and_no_other() {
        let (here, there) = tokio::io::duplex(1 << 16);
        let beginning = Beginning { builder: Builder::new(), keepalive: None };
        let serving = async { beginning.on(here, Panicking).await.unwrap().await };
        let asking = async {
            let (mut client, connection) = h2::client::handshake(there).await.unwrap();
            let connection = tokio::spawn(connection);
            let mut ask = |path: &str| {
                let request = Request::get(format!("http://weir{path}")).body(()).unwrap();
                client.send_request(request, true).unwrap().0
            };
            let (before, panics, after) = (ask("/"), ask("/panic"), ask("/"));
            assert_eq!(before.await.unwrap().status(), 200);
            assert!(panics.await.unwrap_err().is_reset(), "it is reset");
            assert_eq!(after.await.unwrap().status(), 200);
            drop(client);
            connection.await.unwrap().unwrap();
        };
        let (served, ()) = tokio::join!(serving, asking);
        served.unwrap();
    }
}
