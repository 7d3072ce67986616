//! A PostgreSQL server in a temporary folder, run by the binaries on this machine, and removed on
//! drop.
//!
//! Include it with `#[path = ".../support/postgres.rs"] mod postgres;`. It listens on 127.0.0.1
//! only and trusts every connection: it contains only test data.

#![allow(dead_code, reason = "shared: each test binary uses a part of it")]

#[path = "ports.rs"]
pub(crate) mod ports;
#[path = "process.rs"]
pub(crate) mod process;

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use process::{Running, run, send};

/// The superuser of the server.
const SUPERUSER: &str = "postgres";
/// Where distributions install the server, below a folder for each version.
const VERSIONED: [&str; 2] = ["/usr/lib/postgresql", "/usr/pgsql"];
/// The bound of a start, which includes recovery after a kill.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// The bound of a fast stop, which includes a checkpoint.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// The bound of one command, such as loading ten million rows.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(1800);

/// Why a server did not start.
#[derive(Debug)]
pub(crate) enum Problem {
    /// PostgreSQL is not installed; a test may report itself as skipped.
    NotInstalled,
    /// Another error.
    Failed(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotInstalled => {
                write!(
                    f,
                    "PostgreSQL is not installed: neither PATH nor {}/*/bin contains initdb and postgres",
                    VERSIONED[0]
                )
            }
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Problem {}

impl From<String> for Problem {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Postgres {
    binaries: PathBuf,
    account: Option<Account>,
    folder: Folder,
    settings: Vec<String>,
    environment: Vec<(&'static str, String)>,
    port: u16,
    server: Option<Running>,
}

impl Postgres {
    /// Starts a server with these settings, each like `fsync=on`, and waits until it accepts connections.
    ///
    /// # Errors
    /// [`Problem::NotInstalled`] where there are no binaries, else what went wrong.
    pub(crate) fn start(settings: &[&str]) -> Result<Self, Problem> {
        Self::start_in(vec![], settings)
    }

    /// The same with these environment variables.
    pub(crate) fn start_in(
        environment: Vec<(&'static str, String)>,
        settings: &[&str],
    ) -> Result<Self, Problem> {
        let binaries = binaries().ok_or(Problem::NotInstalled)?;
        let account = Account::needed()?;
        let folder = Folder::make(account.as_ref())?;
        let settings = settings
            .iter()
            .map(|setting| (*setting).to_owned())
            .collect();
        let mut postgres = Self {
            binaries,
            account,
            folder,
            settings,
            environment,
            port: 0,
            server: None,
        };
        let data = postgres.data();
        let mut initdb = postgres.command("initdb");
        initdb
            .args([
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
                "--no-instructions",
                "-U",
                SUPERUSER,
                "-D",
            ])
            .arg(data);
        run(&mut initdb, START_TIMEOUT)?;
        postgres.launch()?;
        Ok(postgres)
    }

    /// Starts a hot standby that follows the server on this port: this server, or a proxy of it.
    ///
    /// # Errors
    /// What went wrong.
    pub(crate) fn standby(&self, followed: u16) -> Result<Self, Problem> {
        let mut standby = Self {
            binaries: self.binaries.clone(),
            account: self.account,
            folder: Folder::make(self.account.as_ref())?,
            settings: self.settings.clone(),
            environment: vec![],
            port: 0,
            server: None,
        };
        let data = standby.data();
        let mut copy = standby.command("pg_basebackup");
        copy.args(["--checkpoint=fast", "--write-recovery-conf", "-h"])
            .arg(Ipv4Addr::LOCALHOST.to_string())
            .args(["-p", &followed.to_string(), "-U", SUPERUSER, "-D"])
            .arg(&data);
        run(&mut copy, START_TIMEOUT)?;
        // Once it is promoted it waits for no standby.
        let mut settings = File::options()
            .append(true)
            .open(data.join("postgresql.auto.conf"))
            .map_err(|fault| format!("the standby's settings cannot be opened: {fault}"))?;
        writeln!(settings, "synchronous_standby_names = ''")
            .map_err(|fault| format!("the standby's settings cannot be written: {fault}"))?;
        standby.launch()?;
        Ok(standby)
    }

    /// Requires the password of a role, which others need not have.
    pub(crate) fn require_password(&self, role: &str) -> Result<(), Problem> {
        let rules = self.data().join("pg_hba.conf");
        let failed = |fault| format!("{} cannot be changed: {fault}", rules.display());
        let others = fs::read_to_string(&rules).map_err(failed)?;
        let first = format!("host all {role} {}/32 scram-sha-256\n", Ipv4Addr::LOCALHOST);
        fs::write(&rules, first + &others).map_err(failed)?;
        self.psql("postgres", "SELECT pg_reload_conf()").map(drop)
    }

    /// Makes each commit wait for a standby.
    pub(crate) fn wait_for_standbys(&self) -> Result<(), Problem> {
        self.psql(
            "postgres",
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
        )?;
        self.psql("postgres", "SELECT pg_reload_conf()").map(drop)
    }

    /// Makes a standby a primary.
    pub(crate) fn promote(&self) -> Result<(), Problem> {
        match self
            .psql("postgres", "SELECT pg_promote(true, 60)")?
            .as_str()
        {
            "t" => Ok(()),
            other => Err(format!("the standby was not promoted: {other}").into()),
        }
    }

    /// Creates a database on a disk of this many megabytes. Returns `None` where this process may
    /// not mount one.
    pub(crate) fn createdb_on_disk(
        &self,
        database: &str,
        megabytes: u32,
    ) -> Result<Option<Disk>, Problem> {
        let Some(disk) = Disk::mount(self.folder.0.join("disk"), megabytes, self.account)? else {
            return Ok(None);
        };
        let place = disk.folder.join("tablespace");
        run(self.command("mkdir").arg(&place), START_TIMEOUT)?;
        let place = place.display();
        self.psql(
            "postgres",
            &format!("CREATE TABLESPACE disk LOCATION '{place}'"),
        )?;
        let create = format!("CREATE DATABASE \"{database}\" TABLESPACE disk");
        self.psql("postgres", &create)?;
        Ok(Some(disk))
    }

    /// The URL of a database.
    pub(crate) fn url(&self, database: &str) -> String {
        format!(
            "postgres://{SUPERUSER}@{}:{}/{database}",
            Ipv4Addr::LOCALHOST,
            self.port
        )
    }

    /// Creates an empty database.
    pub(crate) fn createdb(&self, database: &str) -> Result<(), Problem> {
        self.psql("postgres", &format!("CREATE DATABASE \"{database}\""))
            .map(drop)
    }

    /// Runs SQL, each statement in its own transaction, and returns the rows: one a line, with `|`
    /// between columns.
    pub(crate) fn psql(&self, database: &str, sql: &str) -> Result<String, Problem> {
        let mut psql = self.client("psql", database);
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        Ok(run(&mut psql, COMMAND_TIMEOUT)?.trim_end().to_owned())
    }

    /// A client program of PostgreSQL that connects to this database.
    pub(crate) fn client(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.bin(program));
        command
            .env("PGHOST", Ipv4Addr::LOCALHOST.to_string())
            .env("PGPORT", self.port.to_string());
        command
            .env("PGUSER", SUPERUSER)
            .env("PGDATABASE", database)
            .env("PGCONNECT_TIMEOUT", "10");
        command
    }

    /// The path of a program of PostgreSQL.
    pub(crate) fn bin(&self, program: &str) -> PathBuf {
        let installed = self.binaries.join(program);
        if installed.exists() {
            installed
        } else {
            PathBuf::from(program)
        }
    }

    /// The folder of the server, removed with it. The data is in `data` below it.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder.0
    }

    /// The process id of the postmaster, or `None` while the server is down.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Running::pid)
    }

    /// The port, which restarts keep.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Kills postmaster and backends with SIGKILL, as a power failure would.
    pub(crate) fn kill9(&mut self) {
        if let Some(mut server) = self.server.take() {
            let mut pids = vec![server.pid()];
            pids.extend(children_of(server.pid()));
            send("KILL", &pids);
            server.kill();
        }
    }

    /// Stops the server fast, with a checkpoint.
    pub(crate) fn stop(&mut self) -> Result<(), Problem> {
        let Some(mut server) = self.server.take() else {
            return Ok(());
        };
        server
            .stop("INT", STOP_TIMEOUT)
            .map(drop)
            .map_err(Problem::Failed)
    }

    /// Restarts the server with the same data and port.
    pub(crate) fn restart(&mut self) -> Result<(), Problem> {
        self.stop()?;
        self.launch()
    }

    fn data(&self) -> PathBuf {
        self.folder.0.join("data")
    }

    /// A server program, run by an account that may run it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin(program));
        command.current_dir(&self.folder.0).env_remove("PGDATA");
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    /// Tries until the server answers: another process may take the port meanwhile, and the
    /// backends of a killed server take a moment to end.
    fn launch(&mut self) -> Result<(), Problem> {
        let until = Instant::now() + START_TIMEOUT;
        loop {
            // The server writes the file once it has its port.
            let has_run = self.data().join("postmaster.opts").exists();
            if !has_run {
                self.port = ports::lasting().ok_or_else(|| "no free port".to_owned())?;
            }
            let mut server = self.spawn()?;
            if self.answers(&mut server, until) {
                self.server = Some(server);
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Problem::Failed(format!(
                    "the server does not start: {}",
                    self.log_end()
                )));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn spawn(&self) -> Result<Running, Problem> {
        let open = |_| {
            File::options()
                .create(true)
                .append(true)
                .open(self.folder.0.join("log"))
        };
        let log = [open(0), open(1)].map(|file| {
            file.map_err(|fault| format!("the server's log cannot be opened: {fault}"))
        });
        let [output, complaints] = log;
        let mut postgres = self.command("postgres");
        postgres
            .arg("-D")
            .arg(self.data())
            .args(["-p", &self.port.to_string()]);
        for setting in ["listen_addresses=127.0.0.1", "unix_socket_directories="] {
            postgres.args(["-c", setting]);
        }
        for setting in &self.settings {
            postgres.args(["-c", setting]);
        }
        postgres.envs(self.environment.iter().cloned());
        postgres
            .stdin(Stdio::null())
            .stdout(output?)
            .stderr(complaints?);
        Ok(Running::start(&mut postgres)?)
    }

    /// Waits until it accepts connections. Returns false if it ends first, or at `until`.
    fn answers(&self, server: &mut Running, until: Instant) -> bool {
        while server.ended().is_none() && Instant::now() < until {
            let mut ready = self.client("pg_isready", "postgres");
            if run(ready.arg("-q"), Duration::from_secs(10)).is_ok() {
                return server.ended().is_none();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    fn log_end(&self) -> String {
        let log = fs::read_to_string(self.folder.0.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" / ")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Kills a server that does not stop.
        let _stopped = self.stop();
    }
}

/// A small disk in memory, unmounted on drop.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts one for an account. Returns `None` where this process may not.
    fn mount(
        folder: PathBuf,
        megabytes: u32,
        owner: Option<Account>,
    ) -> Result<Option<Self>, Problem> {
        let Some(Account { uid, gid }) = owner else {
            return Ok(None);
        };
        Self::mount_with(
            folder,
            &format!("size={megabytes}m,uid={uid},gid={gid},mode=700"),
        )
    }

    /// Mounts one for this account. Returns `None` where this process may not.
    pub(crate) fn mount_here(folder: PathBuf, megabytes: u32) -> Result<Option<Self>, Problem> {
        Self::mount_with(folder, &format!("size={megabytes}m"))
    }

    fn mount_with(folder: PathBuf, options: &str) -> Result<Option<Self>, Problem> {
        fs::create_dir(&folder)
            .map_err(|fault| format!("{} cannot be created: {fault}", folder.display()))?;
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&folder);
        Ok(run(&mut mount, START_TIMEOUT)
            .is_ok()
            .then_some(Self { folder }))
    }

    /// Fills it with another file.
    pub(crate) fn fill(&self) {
        let mut file = File::create(self.filler()).expect("a file");
        // Ends with the error that the disk is full.
        let _full = std::io::copy(&mut std::io::repeat(0), &mut file);
    }

    /// Removes the other file.
    pub(crate) fn free(&self) {
        fs::remove_file(self.filler()).expect("the file that filled the disk");
    }

    fn filler(&self) -> PathBuf {
        self.folder.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The server may still have files open on it.
        let _ended = run(
            Command::new("umount").arg("--lazy").arg(&self.folder),
            STOP_TIMEOUT,
        );
    }
}

/// The running child processes of a process.
pub(crate) fn children_of(pid: u32) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return vec![];
    };
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|child| parent_of(*child) == Some(pid))
        .collect()
}

fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // "1234 (name, which may hold anything) S PARENT ..."
    stat.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// The folder of the server's binaries: from PATH, else of the newest installed version.
fn binaries() -> Option<PathBuf> {
    let usable = |folder: &PathBuf| {
        ["initdb", "postgres"]
            .iter()
            .all(|program| folder.join(program).exists())
    };
    // A link in PATH leads to the folder that also has the client programs of its version.
    let behind_link = |folder: PathBuf| {
        Some(
            fs::canonicalize(folder.join("postgres"))
                .ok()?
                .parent()?
                .to_path_buf(),
        )
    };
    let on_path = path_folders()
        .into_iter()
        .filter(usable)
        .flat_map(|folder| [behind_link(folder.clone()), Some(folder)]);
    on_path.flatten().chain(versioned()).find(usable)
}

#[allow(
    clippy::disallowed_methods,
    reason = "PATH is not a setting of the service"
)]
fn path_folders() -> Vec<PathBuf> {
    std::env::var_os("PATH")
        .map(|path| std::env::split_paths(&path).collect())
        .unwrap_or_default()
}

