use std::convert::Infallible;

use http::Response;
use tokio::sync::watch;
use tonic::Code;
use tower::{Service, ServiceExt};

use super::*;
use crate::layers::support::{UNARY, done, pass, request, verdict};
use crate::layers::{Phase, Stack};

fn stack() -> (watch::Sender<Phase>, Stack) {
    let (sender, phase) = watch::channel(Phase::Serving);
    (sender, Stack::new(phase))
}

#[tokio::test]
async fn the_key_is_one_bearer_and_is_gone_before_the_handler() {
    let key = request(UNARY).headers()[AUTHORIZATION]
        .to_str()
        .expect("ASCII")
        .split_once(' ')
        .expect("a scheme")
        .1
        .to_owned();
    for (lines, reason) in [
        (vec![], "KEY_MISSING"),
        (vec![String::new()], "KEY_MALFORMED"),
        (vec![key.clone()], "KEY_MALFORMED"),
        (vec![format!("Basic {key}")], "KEY_MALFORMED"),
        (vec![format!("Bearer {}", &key[1..])], "KEY_MALFORMED"),
        (
            vec![format!("Bearer {key}"), format!("Bearer {key}")],
            "KEY_MALFORMED",
        ),
        (
            vec![format!("Bearer {}", key.replace("cs_07", "cs_08"))],
            "KEY_UNKNOWN",
        ),
        (vec![format!("Bearer {key}")], ""),
        (vec![format!("bearer  {key} ")], ""),
    ] {
        let (_phase, stack) = stack();
        let mut call = request(UNARY);
        call.headers_mut().remove(AUTHORIZATION);
        for line in &lines {
            call.headers_mut()
                .append(AUTHORIZATION, line.parse().expect("a header"));
        }
        let response = pass(stack, call, |request| async move {
            assert!(request.headers().get(AUTHORIZATION).is_none());
            assert_eq!(
                &*request
                    .extensions()
                    .get::<Caller>()
                    .expect("a caller")
                    .actor,
                "test"
            );
            done()
        })
        .await;
        let code = if reason.is_empty() {
            Code::Ok
        } else {
            Code::Unauthenticated
        };
        assert_eq!(
            verdict(&response),
            (code, reason.to_owned()),
            "{}",
            lines.len()
        );
        assert!(
            !format!("{:?}", response.headers()).contains(&key[20..]),
            "the key is not echoed"
        );
    }
}

#[tokio::test]
async fn an_unknown_method_is_refused_even_with_a_key() {
    let (_phase, stack) = stack();
    let inner = tower::service_fn(|_: Request<Body>| async {
        panic!("reached") as Result<Response<Body>, Infallible>
    });
    let mut wrapped = stack.wrap(inner);
    for path in ["/canvas.schedule.v1.CanvasScheduleService/Nope", "/x.Y/Z"] {
        let Ok(response) = wrapped
            .ready()
            .await
            .expect("ready")
            .call(request(path))
            .await;
        assert_eq!(
            verdict(&response),
            (Code::Unimplemented, "METHOD_UNKNOWN".into()),
            "{path}"
        );
    }
}
