//! Refuses a pooler that gives one client several servers in turn, such as PgBouncer in transaction
//! mode: settings and prepared statements of a session would belong to other clients.

use sea_orm::{DbErr, QueryResult};

use crate::error::StoreOutage;
use crate::store::session::connect::Purpose;
use crate::store::session::connection::DriverConnection;
use crate::store::session::database::Database;
use crate::store::session::error::{ConnectFault, Remedy, describe};

const PID: &str = "SELECT pg_backend_pid()";

/// Fails if sessions are not kept together. Opens two: in transaction mode, the second one gets the
/// backend of the first, which is between transactions, and the first one then gets another.
pub(crate) async fn check(database: &Database) -> Result<(), DbErr> {
    let (first, _) = database.open(Purpose::Dispatch).await?;
    let (second, _) = database.open(Purpose::Dispatch).await?;
    let (mut first, mut second) = (first.connection, second.connection);
    let before = pid(first.query_unprepared(PID).await?)?;
    let begun = async {
        second.execute_unprepared("BEGIN").await?;
        pid(second.query_unprepared(PID).await?)
    };
    let other = match begun.await {
        Ok(other) => other,
        Err(fault) if describe(&fault).contains("statement pooling") => {
            return Err(refused("is in statement mode"));
        }
        Err(fault) => return Err(fault),
    };
    let is_shared = other == before || pid(first.query_unprepared(PID).await?)? != before;
    second.execute_unprepared("ROLLBACK").await?;
    for connection in [first, second] {
        end(connection).await;
    }
    if is_shared {
        return Err(refused("is in transaction mode"));
    }
    Ok(())
}

async fn end(connection: DriverConnection) {
    if let Err(fault) = connection.close().await {
        tracing::debug!(
            fault = describe(&fault),
            "a connection was not closed in order"
        );
    }
}

fn pid(row: Option<QueryResult>) -> Result<i32, DbErr> {
    row.map_or(Ok(0), |row| row.try_get_by_index(0))
}

fn refused(what: &str) -> DbErr {
    DbErr::from(ConnectFault {
        why: StoreOutage::Unreachable,
        message: format!(
            "the pooler before the database {what}; sessions must be kept: use session mode \
             (PgBouncer: pool_mode=session)"
        ),
        remedy: Remedy::Url,
    })
}
