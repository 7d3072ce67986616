//! The REST face: the documented JSON over HTTP, each route an RPC. It holds no rule of its own, only JSON to message and back,
//! and status to HTTP.

mod answer;
mod body;
mod bounds;
mod call;
mod docs;
pub mod openapi;
mod read;
mod request;
mod schema;
mod status;

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{get, post};
use http::{Method, StatusCode, Uri};
use prost::Message;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use crate::error::panic::caught;
use crate::layers::body_limit;
use crate::layers::concurrency_limit::ConcurrencyLimit;
use crate::layers::unsent::{self, UnsentResponses};
use crate::layers::violations::TransportViolations;
use crate::pb::v1;
use answer::Answer;
use call::{InProcess, Refused};
use read::{Naming, ReadObject};
use status::{Refusal, refusal, with_headers};

const CREATE: &str = "/canvas.schedule.v1.CanvasScheduleService/CreateCanvasSchedule";
const UPDATE: &str = "/canvas.schedule.v1.CanvasScheduleService/UpdateCanvasSchedule";
const CANCEL: &str = "/canvas.schedule.v1.CanvasScheduleService/CancelCanvasSchedule";
const GET: &str = "/canvas.schedule.v1.CanvasScheduleService/GetCanvasSchedule";
const LIST: &str = "/canvas.schedule.v1.CanvasScheduleService/ListCanvasSchedules";

/// What the routes lead to.
#[derive(Clone)]
struct Server<S> {
    rpc: S,
    in_flight: ConcurrencyLimit,
}

/// The gateway. Cheap to clone.
#[derive(Clone)]
pub struct Rest {
    router: Router,
}

impl Rest {
    /// The routes to `rpc`, which stands within a stack whose requests are counted by `in_flight`.
    pub fn new<S: InProcess>(rpc: S, in_flight: ConcurrencyLimit) -> Self {
        let router = Router::new()
            .route("/canvas/trigger/schedule/create", post(create::<S>))
            .route("/canvas/trigger/schedule/update", post(update::<S>))
            .route("/fr/canvas/trigger/schedule/update", post(update::<S>))
            .route(
                "/campaigns/trigger/schedule/update",
                post(update_campaign::<S>),
            )
            .route("/canvas/trigger/schedule/delete", post(delete::<S>))
            .route("/canvas/trigger/schedule/{schedule_id}", get(read_one::<S>))
            .route("/canvas/trigger/schedule", get(list::<S>))
            .route("/openapi.json", get(async || openapi::response()))
            .route("/docs", get(docs::page))
            .route("/docs/start.js", get(docs::start))
            .route(
                "/docs/swagger-ui.css",
                get(async || docs::of_swagger_ui("swagger-ui.css")),
            )
            .route(
                "/docs/swagger-ui-bundle.js",
                get(async || docs::of_swagger_ui("swagger-ui-bundle.js")),
            )
            .route(
                "/docs/favicon-32x32.png",
                get(async || docs::of_swagger_ui("favicon-32x32.png")),
            )
            .fallback(async || not_found())
            .method_not_allowed_fallback(not_allowed)
            .with_state(Server { rpc, in_flight });
        Self { router }
    }
}

async fn create<S: InProcess>(State(server): State<Server<S>>, request: Request) -> Response {
    posted::<_, v1::CreateCanvasScheduleRequest, answer::Created>(
        server,
        CREATE,
        request,
        Naming::Canvas,
    )
    .await
}

async fn update<S: InProcess>(State(server): State<Server<S>>, request: Request) -> Response {
    posted::<_, v1::UpdateCanvasScheduleRequest, answer::Updated>(
        server,
        UPDATE,
        request,
        Naming::Canvas,
    )
    .await
}

async fn update_campaign<S: InProcess>(
    State(server): State<Server<S>>,
    request: Request,
) -> Response {
    posted::<_, v1::UpdateCanvasScheduleRequest, answer::Updated>(
        server,
        UPDATE,
        request,
        Naming::Campaign,
    )
    .await
}

async fn delete<S: InProcess>(State(server): State<Server<S>>, request: Request) -> Response {
    posted::<_, v1::CancelCanvasScheduleRequest, answer::Deleted>(
        server,
        CANCEL,
        request,
        Naming::Canvas,
    )
    .await
}

