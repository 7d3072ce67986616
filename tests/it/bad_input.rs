//! Invalid input: the exact code, reason and fields of the error, no change, and a server that goes
//! on.

use canvas_scheduler::pb::v1;
use prost::Message;
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value as ProtoValue};
use serde_json::json;
use tonic::Code;

use crate::support::*;

on_both![
    malformed_times,
    malformed_updates,
    malformed_creations,
    malformed_reads_and_cancellations,
    more_violations_than_an_error_can_carry,
    properties_up_to_the_bounds_pass,
    messages_that_cannot_be_decoded,
    messages_that_are_too_large,
    unknown_methods,
    a_valid_call_succeeds_after_every_invalid_one,
];

const MALFORMED: [&str; 44] = include!("../data/malformed_times.in");
const UPDATE: &str = "/canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule";
const BATCH: &str = "/canvas.schedule.v1.CanvasScheduleService/BatchUpdateCanvasSchedules";
const CREATE: &str = "/canvas.schedule.v1.CanvasScheduleService/CreateCanvasSchedule";

type Update = v1::UpdateCanvasScheduleRequest;
type Create = v1::CreateCanvasScheduleRequest;

/// Asserts that a refusal names exactly these fields.
fn assert_fields(refusal: &Refusal, fields: &[&str], case: &str) {
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::InvalidArgument, "INVALID_FIELDS"),
        "{case}: {refusal:?}"
    );
    assert_eq!(refusal.fields, fields, "{case}: {refusal:?}");
    assert!(
        fields.iter().all(|field| refusal.message.contains(field)),
        "{case}: {refusal:?}"
    );
}

async fn malformed_times(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let before = app.seen(&schedule).await;
    for time in MALFORMED {
        for sent in [at(time), local(time), optimal(time)] {
            for refusal in [
                refusal(app.update(update(&schedule, sent.clone())).await),
                refusal(app.create(create("canvas", sent)).await),
            ] {
                assert_fields(&refusal, &["schedule.time"], time);
                assert!(
                    refusal.message.contains(&format!("{time:?}")),
                    "the message must contain the value: {refusal:?}"
                );
                assert!(
                    refusal.message.contains("2026-03-01T09:30:00Z"),
                    "the message must contain an accepted form: {refusal:?}"
                );
            }
        }
    }
    assert_eq!(app.seen(&schedule).await, before, "nothing changed");
    assert_eq!(
        app.list_ids(Default::default()).await.len(),
        1,
        "nothing may be created"
    );
}

/// An object with `depth` levels.
fn nested(depth: usize) -> Struct {
    object((1..depth).fold(json!({}), |inner, _| json!({ "a": inner })))
}

fn number(number: f64) -> Struct {
    Struct {
        fields: [(
            "n".to_owned(),
            ProtoValue {
                kind: Some(ValueKind::NumberValue(number)),
            },
        )]
        .into_iter()
        .collect(),
    }
}

