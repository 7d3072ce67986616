//! `backup`: copies a SQLite database into a file while the service runs.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{block_on, with_store};
use crate::config::{DatabaseArgs, DatabaseUrl};
use crate::error::{Error, Violations};

/// Where to write the copy.
#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    #[command(flatten)]
    database: DatabaseArgs,
    /// The file to write; it appears when the copy is complete
    file: PathBuf,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

/// A copy to make. No output contains the name of the file: it may be a mistyped URL.
pub(super) struct Backup {
    url: DatabaseUrl,
    source: PathBuf,
    file: PathBuf,
    overwrite: bool,
}

impl BackupArgs {
    /// The copy to make, unless there are violations.
    pub(super) fn read(self, violations: &mut Violations) -> Option<Backup> {
        let url = self.database.read(violations);
        let source = match &url {
            DatabaseUrl::Sqlite(sqlite) => sqlite.file.clone(),
            DatabaseUrl::Postgres(_) => None,
        };
        match (&url, &source) {
            (DatabaseUrl::Postgres(_), _) => violations.add(
                "database-url",
                "is a PostgreSQL database, and backup copies SQLite files; use pg_dump",
            ),
            (_, None) => violations.add("database-url", "is a database in memory, without a file"),
            (_, Some(source)) if !source.exists() => {
                violations.add("database-url", format!("{url} does not exist"));
            }
            _ => {}
        }
        let source = source?;
        if self.file.to_string_lossy().contains("://") {
            violations.add(
                "<FILE>",
                "is a URL, not a file; name the database with --database-url",
            );
        }
        if self.file.file_name().is_none() {
            violations.add("<FILE>", "is a folder; name a file in it");
        }
        let backup = Backup {
            url,
            source,
            file: self.file,
            overwrite: self.overwrite,
        };
        if let Some(problem) = backup.problem() {
            violations.add("<FILE>", problem);
        }
        violations.is_empty().then_some(backup)
    }
}

impl Backup {
    pub(super) fn run(&self) -> Result<(), Error> {
        let io_fault =
            |fault: io::Error| Error::internal(format!("the copy cannot be written: {fault}"));
        let file = std::path::absolute(&self.file).map_err(io_fault)?;
        // Another backup may be writing to the same file.
        let suffix = format!(".partial-{}", std::process::id());
        let partial = with_suffix(&file, &suffix);
        self.reserve(&partial).map_err(io_fault)?;
        let copy = with_store(&self.url, async |store| {
            store.admin.copy_into(&partial).await
        });
        let bytes = block_on(copy).and_then(|()| self.publish(&partial).map_err(io_fault));
        if bytes.is_err()
            && let Err(fault) = fs::remove_file(&partial)
        {
            tracing::warn!(%fault, suffix, "the partial copy cannot be removed");
        }
        tracing::info!(bytes = bytes?, "the database is copied");
        Ok(())
    }

    /// Why the copy must not be written to the file.
    fn problem(&self) -> Option<String> {
        let id = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
        let Some(existing) = id(&self.file) else {
            return self.stale_log();
        };
        let own = ["", "-wal", "-shm"].map(|suffix| id(&with_suffix(&self.source, suffix)));
        if own.contains(&Some(existing)) {
            return Some("belongs to the database itself".to_owned());
        }
        if !self.overwrite {
            return Some("exists; choose another name, or set --overwrite".to_owned());
        }
        self.stale_log()
    }

    /// SQLite would apply a log that another database has left to the copy.
    fn stale_log(&self) -> Option<String> {
        let stale = ["-wal", "-journal"]
            .into_iter()
            .find(|suffix| with_suffix(&self.file, suffix).exists())?;
        Some(format!(
            "has a {stale} file, which belongs to another database; remove it or choose another \
             name"
        ))
    }

    /// Creates the empty partial copy, with the permissions of the database.
    fn reserve(&self, partial: &Path) -> io::Result<()> {
        let permissions: Permissions = fs::metadata(&self.source)?.permissions();
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600);
        file.open(partial)?.set_permissions(permissions)
    }

    /// Gives the complete copy its name once it is on the disk, and returns its size.
    fn publish(&self, partial: &Path) -> io::Result<u64> {
        let copy = File::open(partial)?;
        copy.sync_all()?;
        if let (false, Ok(_)) = (self.overwrite, fs::symlink_metadata(&self.file)) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        fs::rename(partial, &self.file)?;
        if let Some(folder) = partial.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(copy.metadata()?.len())
    }
}

/// The file with this suffix to its name.
fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}
