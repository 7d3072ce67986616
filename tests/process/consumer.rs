//! A webhook consumer that records what it receives and fails as the test sets.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::postgres::ports;
use super::server::PATIENCE;

/// The delay of a slow answer.
const SLOW_ANSWER: Duration = Duration::from_millis(50);

/// How the consumer handles a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Accept it with 200.
    Take,
    /// Accept it, and answer after [`SLOW_ANSWER`], so that some are always in flight.
    TakeSlowly,
    /// Answer with this status.
    Say(u16),
    /// Read it and never answer.
    Hang,
    /// Read it and close the connection without an answer.
    HalfClose,
}

/// A dispatch that the consumer has read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    /// Its schedule.
    pub schedule_id: String,
    /// The key to de-duplicate by.
    pub dispatch_id: String,
    /// The number of the attempt.
    pub attempt: u64,
    /// Whether the consumer accepted it.
    pub taken: bool,
    /// When it arrived, by the machine's clock.
    pub at: SystemTime,
}

/// A server on one port. While it refuses connections, nothing listens on the port.
pub(crate) struct Consumer {
    addr: SocketAddr,
    mode: watch::Sender<Mode>,
    came: Arc<watch::Sender<Vec<Received>>>,
    unanswered: Arc<watch::Sender<usize>>,
    listening: Option<JoinHandle<()>>,
}

impl Consumer {
    /// Starts one that accepts everything.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, ports::lasting().unwrap()))
            .await
            .unwrap();
        let (addr, mode, came) = (
            listener.local_addr().unwrap(),
            watch::Sender::new(Mode::Take),
            Arc::new(watch::Sender::new(vec![])),
        );
        let mut consumer = Self {
            addr,
            mode,
            came,
            unanswered: Arc::default(),
            listening: None,
        };
        consumer.listen(listener);
        consumer
    }

    /// The URL for dispatches.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// Sets the mode, also for requests that it has read already.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Closes the port and all connections.
    pub(crate) async fn refuse(&mut self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
            let _ended = listening.await;
        }
    }

    /// Accepts everything again, on the same port.
    pub(crate) async fn recover(&mut self) {
        self.set(Mode::Take);
        if self.listening.is_none() {
            let listener = TcpListener::bind(self.addr).await.unwrap();
            self.listen(listener);
        }
    }

    fn listen(&mut self, listener: TcpListener) {
        let (mode, came, unanswered) = (
            self.mode.subscribe(),
            self.came.clone(),
            self.unanswered.clone(),
        );
        self.listening = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(
                    stream,
                    mode.clone(),
                    came.clone(),
                    unanswered.clone(),
                ));
                while connections.try_join_next().is_some() {}
            }
        }));
    }

    /// Everything that it has read so far.
    pub(crate) fn came(&self) -> Vec<Received> {
        self.came.borrow().clone()
    }

    /// Waits until every slow answer is sent.
    pub(crate) async fn idle(&self) {
        let mut unanswered = self.unanswered.subscribe();
        let idle =
            tokio::time::timeout(PATIENCE, unanswered.wait_for(|unanswered| *unanswered == 0))
                .await;
        assert!(
            idle.is_ok_and(|idle| idle.is_ok()),
            "a slow answer was never sent"
        );
    }

    /// Waits until the received dispatches are `enough`.
    pub(crate) async fn until(&self, enough: impl FnMut(&Vec<Received>) -> bool) -> Vec<Received> {
        let mut came = self.came.subscribe();
        let come = tokio::time::timeout(PATIENCE * 2, came.wait_for(enough))
            .await
            .is_ok_and(|come| come.is_ok());
        assert!(come, "not enough arrived; {} did", self.came().len());
        self.came()
    }
}

/// Reads requests from a connection and answers them by the mode.
async fn serve(
    mut stream: TcpStream,
    mut mode: watch::Receiver<Mode>,
    came: Arc<watch::Sender<Vec<Received>>>,
    unanswered: Arc<watch::Sender<usize>>,
) {
    let mut read = Vec::new();
    while let Some(body) = next_body(&mut stream, &mut read).await {
        let now = *mode.borrow_and_update();
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        let one = Received {
            schedule_id: text("schedule_id"),
            dispatch_id: text("dispatch_id"),
            attempt: body["attempt"].as_u64().unwrap(),
            taken: matches!(now, Mode::Take | Mode::TakeSlowly),
            at: SystemTime::now(),
        };
        came.send_modify(|all| all.push(one));
        let status = match now {
            Mode::Take => 200,
            Mode::TakeSlowly => {
                unanswered.send_modify(|count| *count += 1);
                tokio::time::sleep(SLOW_ANSWER).await;
                unanswered.send_modify(|count| *count -= 1);
                200
            }
            Mode::Say(status) => status,
            Mode::Hang => return std::future::pending().await,
            Mode::HalfClose => return,
        };
        let answer = format!("HTTP/1.1 {status} Status\r\ncontent-length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The JSON of the next request, or `None` once the connection has ended.
async fn next_body(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<Value> {
    loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&read[..end]).to_lowercase();
            let length = head
                .lines()
                .find_map(|line| {
                    line.strip_prefix("content-length:")?
                        .trim()
                        .parse::<usize>()
                        .ok()
                })
                .unwrap();
            if read.len() >= end + 4 + length {
                let body = serde_json::from_slice(&read[end + 4..end + 4 + length]).unwrap();
                read.drain(..end + 4 + length);
                return Some(body);
            }
        }
        let mut more = [0; 16 * 1024];
        match stream.read(&mut more).await {
            Ok(n) if n > 0 => read.extend_from_slice(&more[..n]),
            _ => return None,
        }
    }
}
