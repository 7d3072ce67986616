//! Whether this process is ready, and why not: one answer for `/readyz` and for health over gRPC.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::routes::HEALTH_NAMES;
use crate::config::Roles;
use crate::telemetry::metrics::DispatchMetrics;

/// The name that a dispatcher has in health answers: it serves while it may fire.
const DISPATCHER: &str = "dispatcher";

/// What is known of the database's schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Schema {
    /// Nothing yet, or it could not be looked at.
    Unknown,
    /// So many migrations are pending.
    Pending(usize),
    /// It is there.
    There,
}

#[derive(Debug, Clone, Copy)]
struct ReadinessState {
    schema: Schema,
    database_up: bool,
    /// Why nothing may be fired by the clock.
    unsteady: Option<&'static str>,
    draining: bool,
}

/// Something that operators should know of: a name for programs, and a text.
pub(super) type Condition = (&'static str, String);

/// What is known of it. Cheap to clone.
#[derive(Clone)]
pub(super) struct Readiness {
    state: Arc<Mutex<ReadinessState>>,
    health: HealthReporter,
    /// What health said last, by name; held while it is told anew, so that what is older never replaces what is newer.
    said: Arc<tokio::sync::Mutex<Vec<(&'static str, bool)>>>,
    roles: Roles,
    /// Whether this process sends.
    sends: bool,
    sending: DispatchMetrics,
}

impl Readiness {
    /// Of a process that is starting: not ready, which health says from here on.
    pub(super) async fn new(roles: Roles, sends: bool, sending: DispatchMetrics) -> Self {
        let state = ReadinessState {
            schema: Schema::Unknown,
            database_up: true,
            unsteady: Some("the clock of the database is not known"),
            draining: false,
        };
        let (state, health, said) = (
            Arc::new(Mutex::new(state)),
            HealthReporter::new(),
            Arc::default(),
        );
        let own = Self {
            state,
            health,
            said,
            roles,
            sends,
            sending,
        };
        own.tell().await;
        own
    }

    /// Where health is told.
    pub(super) fn health(&self) -> HealthReporter {
        self.health.clone()
    }

    /// The schema was looked at.
    pub(super) async fn schema(&self, schema: Schema) {
        self.state().schema = schema;
        self.tell().await;
    }

    /// The database was asked something, and has answered or not.
    pub(super) fn database(&self, up: bool) {
        self.state().database_up = up;
    }

    /// Why nothing may be fired by the clock, if so.
    pub(super) async fn clock(&self, unsteady: Option<&'static str>) {
        self.state().unsteady = unsteady;
        self.tell().await;
    }

    /// From here on the process stops.
    pub(super) async fn drain(&self) {
        self.state().draining = true;
        self.tell().await;
    }

    /// Why the process is not ready; nothing when it is.
    pub(super) fn reasons(&self) -> Vec<Condition> {
        let state = *self.state();
        let schema = match state.schema {
            Schema::Unknown => Some((
                "schema_unknown",
                "the schema could not be looked at yet".to_owned(),
            )),
            Schema::Pending(n) => Some((
                "migrations_pending",
                format!("{n} migrations are pending; run `canvas-scheduler migrate`"),
            )),
            Schema::There => None,
        };
        let away = (!state.database_up)
            .then(|| ("database_away", "the database does not answer".to_owned()));
        let unsteady = state
            .unsteady
            .filter(|_| self.sends)
            .map(|why| ("clock_not_trusted", format!("nothing is fired: {why}")));
        let draining = state
            .draining
            .then(|| ("draining", "the process is stopping".to_owned()));
        [draining, schema, away, unsteady]
            .into_iter()
            .flatten()
            .collect()
    }

    /// What is wrong and yet keeps nobody from being served.
    pub(super) fn warnings(&self) -> Vec<Condition> {
        let probing = self.sending.is_probing();
        probing
            .then(|| {
                (
                    "sink_takes_nothing",
                    "the sink takes nothing; it is probed until it does".to_owned(),
                )
            })
            .into_iter()
            .collect()
    }

    /// Whether the database has answered last.
    pub(super) fn database_up(&self) -> bool {
        self.state().database_up
    }

    /// Migrations that are pending, as far as is known.
    pub(super) fn migrations_pending(&self) -> usize {
        if let Schema::Pending(n) = self.state().schema {
            n
        } else {
            0
        }
    }

    /// Tells health what has changed. What it says of callers goes by the schema and by draining alone: while the database is
    /// away, or the clock is not trusted, calls are answered as well as they can be.
    async fn tell(&self) {
        let mut said = self.said.lock().await;
        let ReadinessState {
            schema,
            unsteady,
            draining,
            ..
        } = *self.state();
        let open = schema == Schema::There && !draining;
        let api = HEALTH_NAMES
            .into_iter()
            .map(|name| (name, open && (self.roles.api || name.is_empty())));
        let dispatcher = self
            .sends
            .then_some((DISPATCHER, unsteady.is_none() && !draining));
        let now: Vec<_> = api.chain(dispatcher).collect();
        for (name, serves) in now.iter().filter(|one| !said.contains(one)) {
            let status = if *serves {
                ServingStatus::Serving
            } else {
                ServingStatus::NotServing
            };
            self.health.set_service_status(*name, status).await;
        }
        *said = now;
    }

    fn state(&self) -> MutexGuard<'_, ReadinessState> {
        // Whoever panicked with it left it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        readiness.schema(Schema::There).await;
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
                "nothing is fired: it has jumped".to_owned()
            )]
        );
        readiness.drain().await;
        assert_eq!(names(&readiness), ["draining", "clock_not_trusted"]);
    }

    #[tokio::test]
    async fn the_clock_is_no_concern_of_who_does_not_send() {
        let readiness = readiness(false).await;
        readiness.schema(Schema::There).await;
        assert_eq!(names(&readiness), Vec::<&str>::new());
    }
}
