//! An update by the documented JSON on a connection of HTTP/1.1 that is kept, with no more work than it takes.

use canvas_scheduler::pb::v1;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Fallible;

/// One connection, for one call at a time.
pub(crate) struct Connection {
    stream: TcpStream,
    /// What stands before the length of the body in each request.
    head: String,
    received: Vec<u8>,
}

/// What is looked at of an answer.
#[derive(Deserialize)]
struct Answer {
    schedule_id: String,
    revision: i64,
}

impl Connection {
    /// Connects to the gateway at `address`, to update with a key.
    ///
    /// # Errors
    /// Nobody listens there.
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

    /// Makes the update. The answer holds the schedule's id and revision.
    ///
    /// # Errors
    /// Another status than 201, or what is wrong with the answer.
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
        let answer = self.answer().await?;
        let answer: Answer =
            serde_json::from_str(&answer).map_err(|why| format!("{why}: {answer}"))?;
        let schedule = v1::CanvasSchedule {
            schedule_id: answer.schedule_id,
            revision: answer.revision,
            ..Default::default()
        };
        Ok(v1::UpdateCanvasScheduleResponse {
            canvas_schedule: Some(schedule),
            ..Default::default()
        })
    }

    /// The body of the next answer, whose length its head states.
    async fn answer(&mut self) -> Result<String, String> {
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
            if body.len() < length.ok_or("an answer without a length")? {
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
