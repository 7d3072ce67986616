//! Conversions of domain values to protobuf, for the API and the gRPC sink.

use chrono::{DateTime, TimeDelta, Utc};
use prost_types::value::Kind;
use prost_types::{Duration, ListValue, Struct, Timestamp, Value as ProtoValue};
use serde_json::{Map, Number, Value};

use super::v1;
use crate::domain::{Identifier, Properties, Recipient, Wave, WaveMode, ZoneSet};

/// Integers below this are exact in a double.
const MAX_EXACT_INTEGER: f64 = 9_007_199_254_740_992.0;

/// An instant.
pub fn timestamp(instant: DateTime<Utc>) -> Timestamp {
    Timestamp {
        seconds: instant.timestamp(),
        nanos: i32::try_from(instant.timestamp_subsec_nanos()).unwrap_or(0),
    }
}

/// A span of time.
pub fn duration(span: TimeDelta) -> Duration {
    Duration {
        seconds: span.num_seconds(),
        nanos: span.subsec_nanos(),
    }
}

/// The names of zones, in alphabetical order.
pub fn names(zones: &ZoneSet) -> Vec<String> {
    zones.names().into_iter().map(str::to_owned).collect()
}

/// A wave.
pub fn wave(wave: &Wave) -> v1::Wave {
    let mode = match wave.mode {
        WaveMode::AtTime => v1::WaveMode::AtTime,
        WaveMode::OptimalTime => v1::WaveMode::OptimalTime,
    };
    v1::Wave {
        time: Some(timestamp(wave.time)),
        zones: names(&wave.zones),
        includes_unlisted_zones: wave.includes_unlisted_zones,
        mode: mode.into(),
    }
}

/// Properties.
pub fn properties(value: &Properties) -> Struct {
    object(&value.0)
}

/// A recipient.
pub fn recipient(value: &Recipient) -> v1::Recipient {
    let identifier = match value.identifier.clone() {
        Identifier::ExternalUserId(id) => v1::recipient::Identifier::ExternalUserId(id),
        Identifier::UserAlias {
            alias_name,
            alias_label,
        } => v1::recipient::Identifier::UserAlias(v1::UserAlias {
            alias_name,
            alias_label,
        }),
        Identifier::Email(email) => v1::recipient::Identifier::Email(email),
    };
    v1::Recipient {
        identifier: Some(identifier),
        prioritization: value.prioritization.clone(),
        trigger_properties: value.trigger_properties.as_ref().map(properties),
        canvas_entry_properties: None,
        context: None,
        send_to_existing_only: value.send_to_existing_only,
        attributes: value.attributes.as_ref().map(object),
    }
}

/// A JSON object.
pub fn object(object: &Map<String, Value>) -> Struct {
    Struct {
        fields: object
            .iter()
            .map(|(key, one)| (key.clone(), value(one)))
            .collect(),
    }
}

fn value(value: &Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(list) => Kind::ListValue(ListValue {
            values: list.iter().map(self::value).collect(),
        }),
        Value::Object(inner) => Kind::StructValue(object(inner)),
    };
    ProtoValue { kind: Some(kind) }
}

/// The number as JSON, without a fraction if it is an integer; none if JSON has no such number.
pub fn number(number: f64) -> Option<Value> {
    if number.fract() == 0.0 && number.abs() < MAX_EXACT_INTEGER {
        // Exact by the test above. Negative zero becomes zero.
        #[allow(clippy::cast_possible_truncation, reason = "whole and within 2^53")]
        return Some(Value::Number((number as i64).into()));
    }
    Number::from_f64(number).map(Value::Number)
}

/// A protobuf object as JSON.
pub fn json(object: Struct) -> Value {
    Value::Object(
        object
            .fields
            .into_iter()
            .map(|(key, value)| (key, json_value(value)))
            .collect(),
    )
}

fn json_value(value: ProtoValue) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        Some(Kind::NumberValue(double)) => number(double).unwrap_or_default(),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::ListValue(list)) => {
            Value::Array(list.values.into_iter().map(json_value).collect())
        }
        Some(Kind::StructValue(inner)) => json(inner),
    }
}
