//! The admin port: metrics for Prometheus, and liveness and readiness for a kubelet. It is always
//! plain HTTP, since probes and scrapers have no certificates; it shows no tenant's data and
//! changes nothing.

use std::net::SocketAddr;
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

use super::listeners::bind;
use super::readiness::{Condition, Readiness};
use crate::error::Error;
use crate::telemetry::metrics::Metrics;

/// Further connections are closed. A kubelet and a few scrapers need far fewer.
const MAX_CONNECTIONS: usize = 64;
/// A connection is closed at this age, even in use; its client connects again.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(60);
/// Timeout of the headers of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failed accept, such as too many open files: the connection stays in the backlog.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The text format of Prometheus.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The bound admin port.
pub(super) struct AdminPort {
    listener: TcpListener,
    addr: SocketAddr,
}

impl AdminPort {
    pub(super) async fn bind(addr: SocketAddr) -> Result<Self, Error> {
        let (listener, addr) = bind("admin-addr", addr).await?;
        Ok(Self { listener, addr })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until the set is dropped.
    pub(super) fn serve(self, metrics: Metrics, readiness: Readiness) -> JoinSet<()> {
        JoinSet::from_iter([serve(self.listener, metrics, readiness)])
    }
}

async fn serve(listener: TcpListener, metrics: Metrics, readiness: Readiness) {
    let routes = routes(metrics, readiness);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let Ok(permit) = permits.clone().try_acquire_owned() else {
                    continue;
                };
                let served = serve_connection(stream, routes.clone());
                connections.spawn(async move {
                    served.await;
                    drop(permit);
                });
            }
            Err(why) => {
                tracing::debug!(%why, "the admin port failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, routes: Router) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024);
    let served = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    if let Ok(Err(why)) = tokio::time::timeout(MAX_CONNECTION_AGE, served).await {
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
                Json(json!({
                    "message": "not found; the admin port serves /metrics, /livez and /readyz",
                })),
            )
        })
}

async fn show_metrics(State(metrics): State<Metrics>) -> Response {
    match metrics.text() {
        Ok(text) => ([(CONTENT_TYPE, PROMETHEUS)], text).into_response(),
        Err(why) => {
            tracing::error!(%why, "cannot encode the metrics");
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
        Json(json!({
            "ready": reasons.is_empty(),
            "reasons": as_json(&reasons),
            "warnings": as_json(&warnings),
        })),
    )
}

fn as_json(conditions: &[Condition]) -> Vec<Value> {
    conditions
        .iter()
        .map(|(name, message)| json!({ "reason": name, "message": message }))
        .collect()
}
