//! The number of calls in flight in the whole process. A call beyond the maximum is refused before
//! any work is done for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Call;
use super::overload::{OverloadLog, Overloaded};
use crate::methods::MethodKind;

/// Open streams: health watchers and reflection, which need no key.
const MAX_STREAMS: usize = 1_000;
/// Health checks of one connection. They need no key, and the load of other calls never causes them
/// to be refused, so each connection has a maximum, and with the number of connections all of them
/// have one.
const MAX_HEALTH_CHECKS: usize = 4;

/// Counts the calls in flight, over all connections and worker threads. Cheap to clone.
#[derive(Clone)]
pub struct ConcurrencyLimit(Arc<ConcurrencyState>);

struct ConcurrencyState {
    calls: Arc<AtomicUsize>,
    streams: Arc<AtomicUsize>,
    max_calls: usize,
    log: OverloadLog,
}

/// The health checks in flight on one connection. In the extensions of each request that comes over
/// a network.
#[derive(Debug, Clone, Default)]
pub struct HealthChecks(Arc<AtomicUsize>);

/// Permission for one call in flight, given back when dropped.
pub(super) struct CallPermit(Arc<AtomicUsize>);

impl Drop for CallPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ConcurrencyLimit {
    /// A limit of `max_calls` unary calls.
    pub fn new(max_calls: usize) -> Self {
        Self(Arc::new(ConcurrencyState {
            calls: Arc::default(),
            streams: Arc::default(),
            max_calls,
            log: OverloadLog::new(),
        }))
    }

    /// The number of unary calls, or of streams, in flight, and its maximum.
    pub fn in_flight(&self, stream: bool) -> (usize, usize) {
        let (count, max) = if stream {
            (&self.0.streams, MAX_STREAMS)
        } else {
            (&self.0.calls, self.0.max_calls)
        };
        (count.load(Ordering::Relaxed), max)
    }

    /// A permit for the call; a health check within the process needs none.
    pub(super) fn enter(&self, call: &Call) -> Result<Option<CallPermit>, Overloaded> {
        let (count, max) = match (call.kind, &call.checks) {
            (MethodKind::Unary, _) => (&self.0.calls, self.0.max_calls),
            (MethodKind::Stream, _) => (&self.0.streams, MAX_STREAMS),
            (MethodKind::Health, Some(checks)) => (&checks.0, MAX_HEALTH_CHECKS),
            (MethodKind::Health, None) => return Ok(None),
        };
        let permit = CallPermit(count.clone());
        if count.fetch_add(1, Ordering::Relaxed) < max {
            return Ok(Some(permit));
        }
        drop(permit);
        if self.0.log.is_due() {
            let kind = call.kind;
            tracing::warn!(?kind, max, "too many calls are in flight; refusing more");
        }
        Err(Overloaded)
    }
}

#[cfg(test)]
mod tests {
    use http::Response;
    use tokio::sync::watch;
    use tonic::{Code, Status};
    use tonic_types::StatusExt;

    use super::*;
    use crate::layers::overload::RETRY_AFTER;
    use crate::layers::support::{CHECK, STREAM, TestServer, UNARY, done, endless, verdict};
    use crate::layers::{Phase, Stack};

    fn overloaded() -> (Code, String) {
        (Code::Unavailable, "OVERLOADED".into())
    }

    #[tokio::test]
    async fn one_call_too_many_is_refused_until_another_ends_and_health_never_is() {
        let (_phase, phase) = watch::channel(Phase::Serving);
        let mut server = TestServer::of(Stack {
            concurrency: ConcurrencyLimit::new(2),
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
