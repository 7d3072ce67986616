//! JSON to messages: every field that is not as it must be at once, by its path, and unknown ones with the known one that was
//! perhaps meant. What the values mean is for the call to judge.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use jiter::{JsonArray, JsonObject, JsonValue};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::{Value, json};

use super::body::Fault;
use super::schema::Schemas;
use crate::domain::payload::PROPERTIES_MAX_DEPTH;
use crate::error::{Violations, quote};
use crate::layers::violations::TransportViolations;

/// More than so many are not told.
const VIOLATIONS_MOST: usize = 100;
/// One level more than is allowed is carried on, for the call to refuse; beyond it a message could not be decoded.
const DEPTH_MOST: usize = PROPERTIES_MAX_DEPTH + 1;
/// More entries of a list are not read: they take far more memory than text, and no list may be so long.
const LIST_MOST: usize = 1_000;
/// A name that is at least so much like an unknown one (0 to 1, by edits) was perhaps meant.
const ALIKE: f64 = 0.5;
/// A longer key is shortened where it is told, and like no name.
const KEY_MOST: usize = 64;

/// The name by which a path knows the Canvas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Naming {
    /// `canvas_id`.
    Canvas,
    /// `campaign_id`, as the documented example writes it.
    Campaign,
}

impl Naming {
    /// The name of a top field as callers of the path write it.
    pub(super) fn outer(self, name: &'static str) -> &'static str {
        if self == Self::Campaign && name == "canvas_id" {
            "campaign_id"
        } else {
            name
        }
    }

    /// The same for the path of any field.
    pub(super) fn outer_path(self, path: &str) -> &str {
        if path == "canvas_id" {
            self.outer("canvas_id")
        } else {
            path
        }
    }
}

/// The schema of a kind of value; those of objects are kept by name and referred to.
pub(super) type Describe = fn(&mut Schemas) -> Value;

/// What can be read from a JSON value; its default is what an absent one means.
pub(super) trait Read: Default {
    /// What is accepted.
    fn schema(schemas: &mut Schemas) -> Value;

    /// The value at `path`; none, and a violation, when it is of the wrong kind.
    fn read(value: JsonValue<'_>, path: &str, reading: &mut Reading) -> Option<Self>;
}

/// What can be read from a JSON object.
pub(super) trait ReadObject: Default {
    /// The name of the message in the protos.
    const NAME: &'static str;

    /// The fields of `object`. A field that cannot be read is left at its default.
    fn read(object: &mut Object<'_, '_>) -> Self;
}

impl<T: ReadObject> Read for T {
    fn schema(schemas: &mut Schemas) -> Value {
        schemas.object::<T>(T::NAME, Naming::Canvas)
    }

    fn read(value: JsonValue<'_>, path: &str, reading: &mut Reading) -> Option<Self> {
        let JsonValue::Object(entries) = value else {
            return reading.wrong(path, "an object", &value);
        };
        Some(reading.object(entries, format!("{path}.")))
    }
}

/// What is found wrong while a request is read.
pub(super) struct Reading {
    naming: Naming,
    violations: Violations,
}

impl Reading {
    /// Nothing is wrong yet.
    pub(super) fn new(naming: Naming) -> Self {
        Self {
            naming,
            violations: Violations::with_max(VIOLATIONS_MOST),
        }
    }

    /// States what was found.
    pub(super) fn finish(self, found: &TransportViolations) {
        found.set(self.violations);
    }

    /// Adds something that is wrong.
    pub(super) fn violate(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.violations.add(path, message);
    }

    fn wrong<T>(&mut self, path: &str, needed: &str, value: &JsonValue<'_>) -> Option<T> {
        let is = match value {
            JsonValue::Null => "null",
            JsonValue::Bool(_) => "true or false",
            JsonValue::Int(_) | JsonValue::BigInt(_) | JsonValue::Float(_) => "a number",
            JsonValue::Str(_) => "text",
            JsonValue::Array(_) => "a list",
            JsonValue::Object(_) => "an object",
        };
        self.violate(path, format!("must be {needed}, not {is}"));
        None
    }

