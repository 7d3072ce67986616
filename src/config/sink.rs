//! Where dispatches go: the settings of the sinks.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use http::Uri;

use super::{Reader, Secret};

/// The most webhook secrets: the one in use, and the other one of a rotation.
const WEBHOOK_SECRETS_MAX: usize = 2;
/// The bytes of a webhook secret, as the Standard Webhooks scheme has them.
const WEBHOOK_SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Where dispatches go.
#[derive(Debug, Args)]
pub struct SinkArgs {
    /// Where dispatches go: log, grpc, webhook or nats
    #[arg(long, env = "CANVAS_SCHEDULER_SINK", help_heading = "Sink")]
    pub sink: Option<String>,
    /// http:// or https:// for grpc (without a path) and webhook; nats:// or tls:// for nats
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_URL",
        hide_env_values = true,
        help_heading = "Sink"
    )]
    pub sink_url: Option<Secret<String>>,
    /// webhook: one whsec_ secret, or two with a space between, both of which sign; grpc and nats: a token, if one is needed
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_SECRET",
        hide_env_values = true,
        help_heading = "Sink"
    )]
    pub sink_secret: Option<Secret<String>>,
    /// A file that holds the secret, in place of --sink-secret
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_SECRET_FILE",
        value_name = "FILE",
        help_heading = "Sink"
    )]
    pub sink_secret_file: Option<String>,
    /// A PEM file of certificates to trust in place of the system's
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_CA_FILE",
        value_name = "FILE",
        help_heading = "Sink"
    )]
    pub sink_ca_file: Option<String>,
    /// The longest that one delivery may take, connecting included
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_TIMEOUT",
        default_value = "10s",
        help_heading = "Sink"
    )]
    pub sink_timeout: String,
    /// The longest that a connection may take to come about
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_CONNECT_TIMEOUT",
        default_value = "3s",
        help_heading = "Sink"
    )]
    pub sink_connect_timeout: String,
    /// grpc: how many connections share the dispatches (1 to 64)
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_CONNECTIONS",
        default_value = "4",
        help_heading = "Sink"
    )]
    pub sink_connections: String,
    /// nats: what the subject begins with; the workspace follows after a dot
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_SINK_SUBJECT",
        default_value = "canvas.trigger",
        help_heading = "Sink"
    )]
    pub sink_subject: String,
}

/// Where dispatches go.
#[derive(Debug, Clone)]
pub enum SinkSettings {
    /// A line of the log each.
    Log,
    /// To a server of `CanvasTriggerService`.
    Grpc {
        /// How to reach it.
        reach: Reach,
        /// Sent as `authorization: Bearer`.
        token: Option<Secret<String>>,
        /// At least 1.
        connections: usize,
    },
    /// Posted to a URL.
    Webhook {
        /// How to reach it.
        reach: Reach,
        /// Keys of HMAC-SHA256, at least one. All of them sign.
        keys: Vec<Secret<Vec<u8>>>,
    },
    /// Published to JetStream.
    Nats {
        /// How to reach it.
        reach: Reach,
        /// The token of the connection.
        token: Option<Secret<String>>,
        /// What the subject begins with, without the last dot.
        subject: String,
    },
}

/// How a sink is reached.
#[derive(Debug, Clone)]
pub struct Reach {
    /// Not shown: a webhook's path or query may be a secret of its own.
    pub url: Secret<Uri>,
    /// Of one delivery, connecting included.
    pub timeout: Duration,
    /// Of connecting.
    pub connect_timeout: Duration,
    /// PEM text of certificates to trust in place of the system's.
    pub ca: Option<Vec<u8>>,
}

impl SinkSettings {
    /// The name by which it is chosen.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Grpc { .. } => "grpc",
            Self::Webhook { .. } => "webhook",
            Self::Nats { .. } => "nats",
        }
    }

    /// The longest that a delivery may take, where it may take any time.
    pub fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Log => None,
            Self::Grpc { reach, .. } | Self::Webhook { reach, .. } | Self::Nats { reach, .. } => {
                Some(reach.timeout)
            }
        }
    }
}

