use serde_json::{Value, json};

use super::*;
use crate::error::Violation;
use crate::pb::{v1, values};

/// The properties that are read from this JSON value, and their violations.
fn properties(text: &str) -> (Value, Vec<Violation>) {
    let (collected, body) = (
        TransportViolations::default(),
        format!(r#"{{"trigger_properties": {{"k": {text}}}}}"#),
    );
    let read: v1::UpdateCanvasScheduleRequest =
        message(body.as_bytes(), CanvasIdName::CanvasId, &collected).expect("an object");
    (
        values::json(read.trigger_properties.expect("properties"))["k"].clone(),
        collected.violations().to_vec(),
    )
}

#[test]
fn values_are_read_unchanged() {
    for (text, value) in [
        ("null", Value::Null),
        ("[true, -0.5, 1e2]", json!([true, -0.5, 100])),
        ("9007199254740992", json!(9_007_199_254_740_992.0)),
        ("-9007199254740991", json!(-9_007_199_254_740_991_i64)),
        ("18446744073709551616", json!(18_446_744_073_709_551_616.0)),
        ("1e300", json!(1e300)),
        (r#""\u00e9\ud83d\ude00""#, json!("é😀")),
        (r#"{"": {"a.b": []}}"#, json!({ "": { "a.b": [] } })),
    ] {
        assert_eq!(properties(text), (value, vec![]), "{text}");
    }
}

#[test]
fn a_value_that_would_lose_information_is_rejected_by_path() {
    for (text, path, expected) in [
        (
            "9007199254740993",
            "trigger_properties.k",
            "send it as a string",
        ),
        (
            "[1, 123456789012345678901234567890]",
            "trigger_properties.k[1]",
            "send it as a string",
        ),
        (
            r#"{"a": 1, "b": 2, "a": 3}"#,
            "trigger_properties.k.a",
            "occurs twice",
        ),
        (
            r#"[{"\u0000x": -36028797018963969}]"#,
            "trigger_properties.k[0].\"\\0x\"",
            "send it as a string",
        ),
    ] {
        let (_, violations) = properties(text);
        assert_eq!(violations.len(), 1, "{text}: {violations:?}");
        assert!(
            violations[0].field == path && violations[0].message.contains(expected),
            "{text}: {violations:?}"
        );
    }
}

#[test]
fn nesting_is_bounded_and_the_rpc_enforces_the_limit() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    // The object itself is the first level.
    assert!(
        properties(&nested(MAX_PROPERTIES_DEPTH)).1.is_empty(),
        "the RPC rejects one level too many"
    );
    let (_, violations) = properties(&nested(150));
    assert!(
        violations.len() == 1 && violations[0].message.contains("at most 30 levels"),
        "{violations:?}"
    );
    let collected = TransportViolations::default();
    let rejected = message::<v1::CancelCanvasScheduleRequest>(
        nested(100_000).as_bytes(),
        CanvasIdName::CanvasId,
        &collected,
    );
    assert!(
        rejected
            .expect_err("too deep to parse")
            .message
            .contains("not JSON")
    );
}

#[test]
fn a_body_that_is_not_a_json_object_is_rejected_with_position_and_reason() {
    for (body, expected) in [
        (
            &b""[..],
            "not JSON: EOF while parsing a value at line 1 column 0",
        ),
        (
            b"{\"a\": 1,}",
            "not JSON: trailing comma at line 1 column 9",
        ),
        (b"{} {}", "not JSON: trailing characters at line 1 column 4"),
        (
            b"{\"canvas_id\": \"\xff\"}",
            "not JSON: invalid unicode code point",
        ),
        (b"{\"canvas_id\": \"\\ud800\"}", "not JSON"),
        (b"{\"canvas_id\": NaN}", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"\"x\"", "must be a JSON object"),
    ] {
        let rejected = message::<v1::CancelCanvasScheduleRequest>(
            body,
            CanvasIdName::CanvasId,
            &TransportViolations::default(),
        )
        .expect_err("no object");
        assert_eq!(rejected.status, StatusCode::BAD_REQUEST);
        assert!(
            rejected.message.contains(expected),
            "{}: {}",
            String::from_utf8_lossy(body),
            rejected.message
        );
    }
}

#[test]
fn an_unknown_field_is_reported_with_the_most_similar_name() {
    for (key, expected) in [
        ("canvasId", "did you mean canvas_id?"),
        ("schedule_ID", "did you mean schedule_id?"),
        ("request-id", "did you mean request_id?"),
        ("require_al", "did you mean require_all?"),
        (
            "xyz",
            "the known fields are canvas_id, schedule_id, etag, request_id, require_all",
        ),
    ] {
        let collected = TransportViolations::default();
        let body = json!({ key: 1 }).to_string();
        message::<v1::CancelCanvasScheduleRequest>(
            body.as_bytes(),
            CanvasIdName::CanvasId,
            &collected,
        )
        .expect("an object");
        let violations = collected.violations();
        assert!(
            violations.len() == 1
                && violations[0].field == key
                && violations[0].message.contains(expected),
            "{key}: {violations:?}"
        );
    }
}

#[test]
fn the_number_of_violations_is_bounded() {
    let body = format!(
        "{{{}}}",
        (0..100_000)
            .map(|n| format!("\"k{n}\":0"))
            .collect::<Vec<_>>()
            .join(",")
    );
    let collected = TransportViolations::default();
    message::<v1::CancelCanvasScheduleRequest>(body.as_bytes(), CanvasIdName::CanvasId, &collected)
        .expect("an object");
    assert_eq!(collected.violations().len(), MAX_VIOLATIONS);
}
