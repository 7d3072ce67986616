//! The REST gateway: the documented JSON over HTTP, each route an RPC. It only translates, between
//! JSON and messages and from gRPC status to HTTP; it has no rules.

mod call;
mod docs;
mod json_reader;
pub mod openapi;
mod request_body;
mod requests;
mod responses;
mod status;

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use http::{Method, StatusCode, Uri};
use prost::Message;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use crate::error::panic::caught;
use crate::layers::body_limit::BodyLimit;
use crate::layers::unsent::{self, UnsentResponses};
use crate::layers::violations::TransportViolations;
use crate::methods::{self, RpcMethod};
use crate::pb::v1;
use call::{CallError, InProcess};
use json_reader::{CanvasIdName, FromJsonObject};
use responses::{
    CreateResponse, DeleteResponse, GetResponse, ListResponse, ResponseBody, UpdateResponse,
};
use status::{ErrorBody, error_response, with_headers};

/// The service that the route handlers call.
#[derive(Clone)]
struct Backend<S> {
    rpc: S,
    bodies: BodyLimit,
}

/// The gateway. Cheap to clone.
#[derive(Clone)]
pub struct Rest {
    router: Router,
}

impl Rest {
    /// Routes to `rpc`, which is inside layers that limit the bytes of requests with `bodies`.
    pub fn new<S: InProcess>(rpc: S, bodies: BodyLimit) -> Self {
        let mut router = Router::new();
        for (method, handler) in [
            post_rpc::<S, v1::CreateCanvasScheduleRequest, CreateResponse>(&methods::CREATE),
            post_rpc::<S, v1::UpdateCanvasScheduleRequest, UpdateResponse>(&methods::UPDATE),
            post_rpc::<S, v1::CancelCanvasScheduleRequest, DeleteResponse>(&methods::CANCEL),
            (&methods::GET, get(get_one::<S>)),
            (&methods::LIST, get(list::<S>)),
        ] {
            for route in method.routes {
                router = router.route(route, handler.clone());
            }
        }
        let router = router
            .with_state(Backend { rpc, bodies })
            .merge(documentation())
            .fallback(async || not_found())
            .method_not_allowed_fallback(method_not_allowed);
        Self { router }
    }
}

/// The OpenAPI description and the page that renders it.
fn documentation() -> Router {
    let file = |name: &'static str| get(async move || docs::swagger_ui_file(name));
    Router::new()
        .route("/openapi.json", get(async || openapi::response()))
        .route("/docs", get(docs::page))
        .route("/docs/start.js", get(docs::start_script))
        .route("/docs/swagger-ui.css", file("swagger-ui.css"))
        .route("/docs/swagger-ui-bundle.js", file("swagger-ui-bundle.js"))
        .route("/docs/favicon-32x32.png", file("favicon-32x32.png"))
}

/// The handler of an RPC whose message is the body.
fn post_rpc<S, M, A>(method: &'static RpcMethod) -> (&'static RpcMethod, MethodRouter<Backend<S>>)
where
    S: InProcess,
    M: Message + FromJsonObject + 'static,
    A: ResponseBody + 'static,
{
    let handler = post(async move |State(backend), request| {
        call_with_body::<S, M, A>(backend, method, request).await
    });
    (method, handler)
}

async fn call_with_body<S, M, A>(
    backend: Backend<S>,
    method: &'static RpcMethod,
    request: Request,
) -> Response
where
    S: InProcess,
    M: Message + FromJsonObject + 'static,
    A: ResponseBody,
{
    let violations = TransportViolations::default();
    let (parts, body) = request.into_parts();
    let canvas_id = CanvasIdName::of_path(parts.uri.path());
    let headers_checked = request_body::check_headers(&parts.headers);
    // The buffered bytes count against the limit until the call ends.
    let (body, _bytes) = backend.bodies.count(Body::new(body));
    let collected = violations.clone();
    let message = async move {
        headers_checked?;
        json_reader::message::<M>(&request_body::read(body).await?, canvas_id, &collected)
    };
    let result = call::call(backend.rpc, method, &parts, violations.clone(), message).await;
    respond::<A>(result, StatusCode::CREATED, canvas_id, &violations)
}

