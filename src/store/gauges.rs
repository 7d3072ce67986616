//! How full the store's queues and pools are. Read on demand; holds no connection open.

use tokio::sync::mpsc;

use crate::store::commit::job::Job;
use crate::store::session::sessions::Sessions;

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
    reads: Sessions,
    admin: Sessions,
}

impl StoreGauges {
    pub(super) fn new(writers: &[mpsc::Sender<Job>], reads: Sessions, admin: Sessions) -> Self {
        Self {
            queues: writers.iter().map(mpsc::Sender::downgrade).collect(),
            reads,
            admin,
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

    /// The shared sessions, by use.
    pub fn pools(&self) -> Vec<(&'static str, Fill)> {
        let mut pools = vec![("read", fill(&self.reads))];
        // On SQLite, everything that writes shares the writer's session.
        if self.reads.is_postgres() {
            pools.push(("dispatch", fill(&self.admin)));
        }
        pools
    }
}

fn fill(sessions: &Sessions) -> Fill {
    Fill {
        used: sessions.used(),
        idle: sessions.idle(),
        max: sessions.max(),
    }
}
