//! Claims due waves. One short transaction moves due rows to their next waves and inserts their
//! dispatches, leased to the caller. It never claims more than the caller asked for.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr, Value};

use crate::domain::{CanvasSchedule, DeliveryPolicy, WorkspaceId, zone};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::cursor::WakeKey;
use crate::store::dispatch::payload::{Leased, Payload, PendingLease, joined_payload};
use crate::store::dispatch::transitions::{self, Taken, Transitions};
use crate::store::dispatch::unsettled::Committing;
use crate::store::schema::load::{self, Loaded, ScheduleKey};
use crate::store::schema::row::{FromRow, Row};
use crate::store::schema::statement::{Columns, Texts, join_in_order, skip_locked};
use crate::store::schema::tables::{canvas_schedule, dispatch, wake};

/// How long a row that this build cannot read is postponed.
pub(crate) const UNREADABLE_RETRY_INTERVAL: TimeDelta = TimeDelta::minutes(1);

const POSTPONED: &str = "it is postponed for a minute";

/// The most entries without a schedule that one claim removes.
const MAX_LEFT_OVER: i64 = 512;

/// The result of one claim or retry.
#[derive(Debug, Default)]
pub struct Claimed {
    /// Dispatches for the caller to deliver.
    pub leased: Vec<Leased>,
    /// Whether any row was written, so that more may be due: further entries, or a further wave of
    /// the same schedule.
    pub more: bool,
}

/// Entries that are due, with all that a claim reads except earlier dispatches: one round trip. An
/// entry that another session has locked, or whose schedule is locked, does not count against the
/// limit, so that it keeps no other from being claimed.
static DUE: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let schedule = Columns::<canvas_schedule::Model>::all().names("s.");
        let (payload, joined) = (Payload::COLUMNS, joined_payload("s.properties_id"));
        // The schedule first: while it is locked, its entry is not touched.
        let (join, skip) = (join_in_order(backend), skip_locked(backend, "s, w"));
        format!(
            "SELECT w.wake_ms, w.workspace_id, w.id, t.sending_paused, t.name, {payload}, {schedule} \
             FROM canvas_schedule_wake w \
             {join} canvas_schedule s ON s.workspace_id = w.workspace_id AND s.id = w.id \
             {join} workspace t ON t.id = w.workspace_id {joined} \
             WHERE {DUE_ENTRIES} ORDER BY w.wake_ms, w.workspace_id, w.id LIMIT $2 {skip}"
        )
    })
});

const DUE_ENTRIES: &str = "w.wake_ms <= $1 AND (w.wake_ms, w.workspace_id, w.id) >= ($3, $4, $5) \
     AND NOT (SELECT paused FROM sending WHERE id = 1)";

/// Removes due entries whose schedules were removed.
static REMOVE_LEFT_OVER: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let skip = skip_locked(backend, "w");
        format!(
            "DELETE FROM canvas_schedule_wake WHERE (wake_ms, workspace_id, id) IN ( \
               SELECT w.wake_ms, w.workspace_id, w.id FROM canvas_schedule_wake w \
               WHERE {DUE_ENTRIES} AND NOT EXISTS (SELECT 1 FROM canvas_schedule s \
                 WHERE s.workspace_id = w.workspace_id AND s.id = w.id) \
               ORDER BY w.wake_ms, w.workspace_id, w.id LIMIT $2 {skip} \
             )"
        )
    })
});

/// The due entries of a schedule, and what the claim of its wave needs.
struct DueSchedule {
    entries: Vec<wake::Model>,
    workspace_name: String,
    payload: Payload,
}

/// What a claim reads: the rows are locked, and none is read twice.
#[derive(Default)]
struct DueEntries {
    rows: Vec<canvas_schedule::Model>,
    due: HashMap<ScheduleKey, DueSchedule>,
    /// Those of paused workspaces.
    paused: Vec<wake::Model>,
}

impl DueEntries {
    fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.paused.is_empty()
    }
}