    /// The object with these entries, whose fields' paths begin with `prefix`.
    pub(super) fn object<T: ReadObject>(&mut self, entries: JsonObject<'_>, prefix: String) -> T {
        let entries = Arc::unwrap_or_clone(entries);
        let mut object = Object {
            prefix,
            entries,
            known: Vec::new(),
            reading: self,
        };
        let read = T::read(&mut object);
        object.finish();
        read
    }

    /// Any object, carried as it is.
    fn structure(&mut self, entries: JsonObject<'_>, path: &str, depth: usize) -> Struct {
        let mut fields = BTreeMap::new();
        for (key, value) in Arc::unwrap_or_clone(entries) {
            let path = format!("{path}.{}", name_of(&key));
            if fields.contains_key(&*key) {
                self.violate(path, "is there twice");
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

    /// Any value within an object or a list of this depth.
    fn value(&mut self, value: JsonValue<'_>, path: &str, depth: usize) -> ProtoValue {
        let deeper = depth + 1;
        let kind = match value {
            JsonValue::Array(_) | JsonValue::Object(_) if deeper > DEPTH_MOST => {
                self.violate(path, format!("is nested over {DEPTH_MOST} deep; at most {PROPERTIES_MAX_DEPTH} levels are allowed"));
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

    /// The double that is the same as a whole number.
    fn exact(&mut self, digits: &str, path: &str) -> f64 {
        let double = digits.parse().unwrap_or(f64::INFINITY);
        if format!("{double:.0}") != digits {
            self.violate(
                path,
                format!(
                    "{} is a whole number that a double cannot hold; send it as a string",
                    quote(digits)
                ),
            );
        }
        double
    }
}

/// The fields of an object, in the order in which they are asked for, and what is accepted as each.
pub(super) fn fields<T: ReadObject>(naming: Naming) -> Vec<(&'static str, Describe)> {
    let mut reading = Reading::new(naming);
    let mut object = Object {
        prefix: String::new(),
        entries: Vec::new(),
        known: Vec::new(),
        reading: &mut reading,
    };
    T::read(&mut object);
    object.known
}

/// A JSON object while it is read.
pub(super) struct Object<'r, 'j> {
    prefix: String,
    entries: Vec<(Cow<'j, str>, JsonValue<'j>)>,
    /// What was asked for.
    known: Vec<(&'static str, Describe)>,
    reading: &'r mut Reading,
}

impl<'j> Object<'_, 'j> {
    /// The field of this name. Null means absent.
    pub(super) fn field<T: Read>(&mut self, name: &'static str) -> T {
        let name = if self.prefix.is_empty() {
            self.reading.naming.outer(name)
        } else {
            name
        };
        self.known.push((name, T::schema));
        let Some(value) = self.take(name) else {
            return T::default();
        };
        T::read(value, &format!("{}{name}", self.prefix), self.reading).unwrap_or_default()
    }

    /// Adds something that is wrong with the object itself.
    pub(super) fn violate(&mut self, message: impl Into<String>) {
        self.reading
            .violate(self.prefix.trim_end_matches('.'), message);
    }

    fn take(&mut self, name: &str) -> Option<JsonValue<'j>> {
        let at = self.entries.iter().position(|(key, _)| key == name)?;
        let (_, value) = self.entries.remove(at);
        let before = self.entries.len();
        self.entries.retain(|(key, _)| key != name);
        if self.entries.len() < before {
            self.reading
                .violate(format!("{}{name}", self.prefix), "is there twice");
        }
        (value != JsonValue::Null).then_some(value)
    }

    /// What was not asked for is unknown.
    fn finish(self) {
        let known: Vec<&str> = self.known.iter().map(|(name, _)| *name).collect();
        let room = self.reading.violations.remaining();
        for (key, _) in self.entries.iter().take(room) {
            let message = match nearest(key, &known) {
                Some(name) => format!("is not a known field; perhaps {name} is meant"),
                None => format!(
                    "is not a known field; the known ones are {}",
                    known.join(", ")
                ),
            };
            self.reading
                .violate(format!("{}{}", self.prefix, name_of(key)), message);
        }
    }
}

/// The known name that was perhaps meant.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    if key.len() > KEY_MOST {
        return None;
    }
    let key = key.to_lowercase();
    let alike = known
        .iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(name, &key), *name));
    let alike = alike
        .filter(|(alike, _)| *alike >= ALIKE)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    alike.map(|(_, name)| name)
}

/// A key as an error text may show it.
fn name_of(key: &str) -> String {
    let plain = !key.is_empty()
        && key.len() <= KEY_MOST
        && key
            .chars()
            .all(|letter| letter.is_alphanumeric() || "_-".contains(letter));
    if plain { key.to_owned() } else { quote(key) }
}

impl Read for String {
    fn schema(_: &mut Schemas) -> Value {
        json!({ "type": "string" })
    }

