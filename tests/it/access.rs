//! Authentication and permissions: every method with every kind of key.

use canvas_scheduler::domain::{KeyId, Permissions};
use canvas_scheduler::pb::v1;
use canvas_scheduler::service::admin::WorkspaceChange;
use chrono::TimeDelta;
use prost::Message;
use prost_types::FileDescriptorSet;
use sea_orm::{ConnectionTrait, TransactionTrait};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::support::*;

on_both![file: every_method_with_every_kind_of_key, a_schedule_of_another_workspace_is_unknown];
on_both![
    a_key_works_immediately_until_it_is_revoked,
    the_last_use_of_a_key_is_recorded,
    the_history_names_the_key,
    reflection_can_be_switched_off
];
on_both![an_allowlist_applies_to_the_address_that_a_trusted_proxy_forwards];

/// Every method and its permission.
const METHODS: [(&str, &str); 9] = [
    ("CreateCanvasSchedule", "create"),
    ("UpdateCanvasSchedule", "update"),
    ("BatchUpdateCanvasSchedules", "update"),
    ("CancelCanvasSchedule", "delete"),
    ("GetCanvasSchedule", "read"),
    ("ListCanvasSchedules", "read"),
    ("ListCanvasScheduleRevisions", "read"),
    ("ListDispatches", "read"),
    ("RetryDispatch", "update"),
];

#[test]
fn the_table_contains_every_method() {
    let files = FileDescriptorSet::decode(canvas_scheduler::pb::FILE_DESCRIPTOR_SET)
        .expect("descriptors")
        .file;
    let ours = files
        .iter()
        .flat_map(|file| &file.service)
        .find(|service| service.name() == "CanvasScheduleService");
    for method in &ours.expect("our service").method {
        assert!(
            METHODS.iter().any(|(name, _)| *name == method.name()),
            "{}",
            method.name()
        );
    }
}

/// Calls a method on a schedule.
async fn call(
    client: &mut Client,
    method: &str,
    schedule: &v1::CanvasSchedule,
) -> Result<(), Status> {
    let schedule_id = schedule.schedule_id.clone();
    match method {
        "CreateCanvasSchedule" => client
            .create_canvas_schedule(create(&schedule.canvas_id, at(LATER)))
            .await
            .map(drop),
        "UpdateCanvasSchedule" => client
            .update_canvas_schedule(update(schedule, at(LATER)))
            .await
            .map(drop),
        "BatchUpdateCanvasSchedules" => {
            let request = v1::BatchUpdateCanvasSchedulesRequest {
                requests: vec![update(schedule, at(LATER))],
            };
            let mut results = client
                .batch_update_canvas_schedules(request)
                .await?
                .into_inner()
                .results;
            entry(results.remove(0)).map(drop)
        }
        "CancelCanvasSchedule" => client
            .cancel_canvas_schedule(cancel(schedule))
            .await
            .map(drop),
        "GetCanvasSchedule" => client
            .get_canvas_schedule(v1::GetCanvasScheduleRequest { schedule_id })
            .await
            .map(drop),
        "ListCanvasSchedules" => client
            .list_canvas_schedules(v1::ListCanvasSchedulesRequest::default())
            .await
            .map(drop),
        "ListCanvasScheduleRevisions" => {
            let request = v1::ListCanvasScheduleRevisionsRequest {
                schedule_id,
                ..Default::default()
            };
            client
                .list_canvas_schedule_revisions(request)
                .await
                .map(drop)
        }
        "ListDispatches" => {
            let request = v1::ListDispatchesRequest {
                schedule_id,
                ..Default::default()
            };
            client.list_dispatches(request).await.map(drop)
        }
        "RetryDispatch" => {
            let request = v1::RetryDispatchRequest {
                schedule_id,
                dispatch_id: "0".repeat(32),
            };
            match client.retry_dispatch(request).await {
                // The call was authorized; the dispatch does not exist.
                Err(status) if status.code() == Code::NotFound => Ok(()),
                answer => answer.map(drop),
            }
        }
        other => panic!("{other}"),
    }
}

/// Every row that a call could change.
async fn rows(database: &Database) -> Vec<String> {
    let mut rows = Vec::new();
    for (table, columns) in [
        (
            "canvas_schedule",
            "id, version, revision, state, workspace_id",
        ),
        ("canvas_schedule_revision", "schedule_id, revision, actor"),
        ("answered_request", "request_id"),
        ("canvas_schedule_target", "schedule_id"),
        ("canvas_schedule_wake", "id, wake_ms"),
    ] {
        let all = columns
            .split(", ")
            .map(|column| {
                if database.is_postgres() {
                    format!("CAST({column} AS text)")
                } else {
                    format!("quote({column})")
                }
            })
            .collect::<Vec<_>>()
            .join(" || ' ' || ");
        rows.extend(
            database
                .rows(&format!("SELECT {all} FROM {table} ORDER BY 1"))
                .await,
        );
    }
    rows
}

