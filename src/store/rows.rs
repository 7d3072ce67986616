//! Batches of rows as one JSON array, which both databases read as a table: one text for each statement whatever the size of the
//! batch, so that it stays prepared.

use std::fmt::Write;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Statement, Value};
use serde::Serialize;

use super::convert;

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 16 bits.
    Small,
    /// 32 bits.
    Int,
    /// 64 bits.
    Big,
    /// A boolean.
    Bool,
    /// A UUID.
    Uuid,
    /// Text.
    Text,
}

/// A field that the rows of a batch have in JSON.
pub type Column = (&'static str, Kind);
/// The columns of a batch.
pub type Columns = &'static [Column];

/// A batch as a common table expression called `name`, read from the parameter of that number.
pub fn table(backend: DbBackend, name: &str, columns: &[Column], parameter: usize) -> String {
    let mut listed = String::new();
    for (n, (column, kind)) in columns.iter().enumerate() {
        let separator = if n == 0 { "" } else { ", " };
        let column = if backend == DbBackend::Postgres { postgres(column, *kind) } else { sqlite(column, *kind) };
        // Writing to a String cannot fail.
        let _written = write!(listed, "{separator}{column}");
    }
    if backend == DbBackend::Postgres {
        format!("{name} AS (SELECT * FROM json_to_recordset(${parameter}::text::json) AS r ({listed}))")
    } else {
        format!("{name} AS (SELECT {listed} FROM json_each(${parameter}))")
    }
}

fn postgres(column: &str, kind: Kind) -> String {
    let name = match kind {
        Kind::Small => "int2",
        Kind::Int => "int4",
        Kind::Big => "int8",
        Kind::Bool => "bool",
        Kind::Uuid => "uuid",
        Kind::Text => "text",
    };
    format!("{column} {name}")
}

fn sqlite(column: &str, kind: Kind) -> String {
    match kind {
        // Stored as 16 bytes; JSON has it with hyphens.
        Kind::Uuid => format!("unhex(value ->> '{column}', '-') AS {column}"),
        _ => format!("value ->> '{column}' AS {column}"),
    }
}

/// The names of the columns, for an insert.
pub fn names(columns: Columns, prefix: &str) -> String {
    columns.iter().map(|(name, _)| format!("{prefix}{name}")).collect::<Vec<_>>().join(", ")
}

/// Rows as the parameter of their table.
///
/// # Errors
/// Never in practice: rows always make JSON.
pub fn json(rows: &[impl Serialize]) -> Result<Value, DbErr> {
    serde_json::to_string(rows).map(Value::from).map_err(convert::broken)
}

/// One text for each database.
pub struct Texts {
    postgres: String,
    sqlite: String,
}

impl Texts {
    /// Both texts, from one that is told which database it is for.
    pub fn of(text: impl Fn(DbBackend) -> String) -> Self {
        Self { postgres: text(DbBackend::Postgres), sqlite: text(DbBackend::Sqlite) }
    }

    /// Runs it over a batch of rows, in the first parameter, with what else it takes in those after it. Nothing is run for none.
    ///
    /// # Errors
    /// What the database says.
    pub async fn execute<C: ConnectionTrait>(
        &self,
        db: &C,
        rows: &[impl Serialize],
        more: impl IntoIterator<Item = Value>,
    ) -> Result<(), DbErr> {
        if rows.is_empty() {
            return Ok(());
        }
        let backend = db.get_database_backend();
        let values = [json(rows)?].into_iter().chain(more);
        db.execute_raw(Statement::from_sql_and_values(backend, self.get(backend), values)).await?;
        Ok(())
    }

    /// Reads by a batch of keys. Nothing is read for none.
    ///
    /// # Errors
    /// What the database says.
    pub async fn query<C: ConnectionTrait>(&self, db: &C, keys: &[impl Serialize]) -> Result<Vec<QueryResult>, DbErr> {
        if keys.is_empty() {
            return Ok(vec![]);
        }
        let backend = db.get_database_backend();
        db.query_all_raw(Statement::from_sql_and_values(backend, self.get(backend), [json(keys)?])).await
    }

    /// The text for a database.
    pub fn get(&self, backend: DbBackend) -> &str {
        if backend == DbBackend::Postgres { &self.postgres } else { &self.sqlite }
    }
}
