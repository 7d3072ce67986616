//! A connection to PostgreSQL that a writer keeps for itself.
//!
//! sea-orm takes one out of its pool for each statement, and sqlx's pool asks the server whether a connection still works
//! whenever it gets one back: a round trip more for each of a batch's two (docs/adr/0002 has the figures).

use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::{self, AssertSqlSafe, Postgres};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr,
    Statement,
};
use sea_query_sqlx::SqlxValues;
use tokio::sync::Mutex;

/// One connection, out of its pool for as long as this lives, and closed with it: whoever gives it up does not know what
/// state it is in.
pub(crate) struct Held(Mutex<PoolConnection<Postgres>>);

impl Held {
    /// Takes a connection out of a pool to PostgreSQL.
    ///
    /// # Errors
    /// There is none to be had.
    pub(crate) async fn take(pool: &DatabaseConnection) -> Result<Self, DbErr> {
        let mut connection = pool
            .get_postgres_connection_pool()
            .acquire()
            .await
            .map_err(|why| DbErr::Conn(fault(why)))?;
        connection.close_on_drop();
        Ok(Self(Mutex::new(connection)))
    }
}

fn fault(why: sqlx::Error) -> RuntimeErr {
    RuntimeErr::SqlxError(why.into())
}

type Query<'a> = sqlx::query::Query<'a, Postgres, SqlxValues>;

fn query(statement: Statement) -> Query<'static> {
    let values = statement
        .values
        .unwrap_or_else(|| sea_orm::sea_query::Values(vec![]));
    // The texts come from this crate's own code; what callers sent is in the values.
    sqlx::query_with(AssertSqlSafe(statement.sql), SqlxValues(values))
}

#[async_trait::async_trait]
impl ConnectionTrait for Held {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let done = query(statement).execute(&mut **self.0.lock().await).await;
        done.map(ExecResult::from)
            .map_err(|why| DbErr::Exec(fault(why)))
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut **self.0.lock().await)
            .await;
        done.map(ExecResult::from)
            .map_err(|why| DbErr::Exec(fault(why)))
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let row = query(statement)
            .fetch_optional(&mut **self.0.lock().await)
            .await;
        row.map(|row| row.map(QueryResult::from))
            .map_err(|why| DbErr::Query(fault(why)))
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let rows = query(statement).fetch_all(&mut **self.0.lock().await).await;
        rows.map(|rows| rows.into_iter().map(QueryResult::from).collect())
            .map_err(|why| DbErr::Query(fault(why)))
    }
}