async fn every_method_with_every_kind_of_key(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let before = rows(database).await;
    let revoked = app.key_of("default", |_| {}).await;
    app.admin()
        .revoke_key(KeyId::parse(&revoked[..19]).expect("an id"))
        .await
        .expect("revoked");
    let expired = app
        .key_of("default", |order| order.expires_at = Some(instant(NOW)))
        .await;
    let elsewhere = app
        .key_of("default", |order| {
            order.allowlist = vec!["192.0.2.0/24".parse().expect("a network")]
        })
        .await;
    app.read_keys().await;
    let unknown = format!("cs_{}{}", "f".repeat(16), &app.key[19..]);
    let wrong_secret = format!("{}{}", &app.key[..20], "0".repeat(48));
    for (method, permission) in METHODS {
        let lacking = key_without(&app, permission).await;
        for (key, code, reason) in [
            ("no key", Code::Unauthenticated, "KEY_MALFORMED"),
            (unknown.as_str(), Code::Unauthenticated, "KEY_UNKNOWN"),
            (&wrong_secret, Code::Unauthenticated, "KEY_UNKNOWN"),
            (&revoked, Code::Unauthenticated, "KEY_REVOKED"),
            (&expired, Code::Unauthenticated, "KEY_EXPIRED"),
            (&elsewhere, Code::PermissionDenied, "ADDRESS_NOT_ALLOWED"),
            (&lacking, Code::PermissionDenied, "PERMISSION_MISSING"),
        ] {
            let answer = call(&mut app.client_with(key), method, &schedule).await;
            let refusal = refused(answer, code, reason);
            assert!(
                key.len() < 68 || !format!("{refusal:?}").contains(&key[20..]),
                "{method}: the message contains the secret"
            );
            if reason == "PERMISSION_MISSING" {
                assert_eq!(
                    refusal.metadata["permission"],
                    format!("canvas.trigger.schedule.{permission}"),
                    "{method}"
                );
            }
        }
        let keyless = raw(
            app.channel.clone(),
            &format!("/canvas.schedule.v1.CanvasScheduleService/{method}"),
            vec![],
        )
        .await;
        refused(keyless, Code::Unauthenticated, "KEY_MISSING");
    }
    assert_eq!(
        rows(database).await,
        before,
        "refused calls must change no row"
    );
    every_method_with_its_permission(&app, &schedule).await;
}

/// Creates a key with every permission but this one.
async fn key_without(app: &TestApp, permission: &str) -> String {
    let others: Vec<&str> = ["create", "update", "delete", "read"]
        .into_iter()
        .filter(|other| *other != permission)
        .collect();
    let key = app
        .key_of("default", |order| {
            order.permissions = Permissions::parse(&others.join(",")).expect("permissions")
        })
        .await;
    app.read_keys().await;
    key
}

async fn every_method_with_its_permission(app: &TestApp, schedule: &v1::CanvasSchedule) {
    // Cancels last, since a cancelled schedule accepts no change.
    let (last, others): (Vec<_>, Vec<_>) = METHODS
        .iter()
        .partition(|(method, _)| method.starts_with("Cancel"));
    for (method, permission) in others.into_iter().chain(last) {
        let right = app
            .key_of("default", |order| {
                order.permissions = Permissions::parse(permission).expect("a permission")
            })
            .await;
        app.read_keys().await;
        call(&mut app.client_with(&right), method, schedule)
            .await
            .unwrap_or_else(|why| panic!("{method}: {why:?}"));
    }
}

async fn a_schedule_of_another_workspace_is_unknown(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    app.admin()
        .create_workspace("other", &WorkspaceChange::default())
        .await
        .expect("made");
    let mut stranger = app.client_with(&app.key_of("other", |_| {}).await);
    let before = rows(database).await;
    let unknown = v1::CanvasSchedule {
        schedule_id: "0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11".to_owned(),
        ..schedule.clone()
    };
    for (method, _) in METHODS.iter().filter(|(method, _)| {
        ![
            "CreateCanvasSchedule",
            "ListCanvasSchedules",
            "ListDispatches",
            "RetryDispatch",
        ]
        .contains(method)
    }) {
        let foreign = refused(
            call(&mut stranger, method, &schedule).await,
            Code::NotFound,
            "SCHEDULE_NOT_FOUND",
        );
        let missing = refused(
            call(&mut stranger, method, &unknown).await,
            Code::NotFound,
            "SCHEDULE_NOT_FOUND",
        );
        assert_eq!(
            foreign.message.replace(&schedule.schedule_id, "ID"),
            missing.message.replace(&unknown.schedule_id, "ID"),
            "{method}"
        );
        assert_eq!(foreign.metadata, missing.metadata, "{method}");
    }
    let by_canvas = stranger
        .update_canvas_schedule(update_of_canvas("canvas", at(LATER)))
        .await;
    refused(by_canvas, Code::NotFound, "NO_OPEN_SCHEDULE");
    assert_eq!(rows(database).await, before);
    let list = stranger
        .list_canvas_schedules(v1::ListCanvasSchedulesRequest::default())
        .await
        .expect("a list")
        .into_inner();
    assert!(list.canvas_schedules.is_empty(), "{list:?}");
}

