use std::sync::Arc;

use tokio::sync::watch;
use tonic::Code;
use tonic_types::StatusExt;

use super::*;
use crate::layers::support::{
    CHECK, STREAM, UNARY, done, endless, pass, request, verdict, verdict_of_stream,
};
use crate::layers::{Phase, Stack};

#[test]
fn a_timeout_is_one_to_eight_digits_and_a_unit() {
    for (text, parsed) in [
        ("1H", Some(Duration::from_secs(3600))),
        ("2M", Some(Duration::from_secs(120))),
        ("3S", Some(Duration::from_secs(3))),
        ("4m", Some(Duration::from_millis(4))),
        ("5u", Some(Duration::from_micros(5))),
        ("6n", Some(Duration::from_nanos(6))),
        ("0n", Some(Duration::ZERO)),
        ("00000001S", Some(Duration::from_secs(1))),
        ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
        ("000000001S", None),
        ("", None),
        ("S", None),
        ("1", None),
        ("1s", None),
        ("1 S", None),
        (" 1S", None),
        ("-1S", None),
        ("+1S", None),
        ("1.5S", None),
        ("1h", None),
        ("1SS", None),
    ] {
        assert_eq!(parse(text.as_bytes()), parsed, "{text:?}");
    }
}

fn timed(path: &str, timeout: &str) -> Request<Body> {
    let mut request = request(path);
    request
        .headers_mut()
        .insert(TIMEOUT_HEADER, timeout.parse().expect("a header"));
    request
}

fn stack() -> (watch::Sender<Phase>, Stack) {
    let (sender, phase) = watch::channel(Phase::Serving);
    (sender, Stack::new(phase))
}

#[tokio::test]
async fn a_malformed_timeout_is_refused_with_the_right_form() {
    let (_phase, stack) = stack();
    let response = pass(stack, timed(UNARY, "1s"), |_| async { panic!("begun") }).await;
    assert_eq!(
        verdict(&response),
        (Code::InvalidArgument, "TIMEOUT_MALFORMED".into())
    );
    let status = Status::from_header_map(response.headers()).expect("a status");
    for part in ["grpc-timeout", "\"1s\"", "for example 500m"] {
        assert!(status.message().contains(part), "{}", status.message());
    }
    assert_eq!(
        status
            .get_details_bad_request()
            .expect("details")
            .field_violations[0]
            .field,
        "grpc-timeout"
    );
}

#[tokio::test(start_paused = true)]
async fn past_the_shorter_bound_a_call_is_dropped() {
    for (timeout, bound) in [("5S", 5), ("59S", 59), ("61S", 60), ("1H", 60), ("", 60)] {
        let (_phase, stack) = stack();
        let held = Arc::new(());
        let within = held.clone();
        let call = if timeout.is_empty() {
            request(UNARY)
        } else {
            timed(UNARY, timeout)
        };
        let began = Instant::now();
        let response = pass(stack, call, |_| async move {
            let _within = within;
            std::future::pending().await
        })
        .await;
        assert_eq!(
            verdict(&response),
            (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into()),
            "{timeout}"
        );
        assert_eq!(began.elapsed().as_secs(), bound, "{timeout}");
        assert_eq!(
            Arc::strong_count(&held),
            1,
            "{timeout}: the handler is dropped"
        );
    }
}

#[tokio::test]
async fn a_timeout_of_nothing_begins_nothing() {
    let (_phase, stack) = stack();
    let response = pass(stack, timed(UNARY, "0m"), |_| async { panic!("begun") }).await;
    assert_eq!(
        verdict(&response),
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into())
    );
}

#[tokio::test(start_paused = true)]
async fn the_handler_learns_the_deadline() {
    for (path, timeout, bound) in [
        (UNARY, "5S", Some(5)),
        (UNARY, "1H", Some(60)),
        (CHECK, "1H", Some(60)),
        (STREAM, "1H", Some(3600)),
        (STREAM, "", None),
    ] {
        let (_phase, stack) = stack();
        let call = if timeout.is_empty() {
            request(path)
        } else {
            timed(path, timeout)
        };
        let due = bound.map(|seconds| Deadline(Instant::now() + Duration::from_secs(seconds)));
        let response = pass(stack, call, move |request| async move {
            assert_eq!(request.extensions().get::<Deadline>().copied(), due);
            done()
        })
        .await;
        assert_eq!(
            verdict(&response),
            (Code::Ok, String::new()),
            "{path} {timeout}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_at_the_timeout_of_its_caller_and_not_at_ours() {
    let (_phase, stack) = stack();
    let began = Instant::now();
    let response = pass(stack.clone(), timed(STREAM, "2M"), |_| async {
        Response::new(endless())
    })
    .await;
    assert_eq!(
        verdict_of_stream(response).await,
        (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".into())
    );
    assert_eq!(began.elapsed().as_secs(), 120);

    let untimed = pass(stack, request(STREAM), |_| async {
        Response::new(endless())
    })
    .await;
    let hour = tokio::time::timeout(Duration::from_secs(3600), verdict_of_stream(untimed)).await;
    assert!(hour.is_err(), "the stream goes on");
}
