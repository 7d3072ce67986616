//! One connection to either database, on which statements run one after the other.

use futures_util::TryStreamExt;
use sea_orm::sqlx::sqlite::{SqliteQueryResult, SqliteRow};
use sea_orm::sqlx::{
    self, AssertSqlSafe, Connection as _, Either, Execute, Executor, PgConnection, Postgres,
    Sqlite, SqliteConnection,
};
use sea_orm::{DbErr, ExecResult, QueryResult, RuntimeErr, Statement};
use sea_query_sqlx::SqlxValues;

/// A connection. Dropping it closes it without a farewell; an open transaction is rolled back.
pub(crate) enum DriverConnection {
    Postgres(Box<PgConnection>),
    Sqlite(Box<SqliteConnection>),
}

type Query<'a, D> = sqlx::query::Query<'a, D, SqlxValues>;

fn query<D>(statement: Statement) -> Query<'static, D>
where
    D: sqlx::Database,
    SqlxValues: sqlx::IntoArguments<D>,
{
    let values = statement
        .values
        .unwrap_or_else(|| sea_orm::sea_query::Values(vec![]));
    // The texts come from this crate's own code; what callers sent is in the values.
    sqlx::query_with(AssertSqlSafe(statement.sql), SqlxValues(values))
}

pub(crate) fn driver(why: sqlx::Error) -> RuntimeErr {
    RuntimeErr::SqlxError(why.into())
}

/// Runs statements of SQLite to their end. The driver's thread panics when memory for a row is
/// short; the rows then end as if they were complete, but without the result that follows them.
async fn run_to_end<'q>(
    connection: &mut SqliteConnection,
    statements: impl Execute<'q, Sqlite> + 'q,
) -> Result<(Vec<SqliteRow>, SqliteQueryResult), sqlx::Error> {
    let (mut rows, mut done) = (Vec::new(), SqliteQueryResult::default());
    let mut is_complete = false;
    let mut steps = connection.fetch_many(statements);
    while let Some(step) = steps.try_next().await? {
        is_complete = step.is_left();
        match step {
            Either::Left(result) => done.extend([result]),
            Either::Right(row) => rows.push(row),
        }
    }
    if is_complete {
        Ok((rows, done))
    } else {
        Err(sqlx::Error::WorkerCrashed)
    }
}

fn first((rows, _): (Vec<SqliteRow>, SqliteQueryResult)) -> Option<QueryResult> {
    rows.into_iter().next().map(QueryResult::from)
}

impl DriverConnection {
    pub(crate) async fn execute(&mut self, statement: Statement) -> Result<ExecResult, DbErr> {
        let done = match self {
            Self::Postgres(connection) => query::<Postgres>(statement)
                .execute(&mut **connection)
                .await
                .map(ExecResult::from),
            Self::Sqlite(connection) => run_to_end(connection, query(statement))
                .await
                .map(|(_, done)| ExecResult::from(done)),
        };
        done.map_err(|why| DbErr::Exec(driver(why)))
    }

    /// Runs a text of one or more statements that are not kept prepared.
    pub(crate) async fn execute_unprepared(&mut self, sql: &str) -> Result<ExecResult, DbErr> {
        let text = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        let done = match self {
            Self::Postgres(connection) => {
                text.execute(&mut **connection).await.map(ExecResult::from)
            }
            Self::Sqlite(connection) => run_to_end(connection, text)
                .await
                .map(|(_, done)| ExecResult::from(done)),
        };
        done.map_err(|why| DbErr::Exec(driver(why)))
    }

    /// The first row of a text of one statement that is not kept prepared.
    pub(crate) async fn query_unprepared(
        &mut self,
        sql: &str,
    ) -> Result<Option<QueryResult>, DbErr> {
        let text = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
        let row = match self {
            Self::Postgres(connection) => text
                .fetch_optional(&mut **connection)
                .await
                .map(|row| row.map(QueryResult::from)),
            Self::Sqlite(connection) => run_to_end(connection, text).await.map(first),
        };
        row.map_err(|why| DbErr::Query(driver(why)))
    }

    pub(crate) async fn query_one(
        &mut self,
        statement: Statement,
    ) -> Result<Option<QueryResult>, DbErr> {
        let row = match self {
            Self::Postgres(connection) => query::<Postgres>(statement)
                .fetch_optional(&mut **connection)
                .await
                .map(|row| row.map(QueryResult::from)),
            Self::Sqlite(connection) => run_to_end(connection, query(statement)).await.map(first),
        };
        row.map_err(|why| DbErr::Query(driver(why)))
    }

    pub(crate) async fn query_all(
        &mut self,
        statement: Statement,
    ) -> Result<Vec<QueryResult>, DbErr> {
        let rows: Result<Vec<QueryResult>, sqlx::Error> = match self {
            Self::Postgres(connection) => query::<Postgres>(statement)
                .fetch_all(&mut **connection)
                .await
                .map(|rows| rows.into_iter().map(QueryResult::from).collect()),
            Self::Sqlite(connection) => run_to_end(connection, query(statement))
                .await
                .map(|(rows, _)| rows.into_iter().map(QueryResult::from).collect()),
        };
        rows.map_err(|why| DbErr::Query(driver(why)))
    }

    /// Waits until no statement runs on the connection any more, and checks that it answers.
    pub(crate) async fn ping(&mut self) -> Result<(), DbErr> {
        let answered = match self {
            Self::Postgres(connection) => connection.ping().await,
            Self::Sqlite(connection) => connection.ping().await,
        };
        answered.map_err(|why| DbErr::Conn(driver(why)))
    }

    /// Closes the connection, and waits until it is closed.
    pub(crate) async fn close(self) -> Result<(), DbErr> {
        let closed = match self {
            Self::Postgres(connection) => connection.close().await,
            Self::Sqlite(connection) => connection.close().await,
        };
        closed.map_err(|why| DbErr::Conn(driver(why)))
    }
}
