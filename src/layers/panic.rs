//! A handler that panics fails only its own call. The caller gets the request id, the log the text
//! of the panic.

use std::pin::Pin;

use http::Response;
use tonic::Status;
use tonic::body::Body;

use crate::error::Error;
use crate::error::panic::caught;

/// The response of `inner`, or INTERNAL when it panics.
pub(super) async fn catch<F>(inner: Pin<&mut F>) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    caught(inner).await.unwrap_or_else(|text| {
        let error = Error::internal(format_args!("the handler panicked: {text}"));
        Status::from(error).into_http()
    })
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::StatusExt;

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
