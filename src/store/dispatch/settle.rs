//! Settles the outcomes of attempts. One statement settles all that were delivered, which is nearly
//! all. The domain decides the rest under the locks of their schedules, since it may open zones
//! again.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr};

use crate::clock::jitter;
use crate::domain::{
    DeliveryOutcome, DeliveryPolicy, Dispatch, DispatchMessage, DispatchState, Hold, ScheduleId,
    Settled, WorkspaceId,
};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::payload::Leased;
use crate::store::dispatch::rows::{self, DispatchKey, NO_CLAIM};
use crate::store::dispatch::transitions::{Taken, Transitions};
use crate::store::schema::codec;
use crate::store::schema::load::{self, Loaded, Lock, ScheduleKey};
use crate::store::schema::statement::OverBatch;
use crate::store::schema::tables::dispatch;
use crate::store::session::error::lock_timed_out;

/// An attempt and the sink's answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptResult {
    /// The tenant.
    pub workspace: WorkspaceId,
    /// The schedule.
    pub schedule_id: ScheduleId,
    /// The dispatch's number.
    pub number: u32,
    /// The attempt's number.
    pub attempt: u32,
    /// The sink's answer.
    pub answer: DeliveryOutcome,
}

impl AttemptResult {
    /// The sink's answer to a leased dispatch.
    pub fn of(leased: &Leased, answer: DeliveryOutcome) -> Self {
        let DispatchMessage {
            schedule_id,
            number,
            attempt,
            ..
        } = leased.dispatch;
        Self {
            workspace: leased.workspace,
            schedule_id,
            number,
            attempt,
            answer,
        }
    }

    fn schedule_key(&self) -> ScheduleKey {
        ScheduleKey::new(self.workspace.0, self.schedule_id.0)
    }

    fn key(&self) -> Result<DispatchKey, DbErr> {
        Ok(DispatchKey {
            schedule_id: self.schedule_id.0,
            n: codec::signed(self.number)?,
            workspace_id: self.workspace.0,
        })
    }
}

static DELIVERED: LazyLock<OverBatch<DispatchKey>> = LazyLock::new(|| {
    let delivered = codec::dispatch_state_code(DispatchState::Delivered);
    let text = format!(
        "UPDATE dispatch AS d \
         SET state = {delivered}, retry_ms = NULL, finished_ms = $1, why = '' FROM batch AS k \
         WHERE d.workspace_id = k.workspace_id AND d.schedule_id = k.schedule_id AND d.n = k.n \
           AND d.state <> {delivered}"
    );
    OverBatch::after(1, &text)
});

impl DispatchStore {
    /// Settles these attempts at `now`, and returns those that it left out since another session
    /// has locked their rows. If this fails, some may be settled; to settle them again changes
    /// nothing. The first row that it finds locked costs up to the `lock_timeout`, since most
    /// batches meet none; [`Self::settle_left_out`] waits for no lock.
    pub async fn settle(
        &self,
        results: &[AttemptResult],
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
    ) -> Result<Vec<AttemptResult>, Error> {
        let settle = async {
            let (delivered, others) = by_outcome(results);
            let left_out = match self.settle_delivered(&delivered, now).await {
                Err(fault) if lock_timed_out(&fault) => self.settle_free(&delivered, now).await?,
                settled => settled.map(|()| vec![])?,
            };
            let others = self.settle_others(&others, now, delivery).await?;
            Ok([left_out, others].concat())
        };
        self.settling.run(settle).await
    }

    /// As [`Self::settle`], for attempts that it left out.
    pub async fn settle_left_out(
        &self,
        results: &[AttemptResult],
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
    ) -> Result<Vec<AttemptResult>, Error> {
        let settle = async {
            let (delivered, others) = by_outcome(results);
            let delivered = self.settle_free(&delivered, now).await?;
            let others = self.settle_others(&others, now, delivery).await?;
            Ok([delivered, others].concat())
        };
        self.settling.run(settle).await
    }

