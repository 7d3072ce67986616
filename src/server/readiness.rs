//! Whether this process is ready, and why not: the one source of `/readyz` and of gRPC health.

use std::sync::Arc;

use parking_lot::Mutex;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::routes::HEALTH_NAMES;
use super::settings::Roles;
use crate::error::StoreOutage;
use crate::store::StoreFault;
use crate::telemetry::metrics::DispatchMetrics;

/// The service name of the dispatcher in health checks: it is serving while it may dispatch.
const DISPATCHER: &str = "dispatcher";

/// The state of the database's schema, as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Schema {
    /// Not checked yet, or the check failed.
    Unknown,
    /// The number of migrations that are pending.
    Pending(usize),
    /// No migration is pending.
    Migrated,
}

#[derive(Debug, Clone)]
struct ReadinessState {
    schema: Schema,
    fault: Option<StoreFault>,
    /// Why the API keys are not known, if so.
    keys: Option<String>,
    /// Why the clock is not synchronized, if so.
    unsteady: Option<&'static str>,
    draining: bool,
}

/// A condition that operators should know of: a name for programs, and a text.
pub(super) type Condition = (&'static str, String);

/// The readiness of the process. Cheap to clone.
#[derive(Clone)]
pub(super) struct Readiness {
    state: Arc<Mutex<ReadinessState>>,
    health: HealthReporter,
    /// The statuses that health reports, by service. Locked during an update, so that an older one
    /// never overwrites a newer one.
    reported: Arc<tokio::sync::Mutex<Vec<(&'static str, bool)>>>,
    roles: Roles,
    sends: bool,
    sending: DispatchMetrics,
}

impl Readiness {
    /// The readiness of a process that is starting: not ready.
    pub(super) async fn new(roles: Roles, sends: bool, sending: DispatchMetrics) -> Self {
        let state = ReadinessState {
            schema: Schema::Unknown,
            fault: None,
            keys: None,
            unsteady: Some("the clock of the database is unknown"),
            draining: false,
        };
        let readiness = Self {
            state: Arc::new(Mutex::new(state)),
            health: HealthReporter::new(),
            reported: Arc::default(),
            roles,
            sends,
            sending,
        };
        readiness.report().await;
        readiness
    }

    /// The reporter of gRPC health.
    pub(super) fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    /// Records the state of the schema.
    pub(super) async fn schema(&self, schema: Schema) {
        self.state.lock().schema = schema;
        self.report().await;
    }

    /// Records what is wrong with the database, if anything.
    pub(super) fn database(&self, fault: Option<StoreFault>) {
        self.state.lock().fault = fault;
    }

    /// Records why the API keys are not known, if so.
    pub(super) fn keys(&self, why: Option<String>) {
        self.state.lock().keys = why;
    }

    /// Records why the clock is not synchronized, if so.
    pub(super) async fn clock(&self, unsteady: Option<&'static str>) {
        self.state.lock().unsteady = unsteady;
        self.report().await;
    }

    /// Records that the process is stopping.
    pub(super) async fn drain(&self) {
        self.state.lock().draining = true;
        self.report().await;
    }

    /// Why the process is not ready; empty when it is.
    pub(super) fn reasons(&self) -> Vec<Condition> {
        let state = self.state.lock().clone();
        let schema = match state.schema {
            Schema::Unknown => Some((
                "schema_unknown",
                "the schema could not be checked yet".to_owned(),
            )),
            Schema::Pending(n) => Some((
                "migrations_pending",
                format!("{n} migrations are pending; run `canvas-scheduler migrate`"),
            )),
            Schema::Migrated => None,
        };
        let fault = state.fault.map(|StoreFault { why, message, .. }| {
            let name = match why {
                StoreOutage::DiskFull => "database_full",
                StoreOutage::ReadOnly => "database_read_only",
                StoreOutage::TooManyConnections => "database_connections",
                StoreOutage::Unreachable
                | StoreOutage::Locked
                | StoreOutage::OutOfMemory
                | StoreOutage::Faulty => "database_away",
            };
            (name, format!("{why}: {message}"))
        });
        let keys = state.keys.filter(|_| state.schema == Schema::Migrated);
        let keys = keys.map(|why| {
            let message = format!("the API keys cannot be read, so every call is refused: {why}");
            ("keys_unknown", message)
        });
        let unsteady = state
            .unsteady
            .filter(|_| self.sends)
            .map(|why| ("clock_not_trusted", format!("nothing is dispatched: {why}")));
        let draining = state
            .draining
            .then(|| ("draining", "the process is stopping".to_owned()));
        [draining, schema, fault, keys, unsteady]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Problems that do not affect readiness.
    pub(super) fn warnings(&self) -> Vec<Condition> {
        let probing = self.sending.is_probing();
        probing
            .then(|| {
                (
                    "sink_takes_nothing",
                    "the sink takes no dispatches; the dispatcher probes it until it does"
                        .to_owned(),
                )
            })
            .into_iter()
            .collect()
    }

    /// Whether the last check of the database succeeded.
    pub(super) fn database_up(&self) -> bool {
        self.state.lock().fault.is_none()
    }

    /// The number of pending migrations; 0 when unknown.
    pub(super) fn migrations_pending(&self) -> usize {
        if let Schema::Pending(n) = self.state.lock().schema {
            n
        } else {
            0
        }
    }

    /// Reports what has changed to gRPC health. The status for callers depends on the schema and on
    /// draining only: while the database is away, or the clock not synchronized, calls are answered
    /// as far as possible.
    async fn report(&self) {
        let mut reported = self.reported.lock().await;
        let ReadinessState {
            schema,
            unsteady,
            draining,
            ..
        } = self.state.lock().clone();
        let open = schema == Schema::Migrated && !draining;
        let api = HEALTH_NAMES
            .into_iter()
            .map(|name| (name, open && (self.roles.api || name.is_empty())));
        let dispatcher = self
            .sends
            .then_some((DISPATCHER, unsteady.is_none() && !draining));
        let now: Vec<_> = api.chain(dispatcher).collect();
        for (name, serves) in now.iter().filter(|one| !reported.contains(one)) {
            let status = if *serves {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            self.health.set_service_status(*name, status).await;
        }
        *reported = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn readiness(sends: bool) -> Readiness {
        Readiness::new(
            Roles {
                api: true,
                dispatcher: sends,
            },
            sends,
            DispatchMetrics::default(),
        )
        .await
    }

    fn names(readiness: &Readiness) -> Vec<&'static str> {
        readiness
            .reasons()
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    }

    #[tokio::test]
    async fn each_reason_comes_and_goes() {
        let readiness = readiness(true).await;
        assert_eq!(names(&readiness), ["schema_unknown", "clock_not_trusted"]);
        readiness.schema(Schema::Pending(2)).await;
        assert_eq!(
            (names(&readiness), readiness.migrations_pending()),
            (vec!["migrations_pending", "clock_not_trusted"], 2)
        );
        readiness.schema(Schema::Migrated).await;
        readiness.clock(None).await;
        assert_eq!(names(&readiness), Vec::<&str>::new());
        for (why, name) in [
            (StoreOutage::Unreachable, "database_away"),
            (StoreOutage::DiskFull, "database_full"),
            (StoreOutage::ReadOnly, "database_read_only"),
            (StoreOutage::TooManyConnections, "database_connections"),
        ] {
            let message = "a cause".to_owned();
            let lasts = false;
            readiness.database(Some(StoreFault {
                why,
                message,
                lasts,
            }));
            assert_eq!(
                readiness.reasons(),
                [(name, format!("{why}: a cause"))],
                "{why:?}"
            );
        }
        readiness.database(None);
        readiness.keys(Some("a cause".to_owned()));
        assert_eq!(names(&readiness), ["keys_unknown"]);
        readiness.keys(None);
        readiness.clock(Some("it has jumped")).await;
        assert_eq!(
            readiness.reasons(),
            [(
                "clock_not_trusted",
                "nothing is dispatched: it has jumped".to_owned()
            )]
        );
        readiness.drain().await;
        assert_eq!(names(&readiness), ["draining", "clock_not_trusted"]);
    }

    #[tokio::test]
    async fn a_process_that_does_not_send_is_ready_without_a_clock() {
        let readiness = readiness(false).await;
        readiness.schema(Schema::Migrated).await;
        assert_eq!(names(&readiness), Vec::<&str>::new());
    }
}
