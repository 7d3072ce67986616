//! Threads with their own current-thread runtime.

use tokio::sync::oneshot;

use crate::error::Error;
use crate::store::Writer;

/// Starts a thread that runs `work` on its own runtime. The receiver resolves when the work has
/// ended.
pub(super) fn start(
    name: String,
    work: impl Future<Output = ()> + Send + 'static,
) -> Result<oneshot::Receiver<()>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::internal)?;
    let (end, ended) = oneshot::channel();
    let run = move || {
        runtime.block_on(work);
        runtime.shutdown_background();
        // After its timeout the stop no longer waits.
        let _too_late = end.send(());
    };
    std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map_err(Error::internal)?;
    Ok(ended)
}

/// The work of a worker thread: its connections and its share of the writers. Ends when both have
/// ended.
pub(super) async fn serve_worker(connections: impl Future<Output = ()>, writers: Vec<Writer>) {
    let writers: Vec<_> = writers
        .into_iter()
        .map(|writer| tokio::spawn(writer.run()))
        .collect();
    connections.await;
    // The connections hold the service. When those of every worker have ended, the queues close and
    // the writers end.
    for writer in writers {
        if let Err(panic) = writer.await {
            tracing::error!(%panic, "a writer panicked");
        }
    }
}
