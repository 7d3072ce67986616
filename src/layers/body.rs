//! Bodies around the answers of streaming methods. Unary answers pass as they are.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Status;
use tonic::body::Body;

/// Ends the body of `response` with the status that `end` yields, if it does so before the end of
/// the body.
pub(super) fn end_when(
    response: Response<Body>,
    end: impl Future<Output = Status> + Send + 'static,
) -> Response<Body> {
    response.map(|inner| {
        Body::new(EndWhen {
            inner: Some(inner),
            end,
        })
    })
}

/// Shows the trailers of the body of `response` to `see`, which may change them.
pub(super) fn see_trailers(
    response: Response<Body>,
    see: impl FnMut(&mut HeaderMap) + Send + Unpin + 'static,
) -> Response<Body> {
    response.map(|inner| Body::new(SeeTrailers { inner, see }))
}

pin_project! {
    struct EndWhen<F> {
        // None once the body has ended, so that its source is dropped immediately.
        inner: Option<Body>,
        #[pin]
        end: F,
    }
}

impl<F: Future<Output = Status>> HttpBody for EndWhen<F> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        let Some(inner) = this.inner else {
            return Poll::Ready(None);
        };
        // First, so that a body that always has more to say ends too.
        if let Poll::Ready(status) = this.end.poll(cx) {
            *this.inner = None;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))));
        }
        let frame = Pin::new(inner).poll_frame(cx);
        if let Poll::Ready(last) = &frame
            && last
                .as_ref()
                .is_none_or(|frame| frame.as_ref().map_or(true, Frame::is_trailers))
        {
            *this.inner = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

struct SeeTrailers<F> {
    inner: Body,
    see: F,
}

impl<F: FnMut(&mut HeaderMap) + Unpin> HttpBody for SeeTrailers<F> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            (self.see)(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Its text cannot stand in a header; the code alone can.
        trailers.insert(Status::GRPC_STATUS, HeaderValue::from(status.code() as i32));
    }
    trailers
}
