//! Where dispatches go. The Canvas engine behind a sink owns users and messages; this service owns *when*.

mod answer;
mod encoded;
pub mod grpc;
pub mod json;
pub mod log;
pub mod nats;
mod sent;
mod settings;
mod tls;
pub mod webhook;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::clock::SharedClock;
use crate::domain::DispatchMessage;
pub use crate::domain::dispatch_message::Answer;
use crate::error::Error;
pub use settings::{SinkArgs, SinkEndpoint, SinkSettings};

/// The future of an answer.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// Hands dispatches over. An implementation bounds its own time: it answers [`Answer::Unknown`] rather than hang.
pub trait Sink: Send + Sync + 'static {
    /// Hands one dispatch over, once.
    fn deliver<'a>(&'a self, dispatch: &'a DispatchMessage) -> Answering<'a>;
}

/// A sink that many workers share.
pub type SharedSink = Arc<dyn Sink>;

/// Makes the sink that is asked for. Nothing is connected yet: a consumer that is down holds up no start. Must be called on the
/// runtime that delivers.
///
/// # Errors
/// What is wrong with the settings.
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
