//! Calls an RPC for a REST request: in process, through the same layers as a gRPC call, with
//! tonic's client.
//!
//! The message is read from the body while the layers run, that is, after they have authenticated
//! the caller, counted the call and set its deadline. So the service never reads the body of a
//! caller without a key, and an unreadable body is a call with an unreadable message, as in gRPC.
//! The methods of the generated client take a finished message; this module calls the method
//! underneath them.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::sync::{Arc, OnceLock};

use futures_util::{StreamExt, stream};
use http::header::{AUTHORIZATION, HeaderName};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response};
use prost::{Message, Name};
use tonic::Status;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::server::TcpConnectInfo;
use tower::Service;

use super::request_body::RequestError;
use crate::layers::violations::TransportViolations;
use crate::methods::RpcMethod;
use crate::pb::codec::Codec;

/// The request headers that the layers read.
const PASSED_HEADERS: [HeaderName; 4] = [
    AUTHORIZATION,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// The gRPC service inside its layers, called in process.
pub trait InProcess:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> InProcess for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Why a call has no response.
pub(super) enum CallError {
    /// The RPC failed.
    Status(Status),
    /// No message could be read from the request. The metadata are those of the RPC's response.
    Request(RequestError, MetadataMap),
}

/// Calls `method` with the message that `message` reads from the request with these `parts`.
/// Reading adds to `violations`.
pub(super) async fn call<S, M, A>(
    service: S,
    method: &'static RpcMethod,
    parts: &Parts,
    violations: TransportViolations,
    message: impl Future<Output = Result<M, RequestError>> + Send + 'static,
) -> Result<tonic::Response<A>, CallError>
where
    S: InProcess,
    M: Message + Default + 'static,
    A: Message + Name + Default + 'static,
{
    let request_error = Arc::new(OnceLock::new());
    let kept_error = request_error.clone();
    // After an error the stream ends without a message.
    let messages = stream::once(async move {
        let message = message.await;
        message.map_err(|error| kept_error.set(error)).ok()
    })
    .filter_map(ready);
    let metadata = passed_headers(&parts.headers);
    let mut request = tonic::Request::from_parts(metadata, tonic::Extensions::new(), messages);
    request.extensions_mut().insert(violations);
    if let Some(peer) = parts.extensions.get::<TcpConnectInfo>() {
        request.extensions_mut().insert(peer.clone());
    }
    let response = Grpc::new(service)
        .client_streaming(
            request,
            PathAndQuery::from_static(method.path),
            Codec::<M, A>::default(),
        )
        .await;
    response.map_err(|mut status| match request_error.get() {
        Some(error) => CallError::Request(error.clone(), std::mem::take(status.metadata_mut())),
        None => CallError::Status(status),
    })
}

/// Every value of the headers that the layers read: they also reject duplicates.
fn passed_headers(headers: &HeaderMap) -> MetadataMap {
    let mut passed = HeaderMap::new();
    for name in PASSED_HEADERS {
        for value in headers.get_all(&name) {
            passed.append(name.clone(), value.clone());
        }
    }
    MetadataMap::from_headers(passed)
}
