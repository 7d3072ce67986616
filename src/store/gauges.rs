//! How full the store's queues and pools are. Read on demand; holds no connection open.

use sea_orm::{DatabaseConnection, DbBackend};
use tokio::sync::mpsc;

use crate::store::commit::job::Job;
use crate::store::session::pool::Pool;

/// How full something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    /// The number in it, or in use.
    pub used: usize,
    /// The number that is open and not in use.
    pub idle: usize,
    /// The maximum number.
    pub max: usize,
}

/// Reads the gauges. It keeps no queue of a closed store alive.
pub struct StoreGauges {
    queues: Vec<mpsc::WeakSender<Job>>,
    reads: DatabaseConnection,
    pool: Pool,
}

impl StoreGauges {
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

    /// The changes that wait, by writer.
    pub fn queues(&self) -> Vec<Fill> {
        let queues = self.queues.iter().filter_map(mpsc::WeakSender::upgrade);
        queues
            .map(|queue| Fill {
                used: queue.max_capacity() - queue.capacity(),
                idle: 0,
                max: queue.max_capacity(),
            })
            .collect()
    }

    /// The shared connections, by purpose.
    pub fn pools(&self) -> Vec<(&'static str, Fill)> {
        let mut pools = vec![("read", fill(&self.reads))];
        // On SQLite, dispatching uses the writer's connection.
        if self.reads.get_database_backend() == DbBackend::Postgres {
            pools.push(("dispatch", fill(&self.pool.db())));
        }
        pools
    }
}

fn fill(db: &DatabaseConnection) -> Fill {
    let (size, idle, max) = if db.get_database_backend() == DbBackend::Postgres {
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
        max: usize::try_from(max).unwrap_or_default(),
    }
}