impl Reader {
    /// The sink that is asked for. None also when something is wrong with it.
    pub(super) fn sink(&mut self, args: &SinkArgs) -> Option<SinkSettings> {
        let timeout = self.duration("sink-timeout", &args.sink_timeout);
        let connect_timeout = self.duration("sink-connect-timeout", &args.sink_connect_timeout);
        let connections = self.number("sink-connections", &args.sink_connections, 1, 64);
        let subject = self.subject(&args.sink_subject);
        let secret = self.secret(args);
        let ca = args
            .sink_ca_file
            .as_ref()
            .and_then(|file| self.file("sink-ca-file", file));
        let reach = |reader: &mut Self, schemes: &[&str], path: bool| {
            let url = reader.url(args.sink_url.as_ref(), schemes, path);
            Some(Reach {
                url: Secret(url?),
                timeout: timeout?,
                connect_timeout: connect_timeout?,
                ca: ca.clone().map(String::into_bytes),
            })
        };
        match args.sink.as_deref() {
            None | Some("log") => {
                self.unused("sink-url", args.sink_url.is_some());
                self.unused("sink-secret", secret.flatten().is_some());
                args.sink.as_ref().map(|_| SinkSettings::Log)
            }
            Some("grpc") => {
                let (reach, token) = (
                    reach(self, &["http", "https"], false),
                    self.token(secret.flatten()),
                );
                Some(SinkSettings::Grpc {
                    reach: reach?,
                    token,
                    connections: connections?,
                })
            }
            Some("webhook") => {
                let (reach, keys) = (
                    reach(self, &["http", "https"], true),
                    secret.and_then(|secret| self.keys(secret)),
                );
                Some(SinkSettings::Webhook {
                    reach: reach?,
                    keys: keys?,
                })
            }
            Some("nats") => {
                let (reach, token) = (
                    reach(self, &["nats", "tls"], false),
                    self.token(secret.flatten()),
                );
                Some(SinkSettings::Nats {
                    reach: reach?,
                    token,
                    subject: subject?,
                })
            }
            Some(other) => self.fault("sink", other, "one of log, grpc, webhook or nats"),
        }
    }

    fn unused(&mut self, flag: &str, stated: bool) {
        if stated {
            self.faults.push(format!(
                "--{flag}: is stated, but --sink is none of grpc, webhook or nats"
            ));
        }
    }

    /// The value may hold a secret: it is not repeated.
    fn url(
        &mut self,
        stated: Option<&Secret<String>>,
        schemes: &[&str],
        path: bool,
    ) -> Option<Uri> {
        let uri = stated
            .and_then(|stated| stated.0.parse::<Uri>().ok())
            .filter(|uri| {
                let known = uri
                    .scheme_str()
                    .is_some_and(|scheme| schemes.contains(&scheme));
                let no_user = uri.authority().is_some_and(|authority| {
                    !authority.as_str().contains('@') && !authority.host().is_empty()
                });
                known
                    && no_user
                    && (path
                        || uri
                            .path_and_query()
                            .is_none_or(|path| path.as_str() == "/" || path.as_str().is_empty()))
            });
        if uri.is_none() {
            let schemes = schemes.join(":// or ");
            let rest = if path {
                "a path if it has one"
            } else {
                "without a path"
            };
            self.faults.push(format!(
                "--sink-url: must be {schemes}:// with a host, no user, {rest}"
            ));
        }
        uri
    }

    /// What `--sink-secret` or the file says, if anything.
    fn secret(&mut self, args: &SinkArgs) -> Option<Option<Secret<String>>> {
        let text = match (&args.sink_secret, &args.sink_secret_file) {
            (Some(_), Some(_)) => {
                self.faults.push(
                    "--sink-secret and --sink-secret-file: only one of them may be set".to_owned(),
                );
                return None;
            }
            (Some(text), None) => text.0.clone(),
            (None, Some(file)) => self.file("sink-secret-file", file)?,
            (None, None) => String::new(),
        };
        let text = text.trim();
        Some((!text.is_empty()).then(|| Secret(text.to_owned())))
    }

    /// A token that fits a header.
    fn token(&mut self, secret: Option<Secret<String>>) -> Option<Secret<String>> {
        let fits = secret
            .as_ref()
            .is_none_or(|secret| secret.0.bytes().all(|byte| byte.is_ascii_graphic()));
        if !fits {
            self.faults
                .push("--sink-secret: must be one token of visible ASCII characters".to_owned());
        }
        secret.filter(|_| fits)
    }

    /// The keys of webhook secrets.
    fn keys(&mut self, secret: Option<Secret<String>>) -> Option<Vec<Secret<Vec<u8>>>> {
        let words: Vec<&str> = secret
            .iter()
            .flat_map(|secret| secret.0.split_whitespace())
            .collect();
        let keys: Option<Vec<_>> = words.iter().map(|word| key(word)).collect();
        let keys = keys.filter(|keys| (1..=WEBHOOK_SECRETS_MAX).contains(&keys.len()));
        if keys.is_none() {
            self.faults.push(format!(
                "--sink-secret: must be one or two webhook secrets, each whsec_ and the base64 of {} to {} bytes",
                WEBHOOK_SECRET_BYTES.start(),
                WEBHOOK_SECRET_BYTES.end()
            ));
        }
        keys
    }

    /// What a NATS subject may begin with: words with dots between, none a wildcard.
    fn subject(&mut self, stated: &str) -> Option<String> {
        let word = |word: &str| {
            !word.is_empty()
                && word
                    .chars()
                    .all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter))
        };
        if stated.len() <= 255 && stated.split('.').all(word) {
            return Some(stated.to_owned());
        }
        self.fault("sink-subject", stated, "a NATS subject: words of letters, digits, _ and -, with a dot between, like canvas.trigger")
    }
}

/// The key of one `whsec_` secret.
fn key(secret: &str) -> Option<Secret<Vec<u8>>> {
    let bytes = STANDARD.decode(secret.strip_prefix("whsec_")?).ok()?;
    WEBHOOK_SECRET_BYTES
        .contains(&bytes.len())
        .then_some(Secret(bytes))
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
