//! A sink that records dispatches and answers as the test sets.

use std::sync::{Arc, Mutex};

use canvas_scheduler::clock::ManualClock;
use canvas_scheduler::domain::DispatchMessage;
use canvas_scheduler::sink::{DeliveryFuture, DeliveryOutcome, Sink};
use chrono::TimeDelta;
use tokio::sync::watch;

use super::soon;

/// How the sink replies to a dispatch.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// With this answer.
    Say(DeliveryOutcome),
    /// Never.
    Hang,
}

type Script = Box<dyn Fn(&DispatchMessage) -> Reply + Send>;

/// Records every dispatch with its reply, in order.
pub(crate) struct RecordingSink {
    seen: watch::Sender<Vec<(DispatchMessage, Reply)>>,
    script: Mutex<Script>,
}

impl RecordingSink {
    /// A sink that accepts everything.
    pub(crate) fn new() -> Arc<Self> {
        let script: Script = Box::new(|_| Reply::Say(DeliveryOutcome::Delivered));
        Arc::new(Self {
            seen: watch::Sender::new(vec![]),
            script: Mutex::new(script),
        })
    }

    /// Sets how it replies from now on.
    pub(crate) fn reply(&self, script: impl Fn(&DispatchMessage) -> Reply + Send + 'static) {
        *self.script.lock().expect("no panic while answering") = Box::new(script);
    }

    /// Sets the answer to every dispatch from now on.
    pub(crate) fn say(&self, answer: DeliveryOutcome) {
        self.reply(move |_| Reply::Say(answer.clone()));
    }

    /// The dispatches so far.
    pub(crate) fn seen(&self) -> Vec<DispatchMessage> {
        self.seen
            .borrow()
            .iter()
            .map(|(dispatch, _)| dispatch.clone())
            .collect()
    }

    /// The accepted dispatches so far.
    pub(crate) fn taken(&self) -> Vec<DispatchMessage> {
        let taken = |(dispatch, reply): &(DispatchMessage, Reply)| {
            matches!(reply, Reply::Say(DeliveryOutcome::Delivered)).then(|| dispatch.clone())
        };
        self.seen.borrow().iter().filter_map(taken).collect()
    }

    /// The number of dispatches so far.
    pub(crate) fn count(&self) -> usize {
        self.seen.borrow().len()
    }

    /// Waits until `n` dispatches have arrived in all, and returns them.
    pub(crate) async fn at_least(&self, n: usize) -> Vec<DispatchMessage> {
        let mut seen = self.seen.subscribe();
        soon(seen.wait_for(|seen| seen.len() >= n))
            .await
            .expect("the sink exists");
        self.seen()
    }

    /// Moves the clock step by step until `enough`, for dispatches after a pause that begins when
    /// an answer is written.
    pub(crate) async fn in_time(
        &self,
        clock: &ManualClock,
        step: TimeDelta,
        enough: impl Fn(&Self) -> bool,
    ) {
        let mut seen = self.seen.subscribe();
        let moving = async {
            while !enough(self) {
                clock.advance(step);
                // Lets tasks that wait for the clock run.
                let _changed =
                    tokio::time::timeout(std::time::Duration::from_millis(5), seen.changed()).await;
            }
        };
        soon(moving).await;
    }
}

impl Sink for RecordingSink {
    fn deliver<'a>(&'a self, dispatch: &'a DispatchMessage) -> DeliveryFuture<'a> {
        let reply = (self.script.lock().expect("no panic while answering"))(dispatch);
        self.seen
            .send_modify(|seen| seen.push((dispatch.clone(), reply.clone())));
        Box::pin(async move {
            match reply {
                Reply::Say(answer) => answer,
                Reply::Hang => std::future::pending().await,
            }
        })
    }
}
