//! What the dispatcher asks: claim what is due, retry, settle outcomes.

pub(super) mod claim;
pub(super) mod cursor;
pub(super) mod dead_letters;
pub(super) mod next_due;
pub(super) mod pause;
pub(super) mod payload;
pub(super) mod retry;
pub(super) mod rows;
pub(super) mod settle;
pub(super) mod transitions;
pub(super) mod zone_rules;

use crate::store::session::pool::Pool;
use crate::store::session::sessions::Sessions;
use crate::telemetry::metrics::CommitMetrics;
use cursor::Heads;

/// What the dispatcher asks.
#[derive(Clone)]
pub struct DispatchStore {
    pool: Pool,
    /// Of `pool`, the connection that claims.
    claiming: Sessions,
    /// Of `pool`, the connection that settles.
    settling: Sessions,
    /// Where what is due begins.
    heads: Heads,
    writes: CommitMetrics,
}

impl DispatchStore {
    pub(super) fn new(pool: Pool, writes: CommitMetrics) -> Self {
        Self {
            claiming: Sessions::new(pool.clone()),
            settling: Sessions::new(pool.clone()),
            pool,
            heads: Heads::default(),
            writes,
        }
    }
}
