//! One caller's change, as it waits for a writer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::domain::{Command, Create, Outcome, ScheduleId, WorkspaceId};
use crate::error::{Error, StoreOutage};
use crate::store::schema::answered::RequestKey;
use crate::store::schema::load::ScheduleKey;
use crate::store::session::error::unavailable;
use crate::telemetry::traces::Span;

/// How long a change is retried while the database is away, from when it was enqueued.
const GIVE_UP_AFTER: Duration = Duration::from_secs(5);

/// The caller of a change.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The tenant.
    pub workspace: WorkspaceId,
    /// The name of the caller in the history.
    pub actor: Arc<str>,
    /// When the caller stops waiting; a change that no round has taken by then is dropped.
    pub deadline: Option<Instant>,
    /// The span of the call.
    pub span: Span,
}

/// A change to commit.
#[derive(Debug, Clone)]
pub enum Work {
    /// A new schedule under this id.
    Create(ScheduleId, Box<Create>),
    /// A command to this schedule.
    Change(ScheduleId, Box<Command>),
}

impl Work {
    /// The schedule that it creates or changes.
    pub fn schedule_id(&self) -> ScheduleId {
        match self {
            Self::Create(id, _) | Self::Change(id, _) => *id,
        }
    }
}

/// A write whose commit was cut off: the database may or may not have carried it out.
pub(crate) struct Unsettled {
    pub commit_id: i64,
    /// The answer, if the database did.
    pub outcome: Outcome,
}

/// One caller's change in the queue.
pub(crate) struct Job {
    pub caller: Caller,
    pub work: Work,
    /// The caller's request id, if any.
    pub request: Option<RequestKey>,
    /// How many rounds it lost to another writer.
    pub rounds_lost: u8,
    /// Whether its last round timed out on a lock that another session held.
    pub lock_awaited: bool,
    /// Earlier writes of it whose commits were cut off.
    pub unsettled: Vec<Unsettled>,
    /// The span of the queue or of the round.
    stage: Span,
    give_up_at: Instant,
    answer: oneshot::Sender<Result<Outcome, Error>>,
}

impl Job {
    /// A job, and the receiver of its answer.
    pub(crate) fn new(
        caller: Caller,
        work: Work,
        request: Option<RequestKey>,
    ) -> (Self, oneshot::Receiver<Result<Outcome, Error>>) {
        let (answer, receiver) = oneshot::channel();
        let give_up_at = Instant::now() + GIVE_UP_AFTER;
        let stage = caller.span.child("commit.queue");
        let job = Self {
            caller,
            work,
            request,
            rounds_lost: 0,
            lock_awaited: false,
            unsettled: vec![],
            stage,
            give_up_at,
            answer,
        };
        (job, receiver)
    }

    /// The key of its row.
    pub(crate) fn key(&self) -> ScheduleKey {
        ScheduleKey::new(self.caller.workspace.0, self.work.schedule_id().0)
    }

    /// Marks the beginning of a round with this many changes.
    pub(crate) fn enter_round(&mut self, changes: usize) {
        self.stage.end();
        self.stage = self.caller.span.child("commit.round");
        self.stage.set("commit.batch_size", || {
            i64::try_from(changes).unwrap_or(i64::MAX)
        });
    }

    pub(crate) fn answer(self, answer: Result<Outcome, Error>) {
        self.stage.end();
        // A caller that has gone learns the outcome by reading or by repeating the request id.
        let _gone = self.answer.send(answer);
    }

    /// The job, unless its caller is gone, or its deadline passed before any round wrote it.
    pub(crate) fn if_still_wanted(self, now: Instant) -> Option<Self> {
        if self.answer.is_closed() {
            return None;
        }
        if self.unsettled.is_empty() && self.caller.deadline.is_some_and(|deadline| deadline <= now)
        {
            self.answer(Err(Error::DeadlineExceeded));
            return None;
        }
        Some(self)
    }

    /// The job, unless the database was away for too long.
    pub(crate) fn unless_given_up(self, now: Instant, why: StoreOutage) -> Option<Self> {
        if now < self.give_up_at {
            return Some(self);
        }
        let error = if self.unsettled.is_empty() {
            unavailable(why)
        } else {
            Error::OutcomeUnknown
        };
        self.answer(Err(error));
        None
    }
}
