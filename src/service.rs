//! The use cases. Owns no SQL and no protobuf: it asks the store, lets the domain decide, and
//! answers domain values.

pub mod access;
pub mod admin;
pub mod budget;
mod dispatching;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicI32;

use serde::Serialize;
use tokio::sync::Notify;

use crate::clock::SharedClock;
use crate::domain::{
    Cancel, CanvasSchedule, Command, Create, DeliveryPolicy, DispatchId, Outcome, Overwrite,
    Properties, PropertiesId, RequestId, Revision, ScheduleId, SchedulePolicy,
};
use crate::error::Error;
pub use crate::store::{Caller, Details, Filter};
use crate::store::{RequestKey, Store, Work};
pub use dispatching::{AttemptResult, Claimed, DispatchFilter, Leased, NextDue, POLL_INTERVAL};

/// The most entries of a batch.
pub const MAX_BATCH: usize = 1_000;
/// First answers that one housekeeping pass removes.
const OLD_ANSWERS_AT_ONCE: u64 = 500;
/// Finished schedules that one housekeeping transaction removes.
const FINISHED_BATCH: u64 = 100;

/// The options of a write.
#[derive(Debug, Clone, Default)]
pub struct Mode {
    /// The caller's name for the request.
    pub request_id: Option<RequestId>,
    /// Validate only; write nothing.
    pub validate_only: bool,
}

/// A requested update.
#[derive(Debug, Clone, Serialize)]
pub struct Update {
    /// The schedule; none means the one of the Canvas that can still change.
    pub schedule_id: Option<ScheduleId>,
    /// The change.
    pub overwrite: Overwrite,
    /// The options of the write; not part of the change.
    #[serde(skip)]
    pub mode: Mode,
}

/// A new schedule.
#[derive(Debug, Clone)]
pub struct Creation {
    /// The outcome.
    pub outcome: Outcome,
    /// The id that its first dispatch will have.
    pub first_dispatch: DispatchId,
}

/// Stored revisions, and their properties by id.
pub type Revisions = (Vec<Revision>, HashMap<PropertiesId, Properties>);

/// The use cases of callers. Cheap to clone.
#[derive(Clone)]
pub struct Service {
    store: Store,
    clock: SharedClock,
    policy: SchedulePolicy,
    delivery: DeliveryPolicy,
    wake: Arc<Notify>,
    /// The number of the zone data that is in force, as far as is known: until then any may be
    /// newer than ours.
    rules_in_force: Arc<AtomicI32>,
}

impl Service {
    /// A service over this store.
    pub fn new(
        store: Store,
        clock: SharedClock,
        policy: SchedulePolicy,
        delivery: DeliveryPolicy,
    ) -> Self {
        let rules_in_force = Arc::new(AtomicI32::new(i32::MAX));
        Self {
            store,
            clock,
            policy,
            delivery,
            wake: Arc::default(),
            rules_in_force,
        }
    }

    /// Schedules a Canvas.
    pub async fn create(
        &self,
        caller: Caller,
        create: Create,
        mode: Mode,
    ) -> Result<Creation, Error> {
        let id = ScheduleId::new();
        let outcome = if mode.validate_only {
            let zone = self.store.read.default_zone(caller.workspace).await?;
            create.decide(id, zone, self.clock.now(), &self.policy)?
        } else {
            let request = mode
                .request_id
                .map(|id| RequestKey::of(id, &create))
                .transpose()?;
            let outcome = self
                .store
                .commit
                .commit(caller, Work::Create(id, Box::new(create)), request)
                .await?;
            self.wake_if_due(&outcome);
            outcome
        };
        // A replayed request answers the schedule that it made first.
        Ok(Creation {
            first_dispatch: DispatchId::of(outcome.after.id, 1),
            outcome,
        })
    }

    /// Replaces a schedule for every zone that is open.
    pub async fn update(&self, caller: Caller, update: Update) -> Result<Outcome, Error> {
        self.answer(self.begin_update(caller, update).await?).await
    }

    /// The answer to an update that was begun; a dispatcher of this process is woken for a wave
    /// that is due immediately.
    async fn answer<F: Future<Output = Result<Outcome, Error>>>(
        &self,
        begun: PendingUpdate<F>,
    ) -> Result<Outcome, Error> {
        match begun {
            PendingUpdate::Known(answer) => *answer,
            PendingUpdate::Waiting(answer) => {
                answer.await.inspect(|outcome| self.wake_if_due(outcome))
            }
        }
    }