    fn read(value: JsonValue<'_>, path: &str, reading: &mut Reading) -> Option<Self> {
        match value {
            JsonValue::Str(text) => Some(text.into_owned()),
            other => reading.wrong(path, "text", &other),
        }
    }
}

impl Read for bool {
    fn schema(_: &mut Schemas) -> Value {
        json!({ "type": "boolean" })
    }

    fn read(value: JsonValue<'_>, path: &str, reading: &mut Reading) -> Option<Self> {
        match value {
            JsonValue::Bool(flag) => Some(flag),
            other => reading.wrong(path, "true or false", &other),
        }
    }
}

impl Read for Struct {
    fn schema(_: &mut Schemas) -> Value {
        json!({ "type": "object" })
    }

    fn read(value: JsonValue<'_>, path: &str, reading: &mut Reading) -> Option<Self> {
        match value {
            JsonValue::Object(entries) => Some(reading.structure(entries, path, 1)),
            other => reading.wrong(path, "an object", &other),
        }
    }
}

impl<T: Read> Read for Option<T> {
    fn schema(schemas: &mut Schemas) -> Value {
        T::schema(schemas)
    }

    fn read(value: JsonValue<'_>, path: &str, reading: &mut Reading) -> Option<Self> {
        T::read(value, path, reading).map(Some)
    }
}

impl<T: Read> Read for Vec<T> {
    fn schema(schemas: &mut Schemas) -> Value {
        json!({ "type": "array", "items": T::schema(schemas) })
    }

    fn read(value: JsonValue<'_>, path: &str, reading: &mut Reading) -> Option<Self> {
        let JsonValue::Array(values) = value else {
            return reading.wrong(path, "a list", &value);
        };
        if values.len() > LIST_MOST {
            reading.violate(
                path,
                format!("has {} entries; fewer are allowed", values.len()),
            );
        }
        let values = Arc::unwrap_or_clone(values)
            .into_iter()
            .take(LIST_MOST)
            .enumerate();
        // One that cannot be read keeps its place, so that the paths of the others stay right.
        Some(
            values
                .map(|(n, value)| {
                    T::read(value, &format!("{path}[{n}]"), reading).unwrap_or_default()
                })
                .collect(),
        )
    }
}

/// The message that a body states.
///
/// # Errors
/// It is no JSON object. What is wrong with its fields is in `found`.
pub(super) fn message<T: ReadObject>(
    body: &[u8],
    naming: Naming,
    found: &TransportViolations,
) -> Result<T, Fault> {
    let bad = |message| Fault::new(StatusCode::BAD_REQUEST, message);
    let value = JsonValue::parse(body, false)
        .map_err(|why| bad(format!("the body is not JSON: {}", why.description(body))))?;
    let JsonValue::Object(entries) = value else {
        return Err(bad("the body must be a JSON object".to_owned()));
    };
    let mut reading = Reading::new(naming);
    let read = reading.object(entries, String::new());
    reading.finish(found);
    Ok(read)
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
