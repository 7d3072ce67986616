//! The documented JSON API: exact bodies and codes, and the behavior of its clients.

use ::http::{Method, Request};
use bytes::Bytes;
use canvas_scheduler::pb::v1;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::handshake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::*;

on_both![
    a_schedule_lives_through_the_documented_calls,
    the_examples_of_the_document_work,
    an_update_overwrites_the_whole_schedule,
    every_form_of_a_path_is_one_route,
    every_violation_is_reported_at_once,
    a_change_that_reaches_no_zone_is_a_conflict,
    an_empty_id_is_treated_as_absent,
    lists_are_returned_in_pages,
    the_openapi_document_and_its_page_need_no_key_and_no_other_host,
    http_2_serves_many_calls_on_a_connection,
];

const CREATE: &str = "/canvas/trigger/schedule/create";
const UPDATE: &str = "/canvas/trigger/schedule/update";
const DELETE: &str = "/canvas/trigger/schedule/delete";
const CAMPAIGN: &str = "/campaigns/trigger/schedule/update";

/// An ordinary creation.
fn creation(canvas_id: &str) -> Value {
    json!({ "canvas_id": canvas_id, "schedule": { "time": LATER }, "recipients": [{ "external_user_id": "user-1" }] })
}

async fn created(app: &TestApp, canvas_id: &str) -> String {
    let answer = app.post(CREATE, &creation(canvas_id)).await.with(201);
    answer["schedule_id"].as_str().expect("an id").to_owned()
}

/// An update of the schedule `id` of `canvas`.
fn change(id: &str, time: &str) -> Value {
    json!({ "canvas_id": "canvas", "schedule_id": id, "schedule": { "time": time } })
}

async fn a_schedule_lives_through_the_documented_calls(database: &Database) {
    let app = TestApp::start(database).await;
    let body = json!({
        "canvas_id": "canvas",
        "recipients": [
            { "user_alias": { "alias_name": "a", "alias_label": "b" }, "canvas_entry_properties": { "n": 1.5, "deep": [{ "x": null }] } },
            { "email": "a@example.com", "prioritization": ["identified"], "send_to_existing_only": false },
        ],
        "canvas_entry_properties": { "count": 7, "on": true },
        "schedule": { "time": "2026-03-20T08:00:00", "in_local_time": false, "at_optimal_time": null },
    });
    let answer = app.post(CREATE, &body).await;
    let reply = answer.with(201);
    let id = reply["schedule_id"].as_str().expect("an id").to_owned();
    let dispatch_id = reply["dispatch_id"].as_str().expect("an id");
    assert!(dispatch_id.len() == 32 && answer.header("x-request-id").len() == 16);
    assert_eq!(
        reply,
        json!({ "dispatch_id": dispatch_id, "schedule_id": id, "message": "success" })
    );

    let reply = app
        .post(UPDATE, &change(&id, "2026-03-21 09:30+02"))
        .await
        .with(201);
    let schedule =
        json!({ "time": "2026-03-21T07:30:00Z", "in_local_time": false, "at_optimal_time": false });
    assert_eq!(
        reply,
        json!({ "message": "success", "schedule_id": id, "revision": 2, "applied": "all", "schedule": schedule })
    );

    let read = app
        .fetch(&format!("/canvas/trigger/schedule/{id}"))
        .await
        .with(200);
    let etag = read["etag"].as_str().expect("an etag").to_owned();
    assert_eq!(read["message"], "success");
    assert_eq!(
        (&read["schedule"], &read["state"], &read["revision"]),
        (&schedule, &json!("pending"), &json!(2))
    );
    assert_eq!(
        read["trigger_properties"],
        json!({ "count": 7, "on": true })
    );
    let alias = json!({ "alias_name": "a", "alias_label": "b" });
    assert_eq!(
        read["recipients"],
        json!([
            { "user_alias": alias, "trigger_properties": { "n": 1.5, "deep": [{ "x": null }] } },
            { "email": "a@example.com", "prioritization": ["identified"], "send_to_existing_only": false },
        ])
    );
    assert_eq!(read["waves"][0]["time"], "2026-03-21T07:30:00.000Z");
    assert_eq!(
        read["dispatches"],
        json!({ "in_hand": 0, "unknown": 0, "delivered": 0, "dead": 0, "abandoned": 0 })
    );

    let body =
        json!({ "canvas_id": "canvas", "schedule_id": id, "etag": etag, "request_id": "once" });
    for time in ["first", "again"] {
        let reply = app.post(DELETE, &body).await.with(201);
        assert_eq!(
            reply,
            json!({ "message": "success", "applied": "all" }),
            "{time}"
        );
    }
    assert_eq!(
        app.fetch(&format!("/canvas/trigger/schedule/{id}"))
            .await
            .with(200)["state"],
        "cancelled"
    );
}

