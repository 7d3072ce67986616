//! The bytes of requests that the process may hold. A request counts from its arrival until its
//! call has ended, since what is made of it lives as long.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::Call;
use super::overload::{OverloadLog, Overloaded};
use crate::methods::MethodKind;

/// The bytes of each request that are not counted, so that small requests are admitted while
/// large ones are refused; the number of calls bounds their sum.
const FREE_BYTES: usize = 4 * 1024;

/// Counts the bytes of the requests in flight, over all connections and worker threads. Cheap to
/// clone.
#[derive(Clone)]
pub struct BodyLimit(Arc<BodyLimitState>);

struct BodyLimitState {
    bytes: AtomicUsize,
    max_bytes: usize,
    log: OverloadLog,
}

impl BodyLimit {
    /// A limit of `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self(Arc::new(BodyLimitState {
            bytes: AtomicUsize::new(0),
            max_bytes,
            log: OverloadLog::new(),
        }))
    }

    /// `inner` with its bytes counted as they arrive, until the [`RequestBytes`] are dropped.
    /// Reading it fails with OVERLOADED when the limit is exceeded.
    pub fn count(&self, inner: Body) -> (Body, Arc<RequestBytes>) {
        let bytes = Arc::new(RequestBytes::new(self));
        let body = Body::new(CountedBody {
            inner,
            bytes: bytes.clone(),
        });
        (body, bytes)
    }
}

/// The counted bytes of one request, given back when dropped.
pub struct RequestBytes {
    limit: BodyLimit,
    received: AtomicUsize,
    counted: AtomicUsize,
    refused: AtomicBool,
}

impl RequestBytes {
    fn new(limit: &BodyLimit) -> Self {
        Self {
            limit: limit.clone(),
            received: AtomicUsize::new(0),
            counted: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
        }
    }

    fn add(&self, bytes: usize) -> Result<(), Overloaded> {
        let received = self.received.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let more = received.saturating_sub(FREE_BYTES).min(bytes);
        if more == 0 {
            return Ok(());
        }
        let limit = &self.limit.0;
        if limit.bytes.fetch_add(more, Ordering::Relaxed) + more > limit.max_bytes {
            limit.bytes.fetch_sub(more, Ordering::Relaxed);
            self.refused.store(true, Ordering::Relaxed);
            return Err(Overloaded);
        }
        self.counted.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for RequestBytes {
    fn drop(&mut self) {
        let counted = self.counted.load(Ordering::Relaxed);
        self.limit.0.bytes.fetch_sub(counted, Ordering::Relaxed);
    }
}

/// Counts the body of a unary request as it arrives. Keep the result until the call has ended.
pub(super) fn count_request(
    request: &mut Request<Body>,
    call: &Call,
    limit: &BodyLimit,
) -> Option<Arc<RequestBytes>> {
    // The messages of methods without a key are at most 4 KB long.
    if call.kind != MethodKind::Unary || request.body().is_end_stream() {
        return None;
    }
    let (body, bytes) = limit.count(std::mem::take(request.body_mut()));
    *request.body_mut() = body;
    Some(bytes)
}

/// Marks the response to a request that exceeded the limit.
pub(super) fn mark_overloaded(
    response: &mut Response<Body>,
    bytes: Option<Arc<RequestBytes>>,
    limit: &BodyLimit,
) {
    if bytes.is_some_and(|bytes| bytes.refused.load(Ordering::Relaxed)) {
        response.extensions_mut().insert(Overloaded);
        if limit.0.log.is_due() {
            let max_bytes = limit.0.max_bytes;
            tracing::warn!(
                max_bytes,
                "the requests in flight hold too many bytes; refusing more"
            );
        }
    }
}

struct CountedBody {
    inner: Body,
    bytes: Arc<RequestBytes>,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        let bytes = frame
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.data_ref())
            .map_or(0, Bytes::len);
        match self.bytes.add(bytes) {
            Ok(()) => Poll::Ready(frame),
            Err(overloaded) => Poll::Ready(Some(Err(overloaded.status()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_requests_are_refused_together_and_small_ones_never() {
        let limit = BodyLimit::new(10_000);
        let request = || RequestBytes::new(&limit);
        let (one, other) = (request(), request());
        assert!(one.add(FREE_BYTES).is_ok() && one.add(6_000).is_ok());
        assert!(other.add(FREE_BYTES + 4_000).is_ok());
        assert!(
            other.add(1).is_err() && request().add(FREE_BYTES + 1).is_err(),
            "10,000 bytes are counted"
        );
        assert!((0..100).all(|_| request().add(FREE_BYTES).is_ok()));
        drop(one);
        assert_eq!(
            limit.0.bytes.load(Ordering::Relaxed),
            4_000,
            "refused bytes are not counted"
        );
        assert!(request().add(FREE_BYTES + 6_000).is_ok());
        drop(other);
        assert_eq!(limit.0.bytes.load(Ordering::Relaxed), 0);
    }
}
