//! How the process stops: streams end when draining begins, unary calls that still run when
//! draining ends.

use std::pin::Pin;

use http::Response;
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;

use super::{Call, body};
use crate::error::Error;
use crate::methods::MethodKind;
use crate::status::Refusal;

/// The phase of the process; it never goes back to an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything is accepted.
    Serving,
    /// New connections and streams are refused; unary calls run on.
    Draining,
    /// Every call ends.
    Ending,
}

impl Phase {
    /// Waits until `phase` is this one or a later one. A dropped sender counts as that: the process
    /// is gone with it.
    pub async fn reached(self, phase: &mut watch::Receiver<Phase>) {
        drop(phase.wait_for(|now| *now >= self).await);
    }
}

/// The response of `inner`, or UNAVAILABLE with reason `DRAINING` when the process stops first.
pub(super) async fn enforce<F>(
    inner: Pin<&mut F>,
    phase: &watch::Receiver<Phase>,
    call: &Call,
) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    let last = match call.kind {
        MethodKind::Health => return inner.await,
        MethodKind::Unary => Phase::Ending,
        MethodKind::Stream => Phase::Draining,
    };
    if *phase.borrow() >= last {
        return Status::from(Error::Draining).into_http();
    }
    let response = tokio::select! {
        biased;
        response = inner => response,
        // Cloned only once the call has had to wait.
        () = async { last.reached(&mut phase.clone()).await } => return ended(call).into_http(),
    };
    if !call.streams() || http_body::Body::is_end_stream(response.body()) {
        return response;
    }
    let mut phase = phase.clone();
    body::end_when(response, async move {
        last.reached(&mut phase).await;
        Status::from(Error::Draining)
    })
}

/// The status of a call that had begun. A stream can be opened again immediately; a unary call may
/// have had its effect.
fn ended(call: &Call) -> Status {
    if call.streams() {
        Error::Draining.into()
    } else {
        Refusal::Stopped.into()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::watch;
    use tonic::Code;
    use tonic_types::StatusExt;

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
