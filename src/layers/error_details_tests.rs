use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use tokio::sync::watch;
use tonic::service::Routes;
use tower::ServiceExt;

use super::*;
use crate::layers::support::{CHECK, STREAM, UNARY, pass, request, verdict, verdict_of_stream};
use crate::layers::{Phase, Stack};

/// What tonic's own service answers through the stack, so that this fails when a new tonic words
/// its errors otherwise.
async fn ask(request: Request<Body>) -> Response<Body> {
    let (_sender, phase) = watch::channel(Phase::Serving);
    let (_, health) = tonic_health::server::health_reporter();
    let Ok(response) = Stack::new(phase)
        .wrap(Routes::new(health))
        .oneshot(request)
        .await;
    response
}

fn with_body(path: &str, body: &'static [u8]) -> Request<Body> {
    request(path).map(|_| Body::new(Full::new(Bytes::from_static(body))))
}

fn text_of(response: &Response<Body>) -> String {
    Status::from_header_map(response.headers())
        .expect("a status")
        .message()
        .to_owned()
}

#[tokio::test]
async fn what_cannot_be_read_is_the_callers_fault() {
    let decode = (Code::InvalidArgument, "MESSAGE_NOT_DECODABLE");
    let cases: [(&str, &'static [u8], _); 7] = [
        ("no message", b"", decode),
        ("half a header", b"\0\0\0", decode),
        ("half a message", b"\0\0\0\0\x05abc", decode),
        ("a flag that is none", b"\x07\0\0\0\0", decode),
        (
            "compressed, with no stated encoding",
            b"\x01\0\0\0\0",
            decode,
        ),
        ("no protobuf", b"\0\0\0\0\x02\xff\xff", decode),
        (
            "a length over the limit",
            b"\0\x7f\xff\xff\xff",
            (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        ),
    ];
    for (case, body, (code, reason)) in cases {
        let response = ask(with_body(CHECK, body)).await;
        assert_eq!(
            verdict(&response),
            (code, reason.into()),
            "{case}: {}",
            text_of(&response)
        );
        assert!(!text_of(&response).is_empty(), "{case}");
        assert_eq!(
            response.headers()["content-type"],
            "application/grpc",
            "{case}"
        );
    }
}

#[tokio::test]
async fn a_method_or_an_encoding_that_is_unknown_is_named() {
    for path in [
        "/grpc.health.v1.Health/Wach",
        "/grpc.health.v1.Healthy/Check",
        "/",
        "/index.html",
        UNARY,
    ] {
        let response = ask(request(path)).await;
        assert_eq!(
            verdict(&response),
            (Code::Unimplemented, "METHOD_UNKNOWN".into()),
            "{path}"
        );
        assert_eq!(
            text_of(&response),
            format!("method {path:?} does not exist")
        );
    }
    let mut gzip = with_body(CHECK, b"\x01\0\0\0\0");
    gzip.headers_mut()
        .insert("grpc-encoding", "gzip".parse().expect("a header"));
    let response = ask(gzip).await;
    assert_eq!(
        verdict(&response),
        (Code::Unimplemented, "ENCODING_UNSUPPORTED".into())
    );
    assert_eq!(response.headers()["grpc-accept-encoding"], "identity");
}

#[tokio::test]
async fn a_request_that_is_not_grpc_is_answered() {
    let mut get = request(CHECK);
    *get.method_mut() = http::Method::GET;
    assert_eq!(
        verdict(&ask(get).await),
        (Code::InvalidArgument, "MESSAGE_NOT_DECODABLE".into())
    );

    let mut json = with_body(CHECK, b"{\"service\":\"\"}");
    json.headers_mut().insert(
        "content-type",
        "application/json".parse().expect("a header"),
    );
    assert_eq!(
        verdict(&ask(json).await),
        (Code::InvalidArgument, "MESSAGE_NOT_DECODABLE".into())
    );
}

#[test]
fn anything_else_keeps_its_code_and_is_named_by_it() {
    for (code, text, judged) in [
        (Code::Internal, "no idea", (Code::Internal, "INTERNAL")),
        (Code::Unknown, "", (Code::Unknown, "UNKNOWN")),
        (
            Code::Unknown,
            "h2 protocol error: error reading a body from connection",
            (Code::InvalidArgument, "MESSAGE_NOT_DECODABLE"),
        ),
        (Code::Unavailable, "", (Code::Unavailable, "UNAVAILABLE")),
        (
            Code::ResourceExhausted,
            "",
            (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"),
        ),
        (
            Code::ResourceExhausted,
            "Error decompressing: size limit, of 9 bytes",
            (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        ),
        (Code::NotFound, "", (Code::NotFound, "NOT_FOUND")),
        (Code::Cancelled, "", (Code::Cancelled, "CANCELLED")),
    ] {
        assert_eq!(judge(code, text), judged, "{code:?} {text:?}");
    }
}

#[tokio::test]
async fn details_that_are_there_stay_and_streams_get_theirs_at_the_end() {
    let (_sender, phase) = watch::channel(Phase::Serving);
    let own = pass(Stack::new(phase.clone()), request(UNARY), |_| async {
        Status::from(Refusal::Bare {
            code: Code::Unimplemented,
            reason: "OWN",
            message: "own".to_owned(),
        })
        .into_http()
    })
    .await;
    assert_eq!(verdict(&own), (Code::Unimplemented, "OWN".into()));

    let stream = pass(Stack::new(phase), request(STREAM), |_| async {
        let mut trailers = HeaderMap::new();
        Status::not_found("gone")
            .add_header(&mut trailers)
            .expect("ASCII");
        Response::new(Body::new(http_body_util::StreamBody::new(TrailersOnly(
            Some(trailers),
        ))))
    })
    .await;
    assert_eq!(
        verdict_of_stream(stream).await,
        (Code::NotFound, "NOT_FOUND".into())
    );
}

/// A stream of nothing but trailers.
struct TrailersOnly(Option<HeaderMap>);

impl tonic::codegen::tokio_stream::Stream for TrailersOnly {
    type Item = Result<http_body::Frame<Bytes>, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(
            self.0
                .take()
                .map(|trailers| Ok(http_body::Frame::trailers(trailers))),
        )
    }
}
