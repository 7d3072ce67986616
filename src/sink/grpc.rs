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
use super::answer::{bounded, by_http_status, chain};
use super::encoded::{Encoded, TriggerCodec, Waves};
use super::sent::{Sent, Watched};
use super::{Answer, Answering, Sink, tls};
use crate::config::Secret;
use crate::domain::DispatchMessage;
use crate::error::{Error, Violation};

/// A silent connection is asked whether it still is one, and given up when it does not say so.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// The one method of `CanvasTriggerService`. Called past the generated client, which would encode the whole message each time.
const TRIGGER_CANVAS: &str = "/canvas.schedule.v1.CanvasTriggerService/TriggerCanvas";

/// A Canvas engine. Each connection is made when it is first needed, and made anew after it was lost; several of them, since one
/// is one task here and one process there.
pub struct Grpc {
    channels: Vec<Channel>,
    waves: Waves,
    /// Counts the calls, so that they go round the channels.
    calls: AtomicUsize,
    authorization: Option<MetadataValue<Ascii>>,
    timeout: Duration,
}

impl Grpc {
    /// Must be called on a runtime.
    ///
    /// # Errors
    /// What is wrong with the settings; an engine that is not there is not an error.
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
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true);
        let channels = (0..connections)
            .map(|_| endpoint.connect_with_connector_lazy(connector.clone()))
            .collect();
        let authorization = token.map(authorization).transpose()?;
        Ok(Self {
            channels,
            waves: Waves::default(),
            calls: AtomicUsize::new(0),
            authorization,
            timeout: reach.timeout,
        })
    }

    async fn call(&self, dispatch: &DispatchMessage) -> Answer {
        let sent = Sent::default();
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
        // It is ASCII.
        if let Some(traceparent) = dispatch
            .traceparent
            .as_ref()
            .and_then(|value| value.parse().ok())
        {
            request.metadata_mut().insert("traceparent", traceparent);
        }
        match tokio::time::timeout(self.timeout, trigger(transport, request)).await {
            Ok(Ok(_)) => Answer::Delivered,
            Ok(Err(status)) => answer(&status, &sent),
            Err(_) => sent.unanswered(format!("no answer within {:?}", self.timeout)),
        }
    }
}

impl Sink for Grpc {
    fn deliver<'a>(&'a self, dispatch: &'a DispatchMessage) -> Answering<'a> {
        Box::pin(self.call(dispatch))
    }
}

async fn trigger(transport: Transport, request: tonic::Request<Encoded>) -> Result<(), Status> {
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
        Error::Invalid(vec![Violation::new("sink-secret", "does not fit a header")])
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// The answer that a status is. One that came over the wire has no source; any other was made here, because none came.
fn answer(status: &Status, sent: &Sent) -> Answer {
    let why = || format!("gRPC status {:?}", status.code());
    match status.source() {
        Some(source) => match source.downcast_ref::<HttpStatus>() {
            Some(HttpStatus(http)) => by_http_status(
                http.as_u16(),
                None,
                format!("HTTP status {} without a gRPC status", http.as_u16()),
            ),
            None => sent.unanswered(chain(source)),
        },
        None => match status.code() {
            Code::Ok => Answer::Delivered,
            Code::ResourceExhausted | Code::Unavailable => {
                let asked = status
                    .get_details_retry_info()
                    .and_then(|info| info.retry_delay);
                Answer::NotTaken {
                    why: why(),
                    retry_after: bounded(asked),
                }
            }
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::Unauthenticated => Answer::Rejected { why: why() },
            Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::DataLoss => Answer::Unknown { why: why() },
        },
    }
}

/// An answer that is no gRPC: a proxy's, most likely, which tonic would take for the engine's own status.
#[derive(Debug, thiserror::Error)]
#[error("HTTP status {0}")]
struct HttpStatus(StatusCode);

/// One call's way to the engine.
struct Transport {
    channel: Channel,
    sent: Sent,
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
        let request = request.map(|body| Body::new(Watched::new(body, self.sent.clone())));
        let answering = self.channel.call(request);
        Box::pin(async move {
            let response = answering.await?;
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
