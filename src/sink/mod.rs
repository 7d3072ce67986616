//! Where dispatches go. The Canvas engine behind a sink owns users and messages; this service owns *when*.

mod answer;
pub mod grpc;
pub mod json;
pub mod log;
pub mod nats;
mod sent;
mod tls;
pub mod webhook;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::SharedClock;
use crate::config::SinkSettings;
use crate::domain::Dispatch;
use crate::error::Error;

/// What a sink says of one dispatch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The consumer has it.
    Delivered,
    /// The consumer certainly has not taken it: as if it had never been fired.
    NotTaken {
        /// For the log and for people; never a secret, never a recipient.
        why: String,
        /// When the consumer asks to be tried again, where it says.
        retry_after: Option<Duration>,
    },
    /// The consumer has refused it for good.
    Rejected {
        /// As above.
        why: String,
    },
    /// The consumer may or may not have it.
    Unknown {
        /// As above.
        why: String,
    },
}

/// The future of an answer.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// Hands dispatches over. An implementation bounds its own time: it answers [`Answer::Unknown`] rather than hang.
pub trait Sink: Send + Sync + 'static {
    /// Hands one dispatch over, once.
    fn deliver<'a>(&'a self, dispatch: &'a Dispatch) -> Answering<'a>;
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
        SinkSettings::Grpc { reach, token, connections } => Arc::new(grpc::Grpc::open(reach, token.as_ref(), *connections)?),
        SinkSettings::Webhook { reach, keys } => Arc::new(webhook::Webhook::open(reach, keys, clock)?),
        SinkSettings::Nats { reach, token, subject } => Arc::new(nats::Nats::open(reach, token.as_ref(), subject).await?),
    })
}
