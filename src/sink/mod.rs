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

use crate::domain::Dispatch;

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
