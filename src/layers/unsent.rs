//! Responses on their way out. A client that does not read its responses must not hold their memory
//! for ever, so each connection counts those that are not sent yet.

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

/// HTTP/2 takes a chunk whole once the client accepts its first byte. Chunks of this size bound the
/// bytes of a response that wait inside the HTTP library, where they cannot be counted.
const MAX_CHUNK: usize = 16 * 1024;
/// With more unsent responses in the process, connections are checked more often.
const MANY: usize = 500;

/// Counts the unsent responses of all connections of a server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ProcessUnsent(Arc<AtomicUsize>);

impl ProcessUnsent {
    /// The counter of a new connection.
    pub fn connection(&self) -> Arc<UnsentResponses> {
        Arc::new(UnsentResponses {
            process: self.clone(),
            checks: AtomicUsize::new(0),
            begun: Default::default(),
        })
    }
}

/// The responses of one connection that are not sent yet, by whether they began before or after the
/// last check. In the extensions of each request that comes over a network.
#[derive(Debug)]
pub struct UnsentResponses {
    process: ProcessUnsent,
    checks: AtomicUsize,
    begun: [AtomicUsize; 2],
}

impl UnsentResponses {
    fn begin(self: &Arc<Self>) -> UnsentResponse {
        self.process.0.fetch_add(1, Ordering::Relaxed);
        let period = self.checks.load(Ordering::Relaxed) % 2;
        self.begun[period].fetch_add(1, Ordering::Relaxed);
        UnsentResponse {
            connection: self.clone(),
            period,
        }
    }

    /// Whether the process has many unsent responses.
    pub fn many_in_process(&self) -> bool {
        self.process.0.load(Ordering::Relaxed) > MANY
    }

    /// Checks the connection: whether a response that began before the last check is still not
    /// sent.
    pub fn stalled(&self) -> bool {
        let checks = self.checks.load(Ordering::Relaxed);
        if self.begun[(checks + 1) % 2].load(Ordering::Relaxed) > 0 {
            return true;
        }
        self.checks.store(checks + 1, Ordering::Relaxed);
        false
    }
}

/// One response, counted until it is dropped.
struct UnsentResponse {
    connection: Arc<UnsentResponses>,
    period: usize,
}

impl Drop for UnsentResponse {
    fn drop(&mut self) {
        self.connection.process.0.fetch_sub(1, Ordering::Relaxed);
        self.connection.begun[self.period].fetch_sub(1, Ordering::Relaxed);
    }
}

/// `response` in chunks. Until its body is dropped it keeps its permit and counts as unsent.
pub(super) fn track(
    response: Response<Body>,
    permit: Option<CallPermit>,
    unsent: Option<&Arc<UnsentResponses>>,
) -> Response<Body> {
    // A response without a body has nothing left to send.
    if HttpBody::is_end_stream(response.body()) {
        return response;
    }
    let begun = unsent.map(UnsentResponses::begin);
    response.map(|inner| {
        Body::new(ChunkedBody {
            inner,
            rest: Bytes::new(),
            _until_sent: (permit, begun),
        })
    })
}

/// A response that REST has made of a call's: in chunks, and unsent until its body is dropped.
pub fn track_response(
    response: Response<Body>,
    unsent: Option<&Arc<UnsentResponses>>,
) -> Response<Body> {
    track(response, None, unsent)
}

struct ChunkedBody {
    inner: Body,
    /// The rest of the last frame of `inner`.
    rest: Bytes,
    _until_sent: (Option<CallPermit>, Option<UnsentResponse>),
}

impl HttpBody for ChunkedBody {
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
        let size = self.rest.len().min(MAX_CHUNK);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(size)))))
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
    async fn a_response_is_sent_whole_in_chunks() {
        let sent: Vec<u8> = (0..MAX_CHUNK * 2 + 7)
            .map(|n| u8::try_from(n % 251).expect("a byte"))
            .collect();
        let whole = Full::new(Bytes::from(sent.clone())).map_err(|never| match never {});
        let mut body = track(
            Response::new(Body::new(whole)),
            None,
            Some(&ProcessUnsent::default().connection()),
        )
        .into_body();
        let (mut received, mut chunks) = (Vec::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let data = frame.expect("no error").into_data().expect("data");
            chunks.push(data.len());
            received.extend(data);
        }
        assert_eq!((received, chunks), (sent, vec![MAX_CHUNK, MAX_CHUNK, 7]));
    }

    #[test]
    fn a_response_that_outlives_two_checks_stalls_the_connection() {
        let process = ProcessUnsent::default();
        let unsent = process.connection();
        let endless = || Response::new(crate::layers::support::endless());
        let quick = track(endless(), None, Some(&unsent));
        assert!(!unsent.stalled(), "it began after the last check");
        drop(quick);
        let slow = track(endless(), None, Some(&unsent));
        assert!(!unsent.stalled());
        let other = track(endless(), None, Some(&unsent));
        assert!(unsent.stalled(), "it began before the last check");
        drop(slow);
        assert!(!unsent.stalled());
        assert!(unsent.stalled(), "and so did the other by now");
        assert_eq!(process.0.load(Ordering::Relaxed), 1);
        drop(other);
        assert!(!unsent.stalled());
        assert_eq!(process.0.load(Ordering::Relaxed), 0);
    }
}
