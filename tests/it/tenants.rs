//! Two workspaces over one database: neither sees anything of the other.
//!
//! Each random history of two tenants is played twice: once in full, and once with only the calls
//! of the second tenant, on a separate database. Both use the same Canvases and request ids, and
//! the second tries ids, etags and page tokens that the first received. Its answers must be the
//! same both times, except for its own ids.

use std::collections::HashMap;

use canvas_scheduler::pb::v1;
use canvas_scheduler::service::admin::WorkspaceChange;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tonic::{Response, Status};
use tonic_types::StatusExt;

use crate::support::*;

on_both![no_workspace_sees_another];

/// The number of histories, and of calls in each.
const HISTORIES: usize = 8;
const CALLS: usize = 60;

/// The schedule that a call names: one of the caller's, one of the other tenant's, or one that does
/// not exist.
#[derive(Debug, Clone, Copy)]
enum Named {
    Own(usize),
    Foreign(usize),
    Nobodys,
}

#[derive(Debug, Clone)]
enum Call {
    Create {
        canvas: u8,
        request: Option<u8>,
    },
    Update {
        of: Named,
        canvas: u8,
        etag: Option<Named>,
        request: Option<u8>,
    },
    UpdateOfCanvas {
        canvas: u8,
        request: Option<u8>,
    },
    Batch {
        of: Vec<Named>,
        canvas: u8,
    },
    Cancel {
        of: Named,
        canvas: u8,
        request: Option<u8>,
    },
    Get {
        of: Named,
    },
    List {
        canvas: Option<u8>,
        token: Option<Named>,
    },
    Revisions {
        of: Named,
        token: Option<Named>,
    },
}

fn named() -> impl Strategy<Value = Named> {
    prop_oneof![4 => (0..9_usize).prop_map(Named::Own), 3 => (0..9_usize).prop_map(Named::Foreign), 1 => Just(Named::Nobodys)]
}

fn calls() -> impl Strategy<Value = Vec<(bool, Call)>> {
    let canvas = || 0..3_u8;
    let request = || prop::option::of(0..4_u8);
    let call = prop_oneof![
        4 => (canvas(), request()).prop_map(|(canvas, request)| Call::Create { canvas, request }),
        3 => (named(), canvas(), prop::option::of(named()), request())
            .prop_map(|(of, canvas, etag, request)| Call::Update { of, canvas, etag, request }),
        1 => (canvas(), request()).prop_map(|(canvas, request)| Call::UpdateOfCanvas { canvas, request }),
        1 => (prop::collection::vec(named(), 1..4), canvas()).prop_map(|(of, canvas)| Call::Batch { of, canvas }),
        1 => (named(), canvas(), request()).prop_map(|(of, canvas, request)| Call::Cancel { of, canvas, request }),
        1 => named().prop_map(|of| Call::Get { of }),
        2 => (prop::option::of(canvas()), prop::option::of(named())).prop_map(|(canvas, token)| Call::List { canvas, token }),
        1 => (named(), prop::option::of(named())).prop_map(|(of, token)| Call::Revisions { of, token }),
    ];
    prop::collection::vec((any::<bool>(), call), CALLS)
}

/// The ids, etags and tokens that a tenant received.
#[derive(Debug, Default, Clone)]
struct Received {
    ids: Vec<String>,
    etags: Vec<String>,
    tokens: Vec<String>,
}

fn nth<'a>(received: &'a [String], n: usize, none: &'a str) -> &'a str {
    if received.is_empty() {
        none
    } else {
        &received[n % received.len()]
    }
}

impl Received {
    /// Records the values in an answer.
    fn note(&mut self, schedule: Option<&v1::CanvasSchedule>) {
        let Some(schedule) = schedule else { return };
        if !self.ids.contains(&schedule.schedule_id) {
            self.ids.push(schedule.schedule_id.clone());
        }
        if !self.etags.contains(&schedule.etag) {
            self.etags.push(schedule.etag.clone());
        }
    }

    /// The text with the tenant's own random values replaced by their numbers.
    fn normal(&self, text: String) -> String {
        let mut text = text;
        for (kind, given) in [
            ("token", &self.tokens),
            ("etag", &self.etags),
            ("id", &self.ids),
        ] {
            for (n, one) in given.iter().enumerate() {
                text = text.replace(one, &format!("{kind} {n}"));
            }
        }
        text
    }
}

/// A tenant that makes calls.
struct Tenant {
    client: Client,
    received: Received,
}

const UNKNOWN_ID: &str = "0198c5a0-7d2e-7c64-9f0b-2f1a0c9d3b11";

fn canvas_id(canvas: &u8) -> String {
    format!("canvas {canvas}")
}

