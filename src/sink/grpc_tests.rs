use tonic_types::ErrorDetails;

use super::*;

#[test]
fn each_status_from_the_wire_has_its_outcome() {
    let cases = [
        (Code::Ok, "delivered"),
        (Code::Cancelled, "unknown"),
        (Code::Unknown, "unknown"),
        (Code::InvalidArgument, "rejected"),
        (Code::DeadlineExceeded, "unknown"),
        (Code::NotFound, "rejected"),
        (Code::AlreadyExists, "rejected"),
        (Code::PermissionDenied, "rejected"),
        (Code::ResourceExhausted, "not taken"),
        (Code::FailedPrecondition, "rejected"),
        (Code::Aborted, "unknown"),
        (Code::OutOfRange, "rejected"),
        (Code::Unimplemented, "rejected"),
        (Code::Internal, "unknown"),
        (Code::Unavailable, "not taken"),
        (Code::DataLoss, "unknown"),
        (Code::Unauthenticated, "rejected"),
    ];
    for (code, expected) in cases {
        let found = match outcome(
            &Status::new(code, "user-1 is unknown"),
            &SendState::default(),
        ) {
            DeliveryOutcome::Delivered => "delivered",
            DeliveryOutcome::NotTaken {
                why,
                retry_after: None,
            } => checked("not taken", &why, code),
            DeliveryOutcome::NotTaken { .. } => panic!("{code:?}: no wait was requested"),
            DeliveryOutcome::Rejected { why } => checked("rejected", &why, code),
            DeliveryOutcome::Unknown { why } => checked("unknown", &why, code),
        };
        assert_eq!(found, expected, "{code:?}");
    }
}

/// Checks that a reason names the code, and does not repeat the engine's message, which may name a
/// user.
fn checked(answer: &'static str, why: &str, code: Code) -> &'static str {
    assert_eq!(why, format!("gRPC status {code:?}"));
    answer
}

#[test]
fn an_engine_may_request_a_wait_of_up_to_an_hour() {
    for (requested, expected) in [(7, 7), (86_400, 3600)] {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(requested)));
        let status = Status::with_error_details(Code::Unavailable, "busy", details);
        let DeliveryOutcome::NotTaken { retry_after, .. } = outcome(&status, &SendState::default())
        else {
            panic!("{requested}")
        };
        assert_eq!(retry_after, Some(Duration::from_secs(expected)));
    }
}

#[test]
fn the_http_status_of_a_proxy_has_its_outcome() {
    for (http, expected) in [(502, "Unknown"), (503, "NotTaken"), (404, "Rejected")] {
        let status = Status::from_error(Box::new(HttpStatus(
            StatusCode::from_u16(http).expect("a status"),
        )));
        let found = format!("{:?}", outcome(&status, &SendState::default()));
        assert!(
            found.starts_with(expected) && found.contains(&http.to_string()),
            "{found}"
        );
    }
}
