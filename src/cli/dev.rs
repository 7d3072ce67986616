//! `dev`: a server to try. It creates a key and two sample schedules in a SQLite file, prints
//! commands to paste, and logs each dispatch.

use std::sync::Arc;

use chrono::{DateTime, Datelike, TimeDelta, Utc};

use super::serve::{StopSignals, drain};
use super::{block_on, output};
use crate::clock::{Clock, SteadyClock};
use crate::domain::{
    CanvasId, CanvasSchedule, Create, NewKey, Permissions, Schedule, Target, WorkspaceId,
};
use crate::error::Error;
use crate::server::{Serve, Server};
use crate::service::admin::KeyOrder;
use crate::service::{Caller, Filter, Mode, Service};
use crate::sink::SinkSettings;
use crate::telemetry::traces::Span;

/// The Canvases of the samples. Each has one schedule, so an update needs no `schedule_id`.
const CANVASES: [&str; 2] = ["welcome", "spring-sale"];

pub(super) fn run(mut settings: Serve) -> Result<(), Error> {
    output::check_kept()?;
    settings.sink.get_or_insert(SinkSettings::Log);
    block_on(async {
        let mut signals = StopSignals::listen()?;
        let clock = Arc::new(SteadyClock::new());
        // Waits for the database.
        let server = tokio::select! {
            started = Server::start_migrated(&settings, clock.clone(), None) => started?,
            () = signals.recv() => return Ok(()),
        };
        let prepared = prepare(&server, clock.now()).await;
        if prepared.is_ok() {
            signals.recv().await;
        }
        drain(server, signals).await;
        prepared
    })
}

/// Creates the samples and a key, and prints commands that use them.
async fn prepare(server: &Server, now: DateTime<Utc>) -> Result<(), Error> {
    let samples = samples(server.service(), now).await?;
    let order = KeyOrder {
        name: "dev".to_owned(),
        permissions: Permissions::all(),
        expires_at: None,
        allowlist: vec![],
    };
    let show = |key: &NewKey| {
        output::print(&grpc_commands(
            &server.grpc_addr().to_string(),
            key,
            &samples,
            now,
        ))?;
        match server.gateway_addr() {
            Some(addr) => output::print(&curl_commands(&addr.to_string(), key, &samples, now)),
            None => Ok(()),
        }
    };
    server.admin().replace_key(order, show).await?;
    server.read_keys().await?;
    output::print("\nCtrl-C stops the server. The schedules stay in the database file.\n")
}

/// The sample schedules that can still change; creates those that are missing.
async fn samples(service: &Service, now: DateTime<Utc>) -> Result<Vec<CanvasSchedule>, Error> {
    let caller = Caller {
        workspace: WorkspaceId::DEFAULT,
        actor: "dev".into(),
        deadline: None,
        span: Span::default(),
    };
    let mut samples = Vec::new();
    for (name, in_local_time) in CANVASES.into_iter().zip([true, false]) {
        let canvas_id = CanvasId::parse(name).map_err(Error::internal)?;
        let of_canvas = Filter {
            canvas_id: Some(canvas_id.clone()),
            state: Some(crate::domain::ScheduleState::Pending),
        };
        let found = service.list(&caller, &of_canvas, None, 1).await?;
        samples.push(match found.into_iter().next() {
            Some(sample) => sample,
            None => {
                let schedule = Schedule::parse(&next_week(now, "13:14:47"), in_local_time, false)
                    .map_err(Error::internal)?;
                let target = Target {
                    broadcast: true,
                    ..Target::default()
                };
                let create = Create {
                    canvas_id,
                    schedule,
                    properties: None,
                    target,
                };
                service
                    .create(caller.clone(), create, Mode::default())
                    .await?
                    .outcome
                    .after
            }
        });
    }
    Ok(samples)
}

fn next_week(now: DateTime<Utc>, time: &str) -> String {
    let day = now + TimeDelta::days(7);
    format!(
        "{:04}-{:02}-{:02}T{time}",
        day.year(),
        day.month(),
        day.day()
    )
}

