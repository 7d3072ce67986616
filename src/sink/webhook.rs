//! Posts each dispatch to a URL, signed by the Standard Webhooks scheme.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use http::header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER, USER_AGENT};
use http::{Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use sha2::Sha256;
use tokio::time::{Instant, timeout_at};

use super::SinkEndpoint;
use super::outcome::{by_http_status, error_chain};
use super::send_state::{ObservedBody, SendState};
use super::{DeliveryFuture, DeliveryOutcome, Sink, json, tls};
use crate::clock::SharedClock;
use crate::config::Secret;
use crate::domain::DispatchMessage;
use crate::error::Error;

/// The most bytes that are read of an answer's body, so that the connection can be reused. A longer
/// body closes it.
const MAX_ANSWER_BYTES: usize = 4 * 1024;
/// An idle connection is closed after this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The most idle connections.
const MAX_IDLE_CONNECTIONS: usize = 256;

type WebhookBody = ObservedBody<Full<Bytes>>;

/// A URL that takes dispatches. Redirects are not followed: a signed body goes to the configured
/// URL only.
pub struct Webhook {
    client: Client<HttpsConnector<HttpConnector>, WebhookBody>,
    url: Uri,
    /// Every key signs, so that the consumer can switch to a new key at any time.
    keys: Vec<Hmac<Sha256>>,
    timeout: Duration,
    clock: SharedClock,
}

impl Webhook {
    /// # Errors
    /// Invalid settings. A consumer that cannot be reached is not an error.
    pub fn open(
        reach: &SinkEndpoint,
        keys: &[Secret<Vec<u8>>],
        clock: SharedClock,
    ) -> Result<Self, Error> {
        let tls = tls::client_config(reach)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tls::tcp(reach));
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .build(connector);
        let keys: Result<Vec<_>, _> = keys
            .iter()
            .map(|key| Hmac::new_from_slice(&key.0))
            .collect();
        Ok(Self {
            client,
            url: reach.url.0.clone(),
            keys: keys.map_err(Error::internal)?,
            timeout: reach.timeout,
            clock,
        })
    }

    async fn post(&self, dispatch: &DispatchMessage) -> DeliveryOutcome {
        let (sent, deadline) = (SendState::default(), Instant::now() + self.timeout);
        let request = match self.request(dispatch, sent.clone()) {
            Ok(request) => request,
            Err(why) => return sent.outcome(error_chain(&why)),
        };
        let response = match timeout_at(deadline, self.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(why)) => return sent.outcome(error_chain(&why)),
            Err(_) => return sent.outcome(format!("no answer within {:?}", self.timeout)),
        };
        let (parts, body) = response.into_parts();
        let status = parts.status.as_u16();
        let outcome = by_http_status(
            status,
            retry_after(&parts.headers, self.clock.now()),
            format!("HTTP status {status}"),
        );
        drain(body, deadline).await;
        outcome
    }

    fn request(
        &self,
        dispatch: &DispatchMessage,
        sent: SendState,
    ) -> Result<Request<WebhookBody>, http::Error> {
        let (id, timestamp, body) = (
            dispatch.id.to_string(),
            self.clock.now().timestamp(),
            json::body(dispatch),
        );
        let mut request = Request::post(&self.url);
        if let Some(traceparent) = &dispatch.traceparent {
            request = request.header("traceparent", traceparent);
        }
        request
            .header(CONTENT_TYPE, "application/json")
            .header(
                USER_AGENT,
                concat!("canvas-scheduler/", env!("CARGO_PKG_VERSION")),
            )
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", self.sign(&id, timestamp, &body))
            .body(ObservedBody::new(Full::new(Bytes::from(body)), sent))
    }

    /// The signatures by each key, separated by spaces.
    fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        let sign = |key: &Hmac<Sha256>| {
            let mut mac = key.clone();
            mac.update(format!("{id}.{timestamp}.").as_bytes());
            mac.update(body);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        };
        self.keys.iter().map(sign).collect::<Vec<_>>().join(" ")
    }
}

impl Sink for Webhook {
    fn deliver<'a>(&'a self, dispatch: &'a DispatchMessage) -> DeliveryFuture<'a> {
        Box::pin(self.post(dispatch))
    }
}

/// Reads the body of an answer, up to the maximum, and ignores it: the status alone is the outcome.
async fn drain(body: Incoming, deadline: Instant) {
    let _read = timeout_at(deadline, Limited::new(body, MAX_ANSWER_BYTES).collect()).await;
}

/// The wait that `Retry-After` requests: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let stated = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = stated.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(stated).ok()?;
    Some((date.to_utc() - now).to_std().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = DateTime::parse_from_rfc3339("2026-03-01T12:00:00Z")
            .expect("an instant")
            .to_utc();
        let cases = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 01 Mar 2026 12:00:30 GMT", Some(30)),
            ("Sun, 01 Mar 2026 11:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ];
        for (stated, seconds) in cases {
            let headers = [(RETRY_AFTER, stated.parse().expect("a header"))]
                .into_iter()
                .collect();
            assert_eq!(
                retry_after(&headers, now),
                seconds.map(Duration::from_secs),
                "{stated}"
            );
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
