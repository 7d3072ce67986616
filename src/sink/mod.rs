//! Sinks deliver dispatches to a consumer, as docs/sinks.md documents. The consumer owns users and
//! messages; this service decides only when.

pub mod grpc;
mod grpc_codec;
pub mod json;
pub mod log;
pub mod nats;
mod outcome;
mod send_state;
mod settings;
mod tls;
pub mod webhook;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::clock::SharedClock;
use crate::domain::DispatchMessage;
pub use crate::domain::dispatch_message::DeliveryOutcome;
use crate::error::Error;
pub use settings::{SinkArgs, SinkEndpoint, SinkSettings};

/// The future of a delivery.
pub type DeliveryFuture<'a> = Pin<Box<dyn Future<Output = DeliveryOutcome> + Send + 'a>>;

/// Delivers dispatches. An implementation has its own timeout: it returns
/// [`DeliveryOutcome::Unknown`] rather than hang.
pub trait Sink: Send + Sync + 'static {
    /// Attempts one delivery.
    fn deliver<'a>(&'a self, dispatch: &'a DispatchMessage) -> DeliveryFuture<'a>;
}

/// A sink that several tasks share.
pub type SharedSink = Arc<dyn Sink>;

/// Opens the configured sink. It connects later, so a consumer that is down does not delay the
/// start. Must be called on the runtime that delivers.
pub async fn open(settings: &SinkSettings, clock: SharedClock) -> Result<SharedSink, Error> {
    Ok(match settings {
        SinkSettings::Log => Arc::new(log::Log),
        SinkSettings::Grpc {
            endpoint,
            token,
            connections,
        } => Arc::new(grpc::Grpc::open(endpoint, token.as_ref(), *connections)?),
        SinkSettings::Webhook { endpoint, keys } => {
            Arc::new(webhook::Webhook::open(endpoint, keys, clock)?)
        }
        SinkSettings::Nats {
            endpoint,
            token,
            subject,
        } => Arc::new(nats::Nats::open(endpoint, token.as_ref(), subject).await?),
    })
}
