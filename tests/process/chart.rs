//! What the Helm chart takes for granted: which settings there are, a database that is told by parts, and a migration after a
//! rollback.

use std::collections::BTreeSet;

use canvas_scheduler::config::CommandLine;
use clap::CommandFactory;
use serde_json::Value;

use super::database::Database;
use super::postgres::process::run;
use super::server::{PATIENCE, command};

const SCHEMA: &str = include_str!("../../helm/canvas-scheduler/values.schema.json");

/// What the chart sets by values of their own, as it knows the ports, the Secrets and the grace period.
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
fn the_chart_takes_every_setting_of_serve_and_no_other() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let taken: BTreeSet<String> = schema["definitions"]["settings"]["properties"].as_object().unwrap().keys().cloned().collect();
    let mut line = CommandLine::command();
    line.build();
    let flags = line.find_subcommand("serve").unwrap().get_arguments().filter(|one| !one.is_hide_set()).filter_map(|one| one.get_long());
    let there: BTreeSet<String> = flags.filter(|flag| !SET_BY_THE_CHART.contains(flag)).map(str::to_owned).collect();
    assert_eq!(taken, there);
}

#[test]
fn a_database_may_be_told_by_parts() {
    let Some(database) = Database::postgres_empty() else { return };
    let Database::Postgres { server, name } = &database else { panic!("it is PostgreSQL") };
    let parts = server.client("psql", name);
    let mut migrate = command(&["migrate", "--database-url", "postgres://?sslmode=prefer"]);
    migrate.envs(parts.get_envs().filter_map(|(part, value)| Some((part, value?)))).env("PGPASSWORD", "p@ss/w:rd#%");
    run(&mut migrate, PATIENCE).unwrap();
    assert_eq!(server.psql(name, "SELECT count(*) > 0 FROM seaql_migrations").unwrap().trim(), "t");
}

#[test]
fn a_migration_leaves_the_schema_of_a_newer_release_as_it_is() {
    let Some(database) = Database::postgres() else { return };
    let Database::Postgres { server, name } = &database else { panic!("it is PostgreSQL") };
    server.psql(name, "INSERT INTO seaql_migrations VALUES ('m9999_of_a_newer_release', 0)").unwrap();
    let count = || server.psql(name, "SELECT count(*) FROM seaql_migrations").unwrap();
    let before = count();
    run(&mut command(&["migrate", "--database-url", &database.url()]), PATIENCE).unwrap();
    assert_eq!(count(), before);
}
