//! PgBouncer in front of a test's PostgreSQL server.
//!
//! Include it, after `mod postgres`, with `#[path = ".../support/pgbouncer.rs"] mod pgbouncer;`.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::postgres::process::Running;
use super::postgres::{Postgres, Problem, ports};

/// Where Debian installs it, which is not in everyone's PATH.
const INSTALLED: &str = "/usr/sbin/pgbouncer";
/// The bound of a start.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A running pooler. It ends on drop.
pub(crate) struct PgBouncer {
    port: u16,
    _running: Running,
}

impl PgBouncer {
    /// Starts one in this mode (`session`, `transaction`, `statement`) that ignores these startup
    /// parameters.
    ///
    /// # Errors
    /// [`Problem::NotInstalled`] where there is none, else what went wrong.
    pub(crate) fn start(postgres: &Postgres, mode: &str, ignored: &str) -> Result<Self, Problem> {
        if !std::path::Path::new(INSTALLED).exists() {
            return Err(Problem::NotInstalled);
        }
        let until = Instant::now() + START_TIMEOUT;
        loop {
            let port = ports::lasting().ok_or_else(|| "no free port".to_owned())?;
            let mut running = spawn(postgres, port, mode, ignored)?;
            // Another process may have taken the port: then the pooler ends.
            while running.ended().is_none() && Instant::now() < until {
                if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
                    && running.ended().is_none()
                {
                    return Ok(Self {
                        port,
                        _running: running,
                    });
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            if Instant::now() >= until {
                return Err(Problem::Failed("the pooler does not start".to_owned()));
            }
        }
    }

    /// The URL of a database behind it.
    pub(crate) fn url(&self, database: &str) -> String {
        let host = Ipv4Addr::LOCALHOST;
        format!("postgres://postgres@{host}:{}/{database}", self.port)
    }
}

fn spawn(postgres: &Postgres, port: u16, mode: &str, ignored: &str) -> Result<Running, Problem> {
    let users = postgres.folder().join(format!("pgbouncer-{port}.users"));
    let settings = postgres.folder().join(format!("pgbouncer-{port}.ini"));
    let log = postgres.folder().join(format!("pgbouncer-{port}.log"));
    let text = format!(
        "[databases]\n* = host={host} port={to}\n[pgbouncer]\nlisten_addr = {host}\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = trust\nauth_file = {users}\n\
         pool_mode = {mode}\nignore_startup_parameters = {ignored}\ndefault_pool_size = 30\n",
        host = Ipv4Addr::LOCALHOST,
        to = postgres.port(),
        users = users.display(),
    );
    let failed = |fault| Problem::Failed(format!("the pooler's files cannot be written: {fault}"));
    fs::write(&users, "\"postgres\" \"\"\n").map_err(failed)?;
    fs::write(&settings, text).map_err(failed)?;
    let log = File::create(log).map_err(failed)?;
    let mut pgbouncer = postgres.command(INSTALLED);
    pgbouncer
        .arg(&settings)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    Ok(Running::start(&mut pgbouncer)?)
}
