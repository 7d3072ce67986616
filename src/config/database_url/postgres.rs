//! URLs of PostgreSQL, as libpq reads them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Problems;
use crate::config::Secret;

const DEFAULT_PORT: u16 = 5432;
/// Where PostgreSQL has its socket by default: on Debian, with Homebrew, and as it was built.
const SOCKET_FOLDERS: [&str; 3] = ["/var/run/postgresql", "/private/tmp", "/tmp"];
/// How to write a password, for errors that an unescaped character may have caused.
const ESCAPES: &str = "write postgres://user:password@host:port/database, and in the user and the \
                       password %2F for /, %3F for ?, %23 for #, %40 for @ and %25 for %";

/// A database of PostgreSQL.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresUrl {
    /// The servers to try, in this order; at least one. Without a host in the URL: the socket on
    /// this machine if there is one, else localhost.
    pub hosts: Vec<Host>,
    /// The role. `None` means the name of the operating system's user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret<String>>,
    /// The database. `None` means the one named like the role.
    pub database: Option<String>,
    /// Whether to encrypt, and what to verify.
    pub ssl_mode: SslMode,
    /// Certificate authorities of the server, PEM.
    pub ssl_root_cert: Option<PathBuf>,
    /// A client certificate, PEM.
    pub ssl_cert: Option<PathBuf>,
    /// Its private key, PEM.
    pub ssl_key: Option<PathBuf>,
    /// Timeout for connecting to one host; `None` if the URL has none, or 0.
    pub connect_timeout: Option<Duration>,
    /// The name of the sessions in PostgreSQL's views and logs.
    pub application_name: Option<String>,
    /// Settings of each session: the `-c name=value` in `options`.
    pub settings: Vec<(String, String)>,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// At an address on the network.
    Tcp {
        /// A name, or an address of IPv4 or IPv6 without brackets.
        name: String,
        /// The port.
        port: u16,
    },
    /// At a Unix socket on this machine.
    Socket {
        /// The folder of the socket.
        folder: PathBuf,
        /// The port, which is part of the socket's name.
        port: u16,
    },
}

/// Whether a connection is encrypted, and what is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SslMode {
    /// Never encrypt.
    Disable,
    /// Encrypt only if the server requires it.
    Allow,
    /// Encrypt if the server can.
    Prefer,
    /// Always encrypt.
    Require,
    /// Also verify that a known authority signed the certificate.
    VerifyCa,
    /// Also verify that the certificate names the host.
    VerifyFull,
}

/// The environment variables of libpq that complete a URL, each with its parameter.
pub(in crate::config) const VARIABLES: [(&str, &str); 14] = [
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGDATABASE", "dbname"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGAPPNAME", "application_name"),
    ("PGOPTIONS", "options"),
];

/// Other names of parameters, which the driver had.
const ALIASES: [(&str, &str); 5] = [
    ("ssl-mode", "sslmode"),
    ("ssl-root-cert", "sslrootcert"),
    ("ssl-ca", "sslrootcert"),
    ("ssl-cert", "sslcert"),
    ("ssl-key", "sslkey"),
];