    async fn settle_delivered(
        &self,
        delivered: &[&AttemptResult],
        now: DateTime<Utc>,
    ) -> Result<(), DbErr> {
        let keys = sorted_keys(delivered)?;
        let db = self.settling.acquire().await?;
        let set = set_delivered(&db, &keys, now).await;
        if let Err(fault) = &set {
            db.abandon(fault).await;
        }
        set
    }

    /// Settles those whose rows no other session has locked, and returns the others.
    async fn settle_free(
        &self,
        delivered: &[&AttemptResult],
        now: DateTime<Utc>,
    ) -> Result<Vec<AttemptResult>, DbErr> {
        let mut keys = sorted_keys(delivered)?;
        if keys.is_empty() {
            return Ok(vec![]);
        }
        let db = self.settling.begin().await?;
        let locked = rows::lock(&db, &keys).await?;
        keys.retain(|key| !locked.contains(key));
        set_delivered(&db, &keys, now).await?;
        db.commit().await?;
        let is_locked = |one: &&AttemptResult| one.key().is_ok_and(|key| locked.contains(&key));
        Ok(delivered
            .iter()
            .copied()
            .filter(is_locked)
            .cloned()
            .collect())
    }

    async fn settle_others(
        &self,
        others: &[&AttemptResult],
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
    ) -> Result<Vec<AttemptResult>, DbErr> {
        if others.is_empty() {
            return Ok(vec![]);
        }
        let db = self.settling.begin().await?;
        let (left_out, dead) = decide_others(&db, others, now, delivery).await?;
        db.commit().await?;
        self.metrics.count_dead_letters(dead);
        Ok(left_out)
    }
}

fn by_outcome(results: &[AttemptResult]) -> (Vec<&AttemptResult>, Vec<&AttemptResult>) {
    results
        .iter()
        .partition(|one| one.answer == DeliveryOutcome::Delivered)
}

fn sorted_keys(results: &[&AttemptResult]) -> Result<Vec<DispatchKey>, DbErr> {
    let keys = results.iter().map(|one| one.key());
    let mut keys = keys.collect::<Result<Vec<_>, _>>()?;
    keys.sort_unstable();
    keys.dedup();
    Ok(keys)
}

async fn set_delivered<C: ConnectionTrait>(
    db: &C,
    keys: &[DispatchKey],
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    let now = now.timestamp_millis();
    DELIVERED.execute(db, [now.into()], keys).await
}

/// Returns those that it left out, since their rows are locked, and the number of dispatches that
/// became dead letters.
async fn decide_others<C: ConnectionTrait>(
    db: &C,
    results: &[&AttemptResult],
    now: DateTime<Utc>,
    delivery: &DeliveryPolicy,
) -> Result<(Vec<AttemptResult>, usize), DbErr> {
    let mut by_schedule: BTreeMap<ScheduleKey, Vec<&AttemptResult>> = BTreeMap::new();
    for one in results {
        by_schedule.entry(one.schedule_key()).or_default().push(one);
    }
    let keys: Vec<ScheduleKey> = by_schedule.keys().copied().collect();
    let rows = load::read_rows(db, &keys, Lock::Skip).await?;
    let read: HashSet<ScheduleKey> = rows.iter().map(ScheduleKey::of).collect();
    let mut not_read = keys;
    not_read.retain(|key| !read.contains(key));
    let mut locked = load::locked(db, &not_read).await?;
    let dispatches = rows::lock(db, &sorted_keys(results)?).await?;
    locked.extend(dispatches.iter().map(DispatchKey::schedule));
    let mut settling = Settling {
        now,
        delivery,
        transitions: Transitions::default(),
        updated: vec![],
        deleted: vec![],
        dead: 0,
    };
    let consequence = "its dispatches are not settled; their leases will expire";
    for loaded in load::with_dispatches(db, rows).await? {
        let key = load::key_of(&loaded);
        let Some(results) = by_schedule.get(&key).filter(|_| !locked.contains(&key)) else {
            continue;
        };
        match loaded {
            Ok(loaded) => settling.schedule_or_log(loaded, results),
            Err(unreadable) => unreadable.log(consequence),
        }
    }
    rows::UPDATE.execute(db, [], &settling.updated).await?;
    rows::DELETE.execute(db, [], &settling.deleted).await?;
    settling.transitions.write(db).await?;
    let is_left_out = |one: &&AttemptResult| locked.contains(&one.schedule_key());
    let left_out = results.iter().copied().filter(is_left_out).cloned();
    Ok((left_out.collect(), settling.dead))
}