async fn read_one<S: InProcess>(State(server): State<Server<S>>, request: Request) -> Response {
    let (head, _) = request.into_parts();
    // As it is: no id needs an escape.
    let schedule_id = head
        .uri
        .path()
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let message = async { Ok(v1::GetCanvasScheduleRequest { schedule_id }) };
    let answer = call::call(
        server.rpc,
        GET,
        &head,
        TransportViolations::default(),
        message,
    )
    .await;
    respond::<answer::CanvasScheduleDetails>(
        answer,
        StatusCode::OK,
        Naming::Canvas,
        &TransportViolations::default(),
    )
}

async fn list<S: InProcess>(State(server): State<Server<S>>, request: Request) -> Response {
    let found = TransportViolations::default();
    let (head, _) = request.into_parts();
    let message: v1::ListCanvasSchedulesRequest = request::query(&head.uri, &found);
    let answer = call::call(server.rpc, LIST, &head, found.clone(), async {
        Ok(message)
    })
    .await;
    respond::<answer::Page>(answer, StatusCode::OK, Naming::Canvas, &found)
}

/// A call whose message is in the body.
async fn posted<S, M, A>(
    server: Server<S>,
    method: &'static str,
    request: Request,
    naming: Naming,
) -> Response
where
    S: InProcess,
    M: Message + ReadObject + 'static,
    A: Answer,
{
    let found = TransportViolations::default();
    let (head, body) = request.into_parts();
    let announced = body::check(&head.headers);
    // What is read counts with what the call itself takes, until that has ended.
    let (body, _weight) = body_limit::limit_body(Body::new(body), &server.in_flight);
    let read = found.clone();
    let message = async move {
        announced?;
        read::message::<M>(&body::whole(body).await?, naming, &read)
    };
    let answer = call::call(server.rpc, method, &head, found.clone(), message).await;
    respond::<A>(answer, StatusCode::CREATED, naming, &found)
}

fn respond<A: Answer>(
    answer: Result<tonic::Response<A::Message>, Refused>,
    success: StatusCode,
    naming: Naming,
    found: &TransportViolations,
) -> Response {
    match answer {
        Ok(answer) => {
            let (metadata, message, _) = answer.into_parts();
            with_headers(answer::json(success, &A::of(message)), metadata.as_ref())
        }
        Err(refused) => refusal(refused, naming, found.violations().len()),
    }
}

fn not_found() -> Response {
    // The path is not repeated: it may hold what was meant for a header.
    answer::json(
        StatusCode::NOT_FOUND,
        &Refusal::new("there is no such path; /openapi.json tells those that there are"),
    )
}

/// The router states the methods in `Allow`.
async fn not_allowed(method: Method) -> Response {
    if method == Method::OPTIONS {
        return answer::json(
            StatusCode::OK,
            &Refusal::new("the header Allow tells the methods of this path"),
        );
    }
    answer::json(
        StatusCode::METHOD_NOT_ALLOWED,
        &Refusal::new("this path has no such method; the header Allow tells those that it has"),
    )
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
            tidy(request.uri_mut());
            let response = caught(pin!(router.oneshot(request))).await;
            let response = match response {
                Ok(Ok(response)) => response,
                Err(text) => panicked(&text),
            };
            Ok(unsent::track_response(
                response.map(Body::new),
                unsent.as_ref(),
            ))
        })
    }
}

/// Slashes that clients add: two at the beginning when their base URL ends in one, one at the end of the path.
fn tidy(uri: &mut Uri) {
    let path = uri.path();
    if !path.contains("//") && (!path.ends_with('/') || path == "/") {
        return;
    }
    let mut tidied: String = path
        .split('/')
        .filter(|part| !part.is_empty())
        .flat_map(|part| ["/", part])
        .collect();
    if let Some(query) = uri.query() {
        tidied.extend(["?", query]);
    }
    // It was a path before, but for one that was all slashes.
    if let Ok(tidied) = Uri::try_from(tidied) {
        *uri = tidied;
    }
}

fn panicked(text: &str) -> Response {
    tracing::error!(text, "the gateway panicked");
    answer::json(
        StatusCode::INTERNAL_SERVER_ERROR,
        &Refusal::new("internal error"),
    )
}

#[cfg(test)]
#[path = "rest_tests.rs"]
mod tests;
