//! Whether the database can be used: checks at start, and probes while the process runs.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait as _, DbErr};

use crate::error::{Error, StoreOutage};
use crate::store::schema::statement::statement;
use crate::store::session::database::StoreFault;
use crate::store::session::durability::{self, Durability};
use crate::store::session::error::{self, Remedy};
use crate::store::session::pooler;
use crate::store::session::store_sessions::StoreSessions;
use crate::telemetry::outage::OutageLog;

/// The time between attempts of a command to reach the database.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// How long a command waits for the database: a release's migration does not fail because the
/// database is slow or just starting.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// The smallest limit on this role's connections to this database; superusers have none.
const CONNECTION_LIMIT: &str = "SELECT min(n) FROM ( \
       SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user AND NOT rolsuper \
       UNION ALL SELECT datconnlimit FROM pg_database WHERE datname = current_database() \
         AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = session_user) \
     ) AS limits (n) WHERE n >= 0";

impl StoreSessions {
    /// Checks that this database can hold the service's data, and returns whether an acknowledged
    /// change survives a crash of its machine.
    ///
    /// # Errors
    /// [`Error::Invalid`] when another database, or another way to it, must be used;
    /// [`Error::StoreUnavailable`] when the database is away, with its cause in [`Self::fault`].
    pub async fn check(&self) -> Result<Durability, Error> {
        let check = async {
            let database = self.admin.database();
            if !database.options().is_sqlite() {
                pooler::check(database).await?;
            }
            let db = self.admin.acquire().await?;
            durability::durability(&db).await
        };
        check
            .await
            .map_err(|fault| match error::connect_fault(&fault) {
                Some(refused) if refused.remedy == Remedy::Url => {
                    Error::invalid("database-url", refused.message.clone())
                }
                _ => error::public(&fault),
            })
    }

    /// [`Self::check`], repeated while the database is away, for at most 30 seconds. Logs what it
    /// waits for.
    pub async fn wait_until_usable(&self) -> Result<Durability, Error> {
        let began = Instant::now();
        let mut waited_for = String::new();
        loop {
            let error = match self.check().await {
                Err(error @ Error::StoreUnavailable { .. }) => error,
                checked => return checked,
            };
            let fault = self.fault();
            let lasts = fault.as_ref().is_some_and(|fault| fault.lasts);
            let cause = fault.map_or(error.to_string(), |fault| fault.message);
            if lasts || began.elapsed() >= COMMAND_TIMEOUT {
                return Err(Error::internal(cause));
            }
            if cause != waited_for {
                let seconds = COMMAND_TIMEOUT.as_secs();
                tracing::warn!(cause, "waiting up to {seconds} s for the database");
                waited_for = cause;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// What is wrong with the database, as far as this process has noticed.
    pub fn fault(&self) -> Option<StoreFault> {
        self.admin.database().fault()
    }

    /// Checks every kind of session, and after a fault that a write succeeds, so that
    /// [`Self::fault`] is up to date. `log` gets the end and the beginning of an outage.
    pub async fn probe(&self, log: &mut OutageLog) {
        let began = Instant::now();
        let was_faulty = self.fault().is_some();
        let probe = async {
            for sessions in self.distinct() {
                sessions.probe().await?;
            }
            self.check_connection_limit().await?;
            if was_faulty {
                self.admin.recover_from_fault().await?;
            }
            Ok(())
        };
        match self.admin.run(probe).await {
            Ok(()) => self.admin.database().recovered(began),
            Err(error) if self.fault().is_none() => log.failed(&error),
            Err(_) => {}
        }
        match self.fault() {
            Some(fault) => log.unavailable(&fault.message),
            None => log.succeeded(),
        }
    }

    /// Reports a limit that is lower than the number of sessions of this process.
    async fn check_connection_limit(&self) -> Result<(), DbErr> {
        if self.reads.database().options().is_sqlite() {
            return Ok(());
        }
        let db = self.admin.acquire().await?;
        let row = db
            .query_one_raw(statement(&db, CONNECTION_LIMIT, []))
            .await?;
        let limit: Option<i32> = row
            .map(|row| row.try_get_by_index(0))
            .transpose()?
            .flatten();
        let needed: usize = self.distinct().iter().map(|one| one.max()).sum();
        let Some(limit) = limit.filter(|limit| usize::try_from(*limit).is_ok_and(|n| n < needed))
        else {
            return Ok(());
        };
        self.admin.database().report(StoreFault {
            why: StoreOutage::TooManyConnections,
            message: format!(
                "the database allows {limit} connections, and this process needs {needed}; raise \
                 the CONNECTION LIMIT of the role or of the database, or lower --read-connections"
            ),
            lasts: true,
        });
        Ok(())
    }
}