fn request_id(request: &Option<u8>) -> String {
    request
        .map(|request| format!("request {request}"))
        .unwrap_or_default()
}

impl Tenant {
    fn id(&self, foreign: &Received, named: Named) -> String {
        self.pick(foreign, named, |received| &received.ids, UNKNOWN_ID)
    }

    fn pick(
        &self,
        foreign: &Received,
        named: Named,
        of: impl Fn(&Received) -> &Vec<String>,
        none: &str,
    ) -> String {
        match named {
            Named::Own(n) => nth(of(&self.received), n, none),
            Named::Foreign(n) => nth(of(foreign), n, none),
            Named::Nobodys => none,
        }
        .to_owned()
    }

    fn etag(&self, foreign: &Received, named: Option<Named>) -> String {
        named
            .map(|named| {
                self.pick(
                    foreign,
                    named,
                    |received| &received.etags,
                    "0123456789abcdef",
                )
            })
            .unwrap_or_default()
    }

    fn token(&self, foreign: &Received, named: Option<Named>) -> String {
        named
            .map(|named| self.pick(foreign, named, |received| &received.tokens, ""))
            .unwrap_or_default()
    }

    /// Makes a call. Returns the response in normal form.
    async fn call(&mut self, call: &Call, n: usize, foreign: &Received) -> String {
        let schedule = || at(&format!("2026-03-2{}T08:00:00Z", n % 10));
        let received = match call {
            Call::Create { canvas, request } => {
                // The same request under the same id: if ids were shared, it would be replayed.
                self.create(v1::CreateCanvasScheduleRequest {
                    request_id: request_id(request),
                    ..create(&canvas_id(canvas), at(LATER))
                })
                .await
            }
            Call::Update {
                of,
                canvas,
                etag,
                request,
            } => {
                let (schedule_id, etag) = (self.id(foreign, *of), self.etag(foreign, *etag));
                let asked = update_of_canvas(&canvas_id(canvas), schedule());
                self.update(v1::UpdateCanvasScheduleRequest {
                    schedule_id,
                    etag,
                    request_id: request_id(request),
                    ..asked
                })
                .await
            }
            Call::UpdateOfCanvas { canvas, request } => {
                let asked = update_of_canvas(&canvas_id(canvas), schedule());
                self.update(v1::UpdateCanvasScheduleRequest {
                    request_id: request_id(request),
                    ..asked
                })
                .await
            }
            Call::Batch { of, canvas } => {
                let ids: Vec<String> = of.iter().map(|named| self.id(foreign, *named)).collect();
                self.batch(ids, &canvas_id(canvas), schedule()).await
            }
            Call::Cancel {
                of,
                canvas,
                request,
            } => {
                let (schedule_id, canvas_id) = (self.id(foreign, *of), canvas_id(canvas));
                let asked = v1::CancelCanvasScheduleRequest {
                    canvas_id,
                    schedule_id,
                    request_id: request_id(request),
                    ..Default::default()
                };
                self.cancel(asked).await
            }
            Call::Get { of } => {
                let asked = v1::GetCanvasScheduleRequest {
                    schedule_id: self.id(foreign, *of),
                };
                self.get(asked).await
            }
            Call::List { canvas, token } => {
                self.list(
                    canvas.as_ref().map(canvas_id).unwrap_or_default(),
                    self.token(foreign, *token),
                )
                .await
            }
            Call::Revisions { of, token } => {
                let (schedule_id, page_token) =
                    (self.id(foreign, *of), self.token(foreign, *token));
                let asked = v1::ListCanvasScheduleRevisionsRequest {
                    schedule_id,
                    page_size: 2,
                    page_token,
                };
                self.revisions(asked).await
            }
        };
        self.received.normal(received)
    }

    async fn create(&mut self, asked: v1::CreateCanvasScheduleRequest) -> String {
        let answer = self
            .client
            .create_canvas_schedule(asked)
            .await
            .map(Response::into_inner);
        self.received.note(
            answer
                .as_ref()
                .ok()
                .and_then(|answer| answer.canvas_schedule.as_ref()),
        );
        // The dispatch id derives from the schedule's id.
        text_of(answer.map(|answer| v1::CreateCanvasScheduleResponse {
            dispatch_id: String::new(),
            ..answer
        }))
    }

    async fn get(&mut self, asked: v1::GetCanvasScheduleRequest) -> String {
        let answer = self.client.get_canvas_schedule(asked).await;
        text_of(answer.map(Response::into_inner))
    }

    async fn cancel(&mut self, asked: v1::CancelCanvasScheduleRequest) -> String {
        let answer = self
            .client
            .cancel_canvas_schedule(asked)
            .await
            .map(Response::into_inner);
        self.received.note(
            answer
                .as_ref()
                .ok()
                .and_then(|answer| answer.canvas_schedule.as_ref()),
        );
        text_of(answer)
    }

