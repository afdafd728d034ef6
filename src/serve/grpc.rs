//! gRPC on a connection: HTTP/2 from its first bytes to its last, and who answers which call.
//!
//! A connection says within a time that it speaks HTTP/2, or it is closed. It ends when its client wants it to, when it
//! is old enough that its calls had better go to another replica, or when the process closes. The latter two are told to
//! the client (`GOAWAY`), which finishes what it has begun here and opens its next connection elsewhere.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tonic::body::Body;
use tonic::codegen::Service as _;
use tonic::service::Routes;

use self::answer::{Answer, Answering};
use self::call::{Answerer, Stage};
use self::connection::{Beginning, Connection, Received, Take};
use super::body::{Timely, UntilClosing};
use super::tls::Tls;
use super::{Course, Incoming, Overload, Peer, Shed, Tally, Wire};
use crate::service::Service;

mod answer;
mod call;
mod connection;

/// What every HTTP/2 connection begins with (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What is said to a client that speaks HTTP/1, such as curl or a browser.
const NOT_HTTP_1: &[u8] = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\ncontent-length: 72\r\n\r\n\
    This port answers gRPC, which is HTTP/2; --http says where HTTP/1 goes.\n";

/// Where the calls are whose requests are one message each, besides the one that there are many of: a client of reflection
/// may take its time between two.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// The one call that there are many of.
const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// How long a client that has no call under way may take to end its connection after it was told to: the time for one
/// message to go there and back.
const PARTING: Duration = Duration::from_secs(2);

/// In which bounds connections are kept.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Calls that may be under way on one.
    pub max_streams: u32,
    /// How long it may take to begin, and a request to be there once it has begun.
    pub request_timeout: Duration,
    /// How old it may become, give or take a tenth.
    pub max_age: Option<Duration>,
    /// How long its calls may take to finish after that.
    pub max_age_grace: Duration,
    /// How often the client is asked whether it is still there.
    pub keepalive: Option<Duration>,
    /// How long it may take to say so.
    pub keepalive_timeout: Duration,
}

/// What all gRPC connections share.
#[derive(Debug)]
pub struct Grpc {
    limits: Arc<Answerer>,
    /// Health and reflection.
    others: Routes,
    overload: Arc<Overload>,
    tally: Arc<Tally>,
    /// On TCP.
    tls: Option<Arc<Tls>>,
    bounds: Bounds,
    beginning: Beginning,
}

impl Grpc {
    /// Answers calls of the rate limit service, of up to so many bytes, with `service`, within `overload`, and the others
    /// with `others`.
    #[must_use]
    pub fn new(
        service: Arc<Service>,
        max_message: usize,
        others: Routes,
        overload: Arc<Overload>,
        tally: Arc<Tally>,
        tls: Option<Arc<Tls>>,
        bounds: Bounds,
    ) -> Self {
        let beginning = Beginning::new(&bounds);
        let limits = Arc::new(Answerer::new(service, max_message));
        Self { limits, others: others.prepare(), overload, tally, tls, bounds, beginning }
    }

    /// Serves a connection to its end.
    pub async fn serve(self: Arc<Self>, incoming: Incoming, mut course: Course) {
        let calls = Arc::new(Calls { overload: Arc::clone(&self.overload), under_way: AtomicUsize::new(0) });
        let taker = Taker { grpc: Arc::clone(&self), calls: Arc::clone(&calls), course: course.clone() };
        let begun = tokio::select! {
            begun = tokio::time::timeout(self.bounds.request_timeout, self.begin(incoming, taker)) => begun,
            () = course.closing() => return,
        };
        let mut connection = match begun {
            Ok(Ok(connection)) => std::pin::pin!(connection),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection came to nothing");
                return self.tally.fail();
            }
            Err(_) => {
                tracing::debug!("a connection said nothing in time");
                return self.tally.fail();
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = grow_old(self.bounds.max_age) => {
                connection.graceful_shutdown();
                tokio::select! {
                    ended = connection.as_mut() => Some(ended),
                    () = tokio::time::sleep(self.bounds.max_age_grace) => return,
                    () = course.closing() => None,
                }
            }
            () = course.closing() => None,
        };
        if let Some(ended) = ended {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended");
            }
            return;
        }
        connection.graceful_shutdown();
        // Calls are waited for, as long as the process waits. A client that has none may be gone without a word.
        while let Err(_still_open) = tokio::time::timeout(PARTING, connection.as_mut()).await {
            if calls.under_way.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }
}

impl Grpc {
    /// Begins a connection, whose requests are for `taker`.
    async fn begin(&self, incoming: Incoming, taker: Taker) -> io::Result<Connection<Begun, Taker>> {
        let wire = begin(incoming, self.tls.as_deref()).await?;
        self.beginning.on(Begun { wire, preface: PREFACE }, taker).await
    }
}

