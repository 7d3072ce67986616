//! A client that sends updates as JSON over a persistent HTTP/1.1 connection, with as little work
//! for a call as possible.

use canvas_scheduler::pb::v1;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Fallible;

/// One connection, for one call at a time.
pub(crate) struct Connection {
    stream: TcpStream,
    /// The start of each request, up to the length of the body.
    head: String,
    received: Vec<u8>,
}

/// The fields of a response that are checked.
#[derive(Deserialize)]
struct Response {
    schedule_id: String,
    revision: i64,
}

impl Connection {
    /// Connects to the gateway at `address`, to send updates with a key.
    pub(crate) async fn to(address: &str, key: &str) -> Fallible<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let head = format!(
            "POST /canvas/trigger/schedule/update HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             authorization: Bearer {key}\r\ncontent-length: "
        );
        Ok(Self {
            stream,
            head,
            received: Vec::new(),
        })
    }

    /// Sends the update. The response has only the schedule's id and revision.
    ///
    /// # Errors
    /// The status is not 201, or the response is malformed.
    pub(crate) async fn update(
        &mut self,
        request: &v1::UpdateCanvasScheduleRequest,
    ) -> Result<v1::UpdateCanvasScheduleResponse, String> {
        let schedule = request
            .schedule
            .as_ref()
            .ok_or("an update without a schedule")?;
        // None of the values needs an escape.
        let body = format!(
            r#"{{"canvas_id":"{}","schedule_id":"{}","schedule":{{"time":"{}","in_local_time":{}}}}}"#,
            request.canvas_id, request.schedule_id, schedule.time, schedule.in_local_time
        );
        let text = format!("{}{}\r\n\r\n{body}", self.head, body.len());
        self.stream
            .write_all(text.as_bytes())
            .await
            .map_err(|why| why.to_string())?;
        let body = self.response().await?;
        let response: Response =
            serde_json::from_str(&body).map_err(|why| format!("{why}: {body}"))?;
        let schedule = v1::CanvasSchedule {
            schedule_id: response.schedule_id,
            revision: response.revision,
            ..Default::default()
        };
        Ok(v1::UpdateCanvasScheduleResponse {
            canvas_schedule: Some(schedule),
            ..Default::default()
        })
    }

    /// Reads the next response. Returns its body.
    async fn response(&mut self) -> Result<String, String> {
        self.received.clear();
        loop {
            let read = self
                .stream
                .read_buf(&mut self.received)
                .await
                .map_err(|why| why.to_string())?;
            if read == 0 {
                return Err("the connection was closed".to_owned());
            }
            let text = std::str::from_utf8(&self.received).map_err(|why| why.to_string())?;
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let length = head
                .split("\r\n")
                .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            if body.len() < length.ok_or("a response without a length")? {
                continue;
            }
            return if head.starts_with("HTTP/1.1 201") {
                Ok(body.to_owned())
            } else {
                Err(text.to_owned())
            };
        }
    }
}
