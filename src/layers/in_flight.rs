//! How many calls may be under way in the whole process. One more is refused before anything is done for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use http::Response;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::{Call, DOMAIN, Kind};

/// Open streams: health watchers and reflection, which need no key.
const STREAMS_MOST: usize = 1_000;
/// When to try again: what is under way takes milliseconds.
const RETRY_AFTER: Duration = Duration::from_millis(100);
/// Between two lines in the log while calls are refused.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The calls under way, of all connections and cores. Cheap to clone.
#[derive(Clone)]
pub struct InFlight(Arc<Counts>);

struct Counts {
    calls: AtomicUsize,
    streams: AtomicUsize,
    calls_most: usize,
    began: Instant,
    /// Milliseconds since then until which nothing more is logged.
    quiet_until: AtomicI64,
}

/// A place among them, free again when dropped.
pub struct Place {
    counts: Arc<Counts>,
    stream: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.counts.of(self.stream).0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A call that found no place. Left in the extensions of its answer, so that [`super::trace`] does not warn of each: there may
/// be very many.
#[derive(Debug, Clone, Copy)]
pub struct Shed;

impl Counts {
    /// How many there are, and may be.
    fn of(&self, stream: bool) -> (&AtomicUsize, usize) {
        if stream { (&self.streams, STREAMS_MOST) } else { (&self.calls, self.calls_most) }
    }
}

impl InFlight {
    /// At most so many calls.
    pub fn new(calls_most: usize) -> Self {
        let (calls, streams, quiet_until) = Default::default();
        Self(Arc::new(Counts { calls, streams, calls_most, began: Instant::now(), quiet_until }))
    }

    /// How many calls, or streams, are under way, and may be.
    pub fn under_way(&self, stream: bool) -> (usize, usize) {
        let (count, most) = self.0.of(stream);
        (count.load(Ordering::Relaxed), most)
    }

    /// A place for the call; a health check needs none, so it is never refused.
    pub(super) fn enter(&self, call: &Call) -> Result<Option<Place>, Shed> {
        if call.kind == Kind::Health {
            return Ok(None);
        }
        let stream = call.streams();
        let (count, most) = self.0.of(stream);
        // Dropped again at once when it is one too many.
        let place = Place { counts: self.0.clone(), stream };
        if count.fetch_add(1, Ordering::Relaxed) < most {
            return Ok(Some(place));
        }
        drop(place);
        self.tell(stream, most);
        Err(Shed)
    }

    fn tell(&self, stream: bool, most: usize) {
        let now = i64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(i64::MAX);
        let until = self.0.quiet_until.load(Ordering::Relaxed);
        let next = now + i64::try_from(TELL_EVERY.as_millis()).unwrap_or_default();
        if now >= until && self.0.quiet_until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::warn!(most, streams = stream, "too many calls are under way; more are refused");
        }
    }
}

impl Shed {
    /// What its caller is told.
    pub(super) fn refusal(self) -> Response<Body> {
        let mut details = ErrorDetails::with_error_info("OVERLOADED", DOMAIN, []);
        details.set_retry_info(Some(RETRY_AFTER));
        let status = Status::with_error_details(Code::Unavailable, "too many calls are under way; try again later", details);
        let mut refusal = status.into_http();
        refusal.extensions_mut().insert(self);
        refusal
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::layers::support::{CHECK, STREAM, Server, UNARY, done, endless, verdict};
    use crate::layers::{Phase, Stack};

    fn overloaded() -> (Code, String) {
        (Code::Unavailable, "OVERLOADED".into())
    }

    #[tokio::test]
    async fn one_call_too_many_is_refused_until_another_ends_and_health_never_is() {
        let (_phase, phase) = watch::channel(Phase::Serving);
        let mut server = Server::of(Stack { in_flight: InFlight::new(2), ..Stack::new(phase) });
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
        assert_eq!(status.get_details_retry_info().expect("when").retry_delay, Some(RETRY_AFTER));
        assert_eq!(verdict(&server.call(CHECK, async { done() }).await), (Code::Ok, String::new()));
        release.send(()).expect("it waits");
        let _unsent = ending.await.expect("no panic");
        assert_eq!(verdict(&server.call(UNARY, async { done() }).await), (Code::Ok, String::new()));
        hanging.abort();
        assert!(hanging.await.expect_err("given up").is_cancelled());
        for _ in 0..3 {
            assert_eq!(verdict(&server.call(UNARY, async { done() }).await), (Code::Ok, String::new()));
        }
    }

    #[tokio::test]
    async fn open_streams_have_a_bound_of_their_own() {
        let mut server = Server::default();
        let mut open = Vec::new();
        for _ in 0..STREAMS_MOST {
            open.push(server.call(STREAM, async { Response::new(endless()) }).await);
        }
        assert_eq!(verdict(&server.call(STREAM, async { panic!("begun") }).await), overloaded());
        assert_eq!(verdict(&server.call(UNARY, async { done() }).await), (Code::Ok, String::new()));
        open.pop();
        assert_eq!(verdict(&server.call(STREAM, async { done() }).await), (Code::Ok, String::new()));
    }
}
