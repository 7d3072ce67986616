//! What waits for a writer: one caller's change and where its answer goes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::{Command, Create, Outcome, ScheduleId, WorkspaceId};
use crate::error::Error;
use crate::store::schema::answered::RequestKey;
use crate::store::session::error::RETRY_AFTER;
use crate::telemetry::traces::Span;

/// How long a change is tried while the database is away, from when it was handed over.
const GIVE_UP_AFTER: Duration = Duration::from_secs(5);

/// Who asks, in whose name, and until when.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The tenant.
    pub workspace: WorkspaceId,
    /// Who the history names.
    pub actor: Arc<str>,
    /// When the caller stops waiting; later than this, no work begins for it.
    pub deadline: Option<Instant>,
    /// Of the call, in its trace.
    pub span: Span,
}

/// What is to be written.
#[derive(Debug, Clone)]
pub enum Work {
    /// A new schedule under this id.
    Create(ScheduleId, Box<Create>),
    /// A change of this schedule.
    Change(ScheduleId, Box<Command>),
}

impl Work {
    /// The schedule.
    pub fn schedule_id(&self) -> ScheduleId {
        match self {
            Self::Create(id, _) | Self::Change(id, _) => *id,
        }
    }
}

/// A write whose commit was cut off: it may or may not be there.
pub(crate) struct Unsettled {
    /// The commit that carried it.
    pub commit_id: i64,
    /// The answer, if it is there.
    pub outcome: Outcome,
}

/// One caller's change in the queue.
pub(crate) struct Job {
    /// Who asks.
    pub caller: Caller,
    /// What is to be written.
    pub work: Work,
    /// The caller's name for it.
    pub request: Option<RequestKey>,
    /// How often another writer was quicker.
    pub rounds_lost: u8,
    /// Whether its round was lost to a lock that another session held for long.
    pub lock_awaited: bool,
    /// Writes whose commits were cut off.
    pub unsettled: Vec<Unsettled>,
    /// Where it is on its way: in the queue, or in a round.
    stage: Span,
    give_up_at: Instant,
    answer: oneshot::Sender<Result<Outcome, Error>>,
}

impl Job {
    /// A change and the place where its answer arrives.
    pub(crate) fn new(
        caller: Caller,
        work: Work,
        request: Option<RequestKey>,
    ) -> (Self, oneshot::Receiver<Result<Outcome, Error>>) {
        let (answer, arrives) = oneshot::channel();
        let give_up_at = Instant::now() + GIVE_UP_AFTER;
        let stage = caller.span.child("commit.queue");
        (
            Self {
                caller,
                work,
                request,
                rounds_lost: 0,
                lock_awaited: false,
                unsettled: vec![],
                stage,
                give_up_at,
                answer,
            },
            arrives,
        )
    }

    /// The key of its row.
    pub(crate) fn key(&self) -> (WorkspaceId, Uuid) {
        (self.caller.workspace, self.work.schedule_id().0)
    }

    /// A round begins that carries so many changes.
    pub(crate) fn enter_round(&mut self, changes: usize) {
        self.stage.end();
        self.stage = self.caller.span.child("commit.round");
        self.stage.set("commit.batch_size", || {
            i64::try_from(changes).unwrap_or(i64::MAX)
        });
    }

    /// Answers the caller, who may have gone.
    pub(crate) fn answer(self, answer: Result<Outcome, Error>) {
        self.stage.end();
        // A caller who is gone learns the outcome by reading or by repeating the request id.
        let _gone = self.answer.send(answer);
    }

    /// The job, unless its caller stopped waiting, or its deadline has passed and no part of it was
    /// begun.
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
    pub(crate) fn unless_given_up(self, now: Instant) -> Option<Self> {
        if now < self.give_up_at {
            return Some(self);
        }
        let error = if self.unsettled.is_empty() {
            Error::StoreUnavailable {
                retry_after: RETRY_AFTER,
            }
        } else {
            Error::OutcomeUnknown
        };
        self.answer(Err(error));
        None
    }
}