/// The folders of binaries of every version, newest first.
fn versioned() -> Vec<PathBuf> {
    let entries = VERSIONED
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|entry| {
            let version = entry
                .file_name()
                .to_str()?
                .split('.')
                .next()?
                .parse()
                .ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, folder)| folder).collect()
}

/// The account that runs the server, which refuses to run as root.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// `None` unless this process runs as root; else the account `postgres`, or `nobody` if there
    /// is none.
    fn needed() -> Result<Option<Self>, Problem> {
        if id(&["-u"]) != Some(0) {
            return Ok(None);
        }
        let of = |name: &str| {
            Some(Self {
                uid: id(&["-u", name])?,
                gid: id(&["-g", name])?,
            })
        };
        let found = of("postgres").or_else(|| of("nobody"));
        found.map(Some).ok_or_else(|| {
            Problem::Failed(
                "PostgreSQL refuses to run as root, and neither postgres nor nobody exists"
                    .to_owned(),
            )
        })
    }
}

fn id(args: &[&str]) -> Option<u32> {
    run(Command::new("id").args(args), Duration::from_secs(10))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// A temporary folder, removed on drop.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn make(owner: Option<&Account>) -> Result<Self, Problem> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "canvas-scheduler-postgres-{}-{}",
            std::process::id(),
            MADE.fetch_add(1, Ordering::Relaxed)
        );
        let folder = Self(std::env::temp_dir().join(name));
        let failed =
            |fault| Problem::Failed(format!("{} cannot be created: {fault}", folder.0.display()));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder.0)
            .map_err(failed)?;
        if let Some(owner) =
            owner.filter(|owner| fs::metadata(&folder.0).is_ok_and(|made| made.uid() != owner.uid))
        {
            chown(&folder.0, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
        }
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that cannot be removed is left to the system's cleaner.
        let _removed = fs::remove_dir_all(&self.0);
    }
}
