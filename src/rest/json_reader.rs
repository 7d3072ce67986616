//! Reads protobuf messages from JSON and reports every invalid field by its path. An unknown field
//! is reported with the known name that is most similar. The RPC validates the values.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use jiter::{JsonArray, JsonObject, JsonValue};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};

use super::request_body::RequestError;
use crate::domain::payload::MAX_PROPERTIES_DEPTH;
use crate::error::{Violations, quote};
use crate::layers::violations::TransportViolations;

/// Further violations are dropped.
const MAX_VIOLATIONS: usize = 100;
/// One level deeper than the limit still reaches the RPC, which rejects it; a deeper message could
/// not be decoded.
const MAX_DEPTH: usize = MAX_PROPERTIES_DEPTH + 1;
/// Further entries of a list are not read: in memory they are much larger than as text, and no list
/// may be that long.
const MAX_LIST_ENTRIES: usize = 1_000;
/// The similarity, from 0 to 1 by edit distance, at which a known name is suggested for an unknown
/// one.
const MIN_SIMILARITY: f64 = 0.5;
/// A longer key is shortened in messages and matches no name.
const MAX_KEY_BYTES: usize = 64;

/// The JSON name of `canvas_id` on a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CanvasIdName {
    /// `canvas_id`.
    CanvasId,
    /// `campaign_id`, as in the documented example.
    CampaignId,
}

impl CanvasIdName {
    /// The name that requests to a path use.
    pub(super) fn of_path(path: &str) -> Self {
        if path.starts_with("/campaigns/") {
            Self::CampaignId
        } else {
            Self::CanvasId
        }
    }

    /// The JSON name of a top-level field.
    pub(super) fn json_name(self, field: &str) -> &str {
        if self == Self::CampaignId && field == "canvas_id" {
            "campaign_id"
        } else {
            field
        }
    }

    /// The proto name of a top-level field.
    pub(super) fn proto_name(self, field: &str) -> &str {
        if field == self.json_name("canvas_id") {
            "canvas_id"
        } else {
            field
        }
    }
}

