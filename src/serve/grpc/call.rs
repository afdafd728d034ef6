//! One rate limit call, from the frame that it comes in to those of its answer.
//!
//! tonic does this for messages of any type, streamed and encoded in any way, and makes buffers of eight kilobytes and half
//! a dozen boxes for it, which together cost more than the decision. Nearly every call comes as one frame that holds one
//! plain message and ends the request: that one is decoded where it lies, and its answer is written into as much memory as
//! it takes. All others are tonic's, from the first byte: so what is not one such frame, is too long or cannot be decoded
//! is answered as tonic answers it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame, SizeHint};
use prost::Message as _;
use tonic::codegen::{BoxFuture, Service as _};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use crate::proto::{RateLimitRequest, RateLimitResponse, RateLimitServiceServer};
use crate::serve::Shed;
use crate::service::{Service, answer_unasked};

/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const STATUS_OK: HeaderValue = HeaderValue::from_static("0");

/// Answers rate limit calls.
#[derive(Clone, Debug)]
pub(super) struct Answerer {
    service: Arc<Service>,
    by_tonic: RateLimitServiceServer<Service>,
    /// Longest message taken, in bytes.
    max_message: usize,
}

impl Answerer {
    pub(super) fn new(service: Arc<Service>, max_message: usize) -> Self {
        let by_tonic = RateLimitServiceServer::from_arc(Arc::clone(&service))
            .max_decoding_message_size(max_message)
            // A response repeats what was asked: it may be as long, and must not be what fails.
            .max_encoding_message_size(usize::MAX);
        Self { service, by_tonic, max_message }
    }

    /// Begins to answer a call; as the policy of `shed` says, if it is one too many.
    pub(super) fn begin<B>(self: &Arc<Self>, request: Request<B>, shed: Option<Shed>) -> Answering<B> {
        let step = Step::Reading { request: Some(request), shed };
        Answering { by: Arc::clone(self), step }
    }

    /// The message in a frame, if that holds just one which is not compressed, and can be decoded.
    fn decode(&self, data: &Bytes) -> Option<RateLimitRequest> {
        let mut message = data.clone();
        let (compressed, length) = (message.try_get_u8().ok()?, message.try_get_u32().ok()?);
        let is_whole = usize::try_from(length).is_ok_and(|length| length == message.len());
        if compressed != 0 || !is_whole || message.len() > self.max_message {
            return None;
        }
        RateLimitRequest::decode(message).ok()
    }
}

/// The answer to a call in the making.
pub(super) struct Answering<B> {
    by: Arc<Answerer>,
    step: Step<B>,
}

#[allow(clippy::large_enum_variant, reason = "each call begins with the largest, and nearly all end with it")]
enum Step<B> {
    /// The request is there once its body is.
    Reading { request: Option<Request<B>>, shed: Option<Shed> },
    /// It is decided on.
    Deciding(BoxFuture<RateLimitResponse, Status>),
    /// tonic does all that.
    ByTonic(BoxFuture<Response<tonic::body::Body>, Infallible>),
}

impl<B> Future for Answering<B>
where
    B: Body<Data = Bytes, Error = Status> + Send + Unpin + 'static,
{
    type Output = Result<Response<AnswerBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let Self { by, step } = &mut *self;
            match step {
                Step::Reading { request: Some(read), shed } => {
                    let frame = ready!(Pin::new(read.body_mut()).poll_frame(context));
                    let shed = shed.take();
                    let data = match &frame {
                        Some(Ok(frame)) if read.body().is_end_stream() => frame.data_ref(),
                        _ => None,
                    };
                    let is_encoded = read.headers().contains_key(GRPC_ENCODING);
                    let message = data.filter(|_| !is_encoded).and_then(|data| by.decode(data));
                    let Step::Reading { request: Some(request), .. } =
                        std::mem::replace(step, Step::Reading { request: None, shed: None })
                    else {
                        return Poll::Pending;
                    };
                    let Some(message) = message else {
                        *step = by.leave_to_tonic(request, frame, shed);
                        continue;
                    };
                    if let Some(Shed(policy)) = shed {
                        return Poll::Ready(Ok(respond(answer_unasked(&message, policy))));
                    }
                    match by.service.answer_at_once(&message) {
                        Some(answer) => return Poll::Ready(Ok(respond(answer))),
                        None => {
                            let metadata = MetadataMap::from_headers(request.into_parts().0.headers);
                            let by = Arc::clone(by);
                            // As little as possible is kept of a call that waits: there are many.
                            *step = Step::Deciding(match by.service.traced(&metadata) {
                                None => Box::pin(async move { by.service.answer(&message).await }),
                                Some(span) => {
                                    Box::pin(async move { by.service.answer_traced(&message, span).await })
                                }
                            });
                        }
                    }
                }
                // Polled after its end, which nobody does.
                Step::Reading { request: None, .. } => return Poll::Pending,
                Step::Deciding(decision) => {
                    return Poll::Ready(Ok(respond(ready!(decision.as_mut().poll(context)))));
                }
                Step::ByTonic(answer) => {
                    let Ok(answer) = ready!(answer.as_mut().poll(context));
                    by.count_unless_read(&answer);
                    return Poll::Ready(Ok(answer.map(AnswerBody::ByTonic)));
                }
            }
        }
    }
}