/// The curl example of the document with another host, key, ids and `date`.
async fn the_examples_of_the_document_work(database: &Database) {
    let app = TestApp::start(database).await;
    let id = created(&app, "campaign_identifier").await;
    let example = |date: &str| {
        let body = r#"{
  "campaign_id": "campaign_identifier",
  "schedule_id": "schedule_identifier",
  "schedule": {
    "time": "2017-05-24T21:30:00Z",
    "in_local_time": true
  }
}"#;
        body.replace("schedule_identifier", &id)
            .replace("2017-05-24", date)
    };
    let reply = app
        .post_text(CAMPAIGN, &example("2026-03-24"))
        .await
        .with(201);
    let schedule =
        json!({ "time": "2026-03-24T21:30:00", "in_local_time": true, "at_optimal_time": false });
    assert_eq!(
        reply,
        json!({ "message": "success", "schedule_id": id, "revision": 2, "applied": "all", "schedule": schedule })
    );
    let reply = app
        .post_text(CAMPAIGN, &example("2017-05-24"))
        .await
        .with(400);
    let why = reply["message"].as_str().expect("a message");
    assert!(
        why.starts_with("schedule.time: ")
            && why.contains("2017-05-24T21:30:00")
            && why.contains("past"),
        "{why}"
    );
    assert_eq!(
        reply.as_object().expect("an object").len(),
        1,
        "only one violation: {reply}"
    );
    // Its body with a schedule, and without the `schedule_id` that its table calls optional.
    let body = json!({ "canvas_id": "campaign_identifier", "schedule_id": id, "schedule": { "time": LATER } });
    app.post("/fr/canvas/trigger/schedule/update", &body)
        .await
        .with(201);
    let body = json!({ "canvas_id": "campaign_identifier", "schedule": { "time": LATER } });
    assert_eq!(app.post(UPDATE, &body).await.with(201)["schedule_id"], *id);
    // Each path accepts only its own name.
    for (path, name, other) in [
        (UPDATE, "campaign_id", "canvas_id"),
        (CAMPAIGN, "canvas_id", "campaign_id"),
    ] {
        let reply = app
            .post(
                path,
                &json!({ name: "campaign_identifier", "schedule": { "time": LATER } }),
            )
            .await
            .with(400);
        let why = reply["message"].as_str().expect("a message");
        assert!(
            why.starts_with(&format!(
                "{name}: is not a known field; did you mean {other}?"
            )),
            "{path}: {why}"
        );
    }
    let reply = app
        .post(CAMPAIGN, &json!({ "schedule": { "time": LATER } }))
        .await
        .with(400);
    assert!(
        reply["message"]
            .as_str()
            .expect("a message")
            .starts_with("campaign_id: "),
        "{reply}"
    );
}

async fn an_update_overwrites_the_whole_schedule(database: &Database) {
    let app = TestApp::start(database).await;
    let mut body = creation("canvas");
    body["schedule"] = json!({ "time": "2026-03-20T13:14:47", "in_local_time": true });
    let id = app.post(CREATE, &body).await.with(201)["schedule_id"]
        .as_str()
        .expect("an id")
        .to_owned();
    let reply = app
        .post(UPDATE, &change(&id, "2026-03-20T14:14:47"))
        .await
        .with(201);
    assert_eq!(
        reply["schedule"],
        json!({ "time": "2026-03-20T14:14:47Z", "in_local_time": false, "at_optimal_time": false })
    );
    let waves = app
        .fetch(&format!("/canvas/trigger/schedule/{id}"))
        .await
        .with(200)["waves"]
        .clone();
    assert_eq!(
        (waves.as_array().expect("waves").len(), &waves[0]["time"]),
        (1, &json!("2026-03-20T14:14:47.000Z"))
    );
}