/// The JSON values that a field accepts.
pub(super) enum JsonType {
    String,
    Boolean,
    Integer,
    AnyObject,
    OneOf(Vec<&'static str>),
    List(Box<JsonType>),
    Message(MessageType),
}

/// A message as a JSON object.
pub(super) struct MessageType {
    /// Its name in the protos.
    pub(super) name: &'static str,
    /// Its fields, in the order in which they are read.
    pub(super) fields: fn(CanvasIdName) -> KnownFields,
}

/// The JSON names of the fields of a message, with the values that they accept.
pub(super) type KnownFields = Vec<(&'static str, fn() -> JsonType)>;

impl MessageType {
    pub(super) fn of<T: FromJsonObject>() -> Self {
        Self {
            name: T::NAME,
            fields: fields::<T>,
        }
    }
}

/// Can be read from a JSON value. An absent value is the default.
pub(super) trait FromJson: Default {
    /// The JSON values that are accepted.
    fn json_type() -> JsonType;

    /// Reads the value at `path`. A value of the wrong type is a violation and reads as `None`.
    fn from_json(value: JsonValue<'_>, path: &str, reader: &mut JsonReader) -> Option<Self>;
}

/// Can be read from a JSON object.
pub(super) trait FromJsonObject: Default {
    /// The name of the message in the protos.
    const NAME: &'static str;

    /// Reads the fields. An unreadable field keeps its default.
    fn from_object(object: &mut ObjectReader<'_, '_>) -> Self;
}

impl<T: FromJsonObject> FromJson for T {
    fn json_type() -> JsonType {
        JsonType::Message(MessageType::of::<T>())
    }

    fn from_json(value: JsonValue<'_>, path: &str, reader: &mut JsonReader) -> Option<Self> {
        let JsonValue::Object(entries) = value else {
            return reader.wrong_type(path, "an object", &value);
        };
        Some(reader.object(entries, format!("{path}.")))
    }
}

/// Collects the violations of one request.
pub(super) struct JsonReader {
    canvas_id: CanvasIdName,
    violations: Violations,
}

impl JsonReader {
    pub(super) fn new(canvas_id: CanvasIdName) -> Self {
        Self {
            canvas_id,
            violations: Violations::with_max(MAX_VIOLATIONS),
        }
    }

    /// Reads a message from the top-level object of a request.
    pub(super) fn message<T: FromJsonObject>(
        mut self,
        entries: JsonObject<'_>,
        violations: &TransportViolations,
    ) -> T {
        let message = self.object(entries, String::new());
        violations.set(self.violations);
        message
    }

    pub(super) fn violate(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.violations.add(path, message);
    }

    fn wrong_type<T>(&mut self, path: &str, expected: &str, value: &JsonValue<'_>) -> Option<T> {
        let actual = match value {
            JsonValue::Null => "null",
            JsonValue::Bool(_) => "true or false",
            JsonValue::Int(_) | JsonValue::BigInt(_) | JsonValue::Float(_) => "a number",
            JsonValue::Str(_) => "text",
            JsonValue::Array(_) => "a list",
            JsonValue::Object(_) => "an object",
        };
        self.violate(path, format!("must be {expected}, not {actual}"));
        None
    }

    /// Reads a message whose fields have paths that begin with `prefix`.
    fn object<T: FromJsonObject>(&mut self, entries: JsonObject<'_>, prefix: String) -> T {
        let mut object = ObjectReader {
            prefix,
            entries: Arc::unwrap_or_clone(entries),
            known: Vec::new(),
            reader: self,
        };
        let message = T::from_object(&mut object);
        object.reject_unknown_fields();
        message
    }

    /// Reads a free-form object.
    fn structure(&mut self, entries: JsonObject<'_>, path: &str, depth: usize) -> Struct {
        let mut fields = BTreeMap::new();
        for (key, value) in Arc::unwrap_or_clone(entries) {
            let path = format!("{path}.{}", display_key(&key));
            if fields.contains_key(&*key) {
                self.violate(path, "occurs twice");
                continue;
            }
            let value = self.value(value, &path, depth);
            fields.insert(key.into_owned(), value);
        }
        Struct { fields }
    }

    fn list(&mut self, values: JsonArray<'_>, path: &str, depth: usize) -> ListValue {
        let values = Arc::unwrap_or_clone(values).into_iter().enumerate();
        ListValue {
            values: values
                .map(|(n, value)| self.value(value, &format!("{path}[{n}]"), depth))
                .collect(),
        }
    }

    /// Reads a value inside a free-form object or list of this depth.
    fn value(&mut self, value: JsonValue<'_>, path: &str, depth: usize) -> ProtoValue {
        let deeper = depth + 1;
        let kind = match value {
            JsonValue::Array(_) | JsonValue::Object(_) if deeper > MAX_DEPTH => {
                let message = format!(
                    "is nested over {MAX_DEPTH} levels deep; \
                     at most {MAX_PROPERTIES_DEPTH} levels are allowed"
                );
                self.violate(path, message);
                Kind::NullValue(0)
            }
            JsonValue::Null => Kind::NullValue(0),
            JsonValue::Bool(flag) => Kind::BoolValue(flag),
            JsonValue::Float(number) => Kind::NumberValue(number),
            JsonValue::Int(number) => Kind::NumberValue(self.exact(&number.to_string(), path)),
            JsonValue::BigInt(number) => Kind::NumberValue(self.exact(&number.to_string(), path)),
            JsonValue::Str(text) => Kind::StringValue(text.into_owned()),
            JsonValue::Array(values) => Kind::ListValue(self.list(values, path, deeper)),
            JsonValue::Object(entries) => Kind::StructValue(self.structure(entries, path, deeper)),
        };
        ProtoValue { kind: Some(kind) }
    }

    /// The double that equals an integer. Any other integer is a violation.
    fn exact(&mut self, digits: &str, path: &str) -> f64 {
        let double = digits.parse().unwrap_or(f64::INFINITY);
        if format!("{double:.0}") != digits {
            let message = format!(
                "{} is an integer that a double cannot represent; send it as a string",
                quote(digits)
            );
            self.violate(path, message);
        }
        double
    }
}

/// The fields of a message.
fn fields<T: FromJsonObject>(canvas_id: CanvasIdName) -> KnownFields {
    let mut object = ObjectReader {
        prefix: String::new(),
        entries: Vec::new(),
        known: Vec::new(),
        reader: &mut JsonReader::new(canvas_id),
    };
    T::from_object(&mut object);
    object.known
}

/// Reads the fields of one JSON object.
pub(super) struct ObjectReader<'r, 'j> {
    prefix: String,
    /// The entries that are still to be read.
    entries: Vec<(Cow<'j, str>, JsonValue<'j>)>,
    /// The fields that have been read.
    known: KnownFields,
    reader: &'r mut JsonReader,
}

impl<'j> ObjectReader<'_, 'j> {
    /// Reads the field with this name. Null means absent.
    pub(super) fn field<T: FromJson>(&mut self, name: &'static str) -> T {
        let name = if self.prefix.is_empty() {
            self.reader.canvas_id.json_name(name)
        } else {
            name
        };
        self.known.push((name, T::json_type));
        let Some(value) = self.take(name) else {
            return T::default();
        };
        T::from_json(value, &format!("{}{name}", self.prefix), self.reader).unwrap_or_default()
    }

    /// Adds a violation of the object itself.
    pub(super) fn violate(&mut self, message: impl Into<String>) {
        self.reader
            .violate(self.prefix.trim_end_matches('.'), message);
    }

    fn take(&mut self, name: &str) -> Option<JsonValue<'j>> {
        let at = self.entries.iter().position(|(key, _)| key == name)?;
        let (_, value) = self.entries.remove(at);
        let before = self.entries.len();
        self.entries.retain(|(key, _)| key != name);
        if self.entries.len() < before {
            self.reader
                .violate(format!("{}{name}", self.prefix), "occurs twice");
        }
        (value != JsonValue::Null).then_some(value)
    }

    fn reject_unknown_fields(self) {
        let known: Vec<&str> = self.known.iter().map(|(name, _)| *name).collect();
        let remaining = self.reader.violations.remaining();
        for (key, _) in self.entries.iter().take(remaining) {
            let message = match most_similar(key, &known) {
                Some(name) => format!("is not a known field; did you mean {name}?"),
                None => format!(
                    "is not a known field; the known fields are {}",
                    known.join(", ")
                ),
            };
            self.reader
                .violate(format!("{}{}", self.prefix, display_key(key)), message);
        }
    }
}

/// The known name that is most similar to `key`.
fn most_similar<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    if key.len() > MAX_KEY_BYTES {
        return None;
    }
    let key = key.to_lowercase();
    known
        .iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(name, &key), *name))
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name)
}