impl Answerer {
    /// Has tonic answer a request, of whose body the first frame has been read.
    fn leave_to_tonic<B>(&self, request: Request<B>, first: First, shed: Option<Shed>) -> Step<B>
    where
        B: Body<Data = Bytes, Error = Status> + Send + Unpin + 'static,
    {
        let mut request = request.map(|rest| Reread { first: Some(first), rest });
        if let Some(shed) = shed {
            request.extensions_mut().insert(shed);
        }
        Step::ByTonic(self.by_tonic.clone().call(request))
    }

    /// Counts a call that tonic has answered with an error of its own. The service counts the others, and has two errors.
    fn count_unless_read(&self, answer: &Response<tonic::body::Body>) {
        let code = Status::from_header_map(answer.headers()).map_or(Code::Ok, |status| status.code());
        if !matches!(code, Code::Ok | Code::InvalidArgument | Code::Unavailable) {
            self.service.count_unreadable();
        }
    }
}

/// What a body begins with: a frame, an error, or its end.
type First = Option<Result<Frame<Bytes>, Status>>;

/// A body whose beginning has been read, and is to be read again.
struct Reread<B> {
    first: Option<First>,
    rest: B,
}

impl<B: Body<Data = Bytes, Error = Status> + Unpin> Body for Reread<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(first),
            None => Pin::new(&mut self.rest).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        !matches!(self.first, Some(Some(_))) && self.rest.is_end_stream()
    }
}

/// An answer as a response.
fn respond(answer: Result<RateLimitResponse, Status>) -> Response<AnswerBody> {
    match answer.and_then(|answer| encode(&answer)) {
        Ok(message) => {
            let mut response = Response::new(AnswerBody::Message(message));
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response
        }
        Err(status) => status.into_http::<tonic::body::Body>().map(AnswerBody::ByTonic),
    }
}

/// A message with what stands before it.
fn encode(answer: &RateLimitResponse) -> Result<Bytes, Status> {
    let length = answer.encoded_len();
    let told = u32::try_from(length).map_err(|_| {
        Status::resource_exhausted(format!("a response of {length} bytes is more than gRPC can tell"))
    })?;
    let mut message = BytesMut::with_capacity(PREFIX + length);
    message.put_u8(0);
    message.put_u32(told);
    // There is as much room as it takes, which is all that it could fail for.
    answer.encode_raw(&mut message);
    Ok(message.freeze())
}

/// The body of an answer.
pub(super) enum AnswerBody {
    /// A message and, after it, that all went well.
    Message(Bytes),
    /// That all went well.
    Status,
    /// Nothing more.
    End,
    /// Whatever tonic says.
    ByTonic(tonic::body::Body),
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *self {
            Self::ByTonic(body) => Pin::new(body).poll_frame(context),
            Self::Message(message) => {
                let message = std::mem::take(message);
                *self = Self::Status;
                Poll::Ready(Some(Ok(Frame::data(message))))
            }
            Self::Status => {
                *self = Self::End;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(GRPC_STATUS, STATUS_OK);
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Self::End => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Message(_) | Self::Status => false,
            Self::End => true,
            Self::ByTonic(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            // Unknown, as there are trailers: a length would be told ahead.
            Self::Message(_) | Self::Status => SizeHint::default(),
            Self::End => SizeHint::with_exact(0),
            Self::ByTonic(body) => body.size_hint(),
        }
    }
}
