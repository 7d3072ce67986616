//! How many bytes of requests the process may hold. A request counts from the moment it comes in until its call has ended, since
//! what is made of it takes as long to go.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::concurrency_limit::{ConcurrencyLimit, Overloaded};
use super::{Call, Kind};

/// Of each request so many bytes are not counted, so that usual ones go on while large ones are refused; how many they are is
/// bounded by the number of calls.
const FREE: usize = 4 * 1024;

/// What the requests under way weigh, over all connections and cores.
#[derive(Clone)]
pub(super) struct BodyBudget(Arc<BodyBudgetState>);

struct BodyBudgetState {
    held: AtomicUsize,
    most: usize,
}

impl BodyBudget {
    /// At most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(BodyBudgetState {
            held: AtomicUsize::new(0),
            most,
        }))
    }
}

/// What one request weighs, until it is dropped.
pub struct RequestBytes {
    scale: BodyBudget,
    received: AtomicUsize,
    counted: AtomicUsize,
    refused: AtomicBool,
}

impl RequestBytes {
    fn add(&self, bytes: usize) -> Result<(), Overloaded> {
        let received = self.received.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let more = received.saturating_sub(FREE).min(bytes);
        if more == 0 {
            return Ok(());
        }
        let scale = &self.scale.0;
        if scale.held.fetch_add(more, Ordering::Relaxed) + more > scale.most {
            scale.held.fetch_sub(more, Ordering::Relaxed);
            self.refused.store(true, Ordering::Relaxed);
            return Err(Overloaded);
        }
        self.counted.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for RequestBytes {
    fn drop(&mut self) {
        self.scale
            .0
            .held
            .fetch_sub(self.counted.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Has the body of the request weighed as it comes in. What is answered is to be kept until the call has ended.
pub(super) fn count_body(
    request: &mut Request<Body>,
    call: &Call,
    in_flight: &ConcurrencyLimit,
) -> Option<Arc<RequestBytes>> {
    // What needs no key takes messages of 4 KB.
    if call.kind != Kind::Unary || request.body().is_end_stream() {
        return None;
    }
    let inner = std::mem::take(request.body_mut());
    let (body, weight) = limit_body(inner, in_flight);
    *request.body_mut() = body;
    Some(weight)
}

/// `inner`, weighed as it comes in; it counts until what is answered beside it is dropped. Fails as OVERLOADED where it is too much.
pub fn limit_body(inner: Body, in_flight: &ConcurrencyLimit) -> (Body, Arc<RequestBytes>) {
    let (received, counted, refused) = Default::default();
    let weight = Arc::new(RequestBytes {
        scale: in_flight.weights().clone(),
        received,
        counted,
        refused,
    });
    (
        Body::new(CountedBody {
            inner,
            weight: weight.clone(),
        }),
        weight,
    )
}

/// Marks the answer to a request that was too much, as one that found no place.
pub(super) fn mark_overloaded(
    response: &mut Response<Body>,
    weight: Option<Arc<RequestBytes>>,
    in_flight: &ConcurrencyLimit,
) {
    if weight.is_some_and(|weight| weight.refused.load(Ordering::Relaxed)) {
        response.extensions_mut().insert(Overloaded);
        in_flight.tell(Kind::Unary);
    }
}

struct CountedBody {
    inner: Body,
    weight: Arc<RequestBytes>,
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
        match self.weight.add(bytes) {
            Ok(()) => Poll::Ready(frame),
            Err(shed) => Poll::Ready(Some(Err(shed.status()))),
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

    fn weight(scale: &BodyBudget) -> RequestBytes {
        let (received, counted, refused) = Default::default();
        RequestBytes {
            scale: scale.clone(),
            received,
            counted,
            refused,
        }
    }

    #[test]
    fn large_requests_are_refused_together_and_small_ones_never() {
        let scale = BodyBudget::new(10_000);
        let (one, other) = (weight(&scale), weight(&scale));
        assert!(one.add(FREE).is_ok() && one.add(6_000).is_ok() && other.add(FREE + 4_000).is_ok());
        assert!(
            other.add(1).is_err() && weight(&scale).add(FREE + 1).is_err(),
            "10,000 bytes are held"
        );
        assert!((0..100).all(|_| weight(&scale).add(FREE).is_ok()));
        drop(one);
        assert_eq!(
            scale.0.held.load(Ordering::Relaxed),
            4_000,
            "what was refused was not counted"
        );
        assert!(weight(&scale).add(FREE + 6_000).is_ok());
        drop(other);
        assert_eq!(scale.0.held.load(Ordering::Relaxed), 0);
    }
}
