//! Reads the values of settings, each as text, and collects what is wrong with them.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use http::uri::Authority;
use ipnet::IpNet;

use super::{DatabaseArgs, Secret};

/// The database that is used when none is stated.
pub(super) const DATABASE_DEFAULT: &str = "sqlite://canvas-scheduler.db?mode=rwc";

/// Collects what is wrong with the settings.
#[derive(Default)]
pub(super) struct Reader {
    /// A line each.
    pub(super) faults: Vec<String>,
}

impl Reader {
    pub(super) fn fault<T>(&mut self, flag: &str, value: &str, needed: &str) -> Option<T> {
        self.faults
            .push(format!("--{flag}: {value:?} is not {needed}"));
        None
    }

    pub(super) fn number<T: FromStr + PartialOrd + std::fmt::Display>(
        &mut self,
        flag: &str,
        value: &str,
        least: T,
        most: T,
    ) -> Option<T> {
        match value.parse::<T>() {
            Ok(number) if number >= least && number <= most => Some(number),
            _ => self.fault(
                flag,
                value,
                &format!("a whole number from {least} to {most}"),
            ),
        }
    }

    pub(super) fn switch(&mut self, flag: &str, value: &str) -> Option<bool> {
        match value {
            "on" => Some(true),
            "off" => Some(false),
            _ => self.fault(flag, value, "on or off"),
        }
    }

    pub(super) fn networks(&mut self, flag: &str, value: &str) -> Option<Vec<IpNet>> {
        let entries = value
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty());
        let networks = entries.map(|entry| {
            entry
                .parse()
                .or_else(|_| entry.parse::<IpAddr>().map(IpNet::from))
        });
        networks.collect::<Result<_, _>>().ok().or_else(|| {
            self.fault(
                flag,
                value,
                "a list of networks such as 10.0.0.0/8,192.0.2.7",
            )
        })
    }

    /// A span of at least a millisecond and at most a year, such as `90m` or `1h 30m`.
    pub(super) fn duration(&mut self, flag: &str, value: &str) -> Option<Duration> {
        let span = value
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|span| Duration::try_from(span).ok());
        match span {
            Some(span)
                if span >= Duration::from_millis(1)
                    && span <= Duration::from_secs(366 * 86_400) =>
            {
                Some(span)
            }
            _ => self.fault(
                flag,
                value,
                "a span of time from 1ms to 8784h, such as 20s, 90m or 1h",
            ),
        }
    }

    pub(super) fn address(&mut self, flag: &str, value: &str) -> Option<SocketAddr> {
        match value
            .replace("localhost:", "127.0.0.1:")
            .parse::<SocketAddr>()
        {
            Ok(address) => Some(address),
            Err(_) => self.fault(flag, value, "an address and port such as 127.0.0.1:50051"),
        }
    }

    /// Where a server is: an address or a name, with a port.
    pub(super) fn host(&mut self, flag: &str, value: &str) -> Option<Authority> {
        match value.parse::<Authority>() {
            Ok(host)
                if host.port_u16().is_some() && !host.host().is_empty() && !value.contains('@') =>
            {
                Some(host)
            }
            _ => self.fault(
                flag,
                value,
                "an address or a name, and a port, such as 127.0.0.1:50051",
            ),
        }
    }

    /// Keys travel on the connection: in plain text only where nobody listens, or where it was asked for by name.
    pub(super) fn guarded(&mut self, flag: &str, value: &str, safe: bool) -> Option<SocketAddr> {
        let address = self.address(flag, value)?;
        if safe || address.ip().is_loopback() {
            return Some(address);
        }
        self.fault(
            flag,
            value,
            "a loopback address; beyond it --tls-cert and --tls-key are needed, or --plaintext on",
        )
    }

    /// A file and its key: both or none.
    pub(super) fn pair(
        &mut self,
        certificates: Option<&str>,
        key: Option<&str>,
    ) -> Option<(PathBuf, PathBuf)> {
        match (certificates, key) {
            (Some(certificates), Some(key)) => Some((certificates.into(), key.into())),
            (None, None) => None,
            _ => {
                self.faults
                    .push("--tls-cert and --tls-key: one needs the other".to_owned());
                None
            }
        }
    }

    /// The text of a file.
    pub(super) fn file(&mut self, flag: &str, path: &str) -> Option<String> {
        match std::fs::read_to_string(path) {
            Ok(text) => Some(text),
            Err(why) => self.fault(flag, path, &format!("a file that can be read ({why})")),
        }
    }

    pub(super) fn database(&mut self, args: &DatabaseArgs) -> Option<Secret<String>> {
        let url = match (&args.database_url, &args.database_url_file) {
            (Some(_), Some(_)) => {
                self.faults.push(
                    "--database-url and --database-url-file: only one of them may be set"
                        .to_owned(),
                );
                return None;
            }
            (Some(url), None) => url.0.clone(),
            (None, Some(file)) => self.file("database-url-file", file)?.trim().to_owned(),
            (None, None) => DATABASE_DEFAULT.to_owned(),
        };
        let known = ["postgres://", "postgresql://", "sqlite:"]
            .iter()
            .any(|scheme| url.starts_with(scheme));
        if known {
            return Some(Secret(url));
        }
        // The value may hold a password: it is not repeated.
        self.faults
            .push("--database-url: must begin with postgres:// or sqlite:".to_owned());
        None
    }

    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Vec<String>> {
        match value {
            Some(value) if self.faults.is_empty() => Ok(value),
            _ => Err(self.faults),
        }
    }
}
