//! Whether a request was sent. Without an answer, this decides between the outcomes "not taken" and
//! "unknown".

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

use super::DeliveryOutcome;

/// Set once the transport polls the body of a request. Until then there was no connection, or it
/// accepted no request, so the consumer cannot have the dispatch.
#[derive(Debug, Clone, Default)]
pub(super) struct SendState(Arc<AtomicBool>);

impl SendState {
    /// The outcome of a request without an answer.
    pub(super) fn outcome(&self, why: String) -> DeliveryOutcome {
        match self.0.load(Ordering::Relaxed) {
            true => DeliveryOutcome::Unknown { why },
            false => DeliveryOutcome::NotTaken {
                why,
                retry_after: None,
            },
        }
    }
}

pin_project_lite::pin_project! {
    /// A body that sets its [`SendState`] when it is polled.
    pub struct ObservedBody<B> {
        #[pin]
        body: B,
        sent: SendState,
    }
}

impl<B> ObservedBody<B> {
    pub(super) fn new(body: B, sent: SendState) -> Self {
        Self { body, sent }
    }
}

impl<B: Body> Body for ObservedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        this.sent.0.store(true, Ordering::Relaxed);
        this.body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
