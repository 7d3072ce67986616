//! Whether a request has left: what tells "not taken" from "unknown" when no answer came.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

use super::Answer;

/// Set once the transport asks for the first byte of a request's body. Until then there was no connection, or it took no
/// request: the consumer cannot have the dispatch, whatever went wrong.
#[derive(Debug, Clone, Default)]
pub(super) struct Sent(Arc<AtomicBool>);

impl Sent {
    /// The answer when none came over the wire.
    pub(super) fn unanswered(&self, why: String) -> Answer {
        match self.0.load(Ordering::Relaxed) {
            true => Answer::Unknown { why },
            false => Answer::NotTaken {
                why,
                retry_after: None,
            },
        }
    }
}

pin_project_lite::pin_project! {
    /// A body that tells when it is asked for.
    pub struct Watched<B> {
        #[pin]
        body: B,
        sent: Sent,
    }
}

impl<B> Watched<B> {
    /// Tells `sent`.
    pub(super) fn new(body: B, sent: Sent) -> Self {
        Self { body, sent }
    }
}

impl<B: Body> Body for Watched<B> {
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
