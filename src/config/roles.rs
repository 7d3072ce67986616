//! What a process does, and what sending needs.

use std::time::Duration;

use super::{Reader, SinkArgs, SinkSettings};

/// What a process does; at least one of them. Health is told by each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// It serves callers.
    pub api: bool,
    /// It sends.
    pub dispatcher: bool,
}

impl Reader {
    /// The roles that are named.
    pub(super) fn roles(&mut self, value: &str) -> Option<Roles> {
        let named: Vec<&str> = value.split(',').map(str::trim).collect();
        if named
            .iter()
            .all(|name| ["api", "dispatcher"].contains(name))
        {
            return Some(Roles {
                api: named.contains(&"api"),
                dispatcher: named.contains(&"dispatcher"),
            });
        }
        self.fault("roles", value, "api, dispatcher, or api,dispatcher")
    }

    /// An attempt must have its answer well before somebody else tries.
    pub(super) fn lease(&mut self, value: &str, sink: Option<&SinkSettings>) -> Option<Duration> {
        let lease = self.duration("lease", value)?;
        let timeout = sink.and_then(SinkSettings::timeout).unwrap_or_default();
        if timeout < lease * 3 / 4 {
            return Some(lease);
        }
        self.fault(
            "lease",
            value,
            "long enough: three quarters of it must be more than --sink-timeout",
        )
    }

    /// A process that does nothing but send needs a place to send to.
    pub(super) fn sending(&mut self, roles: Option<Roles>, args: &SinkArgs) {
        if roles.is_some_and(|roles| !roles.api) && args.sink.is_none() {
            self.faults.push(
                "--sink: is needed with --roles dispatcher; log, grpc, webhook or nats".to_owned(),
            );
        }
    }
}
