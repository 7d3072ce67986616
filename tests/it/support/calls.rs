//! Short forms for requests, and errors as tests compare them.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes};
use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::canvas_schedule_service_client::CanvasScheduleServiceClient;
use hyper::body::Incoming;
use hyper::client::conn::http2::handshake;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use prost_types::value::Kind as ValueKind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::Value;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt;

/// An instant.
pub(crate) fn at(time: &str) -> Option<v1::Schedule> {
    Some(v1::Schedule {
        time: time.to_owned(),
        ..Default::default()
    })
}

/// A wall-clock time in each zone.
pub(crate) fn local(time: &str) -> Option<v1::Schedule> {
    Some(v1::Schedule {
        time: time.to_owned(),
        in_local_time: true,
        at_optimal_time: false,
    })
}

/// A local day.
pub(crate) fn optimal(time: &str) -> Option<v1::Schedule> {
    Some(v1::Schedule {
        time: time.to_owned(),
        in_local_time: false,
        at_optimal_time: true,
    })
}

/// A request to create a broadcast.
pub(crate) fn create(
    canvas_id: &str,
    schedule: Option<v1::Schedule>,
) -> v1::CreateCanvasScheduleRequest {
    v1::CreateCanvasScheduleRequest {
        canvas_id: canvas_id.to_owned(),
        schedule,
        broadcast: true,
        ..Default::default()
    }
}

/// A request to update a schedule.
pub(crate) fn update(
    of: &v1::CanvasSchedule,
    schedule: Option<v1::Schedule>,
) -> v1::UpdateCanvasScheduleRequest {
    v1::UpdateCanvasScheduleRequest {
        schedule_id: of.schedule_id.clone(),
        ..update_of_canvas(&of.canvas_id, schedule)
    }
}

/// A request to update the open schedule of a Canvas, without an id.
pub(crate) fn update_of_canvas(
    canvas_id: &str,
    schedule: Option<v1::Schedule>,
) -> v1::UpdateCanvasScheduleRequest {
    v1::UpdateCanvasScheduleRequest {
        canvas_id: canvas_id.to_owned(),
        schedule,
        ..Default::default()
    }
}

/// A request to cancel a schedule.
pub(crate) fn cancel(of: &v1::CanvasSchedule) -> v1::CancelCanvasScheduleRequest {
    v1::CancelCanvasScheduleRequest {
        canvas_id: of.canvas_id.clone(),
        schedule_id: of.schedule_id.clone(),
        ..Default::default()
    }
}

/// A recipient with an external user id.
pub(crate) fn user(id: &str) -> v1::Recipient {
    v1::Recipient {
        identifier: Some(v1::recipient::Identifier::ExternalUserId(id.to_owned())),
        ..Default::default()
    }
}

/// The same with a time zone.
pub(crate) fn user_in(id: &str, zone: &str) -> v1::Recipient {
    v1::Recipient {
        attributes: Some(object(serde_json::json!({ "time_zone": zone }))),
        ..user(id)
    }
}

/// A JSON object as a protobuf `Struct`.
pub(crate) fn object(json: Value) -> Struct {
    let Value::Object(fields) = json else {
        panic!("{json} is not an object")
    };
    Struct {
        fields: fields
            .into_iter()
            .map(|(key, value)| (key, proto(value)))
            .collect(),
    }
}

fn proto(json: Value) -> ProtoValue {
    let kind = match json {
        Value::Null => ValueKind::NullValue(0),
        Value::Bool(flag) => ValueKind::BoolValue(flag),
        Value::Number(number) => ValueKind::NumberValue(number.as_f64().expect("a double")),
        Value::String(text) => ValueKind::StringValue(text),
        Value::Array(list) => ValueKind::ListValue(ListValue {
            values: list.into_iter().map(proto).collect(),
        }),
        object @ Value::Object(_) => ValueKind::StructValue(self::object(object)),
    };
    ProtoValue { kind: Some(kind) }
}

/// The schedule in an answer.
pub(crate) fn schedule_of(answer: &v1::UpdateCanvasScheduleResponse) -> &v1::CanvasSchedule {
    answer.canvas_schedule.as_ref().expect("a schedule")
}

