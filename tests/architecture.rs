//! The layers of the architecture: a module imports only from layers below its own, and from itself.

#![allow(clippy::expect_used, reason = "a test says what it expected")]

use std::fs;
use std::path::{Path, PathBuf};

/// The layer of each top module.
const LAYERS: [(&str, u8); 17] = [
    ("main", 7),
    ("lib", 7),
    ("cli", 6),
    ("server", 5),
    ("grpc", 4),
    ("layers", 4),
    ("rest", 4),
    ("dispatcher", 4),
    ("service", 3),
    ("store", 2),
    ("sink", 2),
    ("pb", 2),
    ("telemetry", 1),
    ("domain", 1),
    ("config", 0),
    ("error", 0),
    ("clock", 0),
];
/// Imports within one layer: grpc and rest use what layers attach to a call, a sink speaks protobuf, a parser of a value reports
/// violations.
const SIDEWAYS: [(&str, &str); 4] = [
    ("grpc", "layers"),
    ("rest", "layers"),
    ("sink", "pb"),
    ("config", "error"),
];
/// Names that only some modules may use.
const RESERVED: [(&str, &[&str]); 3] = [
    ("crate::pb", &["pb", "grpc", "rest", "sink", "server"]),
    ("sea_orm", &["store"]),
    (
        "tonic",
        &["pb", "grpc", "rest", "sink", "layers", "server", "cli"],
    ),
];
/// Names that the domain, being pure, never uses.
const IMPURE: [&str; 8] = [
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
fn every_module_imports_from_lower_layers() {
    let mut violations = Vec::new();
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
            violations.extend(
                violation(&own, &file, line)
                    .map(|why| format!("{}:{}: {why}: {}", file.display(), n + 1, line.trim())),
            );
        }
    }
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// The violation in a line of the top module `own`, if any.
fn violation(own: &str, file: &Path, line: &str) -> Option<String> {
    let layer_of = |name: &str| {
        LAYERS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, layer)| *layer)
    };
    let Some(layer) = layer_of(own) else {
        return Some(format!("{own} has no layer in tests/architecture.rs"));
    };
    let mut imported: Vec<&str> = line.split("crate::").skip(1).map(first_name).collect();
    if file.components().count() == 2 {
        // In a top file `super` is the crate.
        imported.extend(
            line.split("super::")
                .skip(1)
                .map(first_name)
                .filter(|name| layer_of(name).is_some()),
        );
    }
    for name in imported {
        let sideways = SIDEWAYS.contains(&(own, name));
        match layer_of(name) {
            None => {
                return Some(format!(
                    "{name:?} is not a top module: write each import with its own path"
                ));
            }
            Some(theirs) if theirs < layer || name == own || sideways => {}
            Some(theirs) => {
                return Some(format!(
                    "{own} (layer {layer}) imports {name} (layer {theirs})"
                ));
            }
        }
    }
    let reserved = RESERVED
        .iter()
        .find(|(what, by)| names(line, what) && !by.contains(&own));
    let reserved = reserved.map(|(what, by)| format!("only {by:?} may name {what}"));
    let impure = IMPURE
        .iter()
        .find(|what| own == "domain" && names(line, what));
    reserved.or_else(|| impure.map(|what| format!("the domain is pure and never names {what}")))
}

/// Tables whose rows belong to workspaces, and how a query of one begins that names no workspace.
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
    let mut violations = Vec::new();
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
            violations.extend(
                text.contains(&query)
                    .then(|| format!("{}: {query}", file.display())),
            );
        }
    }
    assert!(
        violations.is_empty(),
        "these begin at store/schema/tenant.rs:\n{}",
        violations.join("\n")
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
