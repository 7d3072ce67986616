//! One log line when an outage begins and one when it ends, however often the work is retried in
//! between.

use std::fmt::Display;

use crate::error::Error;

/// The log of one task that is repeated or retried until it succeeds.
#[derive(Debug)]
pub struct OutageLog {
    on_failure: &'static str,
    on_recovery: &'static str,
    failing: bool,
}

impl OutageLog {
    /// A log with the messages for the beginning and the end of an outage.
    pub const fn new(on_failure: &'static str, on_recovery: &'static str) -> Self {
        Self {
            on_failure,
            on_recovery,
            failing: false,
        }
    }

    /// Records how one attempt ended.
    pub fn record<T>(&mut self, result: &Result<T, Error>) {
        match result {
            Ok(_) => self.succeeded(),
            Err(error) => self.failed(error),
        }
    }

    /// Records a failed attempt: an internal fault at error level with its cause, any other error
    /// at warn level.
    pub fn failed(&mut self, error: &Error) {
        match error {
            Error::Internal(cause) if !self.failing => {
                tracing::error!(cause, "{}", self.on_failure);
            }
            error => return self.unavailable(error),
        }
        self.failing = true;
    }

    /// Records an attempt that failed because something that the task depends on is unavailable.
    pub fn unavailable(&mut self, error: &dyn Display) {
        if !self.failing {
            tracing::warn!(%error, "{}", self.on_failure);
        }
        self.failing = true;
    }

    /// Records a successful attempt.
    pub fn succeeded(&mut self) {
        if self.failing {
            tracing::info!("{}", self.on_recovery);
        }
        self.failing = false;
    }

    /// Whether the last attempt failed.
    pub fn is_failing(&self) -> bool {
        self.failing
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::time::Duration;

    use parking_lot::Mutex;

    use super::*;
    use crate::error::StoreOutage;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_outage_is_logged_when_it_begins_and_when_it_ends() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .without_time()
            .with_target(false)
            .with_ansi(false)
            .finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let away = || Error::StoreUnavailable {
            why: StoreOutage::Unreachable,
            retry_after: Duration::from_secs(1),
        };
        let mut log = OutageLog::new("the task failed; retrying", "the task succeeds again");
        for result in [
            Ok(()),
            Err(away()),
            Err(Error::internal("a fault")),
            Ok(()),
            Ok(()),
            Err(Error::internal("a fault")),
            Err(away()),
        ] {
            log.record(&result);
            assert_eq!(log.is_failing(), result.is_err());
        }
        let written = String::from_utf8(lines.0.lock().clone()).expect("text");
        assert_eq!(
            written.lines().map(str::trim).collect::<Vec<_>>(),
            [
                "WARN the task failed; retrying error=the database is unavailable; retry later",
                "INFO the task succeeds again",
                "ERROR the task failed; retrying cause=\"a fault\"",
            ]
        );
    }
}
