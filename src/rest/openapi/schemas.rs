//! Schemas of requests and responses for the OpenAPI description: of requests from the fields that
//! are read, with the comments of the protos; of responses from their types.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use prost::Message;
use prost_types::FileDescriptorSet;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::constraints;
use crate::pb::FILE_DESCRIPTOR_SET;
use crate::rest::json_reader::{CanvasIdName, FromJsonObject, JsonType, MessageType};

/// Schemas by name.
#[derive(Default)]
pub(super) struct Schemas(BTreeMap<String, Value>);

impl Schemas {
    /// Adds the request body with the name of its message and returns a reference to it.
    pub(super) fn request<T: FromJsonObject>(&mut self) -> Value {
        self.message(T::NAME, &MessageType::of::<T>(), CanvasIdName::CanvasId)
    }

    /// Adds the request body of a route that says `campaign_id` and returns a reference to it.
    pub(super) fn campaign_request<T: FromJsonObject>(&mut self, name: &str) -> Value {
        self.message(name, &MessageType::of::<T>(), CanvasIdName::CampaignId)
    }

    fn message(&mut self, name: &str, message: &MessageType, canvas_id: CanvasIdName) -> Value {
        if !self.0.contains_key(name) {
            // A message that contains itself finds this entry.
            self.0.insert(name.to_owned(), Value::Null);
            let (mut properties, mut required) = (Map::new(), Vec::new());
            for (field, json_type) in (message.fields)(canvas_id) {
                let comment = FieldComment::of(message.name, canvas_id.proto_name(field));
                required.extend(comment.required.then_some(field));
                properties.insert(field.to_owned(), self.field(field, &json_type(), comment));
            }
            let mut schema = json!({
                "type": "object",
                "properties": properties,
                "additionalProperties": false,
            });
            if !required.is_empty() {
                schema["required"] = json!(required);
            }
            self.0.insert(name.to_owned(), schema);
        }
        reference(name)
    }

    /// The schema of a field. An optional field may be null, which means absent.
    fn field(&mut self, name: &str, json_type: &JsonType, comment: FieldComment) -> Value {
        let mut schema = self.value(json_type);
        constraints::add(name, comment.required, &mut schema);
        if !comment.required {
            schema = match schema.get("type") {
                Some(kind) => {
                    schema["type"] = json!([kind, "null"]);
                    schema
                }
                None => json!({ "anyOf": [schema, { "type": "null" }] }),
            };
        }
        schema["description"] = json!(comment.text);
        schema
    }

    fn value(&mut self, json_type: &JsonType) -> Value {
        match json_type {
            JsonType::String => json!({ "type": "string" }),
            JsonType::Boolean => json!({ "type": "boolean" }),
            JsonType::Integer => json!({ "type": "integer" }),
            JsonType::AnyObject => json!({ "type": "object" }),
            JsonType::OneOf(names) => json!({ "type": "string", "enum": names }),
            JsonType::List(items) => json!({ "type": "array", "items": self.value(items) }),
            JsonType::Message(message) => {
                self.message(message.name, message, CanvasIdName::CanvasId)
            }
        }
    }

    /// The query parameters that a message is read from.
    pub(super) fn query<T: FromJsonObject>(&mut self) -> Vec<Value> {
        let parameter = |(field, json_type): (&str, fn() -> JsonType)| {
            let comment = FieldComment::of(T::NAME, field);
            let mut schema = self.value(&json_type());
            constraints::add(field, false, &mut schema);
            json!({ "name": field, "in": "query", "description": comment.text, "schema": schema })
        };
        let fields = (MessageType::of::<T>().fields)(CanvasIdName::CanvasId);
        fields.into_iter().map(parameter).collect()
    }

    /// Adds a response body and returns a reference to it.
    pub(super) fn response<T: ToSchema>(&mut self) -> Value {
        let mut nested = Vec::new();
        T::schemas(&mut nested);
        for (name, schema) in nested {
            self.0.insert(name, as_value(&schema));
        }
        self.0
            .insert(T::name().into_owned(), as_value(&T::schema()));
        reference(&T::name())
    }

    pub(super) fn finish(self) -> Value {
        json!(self.0)
    }
}

fn as_value(schema: &impl Serialize) -> Value {
    // A schema always serializes; a test of the whole description would notice otherwise.
    serde_json::to_value(schema).unwrap_or_default()
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The comment of a field in the protos.
#[derive(Default)]
struct FieldComment {
    required: bool,
    text: String,
}

impl FieldComment {
    fn of(message: &str, field: &str) -> Self {
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
    // The compiled-in descriptors always decode; a test of the whole description would notice
    // otherwise.
    let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut comments = HashMap::new();
    for file in set.file {
        for location in file.source_code_info.unwrap_or_default().location {
            // 4 is the tag of messages in a file, 2 that of fields in a message.
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
