use tonic_types::ErrorDetails;

use super::*;

#[test]
fn each_status_over_the_wire_has_its_answer() {
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
        let said = match answer(&Status::new(code, "user-1 is unknown"), &Sent::default()) {
            Answer::Delivered => "delivered",
            Answer::NotTaken {
                why,
                retry_after: None,
            } => told("not taken", &why, code),
            Answer::NotTaken { .. } => panic!("{code:?}: nobody asked for a wait"),
            Answer::Rejected { why } => told("rejected", &why, code),
            Answer::Unknown { why } => told("unknown", &why, code),
        };
        assert_eq!(said, expected, "{code:?}");
    }
}

/// A reason names the code, and never repeats what the engine wrote, which may name a user.
fn told(answer: &'static str, why: &str, code: Code) -> &'static str {
    assert_eq!(why, format!("gRPC status {code:?}"));
    answer
}

#[test]
fn the_wait_that_an_engine_asks_for_is_honoured_up_to_an_hour() {
    for (asked, kept) in [(7, 7), (86_400, 3600)] {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_secs(asked)));
        let status = Status::with_error_details(Code::Unavailable, "busy", details);
        let Answer::NotTaken { retry_after, .. } = answer(&status, &Sent::default()) else {
            panic!("{asked}")
        };
        assert_eq!(retry_after, Some(Duration::from_secs(kept)));
    }
}

#[test]
fn a_proxy_answers_by_its_http_status() {
    for (http, expected) in [(502, "Unknown"), (503, "NotTaken"), (404, "Rejected")] {
        let status = Status::from_error(Box::new(HttpStatus(
            StatusCode::from_u16(http).expect("a status"),
        )));
        let said = format!("{:?}", answer(&status, &Sent::default()));
        assert!(
            said.starts_with(expected) && said.contains(&http.to_string()),
            "{said}"
        );
    }
}
