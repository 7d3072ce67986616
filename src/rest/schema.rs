//! The shapes of requests and answers, for the description: of requests from what reads them, with the texts of the protos; of
//! answers from their types.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use prost::Message;
use prost_types::FileDescriptorSet;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::bounds;
use super::read::{Describe, Naming, ReadObject, fields};
use crate::pb::FILE_DESCRIPTOR_SET;

/// Schemas by name.
#[derive(Default)]
pub(super) struct Schemas(BTreeMap<String, Value>);

impl Schemas {
    /// A reference to the object that a message is read from, by this name.
    pub(super) fn object<T: ReadObject>(&mut self, name: &str, naming: Naming) -> Value {
        if !self.0.contains_key(name) {
            // Its place, should it contain itself.
            self.0.insert(name.to_owned(), Value::Null);
            let (mut properties, mut required) = (Map::new(), Vec::new());
            for (field, describe) in fields::<T>(naming) {
                let text = Text::of(T::NAME, field);
                required.extend(text.required.then_some(field));
                properties.insert(field.to_owned(), self.field(field, describe, &text));
            }
            let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
            if !required.is_empty() {
                schema["required"] = json!(required);
            }
            self.0.insert(name.to_owned(), schema);
        }
        reference(name)
    }

    /// A field. An optional one may be null, which is the same as absent.
    fn field(&mut self, name: &str, describe: Describe, text: &Text) -> Value {
        let mut schema = describe(self);
        bounds::add(name, text.required, &mut schema);
        if !text.required {
            schema = match schema.get("type") {
                Some(kind) => {
                    schema["type"] = json!([kind, "null"]);
                    schema
                }
                None => json!({ "anyOf": [schema, { "type": "null" }] }),
            };
        }
        schema["description"] = json!(text.text);
        schema
    }

    /// The query that a message is read from.
    pub(super) fn query<T: ReadObject>(&mut self) -> Vec<Value> {
        let parameter = |(field, describe): (&str, Describe)| {
            let text = Text::of(T::NAME, field).text;
            let mut schema = describe(self);
            bounds::add(field, false, &mut schema);
            json!({ "name": field, "in": "query", "description": text, "schema": schema })
        };
        fields::<T>(Naming::Canvas)
            .into_iter()
            .map(parameter)
            .collect()
    }

    /// A reference to an answer.
    pub(super) fn answer<T: ToSchema>(&mut self) -> Value {
        let mut all = Vec::new();
        T::schemas(&mut all);
        for (name, schema) in all {
            self.0.insert(name, as_value(&schema));
        }
        self.0
            .insert(T::name().into_owned(), as_value(&T::schema()));
        reference(&T::name())
    }

    /// All of them.
    pub(super) fn finish(self) -> Value {
        json!(self.0)
    }
}

fn as_value(schema: &impl Serialize) -> Value {
    // A schema is a tree of texts; that it can be written is seen by the test of the whole description.
    serde_json::to_value(schema).unwrap_or_default()
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// What the protos say of a field.
#[derive(Default)]
struct Text {
    required: bool,
    text: String,
}

impl Text {
    fn of(message: &str, field: &str) -> Self {
        // The other name of the same field.
        let field = if field == Naming::Campaign.outer("canvas_id") {
            "canvas_id"
        } else {
            field
        };
        let Some(comment) = COMMENTS.get(&(message.to_owned(), field.to_owned())) else {
            return Self::default();
        };
        let text = comment.split_whitespace().collect::<Vec<_>>().join(" ");
        let (first, rest) = text.split_once(". ").unwrap_or((&text, ""));
        Self {
            required: first == "Required",
            text: rest.to_owned(),
        }
    }
}

/// The comments of the protos, by message and field.
static COMMENTS: LazyLock<HashMap<(String, String), String>> = LazyLock::new(|| {
    // The descriptors are compiled in; that they can be read is seen by the test of the whole description.
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut comments = HashMap::new();
    for file in set.file {
        for location in file.source_code_info.unwrap_or_default().location {
            // Message, its index, field, its index.
            let [4, message, 2, field] = location.path[..] else {
                continue;
            };
            let at = |index: i32| usize::try_from(index).unwrap_or_default();
            let Some(message) = file.message_type.get(at(message)) else {
                continue;
            };
            let Some(field) = message.field.get(at(field)) else {
                continue;
            };
            comments.insert(
                (message.name().to_owned(), field.name().to_owned()),
                location.leading_comments().to_owned(),
            );
        }
    }
    comments
});
