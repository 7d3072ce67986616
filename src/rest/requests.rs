//! The fields of the documented requests, under their proto names.

use http::Uri;
use jiter::JsonValue;

use super::json_reader::{
    CanvasIdName, FromJson, FromJsonObject, JsonReader, JsonType, ObjectReader,
};
use crate::error::quote;
use crate::layers::violations::TransportViolations;
use crate::pb::v1;
use crate::pb::v1::recipient::Identifier;

/// Reads every field of a message under its own name. A list that misses a field does not compile.
macro_rules! readable {
    ($message:ident { $($field:ident),+ $(,)? }) => {
        impl FromJsonObject for v1::$message {
            const NAME: &'static str = stringify!($message);

            fn from_object(object: &mut ObjectReader<'_, '_>) -> Self {
                Self { $($field: object.field(stringify!($field))),+ }
            }
        }
    };
}

readable!(CreateCanvasScheduleRequest {
    canvas_id,
    schedule,
    trigger_properties,
    canvas_entry_properties,
    context,
    recipients,
    audience,
    broadcast,
    request_id,
    validate_only,
});
readable!(UpdateCanvasScheduleRequest {
    canvas_id,
    schedule_id,
    schedule,
    trigger_properties,
    canvas_entry_properties,
    context,
    etag,
    request_id,
    require_all,
    validate_only,
});
readable!(CancelCanvasScheduleRequest {
    canvas_id,
    schedule_id,
    etag,
    request_id,
    require_all
});
readable!(Schedule {
    time,
    in_local_time,
    at_optimal_time
});
readable!(UserAlias {
    alias_name,
    alias_label
});

impl FromJsonObject for v1::Recipient {
    const NAME: &'static str = "Recipient";

    fn from_object(object: &mut ObjectReader<'_, '_>) -> Self {
        let id: Option<String> = object.field("external_user_id");
        let alias: Option<v1::UserAlias> = object.field("user_alias");
        let email: Option<String> = object.field("email");
        let identifiers = [
            id.map(Identifier::ExternalUserId),
            alias.map(Identifier::UserAlias),
            email.map(Identifier::Email),
        ]
        .into_iter()
        .flatten();
        let mut identifiers: Vec<Identifier> = identifiers.collect();
        if identifiers.len() > 1 {
            object.violate("has more than one of external_user_id, user_alias and email; send one");
        }
        Self {
            identifier: identifiers.pop(),
            prioritization: object.field("prioritization"),
            trigger_properties: object.field("trigger_properties"),
            canvas_entry_properties: object.field("canvas_entry_properties"),
            context: object.field("context"),
            send_to_existing_only: object.field("send_to_existing_only"),
            attributes: object.field("attributes"),
        }
    }
}

impl FromJsonObject for v1::ListCanvasSchedulesRequest {
    const NAME: &'static str = "ListCanvasSchedulesRequest";

    fn from_object(object: &mut ObjectReader<'_, '_>) -> Self {
        Self {
            canvas_id: object.field("canvas_id"),
            state: object.field::<StateFilter>("state").0.into(),
            page_size: object.field::<PageSize>("page_size").0,
            page_token: object.field("page_token"),
        }
    }
}

/// The JSON names of states, in queries and responses.
pub(super) const STATES: [(&str, v1::CanvasScheduleState); 4] = [
    ("pending", v1::CanvasScheduleState::Pending),
    ("dispatching", v1::CanvasScheduleState::Dispatching),
    ("dispatched", v1::CanvasScheduleState::Dispatched),
    ("cancelled", v1::CanvasScheduleState::Cancelled),
];

/// A state in a query; unspecified when absent.
#[derive(Default)]
struct StateFilter(v1::CanvasScheduleState);

impl FromJson for StateFilter {
    fn json_type() -> JsonType {
        JsonType::OneOf(STATES.map(|(name, _)| name).to_vec())
    }

    fn from_json(value: JsonValue<'_>, path: &str, reader: &mut JsonReader) -> Option<Self> {
        let text = String::from_json(value, path, reader)?;
        let known = STATES.iter().find(|(name, _)| *name == text);
        if known.is_none() {
            let message = format!(
                "{} is not a valid state; send pending, dispatching, dispatched or cancelled",
                quote(&text)
            );
            reader.violate(path, message);
        }
        known.map(|(_, state)| Self(*state))
    }
}

/// An integer in a query, where every value is text.
#[derive(Default)]
struct PageSize(i32);

impl FromJson for PageSize {
    fn json_type() -> JsonType {
        JsonType::Integer
    }

    fn from_json(value: JsonValue<'_>, path: &str, reader: &mut JsonReader) -> Option<Self> {
        let text = String::from_json(value, path, reader)?;
        let number = text.parse().ok();
        if number.is_none() {
            reader.violate(path, format!("{} is not an integer", quote(&text)));
        }
        number.map(Self)
    }
}

/// Reads a message from the query of a URI, as from an object whose values are all text.
pub(super) fn from_query<T: FromJsonObject>(uri: &Uri, violations: &TransportViolations) -> T {
    let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let entries: Vec<_> = pairs
        .map(|(key, value)| (key, JsonValue::Str(value)))
        .collect();
    JsonReader::new(CanvasIdName::CanvasId).message(entries.into(), violations)
}