async fn every_form_of_a_path_is_one_route(database: &Database) {
    let app = TestApp::start(database).await;
    let id = created(&app, "canvas").await;
    for (n, path) in [
        UPDATE,
        "//canvas/trigger/schedule/update",
        "/canvas/trigger/schedule/update/",
        "/fr/canvas/trigger/schedule/update/",
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(
            app.post(path, &change(&id, LATER)).await.with(201)["revision"],
            n + 2,
            "{path}"
        );
    }
    assert_eq!(
        app.fetch("//canvas/trigger/schedule/?state=pending")
            .await
            .with(200)["schedules"][0]["schedule_id"],
        *id
    );
    assert_eq!(
        app.fetch(&format!("/canvas//trigger/schedule/{id}/"))
            .await
            .with(200)["schedule_id"],
        *id
    );
    for path in [
        "/",
        "//",
        "/canvas",
        "/fr/canvas/trigger/schedule/create",
        "/canvas/trigger/schedule/a/b",
        "/%ff",
    ] {
        let reply = app.post(path, &json!({})).await.with(404);
        assert_eq!(
            reply,
            json!({ "message": "path not found; /openapi.json lists all paths" }),
            "{path}"
        );
    }
    app.fetch("/canvas/trigger/schedule/%ff").await.with(400);
    for (method, path, allowed) in [
        (Method::GET, UPDATE, "POST"),
        (Method::HEAD, UPDATE, "POST"),
        (Method::PUT, CREATE, "POST"),
        (Method::POST, "/canvas/trigger/schedule", "GET,HEAD"),
        (Method::DELETE, "/canvas/trigger/schedule/x", "GET,HEAD"),
    ] {
        let answer = app.http(method.clone(), path, &[], "").await;
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, allowed),
            "{method} {path}"
        );
        assert!(
            method == Method::HEAD
                || !answer.json()["message"]
                    .as_str()
                    .expect("a message")
                    .is_empty()
        );
    }
    let options = app.http(Method::OPTIONS, UPDATE, &[], "").await;
    assert_eq!((options.status, options.header("allow")), (200, "POST"));
    let head = app
        .http(
            Method::HEAD,
            &format!("/canvas/trigger/schedule/{id}"),
            &[("authorization", &app.bearer())],
            "",
        )
        .await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
}

async fn every_violation_is_reported_at_once(database: &Database) {
    let app = TestApp::start(database).await;
    let body = r#"{
        "canvas_id": 5, "scheduel": 1, "request_id": "", "validate_only": "yes", "request_id": "x",
        "recipients": [{ "external_user_id": "u", "email": "e" }, 7, { "email": "", "emails": [] }],
        "trigger_properties": { "big": 9007199254740993, "fine": 9007199254740992, "a": { "b": [18446744073709551617, 1e300] } },
        "schedule": { "time": "soon", "in_local_time": 1 }
    }"#;
    let reply = app.post_text(CREATE, body).await.with(400);
    let errors: Vec<&str> = reply["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| error.as_str().expect("text"))
        .collect();
    for wanted in [
        "canvas_id: must be text, not a number",
        "schedule.in_local_time: must be true or false, not a number",
        "trigger_properties.big: \"9007199254740993\" is an integer that a double cannot represent; send it as a string",
        "trigger_properties.a.b[0]: \"18446744073709551617\" is an integer that a double cannot represent; send it as a string",
        "recipients[0]: has more than one of external_user_id, user_alias and email; send one",
        "recipients[1]: must be an object, not a number",
        "recipients[2].emails: is not a known field; did you mean email?",
        "request_id: occurs twice",
        "validate_only: must be true or false, not text",
        "scheduel: is not a known field; did you mean schedule?",
    ] {
        assert!(errors.contains(&wanted), "{wanted}: {errors:#?}");
    }
    assert!(
        errors
            .iter()
            .any(|error| error.starts_with("schedule.time: \"soon\"")),
        "violations that the call itself finds: {errors:#?}"
    );
    assert!(
        !errors
            .iter()
            .any(|error| error.contains("fine") || error.starts_with("canvas_id: is")),
        "{errors:#?}"
    );
    assert_eq!(reply["message"], errors.join("; "));
    assert!(
        app.list_ids(v1::ListCanvasSchedulesRequest::default())
            .await
            .is_empty(),
        "nothing may be created"
    );
}

async fn a_change_that_reaches_no_zone_is_a_conflict(database: &Database) {
    let app = TestApp::start(database).await;
    let id = created(&app, "canvas").await;
    let with = |more: &str, value: &str| {
        let mut body = change(&id, LATER);
        body[more] = json!(value);
        body
    };
    let stale = app.post(UPDATE, &with("etag", "stale")).await.with(409);
    assert!(
        stale["message"]
            .as_str()
            .expect("a message")
            .contains("etag is stale"),
        "{stale}"
    );
    app.post(UPDATE, &with("request_id", "r")).await.with(201);
    let mut reused = with("request_id", "r");
    reused["schedule"]["time"] = json!("2026-03-21T08:00:00Z");
    let reused = app.post(UPDATE, &reused).await.with(409);
    assert!(
        reused["message"]
            .as_str()
            .expect("a message")
            .contains("different request"),
        "{reused}"
    );
    let unknown = app
        .post(
            UPDATE,
            &change("0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11", LATER),
        )
        .await
        .with(404);
    assert!(
        unknown["message"]
            .as_str()
            .expect("a message")
            .contains("does not exist"),
        "{unknown}"
    );
    let second = created(&app, "canvas").await;
    let several = app
        .post(
            UPDATE,
            &json!({ "canvas_id": "canvas", "schedule": { "time": LATER } }),
        )
        .await
        .with(409);
    assert!(
        several["message"]
            .as_str()
            .expect("a message")
            .contains("2 schedules"),
        "{several}"
    );
    let require_all = json!({ "canvas_id": "canvas", "schedule_id": second, "require_all": true,
        "schedule": { "time": "2026-03-01T11:30:00", "in_local_time": true } });
    let reply = app.post(UPDATE, &require_all).await.with(409);
    assert_eq!(reply["applied"], "none", "{reply}");
}

