//! The admin port: metrics for Prometheus, and what a kubelet asks. Always plain HTTP, since probes and scrapers come without
//! certificates; it shows nothing of a tenant and changes nothing.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::readiness::{Condition, Readiness};
use crate::telemetry::metrics::Metrics;

/// Connections at once; one more is closed. A kubelet and a few scrapers need far fewer.
const CONNECTIONS_MOST: usize = 64;
/// How long a connection lives, whatever it does: whoever still needs one makes another.
const CONNECTION_MOST: Duration = Duration::from_secs(60);
/// How long the headers of a request may take.
const HEADERS_MOST: Duration = Duration::from_secs(5);
/// After a fault of accept, such as too many open files: the connection stays in the backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The text format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves for as long as it is polled.
pub(super) async fn serve(listener: TcpListener, metrics: Metrics, readiness: Readiness) {
    let routes = routes(metrics, readiness);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MOST));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(place) = places.clone().try_acquire_owned() else {
                    continue;
                };
                let conversation = converse(stream, routes.clone());
                connections.spawn(async move {
                    conversation.await;
                    drop(place);
                });
            }
            Err(why) => {
                tracing::debug!(%why, "the admin port cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, routes: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADERS_MOST)
        .max_buf_size(16 * 1024);
    let conversation =
        http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    if let Ok(Err(why)) = tokio::time::timeout(CONNECTION_MOST, conversation).await {
        tracing::debug!(%why, "a connection to the admin port failed");
    }
}

fn routes(metrics: Metrics, readiness: Readiness) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics).with_state(metrics))
        .route("/readyz", get(show_readiness).with_state(readiness))
        .route("/livez", get(|| async { Json(json!({ "live": true })) }))
        .fallback(|| async {
            (
                StatusCode::NOT_FOUND,
                Json(json!({ "message": "there are /metrics, /livez and /readyz" })),
            )
        })
}

async fn show_metrics(State(metrics): State<Metrics>) -> Response {
    match metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, PROMETHEUS)], text).into_response(),
        Err(why) => {
            tracing::error!(%why, "the metrics cannot be written");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                Json(json!({ "message": "internal error" })),
            )
                .into_response()
        }
    }
}

async fn show_readiness(State(readiness): State<Readiness>) -> (StatusCode, Json<Value>) {
    let (reasons, warnings) = (readiness.reasons(), readiness.warnings());
    let code = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        code,
        Json(
            json!({ "ready": reasons.is_empty(), "reasons": told(&reasons), "warnings": told(&warnings) }),
        ),
    )
}

fn told(all: &[Condition]) -> Vec<Value> {
    all.iter()
        .map(|(name, message)| json!({ "reason": name, "message": message }))
        .collect()
}
