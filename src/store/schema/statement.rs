//! The texts and parameters of statements over rows. A batch of rows is a table that the statement
//! reads: on PostgreSQL an array for each column, on SQLite one JSON array. The text is the same
//! whatever the size of the batch, so that it stays prepared.

use std::marker::PhantomData;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, IdenStatic, QueryResult, Statement, Value};

use crate::store::schema::row::{Column, Kind, Row};

/// The columns of a row that a statement reads or writes, in their order.
pub(crate) struct Columns<R> {
    list: Vec<Column>,
    row: PhantomData<fn(R)>,
}

impl<R: Row> Columns<R> {
    pub(crate) fn all() -> Self {
        Self::of(R::columns())
    }

    pub(crate) fn only<C: IdenStatic>(names: impl IntoIterator<Item = C>) -> Self {
        let all = R::columns();
        let column = |name: C| {
            all.iter()
                .find(|column| column.name == name.as_str())
                .copied()
        };
        Self::of(names.into_iter().filter_map(column).collect())
    }

    /// All but some of them, so that a new column is included.
    pub(crate) fn except<C: IdenStatic>(names: impl IntoIterator<Item = C>) -> Self {
        let names: Vec<&str> = names.into_iter().map(|name| name.as_str()).collect();
        let mut list = R::columns();
        list.retain(|column| !names.contains(&column.name));
        Self::of(list)
    }

    fn of(list: Vec<Column>) -> Self {
        Self {
            list,
            row: PhantomData,
        }
    }

    /// These columns and those of a second row.
    pub(crate) fn and<S: Row>(self, other: Columns<S>) -> Columns<(R, S)> {
        let right = other.list.into_iter().map(|column| Column {
            index: column.index + R::COUNT,
            ..column
        });
        Columns::of(self.list.into_iter().chain(right).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Their names, each after `prefix`.
    pub(crate) fn names(&self, prefix: &str) -> String {
        self.join(|column| format!("{prefix}{}", column.name))
    }

    /// The assignments of an `UPDATE` from the table `batch`.
    pub(crate) fn assignments(&self, batch: &str) -> String {
        self.join(|Column { name, .. }| format!("{name} = {batch}.{name}"))
    }

    pub(crate) fn parameters(&self, backend: DbBackend) -> usize {
        match backend {
            DbBackend::Postgres => self.list.len(),
            _ => 1,
        }
    }

    /// A batch as a table, in parentheses, read from the parameters from number `first` on.
    pub(crate) fn table(&self, backend: DbBackend, first: usize) -> String {
        if backend != DbBackend::Postgres {
            let mut position = 0..;
            let columns = self.join(|column| {
                let value = format!("value ->> {}", position.next().unwrap_or_default());
                column.json_expression(&value)
            });
            return format!("(SELECT {columns} FROM json_each(${first}))");
        }
        let mut parameter = first..;
        let arrays = self.join(|column| {
            let number = parameter.next().unwrap_or_default();
            format!("${number}::{}[]", column.kind.array().1)
        });
        let (columns, names) = (self.join(Column::array_expression), self.names(""));
        format!("(SELECT {columns} FROM unnest({arrays}) AS r ({names}))")
    }

    /// One row as a table, in parentheses, on PostgreSQL: its parameters are plain values, which
    /// spares it the arrays.
    pub(crate) fn single(&self, first: usize) -> String {
        let mut parameter = first..;
        let values = self.join(|column| {
            let number = parameter.next().unwrap_or_default();
            format!("${number}::{}", column.kind.array().1)
        });
        let names = self.names("");
        format!("(SELECT {names} FROM (VALUES ({values})) AS r ({names}))")
    }

    pub(crate) fn values(&self, backend: DbBackend, rows: &[R]) -> Vec<Value> {
        match backend {
            DbBackend::Postgres => self.list.iter().map(|column| column.array(rows)).collect(),
            _ => vec![self.json(rows).into()],
        }
    }

    pub(crate) fn row(&self, row: &R) -> impl Iterator<Item = Value> {
        self.list.iter().map(|column| column.of(row))
    }

    fn json(&self, rows: &[R]) -> String {
        let row = |row: &R| self.row(row).map(json).collect::<serde_json::Value>();
        rows.iter()
            .map(row)
            .collect::<serde_json::Value>()
            .to_string()
    }

    /// A part for each column, separated by commas.
    pub(crate) fn join(&self, part: impl FnMut(&Column) -> String) -> String {
        self.list.iter().map(part).collect::<Vec<_>>().join(", ")
    }
}

impl Column {
    fn array<R: Row>(&self, rows: &[R]) -> Value {
        let elements = rows.iter().map(|row| self.element_of(row)).collect();
        Value::Array(self.kind.array().0, Some(Box::new(elements)))
    }

    /// The column on PostgreSQL, NULL where the stand-in is.
    fn array_expression(&self) -> String {
        let name = self.name;
        match self.kind.stand_in_literal() {
            Some(stand_in) if self.nullable => format!("NULLIF({name}, {stand_in}) AS {name}"),
            _ => name.to_owned(),
        }
    }

    /// The column on SQLite, whose value in JSON is `value`.
    fn json_expression(&self, value: &str) -> String {
        match self.kind {
            // Stored as 16 bytes; JSON has it with hyphens.
            Kind::Uuid => format!("unhex({value}, '-') AS {}", self.name),
            _ => format!("{value} AS {}", self.name),
        }
    }
}

fn json(value: Value) -> serde_json::Value {
    match value {
        Value::SmallInt(value) => value.into(),
        Value::Int(value) => value.into(),
        Value::BigInt(value) => value.into(),
        Value::Bool(value) => value.into(),
        Value::Uuid(value) => value.map(|value| value.to_string()).into(),
        Value::String(value) => value.into(),
        other => unreachable!("no column has the type of {other:?}"),
    }
}

/// A statement whose text both databases understand.
pub(crate) fn statement<C: ConnectionTrait>(
    db: &C,
    text: &str,
    values: impl IntoIterator<Item = Value>,
) -> Statement {
    Statement::from_sql_and_values(db.get_database_backend(), text, values)
}

/// Fails unless all rows still had the version that was read, as they must under SQLite's one write
/// lock.
pub(crate) fn expect_all(written: u64, rows: usize) -> Result<(), DbErr> {
    if written == rows as u64 {
        return Ok(());
    }
    let message = format!("{written} of {rows} rows had the version that was read");
    Err(DbErr::Custom(message))
}

/// Ends a `SELECT`: locks its rows of the tables `of`, and leaves out those of which another session
/// has locked one; they do not count against its `LIMIT`. SQLite locks the file.
pub(crate) fn skip_locked(backend: DbBackend, of: &str) -> String {
    match backend {
        DbBackend::Postgres => format!("FOR UPDATE OF {of} SKIP LOCKED"),
        _ => String::new(),
    }
}

/// Joins the table that follows after those before it. SQLite would choose the order itself, by
/// statistics that it may not have.
pub(crate) fn join_in_order(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "JOIN",
        _ => "CROSS JOIN",
    }
}

/// A statement with one text for each database.
pub(crate) struct Texts {
    postgres: String,
    sqlite: String,
}

impl Texts {
    /// Both texts, from a function of the database.
    pub(crate) fn of(text: impl Fn(DbBackend) -> String) -> Self {
        Self {
            postgres: text(DbBackend::Postgres),
            sqlite: text(DbBackend::Sqlite),
        }
    }

