//! The settings of logs and traces.

use std::str::FromStr;

use clap::Args;
use http::Uri;
use tracing_subscriber::EnvFilter;

use crate::config::{Secret, values};
use crate::error::Violations;

/// How to log.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogSettings {
    /// Log level: error, warn, info, debug, trace, off, or directives such as
    /// info,canvas_scheduler=debug
    #[arg(
        long,
        global = true,
        env = "CANVAS_SCHEDULER_LOG_LEVEL",
        default_value = "info",
        value_parser = directives
    )]
    pub log_level: String,
    /// Log format: text, json, or auto, which is text on a terminal and json elsewhere
    #[arg(
        long,
        global = true,
        env = "CANVAS_SCHEDULER_LOG_FORMAT",
        default_value = "auto"
    )]
    pub log_format: LogFormat,
}

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
    /// Text on a terminal, JSON elsewhere.
    Auto,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "auto" => Ok(Self::Auto),
            _ => Err("is not text, json or auto".to_owned()),
        }
    }
}

/// Levels, each alone or as `target=level`, separated by commas. `EnvFilter` takes any other word
/// for a target, whose lines are then the only ones.
fn directives(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let is_level = |level: &str| LEVELS.contains(&level.to_lowercase().as_str());
    let is_target = |target: &str| {
        !target.is_empty()
            && target
                .chars()
                .all(|c| c.is_alphanumeric() || "_:.-".contains(c))
    };
    let is_valid = |directive: &str| match directive.split_once('=') {
        Some((target, level)) => is_target(target) && is_level(level),
        None => is_level(directive),
    };
    if text.split(',').all(is_valid) && EnvFilter::builder().parse(text).is_ok() {
        return Ok(text.to_owned());
    }
    let levels = LEVELS.join(", ");
    Err(format!(
        "is not one of the levels {levels}, or a list of them and of target=level, such as \
         info,canvas_scheduler=debug"
    ))
}

/// The collector of traces.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// The collector that receives traces by OTLP over gRPC, such as http://127.0.0.1:4317 or
    /// https://collector:4317 [default: none; or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or
    /// OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_OTLP_ENDPOINT",
        hide_env_values = true,
        value_name = "URL"
    )]
    otlp_endpoint: Option<Secret<String>>,
    #[command(flatten)]
    variables: OtelVariables,
}

/// The settings whose names OpenTelemetry defines. Its SDK reads the others.
#[derive(Debug, Clone, Args)]
struct OtelVariables {
    /// The endpoint for traces.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", hide = true)]
    otel_exporter_otlp_traces_endpoint: Option<Secret<String>>,
    /// The endpoint for every signal.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide = true)]
    otel_exporter_otlp_endpoint: Option<Secret<String>>,
    /// Certificates to trust for traces, PEM.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", hide = true)]
    otel_exporter_otlp_traces_certificate: Option<String>,
    /// Certificates to trust for every signal, PEM.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_CERTIFICATE", hide = true)]
    otel_exporter_otlp_certificate: Option<String>,
    /// Whether nothing is exported: `true`, or anything else.
    #[arg(long, env = "OTEL_SDK_DISABLED", hide = true)]
    otel_sdk_disabled: Option<String>,
}

/// Where traces are exported to.
#[derive(Debug, Clone)]
pub struct CollectorSettings {
    /// `http` or `https`.
    pub url: Secret<Uri>,
    /// Certificates to trust, PEM; the system's if none are set.
    pub ca: Option<Vec<u8>>,
}

impl TraceArgs {
    /// The collector, if one is set and exports are not disabled.
    pub fn read(&self, violations: &mut Violations) -> Option<CollectorSettings> {
        let variables = &self.variables;
        let disabled = variables.otel_sdk_disabled.as_deref();
        if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let url = self
            .otlp_endpoint
            .as_ref()
            .or(variables.otel_exporter_otlp_traces_endpoint.as_ref())
            .or(variables.otel_exporter_otlp_endpoint.as_ref())?;
        let ca = variables
            .otel_exporter_otlp_traces_certificate
            .as_ref()
            .or(variables.otel_exporter_otlp_certificate.as_ref())
            .map(|file| values::file(file));
        // The violation does not repeat the URL, which may contain a secret.
        let url = url.0.parse::<Uri>().ok().filter(|url| {
            let has_host = url.authority().is_some_and(|authority| {
                !authority.host().is_empty() && !authority.as_str().contains('@')
            });
            has_host && matches!(url.scheme_str(), Some("http" | "https"))
        });
        if url.is_none() {
            violations.add(
                "otlp-endpoint",
                "must be http:// or https:// with a host and no user, such as \
                 http://127.0.0.1:4317",
            );
        }
        let ca = ca.transpose().map_err(|why| format!("the file {why}"));
        let ca = violations.check("otel-exporter-otlp-certificate", ca);
        Some(CollectorSettings {
            url: Secret(url?),
            ca: ca?.map(String::into_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_level_is_a_level_or_a_list_of_targets() {
        for valid in [
            "info",
            "ERROR",
            "off",
            "info,canvas_scheduler=debug",
            "warn,h2=off,a::b=trace",
        ] {
            assert_eq!(directives(valid), Ok(valid.to_owned()));
        }
        for invalid in [
            "warning",
            "",
            "critical",
            "info,",
            "info,verbose",
            "canvas_scheduler",
            "canvas_scheduler=",
            "canvas_scheduler=warning",
            "=info",
            "=x=",
            "[span]=info",
            "a b=info",
            "5",
        ] {
            let error = directives(invalid).expect_err(invalid);
            assert!(
                error.contains("error, warn, info, debug, trace, off"),
                "{invalid}: {error}"
            );
        }
    }
}
