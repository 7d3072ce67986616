//! A few zones, written by worker: one far east, UTC, and two that differ only by daylight saving
//! time.

use std::fmt;
use std::ops::Range;

/// An instant or a wall-clock time, in seconds since 1970.
pub(super) type Time = i64;

pub(super) const HOUR: Time = 3600;
pub(super) const DAY: Time = 24 * HOUR;

const KIRITIMATI: usize = 0;
/// The zone of users without a zone.
pub(super) const UTC: usize = 1;
const PANAMA: usize = 2;
const NEW_YORK: usize = 3;

/// Their IANA names.
pub(super) const NAMES: [&str; 4] = [
    "Pacific/Kiritimati",
    "UTC",
    "America/Panama",
    "America/New_York",
];

/// Daylight saving time in New York in 2026 and 2027.
const SUMMERS: [Range<Time>; 2] = [1_772_953_200..1_793_512_800, 1_805_007_600..1_825_567_200];

/// The version of the zone rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Rules {
    /// The real rules.
    Real,
    /// The rules of a release in which Panama is an hour further west.
    Other,
}

/// Seconds east of UTC at `instant`.
fn offset(zone: usize, instant: Time, rules: Rules) -> Time {
    match (zone, rules) {
        (KIRITIMATI, _) => 14 * HOUR,
        (PANAMA, Rules::Real) => -5 * HOUR,
        (PANAMA, Rules::Other) => -6 * HOUR,
        (NEW_YORK, _) if SUMMERS.iter().any(|summer| summer.contains(&instant)) => -4 * HOUR,
        (NEW_YORK, _) => -5 * HOUR,
        _ => 0,
    }
}

/// The instant at which the clock of `zone` shows `wall`: the first one in an overlap; in a gap,
/// the instant by the offset before it.
pub(super) fn instant(wall: Time, zone: usize, rules: Rules) -> Time {
    let before = offset(zone, wall - DAY, rules);
    let after = offset(zone, wall + DAY, rules);
    let shows = |by: &Time| offset(zone, wall - by, rules) == *by;
    wall - [before, after].into_iter().find(shows).unwrap_or(before)
}

/// A set of zones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Zones(u8);

impl Zones {
    pub(super) const NONE: Self = Self(0);

    pub(super) fn all() -> Self {
        (0..NAMES.len()).collect()
    }

    pub(super) fn iter(self) -> impl Iterator<Item = usize> {
        (0..NAMES.len()).filter(move |zone| self.has(*zone))
    }

    pub(super) fn has(self, zone: usize) -> bool {
        self.0 & (1 << zone) != 0
    }

    pub(super) fn len(self) -> usize {
        self.iter().count()
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn named<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        names
            .into_iter()
            .map(|name| {
                NAMES
                    .iter()
                    .position(|known| *known == name)
                    .expect("a zone of the model")
            })
            .collect()
    }
}

impl FromIterator<usize> for Zones {
    fn from_iter<I: IntoIterator<Item = usize>>(zones: I) -> Self {
        Self(zones.into_iter().fold(0, |bits, zone| bits | 1 << zone))
    }
}

impl fmt::Debug for Zones {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(|zone| NAMES[zone]))
            .finish()
    }
}

#[test]
fn wall_clock_times_exist_once_never_or_twice() {
    let new_york = |wall| crate::support::instant(wall).timestamp();
    for (wall, shown) in [
        ("2026-03-08T01:59:59Z", "2026-03-08T06:59:59Z"),
        ("2026-03-08T02:30:00Z", "2026-03-08T07:30:00Z"),
        ("2026-03-08T03:00:00Z", "2026-03-08T07:00:00Z"),
        ("2026-11-01T01:30:00Z", "2026-11-01T05:30:00Z"),
        ("2026-11-01T02:00:00Z", "2026-11-01T07:00:00Z"),
    ] {
        assert_eq!(
            instant(new_york(wall), NEW_YORK, Rules::Real),
            new_york(shown),
            "{wall}"
        );
    }
}
