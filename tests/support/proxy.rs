//! A proxy on loopback in front of PostgreSQL. It counts the messages of both directions and
//! injects faults: cut or forgotten connections, slow links, a port that refuses, another server.
//!
//! Include it, after `mod postgres`, with `#[path = ".../support/proxy.rs"] mod proxy;`. It runs in
//! its own thread, so that a test may block while the service uses it. It follows the framing of
//! protocol 3; a connection with TLS passes as it is, without counts and rules.

#![allow(dead_code, reason = "shared: each test binary uses a part of it")]

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as blocking};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufWriter};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Messages that wait for a slow link, in each direction of a connection.
const MAX_UNDERWAY: usize = 4096;
/// Codes of the first message, which has a version otherwise.
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// The direction of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// From the client to the server.
    ToServer,
    /// From the server to the client.
    ToClient,
}

/// A message that the proxy is about to forward.
#[derive(Debug)]
pub(crate) struct Message<'a> {
    /// The number of its connection, from 0 on.
    pub connection: u64,
    /// The application name of its connection, as the server last reported it.
    pub application: &'a str,
    /// The process id of its backend, or 0 before the server has reported it.
    pub backend: u32,
    /// Whether its session is in a transaction, as the server last reported it.
    pub in_transaction: bool,
    /// Its direction.
    pub side: Side,
    /// Its type: the byte of the protocol, or 0 for the startup message.
    pub kind: u8,
    /// The statement that the client last sent on this connection.
    pub statement: &'a str,
}

/// What happens to a message and to its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// The message is forwarded.
    Forward,
    /// Both ends are closed, and the message is lost.
    CutBefore,
    /// The message is forwarded; then both ends are closed.
    CutAfter,
    /// The message and all later ones are lost, and both ends stay open, as after a NAT that forgot
    /// the connection.
    Forget,
}

/// The messages of some connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// From clients.
    pub to_server: u64,
    /// From the server.
    pub to_client: u64,
    /// Answers that are complete (`ReadyForQuery`): one for each round trip.
    pub round_trips: u64,
}

