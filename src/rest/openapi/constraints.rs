//! Constraints on fields beyond their types, for the OpenAPI description, so that clients generate
//! valid values. The RPC enforces the rules.

use serde_json::{Value, json};

use crate::domain::id::{MAX_ID_CHARS, MAX_REQUEST_ID_CHARS};
use crate::domain::payload::{MAX_IDENTIFIER_CHARS, MAX_PRIORITIZATION_ENTRIES, MAX_RECIPIENTS};

/// A UUID with hyphens.
const UUID: &str = "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}";
/// ISO 8601 as `domain/schedule.rs` parses it. It also matches impossible dates such as 30
/// February.
const TIME: &str = "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[T ]\
     ([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.,][0-9]{1,9})?)?\
     (Z|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)?$";
/// No control characters.
const PRINTABLE: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";

/// Adds the constraints of a field to its schema. An optional id may be empty, which means absent.
pub(super) fn add(field: &str, required: bool, schema: &mut Value) {
    let constraints = match field {
        "canvas_id" | "campaign_id" if required => opaque_id(MAX_ID_CHARS),
        "canvas_id" => optional_id(MAX_ID_CHARS),
        "request_id" => optional_id(MAX_REQUEST_ID_CHARS),
        "external_user_id" | "alias_name" | "alias_label" | "email" => {
            opaque_id(MAX_IDENTIFIER_CHARS)
        }
        "schedule_id" if required => json!({ "pattern": format!("^{UUID}$") }),
        "schedule_id" => json!({ "pattern": format!("^({UUID})?$") }),
        "time" => json!({ "pattern": TIME }),
        "recipients" => json!({ "maxItems": MAX_RECIPIENTS }),
        "prioritization" => json!({ "maxItems": MAX_PRIORITIZATION_ENTRIES }),
        // The range of grpc/page.rs; 0 means the default.
        "page_size" => json!({ "minimum": 0, "maximum": 1000 }),
        _ => return,
    };
    if let (Value::Object(schema), Value::Object(constraints)) = (schema, constraints) {
        schema.extend(constraints);
    }
}

fn opaque_id(max_length: usize) -> Value {
    json!({ "minLength": 1, "maxLength": max_length, "pattern": PRINTABLE })
}

fn optional_id(max_length: usize) -> Value {
    json!({ "maxLength": max_length, "pattern": PRINTABLE })
}