/// A key as part of a path, quoted unless it is a plain name.
fn display_key(key: &str) -> String {
    let plain = !key.is_empty()
        && key.len() <= MAX_KEY_BYTES
        && key
            .chars()
            .all(|character| character.is_alphanumeric() || "_-".contains(character));
    if plain { key.to_owned() } else { quote(key) }
}

impl FromJson for String {
    fn json_type() -> JsonType {
        JsonType::String
    }

    fn from_json(value: JsonValue<'_>, path: &str, reader: &mut JsonReader) -> Option<Self> {
        match value {
            JsonValue::Str(text) => Some(text.into_owned()),
            other => reader.wrong_type(path, "text", &other),
        }
    }
}

impl FromJson for bool {
    fn json_type() -> JsonType {
        JsonType::Boolean
    }

    fn from_json(value: JsonValue<'_>, path: &str, reader: &mut JsonReader) -> Option<Self> {
        match value {
            JsonValue::Bool(flag) => Some(flag),
            other => reader.wrong_type(path, "true or false", &other),
        }
    }
}

impl FromJson for Struct {
    fn json_type() -> JsonType {
        JsonType::AnyObject
    }

    fn from_json(value: JsonValue<'_>, path: &str, reader: &mut JsonReader) -> Option<Self> {
        match value {
            JsonValue::Object(entries) => Some(reader.structure(entries, path, 1)),
            other => reader.wrong_type(path, "an object", &other),
        }
    }
}

impl<T: FromJson> FromJson for Option<T> {
    fn json_type() -> JsonType {
        T::json_type()
    }

    fn from_json(value: JsonValue<'_>, path: &str, reader: &mut JsonReader) -> Option<Self> {
        T::from_json(value, path, reader).map(Some)
    }
}

impl<T: FromJson> FromJson for Vec<T> {
    fn json_type() -> JsonType {
        JsonType::List(Box::new(T::json_type()))
    }

    fn from_json(value: JsonValue<'_>, path: &str, reader: &mut JsonReader) -> Option<Self> {
        let JsonValue::Array(values) = value else {
            return reader.wrong_type(path, "a list", &value);
        };
        if values.len() > MAX_LIST_ENTRIES {
            let message = format!("has {} entries; fewer are allowed", values.len());
            reader.violate(path, message);
        }
        let values = Arc::unwrap_or_clone(values).into_iter().enumerate();
        // An unreadable entry keeps its position, so that the paths of the later entries stay
        // right.
        Some(
            values
                .take(MAX_LIST_ENTRIES)
                .map(|(n, value)| {
                    T::from_json(value, &format!("{path}[{n}]"), reader).unwrap_or_default()
                })
                .collect(),
        )
    }
}

/// Reads a message from a request body.
///
/// # Errors
/// The body is not a JSON object. Invalid fields go to `violations` instead.
pub(super) fn message<T: FromJsonObject>(
    body: &[u8],
    canvas_id: CanvasIdName,
    violations: &TransportViolations,
) -> Result<T, RequestError> {
    let bad = |message| RequestError::new(StatusCode::BAD_REQUEST, message);
    let value = JsonValue::parse(body, false)
        .map_err(|error| bad(format!("the body is not JSON: {}", error.description(body))))?;
    let JsonValue::Object(entries) = value else {
        return Err(bad("the body must be a JSON object".to_owned()));
    };
    Ok(JsonReader::new(canvas_id).message(entries, violations))
}

#[cfg(test)]
#[path = "json_reader_tests.rs"]
mod tests;
