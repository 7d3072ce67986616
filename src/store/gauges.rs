//! How full the store's queues and pools are. Looked up when somebody asks, which keeps nothing open.

use sea_orm::{DatabaseConnection, DbBackend};
use tokio::sync::mpsc;

use crate::store::commit::job::Job;
use crate::store::session::pool::Pool;

/// How full something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// How many are in it, or in use.
    pub used: usize,
    /// How many are there and not in use.
    pub idle: usize,
    /// How many there may be.
    pub most: usize,
}

/// Looks. The queues of a store that is gone are gone too.
pub struct Levels {
    queues: Vec<mpsc::WeakSender<Job>>,
    reads: DatabaseConnection,
    pool: Pool,
}

impl Levels {
    pub(super) fn new(
        writers: &[mpsc::Sender<Job>],
        reads: DatabaseConnection,
        pool: Pool,
    ) -> Self {
        Self {
            queues: writers.iter().map(mpsc::Sender::downgrade).collect(),
            reads,
            pool,
        }
    }

    /// Of the changes that wait, by writer.
    pub fn queues(&self) -> Vec<Fill> {
        let queues = self.queues.iter().filter_map(mpsc::WeakSender::upgrade);
        queues
            .map(|queue| Fill {
                used: queue.max_capacity() - queue.capacity(),
                idle: 0,
                most: queue.max_capacity(),
            })
            .collect()
    }

    /// Of the connections that are shared, by what they are for.
    pub fn pools(&self) -> Vec<(&'static str, Fill)> {
        let mut pools = vec![("read", fill(&self.reads))];
        // On SQLite what is sent goes over the writer's connection.
        if self.reads.get_database_backend() == DbBackend::Postgres {
            pools.push(("dispatch", fill(&self.pool.db())));
        }
        pools
    }
}

fn fill(db: &DatabaseConnection) -> Fill {
    let (size, idle, most) = if db.get_database_backend() == DbBackend::Postgres {
        let pool = db.get_postgres_connection_pool();
        (
            pool.size(),
            pool.num_idle(),
            pool.options().get_max_connections(),
        )
    } else {
        let pool = db.get_sqlite_connection_pool();
        (
            pool.size(),
            pool.num_idle(),
            pool.options().get_max_connections(),
        )
    };
    let size = usize::try_from(size).unwrap_or_default();
    Fill {
        used: size.saturating_sub(idle),
        idle,
        most: usize::try_from(most).unwrap_or_default(),
    }
}