    pub(crate) fn get(&self, backend: DbBackend) -> &str {
        match backend {
            DbBackend::Postgres => &self.postgres,
            _ => &self.sqlite,
        }
    }

    pub(crate) fn with(
        &self,
        backend: DbBackend,
        values: impl IntoIterator<Item = Value>,
    ) -> Statement {
        Statement::from_sql_and_values(backend, self.get(backend), values)
    }
}

/// A statement over a batch of rows, which its text reads as the table `batch`.
pub(crate) struct OverBatch<R> {
    columns: Columns<R>,
    texts: Texts,
}

impl<R: Row> OverBatch<R> {
    /// A statement with no parameters but the batch.
    pub(crate) fn new(text: &str) -> Self {
        Self::after(0, text)
    }

    /// A statement whose own parameters, this many, come before those of the batch.
    pub(crate) fn after(parameters: usize, text: &str) -> Self {
        Self::by_backend(parameters, |_| text.to_owned())
    }

    /// As [`Self::after`], with a text for each database.
    pub(crate) fn by_backend(parameters: usize, text: impl Fn(DbBackend) -> String) -> Self {
        let columns = Columns::all();
        let texts = Texts::of(|backend| {
            let (batch, text) = (columns.table(backend, parameters + 1), text(backend));
            format!("WITH batch AS {batch} {text}")
        });
        Self { columns, texts }
    }

    fn statement(
        &self,
        backend: DbBackend,
        before: impl IntoIterator<Item = Value>,
        rows: &[R],
    ) -> Statement {
        let values = self.columns.values(backend, rows);
        self.texts.with(backend, before.into_iter().chain(values))
    }

    /// Runs it, with its own parameters, over the batch. Does nothing for an empty batch.
    pub(crate) async fn execute<C: ConnectionTrait>(
        &self,
        db: &C,
        before: impl IntoIterator<Item = Value>,
        rows: &[R],
    ) -> Result<(), DbErr> {
        if !rows.is_empty() {
            let statement = self.statement(db.get_database_backend(), before, rows);
            db.execute_raw(statement).await?;
        }
        Ok(())
    }

    /// Reads by a batch of keys. Reads nothing for an empty batch.
    pub(crate) async fn query<C: ConnectionTrait>(
        &self,
        db: &C,
        keys: &[R],
    ) -> Result<Vec<QueryResult>, DbErr> {
        if keys.is_empty() {
            return Ok(vec![]);
        }
        db.query_all_raw(self.statement(db.get_database_backend(), [], keys))
            .await
    }
}
