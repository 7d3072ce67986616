//! A store without a server, for states that no caller can cause.

use std::sync::Arc;

use canvas_scheduler::clock::{Clock, ManualClock};
use canvas_scheduler::config::DatabaseUrl;
use canvas_scheduler::domain::{
    Cancel, CanvasId, Command, Create, DeliveryOutcome, DeliveryPolicy, Outcome, Overwrite,
    Schedule, ScheduleId, SchedulePolicy, Target, WorkspaceId, zone,
};
use canvas_scheduler::error::Error;
use canvas_scheduler::store::{AttemptResult, Caller, Leased, Options, Store, Work};
use canvas_scheduler::telemetry::traces::Span;
use chrono::{DateTime, Utc};

use super::database::Database;
use super::{NOW, instant};

/// A store whose writers run concurrently with the test.
pub(crate) struct TestStore {
    pub store: Store,
    pub clock: Arc<ManualClock>,
}

impl TestStore {
    /// Opens a database and migrates it.
    pub(crate) async fn open(database: &Database) -> Self {
        Self::open_with(database, SchedulePolicy::default()).await
    }

    /// The same with other rules.
    pub(crate) async fn open_with(database: &Database, policy: SchedulePolicy) -> Self {
        Self::open_at(database.url(), policy).await
    }

    /// The same for a database at this URL.
    pub(crate) async fn open_at(url: &str, policy: SchedulePolicy) -> Self {
        let clock = Arc::new(ManualClock::at(instant(NOW)));
        let url = DatabaseUrl::parse(url).expect("a valid URL");
        let (store, writers) = Store::open(&Options::new(&url), clock.clone(), policy);
        for writer in writers {
            tokio::spawn(writer.run());
        }
        store.migrate().await.expect("migrated");
        Self { store, clock }
    }

    /// Creates a broadcast.
    pub(crate) async fn create(&self, time: &str, in_local_time: bool) -> ScheduleId {
        let create = Create {
            canvas_id: canvas(),
            schedule: schedule(time, in_local_time),
            properties: None,
            target: everyone(),
        };
        let id = ScheduleId::new();
        self.store
            .commit
            .commit(caller(), Work::Create(id, Box::new(create)), None)
            .await
            .expect("created")
            .after
            .id
    }

    /// Updates it.
    pub(crate) async fn update(
        &self,
        id: ScheduleId,
        time: &str,
        in_local_time: bool,
    ) -> Result<Outcome, Error> {
        let schedule = schedule(time, in_local_time);
        let overwrite = Overwrite {
            canvas_id: canvas(),
            schedule,
            properties: None,
            etag: None,
            require_all: false,
        };
        self.store
            .commit
            .commit(
                caller(),
                Work::Change(id, Box::new(Command::Overwrite(overwrite))),
                None,
            )
            .await
    }

    /// Cancels it.
    pub(crate) async fn cancel(&self, id: ScheduleId) -> Result<Outcome, Error> {
        let cancel = Cancel {
            canvas_id: canvas(),
            etag: None,
            require_all: false,
        };
        self.store
            .commit
            .commit(
                caller(),
                Work::Change(id, Box::new(Command::Cancel(cancel))),
                None,
            )
            .await
    }

    /// Claims at most `limit` due waves.
    pub(crate) async fn claim(&self, limit: usize) -> Vec<Leased> {
        self.store
            .dispatch
            .claim(
                limit,
                self.clock.now(),
                &DeliveryPolicy::default(),
                zone::data_number(),
            )
            .await
            .expect("claimed")
            .leased
    }

    /// Claims at most `limit` due retries.
    pub(crate) async fn retry(&self, limit: usize) -> Vec<Leased> {
        self.store
            .dispatch
            .retry(limit, self.clock.now(), &DeliveryPolicy::default())
            .await
            .expect("leased")
            .leased
    }

    /// Settles dispatches with an answer. No row may be locked.
    pub(crate) async fn settle(&self, leased: &[Leased], answer: &DeliveryOutcome) {
        let left_out = self.try_settle(leased, answer).await;
        assert_eq!(left_out, [], "no row is locked");
    }

    /// Settles dispatches with an answer, and returns those whose rows are locked.
    pub(crate) async fn try_settle(
        &self,
        leased: &[Leased],
        answer: &DeliveryOutcome,
    ) -> Vec<AttemptResult> {
        let finished: Vec<AttemptResult> = leased
            .iter()
            .map(|leased| AttemptResult::of(leased, answer.clone()))
            .collect();
        self.store
            .dispatch
            .settle(&finished, self.clock.now(), &DeliveryPolicy::default())
            .await
            .expect("settled")
    }

    /// Moves the clock to an instant.
    pub(crate) fn move_to(&self, at: DateTime<Utc>) {
        self.clock.advance(at - self.clock.now());
    }

    /// Moves the clock to an instant, given as text.
    pub(crate) fn at(&self, time: &str) {
        self.move_to(instant(time));
    }
}

fn canvas() -> CanvasId {
    CanvasId::parse("canvas").expect("a canvas id")
}

fn schedule(time: &str, in_local_time: bool) -> Schedule {
    Schedule::parse(time, in_local_time, false).expect(time)
}

fn everyone() -> Target {
    Target {
        broadcast: true,
        ..Target::default()
    }
}

fn caller() -> Caller {
    Caller {
        workspace: WorkspaceId::DEFAULT,
        actor: "test".into(),
        deadline: None,
        span: Span::default(),
    }
}

/// The answer of a consumer that is overloaded.
pub(crate) fn not_taken() -> DeliveryOutcome {
    DeliveryOutcome::NotTaken {
        why: "503".to_owned(),
        retry_after: None,
    }
}

/// The answer of a consumer that may have accepted the dispatch.
pub(crate) fn unknown() -> DeliveryOutcome {
    DeliveryOutcome::Unknown {
        why: "timeout".to_owned(),
    }
}

/// The answer of a consumer that rejects the dispatch.
pub(crate) fn rejected() -> DeliveryOutcome {
    DeliveryOutcome::Rejected {
        why: "400".to_owned(),
    }
}
