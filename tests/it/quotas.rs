//! Quotas of workspaces, in windows of the clock, counted across replicas.

use std::time::Duration;

use canvas_scheduler::domain::{Quota, QuotaKind};
use canvas_scheduler::pb::v1;
use canvas_scheduler::service::admin::WorkspaceChange;
use chrono::TimeDelta;
use serde_json::json;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::support::*;

on_both![
    a_call_over_the_quota_is_refused_until_the_next_window,
    an_entry_of_a_batch_counts_as_one,
    a_creation_counts_by_its_target,
    a_quota_applies_to_all_keys_of_one_workspace,
    a_changed_quota_applies_immediately,
    undecodable_requests_count_too,
];
on_both![file: two_replicas_share_a_quota, a_refused_batch_uses_no_quota_of_other_replicas];

/// Starts an app whose workspace `default` has these quotas.
async fn limited(database: &Database, quotas: &[(QuotaKind, &str)]) -> TestApp {
    let app = TestApp::start(database).await;
    set(&app, "default", quotas).await;
    app
}

async fn set(app: &TestApp, workspace: &str, quotas: &[(QuotaKind, &str)]) {
    let quotas = quotas
        .iter()
        .map(|(counted, quota)| (*counted, Quota::parse(quota).expect("a quota")))
        .collect();
    app.admin()
        .set_workspace(
            workspace,
            &WorkspaceChange {
                default_zone: None,
                quotas,
            },
        )
        .await
        .expect("set");
    app.read_keys().await;
}

/// The headers limit, remaining and reset.
fn quota_headers(metadata: &MetadataMap) -> [i64; 3] {
    [
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ]
    .map(|name| {
        let value = metadata
            .get(name)
            .unwrap_or_else(|| panic!("{name} in {metadata:?}"));
        value.to_str().expect("ASCII").parse().expect("a number")
    })
}

async fn list(client: &mut Client) -> Result<[i64; 3], Status> {
    client
        .list_canvas_schedules(v1::ListCanvasSchedulesRequest::default())
        .await
        .map(|answer| quota_headers(answer.metadata()))
}

/// Asserts a refusal for a quota whose next window starts in `wait` seconds.
fn over(refusal: Result<impl std::fmt::Debug, Status>, counted: QuotaKind, limit: i64, wait: u64) {
    let status = refusal.as_ref().expect_err("over the quota").clone();
    let refused = refused(refusal, Code::ResourceExhausted, "RATE_LIMITED");
    assert_eq!(
        (
            refused.metadata["quota"].as_str(),
            refused.metadata["limit"].as_str()
        ),
        (counted.name(), &*limit.to_string())
    );
    let details = status.get_error_details();
    assert_eq!(
        details.retry_info().expect("when").retry_delay,
        Some(Duration::from_secs(wait))
    );
    assert_eq!(
        details.quota_failure().expect("which").violations[0].subject,
        counted.name()
    );
    let reset = instant(NOW).timestamp() + 60;
    assert_eq!(quota_headers(status.metadata()), [limit, 0, reset]);
    assert_eq!(
        status
            .metadata()
            .get("retry-after")
            .expect("when")
            .to_str()
            .expect("ASCII"),
        (wait + 1).to_string()
    );
}

async fn a_call_over_the_quota_is_refused_until_the_next_window(database: &Database) {
    let app = limited(database, &[(QuotaKind::Requests, "5/minute")]).await;
    let (mut client, reset) = (app.client(), instant(NOW).timestamp() + 60);
    for remaining in [4, 3, 2, 1, 0] {
        assert_eq!(
            list(&mut client).await.expect("within the quota"),
            [5, remaining, reset]
        );
    }
    over(list(&mut client).await, QuotaKind::Requests, 5, 60);
    app.clock.advance(TimeDelta::seconds(50));
    over(list(&mut client).await, QuotaKind::Requests, 5, 10);
    // Health checks do not count against a workspace.
    HealthClient::new(app.channel.clone())
        .check(HealthCheckRequest::default())
        .await
        .expect("health checks are never refused");
    app.clock.advance(TimeDelta::seconds(10));
    assert_eq!(
        list(&mut client).await.expect("a new window"),
        [5, 4, reset + 60]
    );
}

async fn an_entry_of_a_batch_counts_as_one(database: &Database) {
    let app = limited(database, &[(QuotaKind::Requests, "20/minute")]).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let batch = |entries: usize| vec![update(&schedule, at(LATER)); entries];
    assert_eq!(app.batch(batch(15)).await.expect("answers").len(), 15);
    over_with(app.batch(batch(6)).await, 5);
    assert_eq!(
        app.batch(batch(5))
            .await
            .expect("a refused batch must not count")
            .len(),
        5
    );
    over_with(app.update(update(&schedule, at(LATER))).await, 0);
    app.clock.advance(TimeDelta::minutes(1));
    assert_eq!(
        app.get(&schedule)
            .await
            .canvas_schedule
            .expect("a schedule")
            .revision,
        21,
        "a refused batch must change nothing"
    );
}

/// Asserts a refusal that reports how many requests remain.
fn over_with(refusal: Result<impl std::fmt::Debug, Status>, remaining: i64) {
    let status = refusal.as_ref().expect_err("over the quota").clone();
    refused(refusal, Code::ResourceExhausted, "RATE_LIMITED");
    assert_eq!(quota_headers(status.metadata())[1], remaining);
}

