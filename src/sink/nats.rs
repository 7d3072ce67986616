//! Publishes each dispatch to a JetStream stream and waits for the acknowledgement.

use std::error::Error as StdError;
use std::time::Duration;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, ContextBuilder, Error as JetStreamError};
use async_nats::{ConnectOptions, Event};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::SinkEndpoint;
use super::outcome::by_http_status;
use super::{DeliveryFuture, DeliveryOutcome, Sink, json, tls};
use crate::config::Secret;
use crate::domain::DispatchMessage;
use crate::error::{Error, Violation};

/// The time between two pings. The client closes a connection after two pings without an answer.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// A JetStream. The client connects in the background, and reconnects after the connection was
/// lost.
pub struct Nats {
    jetstream: Context,
    /// Whether there is a connection. Without one nothing is published: the client would buffer the
    /// message and send it much later.
    connected: watch::Receiver<bool>,
    connect_timeout: Duration,
    timeout: Duration,
    subject: String,
}

impl Nats {
    /// # Errors
    /// Invalid settings. A server that cannot be reached is not an error.
    pub async fn open(
        reach: &SinkEndpoint,
        token: Option<&Secret<String>>,
        subject: &str,
    ) -> Result<Self, Error> {
        let (up, connected) = watch::channel(false);
        let options = ConnectOptions::new()
            .name("canvas-scheduler")
            .retry_on_initial_connect()
            .connection_timeout(reach.connect_timeout)
            .ping_interval(PING_INTERVAL)
            .tls_client_config(tls::client_config(reach)?)
            .event_callback(move |event| {
                on_event(&event, &up);
                std::future::ready(())
            });
        let options = match token {
            Some(token) => options.token(token.0.clone()),
            None => options,
        };
        let client = options.connect(reach.url.0.to_string()).await;
        let client = client.map_err(|why| {
            Error::Invalid(vec![Violation::new(
                "sink-url",
                format!("is not a valid NATS URL ({why})"),
            )])
        })?;
        let jetstream = ContextBuilder::new()
            .timeout(reach.timeout)
            .ack_timeout(reach.timeout)
            .backpressure_on_inflight(false)
            .build(client);
        let (connect_timeout, timeout) = (reach.connect_timeout, reach.timeout);
        Ok(Self {
            jetstream,
            connected,
            connect_timeout,
            timeout,
            subject: subject.to_owned(),
        })
    }

    async fn publish(&self, dispatch: &DispatchMessage) -> DeliveryOutcome {
        let (mut connected, began) = (self.connected.clone(), Instant::now());
        let Ok(Ok(_)) = timeout_at(
            began + self.connect_timeout.min(self.timeout),
            connected.wait_for(|up| *up),
        )
        .await
        else {
            return DeliveryOutcome::NotTaken {
                why: "not connected to NATS".to_owned(),
                retry_after: None,
            };
        };
        let subject = format!("{}.{}", self.subject, subject_token(&dispatch.workspace));
        let mut message = PublishMessage::build()
            .payload(json::body(dispatch).into())
            .message_id(dispatch.id.to_string());
        if let Some(traceparent) = &dispatch.traceparent {
            message = message.header("traceparent", traceparent.as_str());
        }
        let published = async { self.jetstream.send_publish(subject, message).await?.await };
        match timeout_at(began + self.timeout, published).await {
            Ok(Ok(_)) => DeliveryOutcome::Delivered,
            Ok(Err(error)) => outcome(&error),
            Err(_) => DeliveryOutcome::Unknown {
                why: format!("no acknowledgement within {:?}", self.timeout),
            },
        }
    }
}

impl Sink for Nats {
    fn deliver<'a>(&'a self, dispatch: &'a DispatchMessage) -> DeliveryFuture<'a> {
        Box::pin(self.publish(dispatch))
    }
}

/// Records whether there is a connection, and logs its errors.
fn on_event(event: &Event, up: &watch::Sender<bool>) {
    match event {
        Event::Connected => {
            up.send_replace(true);
            tracing::info!("connected to NATS");
        }
        Event::Disconnected | Event::Closed => {
            up.send_replace(false);
            tracing::warn!("disconnected from NATS; reconnecting");
        }
        other => tracing::warn!(event = %other, "the NATS client reported an event"),
    }
}

/// The outcome of a failed publish. An error from JetStream itself means that the message was not
/// stored.
fn outcome(error: &PublishError) -> DeliveryOutcome {
    let why = error.kind().to_string();
    match error.kind() {
        PublishErrorKind::StreamNotFound | PublishErrorKind::MaxAckPending => {
            DeliveryOutcome::NotTaken {
                why,
                retry_after: None,
            }
        }
        PublishErrorKind::MaxPayloadExceeded => DeliveryOutcome::Rejected { why },
        PublishErrorKind::Other
        | PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe => match error
            .source()
            .and_then(|source| source.downcast_ref::<JetStreamError>())
        {
            Some(error) => {
                let why = format!(
                    "JetStream error {} ({})",
                    error.error_code().0,
                    error.code()
                );
                by_http_status(u16::try_from(error.code()).unwrap_or_default(), None, why)
            }
            None => DeliveryOutcome::Unknown { why },
        },
    }
}

/// A workspace as one token of a subject. Bytes that a token must not contain are written as `%XX`.
fn subject_token(workspace: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    workspace
        .bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

#[cfg(test)]
#[path = "nats_tests.rs"]
mod tests;
