//! Child processes that always end: every wait is bounded, and drop kills a process that still
//! runs.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The interval of checks while waiting for the end of a process.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// A child process, killed on drop.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Starts `command`.
    pub(crate) fn start(command: &mut Command) -> Result<Self, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .spawn()
            .map_err(|fault| format!("{name} cannot be started: {fault}"))?;
        Ok(Self { name, child })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The process itself, to take its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its exit status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end for at most `timeout`.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + timeout;
        loop {
            let status = self.ended();
            if status.is_some() || Instant::now() >= until {
                return status;
            }
            std::thread::sleep(CHECK_INTERVAL);
        }
    }

    /// Sends a signal such as `TERM`, unless it has ended. After `STOP`, waits until each of its
    /// threads has stopped.
    pub(crate) fn signal(&mut self, signal: &str) {
        if self.ended().is_none() {
            send(signal, &[self.pid()]);
            // A thread on another core may run for a moment after `kill` returns.
            while signal == "STOP" && self.ended().is_none() && !is_stopped(self.pid()) {
                std::thread::yield_now();
            }
        }
    }

    /// Sends `signal` and waits for its end. Kills it after `timeout`, which is an error.
    pub(crate) fn stop(&mut self, signal: &str, timeout: Duration) -> Result<ExitStatus, String> {
        self.signal(signal);
        match self.wait(timeout) {
            Some(status) => Ok(status),
            None => {
                self.kill();
                Err(format!(
                    "{} did not end within {timeout:?} of SIG{signal}",
                    self.name
                ))
            }
        }
    }

    /// Kills it with SIGKILL and waits for its end.
    pub(crate) fn kill(&mut self) {
        // Fails only if it has already ended.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.kill();
        }
    }
}

/// Sends a signal to processes, some of which may have ended.
pub(crate) fn send(signal: &str, pids: &[u32]) {
    if pids.is_empty() {
        return;
    }
    let pids = pids.iter().map(u32::to_string);
    let _status = Command::new("kill")
        .arg(format!("-{signal}"))
        .args(pids)
        .stderr(Stdio::null())
        .status();
}

/// Runs `command` to its end and returns its standard output.
///
/// # Errors
/// It cannot be started, takes longer than `timeout` (and is killed), or fails, with its standard error.
pub(crate) fn run(command: &mut Command, timeout: Duration) -> Result<String, String> {
    let mut running = Running::start(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )?;
    let output = collect(running.child.stdout.take());
    let complaints = collect(running.child.stderr.take());
    let Some(status) = running.wait(timeout) else {
        running.kill();
        return Err(format!("{} did not end within {timeout:?}", running.name));
    };
    let complaints = text(complaints);
    if status.success() {
        Ok(text(output))
    } else {
        Err(format!(
            "{} ended with {status}: {}",
            running.name,
            complaints.trim()
        ))
    }
}

type Collector = Option<JoinHandle<String>>;

/// Reads a pipe in a thread, so that the process never blocks on it.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Collector {
    let mut pipe = pipe?;
    Some(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // After an error, the output so far is the output.
        let _read = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }))
}

fn text(collector: Collector) -> String {
    collector
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default()
}

/// Whether every thread of a process is stopped.
fn is_stopped(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    // The state follows the name, which is in parentheses.
    let thread_is_stopped = |stat: String| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    threads.flatten().all(|thread| {
        std::fs::read_to_string(thread.path().join("stat")).is_ok_and(thread_is_stopped)
    })
}
