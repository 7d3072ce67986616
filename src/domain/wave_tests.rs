use proptest::prelude::*;

use super::*;

fn utc(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).expect(text).to_utc()
}

fn local(time: &str) -> Schedule {
    Schedule::parse(time, true, false).expect(time)
}

/// Known answers: (zone, wall time, instant).
const KNOWN_ANSWERS: [(&str, &str, &str); 14] = [
    // The gap: 02:30 does not exist and is read with +01:00, which the clock then shows as 03:30.
    (
        "Europe/Berlin",
        "2026-03-29T02:30:00",
        "2026-03-29T01:30:00Z",
    ),
    (
        "Europe/Berlin",
        "2026-03-29T01:59:59.999",
        "2026-03-29T00:59:59.999Z",
    ),
    (
        "Europe/Berlin",
        "2026-03-29T03:00:00",
        "2026-03-29T01:00:00Z",
    ),
    // The overlap: 02:30 occurs twice, the first is still summer time.
    (
        "Europe/Berlin",
        "2026-10-25T02:30:00",
        "2026-10-25T00:30:00Z",
    ),
    (
        "Pacific/Apia",
        "2026-06-01T09:00:00",
        "2026-05-31T20:00:00Z",
    ),
    // Samoa skipped the whole of 30 December 2011: read with the offset from before, -10:00.
    (
        "Pacific/Apia",
        "2011-12-30T12:00:00",
        "2011-12-30T22:00:00Z",
    ),
    (
        "Asia/Kathmandu",
        "2026-06-01T09:00:00",
        "2026-06-01T03:15:00Z",
    ),
    // Half an hour of daylight saving: the gap is 02:00 to 02:30.
    (
        "Australia/Lord_Howe",
        "2026-10-04T02:15:00",
        "2026-10-03T15:45:00Z",
    ),
    (
        "Australia/Lord_Howe",
        "2026-04-05T01:45:00",
        "2026-04-04T14:45:00Z",
    ),
    (
        "America/St_Johns",
        "2026-01-15T12:00:00",
        "2026-01-15T15:30:00Z",
    ),
    (
        "America/St_Johns",
        "2026-07-15T12:00:00",
        "2026-07-15T14:30:00Z",
    ),
    (
        "Africa/Casablanca",
        "2026-02-01T12:00:00",
        "2026-02-01T11:00:00Z",
    ),
    // Ramadan of 2026: the clock goes back an hour from 15 February to 22 March.
    (
        "Africa/Casablanca",
        "2026-03-01T12:00:00",
        "2026-03-01T12:00:00Z",
    ),
    ("UTC", "2026-03-01T12:00:00", "2026-03-01T12:00:00Z"),
];

#[test]
fn known_answers() {
    for (zone, wall, instant) in KNOWN_ANSWERS {
        let zone = Zone::parse(zone).expect(zone);
        assert_eq!(
            wall_time(local(wall).time(), zone),
            utc(instant),
            "{} {wall}",
            zone.name()
        );
    }
}

#[test]
fn an_instant_is_one_wave_of_every_open_zone() {
    let at = Schedule::parse("2026-03-29T02:30:00+02:00", false, false).expect("a time");
    let plan = plan(
        &at,
        &ZoneSet::all(),
        Zone::utc(),
        utc("2026-01-01T00:00:00Z"),
    );
    assert_eq!(plan.missed, ZoneSet::empty());
    assert_eq!(plan.waves.len(), 1);
    assert_eq!(
        (plan.waves[0].time, plan.waves[0].zones),
        (utc("2026-03-29T00:30:00Z"), ZoneSet::all())
    );
    assert!(plan.waves[0].includes_unlisted_zones);
}

#[test]
fn local_waves_follow_the_sun_and_one_has_the_unlisted_zones() {
    let default_zone = Zone::parse("America/St_Johns").expect("a zone");
    let plan = plan(
        &local("2026-06-01T09:00:00"),
        &ZoneSet::all(),
        default_zone,
        utc("2026-01-01T00:00:00Z"),
    );
    let first = &plan.waves[0];
    assert!(
        first
            .zones
            .contains(Zone::parse("Pacific/Kiritimati").expect("a zone")),
        "+14:00 comes first"
    );
    assert_eq!(first.time, utc("2026-05-31T19:00:00Z"));
    let unlisted: Vec<_> = plan
        .waves
        .iter()
        .filter(|wave| wave.includes_unlisted_zones)
        .collect();
    assert_eq!(unlisted.len(), 1);
    assert!(unlisted[0].zones.contains(default_zone));
}

