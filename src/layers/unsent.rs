//! Answers on their way out. An answer that its caller does not take is not held for ever: the connection learns of it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::concurrency_limit::CallPermit;

/// HTTP/2 takes a piece whole once the caller has room for its first byte. So answers go out in pieces of this size, and no more
/// than one of each is held where we cannot see it.
const PIECE: usize = 16 * 1024;

/// The answers of one connection that are not sent yet, by whether they were begun before or after the last look. In the
/// extensions of each request that comes over a network.
#[derive(Debug, Default)]
pub struct UnsentResponses {
    looks: AtomicUsize,
    begun: [AtomicUsize; 2],
}

/// Those of all connections.
static ALL: AtomicUsize = AtomicUsize::new(0);
/// With more, connections are looked at more often: answers that are not taken are memory that is not free.
const MANY: usize = 500;

impl UnsentResponses {
    /// Whether the process holds many answers.
    pub fn many() -> bool {
        ALL.load(Ordering::Relaxed) > MANY
    }

    fn begin(self: &Arc<Self>) -> UnsentResponse {
        ALL.fetch_add(1, Ordering::Relaxed);
        let when = self.looks.load(Ordering::Relaxed) % 2;
        self.begun[when].fetch_add(1, Ordering::Relaxed);
        UnsentResponse {
            unsent: self.clone(),
            when,
        }
    }

    /// Looks again: whether an answer that was begun before the last look is still not sent.
    pub fn stalled(&self) -> bool {
        let looks = self.looks.load(Ordering::Relaxed);
        if self.begun[(looks + 1) % 2].load(Ordering::Relaxed) > 0 {
            return true;
        }
        self.looks.store(looks + 1, Ordering::Relaxed);
        false
    }
}

/// One of them, until it is dropped.
struct UnsentResponse {
    unsent: Arc<UnsentResponses>,
    when: usize,
}

impl Drop for UnsentResponse {
    fn drop(&mut self) {
        ALL.fetch_sub(1, Ordering::Relaxed);
        self.unsent.begun[self.when].fetch_sub(1, Ordering::Relaxed);
    }
}

/// `response` in pieces, which keeps its place if it has one, and counts as unsent, until its body is dropped.
pub(super) fn track(
    response: Response<Body>,
    place: Option<CallPermit>,
    unsent: Option<&Arc<UnsentResponses>>,
) -> Response<Body> {
    // Of an answer without a body nothing is left to send.
    if HttpBody::is_end_stream(response.body()) {
        return response;
    }
    let begun = unsent.map(UnsentResponses::begin);
    response.map(|inner| {
        Body::new(TrackedBody {
            inner,
            rest: Bytes::new(),
            _kept: (place, begun),
        })
    })
}

/// The answer of a face that has made it of a call's: in pieces, and unsent until its body is dropped.
pub fn track_response(
    response: Response<Body>,
    unsent: Option<&Arc<UnsentResponses>>,
) -> Response<Body> {
    track(response, None, unsent)
}

struct TrackedBody {
    inner: Body,
    /// Of the last piece of `inner`.
    rest: Bytes,
    _kept: (Option<CallPermit>, Option<UnsentResponse>),
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn an_answer_goes_out_in_pieces_and_whole() {
        let sent: Vec<u8> = (0..PIECE * 2 + 7)
            .map(|n| u8::try_from(n % 251).expect("a byte"))
            .collect();
        let whole = Full::new(Bytes::from(sent.clone())).map_err(|never| match never {});
        let mut body =
            track(Response::new(Body::new(whole)), None, Some(&Arc::default())).into_body();
        let (mut received, mut pieces) = (Vec::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let data = frame.expect("no fault").into_data().expect("data");
            pieces.push(data.len());
            received.extend(data);
        }
        assert_eq!((received, pieces), (sent, vec![PIECE, PIECE, 7]));
    }

    #[test]
    fn what_is_not_sent_between_two_looks_shows_at_the_second() {
        let unsent = Arc::new(UnsentResponses::default());
        let endless = || Response::new(crate::layers::support::endless());
        let quick = track(endless(), None, Some(&unsent));
        assert!(!unsent.stalled(), "it was begun just now");
        drop(quick);
        let slow = track(endless(), None, Some(&unsent));
        assert!(!unsent.stalled());
        let other = track(endless(), None, Some(&unsent));
        assert!(unsent.stalled(), "it is older than the look before");
        drop(slow);
        assert!(!unsent.stalled());
        assert!(unsent.stalled(), "and so is the other by now");
        drop(other);
        assert!(!unsent.stalled());
    }
}
