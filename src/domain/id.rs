//! Ids, each with its own type, so that one cannot be used as another.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::quote;

/// The most characters of an opaque id.
pub const MAX_ID_CHARS: usize = 255;
/// The most characters of a request id.
pub const MAX_REQUEST_ID_CHARS: usize = 128;

/// Checks that an opaque text has 1 to `max` characters and no control character: PostgreSQL cannot
/// store a NUL, and logs hide the others. An error names the value and what is expected, but not
/// the field.
pub fn opaque(value: &str, max: usize) -> Result<(), String> {
    let length = value.chars().count();
    if length == 0 {
        return Err(format!("is empty; send 1 to {max} characters"));
    }
    if length > max {
        return Err(format!(
            "{} has {length} characters; at most {max} are allowed",
            quote(value)
        ));
    }
    if value.chars().any(char::is_control) {
        return Err(format!(
            "{} contains a control character; remove it",
            quote(value)
        ));
    }
    Ok(())
}

/// The tenant. Every stored row is scoped by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkspaceId(pub i32);

impl WorkspaceId {
    /// The workspace `default`, which the first migration creates.
    pub const DEFAULT: Self = Self(1);
}

/// The id of a Canvas: an opaque text of 1 to 255 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct CanvasId(String);

impl CanvasId {
    /// Parses a value from a caller. An error names the value and what is expected, but not the
    /// field.
    pub fn parse(value: &str) -> Result<Self, String> {
        opaque(value, MAX_ID_CHARS).map(|()| Self(value.to_owned()))
    }

    /// The text as the caller sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id of a canvas schedule: a UUID version 7, so that ids sort by creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScheduleId(pub Uuid);

impl ScheduleId {
    /// A new id, which sorts after all earlier ones of this process.
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// Parses a value from a caller. An error names the value and what is expected, but not the
    /// field.
    pub fn parse(value: &str) -> Result<Self, String> {
        // The parser also accepts braced, URN and unhyphenated forms; the length excludes them.
        let parsed = if value.len() == 36 {
            Uuid::try_parse(value).ok()
        } else {
            None
        };
        parsed.map(Self).ok_or_else(|| {
            format!(
                "{} is not a valid schedule id; send the UUID that CreateCanvasSchedule returned, \
                 such as 0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11",
                quote(value)
            )
        })
    }
}

impl Default for ScheduleId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for ScheduleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

/// The caller's name for one request: 1 to 128 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId(String);

impl RequestId {
    /// Parses a value from a caller. An error names the value and what is expected, but not the
    /// field.
    pub fn parse(value: &str) -> Result<Self, String> {
        opaque(value, MAX_REQUEST_ID_CHARS).map(|()| Self(value.to_owned()))
    }

    /// The text as the caller sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id of properties of one schedule. It depends on their content alone, so properties are
/// written only when they change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PropertiesId(pub Uuid);

impl PropertiesId {
    /// The id of `canonical` JSON text within `schedule`.
    pub fn of(schedule: ScheduleId, canonical: &str) -> Self {
        Self(Uuid::from_bytes(digest_128(&[
            schedule.0.as_bytes(),
            canonical.as_bytes(),
        ])))
    }
}

/// The id of a dispatch: 128 bits of SHA-256 over the schedule's id and the dispatch's number, as
/// 32 lower-case hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DispatchId([u8; 16]);

impl DispatchId {
    /// The id of dispatch `number`, counted from 1.
    pub fn of(schedule: ScheduleId, number: u32) -> Self {
        Self(digest_128(&[schedule.0.as_bytes(), &number.to_be_bytes()]))
    }

    /// Parses a value from a caller. An error names the value and what is expected, but not the
    /// field.
    pub fn parse(value: &str) -> Result<Self, String> {
        let digits = value.len() == 32
            && value
                .bytes()
                .all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit));
        let number = if digits {
            u128::from_str_radix(value, 16).ok()
        } else {
            None
        };
        number
            .map(|number| Self(number.to_be_bytes()))
            .ok_or_else(|| {
                format!(
                    "{} is not a valid dispatch id; send the 32 lower-case hex digits that \
                     ListDispatches returned",
                    quote(value)
                )
            })
    }
}

impl fmt::Display for DispatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The etag of one revision of one schedule. Opaque to callers; different for every schedule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Etag(String);

impl Etag {
    /// The etag of `revision` of `schedule`.
    pub fn of(schedule: ScheduleId, revision: i64) -> Self {
        let digest = digest_128(&[schedule.0.as_bytes(), b"etag", &revision.to_be_bytes()]);
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self(format!("{:016x}", u64::from_be_bytes(first)))
    }

    /// An etag as a caller sent it. Any text is valid; one that this service never returned is
    /// stale.
    pub fn from_caller(value: &str) -> Self {
        Self(value.to_owned())
    }

    /// The text of the etag.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn digest_128(parts: &[&[u8]]) -> [u8; 16] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hash.finalize()[..16]);
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dispatch_id_is_128_bits_of_sha_256_over_schedule_and_number() {
        let id = ScheduleId::parse("0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11").expect("a valid id");
        let mut bytes = id.0.as_bytes().to_vec();
        bytes.extend([0, 0, 0, 1]);
        let whole: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(DispatchId::of(id, 1).to_string(), whole[..32]);
        assert_ne!(DispatchId::of(id, 1), DispatchId::of(id, 2));
        assert_eq!(DispatchId::parse(&whole[..32]), Ok(DispatchId::of(id, 1)));
        for value in [
            "",
            &whole[..31],
            &whole,
            &whole[..32].to_uppercase(),
            "ü000000000000000000000000000000",
        ] {
            assert!(DispatchId::parse(value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn errors_of_ids_name_the_fault() {
        for (value, expected) in [
            ("", "is empty"),
            ("a\0b", "control character"),
            (&"x".repeat(256), "has 256 characters"),
        ] {
            let error = CanvasId::parse(value).expect_err(value);
            assert!(error.contains(expected), "{value:?}: {error}");
        }
        assert!(
            CanvasId::parse(&"ü".repeat(255)).is_ok(),
            "characters are counted, not bytes"
        );
        for value in [
            "",
            "x",
            "0198c5a07d2e7c649f0b2f1a0c9d3b11",
            "{0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b1}",
        ] {
            assert!(ScheduleId::parse(value).is_err(), "{value:?}");
        }
    }

    #[test]
    fn an_etag_belongs_to_one_revision_of_one_schedule() {
        let (a, b) = (ScheduleId::new(), ScheduleId::new());
        assert_eq!(Etag::of(a, 1), Etag::from_caller(Etag::of(a, 1).as_str()));
        assert_ne!(Etag::of(a, 1), Etag::of(a, 2));
        assert_ne!(Etag::of(a, 1), Etag::of(b, 1));
    }
}
