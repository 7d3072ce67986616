use serde_json::json;

use super::*;
use crate::error::Violation;
use crate::pb::{v1, values};

/// The properties that are read from this JSON value, and what is wrong with it.
fn properties(text: &str) -> (Value, Vec<Violation>) {
    let (found, body) = (
        TransportViolations::default(),
        format!(r#"{{"trigger_properties": {{"k": {text}}}}}"#),
    );
    let read: v1::UpdateCanvasScheduleRequest =
        message(body.as_bytes(), Naming::Canvas, &found).expect("an object");
    (
        values::json(read.trigger_properties.expect("properties"))["k"].clone(),
        found.violations().to_vec(),
    )
}

#[test]
fn values_come_through_as_they_are() {
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
fn what_would_change_on_the_way_is_refused_by_path() {
    for (text, path, needed) in [
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
            "is there twice",
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
            violations[0].field == path && violations[0].message.contains(needed),
            "{text}: {violations:?}"
        );
    }
}

#[test]
fn depth_is_bounded_where_the_message_is_and_refused_where_the_rule_is() {
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    // The object itself is the first level.
    assert!(
        properties(&nested(PROPERTIES_MAX_DEPTH)).1.is_empty(),
        "one too deep is for the call to refuse"
    );
    let (_, violations) = properties(&nested(150));
    assert!(
        violations.len() == 1 && violations[0].message.contains("at most 30 levels"),
        "{violations:?}"
    );
    let found = TransportViolations::default();
    let refused = message::<v1::CancelCanvasScheduleRequest>(
        nested(100_000).as_bytes(),
        Naming::Canvas,
        &found,
    );
    assert!(
        refused
            .expect_err("too deep to parse")
            .message
            .contains("not JSON")
    );
}

#[test]
fn a_body_that_is_no_json_object_is_refused_with_where_and_why() {
    for (body, told) in [
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
        let refused = message::<v1::CancelCanvasScheduleRequest>(
            body,
            Naming::Canvas,
            &TransportViolations::default(),
        )
        .expect_err("no object");
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        assert!(
            refused.message.contains(told),
            "{}: {}",
            String::from_utf8_lossy(body),
            refused.message
        );
    }
}

#[test]
fn an_unknown_field_is_told_with_what_was_perhaps_meant() {
    for (key, told) in [
        ("canvasId", "perhaps canvas_id is meant"),
        ("schedule_ID", "perhaps schedule_id is meant"),
        ("request-id", "perhaps request_id is meant"),
        ("require_al", "perhaps require_all is meant"),
        (
            "xyz",
            "the known ones are canvas_id, schedule_id, etag, request_id, require_all",
        ),
    ] {
        let found = TransportViolations::default();
        let body = json!({ key: 1 }).to_string();
        message::<v1::CancelCanvasScheduleRequest>(body.as_bytes(), Naming::Canvas, &found)
            .expect("an object");
        let violations = found.violations();
        assert!(
            violations.len() == 1
                && violations[0].field == key
                && violations[0].message.contains(told),
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
    let found = TransportViolations::default();
    message::<v1::CancelCanvasScheduleRequest>(body.as_bytes(), Naming::Canvas, &found)
        .expect("an object");
    assert_eq!(found.violations().len(), VIOLATIONS_MOST);
}
