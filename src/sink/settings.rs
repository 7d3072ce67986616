//! The settings of the sinks.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use http::Uri;

use crate::config::{Secret, values};
use crate::error::Violations;

/// The current secret, and the other one during a rotation.
const MAX_WEBHOOK_SECRETS: usize = 2;
/// The bytes of a webhook secret, as the Standard Webhooks scheme requires.
const WEBHOOK_SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;
/// The longest subject prefix.
const MAX_SUBJECT_BYTES: usize = 255;

/// The flags of the sink. The kind of sink decides which of them it needs; [`Self::read`] combines
/// them.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sink")]
pub struct SinkArgs {
    /// Where dispatches go: log, grpc, webhook or nats
    #[arg(long, env = "CANVAS_SCHEDULER_SINK")]
    sink: Option<SinkKind>,
    /// http:// or https:// for grpc (without a path) and webhook; nats:// or tls:// for nats
    #[arg(long, env = "CANVAS_SCHEDULER_SINK_URL", hide_env_values = true)]
    sink_url: Option<Secret<String>>,
    /// webhook: one whsec_ secret, or two separated by a space, both of which sign; grpc and nats:
    /// a token, if one is needed
    #[arg(long, env = "CANVAS_SCHEDULER_SINK_SECRET", hide_env_values = true)]
    sink_secret: Option<Secret<String>>,
    /// A file that contains the secret, instead of --sink-secret
    #[arg(long, env = "CANVAS_SCHEDULER_SINK_SECRET_FILE", value_name = "FILE")]
    sink_secret_file: Option<PathBuf>,
    /// A PEM file of certificates to trust instead of the system's
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_CA_FILE",
        value_name = "FILE",
        value_parser = values::file
    )]
    sink_ca_file: Option<String>,
    /// Timeout of one delivery, including connecting
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_TIMEOUT",
        default_value = "10s",
        value_parser = values::duration
    )]
    sink_timeout: Duration,
    /// Timeout of one attempt to connect
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_CONNECT_TIMEOUT",
        default_value = "3s",
        value_parser = values::duration
    )]
    sink_connect_timeout: Duration,
    /// grpc: number of connections that share the dispatches (1 to 64)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_CONNECTIONS",
        default_value = "4",
        value_parser = values::number::<usize>(1..=64)
    )]
    sink_connections: usize,
    /// nats: the subject prefix; a dot and the workspace follow it
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_SUBJECT",
        default_value = "canvas.trigger",
        value_parser = subject
    )]
    sink_subject: String,
}

/// The kinds of sinks.
#[derive(Debug, Clone, Copy)]
enum SinkKind {
    Log,
    Grpc,
    Webhook,
    Nats,
}

impl FromStr for SinkKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "log" => Ok(Self::Log),
            "grpc" => Ok(Self::Grpc),
            "webhook" => Ok(Self::Webhook),
            "nats" => Ok(Self::Nats),
            _ => Err("is not log, grpc, webhook or nats".to_owned()),
        }
    }
}

/// Where dispatches go.
#[derive(Debug, Clone)]
pub enum SinkSettings {
    /// To the log, one line each.
    Log,
    /// To a server of `CanvasTriggerService`.
    Grpc {
        /// The server.
        endpoint: SinkEndpoint,
        /// Sent as `authorization: Bearer`.
        token: Option<Secret<String>>,
        /// Connections that share the dispatches.
        connections: usize,
    },
    /// Posted to a URL.
    Webhook {
        /// The URL.
        endpoint: SinkEndpoint,
        /// Keys of HMAC-SHA256, at least one. All of them sign.
        keys: Vec<Secret<Vec<u8>>>,
    },
    /// Published to JetStream.
    Nats {
        /// The server.
        endpoint: SinkEndpoint,
        /// The token of the connection.
        token: Option<Secret<String>>,
        /// The subject prefix, without the last dot.
        subject: String,
    },
}

/// How a sink is reached.
#[derive(Debug, Clone)]
pub struct SinkEndpoint {
    /// Hidden, since the path or query of a webhook may be a secret.
    pub url: Secret<Uri>,
    /// The timeout of one delivery, including connecting.
    pub timeout: Duration,
    /// The timeout of one attempt to connect.
    pub connect_timeout: Duration,
    /// PEM text of certificates to trust instead of the system's.
    pub ca: Option<Vec<u8>>,
}

impl SinkSettings {
    /// The name of the kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Grpc { .. } => "grpc",
            Self::Webhook { .. } => "webhook",
            Self::Nats { .. } => "nats",
        }
    }

    /// The timeout of a delivery, if there is one.
    pub fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Log => None,
            Self::Grpc { endpoint, .. }
            | Self::Webhook { endpoint, .. }
            | Self::Nats { endpoint, .. } => Some(endpoint.timeout),
        }
    }
}

impl SinkArgs {
    /// Whether a sink was named.
    pub fn is_set(&self) -> bool {
        self.sink.is_some()
    }

