//! Prints the offset from UTC of every zone at each hour of 366 days, as `NAME hour:offset
//! hour:offset …` with an entry for each change. `.ci/zones.py` compares it with PyPI's tzdata.
//!
//! Usage: `zone_offsets HOURS_SINCE_1970`

use canvas_scheduler::domain::{Zone, zone};

/// The hours of 366 days, the default horizon.
const HOURS: i64 = 366 * 24;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let from: i64 = std::env::args()
        .nth(1)
        .ok_or("usage: zone_offsets HOURS_SINCE_1970")?
        .parse()?;
    let mut out = format!("version {}\n", zone::data_version());
    for zone in Zone::all() {
        out.push_str(zone.name());
        let mut last = None;
        for hour in 0..HOURS {
            let instant = jiff::Timestamp::from_second((from + hour) * 3600)?;
            let offset = zone.rules().to_offset(instant).seconds();
            if last.replace(offset) != Some(offset) {
                out.push_str(&format!(" {hour}:{offset}"));
            }
        }
        out.push('\n');
    }
    std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes())?;
    Ok(())
}
