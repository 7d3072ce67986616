//! Plans the waves of a schedule and its open zones (docs/api.md).

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Timelike, Utc};
use jiff::civil;

use super::schedule::Schedule;
use super::zone::{Zone, ZoneSet};

/// When the consumer sends the messages of a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaveMode {
    /// Send at the wave's time.
    AtTime,
    /// Choose a time for each user within the local day that begins at the wave's time.
    OptimalTime,
}

/// Zones whose wall clocks reach the scheduled time at the same instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wave {
    /// The instant.
    pub time: DateTime<Utc>,
    /// The zones.
    pub zones: ZoneSet,
    /// Whether it includes users without a zone or with an unknown one: true for the wave with the
    /// default zone.
    pub includes_unlisted_zones: bool,
    /// When the consumer sends.
    pub mode: WaveMode,
}

/// The plan of the open zones. Each is in exactly one wave, or missed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// The earliest first.
    pub waves: Vec<Wave>,
    /// Zones whose time was too far in the past when the schedule was accepted.
    pub missed: ZoneSet,
}

/// Plans the `open` zones. A zone is missed if its last instant is before `missed_before`: the time
/// of its wave, or for optimal time the end of its local day.
pub fn plan(
    schedule: &Schedule,
    open: &ZoneSet,
    default_zone: Zone,
    missed_before: DateTime<Utc>,
) -> Plan {
    let mode = if schedule.at_optimal_time {
        WaveMode::OptimalTime
    } else {
        WaveMode::AtTime
    };
    let mut by_time: BTreeMap<DateTime<Utc>, ZoneSet> = BTreeMap::new();
    let mut missed = ZoneSet::empty();
    if schedule.is_local() {
        for zone in open.iter() {
            let times = ZoneTimes::of(schedule, zone);
            if times.last < missed_before {
                missed.insert(zone)
            } else {
                by_time.entry(times.wave).or_default().insert(zone)
            }
        }
    } else if !open.is_empty() {
        let instant = schedule.time().and_utc();
        if instant < missed_before {
            missed = *open;
        } else {
            by_time.insert(instant, *open);
        }
    }
    let wave = |(time, zones): (DateTime<Utc>, ZoneSet)| Wave {
        time,
        zones,
        includes_unlisted_zones: zones.contains(default_zone),
        mode,
    };
    Plan {
        waves: by_time.into_iter().map(wave).collect(),
        missed,
    }
}

/// The instants of one zone.
struct ZoneTimes {
    /// The time of its wave.
    wave: DateTime<Utc>,
    /// The last instant at which its wave still meets the schedule.
    last: DateTime<Utc>,
}

impl ZoneTimes {
    fn of(schedule: &Schedule, zone: Zone) -> Self {
        let time = schedule.time();
        if !schedule.at_optimal_time {
            let wave = wall_time(time, zone);
            return Self { wave, last: wave };
        }
        let next_day = time.date().succ_opt().unwrap_or(NaiveDate::MAX);
        let end = wall_time(next_day.and_time(NaiveTime::MIN), zone);
        Self {
            wave: wall_time(time.date().and_time(NaiveTime::MIN), zone),
            last: end - TimeDelta::milliseconds(1),
        }
    }
}

/// The instant at which the wall clock of `zone` shows `time`, by RFC 5545 and ECMAScript's
/// Temporal ("compatible"): a time in a gap is read with the offset before the gap, and a time that
/// occurs twice is its first occurrence.
///
/// Never fails: a time outside the range of an instant is read as UTC. The horizon rejects such
/// times.
pub fn wall_time(time: NaiveDateTime, zone: Zone) -> DateTime<Utc> {
    civil_time(time)
        .and_then(|civil| zone.rules().to_ambiguous_timestamp(civil).compatible().ok())
        .and_then(|instant| DateTime::from_timestamp_millis(instant.as_millisecond()))
        .unwrap_or_else(|| time.and_utc())
}

/// Converts chrono's wall-clock time to jiff's; both use the proleptic Gregorian calendar.
fn civil_time(time: NaiveDateTime) -> Option<civil::DateTime> {
    let small = |value: u32| i8::try_from(value).ok();
    civil::DateTime::new(
        i16::try_from(time.year()).ok()?,
        small(time.month())?,
        small(time.day())?,
        small(time.hour())?,
        small(time.minute())?,
        small(time.second())?,
        i32::try_from(time.nanosecond()).ok()?,
    )
    .ok()
}

#[cfg(test)]
#[path = "wave_tests.rs"]
mod tests;
