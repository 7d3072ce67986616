//! A gRPC client with as little work for a call as possible. Like pgbench, the load generator runs
//! on the same processors as the service, so its cost is part of every figure.

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use tokio::net::TcpStream;
use tonic::codegen::http::{HeaderMap, HeaderValue, Request, Uri};

use super::Fallible;

/// The bytes before a message: the compression flag and the length.
pub(crate) const PREFIX: usize = 5;

/// One connection and one method. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Method {
    requests: SendRequest<Bytes>,
    uri: Uri,
    authorization: HeaderValue,
}

impl Method {
    /// Connects to `address`, to call the method at `path` with a key.
    pub(crate) async fn connect(address: &str, path: &str, key: &str) -> Fallible<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(async move {
            // If the connection fails, every call on it returns the error.
            let _result = connection.await;
        });
        let authorization = HeaderValue::try_from(format!("Bearer {key}"))?;
        Ok(Self {
            requests,
            uri: format!("http://{address}{path}").parse()?,
            authorization,
        })
    }

    /// Calls the method.
    ///
    /// # Errors
    /// The status is not OK, or the response is malformed.
    pub(crate) async fn call<T: Message + Default>(
        &self,
        message: &impl Message,
    ) -> Result<T, String> {
        let request = Request::post(self.uri.clone())
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = request
            .header("authorization", self.authorization.clone())
            .body(())
            .map_err(|why| why.to_string())?;
        let mut requests = self
            .requests
            .clone()
            .ready()
            .await
            .map_err(|why| why.to_string())?;
        let (response, mut sending) = requests
            .send_request(request, false)
            .map_err(|why| why.to_string())?;
        sending
            .send_data(framed(message)?, true)
            .map_err(|why| why.to_string())?;
        let (head, mut body) = response.await.map_err(|why| why.to_string())?.into_parts();
        let mut received = BytesMut::new();
        while let Some(piece) = body.data().await {
            let piece = piece.map_err(|why| why.to_string())?;
            body.flow_control()
                .release_capacity(piece.len())
                .map_err(|why| why.to_string())?;
            received.extend_from_slice(&piece);
        }
        let trailers = body.trailers().await.map_err(|why| why.to_string())?;
        // An error without a body has its status in the first headers.
        check_status(trailers.as_ref().unwrap_or(&head.headers))?;
        let message = received
            .get(PREFIX..)
            .ok_or("a response without a message")?;
        T::decode(message).map_err(|why| why.to_string())
    }
}

fn framed(message: &impl Message) -> Result<Bytes, String> {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).map_err(|why| why.to_string())?);
    message.encode(&mut framed).map_err(|why| why.to_string())?;
    Ok(framed.freeze())
}

fn check_status(headers: &HeaderMap) -> Result<(), String> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match text("grpc-status") {
        Some(code) if code == "0" => Ok(()),
        Some(code) => Err(format!(
            "status {code}: {}",
            text("grpc-message").unwrap_or_default()
        )),
        None => Err("a response without a status".to_owned()),
    }
}
