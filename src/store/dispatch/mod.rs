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
