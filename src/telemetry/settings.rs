//! The settings of logs and traces.

use std::str::FromStr;

use clap::Args;
use tracing_subscriber::EnvFilter;

use crate::error::Violations;

/// How to log.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging")]
pub struct LogSettings {
    /// Log level: error, warn, info, debug, trace, or directives such as
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

fn directives(text: &str) -> Result<String, String> {
    EnvFilter::builder()
        .parse(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("is not a level or a list of directives ({error})"))
}

/// The collector of traces.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// The collector that receives traces by OTLP over gRPC, such as http://127.0.0.1:4317
    /// [default: none; or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long, env = "CANVAS_SCHEDULER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// The name that OpenTelemetry defines.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", hide = true)]
    otel_exporter_otlp_traces_endpoint: Option<String>,
    /// The name that OpenTelemetry defines.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide = true)]
    otel_exporter_otlp_endpoint: Option<String>,
}

impl TraceArgs {
    /// The URL of the collector, if one is set. It must be `http`: traces leave unencrypted, so an
    /// agent on this machine forwards them to a distant collector.
    pub fn read(&self, violations: &mut Violations) -> Option<String> {
        let url = [
            &self.otlp_endpoint,
            &self.otel_exporter_otlp_traces_endpoint,
            &self.otel_exporter_otlp_endpoint,
        ]
        .into_iter()
        .flatten()
        .find(|url| !url.is_empty())?;
        let has_host = url
            .strip_prefix("http://")
            .is_some_and(|rest| !rest.is_empty());
        if !has_host {
            violations.add(
                "otlp-endpoint",
                format!("{url:?} is not a URL such as http://127.0.0.1:4317"),
            );
        }
        has_host.then(|| url.clone())
    }
}
