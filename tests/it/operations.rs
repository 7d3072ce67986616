//! Health, reflection, readiness, deadlines, and a shutdown that always ends.

use std::time::Duration;

use canvas_scheduler::config::DatabaseUrl;
use canvas_scheduler::domain::SchedulePolicy;
use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::canvas_schedule_service_server::SERVICE_NAME;
use canvas_scheduler::store::{Options, Store};
use prost::Message;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::codegen::tokio_stream;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_types::StatusExt;

use crate::support::plain_http::get;
use crate::support::*;

on_both![
    health_answers_by_service,
    a_call_without_time_left_is_not_started
];
on_both![file: a_shutdown_finishes_calls_in_flight_and_ends_everything_else, a_shutdown_ends_even_if_a_call_does_not];

const OURS: [&str; 2] = ["", SERVICE_NAME];

async fn check(app: &TestApp, service: &str) -> Result<ServingStatus, Status> {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    HealthClient::new(app.channel.clone())
        .check(request)
        .await
        .map(|answer| answer.into_inner().status())
}

async fn watch(app: &TestApp) -> Streaming<HealthCheckResponse> {
    let request = HealthCheckRequest {
        service: SERVICE_NAME.to_owned(),
    };
    HealthClient::new(channel_to(app.addr()))
        .watch(request)
        .await
        .expect("a stream")
        .into_inner()
}

async fn health_answers_by_service(database: &Database) {
    let app = TestApp::start(database).await;
    assert_eq!(SERVICE_NAME, "canvas.schedule.v1.CanvasScheduleService");
    for name in OURS {
        assert_eq!(
            check(&app, name).await.expect("answered"),
            ServingStatus::Serving,
            "{name:?}"
        );
    }
    let unknown = check(&app, "canvas.schedule.v1.Nope")
        .await
        .expect_err("no such service");
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(
        unknown.get_details_error_info().expect("always").domain,
        "canvas-scheduler"
    );
}

/// Tests one of the two versions of reflection, whose messages are the same under two names.
macro_rules! reflection {
    ($version:ident) => {
        mod $version {
            use prost_types::FileDescriptorProto;
            use tonic_reflection::pb::$version::ServerReflectionRequest;
            use tonic_reflection::pb::$version::server_reflection_client::ServerReflectionClient;
            use tonic_reflection::pb::$version::server_reflection_request::MessageRequest;
            use tonic_reflection::pb::$version::server_reflection_response::MessageResponse;

            use super::*;

            on_both![lists_and_describes];

            async fn ask(app: &TestApp, asked: MessageRequest) -> MessageResponse {
                let request = ServerReflectionRequest {
                    host: String::new(),
                    message_request: Some(asked),
                };
                let mut client = ServerReflectionClient::new(app.channel.clone());
                let answers = client
                    .server_reflection_info(tokio_stream::once(request))
                    .await
                    .expect("a stream");
                answers
                    .into_inner()
                    .message()
                    .await
                    .expect("an answer")
                    .expect("one")
                    .message_response
                    .expect("one")
            }

            async fn files(app: &TestApp, asked: MessageRequest) -> Vec<FileDescriptorProto> {
                let MessageResponse::FileDescriptorResponse(files) = ask(app, asked.clone()).await
                else {
                    panic!("{asked:?} must return files")
                };
                files
                    .file_descriptor_proto
                    .iter()
                    .map(|file| FileDescriptorProto::decode(file.as_slice()).expect("a file"))
                    .collect()
            }

            async fn lists_and_describes(database: &Database) {
                let app = TestApp::start(database).await;
                let MessageResponse::ListServicesResponse(list) =
                    ask(&app, MessageRequest::ListServices("*".to_owned())).await
                else {
                    panic!("no list")
                };
                let names: Vec<String> = list
                    .service
                    .into_iter()
                    .map(|service| service.name)
                    .collect();
                for name in [SERVICE_NAME, "grpc.health.v1.Health"] {
                    assert!(names.iter().any(|one| one == name), "{name} in {names:?}");
                }
                assert!(
                    !names.iter().any(|one| one.contains("CanvasTriggerService")),
                    "only services of this server: {names:?}"
                );
                let ours = files(
                    &app,
                    MessageRequest::FileContainingSymbol(SERVICE_NAME.to_owned()),
                )
                .await;
                let service = ours
                    .iter()
                    .flat_map(|file| &file.service)
                    .find(|service| service.name() == "CanvasScheduleService");
                let methods: Vec<&str> = service
                    .expect("our service")
                    .method
                    .iter()
                    .map(|method| method.name())
                    .collect();
                assert!(
                    methods.contains(&"UpdateCanvasSchedule") && methods.len() == 9,
                    "{methods:?}"
                );
                // With these a client can show the details of an error.
                let mut named: Vec<String> = ours
                    .iter()
                    .flat_map(|file| file.dependency.clone())
                    .collect();
                for (symbol, message) in [
                    ("google.rpc.BadRequest", "BadRequest"),
                    ("google.rpc.ErrorInfo", "ErrorInfo"),
                ] {
                    let found = files(
                        &app,
                        MessageRequest::FileContainingSymbol(symbol.to_owned()),
                    )
                    .await;
                    assert!(
                        found
                            .iter()
                            .flat_map(|file| &file.message_type)
                            .any(|one| one.name() == message),
                        "{symbol}"
                    );
                    named.extend(found.iter().map(|file| file.name().to_owned()));
                }
                for name in named {
                    let found = files(&app, MessageRequest::FileByFilename(name.clone())).await;
                    assert_eq!(found[0].name(), name);
                }
            }
        }
    };
}

