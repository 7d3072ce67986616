use tonic::Code;
use tonic_types::StatusExt;

use super::*;

#[test]
fn only_methods_of_our_package_are_unary() {
    for (path, kind) in [
        (support::UNARY, MethodKind::Unary),
        (support::CHECK, MethodKind::Health),
        (support::STREAM, MethodKind::Stream),
        (
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            MethodKind::Stream,
        ),
        (
            "/canvas.schedule.v2.CanvasScheduleService/GetCanvasSchedule",
            MethodKind::Stream,
        ),
        (
            "/canvas.schedule.v1.CanvasScheduleService/Unknown",
            MethodKind::Unary,
        ),
        ("/", MethodKind::Stream),
    ] {
        assert_eq!(methods::kind_of(path), kind, "{path}");
    }
}

/// As REST calls: a generated client around the stack, without a socket.
#[tokio::test]
async fn a_generated_client_calls_through_the_stack_in_process() {
    let (_phase, phase) = watch::channel(Phase::Serving);
    let (health, service) = tonic_health::server::health_reporter();
    health
        .set_service_status("a", tonic_health::ServingStatus::NotServing)
        .await;
    let wrapped = Stack::new(phase).wrap(tonic::service::Routes::new(service));
    let mut client = tonic_health::pb::health_client::HealthClient::new(wrapped);

    let answer = client
        .check(tonic_health::pb::HealthCheckRequest {
            service: "a".into(),
        })
        .await
        .expect("an answer");
    assert_eq!(
        answer.get_ref().status(),
        tonic_health::pb::health_check_response::ServingStatus::NotServing
    );
    assert_eq!(
        answer.metadata().get("x-request-id").expect("an id").len(),
        16
    );

    let refused = client
        .check(tonic_health::pb::HealthCheckRequest {
            service: "b".into(),
        })
        .await
        .expect_err("unknown");
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(
        refused.get_details_error_info().expect("details").reason,
        "NOT_FOUND"
    );
}

/// The futures of the layers lie side by side, not inside each other.
#[test]
fn a_call_through_the_stack_is_small() {
    let (_phase, phase) = watch::channel(Phase::Serving);
    let mut wrapped = Stack::new(phase).wrap(tower::service_fn(|_: Request<Body>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty())))
    }));
    let call = wrapped.call(support::request(support::UNARY));
    let size = size_of_val(&*call);
    assert!(size < 4096, "{size} bytes");
}
