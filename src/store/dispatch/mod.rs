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

use crate::store::session::lane::Lane;
use crate::store::session::pool::Link;
use crate::telemetry::metrics::CommitMetrics;
use cursor::Heads;

/// What the dispatcher asks.
#[derive(Clone)]
pub struct DispatchStore {
    link: Link,
    /// Of `link`, the connection that claims.
    claiming: Lane,
    /// Of `link`, the connection that settles.
    settling: Lane,
    /// Where what is due begins.
    heads: Heads,
    writes: CommitMetrics,
}

impl DispatchStore {
    pub(super) fn new(link: Link, writes: CommitMetrics) -> Self {
        Self {
            claiming: Lane::new(link.clone()),
            settling: Lane::new(link.clone()),
            link,
            heads: Heads::default(),
            writes,
        }
    }
}
