//! What the Helm chart relies on: the settings and metrics, the anchors of the runbook, a database
//! URL in parts, and a migration after a rollback.

use std::collections::BTreeSet;

use canvas_scheduler::cli::CommandLine;
use clap::CommandFactory;
use serde_json::Value;

use super::database::Database;
use super::postgres::process::run;
use super::server::{PATIENCE, command};

const SCHEMA: &str = include_str!("../../helm/canvas-scheduler/values.schema.json");
const ALERTS: &str = include_str!("../../helm/canvas-scheduler/files/alerts.yaml");
const DASHBOARD: &str = include_str!("../../helm/canvas-scheduler/files/dashboard.json");
const METRICS: &str = include_str!("../../docs/metrics.md");
const OPERATIONS: &str = include_str!("../../docs/operations.md");

/// The settings that the chart derives from other values: ports, Secrets, the grace period.
const SET_BY_THE_CHART: [&str; 18] = [
    "admin-addr",
    "database-url",
    "database-url-file",
    "drain",
    "gateway",
    "gateway-addr",
    "grpc-addr",
    "plaintext",
    "roles",
    "sink",
    "sink-ca-file",
    "sink-secret",
    "sink-secret-file",
    "sink-url",
    "tls-cert",
    "tls-client-ca",
    "tls-key",
    "help",
];

#[test]
fn the_chart_accepts_exactly_the_settings_of_serve() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let taken: BTreeSet<String> = schema["definitions"]["settings"]["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let mut line = CommandLine::command();
    line.build();
    let flags = line
        .find_subcommand("serve")
        .unwrap()
        .get_arguments()
        .filter(|one| !one.is_hide_set())
        .filter_map(|one| one.get_long());
    let there: BTreeSet<String> = flags
        .filter(|flag| !SET_BY_THE_CHART.contains(flag))
        .map(str::to_owned)
        .collect();
    assert_eq!(taken, there);
}

/// The metrics that a text names, without the suffixes of histograms.
fn metrics_of(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| {
        ["canvas_scheduler_", "rpc_server_", "process_"]
            .iter()
            .any(|start| word.starts_with(start))
    });
    ours.map(|name| {
        ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name)
    })
    .collect()
}

#[test]
fn alerts_and_dashboard_query_existing_metrics() {
    let listed = metrics_of(METRICS);
    for text in [ALERTS, DASHBOARD] {
        let asked = metrics_of(text);
        assert!(asked.len() > 5, "{asked:?}");
        assert_eq!(
            asked.difference(&listed).collect::<Vec<_>>(),
            Vec::<&&str>::new()
        );
    }
}

#[test]
fn each_alert_has_an_entry_in_the_runbook() {
    let headings = OPERATIONS.lines().filter(|line| line.starts_with('#'));
    let anchors: BTreeSet<String> = headings
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .replace(' ', "-")
        })
        .collect();
    let links: Vec<&str> = ALERTS
        .lines()
        .filter_map(|line| line.trim().strip_prefix("runbook_url: docs/operations.md#"))
        .collect();
    assert_eq!(links.len(), ALERTS.matches("- alert:").count(), "one each");
    for link in links {
        assert!(anchors.contains(link), "{link} in {anchors:?}");
    }
}

#[test]
fn a_database_url_may_be_given_in_parts() {
    let Some(database) = Database::postgres_empty() else {
        return;
    };
    let Database::Postgres { server, name } = &database else {
        panic!("PostgreSQL expected")
    };
    let parts = server.client("psql", name);
    let mut migrate = command(&["migrate", "--database-url", "postgres://?sslmode=prefer"]);
    migrate
        .envs(
            parts
                .get_envs()
                .filter_map(|(part, value)| Some((part, value?))),
        )
        .env("PGPASSWORD", "p@ss/w:rd#%");
    run(&mut migrate, PATIENCE).unwrap();
    assert_eq!(
        server
            .psql(name, "SELECT count(*) > 0 FROM seaql_migrations")
            .unwrap()
            .trim(),
        "t"
    );
}

#[test]
fn a_migration_leaves_the_schema_of_a_newer_release_unchanged() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let Database::Postgres { server, name } = &database else {
        panic!("PostgreSQL expected")
    };
    server
        .psql(
            name,
            "INSERT INTO seaql_migrations VALUES ('m9999_of_a_newer_release', 0)",
        )
        .unwrap();
    let count = || {
        server
            .psql(name, "SELECT count(*) FROM seaql_migrations")
            .unwrap()
    };
    let before = count();
    run(
        &mut command(&["migrate", "--database-url", &database.url()]),
        PATIENCE,
    )
    .unwrap();
    assert_eq!(count(), before);
}