impl DispatchStore {
    /// Claims up to `limit` waves that are due at `now`, while the zone data numbered `in_force` is
    /// in force. If this fails, nothing was claimed, unless the commit failed: then
    /// [`Self::settle_claims`] finds out.
    pub async fn claim(
        &self,
        limit: usize,
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
        in_force: i32,
    ) -> Result<Claimed, Error> {
        let claim = async {
            let db = self.claiming.begin().await?;
            let from = self.cursor.position().wake;
            let entries = due_entries(&db, from, now, limit).await?;
            if entries.is_empty() {
                let removed = remove_left_over(&db, from, now).await?;
                db.commit().await?;
                return Ok(Claimed {
                    leased: vec![],
                    more: removed > 0,
                });
            }
            let pass = ClaimPass {
                now,
                delivery,
                in_force,
                claim_id: fastrand::i64(..),
                decided: vec![],
                unreadable: vec![],
            };
            let claim = claim_all(&db, entries, pass).await?;
            self.commit_claim(db, claim).await
        };
        self.claiming.run(claim).await
    }

    /// Postpones the first entry that is due at `now`, since it keeps those behind it from being
    /// claimed.
    pub async fn postpone_first(&self, now: DateTime<Utc>) -> Result<(), Error> {
        let postpone = async {
            let db = self.claiming.begin().await?;
            let from = self.cursor.position().wake;
            let statement = DUE.with(db.get_database_backend(), due_values(from, now, 1));
            // Decodes the entry alone: its schedule may be what cannot be decoded.
            let rows = db.query_all_raw(statement).await?;
            let entries = rows.iter().map(|row| wake::Model::from_row(row, 0));
            let entries = entries.collect::<Result<Vec<_>, _>>()?;
            for entry in &entries {
                tracing::error!(
                    schedule_id = %entry.id,
                    "claiming a due schedule fails; it is postponed for a minute"
                );
            }
            transitions::postpone_entries(&db, entries, now + UNREADABLE_RETRY_INTERVAL).await?;
            db.commit().await
        };
        self.claiming.run(postpone).await
    }
}

fn due_values((wake_ms, workspace_id, id): WakeKey, now: DateTime<Utc>, limit: i64) -> [Value; 5] {
    [
        now.timestamp_millis().into(),
        limit.into(),
        wake_ms.into(),
        workspace_id.into(),
        id.into(),
    ]
}

async fn due_entries<C: ConnectionTrait>(
    db: &C,
    from: WakeKey,
    now: DateTime<Utc>,
    limit: usize,
) -> Result<DueEntries, DbErr> {
    const AFTER_ENTRY: usize = wake::Model::COUNT;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let statement = DUE.with(db.get_database_backend(), due_values(from, now, limit));
    let mut entries = DueEntries::default();
    for row in db.query_all_raw(statement).await? {
        let entry = wake::Model::from_row(&row, 0)?;
        if row.try_get_by_index(AFTER_ENTRY)? {
            entries.paused.push(entry);
            continue;
        }
        let key = ScheduleKey::new(entry.workspace_id, entry.id);
        if let Some(due) = entries.due.get_mut(&key) {
            due.entries.push(entry);
            continue;
        }
        let due = DueSchedule {
            entries: vec![entry],
            workspace_name: row.try_get_by_index(AFTER_ENTRY + 1)?,
            payload: Payload::from_row(&row, AFTER_ENTRY + 2)?,
        };
        let schedule = canvas_schedule::Model::from_row(&row, AFTER_ENTRY + 4)?;
        entries.rows.push(schedule);
        entries.due.insert(key, due);
    }
    Ok(entries)
}

async fn remove_left_over<C: ConnectionTrait>(
    db: &C,
    from: WakeKey,
    now: DateTime<Utc>,
) -> Result<u64, DbErr> {
    let values = due_values(from, now, MAX_LEFT_OVER);
    let statement = REMOVE_LEFT_OVER.with(db.get_database_backend(), values);
    Ok(db.execute_raw(statement).await?.rows_affected())
}