mod reflection {
    use super::*;

    reflection!(v1);
    reflection!(v1alpha);
}

mod it_is_not_ready_until_the_schema_exists {
    use super::*;

    #[tokio::test]
    async fn sqlite() {
        on(Kind::File, concat!(module_path!(), "::sqlite")).await;
    }

    #[tokio::test]
    async fn postgres() {
        on(Kind::Postgres, concat!(module_path!(), "::postgres")).await;
    }

    async fn on(kind: Kind, name: &str) {
        if let Some(database) = Database::empty(kind, name) {
            soon(shown(&database)).await;
        }
    }

    async fn shown(database: &Database) {
        let app = TestApp::start_unmigrated(database).await;
        for name in OURS {
            assert_eq!(
                check(&app, name).await.expect("answered"),
                ServingStatus::NotServing,
                "{name:?}"
            );
        }
        let answer = app.create(create("canvas", at(LATER))).await;
        assert!(
            answer
                .as_ref()
                .expect_err("refused")
                .get_details_retry_info()
                .is_some(),
            "it must contain a retry delay"
        );
        refused(answer, Code::Unavailable, "STORE_UNAVAILABLE");
        refused(
            app.list(Default::default()).await,
            Code::Unavailable,
            "STORE_UNAVAILABLE",
        );
        let mut health = watch(&app).await;
        let mut next = async || {
            health
                .message()
                .await
                .expect("a status")
                .expect("a status")
                .status()
        };
        assert_eq!(next().await, ServingStatus::NotServing);

        let url = DatabaseUrl::parse(database.url()).expect("a valid URL");
        let (store, _writers) = Store::open(
            &Options::new(&url),
            app.clock.clone(),
            SchedulePolicy::default(),
        );
        let applied = store.migrate().await.expect("migrated");
        assert!(
            applied
                .first()
                .is_some_and(|first| first == "m0001_schedules")
                && applied.is_sorted(),
            "{applied:?}"
        );
        assert_eq!(
            store.migrate().await.expect("nothing to do"),
            Vec::<String>::new(),
            "a second migration must change nothing"
        );
        assert_eq!(next().await, ServingStatus::Serving, "without a restart");
        let mut client = app.client_with(&app.key_of("default", |_| {}).await);
        client
            .create_canvas_schedule(create("canvas", at(LATER)))
            .await
            .expect("created");
        app.stop().await;
    }
}

/// Adds a deadline to a request, in the format of `grpc-timeout`.
fn within<T>(message: T, timeout: &'static str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "grpc-timeout",
        tonic::metadata::MetadataValue::from_static(timeout),
    );
    request
}