type Rule = Box<dyn FnMut(&Message<'_>) -> Action + Send>;

/// A running proxy. It ends on drop, and closes its connections.
pub(crate) struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// Opens or closes the port, and replies.
struct Command {
    listen: bool,
    reply: blocking::Sender<()>,
}

struct Shared {
    target: AtomicU16,
    delay_us: AtomicU64,
    rule: Mutex<Option<Rule>>,
    /// By application name.
    counts: Mutex<BTreeMap<String, Counts>>,
    opened: AtomicU64,
    /// Connections with a lower number are forgotten at their next message.
    forgotten_below: AtomicU64,
    /// Changes whenever all connections are cut.
    cuts: watch::Sender<u64>,
}

impl Proxy {
    /// Starts one that forwards to this port on loopback.
    pub(crate) fn start(target: u16) -> Self {
        let shared = Arc::new(Shared {
            target: AtomicU16::new(target),
            delay_us: AtomicU64::new(0),
            rule: Mutex::default(),
            counts: Mutex::default(),
            opened: AtomicU64::new(0),
            forgotten_below: AtomicU64::new(0),
            cuts: watch::Sender::new(0),
        });
        let (commands, received) = mpsc::unbounded_channel();
        let (bound, addr) = blocking::channel();
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(accept(of_thread, received, bound));
        });
        Self {
            addr: addr.recv().expect("a port"),
            shared,
            commands,
            thread: Some(thread),
        }
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.addr.port()
    }

    /// The URL of a database behind it.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.addr)
    }

    /// Leads new connections to another port.
    pub(crate) fn lead_to(&self, target: u16) {
        self.shared.target.store(target, Ordering::SeqCst);
    }

    /// Delays each message by this time, as a long link does: several messages may be underway.
    pub(crate) fn delay(&self, delay: Duration) {
        let micros = u64::try_from(delay.as_micros()).expect("a short delay");
        self.shared.delay_us.store(micros, Ordering::SeqCst);
    }

    /// Asks `rule` about each message from now on.
    pub(crate) fn set_rule(&self, rule: impl FnMut(&Message<'_>) -> Action + Send + 'static) {
        *lock(&self.shared.rule) = Some(Box::new(rule));
    }

    /// Forwards every message again.
    pub(crate) fn clear_rule(&self) {
        *lock(&self.shared.rule) = None;
    }

    /// Closes both ends of every connection.
    pub(crate) fn cut_all(&self) {
        self.shared.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Forgets the connections that are open: each loses all that it sends from now on, and stays
    /// open. New connections work.
    pub(crate) fn forget_open(&self) {
        let opened = self.shared.opened.load(Ordering::SeqCst);
        self.shared.forgotten_below.store(opened, Ordering::SeqCst);
    }

    /// Forgets every connection, new ones included, until [`Self::remember`].
    pub(crate) fn forget_all(&self) {
        self.shared
            .forgotten_below
            .store(u64::MAX, Ordering::SeqCst);
    }

    /// Ends [`Self::forget_open`] and [`Self::forget_all`]. A connection that lost a message stays
    /// forgotten.
    pub(crate) fn remember(&self) {
        self.shared.forgotten_below.store(0, Ordering::SeqCst);
    }

    /// Closes the port: new connections are refused.
    pub(crate) fn refuse(&self) {
        self.listen(false);
    }

    /// Opens the port again.
    pub(crate) fn accept(&self) {
        self.listen(true);
    }

    /// The number of connections so far.
    pub(crate) fn opened(&self) -> u64 {
        self.shared.opened.load(Ordering::SeqCst)
    }

    /// The messages so far of the connections whose application name contains this text.
    pub(crate) fn counts(&self, application: &str) -> Counts {
        let mut sum = Counts::default();
        for (_, counts) in lock(&self.shared.counts)
            .iter()
            .filter(|(name, _)| name.contains(application))
        {
            sum.to_server += counts.to_server;
            sum.to_client += counts.to_client;
            sum.round_trips += counts.round_trips;
        }
        sum
    }

    fn listen(&self, listen: bool) {
        let (reply, done) = blocking::channel();
        self.commands
            .send(Command { listen, reply })
            .expect("the proxy runs");
        done.recv().expect("the proxy replies");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The thread ends when its last command sender is gone.
        self.commands = mpsc::unbounded_channel().0;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has printed its message.
            let _ended = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accepts connections until the proxy is dropped.
async fn accept(
    shared: Arc<Shared>,
    mut commands: mpsc::UnboundedReceiver<Command>,
    bound: blocking::Sender<SocketAddr>,
) {
    let (addr, listener) = loop {
        let port = super::postgres::ports::lasting().expect("a free port");
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        // Another process may take the port first.
        if let Ok(listener) = TcpListener::bind(addr).await {
            break (addr, listener);
        }
    };
    let mut listener = Some(listener);
    bound.send(addr).expect("the test waits");
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = accepted => {
                let Ok((client, _)) = accepted else { continue };
                let number = shared.opened.fetch_add(1, Ordering::SeqCst);
                connections.spawn(serve(client, shared.clone(), number));
            }
            command = commands.recv() => {
                let Some(Command { listen, reply }) = command else { return };
                match (listen, &listener) {
                    (false, _) => listener = None,
                    (true, None) => {
                        listener = Some(TcpListener::bind(addr).await.expect("its own port"));
                    }
                    (true, Some(_)) => {}
                }
                // A test that no longer waits has failed.
                let _waits = reply.send(());
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

/// A connection is over.
struct Ended;

/// What both directions of a connection share.
struct Connection {
    number: u64,
    shared: Arc<Shared>,
    forgotten: AtomicBool,
    /// Whether the server answers the client's last message with one byte.
    one_byte: AtomicBool,
    /// Whether the connection is encrypted.
    opaque: AtomicBool,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    application: String,
    backend: u32,
    in_transaction: bool,
    /// The current statement.
    statement: String,
    /// The text of prepared statements, by name.
    prepared: HashMap<Vec<u8>, String>,
}

/// A message with the instant at which it leaves the proxy.
enum Item {
    Bytes(Instant, Vec<u8>),
    End,
}

async fn serve(client: TcpStream, shared: Arc<Shared>, number: u64) {
    let mut cuts = shared.cuts.subscribe();
    let target = shared.target.load(Ordering::SeqCst);
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
        return;
    };
    for stream in [&client, &server] {
        // Fails only if the other end has gone.
        let _set = stream.set_nodelay(true);
    }
    let connection = Connection {
        number,
        shared,
        forgotten: AtomicBool::new(false),
        one_byte: AtomicBool::new(false),
        opaque: AtomicBool::new(false),
        names: Mutex::default(),
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let (requests, queued_requests) = mpsc::channel(MAX_UNDERWAY);
    let (answers, queued_answers) = mpsc::channel(MAX_UNDERWAY);
    let both = async {
        tokio::try_join!(
            read(from_client, requests, Side::ToServer, &connection),
            write(to_server, queued_requests),
            read(from_server, answers, Side::ToClient, &connection),
            write(to_client, queued_answers),
        )
    };
    tokio::select! {
        _ = both => {}
        _ = cuts.changed() => {}
    }
}

/// Reads messages from one end, and queues those that are forwarded.
async fn read(
    mut from: OwnedReadHalf,
    to: mpsc::Sender<Item>,
    side: Side,
    connection: &Connection,
) -> Result<(), Ended> {
    let mut frames = Frames::default();
    loop {
        while let Some(message) = frames.next(side, connection) {
            let action = connection.decide(side, &message);
            let due = Instant::now()
                + Duration::from_micros(connection.shared.delay_us.load(Ordering::SeqCst));
            if matches!(action, Action::Forward | Action::CutAfter) {
                to.send(Item::Bytes(due, message.bytes))
                    .await
                    .map_err(|_| Ended)?;
            }
            if matches!(action, Action::CutBefore | Action::CutAfter) {
                to.send(Item::End).await.map_err(|_| Ended)?;
                // The end of the writer ends the connection.
                return Ok(());
            }
        }
        match from.read_buf(&mut frames.buffer).await {
            Ok(n) if n > 0 => {}
            // The other end never learns that this one has gone.
            _ if connection.is_forgotten() => return std::future::pending().await,
            _ => {
                to.send(Item::End).await.map_err(|_| Ended)?;
                return Ok(());
            }
        }
    }
}

/// Writes the queued messages to one end.
async fn write(to: OwnedWriteHalf, mut queued: mpsc::Receiver<Item>) -> Result<(), Ended> {
    let mut to = BufWriter::with_capacity(64 * 1024, to);
    while let Some(item) = queued.recv().await {
        match item {
            Item::Bytes(due, bytes) => {
                if due > Instant::now() {
                    to.flush().await.map_err(|_| Ended)?;
                    tokio::time::sleep_until(due).await;
                }
                to.write_all(&bytes).await.map_err(|_| Ended)?;
                if queued.is_empty() {
                    to.flush().await.map_err(|_| Ended)?;
                }
            }
            Item::End => {
                to.shutdown().await.map_err(|_| Ended)?;
                return Err(Ended);
            }
        }
    }
    // A reader returns after `End` only.
    Err(Ended)
}

struct Frame {
    kind: u8,
    bytes: Vec<u8>,
}

/// The messages of one direction.
#[derive(Default)]
struct Frames {
    buffer: Vec<u8>,
    started: bool,
}

impl Frames {
    /// Takes the next complete message out of the buffer.
    fn next(&mut self, side: Side, connection: &Connection) -> Option<Frame> {
        if self.buffer.is_empty() {
            return None;
        }
        if connection.opaque.load(Ordering::SeqCst) {
            return Some(self.take(0, self.buffer.len()));
        }
        if side == Side::ToClient && connection.one_byte.swap(false, Ordering::SeqCst) {
            let encrypted = self.buffer[0] != b'N';
            connection.opaque.store(encrypted, Ordering::SeqCst);
            return Some(self.take(0, 1));
        }
        if side == Side::ToServer && !self.started {
            let (length, code) = (self.number(0)?, self.number(4)?);
            if self.buffer.len() < length as usize {
                return None;
            }
            let asks = [SSL_REQUEST, GSS_REQUEST].contains(&code);
            connection.one_byte.store(asks, Ordering::SeqCst);
            self.started = !asks && code != CANCEL_REQUEST;
            return Some(self.take(0, length as usize));
        }
        let length = 1 + self.number(1)? as usize;
        (self.buffer.len() >= length).then(|| self.take(self.buffer[0], length))
    }

    fn number(&self, at: usize) -> Option<u32> {
        let bytes = self.buffer.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    fn take(&mut self, kind: u8, length: usize) -> Frame {
        let rest = self.buffer.split_off(length);
        let bytes = std::mem::replace(&mut self.buffer, rest);
        Frame { kind, bytes }
    }
}

impl Connection {
    fn is_forgotten(&self) -> bool {
        if self.number < self.shared.forgotten_below.load(Ordering::SeqCst) {
            self.forgotten.store(true, Ordering::SeqCst);
        }
        self.forgotten.load(Ordering::SeqCst)
    }

    /// Counts a message, and asks the rule about it.
    fn decide(&self, side: Side, frame: &Frame) -> Action {
        if self.is_forgotten() {
            return Action::Forget;
        }
        if self.opaque.load(Ordering::SeqCst) {
            return Action::Forward;
        }
        let mut names = lock(&self.names);
        names.learn(side, frame);
        let mut counts = lock(&self.shared.counts);
        let counts = counts.entry(names.application.clone()).or_default();
        match side {
            Side::ToServer => counts.to_server += 1,
            Side::ToClient => counts.to_client += 1,
        }
        counts.round_trips += u64::from(side == Side::ToClient && frame.kind == b'Z');
        let message = Message {
            connection: self.number,
            application: &names.application,
            backend: names.backend,
            in_transaction: names.in_transaction,
            side,
            kind: frame.kind,
            statement: &names.statement,
        };
        let action = lock(&self.shared.rule)
            .as_mut()
            .map_or(Action::Forward, |rule| rule(&message));
        if action == Action::Forget {
            self.forgotten.store(true, Ordering::SeqCst);
        }
        action
    }
}

impl Names {
    /// Notes the application name and the statement that a message contains.
    fn learn(&mut self, side: Side, frame: &Frame) {
        let mut texts = frame
            .bytes
            .get(5..)
            .unwrap_or_default()
            .split(|byte| *byte == 0);
        let mut next = || texts.next().unwrap_or_default();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match (side, frame.kind) {
            (Side::ToServer, b'Q') => self.statement = text(next()),
            (Side::ToServer, b'P') => {
                let (name, statement) = (next().to_vec(), text(next()));
                self.statement.clone_from(&statement);
                self.prepared.insert(name, statement);
            }
            (Side::ToServer, b'B') => {
                let (_portal, name) = (next(), next());
                if let Some(statement) = self.prepared.get(name) {
                    self.statement.clone_from(statement);
                }
            }
            (Side::ToServer, 0) => {
                let mut parameters = frame
                    .bytes
                    .get(8..)
                    .unwrap_or_default()
                    .split(|byte| *byte == 0);
                while let (Some(name), Some(value)) = (parameters.next(), parameters.next()) {
                    if name == b"application_name" {
                        self.application = text(value);
                    }
                }
            }
            (Side::ToClient, b'Z') => self.in_transaction = frame.bytes.get(5) != Some(&b'I'),
            (Side::ToClient, b'K') => {
                let pid = frame.bytes.get(5..9).and_then(|pid| pid.try_into().ok());
                self.backend = pid.map_or(0, u32::from_be_bytes);
            }
            (Side::ToClient, b'S') if next() == b"application_name" => {
                self.application = text(next())
            }
            _ => {}
        }
    }
}