/// `{"k":"x…"}`, with this number of bytes as compact JSON.
fn of_bytes(bytes: usize) -> Struct {
    object(json!({ "k": "x".repeat(bytes - r#"{"k":""}"#.len()) }))
}

/// A copy of `good`, changed by `edit`.
fn edited<T: Clone>(good: &T, edit: impl FnOnce(&mut T)) -> T {
    let mut request = good.clone();
    edit(&mut request);
    request
}

/// An invalid request: the case, the request, and the fields with violations.
type BadRequest<T> = (&'static str, T, Vec<&'static str>);

fn bad_updates(good: &Update) -> Vec<BadRequest<Update>> {
    let mut bad = updates_with_bad_fields(good);
    bad.extend(updates_with_bad_properties(good));
    bad.extend(updates_with_conflicts(good));
    bad
}

fn updates_with_bad_fields(good: &Update) -> Vec<BadRequest<Update>> {
    vec![
        (
            "no canvas_id",
            edited(good, |request| request.canvas_id = String::new()),
            vec!["canvas_id"],
        ),
        (
            "long canvas_id",
            edited(good, |request| request.canvas_id = "ü".repeat(256)),
            vec!["canvas_id"],
        ),
        (
            "NUL in canvas_id",
            edited(good, |request| request.canvas_id = "a\0b".to_owned()),
            vec!["canvas_id"],
        ),
        (
            "long schedule_id",
            edited(good, |request| request.schedule_id = "0".repeat(4000)),
            vec!["schedule_id"],
        ),
        (
            "braced schedule_id",
            edited(good, |request| {
                request.schedule_id = format!("{{{}}}", good.schedule_id)
            }),
            vec!["schedule_id"],
        ),
        (
            "NUL in schedule_id",
            edited(good, |request| request.schedule_id = "\0".repeat(36)),
            vec!["schedule_id"],
        ),
        (
            "long request_id",
            edited(good, |request| request.request_id = "r".repeat(129)),
            vec!["request_id"],
        ),
        (
            "NUL in request_id",
            edited(good, |request| request.request_id = "r\0".to_owned()),
            vec!["request_id"],
        ),
        (
            "no schedule",
            edited(good, |request| request.schedule = None),
            vec!["schedule"],
        ),
    ]
}

fn updates_with_bad_properties(good: &Update) -> Vec<BadRequest<Update>> {
    let properties = |sent: Struct| edited(good, |request| request.trigger_properties = Some(sent));
    let own = vec!["trigger_properties"];
    vec![
        (
            "too many bytes",
            properties(of_bytes(50 * 1024 + 1)),
            own.clone(),
        ),
        ("31 levels", properties(nested(31)), own.clone()),
        (
            "NUL in a key",
            properties(object(json!({ "a\0": 1 }))),
            own.clone(),
        ),
        (
            "NUL in a value",
            properties(object(json!({ "a": "\0" }))),
            own.clone(),
        ),
        (
            "NUL deep inside",
            properties(object(json!({ "a": [{ "b": ["\0"] }] }))),
            own.clone(),
        ),
        ("not a number", properties(number(f64::NAN)), own.clone()),
        (
            "infinity",
            properties(number(f64::NEG_INFINITY)),
            own.clone(),
        ),
        (
            "a value without a kind",
            properties(Struct {
                fields: [("n".to_owned(), ProtoValue { kind: None })]
                    .into_iter()
                    .collect(),
            }),
            own,
        ),
        (
            "another name",
            edited(good, |request| request.context = Some(nested(31))),
            vec!["context"],
        ),
    ]
}

/// Updates with two names for the properties, and one with every violation.
fn updates_with_conflicts(good: &Update) -> Vec<BadRequest<Update>> {
    let some = || Some(object(json!({ "a": 1 })));
    vec![
        (
            "two names together",
            edited(good, |request| {
                request.trigger_properties = some();
                request.canvas_entry_properties = some();
            }),
            vec!["canvas_entry_properties"],
        ),
        (
            "the two others together",
            edited(good, |request| {
                request.canvas_entry_properties = some();
                request.context = some();
            }),
            vec!["context"],
        ),
        (
            "every violation together",
            edited(good, |request| {
                request.canvas_id = "\0".to_owned();
                request.schedule_id = "x".to_owned();
                request.schedule = at("2026-02-30T09:30:00Z");
                request.trigger_properties = Some(number(f64::NAN));
                request.context = some();
                request.request_id = "r".repeat(129);
            }),
            vec![
                "canvas_id",
                "context",
                "request_id",
                "schedule.time",
                "schedule_id",
                "trigger_properties",
            ],
        ),
    ]
}

async fn malformed_updates(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let good = update(&schedule, at(LATER));
    let before = app.seen(&schedule).await;
    for (case, request, fields) in bad_updates(&good) {
        assert_fields(&refusal(app.update(request.clone()).await), &fields, case);
        assert_fields(
            &refusal(app.batch(vec![request]).await.expect("answers").remove(0)),
            &fields,
            case,
        );
    }
    assert_eq!(app.seen(&schedule).await, before, "nothing changed");
    app.update(good).await.expect("the valid request");
}

fn to(recipients: Vec<v1::Recipient>) -> Create {
    Create {
        broadcast: false,
        recipients,
        ..create("canvas", at(LATER))
    }
}

fn with(properties: Struct) -> v1::Recipient {
    v1::Recipient {
        trigger_properties: Some(properties),
        ..user("a")
    }
}

/// Invalid recipients, each with the path of its violation.
fn bad_recipients() -> Vec<(&'static str, v1::Recipient, &'static str)> {
    let mut bad = recipients_with_bad_identifiers();
    bad.extend(recipients_with_bad_values());
    bad
}

fn recipients_with_bad_identifiers() -> Vec<(&'static str, v1::Recipient, &'static str)> {
    let email = |address: &str| v1::Recipient {
        identifier: Some(v1::recipient::Identifier::Email(address.to_owned())),
        ..Default::default()
    };
    let alias = |alias_name: &str, alias_label: &str| {
        let alias = v1::UserAlias {
            alias_name: alias_name.to_owned(),
            alias_label: alias_label.to_owned(),
        };
        v1::Recipient {
            identifier: Some(v1::recipient::Identifier::UserAlias(alias)),
            ..Default::default()
        }
    };
    vec![
        ("no identifier", v1::Recipient::default(), ""),
        ("an empty id", user(""), ".external_user_id"),
        ("a long id", user(&"u".repeat(256)), ".external_user_id"),
        ("NUL in an id", user("a\0"), ".external_user_id"),
        ("NUL in an address", email("\0@x"), ".email"),
        (
            "NUL in an alias",
            alias("\0", "l"),
            ".user_alias.alias_name",
        ),
        ("no alias label", alias("n", ""), ".user_alias.alias_label"),
    ]
}

fn recipients_with_bad_values() -> Vec<(&'static str, v1::Recipient, &'static str)> {
    let attributes = |sent: serde_json::Value| v1::Recipient {
        attributes: Some(object(sent)),
        ..user("a")
    };
    vec![
        (
            "prioritization without email",
            v1::Recipient {
                prioritization: vec!["first".to_owned()],
                ..user("a")
            },
            ".prioritization",
        ),
        (
            "an unknown zone",
            user_in("a", "Europe/Berln"),
            ".attributes.time_zone",
        ),
        (
            "a zone that is not text",
            attributes(json!({ "time_zone": 1 })),
            ".attributes.time_zone",
        ),
        (
            "NUL in attributes",
            attributes(json!({ "a": "\0" })),
            ".attributes",
        ),
        (
            "NUL in properties",
            with(object(json!({ "\0": 1 }))),
            ".trigger_properties",
        ),
        ("31 levels", with(nested(31)), ".trigger_properties"),
        (
            "31 levels by another name",
            v1::Recipient {
                context: Some(nested(31)),
                ..user("a")
            },
            ".context",
        ),
        (
            "no number",
            with(number(f64::INFINITY)),
            ".trigger_properties",
        ),
        (
            "two names",
            v1::Recipient {
                context: Some(nested(1)),
                ..with(nested(1))
            },
            ".context",
        ),
    ]
}

fn bad_creations(good: &Create) -> Vec<BadRequest<Create>> {
    let mut bad = creations_with_bad_fields(good);
    bad.extend(creations_with_bad_contents(good));
    bad
}

fn creations_with_bad_fields(good: &Create) -> Vec<BadRequest<Create>> {
    vec![
        (
            "no canvas_id",
            edited(good, |request| request.canvas_id = String::new()),
            vec!["canvas_id"],
        ),
        (
            "long canvas_id",
            edited(good, |request| request.canvas_id = "c".repeat(256)),
            vec!["canvas_id"],
        ),
        (
            "NUL in canvas_id",
            edited(good, |request| request.canvas_id = "\0".to_owned()),
            vec!["canvas_id"],
        ),
        (
            "long request_id",
            edited(good, |request| request.request_id = "r".repeat(129)),
            vec!["request_id"],
        ),
        ("no recipients", to(vec![]), vec!["recipients"]),
        (
            "broadcast and recipients",
            edited(good, |request| request.recipients = vec![user("a")]),
            vec!["broadcast"],
        ),
        (
            "broadcast and audience",
            edited(good, |request| request.audience = Some(Default::default())),
            vec!["broadcast"],
        ),
    ]
}

/// Creations with bad recipients, audiences or properties, and one with every violation.
fn creations_with_bad_contents(good: &Create) -> Vec<BadRequest<Create>> {
    let half = || Some(of_bytes(30 * 1024));
    let audience = |audience: Struct| {
        edited(good, |request| {
            request.broadcast = false;
            request.audience = Some(audience);
        })
    };
    let several = vec![
        v1::Recipient::default(),
        user(""),
        user_in("a", "Mars/Base"),
        with(nested(31)),
    ];
    vec![
        (
            "51 recipients",
            to((0..51).map(|n| user(&n.to_string())).collect()),
            vec!["recipients"],
        ),
        (
            "NUL in the audience",
            audience(object(json!({ "a": "\0" }))),
            vec!["audience"],
        ),
        (
            "31 levels of audience",
            audience(nested(31)),
            vec!["audience"],
        ),
        (
            "too many bytes together",
            Create {
                trigger_properties: half(),
                ..to(vec![v1::Recipient {
                    context: half(),
                    ..user("a")
                }])
            },
            vec!["trigger_properties"],
        ),
        (
            "every violation together",
            Create {
                canvas_id: String::new(),
                schedule: at("now"),
                ..to(several)
            },
            vec![
                "canvas_id",
                "recipients[0]",
                "recipients[1].external_user_id",
                "recipients[2].attributes.time_zone",
                "recipients[3].trigger_properties",
                "schedule.time",
            ],
        ),
    ]
}

async fn malformed_creations(database: &Database) {
    let app = TestApp::start(database).await;
    let good = create("canvas", at(LATER));
    for (case, request, fields) in bad_creations(&good) {
        assert_fields(&refusal(app.create(request).await), &fields, case);
    }
    for (case, recipient, field) in bad_recipients() {
        let field = format!("recipients[1]{field}");
        assert_fields(
            &refusal(app.create(to(vec![user("good"), recipient])).await),
            &[&field],
            case,
        );
    }
    assert_eq!(
        app.list_ids(Default::default()).await,
        Vec::<String>::new(),
        "nothing may be created"
    );
    app.create(good).await.expect("the valid request");
}

/// Details travel in headers, of which clients accept 16 KB: a larger error would not arrive.
async fn more_violations_than_an_error_can_carry(database: &Database) {
    let app = TestApp::start(database).await;
    let wrong = |n: usize| v1::Recipient {
        prioritization: vec!["\0".repeat(300); 20],
        ..user(&format!("{n}\0{}", "\u{7}".repeat(400)))
    };
    let recipients: Vec<_> = (0..50).map(wrong).collect();
    let all = Create {
        broadcast: false,
        recipients,
        request_id: "\0".to_owned(),
        ..create(&"\0".repeat(999), at("now"))
    };
    let reply = refusal(app.create(all).await);
    assert_eq!(
        (reply.code, reply.reason.as_str()),
        (Code::InvalidArgument, "INVALID_FIELDS")
    );
    assert!(
        reply.fields.iter().any(|field| field == "canvas_id") && reply.fields.len() > 3,
        "{reply:?}"
    );
    assert!(
        reply.metadata["violations"]
            .parse::<usize>()
            .expect("a number")
            > reply.fields.len()
            && reply.message.contains(" more"),
        "{reply:?}"
    );

    let nan = || ProtoValue {
        kind: Some(ValueKind::NumberValue(f64::NAN)),
    };
    let many = Struct {
        fields: (0..4000).map(|n| (n.to_string(), nan())).collect(),
    };
    let reply = refusal(
        app.create(Create {
            trigger_properties: Some(many),
            ..create("canvas", at(LATER))
        })
        .await,
    );
    assert_fields(&reply, &["trigger_properties"], "4000 invalid numbers");
}

async fn malformed_reads_and_cancellations(database: &Database) {
    let app = TestApp::start(database).await;
    let (one, two) = (
        app.created(create("one", at(LATER))).await,
        app.created(create("two", at(LATER))).await,
    );
    app.update(update(&one, at(LATER))).await.expect("updated");
    let before = app.seen(&one).await;
    for wrong in ["", "x", "\0", "0198c5a07d2e7c649f0b2f1a0c9d3b11"] {
        assert_fields(&refusal(app.try_get(wrong).await), &["schedule_id"], wrong);
        let revisions = v1::ListCanvasScheduleRevisionsRequest {
            schedule_id: wrong.to_owned(),
            ..Default::default()
        };
        assert_fields(
            &refusal(app.revisions_page(revisions).await),
            &["schedule_id"],
            wrong,
        );
        let wrong_cancel = v1::CancelCanvasScheduleRequest {
            schedule_id: wrong.to_owned(),
            ..cancel(&one)
        };
        assert_fields(
            &refusal(app.cancel(wrong_cancel).await),
            &["schedule_id"],
            wrong,
        );
    }
    let all = v1::CancelCanvasScheduleRequest {
        request_id: "\0".to_owned(),
        ..Default::default()
    };
    assert_fields(
        &refusal(app.cancel(all).await),
        &["canvas_id", "request_id", "schedule_id"],
        "every violation together",
    );
    malformed_pages(&app, &one, &two).await;
    assert_eq!(app.seen(&one).await, before, "nothing changed");
}

fn schedules(page_size: i32, page_token: &str) -> v1::ListCanvasSchedulesRequest {
    v1::ListCanvasSchedulesRequest {
        page_size,
        page_token: page_token.to_owned(),
        ..Default::default()
    }
}

fn revisions(
    of: &v1::CanvasSchedule,
    page_size: i32,
    page_token: &str,
) -> v1::ListCanvasScheduleRevisionsRequest {
    v1::ListCanvasScheduleRevisionsRequest {
        schedule_id: of.schedule_id.clone(),
        page_size,
        page_token: page_token.to_owned(),
    }
}

/// Requests lists with invalid page sizes, page tokens and filters.
async fn malformed_pages(app: &TestApp, one: &v1::CanvasSchedule, two: &v1::CanvasSchedule) {
    for size in [-1, 1001, i32::MIN, i32::MAX] {
        assert_fields(
            &refusal(app.list(schedules(size, "")).await),
            &["page_size"],
            "schedules",
        );
        assert_fields(
            &refusal(app.revisions_page(revisions(one, size, "")).await),
            &["page_size"],
            "revisions",
        );
    }
    let of_list = app
        .list(schedules(1, ""))
        .await
        .expect("a page")
        .next_page_token;
    let of_one = app
        .revisions_page(revisions(one, 1, ""))
        .await
        .expect("a page")
        .next_page_token;
    assert!(!of_list.is_empty() && !of_one.is_empty());
    for token in [
        of_one.as_str(),
        "x",
        "\0",
        &of_list[1..],
        &of_list.to_uppercase()[..20],
        &"f".repeat(48),
    ] {
        assert_fields(
            &refusal(app.list(schedules(1, token)).await),
            &["page_token"],
            token,
        );
        let filtered = v1::ListCanvasSchedulesRequest {
            canvas_id: "one".to_owned(),
            ..schedules(1, &of_list)
        };
        assert_fields(
            &refusal(app.list(filtered).await),
            &["page_token"],
            "from a list with other filters",
        );
    }
    for token in [of_list.as_str(), of_one.as_str(), "x"] {
        assert_fields(
            &refusal(app.revisions_page(revisions(two, 1, token)).await),
            &["page_token"],
            token,
        );
    }
    let wrong = v1::ListCanvasSchedulesRequest {
        canvas_id: "\0".to_owned(),
        state: 99,
        ..schedules(-1, "x")
    };
    assert_fields(
        &refusal(app.list(wrong).await),
        &["canvas_id", "page_size", "page_token", "state"],
        "every violation together",
    );
}

async fn properties_up_to_the_bounds_pass(database: &Database) {
    let app = TestApp::start(database).await;
    let recipients = (0..50)
        .map(|n| user(&format!("{n}{}", "ü".repeat(253))))
        .collect();
    let canvas_id = "🎨".repeat(255);
    let request_id = "é".repeat(128);
    let largest = Create {
        broadcast: false,
        recipients,
        request_id,
        trigger_properties: Some(of_bytes(50 * 1024)),
        ..create(&canvas_id, at(LATER))
    };
    let schedule = app.created(largest).await;
    let got = app.get(&schedule).await;
    assert_eq!(
        (got.recipients.len(), got.trigger_properties),
        (50, Some(of_bytes(50 * 1024)))
    );
    assert_eq!(
        got.canvas_schedule.expect("a schedule").canvas_id,
        canvas_id
    );
    let deepest = Update {
        trigger_properties: Some(nested(30)),
        ..update(&schedule, at(LATER))
    };
    app.update(deepest).await.expect("30 levels pass");
    assert_eq!(
        app.get(&schedule).await.trigger_properties,
        Some(nested(30))
    );
}

async fn messages_that_cannot_be_decoded(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let before = app.seen(&schedule).await;
    let deep = Update {
        trigger_properties: Some(nested(200)),
        ..update(&schedule, at(LATER))
    }
    .encode_to_vec();
    let mut cut = update(&schedule, at(LATER)).encode_to_vec();
    cut.pop();
    for (case, message) in [
        ("200 levels", deep),
        ("no protobuf", b"\xff\xff\xff\xff\xff".to_vec()),
        ("text", b"{\"canvas_id\":\"canvas\"}".to_vec()),
        ("cut short", cut),
        ("invalid UTF-8", b"\x0a\x02\xc3\x28".to_vec()),
        ("another wire type", b"\x08\x01".to_vec()),
    ] {
        let refusal = refusal(raw(app.keyed(), UPDATE, message).await);
        assert_eq!(
            (refusal.code, refusal.reason.as_str()),
            (Code::InvalidArgument, "MESSAGE_NOT_DECODABLE"),
            "{case}: {refusal:?}"
        );
    }
    let whole = update(&schedule, at(LATER)).encode_to_vec();
    assert_eq!(app.seen(&schedule).await, before, "nothing changed");
    let answer = raw(app.keyed(), UPDATE, whole)
        .await
        .expect("the same message, complete");
    assert_eq!(
        schedule_of(&v1::UpdateCanvasScheduleResponse::decode(answer).expect("an answer")).revision,
        2
    );
}

async fn messages_that_are_too_large(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let before = app.seen(&schedule).await;
    let of = |bytes: usize| Update {
        trigger_properties: Some(object(json!({ "k": "x".repeat(bytes) }))),
        ..update(&schedule, at(LATER))
    };
    refused(
        app.update(of(1024 * 1024)).await,
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
    );
    let large = Create {
        trigger_properties: of(1024 * 1024).trigger_properties,
        ..create("canvas", at(LATER))
    };
    refused(
        app.create(large).await,
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
    );
    // A message below its own bound may still exceed the bound of properties.
    assert_fields(
        &refusal(app.update(of(1024 * 1024 - 200)).await),
        &["trigger_properties"],
        "just under 1 MB",
    );
    refused(
        app.batch(vec![of(45_000); 100]).await,
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
    );
    // Two bytes each on the wire, some hundred in memory.
    let empty = |field: u8, bytes: usize| [field, 0].repeat(bytes / 2 - 100);
    refused(
        raw(app.keyed(), BATCH, empty(0x0a, 4 * 1024 * 1024)).await,
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
    );
    refused(
        raw(app.keyed(), CREATE, empty(0x32, 1024 * 1024)).await,
        Code::ResourceExhausted,
        "MESSAGE_TOO_LARGE",
    );
    assert_fields(
        &refusal(raw(app.keyed(), BATCH, empty(0x0a, 3_000)).await),
        &["requests"],
        "1,400 entries",
    );
    assert_eq!(app.seen(&schedule).await, before, "nothing changed");

    let batch = vec![of(45_000); 60];
    assert!(batch.iter().map(Message::encoded_len).sum::<usize>() > 2 * 1024 * 1024);
    let answers = app.batch(batch).await.expect("a batch may have 4 MB");
    assert!(answers.iter().all(Result::is_ok));
    assert_eq!(
        app.get(&schedule)
            .await
            .canvas_schedule
            .expect("a schedule")
            .revision,
        61
    );
}

async fn unknown_methods(database: &Database) {
    let app = TestApp::start(database).await;
    for path in [
        "/canvas.schedule.v1.CanvasScheduleService/Nope",
        "/canvas.schedule.v2.Nope/Nope",
        "/canvas.schedule.v1.CanvasScheduleService",
    ] {
        let refusal = refused(
            raw(app.keyed(), path, vec![]).await,
            Code::Unimplemented,
            "METHOD_UNKNOWN",
        );
        assert!(refusal.message.contains(path), "{refusal:?}");
    }
}

async fn a_valid_call_succeeds_after_every_invalid_one(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let good = update(&schedule, at(LATER));
    // On one connection, which an invalid call must not affect.
    for (n, (case, request, _)) in bad_updates(&good).into_iter().enumerate() {
        app.update(request).await.expect_err(case);
        let answer = app.update(good.clone()).await.expect(case);
        assert_eq!(
            schedule_of(&answer).revision,
            i64::try_from(n + 2).expect("a revision"),
            "{case}"
        );
    }
}
