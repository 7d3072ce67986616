//! Publishes each dispatch to a JetStream stream, and waits for its acknowledgement.

use std::error::Error as StdError;
use std::time::Duration;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::{Context, ContextBuilder, Error as JetStreamError};
use async_nats::{ConnectOptions, Event};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::SinkEndpoint;
use super::answer::by_http_status;
use super::{Answer, Answering, Sink, json, tls};
use crate::config::Secret;
use crate::domain::DispatchMessage;
use crate::error::{Error, Violation};

/// How often a silent connection is asked whether it still is one; it is given up after two questions without an answer.
const PING: Duration = Duration::from_secs(10);

/// A JetStream. The connection is made in the background, and made anew after it was lost.
pub struct Nats {
    jetstream: Context,
    /// Whether there is a connection. Without one nothing is published: the client would keep it, and send it much later.
    connected: watch::Receiver<bool>,
    connect_timeout: Duration,
    timeout: Duration,
    subject: String,
}

impl Nats {
    /// # Errors
    /// What is wrong with the settings; a server that is not there is not an error.
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
            .ping_interval(PING)
            .tls_client_config(tls::client_config(reach)?)
            .event_callback(move |event| {
                note(&event, &up);
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
                format!("is of no use to NATS ({why})"),
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

    async fn publish(&self, dispatch: &DispatchMessage) -> Answer {
        let (mut connected, began) = (self.connected.clone(), Instant::now());
        let Ok(Ok(_)) = timeout_at(
            began + self.connect_timeout.min(self.timeout),
            connected.wait_for(|up| *up),
        )
        .await
        else {
            return Answer::NotTaken {
                why: "not connected to NATS".to_owned(),
                retry_after: None,
            };
        };
        let subject = format!("{}.{}", self.subject, word(&dispatch.workspace));
        let mut message = PublishMessage::build()
            .payload(json::body(dispatch).into())
            .message_id(dispatch.id.to_string());
        if let Some(traceparent) = &dispatch.traceparent {
            message = message.header("traceparent", traceparent.as_str());
        }
        let published = async { self.jetstream.send_publish(subject, message).await?.await };
        match timeout_at(began + self.timeout, published).await {
            Ok(Ok(_)) => Answer::Delivered,
            Ok(Err(error)) => answer(&error),
            Err(_) => Answer::Unknown {
                why: format!("no acknowledgement within {:?}", self.timeout),
            },
        }
    }
}

impl Sink for Nats {
    fn deliver<'a>(&'a self, dispatch: &'a DispatchMessage) -> Answering<'a> {
        Box::pin(self.publish(dispatch))
    }
}

/// Notes whether there is a connection, and logs its faults.
fn note(event: &Event, up: &watch::Sender<bool>) {
    match event {
        Event::Connected => {
            up.send_replace(true);
            tracing::info!("connected to NATS");
        }
        Event::Disconnected | Event::Closed => {
            up.send_replace(false);
            tracing::warn!("not connected to NATS");
        }
        other => tracing::warn!(event = %other, "NATS"),
    }
}

/// The answer that a failed publish is. An error that JetStream itself answers says that the message was not kept.
fn answer(error: &PublishError) -> Answer {
    let why = error.kind().to_string();
    match error.kind() {
        PublishErrorKind::StreamNotFound | PublishErrorKind::MaxAckPending => Answer::NotTaken {
            why,
            retry_after: None,
        },
        PublishErrorKind::MaxPayloadExceeded => Answer::Rejected { why },
        PublishErrorKind::Other
        | PublishErrorKind::WrongLastMessageId
        | PublishErrorKind::WrongLastSequence
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe => match error
            .source()
            .and_then(|source| source.downcast_ref::<JetStreamError>())
        {
            Some(told) => {
                let why = format!("JetStream error {} ({})", told.error_code().0, told.code());
                by_http_status(u16::try_from(told.code()).unwrap_or_default(), None, why)
            }
            None => Answer::Unknown { why },
        },
    }
}

/// A workspace as one word of a subject: what may not stand in one is written as `%XX`, byte by byte.
fn word(workspace: &str) -> String {
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
