//! How the process stops: streams end when draining begins, calls that still run when it ends.

use std::pin::Pin;
use std::time::Duration;

use http::Response;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{Call, DOMAIN, Kind, body, refusal};
use crate::error::Error;

/// Where the process stands; it only ever goes on to a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything is taken.
    Serving,
    /// No new connection, no stream; unary calls go on.
    Draining,
    /// Nothing goes on any more.
    Ending,
}

impl Phase {
    /// Returns once `phase` is at this one or a later. Whoever held the sender and dropped it is gone, and the process with
    /// it: that counts as reached.
    pub async fn reached(self, phase: &mut watch::Receiver<Phase>) {
        drop(phase.wait_for(|now| *now >= self).await);
    }
}

/// The answer of `inner`, unless the process stops first: UNAVAILABLE, reason `DRAINING`.
pub(super) async fn heed<F>(
    inner: Pin<&mut F>,
    phase: &watch::Receiver<Phase>,
    call: &Call,
) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    let last = match call.kind {
        Kind::Health => return inner.await,
        Kind::Unary => Phase::Ending,
        Kind::Stream => Phase::Draining,
    };
    if *phase.borrow() >= last {
        return refused().into_http();
    }
    let response = tokio::select! {
        biased;
        response = inner => response,
        // Cloned only once the call has had to wait.
        () = async { last.reached(&mut phase.clone()).await } => return cut_off(call).into_http(),
    };
    if !call.streams() || http_body::Body::is_end_stream(response.body()) {
        return response;
    }
    let mut phase = phase.clone();
    body::end_when(response, async move {
        last.reached(&mut phase).await;
        refused()
    })
}

/// Nothing was begun, so it may be repeated at once.
fn refused() -> Status {
    let mut details = ErrorDetails::with_error_info("DRAINING", DOMAIN, []);
    details.set_retry_info(Some(Duration::ZERO));
    Status::with_error_details(Code::Unavailable, Error::Draining.to_string(), details)
}

/// What was begun is no longer waited for; no RetryInfo, since it may have been done.
fn cut_off(call: &Call) -> Status {
    if call.streams() {
        return refused();
    }
    refusal(
        Code::Unavailable,
        "DRAINING",
        "the service stopped before the call was answered: what it asked for may or may not have been done; read it again on another connection, or repeat the call with its request_id",
    )
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;
    use tonic::Code;

    use super::*;
    use crate::layers::Stack;
    use crate::layers::support::{
        CHECK, STREAM, TestServer, UNARY, done, verdict, verdict_of_stream,
    };

    fn server(at: Phase) -> (watch::Sender<Phase>, TestServer) {
        let (sender, phase) = watch::channel(at);
        (
            sender,
            TestServer::of(Stack {
                max_call: Duration::from_secs(3600),
                ..Stack::new(phase)
            }),
        )
    }

    #[tokio::test]
    async fn a_unary_call_outlives_draining_and_ends_with_ending() {
        let (phase, mut server) = server(Phase::Serving);
        let call = server.start(UNARY, std::future::pending());
        server.begun().await;
        phase.send_replace(Phase::Draining);
        assert_eq!(
            verdict(&server.call(UNARY, async { done() }).await),
            (Code::Ok, String::new()),
            "a new call while draining"
        );
        assert!(!call.is_finished());
        phase.send_replace(Phase::Ending);
        let response = call.await.expect("no panic");
        assert_eq!(verdict(&response), (Code::Unavailable, "DRAINING".into()));
        let status = Status::from_header_map(response.headers()).expect("a status");
        assert!(status.message().contains("may or may not"));
        assert!(status.get_details_retry_info().is_none());
    }

    #[tokio::test]
    async fn a_new_unary_call_is_not_begun_when_ending_but_health_is_answered() {
        let (_phase, mut server) = server(Phase::Ending);
        let refused = server.call(UNARY, async { panic!("begun") }).await;
        assert_eq!(verdict(&refused), (Code::Unavailable, "DRAINING".into()));
        let status = Status::from_header_map(refused.headers()).expect("a status");
        assert_eq!(
            status
                .get_details_retry_info()
                .expect("details")
                .retry_delay,
            Some(Duration::ZERO)
        );
        assert_eq!(
            verdict(&server.call(CHECK, async { done() }).await),
            (Code::Ok, String::new())
        );
    }

    #[tokio::test]
    async fn a_stream_ends_when_draining_begins_and_none_begins_after() {
        let (phase, mut server) = server(Phase::Serving);
        let open = server
            .call(STREAM, async {
                Response::new(crate::layers::support::endless())
            })
            .await;
        assert_eq!(verdict(&open), (Code::Ok, String::new()));
        phase.send_replace(Phase::Draining);
        assert_eq!(
            verdict_of_stream(open).await,
            (Code::Unavailable, "DRAINING".into())
        );
        assert_eq!(
            verdict(&server.call(STREAM, async { done() }).await),
            (Code::Unavailable, "DRAINING".into())
        );
    }

    #[tokio::test]
    async fn a_dropped_sender_counts_as_ending() {
        let (phase, mut server) = server(Phase::Serving);
        drop(phase);
        assert_eq!(
            verdict(&server.call(UNARY, std::future::pending()).await),
            (Code::Unavailable, "DRAINING".into())
        );
        assert_eq!(
            verdict(&server.call(UNARY, async { done() }).await),
            (Code::Ok, String::new()),
            "what need not wait is answered"
        );
    }
}
