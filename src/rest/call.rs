//! A REST call is an RPC: the same stack, in process, by tonic's client over the generated server.
//!
//! The message is made of the body while the stack reads it, that is after the caller was let in, counted and given a deadline. So
//! nobody without a key has a body read, and one that cannot be read is a call whose message cannot be read, as with gRPC. The
//! methods of the generated client take a message that is there already; what they call with it is called here.

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

use super::body::Fault;
use crate::layers::violations::TransportViolations;
use crate::pb::codec::Codec;

/// What a header says of the caller; the stack reads it.
const PASSED_ON: [HeaderName; 4] = [
    AUTHORIZATION,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// The server within its stack, in process.
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

/// Why a call has no answer.
pub(super) enum Refused {
    /// The call was refused.
    Status(Status),
    /// No message could be made of the request; with what the call's answer says of limits.
    Fault(Fault, MetadataMap),
}

/// Calls `method` with the `message` that is made of the request whose head is `from`. What is wrong with its fields is in `found`.
pub(super) async fn call<S, M, A>(
    service: S,
    method: &'static str,
    from: &Parts,
    found: TransportViolations,
    message: impl Future<Output = Result<M, Fault>> + Send + 'static,
) -> Result<tonic::Response<A>, Refused>
where
    S: InProcess,
    M: Message + Default + 'static,
    A: Message + Name + Default + 'static,
{
    let fault = Arc::new(OnceLock::new());
    let keep = fault.clone();
    // A fault leaves the call without a message.
    let messages = stream::once(async move { message.await.map_err(|why| keep.set(why)).ok() })
        .filter_map(ready);
    let mut request =
        tonic::Request::from_parts(passed_on(&from.headers), tonic::Extensions::new(), messages);
    request.extensions_mut().insert(found);
    if let Some(peer) = from.extensions.get::<TcpConnectInfo>() {
        request.extensions_mut().insert(peer.clone());
    }
    let answer = Grpc::new(service)
        .client_streaming(
            request,
            PathAndQuery::from_static(method),
            Codec::<M, A>::default(),
        )
        .await;
    answer.map_err(|mut status| match fault.get() {
        Some(fault) => Refused::Fault(fault.clone(), std::mem::take(status.metadata_mut())),
        None => Refused::Status(status),
    })
}

/// Every value of the headers that the stack reads, since it judges by their number too.
fn passed_on(headers: &HeaderMap) -> MetadataMap {
    let mut kept = HeaderMap::new();
    for name in PASSED_ON {
        for value in headers.get_all(&name) {
            kept.append(name.clone(), value.clone());
        }
    }
    MetadataMap::from_headers(kept)
}