async fn an_empty_id_is_treated_as_absent(database: &Database) {
    let app = TestApp::start(database).await;
    let id = created(&app, "canvas").await;
    for revision in [2, 3] {
        let body = json!({ "canvas_id": "canvas", "schedule_id": "", "request_id": "", "schedule": { "time": LATER } });
        let reply = app.post(UPDATE, &body).await.with(201);
        assert_eq!(
            (&reply["schedule_id"], &reply["revision"]),
            (&json!(id), &json!(revision)),
            "{reply}"
        );
    }
    let listed = app
        .fetch("/canvas/trigger/schedule?canvas_id=")
        .await
        .with(200);
    assert_eq!(listed["schedules"][0]["schedule_id"], id, "{listed}");
}

async fn lists_are_returned_in_pages(database: &Database) {
    let app = TestApp::start(database).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(created(&app, "a canvas").await);
    }
    created(&app, "another").await;
    let first = app
        .fetch("/canvas/trigger/schedule?canvas_id=a%20canvas&page_size=2&state=pending")
        .await
        .with(200);
    assert_eq!(
        (
            first["message"].as_str(),
            first["schedules"].as_array().expect("a page").len()
        ),
        (Some("success"), 2)
    );
    let token = first["next_page_token"].as_str().expect("a token");
    let query = format!(
        "/canvas/trigger/schedule?canvas_id=a+canvas&page_size=2&state=pending&page_token={token}"
    );
    let second = app.fetch(&query).await.with(200);
    assert_eq!(second["schedules"][0]["schedule_id"], *ids[2]);
    assert_eq!(
        (
            second["schedules"].as_array().expect("a page").len(),
            second.get("next_page_token")
        ),
        (1, None)
    );
    let reply = app
        .fetch("/canvas/trigger/schedule?page_sise=2&state=open&page_size=x&page_size=3")
        .await
        .with(400);
    let errors = [
        "state: \"open\" is not a valid state; send pending, dispatching, dispatched or cancelled",
        "page_size: occurs twice",
        "page_size: \"x\" is not an integer",
        "page_sise: is not a known field; did you mean page_size?",
    ];
    assert_eq!(reply["errors"], json!(errors));
    let reply = app
        .fetch("/canvas/trigger/schedule?page_size=5000")
        .await
        .with(400);
    assert!(
        reply["message"]
            .as_str()
            .expect("a message")
            .starts_with("page_size: "),
        "{reply}"
    );
}

async fn the_openapi_document_and_its_page_need_no_key_and_no_other_host(database: &Database) {
    let app = TestApp::start(database).await;
    let get = async |path: &str| app.http(Method::GET, path, &[], "").await;
    let described = get("/openapi.json").await;
    assert!(
        described.headers.get("x-ratelimit-limit").is_none(),
        "it must not count against a quota"
    );
    let described = described.with(200);
    assert_eq!(described["openapi"], "3.1.0");
    let page = get("/docs/").await;
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("http"),
        "{policy}"
    );
    let named: Vec<&str> = page
        .text
        .split("=\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .filter(|name| name.contains('/'))
        .collect();
    assert_eq!(named.len(), 4, "{named:?}");
    for path in named {
        assert!(path.starts_with("/docs/"), "{path} must be on this host");
        assert_eq!(app.status_of(path).await, 200, "{path}");
    }
    assert!(
        get("/docs/start.js")
            .await
            .text
            .contains("\"/openapi.json\"")
    );
    assert_eq!(
        get("/docs/index.html").await.with(404)["message"],
        "path not found; /openapi.json lists all paths"
    );
}

async fn http_2_serves_many_calls_on_a_connection(database: &Database) {
    let app = TestApp::start(database).await;
    let id = created(&app, "canvas").await;
    let stream = TcpStream::connect(app.gateway())
        .await
        .expect("the gateway listens");
    let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    let calls = (0..20).map(|_| {
        let (mut send, body) = (send.clone(), change(&id, LATER).to_string());
        let request =
            Request::post(format!("http://gateway{UPDATE}")).header("authorization", app.bearer());
        let request = request
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .expect("a request");
        async move {
            let answer = send.send_request(request).await.expect("an answer");
            assert_eq!(answer.status(), 201);
            let body = answer
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            serde_json::from_slice::<Value>(&body).expect("JSON")["revision"]
                .as_i64()
                .expect("a number")
        }
    });
    let mut revisions = soon(join_all(calls)).await;
    revisions.sort_unstable();
    assert_eq!(revisions, (2..22).collect::<Vec<i64>>());
}
