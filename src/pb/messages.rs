//! Counts the messages within a message before it is decoded: each takes as few as two bytes on the
//! wire, and hundreds in memory.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_types::{DescriptorProto, FileDescriptorSet};

use super::FILE_DESCRIPTOR_SET;

/// The most messages that are fields of the message itself: twice the entries of the largest batch,
/// so that a batch somewhat too large gets the error that names its limit.
const MAX_DIRECT_MESSAGES: usize = 2_000;
/// The most messages at all depths.
const MAX_MESSAGES: usize = 250_000;
/// Deeper messages are not counted: the decoder rejects them.
const MAX_DEPTH: usize = 100;

/// The message contains more messages than this maximum.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany(pub usize);

/// The fields of a message type that are messages: field number to type.
type Fields = HashMap<u32, usize>;

/// Every message type in the protos.
struct Types {
    by_name: HashMap<String, usize>,
    fields: Vec<Fields>,
}

static TYPES: LazyLock<Types> = LazyLock::new(|| {
    // The descriptors are compiled in; without them nothing would be counted.
    let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut all = Vec::new();
    for file in &files.file {
        file.message_type
            .iter()
            .for_each(|one| collect(&format!(".{}", file.package()), one, &mut all));
    }
    let by_name: HashMap<String, usize> = all
        .iter()
        .enumerate()
        .map(|(at, (name, _))| (name.clone(), at))
        .collect();
    let fields_of = |one: &DescriptorProto| {
        let known = one.field.iter().filter_map(|field| {
            Some((
                u32::try_from(field.number()).ok()?,
                *by_name.get(field.type_name())?,
            ))
        });
        known.collect()
    };
    Types {
        fields: all.iter().map(|(_, one)| fields_of(one)).collect(),
        by_name,
    }
});

fn collect<'a>(
    prefix: &str,
    one: &'a DescriptorProto,
    all: &mut Vec<(String, &'a DescriptorProto)>,
) {
    let name = format!("{prefix}.{}", one.name());
    one.nested_type
        .iter()
        .for_each(|inner| collect(&name, inner, all));
    all.push((name, one));
}

/// Checks that a message of this type does not contain too many messages. Malformed input is left
/// to the decoder.
pub(super) fn check(message: &[u8], full_name: &str) -> Result<(), TooMany> {
    let Some(&of) = TYPES.by_name.get(&format!(".{full_name}")) else {
        return Ok(());
    };
    let mut all = 0;
    count(message, of, 0, &mut all)
}

fn count(mut message: &[u8], of: usize, depth: usize, all: &mut usize) -> Result<(), TooMany> {
    let mut direct = 0;
    while let Some((field, wire)) = decode_key(&mut message).ok().filter(|_| depth <= MAX_DEPTH) {
        let known = TYPES.fields[of]
            .get(&field)
            .filter(|_| wire == WireType::LengthDelimited);
        let Some(&inner_of) = known else {
            if skip_field(wire, field, &mut message, DecodeContext::default()).is_err() {
                break;
            }
            continue;
        };
        let length = decode_varint(&mut message)
            .ok()
            .and_then(|length| usize::try_from(length).ok());
        let Some((inner, rest)) = length.and_then(|length| message.split_at_checked(length)) else {
            break;
        };
        message = rest;
        (direct, *all) = (direct + 1, *all + 1);
        if depth == 0 && direct > MAX_DIRECT_MESSAGES {
            return Err(TooMany(MAX_DIRECT_MESSAGES));
        }
        if *all > MAX_MESSAGES {
            return Err(TooMany(MAX_MESSAGES));
        }
        count(inner, inner_of, depth + 1, all)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use prost_types::{ListValue, Struct, Value, value::Kind};

    use super::*;
    use crate::pb::v1::{
        BatchUpdateCanvasSchedulesRequest as Batch, UpdateCanvasScheduleRequest as Update,
    };

    const UPDATE: &str = "canvas.schedule.v1.UpdateCanvasScheduleRequest";
    const BATCH: &str = "canvas.schedule.v1.BatchUpdateCanvasSchedulesRequest";

    /// An update with a list of so many values among its properties.
    fn with_values(values: usize) -> Update {
        let list = Value {
            kind: Some(Kind::ListValue(ListValue {
                values: vec![Value::default(); values],
            })),
        };
        let fields = [("a".to_owned(), list)].into();
        // Strings, which are no messages whatever they hold.
        let text = "\n\0".repeat(1000);
        Update {
            trigger_properties: Some(Struct { fields }),
            canvas_id: text.clone(),
            etag: text,
            ..Default::default()
        }
    }

    #[test]
    fn messages_are_counted_at_every_depth() {
        // The properties, their entry, its value and that one's list are four.
        assert_eq!(
            check(&with_values(MAX_MESSAGES - 4).encode_to_vec(), UPDATE),
            Ok(())
        );
        assert_eq!(
            check(&with_values(MAX_MESSAGES - 3).encode_to_vec(), UPDATE),
            Err(TooMany(MAX_MESSAGES))
        );
        let batch = Batch {
            requests: vec![with_values(MAX_MESSAGES / 2 - 5); 2],
        };
        assert_eq!(check(&batch.encode_to_vec(), BATCH), Ok(()));
        let batch = Batch {
            requests: vec![with_values(MAX_MESSAGES / 2 - 4); 2],
        };
        assert_eq!(
            check(&batch.encode_to_vec(), BATCH),
            Err(TooMany(MAX_MESSAGES))
        );
    }

    #[test]
    fn direct_entries_have_a_limit_of_their_own() {
        let batch = |entries| {
            Batch {
                requests: vec![Update::default(); entries],
            }
            .encode_to_vec()
        };
        assert_eq!(check(&batch(MAX_DIRECT_MESSAGES), BATCH), Ok(()));
        assert_eq!(
            check(&batch(MAX_DIRECT_MESSAGES + 1), BATCH),
            Err(TooMany(MAX_DIRECT_MESSAGES))
        );
    }

    #[test]
    fn malformed_input_is_left_to_the_decoder() {
        for message in [
            &b"\x0a\x7f"[..],
            b"\xff\xff\xff\xff\xff",
            b"\x0a",
            b"\x08\x01",
            b"",
        ] {
            assert_eq!(check(message, BATCH), Ok(()), "{message:?}");
        }
        assert_eq!(check(&[0x0a, 0], "no.Such"), Ok(()));
    }
}