    /// Applies updates in their order, each answered on its own.
    pub async fn batch_update(
        &self,
        caller: &Caller,
        updates: Vec<Result<Update, Error>>,
    ) -> Vec<Result<Outcome, Error>> {
        let mut begun = Vec::with_capacity(updates.len());
        for update in updates {
            // Handed over one after the other, so that two of one schedule keep their order;
            // answered all together.
            begun.push(match update {
                Ok(update) => self.begin_update(caller.clone(), update).await,
                Err(error) => Err(error),
            });
        }
        let mut answers = Vec::with_capacity(begun.len());
        for answer in begun {
            answers.push(match answer {
                Ok(begun) => self.answer(begun).await,
                Err(error) => Err(error),
            });
        }
        answers
    }

    /// Looks up what the update means and hands it to its writer.
    async fn begin_update(
        &self,
        caller: Caller,
        update: Update,
    ) -> Result<PendingUpdate<impl Future<Output = Result<Outcome, Error>> + Send + use<>>, Error>
    {
        let request = match (&update.mode.request_id, update.mode.validate_only) {
            (Some(id), false) => Some(RequestKey::of(id.clone(), &update)?),
            _ => None,
        };
        if let (Some(request), None) = (&request, update.schedule_id) {
            // The first answer stands whatever schedules the Canvas has by now.
            if let Some(answered) = self
                .store
                .read
                .answered(caller.workspace, &request.id)
                .await?
            {
                return Ok(PendingUpdate::Known(Box::new(answered.replay(request))));
            }
        }
        let id = match update.schedule_id {
            Some(id) => id,
            None => {
                self.store
                    .read
                    .open_schedule(caller.workspace, &update.overwrite.canvas_id)
                    .await?
            }
        };
        let command = Command::Overwrite(update.overwrite);
        if update.mode.validate_only {
            let current = self.store.read.schedule((caller.workspace, id)).await?;
            return Ok(PendingUpdate::Known(Box::new(command.decide(
                &current,
                self.clock.now(),
                &self.policy,
            ))));
        }
        let waiting =
            self.store
                .commit
                .enqueue(caller, Work::Change(id, Box::new(command)), request)?;
        Ok(PendingUpdate::Waiting(waiting))
    }

    /// Cancels a schedule for every zone that is open.
    pub async fn cancel(
        &self,
        caller: Caller,
        id: ScheduleId,
        cancel: Cancel,
        request_id: Option<RequestId>,
    ) -> Result<Outcome, Error> {
        let request = request_id
            .map(|request| RequestKey::of(request, &("cancel", id, &cancel)))
            .transpose()?;
        self.store
            .commit
            .commit(
                caller,
                Work::Change(id, Box::new(Command::Cancel(cancel))),
                request,
            )
            .await
    }

    /// One schedule and what it carries.
    ///
    /// # Errors
    /// [`Error::NotFound`], also when it is another workspace's.
    pub async fn get(&self, caller: &Caller, id: ScheduleId) -> Result<Details, Error> {
        self.store.read.details((caller.workspace, id)).await
    }

    /// Up to `limit` schedules after `after`, in the order of their ids.
    pub async fn list(
        &self,
        caller: &Caller,
        filter: &Filter,
        after: Option<ScheduleId>,
        limit: u64,
    ) -> Result<Vec<CanvasSchedule>, Error> {
        self.store
            .read
            .list(caller.workspace, filter, after, limit)
            .await
    }

    /// Up to `limit` of the kept revisions before `before`, the newest first, with their
    /// properties.
    ///
    /// # Errors
    /// [`Error::NotFound`], also when it is another workspace's.
    pub async fn revisions(
        &self,
        caller: &Caller,
        id: ScheduleId,
        before: Option<i64>,
        limit: u64,
    ) -> Result<Revisions, Error> {
        let key = (caller.workspace, id);
        self.store.read.revisions(key, before, limit).await
    }

    /// Removes what has outlived its use, until nothing is left to remove.
    pub async fn clean_up(&self) -> Result<(), Error> {
        while self
            .store
            .admin
            .remove_old_answers(OLD_ANSWERS_AT_ONCE)
            .await?
            > 0
        {}
        self.store.admin.remove_old_windows().await?;
        let before = self.clock.now() - self.policy.retention;
        while self
            .store
            .admin
            .remove_finished(before, FINISHED_BATCH)
            .await?
            > 0
        {}
        Ok(())
    }
}

/// The answer to an update that was begun.
enum PendingUpdate<F> {
    /// It is known already.
    Known(Box<Result<Outcome, Error>>),
    /// It comes with the commit.
    Waiting(F),
}
