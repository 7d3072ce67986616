//! How many calls may be under way in the whole process. One more is refused before anything is done for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::body_limit::BodyBudget;
use super::{Call, DOMAIN, Kind};

/// Open streams: health watchers and reflection, which need no key.
const MAX_STREAMS: usize = 1_000;
/// Health checks of one connection. They need no key and are never refused for what others do, so each connection has its own
/// bound, and with it all of them.
const MAX_HEALTH_CHECKS: usize = 4;
/// When to try again: what is under way takes milliseconds.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Between two lines in the log while calls are refused.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The calls under way, of all connections and cores, and what their requests weigh. Cheap to clone.
#[derive(Clone)]
pub struct ConcurrencyLimit(Arc<ConcurrencyState>);

struct ConcurrencyState {
    calls: Count,
    streams: Count,
    max_calls: usize,
    weights: BodyBudget,
    began: Instant,
    /// Milliseconds since then until which nothing more is logged.
    quiet_until: AtomicI64,
}

type Count = Arc<AtomicUsize>;

/// The health checks under way on one connection. In the extensions of each request that comes over a network.
#[derive(Debug, Clone, Default)]
pub struct HealthChecks(Count);

/// A place among those under way, free again when dropped.
pub struct CallPermit(Count);

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call that found no place. Left in the extensions of its answer, so that [`super::trace`] does not warn of each: there may
/// be very many.
#[derive(Debug, Clone, Copy)]
pub struct Overloaded;

impl ConcurrencyLimit {
    /// At most so many calls, and so many bytes of requests.
    pub fn new(max_calls: usize, max_bytes: usize) -> Self {
        let (calls, streams, quiet_until) = Default::default();
        let weights = BodyBudget::new(max_bytes);
        Self(Arc::new(ConcurrencyState {
            calls,
            streams,
            max_calls,
            weights,
            began: Instant::now(),
            quiet_until,
        }))
    }

    /// How many calls, or streams, are under way, and may be.
    pub fn under_way(&self, stream: bool) -> (usize, usize) {
        let (count, most) = if stream {
            (&self.0.streams, MAX_STREAMS)
        } else {
            (&self.0.calls, self.0.max_calls)
        };
        (count.load(Ordering::Relaxed), most)
    }

    /// A place for the call; none is needed by a health check within the process.
    pub(super) fn enter(&self, call: &Call) -> Result<Option<CallPermit>, Overloaded> {
        let (count, most) = match (call.kind, &call.checks) {
            (Kind::Unary, _) => (&self.0.calls, self.0.max_calls),
            (Kind::Stream, _) => (&self.0.streams, MAX_STREAMS),
            (Kind::Health, Some(checks)) => (&checks.0, MAX_HEALTH_CHECKS),
            (Kind::Health, None) => return Ok(None),
        };
        // Dropped again at once when it is one too many.
        let place = CallPermit(count.clone());
        if count.fetch_add(1, Ordering::Relaxed) < most {
            return Ok(Some(place));
        }
        drop(place);
        self.tell(call.kind);
        Err(Overloaded)
    }

    /// What the requests under way weigh.
    pub(super) fn weights(&self) -> &BodyBudget {
        &self.0.weights
    }

    /// Logs that calls are refused, not for each of them.
    pub(super) fn tell(&self, kind: Kind) {
        let now = i64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        let until = self.0.quiet_until.load(Ordering::Relaxed);
        let next = now + i64::try_from(LOG_INTERVAL.as_millis()).unwrap_or_default();
        if now >= until
            && self
                .0
                .quiet_until
                .compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
        {
            tracing::warn!(
                ?kind,
                "too many calls are under way, or too large ones; more are refused"
            );
        }
    }
}

impl Overloaded {
    /// What its caller is told.
    pub(super) fn status(self) -> Status {
        let mut details = ErrorDetails::with_error_info("OVERLOADED", DOMAIN, []);
        details.set_retry_info(Some(RETRY_AFTER));
        Status::with_error_details(
            Code::Unavailable,
            "too many calls are under way; try again later",
            details,
        )
    }

    /// The same as an answer.
    pub(super) fn refusal(self) -> Response<Body> {
        let mut refusal = self.status().into_http();
        refusal.extensions_mut().insert(self);
        refusal
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::layers::support::{CHECK, STREAM, TestServer, UNARY, done, endless, verdict};
    use crate::layers::{Phase, Stack};

    fn overloaded() -> (Code, String) {
        (Code::Unavailable, "OVERLOADED".into())
    }

    #[tokio::test]
    async fn one_call_too_many_is_refused_until_another_ends_and_health_never_is() {
        let (_phase, phase) = watch::channel(Phase::Serving);
        let mut server = TestServer::of(Stack {
            in_flight: ConcurrencyLimit::new(2, usize::MAX),
            ..Stack::new(phase)
        });
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let hanging = server.start(UNARY, std::future::pending());
        let ending = server.start(UNARY, async {
            released.await.expect("released");
            Response::new(endless())
        });
        server.begun().await;
        server.begun().await;
        let refused = server.call(UNARY, async { panic!("begun") }).await;
        assert_eq!(verdict(&refused), overloaded());
        let status = Status::from_header_map(refused.headers()).expect("a status");
        assert_eq!(
            status.get_details_retry_info().expect("when").retry_delay,
            Some(RETRY_AFTER)
        );
        assert_eq!(
            verdict(&server.call(CHECK, async { done() }).await),
            (Code::Ok, String::new())
        );
        release.send(()).expect("it waits");
        let _unsent = ending.await.expect("no panic");
        assert_eq!(
            verdict(&server.call(UNARY, async { done() }).await),
            (Code::Ok, String::new())
        );
        hanging.abort();
        assert!(hanging.await.expect_err("given up").is_cancelled());
        for _ in 0..3 {
            assert_eq!(
                verdict(&server.call(UNARY, async { done() }).await),
                (Code::Ok, String::new())
            );
        }
    }

    #[tokio::test]
    async fn open_streams_have_a_bound_of_their_own() {
        let mut server = TestServer::default();
        let mut open = Vec::new();
        for _ in 0..MAX_STREAMS {
            open.push(
                server
                    .call(STREAM, async { Response::new(endless()) })
                    .await,
            );
        }
        assert_eq!(
            verdict(&server.call(STREAM, async { panic!("begun") }).await),
            overloaded()
        );
        assert_eq!(
            verdict(&server.call(UNARY, async { done() }).await),
            (Code::Ok, String::new())
        );
        open.pop();
        assert_eq!(
            verdict(&server.call(STREAM, async { done() }).await),
            (Code::Ok, String::new())
        );
    }

    /// A stranger may make many that never end.
    #[tokio::test]
    async fn health_checks_are_bounded_by_connection() {
        let (_phase, phase) = watch::channel(Phase::Serving);
        let server = TestServer::of(Stack::new(phase));
        let (one, other) = (HealthChecks::default(), HealthChecks::default());
        let mut hanging = tokio::task::JoinSet::new();
        for _ in 0..MAX_HEALTH_CHECKS {
            hanging.spawn(server.check_over(&one, std::future::pending()));
        }
        while one.0.load(Ordering::Relaxed) < MAX_HEALTH_CHECKS {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            verdict(&server.check_over(&one, async { panic!("begun") }).await),
            overloaded()
        );
        let ended = server.check_over(&other, async { done() }).await;
        assert_eq!(
            verdict(&ended),
            (Code::Ok, String::new()),
            "another connection's is answered"
        );
        hanging.shutdown().await;
        assert_eq!(
            verdict(&server.check_over(&one, async { done() }).await),
            (Code::Ok, String::new())
        );
    }
}
