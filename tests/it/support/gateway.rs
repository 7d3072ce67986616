//! Requests to the gateway, each on a new connection.

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{TestApp, soon};

/// An answer of the gateway.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// Its body, which must be JSON by its content type.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/json", "{self:?}");
        serde_json::from_str(&self.text).unwrap_or_else(|why| panic!("{why}: {self:?}"))
    }

    /// Its body, after a check of its status.
    pub(crate) fn with(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// The text of a header.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("{name}: {self:?}"))
            .to_str()
            .expect("ASCII")
    }
}

impl TestApp {
    /// The status of a response that may not be text.
    pub(crate) async fn status_of(&self, path: &str) -> u16 {
        self.raw_http(Method::GET, path, &[], Vec::new())
            .await
            .0
            .status
            .as_u16()
    }

    /// Sends a request with exactly these headers.
    pub(crate) async fn http(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Vec<u8>>,
    ) -> Answer {
        let (head, bytes) = self.raw_http(method, path, headers, body.into()).await;
        Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            text: String::from_utf8(bytes.to_vec()).expect("UTF-8"),
        }
    }

    async fn raw_http(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> (Parts, Bytes) {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "gateway");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .expect("a request");
        let stream = TcpStream::connect(self.gateway())
            .await
            .expect("the gateway listens");
        let (mut send, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
        tokio::spawn(connection);
        let (head, body) = soon(send.send_request(request))
            .await
            .expect("an answer")
            .into_parts();
        (head, soon(body.collect()).await.expect("a body").to_bytes())
    }

    /// Posts JSON with the app's key.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_text(path, &body.to_string()).await
    }

    /// The same for any text.
    pub(crate) async fn post_text(&self, path: &str, body: &str) -> Answer {
        self.http(
            Method::POST,
            path,
            &[
                ("content-type", "application/json"),
                ("authorization", &self.bearer()),
            ],
            body,
        )
        .await
    }

    /// Gets with the app's key.
    pub(crate) async fn fetch(&self, path: &str) -> Answer {
        self.http(Method::GET, path, &[("authorization", &self.bearer())], "")
            .await
    }

    /// The app's key as the value of an `authorization` header.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.key)
    }
}