    /// The sink. None also when a violation was found.
    pub fn read(&self, violations: &mut Violations) -> Option<SinkSettings> {
        let secret = self.secret(violations);
        match self.sink {
            None | Some(SinkKind::Log) => {
                let secret_is_set = secret.flatten().is_some();
                for (flag, is_set) in [
                    ("sink-url", self.sink_url.is_some()),
                    ("sink-secret", secret_is_set),
                ] {
                    if is_set {
                        violations.add(flag, "is set, but --sink is not grpc, webhook or nats");
                    }
                }
                self.sink.map(|_| SinkSettings::Log)
            }
            Some(SinkKind::Grpc) => {
                let endpoint = self.endpoint(&["http", "https"], false, violations);
                let token = token(secret.flatten(), violations);
                Some(SinkSettings::Grpc {
                    endpoint: endpoint?,
                    token,
                    connections: self.sink_connections,
                })
            }
            Some(SinkKind::Webhook) => {
                let endpoint = self.endpoint(&["http", "https"], true, violations);
                let keys = secret.and_then(|secret| keys(secret, violations));
                Some(SinkSettings::Webhook {
                    endpoint: endpoint?,
                    keys: keys?,
                })
            }
            Some(SinkKind::Nats) => {
                let endpoint = self.endpoint(&["nats", "tls"], false, violations);
                let token = token(secret.flatten(), violations);
                Some(SinkSettings::Nats {
                    endpoint: endpoint?,
                    token,
                    subject: self.sink_subject.clone(),
                })
            }
        }
    }

    /// The violation does not repeat the URL, which may contain a secret.
    fn endpoint(
        &self,
        schemes: &[&str],
        may_have_path: bool,
        violations: &mut Violations,
    ) -> Option<SinkEndpoint> {
        let url = self
            .sink_url
            .as_ref()
            .and_then(|url| url.0.parse::<Uri>().ok())
            .filter(|url| {
                let known = url
                    .scheme_str()
                    .is_some_and(|scheme| schemes.contains(&scheme));
                let host_alone = url.authority().is_some_and(|authority| {
                    !authority.as_str().contains('@') && !authority.host().is_empty()
                });
                let has_path = url
                    .path_and_query()
                    .is_some_and(|path| !["", "/"].contains(&path.as_str()));
                known && host_alone && (may_have_path || !has_path)
            });
        if url.is_none() {
            let schemes = schemes.join(":// or ");
            let path = if may_have_path {
                "an optional path"
            } else {
                "no path"
            };
            violations.add(
                "sink-url",
                format!("must be {schemes}:// with a host, no user and {path}"),
            );
        }
        Some(SinkEndpoint {
            url: Secret(url?),
            timeout: self.sink_timeout,
            connect_timeout: self.sink_connect_timeout,
            ca: self.sink_ca_file.clone().map(String::into_bytes),
        })
    }

    /// The secret, if one is set. The outer None stands for a violation.
    fn secret(&self, violations: &mut Violations) -> Option<Option<Secret<String>>> {
        let text = match (&self.sink_secret, &self.sink_secret_file) {
            (Some(_), Some(_)) => {
                violations.add(
                    "sink-secret",
                    "cannot be set together with --sink-secret-file",
                );
                return None;
            }
            (Some(text), None) => text.0.clone(),
            (None, Some(file)) => match std::fs::read_to_string(file) {
                Ok(text) => text,
                Err(why) => {
                    violations.add(
                        "sink-secret-file",
                        format!("{} cannot be read: {why}", file.display()),
                    );
                    return None;
                }
            },
            (None, None) => String::new(),
        };
        let text = text.trim();
        Some((!text.is_empty()).then(|| Secret(text.to_owned())))
    }
}

/// A token that is valid in a header.
fn token(secret: Option<Secret<String>>, violations: &mut Violations) -> Option<Secret<String>> {
    let fits = secret
        .as_ref()
        .is_none_or(|secret| secret.0.bytes().all(|byte| byte.is_ascii_graphic()));
    if !fits {
        violations.add(
            "sink-secret",
            "must be one token of visible ASCII characters",
        );
    }
    secret.filter(|_| fits)
}

/// The keys of webhook secrets.
fn keys(
    secret: Option<Secret<String>>,
    violations: &mut Violations,
) -> Option<Vec<Secret<Vec<u8>>>> {
    let secrets = secret.iter().flat_map(|secret| secret.0.split_whitespace());
    let keys: Option<Vec<_>> = secrets.map(key).collect();
    let keys = keys.filter(|keys| (1..=MAX_WEBHOOK_SECRETS).contains(&keys.len()));
    if keys.is_none() {
        let (min, max) = (WEBHOOK_SECRET_BYTES.start(), WEBHOOK_SECRET_BYTES.end());
        violations.add(
            "sink-secret",
            format!(
                "must be one or two webhook secrets, each whsec_ and the base64 of {min} to {max} \
                 bytes"
            ),
        );
    }
    keys
}

/// The key of one `whsec_` secret.
fn key(secret: &str) -> Option<Secret<Vec<u8>>> {
    let bytes = STANDARD.decode(secret.strip_prefix("whsec_")?).ok()?;
    WEBHOOK_SECRET_BYTES
        .contains(&bytes.len())
        .then_some(Secret(bytes))
}

/// The prefix of a NATS subject: words separated by dots, without wildcards.
fn subject(text: &str) -> Result<String, String> {
    let is_word = |word: &str| {
        !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
    };
    if text.len() <= MAX_SUBJECT_BYTES && text.split('.').all(is_word) {
        Ok(text.to_owned())
    } else {
        Err(
            "is not a NATS subject: words of letters, digits, _ and -, separated by dots, such as \
             canvas.trigger"
                .to_owned(),
        )
    }
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