#[test]
fn optimal_time_is_local_midnight_and_good_until_the_day_ends() {
    let day = Schedule::parse("2026-03-29T18:00:00", false, true).expect("a day");
    let berlin: ZoneSet = [Zone::parse("Europe/Berlin").expect("a zone")]
        .into_iter()
        .collect();
    let planned = |missed_before: &str| plan(&day, &berlin, Zone::utc(), utc(missed_before));
    let in_time = planned("2026-03-29T21:59:59.999Z");
    assert_eq!(in_time.waves[0].time, utc("2026-03-28T23:00:00Z"));
    assert_eq!(in_time.waves[0].mode, WaveMode::OptimalTime);
    assert_eq!(
        planned("2026-03-29T22:00:00Z").missed,
        berlin,
        "the day of 23 hours is over"
    );
}

#[test]
fn the_zone_data_is_whole_and_current() {
    assert!(ZoneSet::all().len() > 590, "{} zones", ZoneSet::all().len());
    assert!(
        data_is_at_least("2026a"),
        "{}",
        super::super::zone::data_version()
    );
    for name in [
        "UTC",
        "Europe/Paris",
        "US/Eastern",
        "Asia/Calcutta",
        "Etc/GMT+12",
        "America/Coyhaique",
    ] {
        assert_eq!(Zone::parse(&name.to_lowercase()).map(Zone::name), Ok(name));
    }
    assert!(Zone::parse("Factory").is_err());
}

fn data_is_at_least(version: &str) -> bool {
    super::super::zone::data_version() >= version
}

/// Any set of zones, from none to all.
fn zone_sets() -> impl Strategy<Value = ZoneSet> {
    prop::collection::vec(any::<bool>(), ZoneSet::all().len()).prop_map(|chosen| {
        Zone::all()
            .zip(chosen)
            .filter(|(_, chosen)| *chosen)
            .map(|(zone, _)| zone)
            .collect()
    })
}

/// Any schedule in the years 2000 to 2040, with the changes of clock well covered by chance.
fn schedules() -> impl Strategy<Value = Schedule> {
    (
        946_684_800_000i64..2_208_988_800_000,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(millis, local, optimal)| {
            Schedule::from_parts(millis, local, optimal).expect("in range")
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_open_zone_is_in_exactly_one_wave_or_missed(
        schedule in schedules(),
        open in zone_sets(),
        late in -30i64..30,
    ) {
        let missed_before = schedule.time().and_utc() + TimeDelta::hours(late);
        let plan = plan(&schedule, &open, Zone::utc(), missed_before);
        let mut seen = plan.missed;
        for wave in &plan.waves {
            prop_assert!(!wave.zones.is_empty());
            let disjoint = wave.zones.iter().all(|zone| !seen.contains(zone));
            prop_assert!(disjoint, "a zone is in two waves");
            seen = seen.union(&wave.zones);
        }
        prop_assert_eq!(seen, open);
        let ordered = plan.waves.is_sorted_by(|a, b| a.time < b.time);
        prop_assert!(ordered, "ordered, and no instant twice");
    }

    #[test]
    fn a_wave_is_at_the_wall_time_in_each_of_its_zones_or_just_after_a_gap(
        schedule in schedules(),
    ) {
        let plan = plan(&schedule, &ZoneSet::all(), Zone::utc(), DateTime::<Utc>::MIN_UTC);
        for wave in &plan.waves {
            for zone in wave.zones.iter().filter(|_| schedule.is_local()) {
                let wanted = if schedule.at_optimal_time {
                    schedule.time().date().and_time(NaiveTime::MIN)
                } else {
                    schedule.time()
                };
                let millis = wave.time.timestamp_millis();
                let instant = jiff::Timestamp::from_millisecond(millis).expect("in range");
                let shown = zone.rules().to_datetime(instant);
                let wanted_civil = civil_time(wanted).expect("in range");
                if shown == wanted_civil {
                    // The first occurrence: an hour or less before, the clock did not show the
                    // same.
                    let kind = zone.rules().to_ambiguous_timestamp(wanted_civil);
                    prop_assert_eq!(kind.compatible().expect("in range"), instant);
                } else {
                    // The documented gap answer: later by the width of the gap.
                    let kind = zone.rules().to_ambiguous_timestamp(wanted_civil);
                    let gap = matches!(kind.offset(), jiff::tz::AmbiguousOffset::Gap { .. });
                    prop_assert!(gap, "{} {wanted}", zone.name());
                    prop_assert!(shown > wanted_civil);
                }
            }
        }
    }
}
