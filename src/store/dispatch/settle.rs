//! What became of deliveries. What was delivered, nearly all, is one statement for many; the rest is decided by the domain under
//! the locks of its schedules, since it may open zones again.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{ConnectionTrait, DbErr};
use uuid::Uuid;

use crate::clock::jitter;
use crate::domain::{
    Answer, DeliveryPolicy, Dispatch, DispatchMessage, DispatchState, Hold, ScheduleId, Settled,
    WorkspaceId,
};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::payload::Leased;
use crate::store::dispatch::rows::{self, DispatchKey, ScheduleKey};
use crate::store::dispatch::transitions::Moves;
use crate::store::schema::codec;
use crate::store::schema::load::{self, Lock};
use crate::store::schema::statement::OverBatch;
use crate::store::schema::tables::{canvas_schedule, dispatch};

/// An attempt and what the sink said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The tenant.
    pub workspace: WorkspaceId,
    /// The schedule.
    pub schedule_id: ScheduleId,
    /// The number of the firing.
    pub n: u32,
    /// The number of the attempt.
    pub attempt: u32,
    /// What the sink said.
    pub answer: Answer,
}

impl Finished {
    /// What the sink said of a dispatch.
    pub fn of(leased: &Leased, answer: Answer) -> Self {
        let DispatchMessage {
            schedule_id,
            n,
            attempt,
            ..
        } = leased.dispatch;
        Self {
            workspace: leased.workspace,
            schedule_id,
            n,
            attempt,
            answer,
        }
    }

    fn schedule_key(&self) -> ScheduleKey {
        ScheduleKey {
            id: self.schedule_id.0,
            workspace_id: self.workspace.0,
        }
    }

    fn key(&self) -> Result<DispatchKey, DbErr> {
        Ok(DispatchKey {
            schedule_id: self.schedule_id.0,
            n: codec::signed(self.n)?,
            workspace_id: self.workspace.0,
        })
    }
}

static DELIVERED: LazyLock<OverBatch<DispatchKey>> = LazyLock::new(|| {
    let delivered = codec::dispatch_state_code(DispatchState::Delivered);
    OverBatch::after(
        1,
        &format!(
            "UPDATE dispatch AS d SET state = {delivered}, retry_ms = NULL, finished_ms = $1, why = '' FROM batch AS k \
             WHERE d.workspace_id = k.workspace_id AND d.schedule_id = k.schedule_id AND d.n = k.n AND d.state <> {delivered}"
        ),
    )
});

impl DispatchStore {
    /// Writes what became of these attempts at `now`.
    ///
    /// # Errors
    /// What the database says, for the log. Some may have been written; to write them again changes nothing.
    pub async fn settle(
        &self,
        finished: &[Finished],
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
    ) -> Result<(), Error> {
        let finish = async {
            let (delivered, others): (Vec<&Finished>, Vec<&Finished>) = finished
                .iter()
                .partition(|one| one.answer == Answer::Delivered);
            let db = self.settling.acquire().await?;
            deliver(&db, &delivered, now).await?;
            db.release();
            if others.is_empty() {
                return Ok(());
            }
            let db = self.settling.begin().await?;
            let dead = settle(&db, &others, now, delivery).await?;
            db.commit().await?;
            self.writes.count_dead_letters(dead);
            Ok(())
        };
        self.pool.run(finish).await
    }
}

async fn deliver<C: ConnectionTrait>(
    db: &C,
    delivered: &[&Finished],
    now: DateTime<Utc>,
) -> Result<(), DbErr> {
    let mut keys = delivered
        .iter()
        .map(|one| one.key())
        .collect::<Result<Vec<_>, _>>()?;
    keys.sort_unstable();
    DELIVERED
        .execute(db, [now.timestamp_millis().into()], &keys)
        .await
}