/// Commands that work as they are, in this order.
fn grpc_commands(
    addr: &str,
    key: &NewKey,
    samples: &[CanvasSchedule],
    now: DateTime<Utc>,
) -> String {
    let call = format!("grpcurl -plaintext {addr}");
    let mut text = format!(
        "canvas-scheduler listens for gRPC at {addr} (workspace default; the key is valid until \
         dev starts again). Paste these commands, one at a time:\n\n{call} list\n{call} describe \
         canvas.schedule.v1.CanvasScheduleService\n"
    );
    let method = "canvas.schedule.v1.CanvasScheduleService";
    let header = format!("authorization: Bearer {}", key.reveal());
    let mut data = |data: serde_json::Value, rpc: &str| {
        text += &format!("grpcurl -plaintext -H '{header}' -d '{data}' {addr} {method}/{rpc}\n");
    };
    // A new Canvas at each start, so that it has one schedule and the update needs no id.
    let canvas_id = format!("my-canvas-{}", now.timestamp_millis());
    data(
        serde_json::json!({
            "canvas_id": canvas_id,
            "schedule": { "time": next_week(now, "09:30:00"), "in_local_time": true },
            "recipients": [{ "external_user_id": "user-1" }],
            "trigger_properties": { "greeting": "hello" },
        }),
        "CreateCanvasSchedule",
    );
    data(
        serde_json::json!({
            "canvas_id": canvas_id,
            "schedule": { "time": next_week(now, "10:00:00Z") },
        }),
        "UpdateCanvasSchedule",
    );
    for sample in samples.iter().take(1) {
        let (canvas_id, schedule_id) = (sample.canvas_id.as_str(), sample.id.to_string());
        let schedule = serde_json::json!({ "time": next_week(now, "14:14:47") });
        data(
            serde_json::json!({
                "canvas_id": canvas_id,
                "schedule_id": schedule_id,
                "schedule": schedule,
            }),
            "UpdateCanvasSchedule",
        );
        data(
            serde_json::json!({ "schedule_id": schedule_id }),
            "GetCanvasSchedule",
        );
        data(
            serde_json::json!({ "schedule_id": schedule_id }),
            "ListCanvasScheduleRevisions",
        );
    }
    for sample in samples.iter().skip(1) {
        let (canvas_id, schedule_id) = (sample.canvas_id.as_str(), sample.id.to_string());
        data(
            serde_json::json!({ "canvas_id": canvas_id, "schedule_id": schedule_id }),
            "CancelCanvasSchedule",
        );
    }
    data(serde_json::json!({}), "ListCanvasSchedules");
    text
}

/// The same for the documented JSON.
fn curl_commands(
    addr: &str,
    key: &NewKey,
    samples: &[CanvasSchedule],
    now: DateTime<Utc>,
) -> String {
    let mut text = "\nThe same with JSON over HTTP:\n\n".to_owned();
    let call = format!(
        "curl -sS --fail-with-body -H 'Authorization: Bearer {}'",
        key.reveal()
    );
    let base = format!("http://{addr}/canvas/trigger/schedule");
    let mut post = |path: &str, body: serde_json::Value| {
        text += &format!("{call} -H 'Content-Type: application/json' -d '{body}' {base}/{path}\n");
    };
    let canvas_id = format!("my-json-canvas-{}", now.timestamp_millis());
    let schedule = serde_json::json!({ "time": next_week(now, "09:30:00"), "in_local_time": true });
    let recipients = serde_json::json!([{ "external_user_id": "user-1" }]);
    post(
        "create",
        serde_json::json!({
            "canvas_id": canvas_id,
            "schedule": schedule,
            "recipients": recipients,
        }),
    );
    post(
        "update",
        serde_json::json!({
            "canvas_id": canvas_id,
            "schedule": { "time": next_week(now, "10:00:00Z") },
        }),
    );
    for sample in samples.iter().take(1) {
        text += &format!("{call} {base}/{}\n", sample.id);
    }
    text + &format!("{call} '{base}?state=pending&page_size=10'\n")
}
