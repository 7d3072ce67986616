//! Runs the curl examples of docs/api.md with another host, key and ids, and compares each response
//! with the documented one.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::support::*;

on_both![documented_examples_return_documented_responses];

/// The ids of this run, by the ids in the document.
type Ids = BTreeMap<String, String>;

/// A command and its documented response.
struct Example {
    command: String,
    status: u16,
    answer: Value,
}

fn examples(document: &str) -> Vec<Example> {
    let (_, section) = document
        .split_once("\n## JSON over HTTP\n")
        .expect("the section");
    // Text and fenced blocks alternate.
    let blocks: Vec<&str> = section.split("```").skip(1).step_by(2).collect();
    let pairs = blocks.chunks(2).map(|pair| {
        let command = pair[0].strip_prefix("sh\n").expect("a command").to_owned();
        let (status, answer) = pair[1]
            .strip_prefix("json ")
            .and_then(|rest| rest.split_once('\n'))
            .expect("an answer");
        Example {
            command,
            status: status.parse().expect("a status"),
            answer: serde_json::from_str(answer).expect("JSON"),
        }
    });
    pairs.collect()
}

/// Runs a command, and returns the status and the JSON of the response.
async fn run(command: String) -> (u16, Value) {
    // Runs on another thread, since the server accepts connections on the test's runtime.
    let shell = move || {
        Command::new("sh")
            .args([
                "-c",
                &format!(
                    "{} -sS --max-time 60 -w '\\n%{{http_code}}'",
                    command.trim_end()
                ),
            ])
            .output()
    };
    let output = tokio::task::spawn_blocking(shell)
        .await
        .expect("no panic")
        .expect("sh");
    let output_text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        output.status.success(),
        "curl is needed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let (answer, status) = output_text.rsplit_once('\n').expect("a status");
    (
        status.parse().expect("a number"),
        serde_json::from_str(answer).unwrap_or_else(|why| panic!("{why}: {answer}")),
    )
}

/// Replaces the ids in the documented value by those of this run, and records new ones from the
/// response.
fn with_ids(documented: &Value, answered: &Value, ids: &mut Ids) -> Value {
    if let (Value::Object(fields), Value::Object(others)) = (documented, answered) {
        for name in ["schedule_id", "dispatch_id", "etag"] {
            if let (Some(Value::String(ours)), Some(Value::String(theirs))) =
                (fields.get(name), others.get(name))
            {
                ids.entry(ours.clone()).or_insert_with(|| theirs.clone());
            }
        }
    }
    match documented {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, one)| (name.clone(), with_ids(one, &answered[name], ids)))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(n, one)| with_ids(one, &answered[n], ids))
            .collect(),
        Value::String(text) => Value::String(replaced(text, ids)),
        other => other.clone(),
    }
}

fn replaced(text: &str, ids: &Ids) -> String {
    ids.iter().fold(text.to_owned(), |text, (ours, theirs)| {
        text.replace(ours, theirs)
    })
}

async fn documented_examples_return_documented_responses(database: &Database) {
    let app = TestApp::start(database).await;
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md"))
        .expect("the document");
    let examples = examples(&document);
    for path in [
        "schedule/create",
        "schedule/update",
        "/fr/canvas",
        "/campaigns/",
        "schedule/delete",
        "schedule/0198",
        "schedule?",
    ] {
        assert!(
            examples
                .iter()
                .any(|example| example.command.contains(path)),
            "{path} has no example"
        );
    }
    let mut ids = Ids::from([
        ("127.0.0.1:8080".to_owned(), app.gateway().to_string()),
        ("YOUR-REST-API-KEY".to_owned(), app.key.clone()),
    ]);
    for example in examples {
        let (status, answer) = run(replaced(&example.command, &ids)).await;
        let documented = with_ids(&example.answer, &answer, &mut ids);
        assert_eq!(
            (status, &answer),
            (example.status, &documented),
            "{}{answer:#}",
            example.command
        );
    }
}
