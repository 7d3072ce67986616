use super::*;

fn jetstream(code: u16, error_code: u16) -> PublishError {
    let error: JetStreamError =
        serde_json::from_value(serde_json::json!({ "code": code, "err_code": error_code }))
            .expect("an error");
    PublishError::with_source(PublishErrorKind::Other, error)
}

#[test]
fn each_failure_to_publish_has_its_outcome() {
    let cases = [
        (
            PublishError::new(PublishErrorKind::StreamNotFound),
            "NotTaken",
        ),
        (
            PublishError::new(PublishErrorKind::MaxAckPending),
            "NotTaken",
        ),
        (
            PublishError::new(PublishErrorKind::MaxPayloadExceeded),
            "Rejected",
        ),
        (PublishError::new(PublishErrorKind::TimedOut), "Unknown"),
        (PublishError::new(PublishErrorKind::BrokenPipe), "Unknown"),
        (
            PublishError::new(PublishErrorKind::WrongLastMessageId),
            "Unknown",
        ),
        (
            PublishError::new(PublishErrorKind::WrongLastSequence),
            "Unknown",
        ),
        (PublishError::new(PublishErrorKind::Other), "Unknown"),
        // Out of resources; the message is too large for the stream; an unexpected fault.
        (jetstream(503, 10023), "NotTaken"),
        (jetstream(400, 10054), "Rejected"),
        (jetstream(500, 10000), "Unknown"),
    ];
    for (error, expected) in cases {
        let found = format!("{:?}", outcome(&error));
        assert!(found.starts_with(expected), "{error:?}: {found}");
    }
}

#[test]
fn a_workspace_is_one_token_of_a_subject() {
    for (workspace, expected) in [
        ("default", "default"),
        ("a.b *>", "a%2Eb%20%2A%3E"),
        ("ü", "%C3%BC"),
    ] {
        assert_eq!(subject_token(workspace), expected);
    }
}
