//! The consumer: takes every dispatch, notes when it came, and counts those that come twice, early or unasked.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::net::TcpListener;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use canvas_scheduler::pb::v1::TriggerCanvasResponse;
use hdrhistogram::Histogram;
use prost_types::Timestamp;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::{Fallible, rows};

/// So much earlier than its time a wave may come: instants are kept to the millisecond, and one clock is measured by another.
const EARLY_MOST_US: i64 = 5_000;

/// A `CanvasTriggerService` on a thread of its own. Cheap to clone.
#[derive(Clone)]
pub struct CountingSink {
    address: String,
    shared: Arc<(Mutex<Tally>, Condvar)>,
}

/// What is read of a `TriggerCanvasRequest`. The rest, hundreds of zone names above all, is passed over: what the consumer costs is
/// part of every figure, since it runs on the same processors.
#[derive(Clone, PartialEq, prost::Message)]
struct Arrival {
    #[prost(string, tag = "1")]
    dispatch_id: String,
    #[prost(string, tag = "4")]
    schedule_id: String,
    #[prost(message, optional, tag = "7")]
    wave: Option<WaveTime>,
}

/// What is read of its `Wave`.
#[derive(Clone, PartialEq, prost::Message)]
struct WaveTime {
    #[prost(message, optional, tag = "1")]
    time: Option<Timestamp>,
}

/// What came of the schedules that are expected, each of which has one wave.
pub struct Tally {
    expected: Range<u64>,
    came: Vec<bool>,
    ids: HashSet<String>,
    /// How late each was, in microseconds.
    pub lags: Histogram<u64>,
    /// When the last one came, in microseconds since 1970.
    pub last_us: i64,
    /// Those that came again.
    pub twice: u64,
    /// Those that came before their time.
    pub early: u64,
    /// Those that nobody expected.
    pub unasked: u64,
}

impl Tally {
    fn of(expected: Range<u64>) -> Self {
        let count = usize::try_from(expected.end - expected.start).expect("a count that fits into memory");
        let lags = Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("bounds that a histogram can have");
        Self { expected, came: vec![false; count], ids: HashSet::new(), lags, last_us: 0, twice: 0, early: 0, unasked: 0 }
    }

    /// How many never came.
    pub fn missing(&self) -> usize {
        self.came.len() - self.ids.len()
    }

    fn note(&mut self, dispatch: Arrival, now_us: i64) {
        let number = rows::number(&dispatch.schedule_id).filter(|number| self.expected.contains(number));
        let time = dispatch.wave.and_then(|wave| wave.time);
        let (Some(number), Some(time)) = (number, time) else {
            self.unasked += 1;
            return;
        };
        let came = &mut self.came[usize::try_from(number - self.expected.start).expect("an index into what is expected")];
        if *came || !self.ids.insert(dispatch.dispatch_id) {
            self.twice += 1;
            return;
        }
        *came = true;
        let late_us = now_us - (time.seconds * 1_000_000 + i64::from(time.nanos) / 1000);
        self.early += u64::from(late_us < -EARLY_MOST_US);
        self.lags.saturating_record(u64::try_from(late_us).unwrap_or(0).max(1));
        self.last_us = now_us;
    }
}

/// Now, in microseconds since 1970.
pub fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

impl CountingSink {
    /// Serves on a free port until the process ends.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn start() -> Fallible<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?.to_string();
        let sink = Self { address, shared: Arc::new((Mutex::new(Tally::of(0..0)), Condvar::new())) };
        let service = sink.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serve = async move {
            let incoming = TcpIncoming::from(tokio::net::TcpListener::from_std(listener)?).with_nodelay(Some(true));
            Server::builder().add_service(service).serve_with_incoming(incoming).await.map_err(std::io::Error::other)
        };
        thread::Builder::new().name("sink".to_owned()).spawn(move || runtime.block_on(serve).expect("a sink that serves"))?;
        Ok(sink)
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on these schedules are expected.
    pub fn expect(&self, schedules: Range<u64>) {
        *self.shared.0.lock().expect("no panic") = Tally::of(schedules);
    }

    /// What came, once all did or `until` has passed.
    pub fn tally(&self, until: Instant) -> Tally {
        let (tally, changed) = &*self.shared;
        let left = until.saturating_duration_since(Instant::now());
        let waited = changed.wait_timeout_while(tally.lock().expect("no panic"), left, |tally| tally.missing() > 0);
        let (mut tally, _) = waited.expect("no panic");
        std::mem::replace(&mut *tally, Tally::of(0..0))
    }
}

impl NamedService for CountingSink {
    const NAME: &'static str = "canvas.schedule.v1.CanvasTriggerService";
}

impl Service<http::Request<Body>> for CountingSink {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// It has one method.
    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let sink = self.clone();
        Box::pin(async move { Ok(Grpc::new(ProstCodec::<TriggerCanvasResponse, Arrival>::default()).unary(sink, request).await) })
    }
}

impl UnaryService<Arrival> for CountingSink {
    type Response = TriggerCanvasResponse;
    type Future = Ready<Result<Response<TriggerCanvasResponse>, Status>>;

    fn call(&mut self, request: Request<Arrival>) -> Self::Future {
        let now_us = now_us();
        let (tally, changed) = &*self.shared;
        let mut tally = tally.lock().expect("no panic");
        tally.note(request.into_inner(), now_us);
        if tally.missing() == 0 {
            changed.notify_all();
        }
        ready(Ok(Response::new(TriggerCanvasResponse {})))
    }
}
