//! docs/metrics.md lists the metrics: a server under load exports exactly these, as documented.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tonic::Code;

use super::database::Database;
use super::load::{create, now_ms, unique_time, update};
use super::server::{PATIENCE, Server};
use super::tls::{self, Authority, Files};

/// A metric's type and labels.
type Kind = (String, BTreeSet<String>);

/// The metrics in the document.
fn documented() -> BTreeMap<String, Kind> {
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let rows = document.lines().filter(|line| line.starts_with("| `"));
    let metric = |row: &str| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        // Brackets enclose the values of a label.
        let labels: String = cells[4]
            .split('(')
            .map(|part| part.split_once(')').map_or(part, |(_, after)| after))
            .collect();
        let labels = labels
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        (
            cells[1].trim_matches('`').to_owned(),
            (cells[2].to_owned(), labels),
        )
    };
    rows.map(metric).collect()
}

/// The metrics in a scrape. The labels of a metric are those of all its samples, without the bounds
/// of buckets.
fn exported(text: &str) -> BTreeMap<String, Kind> {
    let mut metrics = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap();
            current = Some(name.to_owned());
            assert!(
                metrics
                    .insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()))
                    .is_none(),
                "{name} is declared twice"
            );
        } else if !line.starts_with('#') {
            let labels = line
                .split_once('{')
                .map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
            let names = labels
                .split("\",")
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, _)| name.to_owned());
            let (_, all_names) = metrics.get_mut(current.as_ref().unwrap()).unwrap();
            all_names.extend(names.filter(|name| name != "le"));
        }
    }
    metrics
}

/// The value of the sample with this name and these labels.
fn value(text: &str, sample: &str) -> f64 {
    let line = text.lines().find(|line| {
        line.strip_prefix(sample)
            .is_some_and(|rest| rest.starts_with(' '))
    });
    line.unwrap_or_else(|| panic!("{sample} in\n{text}"))
        .rsplit_once(' ')
        .unwrap()
        .1
        .parse()
        .unwrap()
}

/// Scrapes until the sample has this value.
async fn until(server: &Server, sample: &str, wanted: f64) -> String {
    let started = Instant::now();
    loop {
        let (status, text) = server.ask("/metrics").await;
        assert_eq!(status, 200);
        if text.contains(sample) && (value(&text, sample) - wanted).abs() < f64::EPSILON {
            return text;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{sample} is not {wanted} in\n{text}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_server_exports_every_documented_metric_and_no_other() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let authority = Authority::new();
    let files = Files::of(&authority);
    let flags = [files.flags(), ["--sink", "log"].map(str::to_owned).to_vec()].concat();
    let server = tls::start(&database, &flags, authority.trusted()).await;
    let schedule_id = make_calls(&server).await;
    let text = until(
        &server,
        "canvas_scheduler_dispatch_answers_total{answer=\"delivered\",sink=\"log\"}",
        1.0,
    )
    .await;
    assert_eq!(exported(&text), documented());
    assert_values(&text);
    let expiry = value(
        &text,
        "canvas_scheduler_certificate_expiry_timestamp_seconds",
    );
    assert!(
        expiry > value(&text, "process_start_time_seconds"),
        "the certificate expires in the past: {expiry}"
    );
    assert!(
        !text.contains("cs_") && !text.contains(&schedule_id),
        "metrics must not contain keys or schedule ids"
    );
}

/// Makes calls with different outcomes. Returns the id of the created schedule.
async fn make_calls(server: &Server) -> String {
    let mut client = server.connect().await;
    let (schedule_id, _) = create(&mut client, unique_time(), String::new())
        .await
        .unwrap();
    update(&mut client, &schedule_id, now_ms(), String::new())
        .await
        .unwrap();
    let unknown = update(
        &mut client,
        "0190163d-8694-739b-aea5-966c26f8ad91",
        now_ms(),
        String::new(),
    )
    .await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    let mut stranger = server.access().with("no key").connect().await;
    assert_eq!(
        update(&mut stranger, &schedule_id, now_ms(), String::new())
            .await
            .unwrap_err()
            .code(),
        Code::Unauthenticated
    );
    schedule_id
}

/// Checks the values after these calls and the delivery of one dispatch.
fn assert_values(text: &str) {
    let calls = |method: &str, code: &str| {
        let method = format!("canvas.schedule.v1.CanvasScheduleService/{method}");
        let labels = format!(
            "{{rpc_method=\"{method}\",rpc_response_status_code=\"{code}\",rpc_system_name=\"grpc\"}}"
        );
        value(
            text,
            &format!("rpc_server_call_duration_seconds_count{labels}"),
        )
    };
    let seen = [
        ("created", calls("CreateCanvasSchedule", "OK"), 1.0),
        ("updated", calls("UpdateCanvasSchedule", "OK"), 1.0),
        ("not found", calls("UpdateCanvasSchedule", "NOT_FOUND"), 1.0),
        (
            "refused",
            value(
                text,
                "canvas_scheduler_auth_refusals_total{reason=\"KEY_MALFORMED\"}",
            ),
            1.0,
        ),
        (
            "rounds",
            value(text, "canvas_scheduler_commit_batch_size_count"),
            3.0,
        ),
        (
            "lags",
            value(text, "canvas_scheduler_dispatch_lag_seconds_count"),
            1.0,
        ),
        ("database", value(text, "canvas_scheduler_database_up"), 1.0),
        ("ready", value(text, "canvas_scheduler_ready"), 1.0),
        (
            "workers",
            value(
                text,
                "canvas_scheduler_dispatches_in_hand_max{sink=\"log\"}",
            ),
            1024.0,
        ),
        (
            "queue",
            value(text, "canvas_scheduler_commit_queue_max{writer=\"1\"}"),
            4096.0,
        ),
    ];
    for (what, seen, expected) in seen {
        assert!(
            (seen - expected).abs() < f64::EPSILON,
            "{what}: {seen}, not {expected}, in\n{text}"
        );
    }
}
