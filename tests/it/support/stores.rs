//! The store without a server, for what no caller can bring about.

use std::sync::Arc;

use canvas_scheduler::clock::{Clock, ManualClock};
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

/// A store whose writers run beside the test.
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
        let clock = Arc::new(ManualClock::at(instant(NOW)));
        let options = Options::new(database.url());
        let (store, writers) = Store::open(&options, clock.clone(), policy)
            .await
            .expect("it opens");
        for writer in writers {
            tokio::spawn(writer.run());
        }
        store.migrate().await.expect("migrated");
        Self { store, clock }
    }

    /// A schedule for everyone.
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

    /// An update of it.
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

    /// A cancellation of it.
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

    /// What is due, at most `limit`.
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
            .expect("fired")
            .leased
    }

    /// What is due again, at most `limit`.
    pub(crate) async fn retry(&self, limit: usize) -> Vec<Leased> {
        self.store
            .dispatch
            .retry(limit, self.clock.now(), &DeliveryPolicy::default())
            .await
            .expect("leased")
            .leased
    }

    /// Tells what became of dispatches.
    pub(crate) async fn settle(&self, leased: &[Leased], answer: &DeliveryOutcome) {
        let finished: Vec<AttemptResult> = leased
            .iter()
            .map(|leased| AttemptResult::of(leased, answer.clone()))
            .collect();
        self.store
            .dispatch
            .settle(&finished, self.clock.now(), &DeliveryPolicy::default())
            .await
            .expect("finished");
    }

    /// Moves the clock to an instant.
    pub(crate) fn move_to(&self, at: DateTime<Utc>) {
        self.clock.advance(at - self.clock.now());
    }

    /// Moves the clock to an instant as a test writes it.
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

/// Not taken, as a consumer says that is full.
pub(crate) fn not_taken() -> DeliveryOutcome {
    DeliveryOutcome::NotTaken {
        why: "503".to_owned(),
        retry_after: None,
    }
}

/// Perhaps taken.
pub(crate) fn unknown() -> DeliveryOutcome {
    DeliveryOutcome::Unknown {
        why: "timeout".to_owned(),
    }
}

/// Refused for good.
pub(crate) fn rejected() -> DeliveryOutcome {
    DeliveryOutcome::Rejected {
        why: "400".to_owned(),
    }
}
