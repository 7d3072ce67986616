//! Batches of rows as the table that a statement reads: on PostgreSQL an array for each column, on SQLite one JSON array. One text
//! for each statement whatever the size of the batch, so that it stays prepared.

use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Statement, Value};
use uuid::Uuid;

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 16 bits.
    Small,
    /// 32 bits.
    Int,
    /// 64 bits.
    Big,
    /// 64 bits, or NULL.
    BigOrNull,
    /// A boolean.
    Bool,
    /// A UUID.
    Uuid,
    /// A UUID, or NULL.
    UuidOrNull,
    /// Text.
    Text,
    /// Text that is never empty, or NULL.
    TextOrNull,
}

/// A column and its type.
pub(crate) type Column = (&'static str, Kind);

/// What a batch is made of.
pub(crate) trait Row {
    /// Its columns.
    fn columns() -> Vec<Column>;
    /// Its values, in the same order.
    fn values(&self) -> Vec<Value>;
}

/// Makes a struct a [`Row`] of its fields of these names, which are the columns' names too.
macro_rules! row {
    ($row:ty { $($name:ident: $kind:ident),* $(,)? }) => {
        impl $crate::store::schema::columns::Row for $row {
            fn columns() -> Vec<$crate::store::schema::columns::Column> {
                vec![$((stringify!($name), $crate::store::schema::columns::Kind::$kind)),*]
            }

            fn values(&self) -> Vec<sea_orm::Value> {
                vec![$(self.$name.clone().into()),*]
            }
        }
    };
}
pub(crate) use row;

impl Kind {
    fn array(self) -> (ArrayType, &'static str) {
        match self {
            Self::Small => (ArrayType::SmallInt, "int2"),
            Self::Int => (ArrayType::Int, "int4"),
            Self::Big | Self::BigOrNull => (ArrayType::BigInt, "int8"),
            Self::Bool => (ArrayType::Bool, "bool"),
            Self::Uuid | Self::UuidOrNull => (ArrayType::Uuid, "uuid"),
            Self::Text | Self::TextOrNull => (ArrayType::String, "text"),
        }
    }

    /// NULL.
    pub(crate) fn null(self) -> Value {
        match self {
            Self::Small => Value::SmallInt(None),
            Self::Int => Value::Int(None),
            Self::Big | Self::BigOrNull => Value::BigInt(None),
            Self::Bool => Value::Bool(None),
            Self::Uuid | Self::UuidOrNull => Value::Uuid(None),
            Self::Text | Self::TextOrNull => Value::String(None),
        }
    }

    /// What stands for NULL inside an array, whose elements cannot be NULL; where a column may be, it is a value that no row has.
    fn stand_in(self) -> Value {
        match self {
            Self::Small => i16::MIN.into(),
            Self::Int => i32::MIN.into(),
            Self::Big | Self::BigOrNull => i64::MIN.into(),
            Self::Bool => false.into(),
            Self::Uuid | Self::UuidOrNull => Uuid::nil().into(),
            Self::Text | Self::TextOrNull => String::new().into(),
        }
    }

    /// The column on PostgreSQL, NULL where the stand-in is.
    fn postgres(self, column: &str) -> String {
        match self {
            Self::BigOrNull => format!("NULLIF({column}, '{}'::int8) AS {column}", i64::MIN),
            Self::UuidOrNull => format!("NULLIF({column}, '{}'::uuid) AS {column}", Uuid::nil()),
            Self::TextOrNull => format!("NULLIF({column}, '') AS {column}"),
            _ => column.to_owned(),
        }
    }

    /// The column on SQLite, which is at that place of its row.
    fn sqlite(self, column: &str, place: usize) -> String {
        match self {
            // Stored as 16 bytes; JSON has it with hyphens.
            Self::Uuid | Self::UuidOrNull => format!("unhex(value ->> {place}, '-') AS {column}"),
            _ => format!("value ->> {place} AS {column}"),
        }
    }
}

/// How many parameters a batch of such rows takes.
pub(crate) fn parameters<R: Row>(backend: DbBackend) -> usize {
    if backend == DbBackend::Postgres {
        R::columns().len()
    } else {
        1
    }
}

/// A batch as a common table expression called `name`, read from the parameters from number `first` on.
pub(crate) fn table<R: Row>(backend: DbBackend, name: &str, first: usize) -> String {
    let columns = R::columns();
    if backend != DbBackend::Postgres {
        let listed = join(
            columns
                .iter()
                .enumerate()
                .map(|(place, (column, kind))| kind.sqlite(column, place)),
        );
        return format!("{name} AS (SELECT {listed} FROM json_each(${first}))");
    }
    let listed = join(columns.iter().map(|(column, kind)| kind.postgres(column)));
    let arrays = join(
        columns
            .iter()
            .enumerate()
            .map(|(n, (_, kind))| format!("${}::{}[]", first + n, kind.array().1)),
    );
    format!(
        "{name} AS (SELECT {listed} FROM unnest({arrays}) AS r ({}))",
        names::<R>("")
    )
}

/// The names of the columns, each after `prefix`.
pub(crate) fn names<R: Row>(prefix: &str) -> String {
    join(
        R::columns()
            .iter()
            .map(|(name, _)| format!("{prefix}{name}")),
    )
}

fn join(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(", ")
}

/// Rows as the parameters of their table.
pub(crate) fn values<R: Row>(backend: DbBackend, rows: &[R]) -> Vec<Value> {
    if backend == DbBackend::Postgres {
        arrays(rows)
    } else {
        vec![json(rows).into()]
    }
}

fn arrays<R: Row>(rows: &[R]) -> Vec<Value> {
    let columns = R::columns();
    let mut arrays: Vec<Vec<Value>> = columns
        .iter()
        .map(|_| Vec::with_capacity(rows.len()))
        .collect();
    for row in rows {
        for ((array, (_, kind)), value) in arrays.iter_mut().zip(&columns).zip(row.values()) {
            array.push(if value == kind.null() {
                kind.stand_in()
            } else {
                value
            });
        }
    }
    arrays
        .into_iter()
        .zip(columns)
        .map(|(array, (_, kind))| Value::Array(kind.array().0, Some(Box::new(array))))
        .collect()
}

fn json<R: Row>(rows: &[R]) -> String {
    let rows = rows.iter().map(|row| {
        row.values()
            .into_iter()
            .map(cell)
            .collect::<serde_json::Value>()
    });
    rows.collect::<serde_json::Value>().to_string()
}

fn cell(value: Value) -> serde_json::Value {
    match value {
        Value::SmallInt(value) => value.into(),
        Value::Int(value) => value.into(),
        Value::BigInt(value) => value.into(),
        Value::Bool(value) => value.into(),
        Value::Uuid(value) => value.map(|value| value.to_string()).into(),
        Value::String(value) => value.into(),
        other => unreachable!("no column is of the kind of {other:?}"),
    }
}

/// One text for each database.
pub(crate) struct Texts {
    postgres: String,
    sqlite: String,
}

impl Texts {
    /// Both texts, from one that is told which database it is for.
    pub(crate) fn of(text: impl Fn(DbBackend) -> String) -> Self {
        Self {
            postgres: text(DbBackend::Postgres),
            sqlite: text(DbBackend::Sqlite),
        }
    }

    /// Runs it over a batch of rows, in the parameters after those of `before`. Nothing is run for no rows.
    ///
    /// # Errors
    /// What the database says.
    pub(crate) async fn execute<C: ConnectionTrait>(
        &self,
        db: &C,
        before: impl IntoIterator<Item = Value>,
        rows: &[impl Row],
    ) -> Result<(), DbErr> {
        if rows.is_empty() {
            return Ok(());
        }
        let backend = db.get_database_backend();
        let values = before.into_iter().chain(values(backend, rows));
        db.execute_raw(Statement::from_sql_and_values(
            backend,
            self.get(backend),
            values,
        ))
        .await?;
        Ok(())
    }

    /// Reads by a batch of keys, in the first parameters. Nothing is read for none.
    ///
    /// # Errors
    /// What the database says.
    pub(crate) async fn query<C: ConnectionTrait>(
        &self,
        db: &C,
        keys: &[impl Row],
    ) -> Result<Vec<QueryResult>, DbErr> {
        if keys.is_empty() {
            return Ok(vec![]);
        }
        let backend = db.get_database_backend();
        db.query_all_raw(Statement::from_sql_and_values(
            backend,
            self.get(backend),
            values(backend, keys),
        ))
        .await
    }

    /// The text for a database.
    pub(crate) fn get(&self, backend: DbBackend) -> &str {
        if backend == DbBackend::Postgres {
            &self.postgres
        } else {
            &self.sqlite
        }
    }
}
