//! What is known of a text, a list or a number beyond its type, for the description: so that a client that makes values of it makes
//! good ones. The call judges them, not this.

use serde_json::{Value, json};

use crate::domain::id::{ID_MAX, REQUEST_ID_MAX};
use crate::domain::payload::{IDENTIFIER_MAX, PRIORITIZATION_MAX, RECIPIENTS_MAX};

/// A UUID with its hyphens.
const UUID: &str = "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}";
/// ISO 8601 as `domain/schedule.rs` reads it, but for the dates that no calendar has.
const TIME: &str = "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])[T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.,][0-9]{1,9})?)?\
     (Z|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)?$";
/// No control character.
const PLAIN: &str = r"^[^\u0000-\u001f\u007f-\u009f]*$";

/// Adds to `schema` what is known of the field of this name. An id that is not required may be empty, which is the same as absent.
pub(super) fn add(field: &str, required: bool, schema: &mut Value) {
    let known = match field {
        "canvas_id" | "campaign_id" if required => opaque(ID_MAX),
        "canvas_id" => or_empty(ID_MAX),
        "request_id" => or_empty(REQUEST_ID_MAX),
        "external_user_id" | "alias_name" | "alias_label" | "email" => opaque(IDENTIFIER_MAX),
        "schedule_id" if required => json!({ "pattern": format!("^{UUID}$") }),
        "schedule_id" => json!({ "pattern": format!("^({UUID})?$") }),
        "time" => json!({ "pattern": TIME }),
        "recipients" => json!({ "maxItems": RECIPIENTS_MAX }),
        "prioritization" => json!({ "maxItems": PRIORITIZATION_MAX }),
        // As grpc/page.rs reads it; 0 is its default.
        "page_size" => json!({ "minimum": 0, "maximum": 1000 }),
        _ => return,
    };
    if let (Value::Object(schema), Value::Object(known)) = (schema, known) {
        schema.extend(known);
    }
}

fn opaque(most: usize) -> Value {
    json!({ "minLength": 1, "maxLength": most, "pattern": PLAIN })
}

fn or_empty(most: usize) -> Value {
    json!({ "maxLength": most, "pattern": PLAIN })
}
