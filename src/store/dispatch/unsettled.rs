//! Claims and retries whose commit failed. The connection may have been lost after the database
//! carried the commit out, so that its outcome is unknown until it is read back: every dispatch
//! that it leased then has its `claim_id`. Otherwise the dispatches would wait for the end of their
//! leases.

use std::collections::HashSet;
use std::sync::{Arc, LazyLock};

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use sea_orm::DbErr;

use crate::domain::DispatchState;
use crate::error::Error;
use crate::store::dispatch::DispatchStore;
use crate::store::dispatch::claim::Claimed;
use crate::store::dispatch::payload::Leased;
use crate::store::dispatch::rows::DispatchKey;
use crate::store::schema::codec;
use crate::store::schema::load::{self, Lock, ScheduleKey};
use crate::store::schema::row::{FromRow, row};
use crate::store::schema::statement::OverBatch;
use crate::store::session::sessions::Session;

/// What a claim or retry is about to commit.
pub(crate) struct Committing {
    pub claim_id: i64,
    /// When it was decided.
    pub at: DateTime<Utc>,
    pub leased: Vec<Leased>,
    /// Whether it wrote any row.
    pub more: bool,
    /// How many dispatches it makes dead letters.
    pub dead: usize,
}

/// The claims and retries whose commit failed.
#[derive(Clone, Default)]
pub(crate) struct UnsettledClaims(Arc<Mutex<Vec<Committing>>>);

impl UnsettledClaims {
    fn add(&self, claim: Committing) {
        if !claim.leased.is_empty() {
            self.0.lock().push(claim);
        }
    }
}

/// Adds its claim to the unsettled ones when it is dropped, unless the commit succeeded.
struct UntilCommitted<'a> {
    unsettled: &'a UnsettledClaims,
    claim: Option<Committing>,
}

impl Drop for UntilCommitted<'_> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.unsettled.add(claim);
        }
    }
}

row! {
    struct ClaimId {
        claim_id: i64,
    }
}

static COMMITTED: LazyLock<OverBatch<(DispatchKey, ClaimId)>> = LazyLock::new(|| {
    let in_flight = codec::dispatch_state_code(DispatchState::InFlight);
    OverBatch::new(&format!(
        "SELECT d.schedule_id, d.n, d.workspace_id FROM batch AS k \
         JOIN dispatch d ON d.workspace_id = k.workspace_id AND d.schedule_id = k.schedule_id \
           AND d.n = k.n \
         WHERE d.claim_id = k.claim_id AND d.state = {in_flight}"
    ))
});

impl DispatchStore {
    /// Commits a claim or retry. If that fails or is given up, [`Self::settle_claims`] finds out
    /// whether it was carried out.
    pub(crate) async fn commit_claim(
        &self,
        db: Session<'_>,
        claim: Committing,
    ) -> Result<Claimed, DbErr> {
        let mut pending = UntilCommitted {
            unsettled: &self.unsettled,
            claim: Some(claim),
        };
        db.commit().await?;
        let Some(claim) = pending.claim.take() else {
            return Ok(Claimed::default());
        };
        self.metrics.count_dead_letters(claim.dead);
        Ok(Claimed {
            leased: claim.leased,
            more: claim.more,
        })
    }

    /// How many dispatches were perhaps leased by commits that failed.
    pub fn unsettled_claims(&self) -> usize {
        let unsettled = self.unsettled.0.lock();
        unsettled.iter().map(|claim| claim.leased.len()).sum()
    }

    /// Returns the dispatches that were leased by commits that failed but were carried out. Forgets
    /// claims that were not carried out, whose waves are still due, and dispatches whose lease has
    /// expired; keeps those that cannot be read yet.
    pub async fn settle_claims(&self, now: DateTime<Utc>) -> Result<Vec<Leased>, Error> {
        let claims = std::mem::take(&mut *self.unsettled.0.lock());
        let (mut committed, mut failed) = (vec![], None);
        for mut claim in claims {
            let claimed = claim.leased.len();
            claim.leased.retain(|one| one.until > now);
            let expired = claimed - claim.leased.len();
            if expired > 0 {
                tracing::warn!(
                    dispatches = expired,
                    "leases expired before the outcome of their commit was known; the dispatches \
                     are retried"
                );
            }
            if failed.is_some() {
                self.unsettled.add(claim);
                continue;
            }
            match self.claiming.run(self.settle_claim(&claim, now)).await {
                Ok(settled) => {
                    committed.extend(settled.committed);
                    let leased = settled.unknown;
                    self.unsettled.add(Committing { leased, ..claim });
                }
                Err(error) => {
                    self.unsettled.add(claim);
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if committed.is_empty() => Err(error),
            _ => Ok(committed),
        }
    }

    /// Reads back a claim or retry, over a session that is newer than its own.
    async fn settle_claim(
        &self,
        claim: &Committing,
        now: DateTime<Utc>,
    ) -> Result<SettledClaim, DbErr> {
        let leased = claim.leased.iter().map(|one| Ok((key(one)?, one)));
        let leased = leased.collect::<Result<Vec<_>, DbErr>>()?;
        let mut schedules: Vec<ScheduleKey> =
            leased.iter().map(|(key, _)| key.schedule()).collect();
        schedules.sort_unstable();
        schedules.dedup();
        let db = self.claiming.begin().await?;
        // The claim's own transaction keeps these locks until it ends. A dispatch whose schedule is
        // not locked has its final state, which only a statement that begins now is sure to see.
        let ended = load::read_rows(&db, &schedules, Lock::Skip).await?;
        let ended: HashSet<ScheduleKey> = ended.iter().map(ScheduleKey::of).collect();
        let (ended, unknown): (Vec<_>, Vec<_>) = leased
            .into_iter()
            .partition(|(key, _)| ended.contains(&key.schedule()));
        let claim_id = claim.claim_id;
        let keys = ended.iter().map(|(key, _)| (*key, ClaimId { claim_id }));
        let found = COMMITTED.query(&db, &keys.collect::<Vec<_>>()).await?;
        let found = found.iter().map(|row| DispatchKey::from_row(row, 0));
        let found = found.collect::<Result<HashSet<_>, _>>()?;
        db.rollback().await?;
        if !found.is_empty() {
            // What was read is visible but perhaps not durable.
            self.claiming.confirm().await?;
        }
        let committed = ended.into_iter().filter(|(key, _)| found.contains(key));
        Ok(SettledClaim {
            committed: committed
                .map(|(_, one)| later(one, now - claim.at))
                .collect(),
            unknown: unknown.into_iter().map(|(_, one)| one.clone()).collect(),
        })
    }
}

/// What is known of a claim whose commit failed.
struct SettledClaim {
    /// Its dispatches, if it was carried out.
    committed: Vec<Leased>,
    /// Dispatches whose schedules are still locked.
    unknown: Vec<Leased>,
}

fn key(leased: &Leased) -> Result<DispatchKey, DbErr> {
    Ok(DispatchKey {
        schedule_id: leased.dispatch.schedule_id.0,
        n: codec::signed(leased.dispatch.number)?,
        workspace_id: leased.workspace.0,
    })
}

/// A lease whose attempt begins later than it was decided.
fn later(leased: &Leased, by: TimeDelta) -> Leased {
    let mut leased = leased.clone();
    leased.lag += by;
    leased.dispatch.lateness += by;
    leased
}
