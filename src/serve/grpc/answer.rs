//! How an answer goes to its client.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::Body as _;
use tonic::body::Body;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const STATUS_OK: HeaderValue = HeaderValue::from_static("0");

/// An answer.
pub(super) enum Answer {
    /// A message, with what gRPC has before it; after it, that all went well.
    Message(Bytes),
    /// Whatever tonic says.
    ByTonic(Response<Body>),
}

impl Answer {
    /// Sends it: at once, or where tonic has a body for it, by a task of its own.
    pub(super) fn send(self, respond: &mut SendResponse<Bytes>) {
        let sent = match self {
            Self::Message(message) => send_message(respond, message),
            Self::ByTonic(response) => {
                let (head, body) = response.into_parts();
                let is_whole = body.is_end_stream();
                respond.send_response(Response::from_parts(head, ()), is_whole).map(|stream| {
                    if !is_whole {
                        tokio::spawn(Rest { stream, body }.send());
                    }
                })
            }
        };
        // It fails when the client wants it no more, or is gone.
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer was not sent");
        }
    }
}

fn send_message(respond: &mut SendResponse<Bytes>, message: Bytes) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    let mut stream = respond.send_response(response, false)?;
    // It is there already: where the client has no room for it, it may as well wait in the connection.
    stream.send_data(message, false)?;
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, STATUS_OK);
    stream.send_trailers(trailers)
}

/// An answer in the making, which is sent when it is there unless the client has given up its call. `C` is dropped when the
/// answer is there.
pub(super) struct Answering<C> {
    answer: BoxFuture<'static, Answer>,
    respond: SendResponse<Bytes>,
    call: Option<C>,
}

impl<C> Answering<C> {
    /// As little as possible is kept of a call that waits: there are many.
    pub(super) fn new(
        answer: impl Future<Output = Answer> + Send + 'static,
        respond: SendResponse<Bytes>,
        call: C,
    ) -> Self {
        Self { answer: Box::pin(answer), respond, call: Some(call) }
    }
}

impl<C: Unpin> Future for Answering<C> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let Poll::Ready(answer) = this.answer.as_mut().poll(context) else {
            return this.respond.poll_reset(context).map(|_given_up| ());
        };
        this.call = None;
        answer.send(&mut this.respond);
        Poll::Ready(())
    }
}

/// The rest of a body.
struct Rest {
    stream: SendStream<Bytes>,
    body: Body,
}

impl Rest {
    /// Sends it, piece by piece as the client has room for it, unless the client gives it up first.
    async fn send(mut self) {
        while self.send_next().await {}
    }

    /// Sends the next piece; false when there is none, or nobody wants it any more.
    async fn send_next(&mut self) -> bool {
        let frame = poll_fn(|context| match pin!(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => self.stream.poll_reset(context).map(Err),
        });
        match frame.await {
            Err(_given_up) => {}
            // A stream that fails now has been given up, too.
            Ok(None) => _ = self.stream.send_data(Bytes::new(), true),
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "an answer broke off");
                self.stream.send_reset(Reason::INTERNAL_ERROR);
            }
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => return self.send_data(data).await,
                Err(frame) => {
                    _ = self.stream.send_trailers(frame.into_trailers().unwrap_or_default());
                }
            },
        }
        false
    }

    /// False when nobody wants it any more.
    async fn send_data(&mut self, mut data: Bytes) -> bool {
        while !data.is_empty() {
            self.stream.reserve_capacity(data.len());
            let room = poll_fn(|context| match self.stream.capacity() {
                0 => self.stream.poll_capacity(context),
                // Of what was there before, it does not tell.
                room => Poll::Ready(Some(Ok(room))),
            });
            let Some(Ok(room)) = room.await else { return false };
            if room == 0 {
                continue;
            }
            if self.stream.send_data(data.split_to(room.min(data.len())), false).is_err() {
                return false;
            }
        }
        true
    }
}
