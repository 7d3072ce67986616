//! The value `{time, in_local_time, at_optimal_time}`: its ISO 8601 parser and its normal form.

use std::fmt;

use chrono::{Datelike, NaiveDate, NaiveDateTime, TimeDelta, Timelike};
use serde::{Deserialize, Serialize};

use crate::error::quote;

/// The accepted forms, which every error names.
const ACCEPTED: &str = "send an ISO 8601 date and time such as 2026-03-01T09:30:00Z, \
    2026-03-01T09:30:00+02:00 or 2026-03-01T09:30:00";

/// When a Canvas is sent. An update replaces it as a whole (docs/api.md).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Schedule {
    /// To the millisecond: UTC when the schedule is an instant, else the wall-clock time in each
    /// zone.
    time: NaiveDateTime,
    /// The wall-clock time in each zone.
    pub in_local_time: bool,
    /// Only the date counts: the wave is due at local midnight in each zone, and the consumer
    /// chooses the time within the day.
    pub at_optimal_time: bool,
}

impl Schedule {
    /// Parses `time` as the caller sent it. A zone designator is applied if the schedule is an
    /// instant, and ignored if it is local or optimal. An error names the value and the accepted
    /// forms, but not the field.
    pub fn parse(time: &str, in_local_time: bool, at_optimal_time: bool) -> Result<Self, String> {
        let (digits, offset) =
            parse_iso(time).map_err(|why| format!("{} {why}; {ACCEPTED}", quote(time)))?;
        let local = in_local_time || at_optimal_time;
        let kept = if local {
            Some(digits)
        } else {
            digits.checked_sub_signed(offset.unwrap_or_default())
        };
        // The offset may move the time out of the years that the form can print.
        kept.filter(|kept| (1..=9999).contains(&kept.year()))
            .map(|time| Self {
                time,
                in_local_time,
                at_optimal_time,
            })
            .ok_or_else(|| format!("{} is out of range; {ACCEPTED}", quote(time)))
    }

    /// A schedule from its stored parts, with the milliseconds of [`Self::millis`].
    pub fn from_parts(millis: i64, in_local_time: bool, at_optimal_time: bool) -> Option<Self> {
        let time = chrono::DateTime::from_timestamp_millis(millis)?.naive_utc();
        Some(Self {
            time,
            in_local_time,
            at_optimal_time,
        })
    }

    /// Milliseconds since 1970 of UTC (an instant) or of the wall clock (local and optimal).
    pub fn millis(&self) -> i64 {
        self.time.and_utc().timestamp_millis()
    }

    /// The time: UTC if the schedule is an instant, else the wall-clock time.
    pub fn time(&self) -> NaiveDateTime {
        self.time
    }

    /// Whether the time is a wall-clock time in each zone rather than one instant.
    pub fn is_local(&self) -> bool {
        self.in_local_time || self.at_optimal_time
    }
}

/// The normal form of the time: `Z` if it is an instant, no designator if it is a wall-clock time,
/// and three digits of milliseconds unless they are zero.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.time;
        let (year, month, day) = (time.year(), time.month(), time.day());
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}",
            time.hour(),
            time.minute(),
            time.second()
        )?;
        match self.millis().rem_euclid(1000) {
            0 => {}
            millis => write!(f, ".{millis:03}")?,
        }
        f.write_str(if self.is_local() { "" } else { "Z" })
    }
}

type Parsed = (NaiveDateTime, Option<TimeDelta>);

/// Date, separator, time, designator; the digits and the offset east of UTC.
fn parse_iso(text: &str) -> Result<Parsed, &'static str> {
    let mut rest = Digits(text.as_bytes());
    let date = parse_date(&mut rest)?;
    if rest.0.is_empty() {
        return Err("has no time of day");
    }
    if !(rest.take(b'T') || rest.take(b' ')) {
        return Err("has neither T nor one space between date and time");
    }
    let (hour, minute) = parse_hour_minute(&mut rest)?;
    let (second, nanos) = parse_second(&mut rest)?;
    let offset = parse_designator(rest)?;
    // Truncated to the millisecond.
    let time = date.and_hms_milli_opt(hour, minute, second, nanos / 1_000_000);
    Ok((time.ok_or("is not a time of day")?, offset))
}

