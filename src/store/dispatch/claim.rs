//! Firing is taking: one short transaction moves due rows on to their next waves and inserts their dispatches, leased to whoever
//! asked, never more than were asked for. The queue says where to look; the row decides.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};
use uuid::Uuid;

use crate::domain::{CanvasSchedule, DeliveryPolicy, WorkspaceId, zone};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::cursor::Mark;
use crate::store::dispatch::payload::{Leased, Payloads, Taking};
use crate::store::dispatch::rows::{self, ScheduleKey};
use crate::store::dispatch::transitions::{self, Moves};
use crate::store::schema::codec;
use crate::store::schema::load::{self, Lock};
use crate::store::schema::statement::Texts;
use crate::store::schema::tables::{canvas_schedule, dispatch, wake};

/// When to look again at a row that this build cannot read.
pub(crate) const UNREADABLE_REST: TimeDelta = TimeDelta::minutes(1);

/// What one look at the queue brought.
#[derive(Debug, Default)]
pub struct Taken {
    /// Dispatches for the asker to deliver.
    pub leased: Vec<Leased>,
    /// Whether anything moved on, so that there may be more to do at once: further entries, or a further wave of the same row.
    pub more: bool,
}

/// Up to as many entries as are asked for; those that another replica holds are left to it.
static DUE: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let skip = if backend == DbBackend::Postgres {
            "FOR UPDATE SKIP LOCKED"
        } else {
            ""
        };
        format!(
            "SELECT w.wake_ms, w.workspace_id, w.id, t.name, t.sending_paused FROM ( \
               SELECT wake_ms, workspace_id, id FROM canvas_schedule_wake \
               WHERE wake_ms <= $1 AND (wake_ms, workspace_id, id) >= ($3, $4, $5) AND NOT (SELECT paused FROM sending WHERE id = 1) ORDER BY wake_ms, workspace_id, id LIMIT $2 {skip} \
             ) AS w JOIN workspace t ON t.id = w.workspace_id"
        )
    })
});

/// The due entries of one row.
struct Due {
    entries: Vec<wake::Model>,
    workspace_name: String,
}

/// All that a look found.
#[derive(Default)]
struct Found {
    due: BTreeMap<ScheduleKey, Due>,
    paused: Vec<wake::Model>,
    looked: usize,
}

impl DispatchStore {
    /// Fires up to `limit` waves that are due at `now`, while the zone data numbered `in_force` is in force.
    ///
    /// # Errors
    /// What the database says, for the log. Nothing was fired, unless the connection was lost at the commit: then the leases run
    /// out.
    pub async fn claim(
        &self,
        limit: usize,
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
        in_force: i32,
    ) -> Result<Taken, Error> {
        let fire = async {
            let db = self.claiming.begin().await?;
            let found = due(&db, self.heads.mark(), now, limit).await?;
            if found.looked == 0 {
                db.rollback().await?;
                return Ok(Taken::default());
            }
            let (leased, moved) = fire_all(&db, found, Round::new(now, delivery, in_force)).await?;
            db.commit().await?;
            Ok(Taken {
                leased,
                more: moved,
            })
        };
        self.pool.run(fire).await
    }

    /// Looks at the first entry that is due at `now` later, since it stands in the way of those behind it.
    ///
    /// # Errors
    /// What the database says, for the log.
    pub async fn set_first_aside(&self, now: DateTime<Utc>) -> Result<(), Error> {
        let set_aside = async {
            let db = self.claiming.begin().await?;
            let Found { due, .. } = due(&db, self.heads.mark(), now, 1).await?;
            let entries: Vec<wake::Model> = due.into_values().flat_map(|due| due.entries).collect();
            for entry in &entries {
                tracing::error!(schedule_id = %entry.id, "a due schedule cannot be fired; it is looked at again in a minute");
            }
            transitions::postpone_entries(&db, entries, (now + UNREADABLE_REST).timestamp_millis())
                .await?;
            db.commit().await
        };
        self.pool.run(set_aside).await
    }
}

async fn due<C: ConnectionTrait>(
    db: &C,
    from: Mark,
    now: DateTime<Utc>,
    limit: usize,
) -> Result<Found, DbErr> {
    let backend = db.get_database_backend();
    let (wake_ms, workspace_id, id) = from.wake;
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let values = [
        now.timestamp_millis().into(),
        most.into(),
        wake_ms.into(),
        workspace_id.into(),
        id.into(),
    ];
    let rows = db
        .query_all_raw(Statement::from_sql_and_values(
            backend,
            DUE.get(backend),
            values,
        ))
        .await?;
    let mut found = Found {
        looked: rows.len(),
        ..Found::default()
    };
    for row in rows {
        let entry = wake::Model {
            wake_ms: row.try_get_by_index(0)?,
            workspace_id: row.try_get_by_index(1)?,
            id: row.try_get_by_index(2)?,
        };
        if row.try_get_by_index(4)? {
            found.paused.push(entry);
            continue;
        }
        let workspace_name = row.try_get_by_index(3)?;
        let key = ScheduleKey {
            id: entry.id,
            workspace_id: entry.workspace_id,
        };
        found
            .due
            .entry(key)
            .or_insert_with(|| Due {
                entries: vec![],
                workspace_name,
            })
            .entries
            .push(entry);
    }
    Ok(found)
}

