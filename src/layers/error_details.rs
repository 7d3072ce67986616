//! Every error carries `google.rpc.ErrorInfo`. Ours do already; the bare ones are tonic's own, made before any handler sees the
//! request, and are rebuilt here with a code that blames whom it should.

use std::pin::Pin;

use http::{HeaderMap, Response};
use tonic::body::Body;
use tonic::{Code, Status};

use super::{Call, body, name_of, refusal};
use crate::error::quote;

/// How the texts of tonic 0.14 begin when a request cannot be read, whatever the code: framing, compression, the message itself
/// in tonic's own services (ours decode by `pb::codec`), and a connection or stream that breaks while the request is read.
const UNREADABLE: [&str; 6] = [
    "protocol error: received message with ",
    "Error decompressing: ",
    "Unexpected EOF decoding stream.",
    "Missing request message.",
    "failed to decode Protobuf message",
    "h2 protocol error: ",
];

/// The answer of `inner`, its error with details.
pub(super) async fn complete<F>(inner: Pin<&mut F>, call: &Call) -> Response<Body>
where
    F: Future<Output = Response<Body>>,
{
    let mut response = inner.await;
    rebuild(response.headers_mut(), call.uri.path());
    if !call.streams() || http_body::Body::is_end_stream(response.body()) {
        return response;
    }
    let uri = call.uri.clone();
    body::see_trailers(response, move |trailers| rebuild(trailers, uri.path()))
}

fn rebuild(headers: &mut HeaderMap, path: &str) {
    let failed = headers
        .get(Status::GRPC_STATUS)
        .is_some_and(|code| code != "0");
    if !failed || headers.contains_key(Status::GRPC_STATUS_DETAILS) {
        return;
    }
    let Some(bare) = Status::from_header_map(headers) else {
        return;
    };
    let (code, reason) = judge(bare.code(), bare.message());
    let rebuilt = if bare.message().is_empty() && reason == "METHOD_UNKNOWN" {
        method_unknown(path)
    } else {
        refusal(code, reason, bare.message())
    };
    // It fails only on a text that cannot stand in a header, and this one just did; the bare status then stands.
    let _written = rebuilt.add_header(headers);
}

/// There is no such method.
pub(super) fn method_unknown(path: &str) -> Status {
    refusal(
        Code::Unimplemented,
        "METHOD_UNKNOWN",
        format!("there is no method {}", quote(path)),
    )
}

fn judge(code: Code, text: &str) -> (Code, &'static str) {
    let unreadable = UNREADABLE.iter().any(|start| text.starts_with(start));
    match code {
        Code::OutOfRange => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        Code::ResourceExhausted if text.starts_with("Error decompressing: size limit") => {
            (code, "MESSAGE_TOO_LARGE")
        }
        Code::Unimplemented if text.starts_with("Content is compressed") => {
            (code, "ENCODING_UNSUPPORTED")
        }
        Code::Unimplemented => (code, "METHOD_UNKNOWN"),
        Code::Internal | Code::Unknown if unreadable => {
            (Code::InvalidArgument, "MESSAGE_NOT_DECODABLE")
        }
        code => (code, name_of(code)),
    }
}

#[cfg(test)]
#[path = "error_details_tests.rs"]
mod tests;