/// Parses what follows `postgres://`.
pub(super) fn parse(
    rest: &str,
    variable: impl Fn(&'static str) -> Option<String>,
    problems: &mut Problems,
) -> Option<PostgresUrl> {
    let mut parameters = Parameters::default();
    parameters.read_url(rest, problems)?;
    parameters.complete(variable);
    parameters.resolve(problems)
}

/// The parameters of a connection, by libpq's name, before their values are checked.
#[derive(Default)]
struct Parameters {
    values: BTreeMap<&'static str, String>,
    settings: Vec<(String, String)>,
}

impl Parameters {
    /// None if it cannot be known what is the host and what is the password.
    fn read_url(&mut self, rest: &str, problems: &mut Problems) -> Option<()> {
        if rest.contains('#') {
            problems.add(format!("has an unescaped #; {ESCAPES}"));
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, after) = rest.split_at(end);
        if after.contains('@') {
            problems.add(format!(
                "has an unescaped / or ? before an @; {ESCAPES}; after the host, write %40 for @"
            ));
            return None;
        }
        let (path, query) = after.split_once('?').unwrap_or((after, ""));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let database = path.strip_prefix('/').unwrap_or("");
        for (name, part) in [("user", user), ("password", password), ("dbname", database)] {
            if let Some(value) = problems.decode(part).filter(|value| !value.is_empty()) {
                self.values.insert(name, value);
            }
        }
        self.read_hosts(hosts, problems);
        for (name, value) in problems.parameters(query) {
            self.read_parameter(&name, value, problems);
        }
        Some(())
    }

    /// Reads `host:port,host:port`.
    fn read_hosts(&mut self, hosts: &str, problems: &mut Problems) {
        let (mut names, mut ports) = (Vec::new(), Vec::new());
        for host in hosts.split(',') {
            let (name, port) = match host.strip_prefix('[').map(|rest| rest.split_once(']')) {
                Some(Some((address, ""))) => (address, ""),
                Some(Some((address, after))) if after.starts_with(':') => (address, &after[1..]),
                Some(_) => {
                    problems.add("has a [ that does not begin an address such as [::1]:5432");
                    continue;
                }
                None => host.split_once(':').unwrap_or((host, "")),
            };
            if port.contains(':') {
                problems.add(
                    "has a host with several :; write an IPv6 address in brackets: [::1]:5432",
                );
                continue;
            }
            names.extend(problems.decode(name));
            ports.push(port);
        }
        for (name, list) in [("host", names.join(",")), ("port", ports.join(","))] {
            if list.contains(|c| c != ',') {
                self.values.insert(name, list);
            }
        }
    }

    fn read_parameter(&mut self, name: &str, value: String, problems: &mut Problems) {
        let name = ALIASES
            .iter()
            .find(|(alias, _)| *alias == name)
            .map_or(name, |(_, name)| name);
        let setting = name
            .strip_prefix("options[")
            .and_then(|name| name.strip_suffix(']'));
        if let Some(setting) = setting {
            self.settings.push((setting.to_owned(), value));
        } else if let Some((_, known)) = VARIABLES.iter().find(|(_, known)| *known == name) {
            self.values.insert(known, value);
        } else {
            let known = VARIABLES.map(|(_, name)| name).join(", ");
            problems.add(format!(
                "has an unknown parameter; known are {known}; if the ? or & belongs to the \
                 password, write %3F or %26"
            ));
        }
    }

    /// Adds the parameters that the URL lacks.
    fn complete(&mut self, variable: impl Fn(&'static str) -> Option<String>) {
        let has_host = self.values.contains_key("host") || self.values.contains_key("hostaddr");
        for (variable_name, name) in VARIABLES {
            let other_host = has_host && ["host", "hostaddr"].contains(&name);
            if !other_host
                && !self.values.contains_key(name)
                && let Some(value) = variable(variable_name)
            {
                self.values.insert(name, value);
            }
        }
    }

    fn take(&mut self, name: &str) -> Option<String> {
        self.values.remove(name).filter(|value| !value.is_empty())
    }

    fn resolve(mut self, problems: &mut Problems) -> Option<PostgresUrl> {
        let ports = self.ports(problems);
        let hosts = self.hosts(ports, problems);
        let ssl_mode = self.ssl_mode(problems);
        let attributes_fit = self.session_attributes_fit(problems);
        let connect_timeout = self.connect_timeout(problems);
        if let Some(options) = self.take("options") {
            let settings = parse_options(&options);
            if settings.is_none() {
                problems.add("has options that are not like -c name=value -c name=value");
            }
            self.settings.extend(settings.unwrap_or_default());
        }
        attributes_fit.then_some(())?;
        Some(PostgresUrl {
            hosts: hosts?,
            user: self.take("user"),
            password: self.take("password").map(Secret),
            database: self.take("dbname"),
            ssl_mode: ssl_mode?,
            ssl_root_cert: self.take("sslrootcert").map(PathBuf::from),
            ssl_cert: self.take("sslcert").map(PathBuf::from),
            ssl_key: self.take("sslkey").map(PathBuf::from),
            connect_timeout,
            application_name: self.take("application_name"),
            settings: self.settings,
        })
    }

    fn ports(&mut self, problems: &mut Problems) -> Vec<u16> {
        let ports = self.take("port").unwrap_or_default();
        let mut port = |text: &str| match text.parse() {
            _ if text.is_empty() => DEFAULT_PORT,
            Ok(port @ 1..) => port,
            _ => {
                problems.add(format!(
                    "has a port that is not a number from 1 to 65535; {ESCAPES}"
                ));
                DEFAULT_PORT
            }
        };
        ports.split(',').map(&mut port).collect()
    }

    fn hosts(&mut self, ports: Vec<u16>, problems: &mut Problems) -> Option<Vec<Host>> {
        let (names, addresses) = (self.take("host"), self.take("hostaddr"));
        let only_addresses = addresses.is_some();
        let names = addresses.or(names).unwrap_or_default();
        let names: Vec<&str> = names.split(',').collect();
        let ports = match ports[..] {
            [port] => vec![port; names.len()],
            _ => ports,
        };
        if names.len() != ports.len() {
            problems.add("has another number of ports than of hosts; write one port, or one each");
            return None;
        }
        let hosts = names.iter().zip(ports).map(|(name, port)| {
            if only_addresses && name.parse::<IpAddr>().is_err() {
                problems.add("has a hostaddr that is not an IP address such as 192.0.2.7 or ::1");
                return None;
            }
            let host = Host::new(name, port);
            if host.is_none() {
                problems.add(format!(
                    "has a host that is not a name, an address or the absolute path of a folder; \
                     {ESCAPES}"
                ));
            }
            host
        });
        // Every host is checked before one is refused.
        hosts.collect::<Vec<_>>().into_iter().collect()
    }

    fn ssl_mode(&mut self, problems: &mut Problems) -> Option<SslMode> {
        Some(match self.take("sslmode").as_deref() {
            Some("disable") => SslMode::Disable,
            Some("allow") => SslMode::Allow,
            None | Some("prefer") => SslMode::Prefer,
            Some("require") => SslMode::Require,
            Some("verify-ca") => SslMode::VerifyCa,
            Some("verify-full") => SslMode::VerifyFull,
            Some(_) => {
                problems.add(
                    "has an unknown sslmode; set disable, allow, prefer, require, verify-ca or \
                     verify-full",
                );
                return None;
            }
        })
    }

    /// Checks `target_session_attrs`. The service uses only servers that accept writes, whichever
    /// of the valid values is set.
    fn session_attributes_fit(&mut self, problems: &mut Problems) -> bool {
        match self.take("target_session_attrs").as_deref() {
            None | Some("any" | "read-write" | "primary") => true,
            Some("read-only" | "standby" | "prefer-standby") => {
                problems.add(
                    "has a target_session_attrs that may lead to a standby, but the service \
                     writes; set read-write, primary or any",
                );
                false
            }
            Some(_) => {
                problems.add("has an unknown target_session_attrs; set read-write, primary or any");
                false
            }
        }
    }

    fn connect_timeout(&mut self, problems: &mut Problems) -> Option<Duration> {
        let seconds = self.take("connect_timeout")?.parse::<u16>();
        if seconds.is_err() {
            problems.add("has a connect_timeout that is not a number of seconds up to 65535");
        }
        let seconds = seconds.ok().filter(|seconds| *seconds > 0)?;
        Some(Duration::from_secs(seconds.into()))
    }
}

/// Reads `-c name=value`, `-cname=value` and `--name=value`; a backslash escapes a space or a
/// backslash.
fn parse_options(options: &str) -> Option<Vec<(String, String)>> {
    let mut words = vec![String::new()];
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match (character, words.last_mut()) {
            ('\\', Some(word)) => word.push(characters.next()?),
            (space, _) if space.is_whitespace() => words.push(String::new()),
            (other, Some(word)) => word.push(other),
            (_, None) => {}
        }
    }
    let mut words = words.into_iter().filter(|word| !word.is_empty());
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c").or_else(|| word.strip_prefix("--")) {
            Some("") if word == "-c" => words.next()?,
            Some(setting) => setting.to_owned(),
            None => return None,
        };
        let (name, value) = setting.split_once('=')?;
        // Within a name on this command line, - stands for _.
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Some(settings)
}

