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
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderName, Request, Response};
use http_body::{Body, Frame};
use prost::Message as _;
use tonic::codegen::{BoxFuture, Service as _};
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::answer::Answer;
use crate::proto::{RateLimitRequest, RateLimitResponse, RateLimitServiceServer};
use crate::serve::Shed;
use crate::service::{Service, answer_unasked};
use crate::telemetry::traces::CallSpan;

/// What stands before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Answers rate limit calls.
#[derive(Clone, Debug)]
pub(super) struct Answerer {
    service: Arc<Service>,
    by_tonic: RateLimitServiceServer<Service>,
    /// Longest message taken, in bytes.
    max_message: usize,
}

/// How far a call is whose request has been looked at.
pub(super) enum Stage<B> {
    /// There was nothing to wait for.
    Answered(Answer),
    /// It has been read, and has to be decided on.
    Read(Read),
    /// The rest of it has yet to come.
    Reading(Reading<B>),
    /// tonic does all that.
    ByTonic(ByTonic),
}

/// A request, and the span of its call if it is traced.
pub(super) struct Read {
    message: RateLimitRequest,
    span: Option<CallSpan>,
}

/// A request whose body is to be read.
pub(super) struct Reading<B> {
    request: Request<B>,
    shed: Option<Shed>,
}

type ByTonic = BoxFuture<Response<tonic::body::Body>, Infallible>;

impl Answerer {
    pub(super) fn new(service: Arc<Service>, max_message: usize) -> Self {
        let by_tonic = RateLimitServiceServer::from_arc(Arc::clone(&service))
            .max_decoding_message_size(max_message)
            // A response repeats what was asked: it may be as long, and must not be what fails.
            .max_encoding_message_size(usize::MAX);
        Self { service, by_tonic, max_message }
    }

    /// Begins to answer a call; as the policy of `shed` says, if it is one too many.
    pub(super) fn begin<B>(
        &self,
        request: Request<B>,
        shed: Option<Shed>,
        context: &mut Context<'_>,
    ) -> Stage<B>
    where
        B: Body<Data = Bytes, Error = Status> + Send + Unpin + 'static,
    {
        self.read(Reading { request, shed }, context)
    }

    /// Answers a call that has begun.
    pub(super) async fn finish<B>(self: Arc<Self>, stage: Stage<B>) -> Answer
    where
        B: Body<Data = Bytes, Error = Status> + Send + Unpin + 'static,
    {
        let mut stage = stage;
        loop {
            stage = match stage {
                Stage::Answered(answer) => return answer,
                Stage::Read(read) => return self.decide(read).await,
                Stage::ByTonic(answer) => {
                    let Ok(answer) = answer.await;
                    self.count_unless_read(&answer);
                    return Answer::ByTonic(answer);
                }
                Stage::Reading(reading) => {
                    let mut reading = Some(reading);
                    std::future::poll_fn(|context| {
                        // Polled after its end, which nobody does.
                        let Some(now) = reading.take() else { return Poll::Pending };
                        match self.read(now, context) {
                            Stage::Reading(later) => {
                                reading = Some(later);
                                Poll::Pending
                            }
                            stage => Poll::Ready(stage),
                        }
                    })
                    .await
                }
            };
        }
    }

    /// Decides on a request.
    pub(super) async fn decide(self: Arc<Self>, read: Read) -> Answer {
        answer(match read.span {
            None => self.service.answer(&read.message).await,
            Some(span) => Box::pin(self.service.answer_traced(&read.message, span)).await,
        })
    }

    /// Reads a request, and answers it if there is nothing to wait for.
    fn read<B>(&self, mut reading: Reading<B>, context: &mut Context<'_>) -> Stage<B>
    where
        B: Body<Data = Bytes, Error = Status> + Send + Unpin + 'static,
    {
        let Poll::Ready(frame) = Pin::new(reading.request.body_mut()).poll_frame(context) else {
            return Stage::Reading(reading);
        };
        let Reading { request, shed } = reading;
        let data = match &frame {
            Some(Ok(frame)) if request.body().is_end_stream() => frame.data_ref(),
            _ => None,
        };
        let is_encoded = request.headers().contains_key(GRPC_ENCODING);
        let Some(message) = data.filter(|_| !is_encoded).and_then(|data| self.decode(data)) else {
            return Stage::ByTonic(self.leave_to_tonic(request, frame, shed));
        };
        if let Some(Shed(policy)) = shed {
            return Stage::Answered(answer(answer_unasked(&message, policy)));
        }
        if let Some(at_once) = self.service.answer_at_once(&message) {
            return Stage::Answered(answer(at_once));
        }
        let metadata = MetadataMap::from_headers(request.into_parts().0.headers);
        Stage::Read(Read { message, span: self.service.traced(&metadata) })
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

impl Answerer {
    /// Has tonic answer a request, of whose body the first frame has been read.
    fn leave_to_tonic<B>(&self, request: Request<B>, first: First, shed: Option<Shed>) -> ByTonic
    where
        B: Body<Data = Bytes, Error = Status> + Send + Unpin + 'static,
    {
        let mut request = request.map(|rest| Reread { first: Some(first), rest });
        if let Some(shed) = shed {
            request.extensions_mut().insert(shed);
        }
        self.by_tonic.clone().call(request)
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

/// What the service says, as an answer.
fn answer(said: Result<RateLimitResponse, Status>) -> Answer {
    match said.and_then(|response| encode(&response)) {
        Ok(message) => Answer::Message(message),
        Err(status) => Answer::ByTonic(status.into_http()),
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
