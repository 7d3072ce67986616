//! A dispatch as JSON: the body of a webhook and of a NATS message, as docs/sinks.md documents it.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use crate::domain::{DispatchMessage, Identifier, Recipient, WaveMode};

/// The body, without the fields that the dispatch has no value for.
pub fn body(dispatch: &DispatchMessage) -> Vec<u8> {
    let DispatchMessage { wave, target, .. } = dispatch;
    let mut body = json!({
        "dispatch_id": dispatch.id.to_string(),
        "workspace": dispatch.workspace,
        "canvas_id": dispatch.canvas_id.as_str(),
        "schedule_id": dispatch.schedule_id.to_string(),
        "revision": dispatch.revision,
        "n": dispatch.number,
        "wave": {
            "time": time(wave.time),
            "zones": wave.zones.names(),
            "includes_unlisted_zones": wave.includes_unlisted_zones,
            "mode": mode(wave.mode),
        },
        "trigger_properties": dispatch.properties.0,
        "lateness_ms": dispatch.lateness.num_milliseconds(),
        "attempt": dispatch.attempt,
    });
    if !target.recipients.is_empty() {
        body["recipients"] = target.recipients.iter().map(recipient).collect();
    }
    if let Some(audience) = &target.audience {
        body["audience"] = Value::Object(audience.clone());
    }
    if target.broadcast {
        body["broadcast"] = Value::Bool(true);
    }
    body.to_string().into_bytes()
}

fn recipient(recipient: &Recipient) -> Value {
    let mut fields = Map::new();
    match &recipient.identifier {
        Identifier::ExternalUserId(id) => fields.insert("external_user_id".to_owned(), json!(id)),
        Identifier::UserAlias {
            alias_name,
            alias_label,
        } => fields.insert(
            "user_alias".to_owned(),
            json!({ "alias_name": alias_name, "alias_label": alias_label }),
        ),
        Identifier::Email(address) => fields.insert("email".to_owned(), json!(address)),
    };
    if !recipient.prioritization.is_empty() {
        fields.insert("prioritization".to_owned(), json!(recipient.prioritization));
    }
    let optional = [
        (
            "trigger_properties",
            recipient
                .trigger_properties
                .as_ref()
                .map(|properties| json!(properties.0)),
        ),
        (
            "send_to_existing_only",
            recipient.send_to_existing_only.map(Value::Bool),
        ),
        (
            "attributes",
            recipient.attributes.clone().map(Value::Object),
        ),
    ];
    fields.extend(
        optional
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?))),
    );
    Value::Object(fields)
}

/// An instant in ISO 8601, in UTC.
pub fn time(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::AutoSi, true)
}

/// The wave's mode, as the protos name it.
pub fn mode(mode: WaveMode) -> &'static str {
    match mode {
        WaveMode::AtTime => "AT_TIME",
        WaveMode::OptimalTime => "OPTIMAL_TIME",
    }
}
