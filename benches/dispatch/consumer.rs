//! The consumer: accepts every dispatch, records when it arrived, and counts duplicate, early and
//! unexpected ones.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use hdrhistogram::Histogram;
use prost::Message;
use prost_types::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tonic::codegen::http::{HeaderMap, HeaderValue, Response};

use super::grpc::PREFIX;
use super::{Fallible, rows};

/// A framed `TriggerCanvasResponse`, which has no fields.
const EMPTY_RESPONSE: [u8; PREFIX] = [0; PREFIX];
/// The flow-control window of a stream and of a connection, in bytes: large enough never to block.
const WINDOW: u32 = 1 << 20;

/// The microseconds by which a wave may seem early: instants have milliseconds, and the consumer's
/// clock is not the service's.
const MAX_EARLY_US: i64 = 5_000;

/// A `CanvasTriggerService` on its own thread, with as little work for a call as possible: it runs
/// on the same processors as the service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CountingSink {
    address: String,
    shared: Arc<(Mutex<Tally>, Condvar)>,
}

/// The fields that are read of a `TriggerCanvasRequest`. The others, mostly hundreds of zone names,
/// are skipped, because the consumer's cost is part of every figure.
#[derive(Clone, PartialEq, prost::Message)]
struct Arrival {
    #[prost(string, tag = "1")]
    dispatch_id: String,
    #[prost(string, tag = "4")]
    schedule_id: String,
    #[prost(message, optional, tag = "7")]
    wave: Option<WaveTime>,
}

/// The fields that are read of a `Wave`.
#[derive(Clone, PartialEq, prost::Message)]
struct WaveTime {
    #[prost(message, optional, tag = "1")]
    time: Option<Timestamp>,
}

/// The arrivals of the expected schedules, each of which has one wave.
pub(crate) struct Tally {
    expected: Range<u64>,
    arrived: Vec<bool>,
    ids: HashSet<String>,
    /// How late each was, in microseconds.
    pub lags: Histogram<u64>,
    /// When the last one arrived, in microseconds since 1970.
    pub last_us: i64,
    /// Duplicates.
    pub twice: u64,
    /// Those that arrived before their time.
    pub early: u64,
    /// Unexpected ones.
    pub unexpected: u64,
}

impl Tally {
    fn of(expected: Range<u64>) -> Self {
        let count =
            usize::try_from(expected.end - expected.start).expect("a count that fits into memory");
        let lags = Histogram::new_with_bounds(1, 1_000_000_000, 3)
            .expect("bounds that a histogram can have");
        Self {
            expected,
            arrived: vec![false; count],
            ids: HashSet::new(),
            lags,
            last_us: 0,
            twice: 0,
            early: 0,
            unexpected: 0,
        }
    }

    /// The number that did not arrive.
    pub(crate) fn missing(&self) -> usize {
        self.arrived.len() - self.ids.len()
    }

    fn record(&mut self, dispatch: Arrival, now_us: i64) {
        let number =
            rows::number(&dispatch.schedule_id).filter(|number| self.expected.contains(number));
        let time = dispatch.wave.and_then(|wave| wave.time);
        let (Some(number), Some(time)) = (number, time) else {
            self.unexpected += 1;
            return;
        };
        let arrived = &mut self.arrived[usize::try_from(number - self.expected.start)
            .expect("an index into what is expected")];
        if *arrived || !self.ids.insert(dispatch.dispatch_id) {
            self.twice += 1;
            return;
        }
        *arrived = true;
        let late_us = now_us - (time.seconds * 1_000_000 + i64::from(time.nanos) / 1000);
        self.early += u64::from(late_us < -MAX_EARLY_US);
        self.lags
            .saturating_record(u64::try_from(late_us).unwrap_or(0).max(1));
        self.last_us = now_us;
    }
}

/// Now, in microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl CountingSink {
    /// Serves on a free port until the process ends.
    pub(crate) fn start() -> Fallible<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let sink = Self {
            address,
            shared: Arc::new((Mutex::new(Tally::of(0..0)), Condvar::new())),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let serve = sink.clone().serve(listener);
        thread::Builder::new()
            .name("sink".to_owned())
            .spawn(move || runtime.block_on(serve).expect("a sink that serves"))?;
        Ok(sink)
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Starts a tally of these schedules.
    pub(crate) fn expect(&self, schedules: Range<u64>) {
        *self.shared.0.lock().expect("no panic") = Tally::of(schedules);
    }

    /// The tally, once all have arrived or at `until`.
    pub(crate) fn tally(&self, until: Instant) -> Tally {
        let (tally, changed) = &*self.shared;
        let left = until.saturating_duration_since(Instant::now());
        let waited = changed.wait_timeout_while(tally.lock().expect("no panic"), left, |tally| {
            tally.missing() > 0
        });
        let (mut tally, _) = waited.expect("no panic");
        std::mem::replace(&mut *tally, Tally::of(0..0))
    }

    async fn serve(self, listener: std::net::TcpListener) -> std::io::Result<()> {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let sink = self.clone();
            tokio::spawn(async move {
                // The caller replaces a failed connection; the tally shows missing dispatches.
                let _ended = sink.talk(stream).await;
            });
        }
    }

    async fn talk(self, stream: TcpStream) -> Result<(), h2::Error> {
        let mut builder = h2::server::Builder::new();
        let mut connection = builder
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(stream)
            .await?;
        while let Some(call) = connection.accept().await {
            let (request, answer) = call?;
            let sink = self.clone();
            tokio::spawn(async move {
                // The caller treats it as an unknown outcome and retries.
                let _failed = sink.take(request.into_body(), answer).await;
            });
        }
        Ok(())
    }

    /// Accepts a dispatch. The service has only this method.
    async fn take(self, mut body: RecvStream, mut answer: SendResponse<Bytes>) -> Fallible<()> {
        let mut received = BytesMut::new();
        while let Some(piece) = body.data().await {
            let piece = piece?;
            body.flow_control().release_capacity(piece.len())?;
            received.extend_from_slice(&piece);
        }
        self.record(Arrival::decode(
            received.get(PREFIX..).ok_or("a call without a message")?,
        )?);
        let head = Response::builder()
            .header("content-type", "application/grpc")
            .body(())?;
        let mut sending = answer.send_response(head, false)?;
        sending.send_data(Bytes::from_static(&EMPTY_RESPONSE), false)?;
        sending.send_trailers(HeaderMap::from_iter([(
            "grpc-status".parse()?,
            HeaderValue::from_static("0"),
        )]))?;
        Ok(())
    }

    fn record(&self, dispatch: Arrival) {
        let now_us = now_us();
        let (tally, changed) = &*self.shared;
        let mut tally = tally.lock().expect("no panic");
        tally.record(dispatch, now_us);
        if tally.missing() == 0 {
            changed.notify_all();
        }
    }
}
