//! Parsers of values. An error continues the sentence that begins with the value: `"0" is not a
//! whole number from 1 to 64`.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::TimeDelta;
use http::uri::Authority;
use ipnet::IpNet;

use crate::error::Violations;

/// A parser of whole numbers within `bounds`.
pub fn number<T: FromStr>(
    bounds: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static {
    move |text| {
        let number: Option<u64> = text.parse().ok();
        number
            .filter(|number| bounds.contains(number))
            .and_then(|number| number.to_string().parse().ok())
            .ok_or_else(|| {
                let (min, max) = (bounds.start(), bounds.end());
                format!("is not a whole number from {min} to {max}")
            })
    }
}

/// A parser of mebibytes within `bounds`, in bytes.
pub fn megabytes(
    bounds: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    let number = number::<usize>(bounds);
    move |text| number(text).map(|megabytes| megabytes << 20)
}

/// A parser of days within `bounds`.
pub fn days(
    bounds: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<TimeDelta, String> + Clone + Send + Sync + 'static {
    let number = number::<u32>(bounds);
    move |text| number(text).map(|days| TimeDelta::days(days.into()))
}

/// A number of threads; 0 means one for each core.
pub fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let threads: usize = number(0..=1024)(text)?;
    let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    Ok(NonZeroUsize::new(threads).unwrap_or_else(cores))
}

/// `on` or `off`.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("is not on or off".to_owned()),
    }
}

/// Networks or addresses, separated by commas.
pub fn networks(text: &str) -> Result<Arc<[IpNet]>, String> {
    let entries = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let networks = entries.map(|entry| {
        entry
            .parse()
            .or_else(|_| entry.parse::<IpAddr>().map(IpNet::from))
    });
    networks
        .collect::<Result<_, _>>()
        .map_err(|_| "is not a list of networks such as 10.0.0.0/8,192.0.2.7".to_owned())
}

/// From a millisecond to a year, such as `90m` or `1h 30m`.
pub fn duration(text: &str) -> Result<Duration, String> {
    const MIN: Duration = Duration::from_millis(1);
    const MAX: Duration = Duration::from_secs(366 * 86_400);
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| Duration::try_from(duration).ok())
        .filter(|duration| (MIN..=MAX).contains(duration))
        .ok_or_else(|| "is not a duration from 1ms to 8784h, such as 20s, 90m or 1h".to_owned())
}

/// [`duration`] for arithmetic with instants.
pub fn time_delta(text: &str) -> Result<TimeDelta, String> {
    TimeDelta::from_std(duration(text)?).map_err(|why| format!("is not a duration: {why}"))
}

/// An address to listen on.
pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.replace("localhost:", "127.0.0.1:")
        .parse()
        .map_err(|_| "is not an address and port such as 127.0.0.1:50051".to_owned())
}

/// The address or the name of a server, with its port.
pub fn host(text: &str) -> Result<Authority, String> {
    text.parse::<Authority>()
        .ok()
        .filter(|host| host.port_u16().is_some() && !host.host().is_empty() && !text.contains('@'))
        .ok_or_else(|| "is not an address or name with a port such as 127.0.0.1:50051".to_owned())
}

/// The contents of a file.
pub fn file(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|why| format!("cannot be read: {why}"))
}

/// A certificate and its key: both or none.
pub fn tls_pair(
    certificate: Option<&PathBuf>,
    key: Option<&PathBuf>,
    violations: &mut Violations,
) -> Option<(PathBuf, PathBuf)> {
    if certificate.is_some() != key.is_some() {
        violations.add("tls-cert", "needs --tls-key, and vice versa");
    }
    certificate.cloned().zip(key.cloned())
}
