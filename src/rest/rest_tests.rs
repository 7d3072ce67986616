//! The gateway in front of a service whose responses the tests choose.

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tower::service_fn;

use super::*;

/// The response to a `GET` when the RPC responds with `rpc_response`.
async fn response_to_get(
    rpc_response: impl Fn() -> http::Response<Body> + Clone + Send + Sync + 'static,
) -> (u16, http::HeaderMap, Value) {
    let server = service_fn(move |_| {
        let response = rpc_response();
        async { Ok(response) }
    });
    let mut rest = Rest::new(server, BodyLimit::new(1));
    let request = http::Request::get("/canvas/trigger/schedule")
        .body(Body::empty())
        .expect("a request");
    let Ok(response) = rest.call(request).await;
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    assert_eq!(parts.headers["content-type"], "application/json");
    (
        parts.status.as_u16(),
        parts.headers,
        serde_json::from_slice(&body).expect("JSON"),
    )
}

fn refused(code: Code, reason: &str, details: impl FnOnce(&mut ErrorDetails)) -> Status {
    let mut all = ErrorDetails::with_error_info(reason, "canvas-scheduler", []);
    details(&mut all);
    Status::with_error_details(code, "the reason", all)
}

#[tokio::test]
async fn a_panic_is_an_internal_error_without_its_text() {
    let (status, _, body) = response_to_get(|| panic!("secret")).await;
    assert_eq!(
        (status, body),
        (500, json!({ "message": "internal error" }))
    );
}

#[tokio::test]
async fn a_503_has_a_retry_after_header() {
    for (retry_ms, seconds) in [
        (None, "1"),
        (Some(0), "1"),
        (Some(100), "1"),
        (Some(7_000), "7"),
        (Some(7_001), "8"),
    ] {
        let status = refused(Code::Unavailable, "BUSY", |details| {
            if let Some(millis) = retry_ms {
                details.set_retry_info(Some(std::time::Duration::from_millis(millis)));
            }
        });
        let (status, headers, body) = response_to_get(move || status.clone().into_http()).await;
        assert_eq!((status, body), (503, json!({ "message": "the reason" })));
        assert_eq!(headers["retry-after"], seconds, "{retry_ms:?}");
    }
}

#[tokio::test]
async fn an_error_maps_by_code_and_reason() {
    for (code, reason, status, body) in [
        (
            Code::DeadlineExceeded,
            "DEADLINE_EXCEEDED",
            504,
            json!({ "message": "the reason" }),
        ),
        (
            Code::ResourceExhausted,
            "RATE_LIMITED",
            429,
            json!({ "message": "the reason" }),
        ),
        (
            Code::ResourceExhausted,
            "MESSAGE_TOO_LARGE",
            413,
            json!({ "message": "the reason" }),
        ),
        (
            Code::Unknown,
            "OUTCOME_UNKNOWN",
            500,
            json!({ "message": "the reason" }),
        ),
        (
            Code::FailedPrecondition,
            "SCHEDULE_ID_NEEDED",
            409,
            json!({ "message": "the reason" }),
        ),
        (
            Code::FailedPrecondition,
            "SCHEDULE_CANCELLED",
            409,
            json!({ "message": "the reason", "applied": "none" }),
        ),
        (
            Code::FailedPrecondition,
            "NOTHING_LEFT_TO_CHANGE",
            409,
            json!({ "message": "the reason", "applied": "none" }),
        ),
    ] {
        let refusal = refused(code, reason, |_| {});
        let (actual_status, headers, actual_body) =
            response_to_get(move || refusal.clone().into_http()).await;
        assert_eq!((actual_status, actual_body), (status, body), "{reason}");
        assert!(
            !headers.contains_key("www-authenticate") && !headers.contains_key("grpc-status"),
            "{headers:?}"
        );
    }
}

#[tokio::test]
async fn dropped_violations_are_counted() {
    let refusal = refused(Code::InvalidArgument, "INVALID_FIELDS", |details| {
        details.set_error_info(
            "INVALID_FIELDS",
            "canvas-scheduler",
            [("violations".to_owned(), "5".to_owned())],
        );
        details
            .add_bad_request_violation("a", "is wrong")
            .add_bad_request_violation("b", "is too");
    });
    let (status, _, body) = response_to_get(move || refusal.clone().into_http()).await;
    let message = "a: is wrong; b: is too; and 3 more";
    assert_eq!(
        (status, body),
        (
            400,
            json!({ "message": message, "errors": ["a: is wrong", "b: is too"] })
        )
    );
}
