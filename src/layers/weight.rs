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

use super::in_flight::{InFlight, Shed};
use super::{Call, Kind};

/// Of each request so many bytes are not counted, so that usual ones go on while large ones are refused; how many they are is
/// bounded by the number of calls.
const FREE: usize = 4 * 1024;

/// What the requests under way weigh, over all connections and cores.
#[derive(Clone)]
pub(super) struct Weights(Arc<Scale>);

struct Scale {
    held: AtomicUsize,
    most: usize,
}

impl Weights {
    /// At most so many bytes.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Scale {
            held: AtomicUsize::new(0),
            most,
        }))
    }
}

/// What one request weighs, until it is dropped.
pub struct Weight {
    scale: Weights,
    received: AtomicUsize,
    counted: AtomicUsize,
    refused: AtomicBool,
}

impl Weight {
    fn add(&self, bytes: usize) -> Result<(), Shed> {
        let received = self.received.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let more = received.saturating_sub(FREE).min(bytes);
        if more == 0 {
            return Ok(());
        }
        let scale = &self.scale.0;
        if scale.held.fetch_add(more, Ordering::Relaxed) + more > scale.most {
            scale.held.fetch_sub(more, Ordering::Relaxed);
            self.refused.store(true, Ordering::Relaxed);
            return Err(Shed);
        }
        self.counted.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.scale
            .0
            .held
            .fetch_sub(self.counted.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Has the body of the request weighed as it comes in. What is answered is to be kept until the call has ended.
pub(super) fn weigh(
    request: &mut Request<Body>,
    call: &Call,
    in_flight: &InFlight,
) -> Option<Arc<Weight>> {
    // What needs no key takes messages of 4 KB.
    if call.kind != Kind::Unary || request.body().is_end_stream() {
        return None;
    }
    let inner = std::mem::take(request.body_mut());
    let (body, weight) = weighed(inner, in_flight);
    *request.body_mut() = body;
    Some(weight)
}

/// `inner`, weighed as it comes in; it counts until what is answered beside it is dropped. Fails as OVERLOADED where it is too much.
pub fn weighed(inner: Body, in_flight: &InFlight) -> (Body, Arc<Weight>) {
    let (received, counted, refused) = Default::default();
    let weight = Arc::new(Weight {
        scale: in_flight.weights().clone(),
        received,
        counted,
        refused,
    });
    (
        Body::new(Weighed {
            inner,
            weight: weight.clone(),
        }),
        weight,
    )
}

/// Marks the answer to a request that was too much, as one that found no place.
pub(super) fn mark(
    response: &mut Response<Body>,
    weight: Option<Arc<Weight>>,
    in_flight: &InFlight,
) {
    if weight.is_some_and(|weight| weight.refused.load(Ordering::Relaxed)) {
        response.extensions_mut().insert(Shed);
        in_flight.tell(Kind::Unary);
    }
}

struct Weighed {
    inner: Body,
    weight: Arc<Weight>,
}

impl HttpBody for Weighed {
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

    fn weight(scale: &Weights) -> Weight {
        let (received, counted, refused) = Default::default();
        Weight {
            scale: scale.clone(),
            received,
            counted,
            refused,
        }
    }

    #[test]
    fn large_requests_are_refused_together_and_small_ones_never() {
        let scale = Weights::new(10_000);
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