/// The time of a schedule.
pub(crate) fn time_of(schedule: &v1::CanvasSchedule) -> &str {
    &schedule.schedule.as_ref().expect("a schedule").time
}

/// The parts of an error that callers act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub code: Code,
    pub reason: String,
    /// The fields of the BadRequest detail, sorted.
    pub fields: Vec<String>,
    pub metadata: BTreeMap<String, String>,
    pub message: String,
}

/// The error of a refused call.
pub(crate) fn refusal<T: Debug>(answer: Result<T, Status>) -> Refusal {
    let status = answer.expect_err("the call must be refused");
    let details = status.get_error_details();
    let info = details
        .error_info()
        .unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "canvas-scheduler", "{status:?}");
    let violations = details
        .bad_request()
        .map(|bad| bad.field_violations.as_slice())
        .unwrap_or_default();
    assert!(
        violations.iter().all(|one| !one.description.is_empty()),
        "{status:?}"
    );
    let mut fields: Vec<String> = violations.iter().map(|one| one.field.clone()).collect();
    fields.sort();
    Refusal {
        code: status.code(),
        reason: info.reason.clone(),
        fields,
        metadata: info.metadata.clone().into_iter().collect(),
        message: status.message().to_owned(),
    }
}

/// The error of a refused call, which must have this code and reason.
pub(crate) fn refused<T: Debug>(answer: Result<T, Status>, code: Code, reason: &str) -> Refusal {
    let refusal = refusal(answer);
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (code, reason),
        "{refusal:?}"
    );
    refusal
}

/// One answer of a batch. An error has the status that the update would have on its own.
pub(crate) type Entry = Result<v1::UpdateCanvasScheduleResponse, Status>;

/// Converts a result of a batch.
pub(crate) fn entry(result: v1::BatchUpdateCanvasSchedulesResult) -> Entry {
    match result.result.expect("a result") {
        v1::batch_update_canvas_schedules_result::Result::Response(response) => Ok(response),
        v1::batch_update_canvas_schedules_result::Result::Error(error) => {
            let details = error.details;
            let status = tonic_types::pb::Status {
                code: error.code,
                message: error.message.clone(),
                details,
            };
            Err(Status::with_details(
                Code::from_i32(error.code),
                error.message,
                status.encode_to_vec().into(),
            ))
        }
    }
}

/// A client that leaves deadlines to the server. tonic's channel enforces them itself, with a
/// different code.
pub(crate) async fn bare_client(
    addr: SocketAddr,
    key: &str,
) -> CanvasScheduleServiceClient<impl GrpcService<Body, ResponseBody = Incoming>> {
    let stream = tokio::net::TcpStream::connect(addr)
        .await
        .expect("a connection");
    let (send, connection) = handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    let key: http::HeaderValue = format!("Bearer {key}").parse().expect("ASCII");
    let service = tower::service_fn(move |mut request: http::Request<Body>| {
        request.headers_mut().insert("authorization", key.clone());
        send.clone().send_request(request)
    });
    CanvasScheduleServiceClient::with_origin(
        service,
        format!("http://{addr}").parse().expect("an origin"),
    )
}

/// Calls a method with raw bytes that no generated client would send.
pub(crate) async fn raw<C>(channel: C, method: &str, message: Vec<u8>) -> Result<Bytes, Status>
where
    C: GrpcService<Body>,
    C::ResponseBody: http_body::Body<Data = Bytes> + Send + 'static,
    <C::ResponseBody as http_body::Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C::Error: std::fmt::Display,
{
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready()
        .await
        .map_err(|why| Status::unknown(why.to_string()))?;
    let path = http::uri::PathAndQuery::try_from(method).expect("a path");
    grpc.unary(Request::new(Bytes::from(message)), path, BytesCodec)
        .await
        .map(tonic::Response::into_inner)
}

/// A codec that passes bytes through.
#[derive(Clone, Copy)]
struct BytesCodec;

impl Codec for BytesCodec {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for BytesCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
