//! The documented requests: which fields of which message they state. The names are those of the protos.

use http::Uri;
use jiter::JsonValue;
use serde_json::{Value, json};

use super::read::{Naming, Object, Read, ReadObject, Reading};
use super::schema::Schemas;
use crate::error::quote;
use crate::layers::violations::TransportViolations;
use crate::pb::v1;
use crate::pb::v1::recipient::Identifier;

/// Each field of a message under its own name. One that the message has and the list has not does not compile.
macro_rules! readable {
    ($message:ident { $($field:ident),+ $(,)? }) => {
        impl ReadObject for v1::$message {
            const NAME: &'static str = stringify!($message);

            fn read(object: &mut Object<'_, '_>) -> Self {
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

impl ReadObject for v1::Recipient {
    const NAME: &'static str = "Recipient";

    fn read(object: &mut Object<'_, '_>) -> Self {
        let id: Option<String> = object.field("external_user_id");
        let alias: Option<v1::UserAlias> = object.field("user_alias");
        let email: Option<String> = object.field("email");
        let stated = [
            id.map(Identifier::ExternalUserId),
            alias.map(Identifier::UserAlias),
            email.map(Identifier::Email),
        ]
        .into_iter()
        .flatten();
        let mut stated: Vec<Identifier> = stated.collect();
        if stated.len() > 1 {
            object
                .violate("has more than one of external_user_id, user_alias and email; state one");
        }
        Self {
            identifier: stated.pop(),
            prioritization: object.field("prioritization"),
            trigger_properties: object.field("trigger_properties"),
            canvas_entry_properties: object.field("canvas_entry_properties"),
            context: object.field("context"),
            send_to_existing_only: object.field("send_to_existing_only"),
            attributes: object.field("attributes"),
        }
    }
}

impl ReadObject for v1::ListCanvasSchedulesRequest {
    const NAME: &'static str = "ListCanvasSchedulesRequest";

    fn read(object: &mut Object<'_, '_>) -> Self {
        Self {
            canvas_id: object.field("canvas_id"),
            state: object.field::<StateName>("state").0.into(),
            page_size: object.field::<Size>("page_size").0,
            page_token: object.field("page_token"),
        }
    }
}

/// The names of states, in queries and answers.
pub(super) const STATES: [(&str, v1::CanvasScheduleState); 4] = [
    ("pending", v1::CanvasScheduleState::Pending),
    ("dispatching", v1::CanvasScheduleState::Dispatching),
    ("dispatched", v1::CanvasScheduleState::Dispatched),
    ("cancelled", v1::CanvasScheduleState::Cancelled),
];

/// A state in a query; unspecified when none is stated.
#[derive(Default)]
struct StateName(v1::CanvasScheduleState);

impl Read for StateName {
    fn schema(_: &mut Schemas) -> Value {
        json!({ "type": "string", "enum": STATES.map(|(name, _)| name) })
    }

    fn read(value: JsonValue<'_>, path: &str, reading: &mut Reading) -> Option<Self> {
        let text = String::read(value, path, reading)?;
        let known = STATES.iter().find(|(name, _)| *name == text);
        if known.is_none() {
            reading.violate(
                path,
                format!(
                    "{} is not a state; pending, dispatching, dispatched or cancelled is needed",
                    quote(&text)
                ),
            );
        }
        known.map(|(_, state)| Self(*state))
    }
}

/// A number in a query, where everything is text.
#[derive(Default)]
struct Size(i32);

impl Read for Size {
    fn schema(_: &mut Schemas) -> Value {
        json!({ "type": "integer" })
    }

    fn read(value: JsonValue<'_>, path: &str, reading: &mut Reading) -> Option<Self> {
        let text = String::read(value, path, reading)?;
        let number = text.parse().ok();
        if number.is_none() {
            reading.violate(path, format!("{} is not a whole number", quote(&text)));
        }
        number.map(Self)
    }
}

/// The message that a query states, which is read as an object of texts.
pub(super) fn query<T: ReadObject>(uri: &Uri, found: &TransportViolations) -> T {
    let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    let entries: Vec<_> = pairs
        .map(|(key, value)| (key, JsonValue::Str(value)))
        .collect();
    let mut reading = Reading::new(Naming::Canvas);
    let read = reading.object(entries.into(), String::new());
    reading.finish(found);
    read
}
