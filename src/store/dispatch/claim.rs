//! Claims due waves. One short transaction moves due rows to their next waves and inserts their
//! dispatches, leased to the caller. It never claims more than the caller asked for.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DbErr};

use crate::domain::{CanvasSchedule, DeliveryPolicy, WorkspaceId, zone};
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::cursor::Position;
use crate::store::dispatch::payload::{Leased, Payloads, PendingLease};
use crate::store::dispatch::transitions::{self, REMOVE_ENTRIES, Transitions};
use crate::store::schema::load::{self, Loaded, Lock, ScheduleKey};
use crate::store::schema::row::FromRow;
use crate::store::schema::statement::{Texts, skip_locked};
use crate::store::schema::tables::wake;

/// How long a row that this build cannot read is postponed.
pub(crate) const UNREADABLE_RETRY_INTERVAL: TimeDelta = TimeDelta::minutes(1);

const POSTPONED: &str = "it is postponed for a minute";

/// The result of one claim or retry.
#[derive(Debug, Default)]
pub struct Claimed {
    /// Dispatches for the caller to deliver.
    pub leased: Vec<Leased>,
    /// Whether any row was written, so that more may be due: further entries, or a further wave of
    /// the same schedule.
    pub more: bool,
}

/// Up to as many entries as are asked for, without those that another replica has locked.
static DUE: LazyLock<Texts> = LazyLock::new(|| {
    Texts::of(|backend| {
        let skip = skip_locked(backend);
        format!(
            "SELECT w.wake_ms, w.workspace_id, w.id, t.name, t.sending_paused FROM ( \
               SELECT wake_ms, workspace_id, id FROM canvas_schedule_wake \
               WHERE wake_ms <= $1 AND (wake_ms, workspace_id, id) >= ($3, $4, $5) \
                 AND NOT (SELECT paused FROM sending WHERE id = 1) \
               ORDER BY wake_ms, workspace_id, id LIMIT $2 {skip} \
             ) AS w JOIN workspace t ON t.id = w.workspace_id"
        )
    })
});

/// A schedule with due entries.
struct DueSchedule {
    entries: Vec<wake::Model>,
    workspace_name: String,
}

/// The due entries of the queue.
#[derive(Default)]
struct DueEntries {
    due: BTreeMap<ScheduleKey, DueSchedule>,
    /// Those of paused workspaces.
    paused: Vec<wake::Model>,
}

impl DispatchStore {
    /// Claims up to `limit` waves that are due at `now`, while the zone data numbered `in_force` is
    /// in force. If this fails, nothing was claimed, unless the connection was lost at the commit:
    /// then the leases expire.
    pub async fn claim(
        &self,
        limit: usize,
        now: DateTime<Utc>,
        delivery: &DeliveryPolicy,
        in_force: i32,
    ) -> Result<Claimed, Error> {
        let claim = async {
            let db = self.claiming.begin().await?;
            let entries = due_entries(&db, self.cursor.position(), now, limit).await?;
            if entries.due.is_empty() && entries.paused.is_empty() {
                db.rollback().await?;
                return Ok(Claimed::default());
            }
            let pass = ClaimPass {
                now,
                delivery,
                in_force,
                decided: vec![],
                unreadable: vec![],
            };
            let claimed = claim_all(&db, entries, pass).await?;
            db.commit().await?;
            Ok(claimed)
        };
        self.pool.run(claim).await
    }

    /// Postpones the first entry that is due at `now`, since it keeps those behind it from being
    /// claimed.
    pub async fn postpone_first(&self, now: DateTime<Utc>) -> Result<(), Error> {
        let postpone = async {
            let db = self.claiming.begin().await?;
            let DueEntries { due, .. } = due_entries(&db, self.cursor.position(), now, 1).await?;
            let entries: Vec<wake::Model> = due.into_values().flat_map(|due| due.entries).collect();
            for entry in &entries {
                tracing::error!(
                    schedule_id = %entry.id,
                    "claiming a due schedule fails; it is postponed for a minute"
                );
            }
            transitions::postpone_entries(&db, entries, now + UNREADABLE_RETRY_INTERVAL).await?;
            db.commit().await
        };
        self.pool.run(postpone).await
    }
}

async fn due_entries<C: ConnectionTrait>(
    db: &C,
    from: Position,
    now: DateTime<Utc>,
    limit: usize,
) -> Result<DueEntries, DbErr> {
    let (wake_ms, workspace_id, id) = from.wake;
    let values = [
        now.timestamp_millis().into(),
        i64::try_from(limit).unwrap_or(i64::MAX).into(),
        wake_ms.into(),
        workspace_id.into(),
        id.into(),
    ];
    let statement = DUE.with(db.get_database_backend(), values);
    let mut entries = DueEntries::default();
    for row in db.query_all_raw(statement).await? {
        let entry = wake::Model::from_row(&row, 0)?;
        if row.try_get_by_index(4)? {
            entries.paused.push(entry);
            continue;
        }
        let workspace_name = row.try_get_by_index(3)?;
        let key = ScheduleKey::new(entry.workspace_id, entry.id);
        let due = entries.due.entry(key).or_insert_with(|| DueSchedule {
            entries: vec![],
            workspace_name,
        });
        due.entries.push(entry);
    }
    Ok(entries)
}

async fn claim_all<C: ConnectionTrait>(
    db: &C,
    entries: DueEntries,
    mut pass: ClaimPass<'_>,
) -> Result<Claimed, DbErr> {
    let DueEntries { mut due, paused } = entries;
    transitions::park_entries(db, &paused).await?;
    let keys: Vec<ScheduleKey> = due.keys().copied().collect();
    for loaded in load::load(db, &keys, Lock::None).await? {
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
    // The rows of those that are left were removed.
    let left_over: Vec<wake::Model> = due.into_values().flat_map(|due| due.entries).collect();
    REMOVE_ENTRIES.execute(db, [], &left_over).await?;
    let mut claimed = pass.write(db).await?;
    claimed.more |= !paused.is_empty() || !left_over.is_empty();
    Ok(claimed)
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
        });
        self.decided.push(DecidedSchedule {
            loaded,
            entries: due.entries,
            after,
            lease,
            examine_ms,
        });
    }

    async fn write<C: ConnectionTrait>(mut self, db: &C) -> Result<Claimed, DbErr> {
        let leases = self.decided.iter().filter_map(|one| one.lease.as_ref());
        let payloads = Payloads::read(db, leases).await?;
        let (mut transitions, mut leased) = (Transitions::default(), HashMap::new());
        for one in self.decided {
            let before = &one.loaded.row;
            if let Some(pending) = &one.lease {
                match payloads.lease(pending, self.now) {
                    Ok(lease) => leased.insert(before.id, lease),
                    Err(fault) => {
                        one.loaded.unreadable(fault).log(POSTPONED);
                        self.unreadable.extend(one.entries);
                        continue;
                    }
                };
            }
            transitions.taken.extend(one.entries);
            let dispatch = one.lease.as_ref().map(PendingLease::row).transpose()?;
            transitions.push(before, &one.after, one.examine_ms, self.now, dispatch)?;
        }
        let written = transitions.write(db).await?;
        let more = !written.is_empty() || !self.unreadable.is_empty();
        let later = self.now + UNREADABLE_RETRY_INTERVAL;
        transitions::postpone_entries(db, self.unreadable, later).await?;
        leased.retain(|id, _| written.contains(id));
        Ok(Claimed {
            leased: leased.into_values().collect(),
            more,
        })
    }
}