/// Begins TLS, where there is any, and reads what HTTP/2 begins with.
async fn begin(incoming: Incoming, tls: Option<&Tls>) -> io::Result<Box<dyn Wire>> {
    let mut wire = match tls {
        Some(tls) if incoming.peer != Peer::Local => tls.begin(incoming).await?.wire,
        _ => incoming.wire,
    };
    let mut begun = [0; PREFACE.len()];
    wire.read_exact(&mut begun).await?;
    if begun == *PREFACE {
        return Ok(wire);
    }
    if begun.first().is_some_and(u8::is_ascii_uppercase) {
        wire.write_all(NOT_HTTP_1).await?;
        wire.shutdown().await?;
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "this is not HTTP/2"))
}

/// Returns when a connection is about so old: those that were made at one time do not end at one time.
async fn grow_old(age: Option<Duration>) {
    match age {
        Some(age) => tokio::time::sleep(about(age, getrandom::u32().unwrap_or(u32::MAX / 2))).await,
        None => std::future::pending().await,
    }
}

/// From nine to eleven tenths of a duration, as `chance` has it.
fn about(duration: Duration, chance: u32) -> Duration {
    duration.mul_f64(0.9 + 0.2 * f64::from(chance) / f64::from(u32::MAX))
}

/// A connection of which the preface has been read, and is to be read again.
struct Begun {
    wire: Box<dyn Wire>,
    /// What of it is left.
    preface: &'static [u8],
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.preface.is_empty() {
            return Pin::new(&mut self.wire).poll_read(context, buffer);
        }
        let (now, later) = self.preface.split_at_checked(buffer.remaining()).unwrap_or((self.preface, &[]));
        buffer.put_slice(now);
        self.preface = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }
}

/// What takes the calls of one connection.
struct Taker {
    grpc: Arc<Grpc>,
    calls: Arc<Calls>,
    course: Course,
}

/// Rate limit calls of one connection.
#[derive(Debug)]
struct Calls {
    overload: Arc<Overload>,
    under_way: AtomicUsize,
}

impl Take for Taker {
    /// Of the rate limit service, and whether it is one too many.
    type Counted = Option<(Call, Option<Shed>)>;

    fn count(&mut self, request: &Request<RecvStream>) -> Self::Counted {
        (request.uri().path() == SHOULD_RATE_LIMIT).then(|| Call::begin(&self.calls))
    }

    fn take(
        &mut self,
        request: Request<Received>,
        counted: Self::Counted,
        mut respond: SendResponse<Bytes>,
        context: &mut Context<'_>,
    ) {
        let Some((call, shed)) = counted else { return self.take_other(request, respond) };
        let limits = &self.grpc.limits;
        let request = request.map(|body| Timely::new(body, self.grpc.bounds.request_timeout));
        match limits.begin(request, shed, context) {
            Stage::Answered(answer) => answer.send(&mut respond),
            Stage::Read(read) => {
                let answer = Arc::clone(limits).decide(read);
                tokio::spawn(Answering::new(answer, respond, call));
            }
            stage => {
                let answer = Arc::clone(limits).finish(stage);
                tokio::spawn(Answering::new(answer, respond, call));
            }
        }
    }
}

impl Taker {
    /// Has a call answered that is not of the rate limit service.
    fn take_other(&self, request: Request<Received>, respond: SendResponse<Bytes>) {
        let (mut others, course) = (self.grpc.others.clone(), self.course.clone());
        let within = self.grpc.bounds.request_timeout;
        let request = if request.uri().path().starts_with(HEALTH) {
            request.map(|body| Body::new(Timely::new(body, within)))
        } else {
            request.map(Body::new)
        };
        let answer = async move {
            let Ok(response) = others.call(request).await;
            Answer::ByTonic(response.map(|body| Body::new(UntilClosing::new(body, course))))
        };
        tokio::spawn(Answering::new(answer, respond, ()));
    }
}

/// A rate limit call that is under way until this is dropped.
struct Call(Arc<Calls>);

impl Call {
    /// Counts it; it may be one too many.
    fn begin(calls: &Arc<Calls>) -> (Self, Option<Shed>) {
        calls.under_way.fetch_add(1, Ordering::Relaxed);
        let shed = calls.overload.enter();
        (Self(Arc::clone(calls)), shed)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
        self.0.overload.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::SERVICE_NAME;

    #[test]
    fn the_path_of_the_call_is_the_one_that_the_service_has() {
        assert_eq!(SHOULD_RATE_LIMIT, format!("/{SERVICE_NAME}/ShouldRateLimit"));
    }

    #[test]
    fn the_answer_to_http_1_says_how_long_it_is() {
        let text = String::from_utf8(NOT_HTTP_1.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())), "{} bytes", body.len());
    }

    #[test]
    fn ages_lie_about_a_tenth_around_the_one_that_is_set() {
        let age = Duration::from_secs(100);
        assert_eq!(about(age, 0), Duration::from_secs(90));
        assert_eq!(about(age, u32::MAX), Duration::from_secs(110));
    }
}
