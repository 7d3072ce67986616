//! Child processes that always end: every wait is bounded, and what still runs is killed by its own id.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a process is looked at while its end is waited for.
const LOOK: Duration = Duration::from_millis(5);

/// A child process that does not outlive this value.
#[derive(Debug)]
pub(crate) struct Running {
    name: String,
    child: Child,
}

impl Running {
    /// Starts `command`.
    ///
    /// # Errors
    /// Why it cannot be started.
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

    /// Waits for its end, at most for `most`.
    pub(crate) fn wait(&mut self, most: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + most;
        loop {
            let status = self.ended();
            if status.is_some() || Instant::now() >= until {
                return status;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Sends it a signal, such as `TERM`; nothing happens when it has ended. After `STOP` each of its threads stands still.
    pub(crate) fn signal(&mut self, signal: &str) {
        if self.ended().is_none() {
            send(signal, &[self.pid()]);
            // The signal is sent when `kill` returns; a thread that runs on another core goes on for a moment.
            while signal == "STOP" && self.ended().is_none() && !stands_still(self.pid()) {
                std::thread::yield_now();
            }
        }
    }

    /// Asks it to end by `signal` and waits; one that takes longer than `most` is killed, which is an error.
    ///
    /// # Errors
    /// That it had to be killed.
    pub(crate) fn stop(&mut self, signal: &str, most: Duration) -> Result<ExitStatus, String> {
        self.signal(signal);
        match self.wait(most) {
            Some(status) => Ok(status),
            None => {
                self.kill();
                Err(format!(
                    "{} did not end within {most:?} of SIG{signal}",
                    self.name
                ))
            }
        }
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        // Fails only when it has ended already.
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

/// Sends a signal to processes by their ids. One that is gone already is no fault.
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

/// Runs `command` to its end and answers what it wrote to its standard output.
///
/// # Errors
/// It cannot be started, takes longer than `most` (then it is killed), or fails: with what it wrote to its standard error.
pub(crate) fn run(command: &mut Command, most: Duration) -> Result<String, String> {
    let mut running = Running::start(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )?;
    let output = collect(running.child.stdout.take());
    let complaints = collect(running.child.stderr.take());
    let Some(status) = running.wait(most) else {
        running.kill();
        return Err(format!("{} did not end within {most:?}", running.name));
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

/// Reads a pipe in a thread, so that the process at its other end never waits for us.
fn collect(pipe: Option<impl Read + Send + 'static>) -> Collector {
    let mut pipe = pipe?;
    Some(std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before a fault is what there is.
        let _read = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }))
}

fn text(collector: Collector) -> String {
    collector
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default()
}

/// Whether each thread of a process is stopped.
fn stands_still(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return false;
    };
    // The state follows the name, which is in parentheses.
    let stopped = |stat: String| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    threads
        .flatten()
        .all(|thread| std::fs::read_to_string(thread.path().join("stat")).is_ok_and(stopped))
}