/// The dispatches, and whether any entry has left the head of the queue.
async fn fire_all<C: ConnectionTrait>(
    db: &C,
    found: Found,
    mut round: Round<'_>,
) -> Result<(Vec<Leased>, bool), DbErr> {
    transitions::park_entries(db, &found.paused).await?;
    let Found {
        mut due, paused, ..
    } = found;
    let keys: Vec<(i32, Uuid)> = due.keys().map(ScheduleKey::pair).collect();
    let rows = if keys.is_empty() {
        vec![]
    } else {
        load::read_rows(db, &keys, Lock::None).await?
    };
    let mut dispatches = rows::of_rows(db, rows.iter()).await?;
    for row in rows {
        let Some(due) = due.remove(&ScheduleKey::of(&row)) else {
            continue;
        };
        let dispatches = dispatches.remove(&row.id).unwrap_or_default();
        round.decide(row, dispatches, due);
    }
    // What is left has no row any more.
    let ownerless: Vec<wake::Model> = due.into_values().flat_map(|due| due.entries).collect();
    transitions::remove_entries(db, &ownerless).await?;
    let (leased, moved) = round.write(db).await?;
    Ok((leased, moved || !paused.is_empty() || !ownerless.is_empty()))
}

/// A row and what the domain decided of it.
struct Decided {
    before: canvas_schedule::Model,
    entries: Vec<wake::Model>,
    after: CanvasSchedule,
    taking: Option<Taking>,
    /// When it is looked at next, where that is not when its next wave is due.
    look_ms: Option<i64>,
}

/// The decisions of one look.
struct Round<'a> {
    now: DateTime<Utc>,
    delivery: &'a DeliveryPolicy,
    in_force: i32,
    decided: Vec<Decided>,
    unreadable: Vec<wake::Model>,
}

impl<'a> Round<'a> {
    fn new(now: DateTime<Utc>, delivery: &'a DeliveryPolicy, in_force: i32) -> Self {
        Self {
            now,
            delivery,
            in_force,
            decided: vec![],
            unreadable: vec![],
        }
    }

    /// Lets the domain decide a row: its earliest wave is fired, or it only moves on to its next one.
    fn decide(
        &mut self,
        before: canvas_schedule::Model,
        dispatches: Vec<dispatch::Model>,
        due: Due,
    ) {
        let schedule = match rows::schedule(before.clone(), dispatches) {
            Ok((schedule, _)) => schedule,
            Err(fault) => return self.unreadable(before.id, due.entries, &fault),
        };
        if schedule.schedule.is_local() && !zone::may_fire(before.zone_rules, self.in_force) {
            // Its entries stay where they are, for a replica that has the newer data.
            return;
        }
        // A wave that was not taken rests, also when an entry of an earlier look is still due.
        let look_ms = before
            .wake_ms
            .filter(|at| *at > self.now.timestamp_millis());
        let fired = if look_ms.is_none() {
            schedule.claim(self.now, self.delivery)
        } else {
            None
        };
        let (after, firing) = match fired {
            Some(fired) => (fired.after, Some(fired.firing)),
            None => (schedule.replanned(), None),
        };
        let workspace = WorkspaceId(before.workspace_id);
        let taking = firing.map(|firing| Taking {
            workspace,
            workspace_name: due.workspace_name,
            schedule: after.clone(),
            firing,
        });
        self.decided.push(Decided {
            before,
            entries: due.entries,
            after,
            taking,
            look_ms,
        });
    }

    fn unreadable(&mut self, id: Uuid, entries: Vec<wake::Model>, fault: &DbErr) {
        tracing::error!(schedule_id = %id, %fault, "a due schedule cannot be read; it is looked at again in a minute");
        self.unreadable.extend(entries);
    }

    async fn write<C: ConnectionTrait>(mut self, db: &C) -> Result<(Vec<Leased>, bool), DbErr> {
        let payloads = Payloads::read(
            db,
            self.decided
                .iter()
                .filter_map(|decided| decided.taking.as_ref()),
        )
        .await?;
        let (mut moves, mut leased) = (Moves::default(), HashMap::new());
        for decided in std::mem::take(&mut self.decided) {
            let Decided {
                before,
                entries,
                after,
                taking,
                look_ms,
            } = decided;
            let lease = taking
                .as_ref()
                .map(|taking| payloads.lease(taking, self.now))
                .transpose();
            let lease = match lease {
                Ok(lease) => lease,
                Err(fault) => {
                    self.unreadable(before.id, entries, &fault);
                    continue;
                }
            };
            moves.taken.extend(entries);
            let row = |taking: Taking| {
                codec::dispatch_row(taking.workspace, &taking.schedule, &taking.firing)
            };
            moves.row(
                &before,
                &after,
                look_ms,
                self.now.timestamp_millis(),
                taking.map(row).transpose()?,
            )?;
            leased.extend(lease.map(|one| (before.id, one)));
        }
        let moved = moves.write(db).await?;
        let any = !moved.is_empty() || !self.unreadable.is_empty();
        transitions::postpone_entries(
            db,
            self.unreadable,
            (self.now + UNREADABLE_REST).timestamp_millis(),
        )
        .await?;
        leased.retain(|id, _| moved.contains(id));
        Ok((leased.into_values().collect(), any))
    }
}
