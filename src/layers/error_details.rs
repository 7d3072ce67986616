//! Adds `google.rpc.ErrorInfo` to the errors that have none: those that tonic makes before a
//! handler sees the request. Where tonic's code blames the server for the caller's mistake, the
//! code changes too.

use std::pin::Pin;

use http::{HeaderMap, Response};
use tonic::body::Body;
use tonic::{Code, Status};

use super::{Call, body};
use crate::status::{Refusal, code_name};

/// How the texts of tonic 0.14 begin when a request cannot be read: framing, compression, the
/// message in tonic's own services (ours decode with `pb::codec`), and a connection or stream that
/// breaks while the request is read.
const UNREADABLE: [&str; 6] = [
    "protocol error: received message with ",
    "Error decompressing: ",
    "Unexpected EOF decoding stream.",
    "Missing request message.",
    "failed to decode Protobuf message",
    "h2 protocol error: ",
];

/// The response of `inner`; an error without details gets them.
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
    let refusal = if bare.message().is_empty() && reason == "METHOD_UNKNOWN" {
        Refusal::MethodUnknown(path.to_owned())
    } else {
        let message = bare.message().to_owned();
        Refusal::Bare {
            code,
            reason,
            message,
        }
    };
    // This fails only for a text that does not fit a header, and the text came from one; the bare
    // status then remains.
    let _written = Status::from(refusal).add_header(headers);
}

/// The code and the reason that a bare status of tonic should have.
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
        code => (code, code_name(code)),
    }
}

#[cfg(test)]
#[path = "error_details_tests.rs"]
mod tests;