async fn a_creation_counts_by_its_target(database: &Database) {
    let quotas = [
        (QuotaKind::Requests, "3/minute"),
        (QuotaKind::Broadcasts, "5/minute"),
        (QuotaKind::SameAudience, "2/minute"),
    ];
    let app = limited(database, &quotas).await;
    let to_users = v1::CreateCanvasScheduleRequest {
        broadcast: false,
        recipients: vec![user("u")],
        ..create("canvas", at(LATER))
    };
    let to_audience = |name: &str| {
        let audience = Some(object(json!({ "filter": name })));
        v1::CreateCanvasScheduleRequest {
            broadcast: false,
            audience,
            ..create("canvas", at(LATER))
        }
    };
    for _ in 0..2 {
        app.create(to_audience("a"))
            .await
            .expect("within all quotas");
    }
    over(
        app.create(to_audience("a")).await,
        QuotaKind::SameAudience,
        2,
        60,
    );
    app.create(to_audience("b"))
        .await
        .expect("another audience");
    // An audience with recipients counts as an audience; the refused creation did not count.
    app.create(v1::CreateCanvasScheduleRequest {
        recipients: vec![user("u")],
        ..to_audience("b")
    })
    .await
    .expect("within all quotas");
    app.create(create("canvas", at(LATER)))
        .await
        .expect("the fifth");
    over(
        app.create(create("canvas", at(LATER))).await,
        QuotaKind::Broadcasts,
        5,
        60,
    );
    over(
        app.create(to_audience("c")).await,
        QuotaKind::Broadcasts,
        5,
        60,
    );
    for _ in 0..3 {
        app.create(to_users.clone())
            .await
            .expect("creations for users count as requests");
    }
    over(app.create(to_users).await, QuotaKind::Requests, 3, 60);
}

async fn a_quota_applies_to_all_keys_of_one_workspace(database: &Database) {
    let app = limited(database, &[(QuotaKind::Requests, "2/minute")]).await;
    app.admin()
        .create_workspace("other", &WorkspaceChange::default())
        .await
        .expect("made");
    let (own, others) = (
        app.key_of("default", |_| {}).await,
        app.key_of("other", |_| {}).await,
    );
    app.read_keys().await;
    list(&mut app.client()).await.expect("the first");
    list(&mut app.client_with(&own))
        .await
        .expect("the second, with another key");
    over(list(&mut app.client()).await, QuotaKind::Requests, 2, 60);
    assert_eq!(
        list(&mut app.client_with(&others))
            .await
            .expect("another workspace")[..2],
        [250_000, 249_999]
    );
}

async fn a_changed_quota_applies_immediately(database: &Database) {
    let app = limited(database, &[(QuotaKind::Requests, "2/minute")]).await;
    let mut client = app.client();
    list(&mut client).await.expect("the first");
    list(&mut client).await.expect("the second");
    over(list(&mut client).await, QuotaKind::Requests, 2, 60);
    set(&app, "default", &[(QuotaKind::Requests, "4/minute")]).await;
    assert_eq!(list(&mut client).await.expect("two more")[..2], [4, 1]);
    set(&app, "default", &[(QuotaKind::Requests, "1/minute")]).await;
    over(list(&mut client).await, QuotaKind::Requests, 1, 60);
}

async fn undecodable_requests_count_too(database: &Database) {
    let app = limited(database, &[(QuotaKind::Requests, "4/minute")]).await;
    let call = async |method: &str| {
        raw(
            app.keyed(),
            &format!("/canvas.schedule.v1.CanvasScheduleService/{method}"),
            vec![0xff],
        )
        .await
    };
    list(&mut app.client()).await.expect("the first");
    for method in [
        "UpdateCanvasSchedule",
        "CreateCanvasSchedule",
        "BatchUpdateCanvasSchedules",
    ] {
        refused(
            call(method).await,
            Code::InvalidArgument,
            "MESSAGE_NOT_DECODABLE",
        );
    }
    over(list(&mut app.client()).await, QuotaKind::Requests, 4, 60);
}

async fn two_replicas_share_a_quota(database: &Database) {
    let apps = [
        limited(database, &[(QuotaKind::Requests, "1000/minute")]).await,
        TestApp::start_unchanged(database).await,
    ];
    let mut accepted = 0;
    // Nine of ten calls go to the first replica.
    for n in 0..1200 {
        if list(&mut apps[usize::from(n % 10 == 9)].client())
            .await
            .is_ok()
        {
            accepted += 1;
        }
    }
    assert!((990..=1000).contains(&accepted), "{accepted} of 1,000");
}

async fn a_refused_batch_uses_no_quota_of_other_replicas(database: &Database) {
    let apps = [
        limited(database, &[(QuotaKind::Requests, "100/minute")]).await,
        TestApp::start_unchanged(database).await,
    ];
    let schedule = apps[0].created(create("canvas", at(LATER))).await;
    let batch = |entries| vec![update(&schedule, at(LATER)); entries];
    list(&mut apps[0].client()).await.expect("the first");
    over_with(apps[0].batch(batch(100)).await, 99);
    assert_eq!(
        apps[1]
            .batch(batch(90))
            .await
            .expect("another replica")
            .len(),
        90
    );
    refused(
        apps[0].batch(batch(20)).await,
        Code::ResourceExhausted,
        "RATE_LIMITED",
    );
    let (first, second) = (
        list(&mut apps[0].client()).await,
        list(&mut apps[1].client()).await,
    );
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
}
