//! A handler that panics fails its own call, and nobody else's. The caller learns the request id, the log the text.

use std::pin::Pin;
use std::sync::Arc;

use http::Response;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{DOMAIN, trace};
use crate::error::panic::caught;

/// The answer of `inner`, or INTERNAL when it panics. The text of the panic is the source of the status, which
/// [`trace`] logs with the call and which never leaves the process.
pub(super) async fn catch<F>(inner: Pin<&mut F>) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    caught(inner)
        .await
        .unwrap_or_else(|text| panicked(text).into_http())
}

/// Why a call failed, for the log.
#[derive(Debug, thiserror::Error)]
#[error("the handler panicked: {0}")]
struct Panicked(String);

fn panicked(text: String) -> Status {
    let id = trace::current_request_id().unwrap_or_default();
    let message = format!("internal error; request id {id}");
    let mut details = ErrorDetails::with_error_info("INTERNAL", DOMAIN, []);
    details.set_request_info(id, "");
    let mut status = Status::with_error_details(Code::Internal, message, details);
    status.set_source(Arc::new(Panicked(text)));
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::support::{TestServer, UNARY, done, verdict};

    #[tokio::test]
    async fn a_panic_answers_internal_with_the_request_id_and_the_next_call_goes_on() {
        let mut server = TestServer::default();
        let calls: [fn() -> Response<Body>; 2] =
            [|| panic!("secret"), || panic!("{} {}", "se", "cret")];
        for panics in calls {
            let response = server.call(UNARY, async move { panics() }).await;
            assert_eq!(verdict(&response), (Code::Internal, "INTERNAL".into()));
            let id = response.headers()["x-request-id"]
                .to_str()
                .expect("ASCII")
                .to_owned();
            let status = Status::from_header_map(response.headers()).expect("a status");
            assert_eq!(status.message(), format!("internal error; request id {id}"));
            assert_eq!(
                status
                    .get_details_request_info()
                    .expect("details")
                    .request_id,
                id
            );
            assert!(
                !format!("{:?}", response.headers()).contains("cret"),
                "the text stays inside"
            );
        }
        assert_eq!(
            verdict(&server.call(UNARY, async { done() }).await),
            (Code::Ok, String::new())
        );
    }

    #[tokio::test]
    async fn a_panic_after_waiting_is_caught_too() {
        let response = TestServer::default()
            .call(UNARY, async {
                tokio::task::yield_now().await;
                std::panic::panic_any(7)
            })
            .await;
        assert_eq!(verdict(&response), (Code::Internal, "INTERNAL".into()));
    }
}
