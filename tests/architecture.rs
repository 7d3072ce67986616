//! The layers of the architecture: a module imports only from layers below its own, and from
//! itself.

#![allow(clippy::expect_used, reason = "a test says what it expected")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layer of each top module.
const LAYERS: [(&str, u8); 20] = [
    ("main", 7),
    ("lib", 7),
    ("cli", 6),
    ("server", 5),
    ("grpc", 4),
    ("layers", 4),
    ("rest", 4),
    ("dispatcher", 4),
    ("service", 3),
    ("methods", 3),
    ("store", 2),
    ("sink", 2),
    ("pb", 2),
    ("telemetry", 1),
    ("status", 1),
    ("domain", 1),
    ("config", 0),
    ("error", 0),
    ("clock", 0),
    ("client_tls", 0),
];
/// Imports within one layer: grpc and rest use what layers attach to a call, a sink speaks
/// protobuf, a parser of a value reports violations.
const SIDEWAYS: [(&str, &str); 5] = [
    ("grpc", "layers"),
    ("rest", "layers"),
    ("sink", "pb"),
    ("status", "domain"),
    ("config", "error"),
];
/// Names that only some modules may use.
const RESERVED: [(&str, &[&str]); 3] = [
    (
        "crate::pb",
        &["pb", "grpc", "rest", "sink", "server", "methods"],
    ),
    ("sea_orm", &["store"]),
    (
        "tonic",
        &[
            "pb",
            "grpc",
            "rest",
            "sink",
            "layers",
            "methods",
            "status",
            "server",
            "cli",
            "telemetry",
        ],
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
            .trim_end_matches("_tests")
            .to_owned();
        for (n, line) in code_lines(&read(&file)) {
            violations.extend(
                violation(&own, &file, line)
                    .map(|why| format!("{}:{}: {why}: {}", file.display(), n, line.trim())),
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

/// The layer of each module inside the store; `mod` is the store as others see it.
const STORE_LAYERS: [(&str, u8); 10] = [
    ("mod", 6),
    ("admin", 5),
    ("read", 5),
    ("availability", 5),
    ("gauges", 5),
    ("commit", 4),
    ("dispatch", 3),
    ("schema", 2),
    ("session", 1),
    ("settings", 0),
];
/// Names at the top of the store that its modules may use, since they are defined or re-exported
/// from below.
const STORE_SHARED: [&str; 1] = ["StoreSettings"];

#[test]
fn a_module_of_the_store_imports_from_lower_ones() {
    let layer_of = |name: &str| {
        STORE_LAYERS
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, layer)| *layer)
    };
    let mut violations = Vec::new();
    for file in sources(Path::new("src/store")) {
        let parts: Vec<_> = file.components().collect();
        let own = parts[2].as_os_str().to_string_lossy();
        let own = own.trim_end_matches(".rs").to_owned();
        let layer = layer_of(&own).expect("a module of the store has a layer");
        for (n, line) in code_lines(&read(&file)) {
            let upward = line
                .split("store::")
                .skip(1)
                .map(first_name)
                .filter(|name| !STORE_SHARED.contains(name) && *name != own)
                .filter(|name| layer_of(name).is_none_or(|theirs| theirs >= layer));
            violations.extend(upward.map(|name| {
                format!(
                    "{}:{n}: {own} (layer {layer}) imports {name}",
                    file.display()
                )
            }));
        }
    }
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn layers_and_server_use_no_constant_of_the_store() {
    let mut violations = Vec::new();
    for folder in ["src/layers", "src/server"] {
        for file in sources(Path::new(folder)) {
            for (n, line) in code_lines(&read(&file)) {
                let imported = line.split("crate::store::").nth(1).unwrap_or_default();
                let is_constant = |name: &str| {
                    name.len() > 1 && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
                };
                let names = imported.split(|c: char| !c.is_alphanumeric() && c != '_');
                violations.extend(
                    names
                        .filter(|name| is_constant(name))
                        .map(|name| format!("{}:{n}: {name}", file.display())),
                );
            }
        }
    }
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// Two servers in one process share nothing that changes.
#[test]
fn no_static_is_mutable() {
    // The request id is a task-local: it belongs to one call. A row of the method table is
    // constant.
    const IMMUTABLE: [&str; 5] = [
        "LazyLock<",
        "mimalloc::MiMalloc",
        "REQUEST_ID: u64",
        ": RpcMethod = ",
        ": OverEntries =",
    ];
    const MUTABLE: [&str; 5] = ["Mutex", "RwLock", "Atomic", "OnceLock", "Cell"];
    let mut violations = Vec::new();
    for file in sources(Path::new("src")) {
        for (n, line) in code_lines(&read(&file)) {
            let line = line.trim_start();
            let is_static = [
                "static ",
                "pub static ",
                "pub(crate) static ",
                "pub(super) static ",
            ]
            .iter()
            .any(|begin| line.starts_with(begin));
            let allowed = IMMUTABLE.iter().any(|kind| line.contains(kind))
                && !MUTABLE.iter().any(|kind| line.contains(kind));
            if is_static && !allowed || line.contains("thread_local!") {
                violations.push(format!("{}:{n}: {line}", file.display()));
            }
        }
    }
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

/// Names that are not ours to choose: errors, and those that sea-orm expects of each entity and
/// migration.
const REPEATED_NAMES: [&str; 5] = ["Error", "Model", "Relation", "Migration", "ActiveModel"];

#[test]
fn a_type_name_stands_for_one_type() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in sources(Path::new("src")) {
        let text = read(&file);
        for (n, line) in code_lines(&text) {
            // An associated type is indented within its impl or trait.
            let associated = line.starts_with(' ') && line.trim_start().starts_with("type ");
            if let Some(name) = type_name(line).filter(|_| !associated) {
                let place = format!("{}:{n}", file.display());
                places.entry(name.to_owned()).or_default().push(place);
            }
        }
    }
    assert!(places.len() > 100, "{places:?}");
    let repeated: Vec<_> = places
        .into_iter()
        .filter(|(name, places)| places.len() > 1 && !REPEATED_NAMES.contains(&name.as_str()))
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    assert!(repeated.is_empty(), "\n{}", repeated.join("\n"));
}

/// The type that a line defines, if any.
fn type_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = match line.strip_prefix("pub(") {
        Some(rest) => rest.split_once(") ")?.1,
        None => line.strip_prefix("pub ").unwrap_or(line),
    };
    ["struct ", "enum ", "trait ", "type "]
        .iter()
        .find_map(|keyword| line.strip_prefix(keyword))
        .map(first_name)
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).expect("a source")
}

/// The lines that are not comments, with their numbers.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(n, line)| (n + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
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
        let text = read(&file);
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
    rest.split(|symbol: char| !symbol.is_alphanumeric() && symbol != '_')
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
