//! All sessions of a process, by use.

use crate::store::session::connect::Purpose;
use crate::store::session::database::Database;
use crate::store::session::sessions::Sessions;
use crate::store::settings::StoreSettings;

/// Sessions of a process on PostgreSQL for keys, quotas, maintenance and the clock.
const ADMIN_SESSIONS: usize = 4;

/// The sessions of a process, by use. They keep no queue open.
#[derive(Clone)]
pub struct StoreSessions {
    pub(crate) reads: Sessions,
    pub(crate) writers: Vec<Sessions>,
    pub(crate) claiming: Sessions,
    pub(crate) settling: Sessions,
    pub(crate) admin: Sessions,
}

impl StoreSessions {
    /// On SQLite, everything that writes shares the one connection that may write at a time; a
    /// database in memory has only one connection.
    pub(crate) fn new(database: &Database, settings: &StoreSettings) -> Self {
        let sessions = |purpose, max| Sessions::new(database.clone(), purpose, max);
        let reads = usize::try_from(settings.read_connections.get()).unwrap_or(usize::MAX);
        if database.options().is_sqlite() {
            let writer = sessions(Purpose::Commit, 1);
            let reads = if database.options().is_in_memory() {
                writer.clone()
            } else {
                sessions(Purpose::Read, reads)
            };
            return Self {
                reads,
                writers: vec![writer.clone()],
                claiming: writer.clone(),
                settling: writer.clone(),
                admin: writer,
            };
        }
        let writers = (0..settings.writers.get()).map(|_| sessions(Purpose::Commit, 1));
        Self {
            reads: sessions(Purpose::Read, reads),
            writers: writers.collect(),
            claiming: sessions(Purpose::Dispatch, 1),
            settling: sessions(Purpose::Dispatch, 1),
            admin: sessions(Purpose::Dispatch, ADMIN_SESSIONS),
        }
    }

    /// Each once; on SQLite, the one that writes comes last.
    pub(crate) fn distinct(&self) -> Vec<&Sessions> {
        let database = self.reads.database().options();
        let mut distinct = vec![&self.reads];
        if !database.is_in_memory() {
            distinct.extend(&self.writers);
        }
        if !database.is_sqlite() {
            distinct.extend([&self.claiming, &self.settling, &self.admin]);
        }
        distinct
    }

    /// Waits for the sessions in use, for at most a few seconds, and closes every connection. The
    /// last connection to a SQLite file moves everything into the file.
    pub async fn close(&self) {
        for sessions in self.distinct() {
            sessions.close().await;
        }
    }
}
