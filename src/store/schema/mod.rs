//! The tables, their rows, and the way from rows to domain values and back.

pub(super) mod answered;
pub(super) mod codec;
pub(super) mod history;
pub(super) mod load;
pub(super) mod migration;
pub(super) mod row;
pub(super) mod statement;
pub(super) mod tables;
pub(super) mod tenant;
pub(super) mod values;
