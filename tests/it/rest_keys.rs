//! Authentication of the JSON API: every route with every kind of key, with exact status, body and
//! headers.

use ::http::Method;
use canvas_scheduler::domain::{KeyId, Permissions, Quota, QuotaKind};
use canvas_scheduler::service::admin::WorkspaceChange;
use serde_json::{Value, json};

use crate::support::gateway::Answer;
use crate::support::*;

on_both![every_route_with_every_kind_of_key];

/// A request to a route.
struct Route {
    method: Method,
    path: String,
    body: Value,
    permission: &'static str,
    success: u16,
    /// Whether it names a schedule, which another workspace does not have.
    about_one: bool,
}

fn routes(id: &str) -> Vec<Route> {
    let schedule = json!({ "time": LATER });
    let update = json!({ "canvas_id": "canvas", "schedule_id": id, "schedule": schedule });
    let campaign = json!({ "campaign_id": "canvas", "schedule_id": id, "schedule": schedule });
    let create = json!({ "canvas_id": "other", "schedule": schedule, "recipients": [{ "external_user_id": "u" }] });
    let delete = json!({ "canvas_id": "canvas", "schedule_id": id });
    let post = |path: &str, body: &Value, permission, about_one| Route {
        method: Method::POST,
        path: path.to_owned(),
        body: body.clone(),
        permission,
        success: 201,
        about_one,
    };
    let get = |path: String, about_one| Route {
        method: Method::GET,
        path,
        body: Value::Null,
        permission: "read",
        success: 200,
        about_one,
    };
    vec![
        post("/canvas/trigger/schedule/create", &create, "create", false),
        post("/canvas/trigger/schedule/update", &update, "update", true),
        post(
            "/fr/canvas/trigger/schedule/update",
            &update,
            "update",
            true,
        ),
        post(
            "/campaigns/trigger/schedule/update",
            &campaign,
            "update",
            true,
        ),
        get(format!("/canvas/trigger/schedule/{id}"), true),
        get(
            "/canvas/trigger/schedule?canvas_id=canvas".to_owned(),
            false,
        ),
        post("/canvas/trigger/schedule/delete", &delete, "delete", true),
    ]
}

async fn ask(app: &TestApp, route: &Route, authorization: Option<&str>) -> Answer {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(authorization.map(|value| ("authorization", value)));
    let body = if route.body.is_null() {
        String::new()
    } else {
        route.body.to_string()
    };
    app.http(route.method.clone(), &route.path, &headers, body)
        .await
}

/// The quota headers, or none of them.
fn limits(answer: &Answer) -> Option<[i64; 3]> {
    let number = |name| {
        answer
            .headers
            .get(name)
            .map(|value| value.to_str().expect("ASCII").parse().expect("a number"))
    };
    let all = [
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ]
    .map(number);
    assert!(
        all.iter().all(Option::is_some) || all.iter().all(Option::is_none),
        "{answer:?}"
    );
    all[0]
        .zip(all[1])
        .zip(all[2])
        .map(|((limit, remaining), reset)| [limit, remaining, reset])
}

async fn limit(app: &TestApp, workspace: &str, quota: &str) {
    let quotas = vec![(QuotaKind::Requests, Quota::parse(quota).expect("a quota"))];
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
}

