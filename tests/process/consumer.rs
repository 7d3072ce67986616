//! A consumer of webhooks that keeps what it gets, and fails as the test says.

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

/// How long a slow answer takes.
const MOMENT: Duration = Duration::from_millis(50);

/// What happens to a dispatch that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It is taken: 200.
    Take,
    /// It is taken, and answered a moment later: so that some are always under way.
    TakeSlowly,
    /// It is answered with this status.
    Say(u16),
    /// It is read and never answered.
    Hang,
    /// It is read, and the connection is closed without an answer.
    HalfClose,
}

/// One dispatch that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Came {
    /// Its schedule.
    pub schedule_id: String,
    /// The key to de-duplicate by.
    pub dispatch_id: String,
    /// The number of the attempt.
    pub attempt: u64,
    /// Whether it was taken.
    pub taken: bool,
    /// When, by the clock of the machine.
    pub at: SystemTime,
}

/// A server on a port of its own. Where it refuses connections, nobody listens there.
pub(crate) struct Consumer {
    addr: SocketAddr,
    mode: watch::Sender<Mode>,
    came: Arc<watch::Sender<Vec<Came>>>,
    unanswered: Arc<watch::Sender<usize>>,
    listening: Option<JoinHandle<()>>,
}

impl Consumer {
    /// One that takes everything.
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

    /// Where dispatches go.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.addr)
    }

    /// From now on it does this, also with what it has read already.
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

    /// Takes everything again, at the same place.
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

    /// All that was read until now.
    pub(crate) fn came(&self) -> Vec<Came> {
        self.came.borrow().clone()
    }

    /// Waits until everything that is taken slowly is answered.
    pub(crate) async fn idle(&self) {
        let mut unanswered = self.unanswered.subscribe();
        let idle =
            tokio::time::timeout(PATIENCE, unanswered.wait_for(|unanswered| *unanswered == 0))
                .await;
        assert!(idle.is_ok_and(|idle| idle.is_ok()), "it does not answer");
    }

    /// Waits until what came is `enough`.
    pub(crate) async fn until(&self, enough: impl FnMut(&Vec<Came>) -> bool) -> Vec<Came> {
        let mut came = self.came.subscribe();
        let come = tokio::time::timeout(PATIENCE * 2, came.wait_for(enough))
            .await
            .is_ok_and(|come| come.is_ok());
        assert!(come, "it did not come; {} did", self.came().len());
        self.came()
    }
}

/// Reads requests from a connection and answers as the mode says.
async fn serve(
    mut stream: TcpStream,
    mut mode: watch::Receiver<Mode>,
    came: Arc<watch::Sender<Vec<Came>>>,
    unanswered: Arc<watch::Sender<usize>>,
) {
    let mut read = Vec::new();
    while let Some(body) = next_body(&mut stream, &mut read).await {
        let now = *mode.borrow_and_update();
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        let one = Came {
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
                tokio::time::sleep(MOMENT).await;
                unanswered.send_modify(|count| *count -= 1);
                200
            }
            Mode::Say(status) => status,
            Mode::Hang => return std::future::pending().await,
            Mode::HalfClose => return,
        };
        let answer = format!("HTTP/1.1 {status} Said\r\ncontent-length: 0\r\n\r\n");
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The JSON of the next request; none when the connection has ended.
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