fn parse_date(rest: &mut Digits<'_>) -> Result<NaiveDate, &'static str> {
    const FORM: &str = "does not begin with a date such as 2026-03-01";
    let year = rest.number(4).ok_or(FORM)?;
    let month = rest.after(b'-', 2).ok_or(FORM)?;
    let day = rest.after(b'-', 2).ok_or(FORM)?;
    let year = i32::try_from(year).map_err(|_| FORM)?;
    if year == 0 {
        return Err("has the year 0000");
    }
    NaiveDate::from_ymd_opt(year, month, day).ok_or("has a date that does not exist")
}

fn parse_hour_minute(rest: &mut Digits<'_>) -> Result<(u32, u32), &'static str> {
    const FORM: &str = "has no time of day such as 09:30";
    let hour = rest.number(2).ok_or(FORM)?;
    let minute = rest.after(b':', 2).ok_or(FORM)?;
    match (hour, minute) {
        (24, _) => Err("has the hour 24; midnight is 00:00 of the next day"),
        (25.., _) => Err("has an hour greater than 23"),
        (_, 60..) => Err("has a minute greater than 59"),
        _ => Ok((hour, minute)),
    }
}

fn parse_second(rest: &mut Digits<'_>) -> Result<(u32, u32), &'static str> {
    if !rest.take(b':') {
        return Ok((0, 0));
    }
    let second = rest
        .number(2)
        .ok_or("has seconds that are not two digits")?;
    match second {
        60 => return Err("has a leap second, which cannot be scheduled"),
        61.. => return Err("has a second greater than 59"),
        _ => {}
    }
    let nanos = if rest.take(b'.') || rest.take(b',') {
        rest.fraction()?
    } else {
        0
    };
    Ok((second, nanos))
}

fn parse_designator(mut rest: Digits<'_>) -> Result<Option<TimeDelta>, &'static str> {
    const FORM: &str = "ends in something other than Z, +hh:mm, +hhmm or +hh";
    let sign = match rest.0.first() {
        None => return Ok(None),
        Some(b'Z') if rest.0.len() == 1 => return Ok(Some(TimeDelta::zero())),
        Some(b'+') => 1,
        Some(b'-') => -1,
        Some(_) => return Err(FORM),
    };
    rest.0 = &rest.0[1..];
    let hours = rest.number(2).ok_or(FORM)?;
    let colon = rest.take(b':');
    let minutes = if rest.0.is_empty() && !colon {
        0
    } else {
        rest.number(2).ok_or(FORM)?
    };
    if !rest.0.is_empty() {
        return Err(FORM);
    }
    if hours > 23 || minutes > 59 {
        return Err("has a UTC offset greater than 23:59");
    }
    Ok(Some(TimeDelta::minutes(
        sign * i64::from(hours * 60 + minutes),
    )))
}

/// The rest of the text.
struct Digits<'a>(&'a [u8]);

impl Digits<'_> {
    /// Exactly `count` ASCII digits.
    fn number(&mut self, count: usize) -> Option<u32> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        let value = digits.iter().try_fold(0, |sum: u32, byte| {
            byte.is_ascii_digit()
                .then(|| sum * 10 + u32::from(byte - b'0'))
        })?;
        self.0 = rest;
        Some(value)
    }

    /// `separator`, then exactly `count` digits.
    fn after(&mut self, separator: u8, count: usize) -> Option<u32> {
        if self.take(separator) {
            self.number(count)
        } else {
            None
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.0.first() == Some(&byte);
        if found {
            self.0 = &self.0[1..];
        }
        found
    }

    /// One to 30 digits after the decimal sign, as nanoseconds; truncated.
    fn fraction(&mut self) -> Result<u32, &'static str> {
        let count = self
            .0
            .iter()
            .take_while(|byte| byte.is_ascii_digit())
            .count();
        if !(1..=30).contains(&count) {
            return Err("has a fraction that is not 1 to 30 digits");
        }
        let (digits, rest) = self.0.split_at(count);
        self.0 = rest;
        Ok((0..9).fold(0, |sum, place| {
            sum * 10 + digits.get(place).map_or(0, |byte| u32::from(byte - b'0'))
        }))
    }
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
