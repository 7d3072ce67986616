//! The house stands in floors: a module imports only from floors below its own, from the leaves, and from itself.

#![allow(clippy::expect_used, reason = "a test says what it expected")]

use std::fs;
use std::path::{Path, PathBuf};

/// Leaves lie under every floor, and import nothing.
const LEAF: i8 = -1;
/// The floor of each top module.
const FLOORS: [(&str, i8); 17] = [
    ("main", 5),
    ("lib", 5),
    ("server", 4),
    ("cli", 4),
    ("grpc", 3),
    ("layers", 3),
    ("rest", 3),
    ("dispatcher", 3),
    ("service", 2),
    ("store", 1),
    ("sink", 1),
    ("pb", 1),
    ("domain", 0),
    ("error", LEAF),
    ("clock", LEAF),
    ("config", LEAF),
    ("telemetry", LEAF),
];
/// Imports within one floor: cli runs the server, grpc and rest share with layers what goes with a call, a sink speaks protobuf, telemetry
/// reads its settings and logs errors.
const BESIDE: [(&str, &str); 6] = [
    ("cli", "server"),
    ("grpc", "layers"),
    ("rest", "layers"),
    ("sink", "pb"),
    ("telemetry", "config"),
    ("telemetry", "error"),
];
/// What only some modules may name.
const KEPT_TO: [(&str, &[&str]); 3] = [
    ("crate::pb", &["pb", "grpc", "rest", "sink", "server"]),
    ("sea_orm", &["store"]),
    (
        "tonic",
        &["pb", "grpc", "rest", "sink", "layers", "server", "cli"],
    ),
];
/// What the domain, being pure, never names.
const NOT_PURE: [&str; 8] = [
    "tokio",
    "hyper",
    "http::",
    "async ",
    "std::fs",
    "std::net",
    "std::env",
    "std::thread",
];

#[test]
fn every_module_imports_from_below() {
    let mut faults = Vec::new();
    let files = sources(Path::new("src"));
    assert!(files.len() > 40, "{files:?}");
    for file in files {
        let own = file
            .components()
            .nth(1)
            .expect("below src")
            .as_os_str()
            .to_string_lossy()
            .trim_end_matches(".rs")
            .to_owned();
        let text = fs::read_to_string(&file).expect("a source");
        let code = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim_start().starts_with("//"));
        for (n, line) in code {
            faults.extend(
                judge(&own, &file, line)
                    .map(|why| format!("{}:{}: {why}: {}", file.display(), n + 1, line.trim())),
            );
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// What is wrong with a line of the top module `own`.
fn judge(own: &str, file: &Path, line: &str) -> Option<String> {
    let floor_of = |name: &str| {
        FLOORS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, floor)| *floor)
    };
    let Some(floor) = floor_of(own) else {
        return Some(format!("{own} has no floor in tests/architecture.rs"));
    };
    let mut imported: Vec<&str> = line.split("crate::").skip(1).map(first_name).collect();
    if file.components().count() == 2 {
        // From a file at the top `super` is the crate.
        imported.extend(
            line.split("super::")
                .skip(1)
                .map(first_name)
                .filter(|name| floor_of(name).is_some()),
        );
    }
    for name in imported {
        let beside = BESIDE.contains(&(own, name));
        match floor_of(name) {
            None => {
                return Some(format!(
                    "{name:?} is no top module: state each import by its own path"
                ));
            }
            Some(theirs) if theirs < floor || name == own || beside => {}
            Some(theirs) => {
                return Some(format!(
                    "{own} (floor {floor}) imports {name} (floor {theirs})"
                ));
            }
        }
    }
    let kept = KEPT_TO
        .iter()
        .find(|(what, by)| names(line, what) && !by.contains(&own));
    let kept = kept.map(|(what, by)| format!("only {by:?} may name {what}"));
    let unclean = NOT_PURE
        .iter()
        .find(|what| own == "domain" && names(line, what));
    kept.or_else(|| unclean.map(|what| format!("the domain is pure, it never names {what}")))
}

/// Tables whose rows belong to workspaces, and what begins a query of one without saying of which.
const TENANT_TABLES: [&str; 7] = [
    "canvas_schedule",
    "revision",
    "properties",
    "target",
    "request",
    "dispatch",
    "rate_window",
];
const UNSCOPED: [&str; 4] = ["find()", "find_by_id(", "delete_many()", "update_many()"];

#[test]
fn a_query_of_tenants_rows_names_the_workspace() {
    let mut faults = Vec::new();
    for file in sources(Path::new("src/store"))
        .into_iter()
        .filter(|file| !file.ends_with("tenant.rs"))
    {
        let text = fs::read_to_string(&file).expect("a source");
        for (table, begins) in TENANT_TABLES
            .iter()
            .flat_map(|table| UNSCOPED.map(|begins| (table, begins)))
        {
            let query = format!("{table}::Entity::{begins}");
            faults.extend(
                text.contains(&query)
                    .then(|| format!("{}: {query}", file.display())),
            );
        }
    }
    assert!(
        faults.is_empty(),
        "these begin at store/schema/tenant.rs:\n{}",
        faults.join("\n")
    );
}

fn first_name(rest: &str) -> &str {
    rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_')
        .next()
        .unwrap_or_default()
}

/// Whether a path or word of the line begins with `what`.
fn names(line: &str, what: &str) -> bool {
    line.match_indices(what).any(|(at, _)| {
        !line[..at].ends_with(|before: char| before.is_alphanumeric() || "_\"-`".contains(before))
    })
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path());
    let found = entries.flat_map(|path| {
        if path.is_dir() {
            sources(&path)
        } else {
            vec![path]
        }
    });
    found
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}
