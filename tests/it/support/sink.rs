//! A sink that keeps what it gets and answers as the test says.

use std::sync::{Arc, Mutex};

use canvas_scheduler::clock::ManualClock;
use canvas_scheduler::domain::DispatchMessage;
use canvas_scheduler::sink::{DeliveryFuture, DeliveryOutcome, Sink};
use chrono::TimeDelta;
use tokio::sync::watch;

use super::soon;

/// What becomes of a dispatch that reaches the sink.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// It is answered.
    Say(DeliveryOutcome),
    /// It is never answered.
    Hang,
}

type Script = Box<dyn Fn(&DispatchMessage) -> Reply + Send>;

/// Every dispatch with what became of it, in the order in which they came.
pub(crate) struct RecordingSink {
    seen: watch::Sender<Vec<(DispatchMessage, Reply)>>,
    script: Mutex<Script>,
}

impl RecordingSink {
    /// A sink that takes everything.
    pub(crate) fn new() -> Arc<Self> {
        let script: Script = Box::new(|_| Reply::Say(DeliveryOutcome::Delivered));
        Arc::new(Self {
            seen: watch::Sender::new(vec![]),
            script: Mutex::new(script),
        })
    }

    /// From now on it answers so.
    pub(crate) fn reply(&self, script: impl Fn(&DispatchMessage) -> Reply + Send + 'static) {
        *self.script.lock().expect("no panic while answering") = Box::new(script);
    }

    /// From now on it answers always the same.
    pub(crate) fn say(&self, answer: DeliveryOutcome) {
        self.reply(move |_| Reply::Say(answer.clone()));
    }

    /// What has come until now.
    pub(crate) fn seen(&self) -> Vec<DispatchMessage> {
        self.seen
            .borrow()
            .iter()
            .map(|(dispatch, _)| dispatch.clone())
            .collect()
    }

    /// What was taken until now.
    pub(crate) fn taken(&self) -> Vec<DispatchMessage> {
        let taken = |(dispatch, reply): &(DispatchMessage, Reply)| {
            matches!(reply, Reply::Say(DeliveryOutcome::Delivered)).then(|| dispatch.clone())
        };
        self.seen.borrow().iter().filter_map(taken).collect()
    }

    /// How much has come until now.
    pub(crate) fn count(&self) -> usize {
        self.seen.borrow().len()
    }

    /// Waits until `n` dispatches have come in all, and answers them.
    pub(crate) async fn at_least(&self, n: usize) -> Vec<DispatchMessage> {
        let mut seen = self.seen.subscribe();
        soon(seen.wait_for(|seen| seen.len() >= n))
            .await
            .expect("the sink is there");
        self.seen()
    }

    /// Moves the clock on step by step until `enough`: for what comes after pauses that begin when an answer is written.
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
                // Whoever waits for the clock gets a turn.
                let _come =
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