async fn a_key_works_immediately_until_it_is_revoked(database: &Database) {
    let app = TestApp::start(database).await;
    let key = app.key_of("default", |_| {}).await;
    let mut client = app.client_with(&key);
    let mut list = async || {
        client
            .list_canvas_schedules(v1::ListCanvasSchedulesRequest::default())
            .await
    };
    list().await.expect("a new key works immediately");
    app.admin()
        .revoke_key(KeyId::parse(&key[..19]).expect("an id"))
        .await
        .expect("revoked");
    let why = soon(async {
        loop {
            match list().await {
                // Calls are refused once the last successful key reload is older than 10 s.
                Err(status) if status.code() != Code::Unavailable => break status,
                _ => {}
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    refused(
        Err::<(), _>(why.await),
        Code::Unauthenticated,
        "KEY_REVOKED",
    );
}

async fn the_last_use_of_a_key_is_recorded(database: &Database) {
    let app = TestApp::start(database).await;
    let recorded = async || {
        let keys = app.admin().keys().await.expect("keys");
        keys.into_iter()
            .find(|key| app.key.starts_with(&key.id.to_string()))
            .expect("ours")
            .last_used_at
    };
    let until = async |expected| {
        while recorded().await != Some(expected) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    app.list(Default::default()).await.expect("a list");
    soon(until(instant(NOW))).await;
    // A use within the same minute is not written again; a later one is.
    app.clock.advance(TimeDelta::seconds(61));
    app.list(Default::default()).await.expect("a list");
    soon(until(instant(NOW) + TimeDelta::seconds(61))).await;
}

mod on_postgres {
    use super::*;

    #[tokio::test]
    async fn a_use_that_could_not_be_recorded_is_recorded_later() {
        run(
            Kind::Postgres,
            concat!(
                module_path!(),
                "::a_use_that_could_not_be_recorded_is_recorded_later"
            ),
            recorded_later,
        )
        .await;
    }
}

/// Terminates the sessions that wait to write to the keys, and counts them.
const END_WAITING: &str = "SELECT count(*) FROM (SELECT pg_terminate_backend(pid) FROM pg_locks \
     WHERE relation = 'api_key'::regclass AND NOT granted) AS ended";

async fn recorded_later(database: &Database) {
    let app = TestApp::start(database).await;
    let lock = database
        .connect()
        .await
        .begin()
        .await
        .expect("a transaction");
    lock.execute_unprepared("LOCK TABLE api_key IN SHARE MODE")
        .await
        .expect("the lock");
    app.list(Default::default()).await.expect("a list");
    soon(async { while database.count(END_WAITING).await == 0 {} }).await;
    lock.rollback().await.expect("the lock is released");
    let recorded = "SELECT count(*) FROM api_key WHERE last_used_ms IS NOT NULL";
    soon(async { while database.count(recorded).await == 0 {} }).await;
}

async fn the_history_names_the_key(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let key = app
        .key_of("default", |order| order.name = "billing".to_owned())
        .await;
    app.client_with(&key)
        .update_canvas_schedule(update(&schedule, at(LATER)))
        .await
        .expect("updated");
    let revisions = app.revisions(&schedule).await;
    assert_eq!(revisions[0].actor, "billing");
    assert_ne!(revisions[1].actor, "billing");
}

async fn reflection_can_be_switched_off(database: &Database) {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    let app = TestApp::start_with(database, |settings| settings.reflection = false).await;
    let mut client = ServerReflectionClient::new(app.channel.clone());
    let asked = tonic::codegen::tokio_stream::once(ServerReflectionRequest::default());
    let refused = client
        .server_reflection_info(asked)
        .await
        .expect_err("it is off");
    assert_eq!(
        (
            refused.code(),
            refused
                .get_details_error_info()
                .expect("always")
                .reason
                .as_str()
        ),
        (Code::Unimplemented, "METHOD_UNKNOWN")
    );
}

async fn an_allowlist_applies_to_the_address_that_a_trusted_proxy_forwards(database: &Database) {
    for (trusted, forwarded, admitted) in [
        ("127.0.0.0/8", "192.0.2.9", true),
        ("127.0.0.0/8", "192.0.2.9, 203.0.113.1", false),
        ("10.0.0.0/8", "192.0.2.9", false),
    ] {
        let app = TestApp::start_with(database, |settings| {
            settings.trusted_proxies = [trusted.parse().expect("a network")].into()
        })
        .await;
        let key = app
            .key_of("default", |order| {
                order.allowlist = vec!["192.0.2.0/24".parse().expect("a network")]
            })
            .await;
        let mut request = tonic::Request::new(v1::ListCanvasSchedulesRequest::default());
        request
            .metadata_mut()
            .insert("x-forwarded-for", forwarded.parse().expect("ASCII"));
        let answer = app.client_with(&key).list_canvas_schedules(request).await;
        assert_eq!(
            answer.is_ok(),
            admitted,
            "{trusted} {forwarded}: {answer:?}"
        );
        app.stop().await;
    }
}