async fn claim_all<C: ConnectionTrait>(
    db: &C,
    entries: DueEntries,
    mut pass: ClaimPass<'_>,
) -> Result<Committing, DbErr> {
    let DueEntries {
        rows,
        mut due,
        paused,
        ..
    } = entries;
    transitions::park_entries(db, &paused).await?;
    for loaded in load::with_dispatches(db, rows).await? {
        let Some(due) = due.remove(&load::key_of(&loaded)) else {
            continue;
        };
        match loaded {
            Ok(loaded) => pass.decide(loaded, due),
            Err(unreadable) => {
                unreadable.log(POSTPONED);
                pass.unreadable.extend(due.entries);
            }
        }
    }
    let mut claim = pass.write(db).await?;
    claim.more |= !paused.is_empty();
    Ok(claim)
}

/// A schedule and the domain's decision.
struct DecidedSchedule {
    loaded: Loaded,
    entries: Vec<wake::Model>,
    after: CanvasSchedule,
    lease: Option<PendingLease>,
    /// When to examine it next, if not when its next wave is due.
    examine_ms: Option<i64>,
}

/// The decisions of one claim.
struct ClaimPass<'a> {
    now: DateTime<Utc>,
    delivery: &'a DeliveryPolicy,
    in_force: i32,
    /// Marks the dispatches.
    claim_id: i64,
    decided: Vec<DecidedSchedule>,
    unreadable: Vec<wake::Model>,
}

impl ClaimPass<'_> {
    /// Lets the domain decide a schedule: claims its earliest wave, or only moves it to its next
    /// one.
    fn decide(&mut self, loaded: Loaded, due: DueSchedule) {
        let (row, schedule) = (&loaded.row, &loaded.schedule);
        if schedule.schedule.is_local() && !zone::may_claim(row.zone_rules, self.in_force) {
            // Its entries stay where they are, for a replica that has the newer data.
            return;
        }
        // A wave that the sink did not take rests, even when an older entry is still due.
        let now_ms = self.now.timestamp_millis();
        let examine_ms = row.wake_ms.filter(|at| *at > now_ms);
        let claimed = match examine_ms {
            None => schedule.claim(self.now, self.delivery),
            Some(_) => None,
        };
        let (after, dispatch) = match claimed {
            Some(claimed) => (claimed.after, Some(claimed.dispatch)),
            None => (schedule.clone().replanned(), None),
        };
        let lease = dispatch.map(|dispatch| PendingLease {
            workspace: WorkspaceId(row.workspace_id),
            workspace_name: due.workspace_name,
            schedule: after.clone(),
            dispatch,
            payload: due.payload,
        });
        self.decided.push(DecidedSchedule {
            loaded,
            entries: due.entries,
            after,
            lease,
            examine_ms,
        });
    }

    async fn write<C: ConnectionTrait>(mut self, db: &C) -> Result<Committing, DbErr> {
        let (mut transitions, mut leased) = (Transitions::default(), HashMap::new());
        for one in self.decided {
            let entries = one.entries.clone();
            let (before, lease) = (&one.loaded.row, one.lease.as_ref());
            match encoded(lease, self.now, self.claim_id).and_then(|(lease, dispatch)| {
                let taken = Taken { entries, dispatch };
                transitions.push(before, &one.after, one.examine_ms, self.now, taken)?;
                Ok(lease)
            }) {
                Ok(lease) => leased.extend(lease.map(|lease| (before.id, lease))),
                Err(fault) => {
                    one.loaded.unreadable(fault).log(POSTPONED);
                    self.unreadable.extend(one.entries);
                }
            }
        }
        let written = transitions.write(db).await?;
        let more = !written.is_empty() || !self.unreadable.is_empty();
        let later = self.now + UNREADABLE_RETRY_INTERVAL;
        transitions::postpone_entries(db, self.unreadable, later).await?;
        leased.retain(|id, _| written.contains(id));
        Ok(Committing {
            claim_id: self.claim_id,
            at: self.now,
            leased: leased.into_values().collect(),
            more,
            dead: 0,
        })
    }
}

/// A lease as its worker and as the database get it.
fn encoded(
    lease: Option<&PendingLease>,
    now: DateTime<Utc>,
    claim_id: i64,
) -> Result<(Option<Leased>, Option<dispatch::Model>), DbErr> {
    lease.map_or(Ok((None, None)), |pending| {
        Ok((Some(pending.lease(now)?), Some(pending.row(claim_id)?)))
    })
}