async fn every_route_with_every_kind_of_key(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    for workspace in ["foreign", "busy"] {
        app.admin()
            .create_workspace(workspace, &WorkspaceChange::default())
            .await
            .expect("made");
    }
    limit(&app, "default", "1000/minute").await;
    limit(&app, "foreign", "1000/minute").await;
    limit(&app, "busy", "1/minute").await;
    let revoked = app.key_of("default", |_| {}).await;
    app.admin()
        .revoke_key(KeyId::parse(&revoked[..19]).expect("an id"))
        .await
        .expect("revoked");
    let (foreign, busy) = (
        app.key_of("foreign", |_| {}).await,
        app.key_of("busy", |_| {}).await,
    );
    let unknown = format!("cs_{}{}", "f".repeat(16), &app.key[19..]);
    app.read_keys().await;
    app.client_with(&busy)
        .list_canvas_schedules(canvas_scheduler::pb::v1::ListCanvasSchedulesRequest::default())
        .await
        .expect("its only request");
    let reset = instant(NOW).timestamp() + 60;
    for route in routes(&schedule.schedule_id) {
        let others: Vec<&str> = ["create", "update", "delete", "read"]
            .into_iter()
            .filter(|one| *one != route.permission)
            .collect();
        let lacking = app
            .key_of("default", |order| {
                order.permissions = Permissions::parse(&others.join(",")).expect("permissions")
            })
            .await;
        app.read_keys().await;
        route_with_bad_keys(&app, &route, [&unknown, &revoked, &lacking]).await;
        let case = format!("{} {}", route.method, route.path);
        over_the_limit(
            &ask(&app, &route, Some(&format!("Bearer {busy}"))).await,
            reset,
            &case,
        );
        let answer = ask(&app, &route, Some(&format!("Bearer {foreign}"))).await;
        if route.about_one {
            let message = format!(
                "canvas schedule \"{}\" does not exist",
                schedule.schedule_id
            );
            assert_eq!(answer.with(404), json!({ "message": message }), "{case}");
        } else {
            assert!(
                !answer
                    .with(route.success)
                    .to_string()
                    .contains(&schedule.schedule_id),
                "{case}: {answer:?}"
            );
        }
        let answer = ask(&app, &route, Some(&app.bearer())).await;
        assert_eq!(answer.with(route.success)["message"], "success", "{case}");
        let [limit, remaining, resets] = limits(&answer).expect("limits");
        assert!(
            limit == 1000 && (0..1000).contains(&remaining) && resets == reset,
            "{case}: {answer:?}"
        );
    }
}

/// Calls a route without a key, with malformed ones, and with keys that are unknown, revoked or
/// lack its permission.
async fn route_with_bad_keys(app: &TestApp, route: &Route, keys: [&str; 3]) {
    let [unknown, revoked, lacking] = keys;
    let lacks = format!(
        "the key lacks permission canvas.trigger.schedule.{}",
        route.permission
    );
    let malformed =
        "`authorization` must be `Bearer KEY` with a single key, as `api-key create` printed it";
    for (kind, authorization, status, message) in [
        (
            "none",
            None,
            401,
            "no API key was sent; send `authorization: Bearer KEY`",
        ),
        (
            "another scheme",
            Some(format!("Basic {}", app.key)),
            401,
            malformed,
        ),
        ("malformed", Some("Bearer KEY".to_owned()), 401, malformed),
        (
            "unknown",
            Some(format!("Bearer {unknown}")),
            401,
            "the key does not exist",
        ),
        (
            "revoked",
            Some(format!("Bearer {revoked}")),
            401,
            "the key was revoked",
        ),
        (
            "wrong permission",
            Some(format!("Bearer {lacking}")),
            403,
            &*lacks,
        ),
    ] {
        let case = format!("{} {}, {kind}", route.method, route.path);
        let answer = ask(app, route, authorization.as_deref()).await;
        assert_eq!(answer.with(status), json!({ "message": message }), "{case}");
        assert_eq!(
            answer.headers.get("www-authenticate").is_some(),
            status == 401,
            "{case}"
        );
        assert_eq!(
            (limits(&answer), answer.header("x-request-id").len()),
            (None, 16),
            "{case}"
        );
    }
}

fn over_the_limit(answer: &Answer, reset: i64, case: &str) {
    let message =
        "the workspace has used up its quota of 1 requests; the next window begins in 61 s";
    assert_eq!(answer.with(429), json!({ "message": message }), "{case}");
    assert_eq!(
        (limits(answer), answer.header("retry-after")),
        (Some([1, 0, reset]), "61"),
        "{case}"
    );
}