async fn get_one<S: InProcess>(State(backend): State<Backend<S>>, request: Request) -> Response {
    let violations = TransportViolations::default();
    let (parts, _) = request.into_parts();
    // Not decoded: no valid id needs percent-encoding.
    let schedule_id = parts.uri.path().rsplit('/').next().unwrap_or_default();
    let message = v1::GetCanvasScheduleRequest {
        schedule_id: schedule_id.to_owned(),
    };
    let message = async { Ok(message) };
    let result = call::call(
        backend.rpc,
        &methods::GET,
        &parts,
        violations.clone(),
        message,
    )
    .await;
    respond::<GetResponse>(result, StatusCode::OK, CanvasIdName::CanvasId, &violations)
}

async fn list<S: InProcess>(State(backend): State<Backend<S>>, request: Request) -> Response {
    let violations = TransportViolations::default();
    let (parts, _) = request.into_parts();
    let message: v1::ListCanvasSchedulesRequest = requests::from_query(&parts.uri, &violations);
    let message = async { Ok(message) };
    let result = call::call(
        backend.rpc,
        &methods::LIST,
        &parts,
        violations.clone(),
        message,
    )
    .await;
    respond::<ListResponse>(result, StatusCode::OK, CanvasIdName::CanvasId, &violations)
}

fn respond<A: ResponseBody>(
    result: Result<tonic::Response<A::Message>, CallError>,
    success: StatusCode,
    canvas_id: CanvasIdName,
    violations: &TransportViolations,
) -> Response {
    match result {
        Ok(response) => {
            let (metadata, message, _) = response.into_parts();
            let response = responses::json(success, &A::from_message(message));
            with_headers(response, metadata.as_ref())
        }
        Err(error) => error_response(error, canvas_id, violations.violations().len()),
    }
}

fn not_found() -> Response {
    // The message does not repeat the path, which may contain a secret meant for a header.
    responses::json(
        StatusCode::NOT_FOUND,
        &ErrorBody::new("path not found; /openapi.json lists all paths"),
    )
}

/// The router adds the header `Allow`.
async fn method_not_allowed(method: Method) -> Response {
    let (status, message) = if method == Method::OPTIONS {
        (
            StatusCode::OK,
            "the header Allow lists the methods of this path",
        )
    } else {
        (
            StatusCode::METHOD_NOT_ALLOWED,
            "method not allowed; the header Allow lists the methods of this path",
        )
    };
    responses::json(status, &ErrorBody::new(message))
}

impl Service<http::Request<Body>> for Rest {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let router = self.router.clone();
        Box::pin(async move {
            let unsent = request.extensions().get::<Arc<UnsentResponses>>().cloned();
            let mut request = request.map(axum::body::Body::new);
            normalize_slashes(request.uri_mut());
            let response = match caught(pin!(router.oneshot(request))).await {
                Ok(Ok(response)) => response,
                Err(panic) => {
                    tracing::error!(panic, "the gateway panicked");
                    responses::internal_error()
                }
            };
            Ok(unsent::track_response(
                response.map(Body::new),
                unsent.as_ref(),
            ))
        })
    }
}

/// Removes the slashes that clients add: a doubled one when their base URL ends in a slash, and one
/// at the end of the path.
fn normalize_slashes(uri: &mut Uri) {
    let path = uri.path();
    if !path.contains("//") && (!path.ends_with('/') || path == "/") {
        return;
    }
    let mut normalized: String = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .flat_map(|segment| ["/", segment])
        .collect();
    if let Some(query) = uri.query() {
        normalized.extend(["?", query]);
    }
    // Parsing fails only when the path was nothing but slashes.
    if let Ok(normalized) = Uri::try_from(normalized) {
        *uri = normalized;
    }
}

#[cfg(test)]
#[path = "rest_tests.rs"]
mod tests;
