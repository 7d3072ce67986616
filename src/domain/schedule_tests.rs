use proptest::prelude::*;

use super::*;

fn instant(time: &str) -> String {
    Schedule::parse(time, false, false).map_or_else(|error| error, |schedule| schedule.to_string())
}

fn local(time: &str) -> String {
    Schedule::parse(time, true, false).map_or_else(|error| error, |schedule| schedule.to_string())
}

#[test]
fn accepted_forms_of_an_instant() {
    for (given, understood) in [
        ("2015-02-20T14:14:47", "2015-02-20T14:14:47Z"),
        ("2017-05-24T21:30:00Z", "2017-05-24T21:30:00Z"),
        ("2017-05-24 21:30", "2017-05-24T21:30:00Z"),
        ("2017-05-24T21:30:00+02:00", "2017-05-24T19:30:00Z"),
        ("2017-05-24T21:30:00-0330", "2017-05-25T01:00:00Z"),
        ("2017-05-24T21:30:00+05", "2017-05-24T16:30:00Z"),
        ("2017-05-24T21:30Z", "2017-05-24T21:30:00Z"),
        ("2017-05-24T21:30:00.5Z", "2017-05-24T21:30:00.500Z"),
        ("2017-05-24T21:30:00,1239999", "2017-05-24T21:30:00.123Z"),
        ("2016-02-29T00:00:00.000", "2016-02-29T00:00:00Z"),
    ] {
        assert_eq!(instant(given), understood, "{given}");
    }
}

#[test]
fn a_designator_beside_local_or_optimal_time_is_ignored() {
    assert_eq!(local("2017-05-24T21:30:00Z"), "2017-05-24T21:30:00");
    assert_eq!(local("2017-05-24T21:30:00+09:00"), "2017-05-24T21:30:00");
    let optimal = Schedule::parse("2017-05-24T21:30:00-11:00", false, true).expect("a time");
    assert_eq!(optimal.to_string(), "2017-05-24T21:30:00");
}

/// The malformed times; the integration tests send the same list over the wire.
pub(super) const MALFORMED: [&str; 44] = include!("../../tests/data/malformed_times.in");

#[test]
fn a_malformed_time_is_refused_with_its_value_and_an_accepted_form() {
    for given in MALFORMED {
        for at in [(false, false), (true, false), (false, true)] {
            let error = Schedule::parse(given, at.0, at.1).expect_err(given);
            assert!(error.contains("2026-03-01T09:30:00Z"), "{given:?}: {error}");
            assert!(error.starts_with(&quote(given)), "{given:?}: {error}");
        }
    }
}

proptest! {
    #[test]
    fn parse_of_print_is_the_identity(
        millis in -62_135_596_800_000i64..253_402_300_800_000,
        in_local in any::<bool>(),
        optimal in any::<bool>(),
    ) {
        let schedule = Schedule::from_parts(millis, in_local, optimal).expect("in range");
        prop_assert_eq!(Schedule::parse(&schedule.to_string(), in_local, optimal), Ok(schedule));
        prop_assert_eq!(schedule.millis(), millis);
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,40}", near in "[0-9T:Z+., -]{0,32}") {
        for time in [text, near] {
            let _ = Schedule::parse(&time, false, false);
            let _ = Schedule::parse(&time, true, true);
        }
    }
}
