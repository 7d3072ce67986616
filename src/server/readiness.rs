//! Whether this process is ready, and why not: the one source of `/readyz` and of gRPC health.

use std::sync::Arc;

use parking_lot::Mutex;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::routes::HEALTH_NAMES;
use super::settings::Roles;
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

#[derive(Debug, Clone, Copy)]
struct ReadinessState {
    schema: Schema,
    database_up: bool,
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
            database_up: true,
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

    /// Records whether the database answered.
    pub(super) fn database(&self, up: bool) {
        self.state.lock().database_up = up;
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
        let state = *self.state.lock();
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
        let database_away = (!state.database_up)
            .then(|| ("database_away", "the database does not answer".to_owned()));
        let unsteady = state
            .unsteady
            .filter(|_| self.sends)
            .map(|why| ("clock_not_trusted", format!("nothing is dispatched: {why}")));
        let draining = state
            .draining
            .then(|| ("draining", "the process is stopping".to_owned()));
        [draining, schema, database_away, unsteady]
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

    /// Whether the database answered the last query of the clock.
    pub(super) fn database_up(&self) -> bool {
        self.state.lock().database_up
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
        } = *self.state.lock();
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
        readiness.database(false);
        assert_eq!(names(&readiness), ["database_away"]);
        readiness.database(true);
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
