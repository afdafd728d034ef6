//! Bodies that end: a request's, which must come in time, and a response's that would go on for ever.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::Course;

/// A request's body that is there within a time from when it was first waited for.
///
/// Almost every body is there when it is asked for: the timer is made only when one is not.
pub(super) struct Timely<B> {
    body: B,
    within: Duration,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl<B> Timely<B> {
    pub(super) fn new(body: B, within: Duration) -> Self {
        Self { body, within, timer: None }
    }
}

impl<B: Body<Data = Bytes, Error: std::error::Error + Send + Sync + 'static> + Unpin> Body for Timely<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(
                frame.map(|frame| frame.map_err(|error| Status::from_error(Box::new(error)))),
            );
        }
        let within = self.within;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        ready!(timer.as_mut().poll(context));
        let late = format!("the request was not there within {}", humantime::format_duration(within));
        Poll::Ready(Some(Err(Status::deadline_exceeded(late))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body that ends when the process closes, if it has not by then: somebody who watches health would keep
/// his connection open for as long as he watches.
pub(super) struct UntilClosing<B> {
    body: Option<B>,
    closing: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl<B> UntilClosing<B> {
    pub(super) fn new(body: B, mut course: Course) -> Self {
        Self { body: Some(body), closing: Box::pin(async move { course.closing().await }) }
    }
}

impl<B: Body + Unpin> Body for UntilClosing<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        ready!(self.closing.as_mut().poll(context));
        self.body = None;
        let mut trailers = HeaderMap::new();
        // Its text is one that a header can hold.
        _ = Status::unavailable("weir is stopping").add_header(&mut trailers);
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}