async fn a_call_without_time_left_is_not_started(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let before = app.seen(&schedule).await;
    let mut client = bare_client(app.addr(), &app.key).await;
    for timeout in ["0n", "1n", "0H"] {
        let answer = client
            .update_canvas_schedule(within(update(&schedule, at(LATER)), timeout))
            .await;
        refused(answer, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        let answer = client
            .create_canvas_schedule(within(create("canvas", at(LATER)), timeout))
            .await;
        refused(answer, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        let answer = client
            .cancel_canvas_schedule(within(cancel(&schedule), timeout))
            .await;
        refused(answer, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    }
    let malformed = client
        .update_canvas_schedule(within(update(&schedule, at(LATER)), "soon"))
        .await;
    assert_eq!(
        refused(malformed, Code::InvalidArgument, "TIMEOUT_MALFORMED").fields,
        ["grpc-timeout"]
    );
    assert_eq!(app.seen(&schedule).await, before, "nothing changed");
    assert_eq!(
        app.list_ids(Default::default()).await.len(),
        1,
        "nothing may be created"
    );
    client
        .update_canvas_schedule(within(update(&schedule, at(LATER)), "1H"))
        .await
        .expect("time enough");
}

/// Waits until the server closes a silent connection.
async fn wait_until_closed(mut silent: TcpStream) {
    let mut rest = Vec::new();
    // A reset closes it too.
    let _end = soon(silent.read_to_end(&mut rest)).await;
}

type Calls = JoinSet<Result<Response<v1::UpdateCanvasScheduleResponse>, Status>>;

/// An app that accepts two changes at a time: the writer has one, and one waits.
async fn with_short_queue(database: &Database, drain: Duration) -> TestApp {
    TestApp::start_with(database, |settings| {
        settings.store = one_at_a_time();
        settings.drain = drain;
    })
    .await
}

/// Starts calls that change a locked schedule, of which at least one is in flight: once a call is
/// refused since the queue is full, another call is in the queue.
async fn in_flight(app: &TestApp, schedule: &v1::CanvasSchedule) -> Calls {
    let mut calls = Calls::new();
    for _ in 0..4 {
        let (mut client, request) = (
            app.fresh_client(),
            update(schedule, at("2026-03-21T09:00:00Z")),
        );
        calls.spawn(async move { client.update_canvas_schedule(request).await });
    }
    let first = soon(calls.join_next())
        .await
        .expect("four calls")
        .expect("no panic");
    refused(first, Code::Unavailable, "BUSY");
    calls
}

async fn a_shutdown_finishes_calls_in_flight_and_ends_everything_else(database: &Database) {
    let app = with_short_queue(database, Duration::from_secs(60)).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let (silent, addr) = (
        TcpStream::connect(app.addr()).await.expect("a connection"),
        app.addr(),
    );
    let admin = app.admin_addr();
    assert_eq!(
        get(&admin, "/readyz").await,
        (
            200,
            r#"{"ready":true,"reasons":[],"warnings":[]}"#.to_owned()
        )
    );
    let mut health = watch(&app).await;
    assert_eq!(
        health
            .message()
            .await
            .expect("a status")
            .expect("one")
            .status(),
        ServingStatus::Serving
    );
    // Reserves quota for the calls below, which on SQLite needs the same lock.
    app.list(Default::default()).await.expect("a list");
    let lock = database.lock(&schedule.schedule_id).await;
    let calls = in_flight(&app, &schedule).await;

    let stopping = tokio::spawn(app.stop());
    let end = loop {
        match health.message().await {
            Ok(Some(status)) => assert_eq!(status.status(), ServingStatus::NotServing),
            Ok(None) => panic!("it ends with a status"),
            Err(end) => break end,
        }
    };
    assert_eq!(
        (
            end.code(),
            end.get_details_error_info().expect("always").reason
        ),
        (Code::Unavailable, "DRAINING".to_owned())
    );
    wait_until_closed(silent).await;
    assert!(
        !stopping.is_finished(),
        "it must wait for the calls in flight"
    );
    let (status, reply) = get(&admin, "/readyz").await;
    assert!(
        status == 503 && reply.contains(r#""reason":"draining""#),
        "{reply}"
    );
    assert_eq!(get(&admin, "/livez").await.0, 200);
    lock.rollback().await.expect("the lock is released");
    soon(stopping).await.expect("it stops");
    // A call that did not fit in the queue was refused; the others finished.
    let answers = soon(calls.join_all()).await;
    let finished = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((1..=2).contains(&finished), "{answers:?}");
    TcpStream::connect(addr)
        .await
        .expect_err("the port must be closed");
    let revision = database.count("SELECT revision FROM canvas_schedule").await;
    assert_eq!(
        revision,
        i64::try_from(finished + 1).expect("a revision"),
        "exactly the acknowledged changes must be there"
    );
}

async fn a_shutdown_ends_even_if_a_call_does_not(database: &Database) {
    let app = with_short_queue(database, Duration::from_millis(100)).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let silent = TcpStream::connect(app.addr()).await.expect("a connection");
    // Reserves quota for the calls below, which on SQLite needs the same lock.
    app.list(Default::default()).await.expect("a list");
    let lock = database.lock(&schedule.schedule_id).await;
    let calls = in_flight(&app, &schedule).await;
    soon(app.stop()).await;
    let answers = soon(calls.join_all()).await;
    let cut_off = |answer: &&Result<_, Status>| {
        answer
            .as_ref()
            .is_err_and(|status| status.message().contains("may or may not"))
    };
    let status = answers
        .iter()
        .find(cut_off)
        .expect("one was in flight")
        .as_ref()
        .expect_err("cut off");
    refused(Err::<(), _>(status.clone()), Code::Unavailable, "DRAINING");
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    wait_until_closed(silent).await;
    lock.rollback().await.expect("the lock is released");
}
