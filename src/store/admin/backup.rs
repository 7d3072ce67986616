//! A copy of a SQLite database while other processes use it.

use std::path::Path;

use sea_orm::{ConnectionTrait, Statement};

use crate::error::Error;
use crate::store::admin::AdminStore;
use crate::store::session::error::describe;

/// SQLite's online backup API starts over whenever another process writes, so under load it does
/// not end. This statement copies one snapshot, and the copy has no free pages. While it runs, the
/// `-wal` file grows, because a checkpoint keeps what the snapshot reads.
const COPY: &str = "VACUUM INTO $1";

impl AdminStore {
    /// Copies the database into an empty or missing file. On SQLite only.
    ///
    /// # Errors
    /// The file cannot be written, or has content; its content is then undefined.
    pub async fn copy_into(&self, file: &Path) -> Result<(), Error> {
        let Some(path) = file.to_str() else {
            return Err(Error::internal("the name of the copy is not UTF-8"));
        };
        // Without a timeout: the duration depends on the size of the database.
        let copied = async {
            let db = self.sessions.acquire().await?;
            let copy =
                Statement::from_sql_and_values(db.get_database_backend(), COPY, [path.into()]);
            db.execute_raw(copy).await.map(drop)
        };
        copied.await.map_err(|fault| {
            Error::internal(format!("the copy cannot be written: {}", describe(&fault)))
        })
    }
}
