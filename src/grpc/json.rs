//! `google.protobuf.Struct` to JSON; the way back is `pb/values.rs`.

use prost_types::value::Kind;
use prost_types::{Struct, Value as ProtoValue};
use serde_json::{Map, Value};

use crate::error::Violations;
use crate::pb::values;

/// A JSON object from what a caller sent as `field`. Recursion is bounded: the decoder refuses what
/// nests over about 34 deep.
pub(super) fn object(sent: Struct, field: &str, violations: &mut Violations) -> Map<String, Value> {
    sent.fields
        .into_iter()
        .map(|(key, sent)| (key, value(sent, field, violations)))
        .collect()
}

fn value(sent: ProtoValue, field: &str, violations: &mut Violations) -> Value {
    match sent.kind {
        Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(flag)) => Value::Bool(flag),
        Some(Kind::StringValue(text)) => Value::String(text),
        Some(Kind::NumberValue(number)) => values::number(number).unwrap_or_else(|| {
            let message = format!(
                "contains the number {number}, which JSON cannot represent; send a finite number or a string"
            );
            once(violations, field, message);
            Value::Null
        }),
        Some(Kind::StructValue(inner)) => Value::Object(object(inner, field, violations)),
        Some(Kind::ListValue(inner)) => Value::Array(
            inner
                .values
                .into_iter()
                .map(|inner| value(inner, field, violations))
                .collect(),
        ),
        None => {
            let message = "contains a value without a kind; send null, a boolean, a number, a \
                string, a list or an object";
            once(violations, field, message);
            Value::Null
        }
    }
}

/// Adds a violation, unless the last one is of the same field: a message can hold tens of
/// thousands.
fn once(violations: &mut Violations, field: &str, message: impl Into<String>) {
    if violations.last().is_none_or(|last| last.field != field) {
        violations.add(field, message);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json() -> impl Strategy<Value = Value> {
        let whole = (-9_007_199_254_740_991i64..9_007_199_254_740_991)
            .prop_map(|whole| Value::Number(whole.into()));
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            "\\PC{0,8}".prop_map(Value::String),
            whole
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
                prop::collection::btree_map("\\PC{0,4}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_comes_back_is_what_was_sent(value in json()) {
            let sent: Map<String, Value> = [("k".to_owned(), value)].into_iter().collect();
            let mut violations = Violations::default();
            prop_assert_eq!(&object(values::object(&sent), "p", &mut violations), &sent);
            prop_assert!(violations.is_empty());
        }
    }

    #[test]
    fn what_json_cannot_hold_is_refused_by_name() {
        for kind in [
            Some(Kind::NumberValue(f64::NAN)),
            Some(Kind::NumberValue(f64::INFINITY)),
            None,
        ] {
            let mut violations = Violations::default();
            let sent = Struct {
                fields: [("k".to_owned(), ProtoValue { kind: kind.clone() })]
                    .into_iter()
                    .collect(),
            };
            object(sent, "trigger_properties", &mut violations);
            assert_eq!(violations.len(), 1, "{kind:?}");
        }
    }
}
