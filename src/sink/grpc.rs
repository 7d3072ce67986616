//! Calls `CanvasTriggerService.TriggerCanvas` of a Canvas engine.

use std::error::Error as StdError;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode};
use hyper_rustls::HttpsConnectorBuilder;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::Service;

use super::SinkEndpoint;
use super::grpc_codec::{EncodedDispatch, TriggerCodec, WaveCache};
use super::outcome::{by_http_status, error_chain, limit_wait};
use super::send_state::{ObservedBody, SendState};
use super::{DeliveryFuture, DeliveryOutcome, Sink, tls};
use crate::config::Secret;
use crate::domain::DispatchMessage;
use crate::error::{Error, Violation};

/// The time between two keep-alive pings.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// A connection without an answer to a ping for this long is closed.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The only method of `CanvasTriggerService`. The generated client is not used: it would encode the
/// whole message each time.
const TRIGGER_CANVAS: &str = "/canvas.schedule.v1.CanvasTriggerService/TriggerCanvas";

/// A Canvas engine. Each connection opens when it is first needed, and reopens after it was lost.
/// One connection is one task here and one process there, so several share the load.
pub struct Grpc {
    channels: Vec<Channel>,
    waves: WaveCache,
    /// The number of calls, by which they take turns on the channels.
    calls: AtomicUsize,
    authorization: Option<MetadataValue<Ascii>>,
    timeout: Duration,
}

impl Grpc {
    /// Must be called on a runtime.
    ///
    /// # Errors
    /// Invalid settings. An engine that cannot be reached is not an error.
    pub fn open(
        reach: &SinkEndpoint,
        token: Option<&Secret<String>>,
        connections: usize,
    ) -> Result<Self, Error> {
        let tls = tls::client_config(reach)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http2()
            .wrap_connector(tls::tcp(reach));
        let endpoint = Endpoint::from(reach.url.0.clone())
            .connect_timeout(reach.connect_timeout)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let channels = (0..connections)
            .map(|_| endpoint.connect_with_connector_lazy(connector.clone()))
            .collect();
        let authorization = token.map(authorization).transpose()?;
        Ok(Self {
            channels,
            waves: WaveCache::default(),
            calls: AtomicUsize::new(0),
            authorization,
            timeout: reach.timeout,
        })
    }

    async fn call(&self, dispatch: &DispatchMessage) -> DeliveryOutcome {
        let sent = SendState::default();
        let turn = self.calls.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        let transport = Transport {
            channel: self.channels[turn].clone(),
            sent: sent.clone(),
        };
        let mut request = tonic::Request::new(self.waves.encode(dispatch));
        request.set_timeout(self.timeout);
        if let Some(authorization) = &self.authorization {
            request
                .metadata_mut()
                .insert("authorization", authorization.clone());
        }
        if let Some(traceparent) = dispatch
            .traceparent
            .as_ref()
            .and_then(|value| value.parse().ok())
        {
            request.metadata_mut().insert("traceparent", traceparent);
        }
        match tokio::time::timeout(self.timeout, trigger(transport, request)).await {
            Ok(Ok(_)) => DeliveryOutcome::Delivered,
            Ok(Err(status)) => outcome(&status, &sent),
            Err(_) => sent.outcome(format!("no answer within {:?}", self.timeout)),
        }
    }
}

impl Sink for Grpc {
    fn deliver<'a>(&'a self, dispatch: &'a DispatchMessage) -> DeliveryFuture<'a> {
        Box::pin(self.call(dispatch))
    }
}

async fn trigger(
    transport: Transport,
    request: tonic::Request<EncodedDispatch>,
) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(transport);
    client.ready().await.map_err(Status::from_error)?;
    client
        .unary(
            request,
            PathAndQuery::from_static(TRIGGER_CANVAS),
            TriggerCodec::default(),
        )
        .await?;
    Ok(())
}

fn authorization(token: &Secret<String>) -> Result<MetadataValue<Ascii>, Error> {
    let value = format!("Bearer {}", token.0).parse::<MetadataValue<Ascii>>();
    let mut value = value.map_err(|_| {
        Error::Invalid(vec![Violation::new(
            "sink-secret",
            "does not fit into a header",
        )])
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The outcome of a status. A status from the wire has no source; any other was built here, because
/// no answer came.
fn outcome(status: &Status, sent: &SendState) -> DeliveryOutcome {
    let why = || format!("gRPC status {:?}", status.code());
    match status.source() {
        Some(source) => match source.downcast_ref::<HttpStatus>() {
            Some(HttpStatus(http)) => by_http_status(
                http.as_u16(),
                None,
                format!("HTTP status {} without a gRPC status", http.as_u16()),
            ),
            None => sent.outcome(error_chain(source)),
        },
        None => match status.code() {
            Code::Ok => DeliveryOutcome::Delivered,
            Code::ResourceExhausted | Code::Unavailable => {
                let requested = status
                    .get_details_retry_info()
                    .and_then(|info| info.retry_delay);
                DeliveryOutcome::NotTaken {
                    why: why(),
                    retry_after: limit_wait(requested),
                }
            }
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => DeliveryOutcome::Rejected { why: why() },
            Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::DataLoss => DeliveryOutcome::Unknown { why: why() },
        },
    }
}

/// An answer without gRPC, most likely of a proxy. tonic would map it to a status as if the engine
/// had sent it.
#[derive(Debug, thiserror::Error)]
#[error("HTTP status {0}")]
struct HttpStatus(StatusCode);

/// The transport of one call.
struct Transport {
    channel: Channel,
    sent: SendState,
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl Service<Request<Body>> for Transport {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.channel.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let request = request.map(|body| Body::new(ObservedBody::new(body, self.sent.clone())));
        let response = self.channel.call(request);
        Box::pin(async move {
            let response = response.await?;
            match response.status() {
                StatusCode::OK => Ok(response),
                other => Err(HttpStatus(other).into()),
            }
        })
    }
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