/// Answers how many became dead letters.
async fn settle<C: ConnectionTrait>(
    db: &C,
    finished: &[&Finished],
    now: DateTime<Utc>,
    delivery: &DeliveryPolicy,
) -> Result<usize, DbErr> {
    let mut of_schedule: BTreeMap<ScheduleKey, Vec<&Finished>> = BTreeMap::new();
    for one in finished {
        of_schedule.entry(one.schedule_key()).or_default().push(one);
    }
    let keys: Vec<(i32, Uuid)> = of_schedule.keys().map(ScheduleKey::pair).collect();
    let rows = load::read_rows(db, &keys, Lock::Wait).await?;
    let mut dispatches = rows::of_rows(db, rows.iter()).await?;
    let mut settling = Settling {
        now,
        delivery,
        moves: Moves::default(),
        kept: vec![],
        removed: vec![],
        dead: 0,
    };
    for row in rows {
        let answers = of_schedule
            .remove(&ScheduleKey::of(&row))
            .unwrap_or_default();
        let (schedule_id, dispatches) = (row.id, dispatches.remove(&row.id).unwrap_or_default());
        if let Err(fault) = settling.schedule(row, dispatches, &answers) {
            tracing::error!(%schedule_id, %fault, "what became of a dispatch cannot be written; its lease will run out");
        }
    }
    rows::update(db, &settling.kept).await?;
    rows::remove(db, &settling.removed).await?;
    settling.moves.write(db).await?;
    Ok(settling.dead)
}

/// What the answers make of rows.
struct Settling<'a> {
    now: DateTime<Utc>,
    delivery: &'a DeliveryPolicy,
    moves: Moves,
    kept: Vec<dispatch::Model>,
    removed: Vec<dispatch::Model>,
    dead: usize,
}

impl Settling<'_> {
    /// Lets the domain decide what the answers make of one schedule.
    fn schedule(
        &mut self,
        row: canvas_schedule::Model,
        dispatches: Vec<dispatch::Model>,
        answers: &[&Finished],
    ) -> Result<(), DbErr> {
        let workspace = WorkspaceId(row.workspace_id);
        let (schedule, mut firings) = rows::schedule(row.clone(), dispatches)?;
        let held = Hold {
            cancelled: schedule.cancelled_at.is_some(),
            paused: false,
        };
        let mut look_at = None;
        for one in answers {
            let Some(at) = firings.iter().position(|firing| firing.n == one.n) else {
                continue;
            };
            match firings[at].settle(
                one.attempt,
                &one.answer,
                held,
                self.now,
                jitter(),
                self.delivery,
            ) {
                None => {}
                Some(Settled::Kept(firing)) => {
                    log(&schedule.id, &firing);
                    self.dead += usize::from(firing.state == DispatchState::Dead);
                    self.kept
                        .push(codec::dispatch_row(workspace, &schedule, &firing)?);
                    firings[at] = *firing;
                }
                Some(Settled::TakenBack { again_at }) => {
                    let taken_back = firings.remove(at);
                    self.removed
                        .push(codec::dispatch_row(workspace, &schedule, &taken_back)?);
                    look_at = Some(
                        look_at.map_or(again_at, |earlier: DateTime<Utc>| earlier.min(again_at)),
                    );
                }
            }
        }
        if let Some(look_at) = look_at {
            // Its zones are open again, so a change that was decided meanwhile is decided anew.
            let open_again = schedule.with_firings(&firings).replanned();
            self.moves.row(
                &row,
                &open_again,
                Some(look_at.timestamp_millis()),
                self.now.timestamp_millis(),
                None,
            )?;
        }
        Ok(())
    }
}

fn log(schedule_id: &ScheduleId, firing: &Dispatch) {
    let dispatch_id = firing.id(*schedule_id);
    let (attempt, why) = (firing.attempt, firing.why.as_str());
    match firing.state {
        DispatchState::Dead => {
            tracing::warn!(%schedule_id, %dispatch_id, attempt, why, "a dispatch is a dead letter")
        }
        DispatchState::Abandoned => {
            tracing::info!(%schedule_id, %dispatch_id, attempt, why, "a dispatch is abandoned: perhaps sent")
        }
        _ => {
            tracing::debug!(%schedule_id, %dispatch_id, attempt, why, "the outcome of a dispatch is unknown")
        }
    }
}