    async fn revisions(&mut self, asked: v1::ListCanvasScheduleRevisionsRequest) -> String {
        let answer = self
            .client
            .list_canvas_schedule_revisions(asked)
            .await
            .map(Response::into_inner);
        self.note_token(answer.as_ref().ok().map(|answer| &answer.next_page_token));
        text_of(answer)
    }

    async fn batch(
        &mut self,
        ids: Vec<String>,
        canvas_id: &str,
        schedule: Option<v1::Schedule>,
    ) -> String {
        let asked = |schedule_id| v1::UpdateCanvasScheduleRequest {
            schedule_id,
            ..update_of_canvas(canvas_id, schedule.clone())
        };
        let request = v1::BatchUpdateCanvasSchedulesRequest {
            requests: ids.into_iter().map(asked).collect(),
        };
        let answer = self
            .client
            .batch_update_canvas_schedules(request)
            .await
            .expect("answers")
            .into_inner();
        let mut text = String::new();
        for result in answer.results {
            let answer = entry(result);
            self.received.note(
                answer
                    .as_ref()
                    .ok()
                    .and_then(|answer| answer.canvas_schedule.as_ref()),
            );
            text += &text_of(answer);
        }
        text
    }

    async fn list(&mut self, canvas_id: String, page_token: String) -> String {
        let asked = v1::ListCanvasSchedulesRequest {
            canvas_id,
            page_size: 2,
            page_token,
            ..Default::default()
        };
        let answer = self
            .client
            .list_canvas_schedules(asked)
            .await
            .map(Response::into_inner);
        self.note_token(answer.as_ref().ok().map(|answer| &answer.next_page_token));
        text_of(answer)
    }

    async fn update(&mut self, asked: v1::UpdateCanvasScheduleRequest) -> String {
        let answer = self
            .client
            .update_canvas_schedule(asked)
            .await
            .map(Response::into_inner);
        self.received.note(
            answer
                .as_ref()
                .ok()
                .and_then(|answer| answer.canvas_schedule.as_ref()),
        );
        text_of(answer)
    }

    fn note_token(&mut self, token: Option<&String>) {
        self.received.tokens.extend(
            token
                .filter(|token| !token.is_empty() && !self.received.tokens.contains(token))
                .cloned(),
        );
    }
}

fn text_of<T: std::fmt::Debug>(answer: Result<T, Status>) -> String {
    match answer {
        Ok(answer) => format!("{answer:?}"),
        Err(status) => format!(
            "{:?} {} {:?}",
            status.code(),
            status.message(),
            status.get_error_details()
        ),
    }
}

/// Creates a tenant in a workspace with this name.
async fn tenant(app: &TestApp, name: &str) -> Tenant {
    app.admin()
        .create_workspace(name, &WorkspaceChange::default())
        .await
        .expect("made");
    // The history contains the name of the key, which must be the same in both runs.
    let key = app
        .key_of(name, |order| order.name = "key".to_owned())
        .await;
    app.read_keys().await;
    Tenant {
        client: app.client_with(&key),
        received: Received::default(),
    }
}

async fn no_workspace_sees_another(database: &Database) {
    let kind = if database.is_postgres() {
        Kind::Postgres
    } else {
        Kind::Memory
    };
    let alone = Database::new(kind, "the same history without the other tenant")
        .expect("a second database");
    let (app, app_alone) = (TestApp::start(database).await, TestApp::start(&alone).await);
    let mut runner = TestRunner::deterministic();
    let mut kinds = HashMap::<&str, usize>::new();
    for history in 0..HISTORIES {
        let calls = calls().new_tree(&mut runner).expect("calls").current();
        let mut first = tenant(&app, &format!("first-{history}")).await;
        let mut second = tenant(&app, &format!("second-{history}")).await;
        let mut twin = tenant(&app_alone, &format!("second-{history}")).await;
        for (n, (is_first, call)) in calls.iter().enumerate() {
            if *is_first {
                first.call(call, n, &second.received).await;
                continue;
            }
            let together = second.call(call, n, &first.received).await;
            let alone = twin.call(call, n, &first.received).await;
            assert_eq!(
                together, alone,
                "history {history}, call {n}: {call:?} in {calls:#?}"
            );
            *kinds
                .entry(if together.contains("NotFound") {
                    "not found"
                } else {
                    "other"
                })
                .or_default() += 1;
        }
        assert!(
            first.received.ids.len() > 1 && second.received.ids.len() > 1,
            "both tenants must have schedules"
        );
    }
    assert!(
        kinds.values().all(|count| *count > 20),
        "the histories must contain calls of every kind: {kinds:?}"
    );
    app.stop().await;
    app_alone.stop().await;
}