impl Host {
    fn new(name: &str, port: u16) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::default_on(port));
        }
        if name.starts_with('/') {
            let folder = PathBuf::from(name);
            return Some(Self::Socket { folder, port });
        }
        // The zone of a link-local address may follow it: fe80::1%eth0.
        let address = name.split_once('%').map_or(name, |(address, _)| address);
        let is_name = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        let valid = address.parse::<IpAddr>().is_ok() || name.chars().all(is_name);
        let name = name.to_owned();
        valid.then_some(Self::Tcp { name, port })
    }

    /// The socket on this machine if there is one, else localhost.
    fn default_on(port: u16) -> Self {
        let has_socket =
            |folder: &&str| Path::new(folder).join(format!(".s.PGSQL.{port}")).exists();
        match SOCKET_FOLDERS.iter().find(|folder| has_socket(folder)) {
            Some(folder) => Self::Socket {
                folder: PathBuf::from(folder),
                port,
            },
            None => Self::Tcp {
                name: "localhost".to_owned(),
                port,
            },
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { name, port } if name.contains(':') => write!(f, "[{name}]:{port}"),
            Self::Tcp { name, port } => write!(f, "{name}:{port}"),
            Self::Socket { folder, port } => write!(f, "{}:{port}", folder.display()),
        }
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        write!(f, "postgres://{}", hosts.join(","))?;
        match &self.database {
            Some(database) => write!(f, "/{database}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