/// The rows that the answers change.
struct Settling<'a> {
    now: DateTime<Utc>,
    delivery: &'a DeliveryPolicy,
    transitions: Transitions,
    updated: Vec<dispatch::Model>,
    deleted: Vec<DispatchKey>,
    dead: usize,
}

impl Settling<'_> {
    fn schedule_or_log(&mut self, loaded: Loaded, results: &[&AttemptResult]) {
        let schedule_id = loaded.schedule.id;
        if let Err(fault) = self.schedule(loaded, results) {
            tracing::error!(
                %schedule_id,
                %fault,
                "an outcome cannot be written; the lease of its dispatch will expire"
            );
        }
    }

    /// Lets the domain decide the answers to one schedule's dispatches.
    fn schedule(&mut self, loaded: Loaded, results: &[&AttemptResult]) -> Result<(), DbErr> {
        let Loaded {
            row,
            schedule,
            mut dispatches,
        } = loaded;
        let workspace = WorkspaceId(row.workspace_id);
        let hold = Hold {
            cancelled: schedule.cancelled_at.is_some(),
            paused: false,
        };
        let mut examine_at: Option<DateTime<Utc>> = None;
        for one in results {
            let Some(at) = dispatches
                .iter()
                .position(|dispatch| dispatch.number == one.number)
            else {
                continue;
            };
            let (attempt, answer) = (one.attempt, &one.answer);
            let settled =
                dispatches[at].settle(attempt, answer, hold, self.now, jitter(), self.delivery);
            match settled {
                None => {}
                Some(Settled::Updated(dispatch)) => {
                    log(&schedule.id, &dispatch);
                    self.dead += usize::from(dispatch.state == DispatchState::Dead);
                    let row = codec::dispatch_row(workspace, &schedule, &dispatch, NO_CLAIM)?;
                    self.updated.push(row);
                    dispatches[at] = *dispatch;
                }
                Some(Settled::Reopened { retry_at }) => {
                    dispatches.remove(at);
                    self.deleted.push(one.key()?);
                    examine_at = examine_at.into_iter().chain([retry_at]).min();
                }
            }
        }
        if let Some(examine_at) = examine_at {
            // Its zones are open again, so a change that was decided meanwhile must be decided
            // again.
            let reopened = schedule.with_dispatches(&dispatches).replanned();
            let examine_ms = Some(examine_at.timestamp_millis());
            self.transitions
                .push(&row, &reopened, examine_ms, self.now, Taken::default())?;
        }
        Ok(())
    }
}

fn log(schedule_id: &ScheduleId, dispatch: &Dispatch) {
    let dispatch_id = dispatch.id(*schedule_id);
    let (attempt, why) = (dispatch.attempt, dispatch.why.as_str());
    match dispatch.state {
        DispatchState::Dead => {
            tracing::warn!(
                %schedule_id,
                %dispatch_id,
                attempt,
                why,
                "a dispatch became a dead letter"
            )
        }
        DispatchState::Abandoned => {
            tracing::info!(
                %schedule_id,
                %dispatch_id,
                attempt,
                why,
                "a dispatch was abandoned; it may have been delivered"
            )
        }
        _ => {
            tracing::debug!(
                %schedule_id,
                %dispatch_id,
                attempt,
                why,
                "the outcome of a dispatch is unknown"
            )
        }
    }
}
