//! Drives the service by the events of the model.

use canvas_scheduler::clock::Clock;
use canvas_scheduler::domain::{
    Applied as Reached, Cancel, CanvasId, Create, DeliveryOutcome, DeliveryPolicy,
    Dispatch as Stored, DispatchId, DispatchState, Etag as RealEtag, Identifier, Outcome,
    Overwrite, Recipient, RequestId, Schedule, ScheduleId, SchedulePolicy, ScheduleState, Target,
    Wave as RealWave, WaveMode, WorkspaceId, ZoneSet,
};
use canvas_scheduler::error::Error;
use canvas_scheduler::service::{
    AttemptResult, Caller, Details, DispatchFilter, Leased, Mode, Service, Update,
};
use canvas_scheduler::telemetry::traces::Span;
use chrono::{DateTime, TimeDelta, Utc};
use sea_orm::{ConnectionTrait, DatabaseConnection};
use serde_json::json;

use super::events::*;
use super::rules::{Dispatch, Stage, Status, View, World};
use super::zones::{HOUR, NAMES, Time, Zones};
use crate::support::database::Database;
use crate::support::instant;
use crate::support::stores::{TestStore, not_taken, rejected, unknown};

/// More than a sequence ever has.
const ALL: usize = 256;

/// A service over a database, the dispatches of its workers, and the last request of its caller.
pub(super) struct Replica<'a> {
    database: &'a Database,
    /// A direct connection to the database.
    db: DatabaseConnection,
    test: TestStore,
    service: Service,
    schedule: Option<ScheduleId>,
    workers: Vec<(Leased, Option<SinkAnswer>)>,
    last: Option<Request>,
}

/// A request that may arrive twice.
#[derive(Clone)]
enum Request {
    Create(Create, RequestId),
    Update(Box<Update>),
    Cancel(ScheduleId, Cancel, RequestId),
}

impl<'a> Replica<'a> {
    pub(super) async fn open(database: &'a Database) -> Self {
        let (test, service) = start(database).await;
        let db = database.connect().await;
        Self {
            database,
            db,
            test,
            service,
            schedule: None,
            workers: vec![],
            last: None,
        }
    }

    /// Starts a sequence at this time, without a schedule. Ignores the rows of other sequences.
    pub(super) async fn begin(&mut self, now: Time) {
        self.move_to(now);
        (self.schedule, self.workers, self.last) = (None, vec![], None);
        for workspace in [None, Some("default")] {
            self.test
                .store
                .dispatch
                .set_sending(workspace, false)
                .await
                .expect("set");
        }
    }

    /// Performs the event that leads to `next`. Returns the answer, and the deliveries.
    pub(super) async fn step(&mut self, event: Event, next: &World) -> (Reply, Vec<Delivery>) {
        self.move_to(next.now);
        let (mut reply, mut deliveries) = (Reply::Nothing, vec![]);
        match event {
            Event::Create(wish) => {
                reply = self
                    .ask(Request::Create(create(wish.at(next.now)), request_id()))
                    .await
            }
            Event::Update(wish, terms) => {
                if let Some(id) = self.schedule {
                    reply = self
                        .ask(update(id, wish.at(next.now), terms, self.revision().await))
                        .await;
                }
            }
            Event::Cancel(terms) => {
                if let Some(id) = self.schedule {
                    reply = self.ask(cancel(id, terms, self.revision().await)).await;
                }
            }
            Event::Again => {
                if let Some(last) = self.last.clone().filter(|_| next.knows_last()) {
                    reply = self.ask(last).await;
                }
            }
            Event::RetryDispatch(n) => reply = self.retry_dispatch(n).await,
            Event::Claim => deliveries = self.claim().await,
            Event::Retry => deliveries = self.retry().await,
            Event::Answer(back, says) => self.answer(back, says).await,
            Event::Pause { all, on } => self.pause(all, on).await,
            Event::OtherRelease { later } => self.other_release(later).await,
            Event::Restart => self.restart().await,
            // The rules of a build do not change while it runs.
            Event::Clock(_) | Event::Rules => {}
        }
        (reply, deliveries)
    }

    fn move_to(&self, now: Time) {
        self.test
            .move_to(DateTime::from_timestamp(now, 0).expect("an instant"));
    }

    async fn revision(&self) -> i64 {
        self.details()
            .await
            .map_or(0, |details| details.schedule.revision)
    }

    async fn details(&self) -> Option<Details> {
        Some(
            self.service
                .get(&caller(), self.schedule?)
                .await
                .expect("it is there"),
        )
    }

    /// Makes a request, and keeps an accepted one for a replay.
    async fn ask(&mut self, request: Request) -> Reply {
        let answer = match request.clone() {
            Request::Create(create, id) => self
                .service
                .create(caller(), create, mode(id))
                .await
                .map(|created| created.outcome),
            Request::Update(update) => self.service.update(caller(), *update).await,
            Request::Cancel(schedule, cancel, id) => {
                self.service
                    .cancel(caller(), schedule, cancel, Some(id))
                    .await
            }
        };
        if let Ok(outcome) = &answer {
            self.schedule = Some(outcome.after.id);
            self.last = Some(request);
        }
        answer.as_ref().map_or_else(refused, accepted)
    }

    async fn retry_dispatch(&self, n: u32) -> Reply {
        let Some(schedule) = self.schedule else {
            return Reply::Nothing;
        };
        let revived = self
            .service
            .retry_dispatch(&caller(), schedule, DispatchId::of(schedule, n))
            .await;
        revived.as_ref().map_or_else(refused, |_| Reply::Retried)
    }

    async fn claim(&mut self) -> Vec<Delivery> {
        let taken = self.service.claim(ALL).await.expect("claimed");
        self.take(taken.leased)
    }

    async fn retry(&mut self) -> Vec<Delivery> {
        let taken = self.service.retry(ALL).await.expect("leased");
        self.take(taken.leased)
    }

    /// Keeps the dispatches of this sequence.
    fn take(&mut self, mut leased: Vec<Leased>) -> Vec<Delivery> {
        leased.retain(|one| Some(one.dispatch.schedule_id) == self.schedule);
        leased.sort_by_key(|one| one.dispatch.number);
        let deliveries = leased.iter().map(delivery).collect();
        self.workers
            .extend(leased.into_iter().map(|one| (one, None)));
        deliveries
    }

    async fn answer(&mut self, back: usize, says: SinkAnswer) {
        let Some((leased, answer)) = self.workers.iter_mut().rev().nth(back) else {
            return;
        };
        let answer = match *answer.get_or_insert(says) {
            SinkAnswer::Delivered => DeliveryOutcome::Delivered,
            SinkAnswer::NotTaken => not_taken(),
            SinkAnswer::Rejected => rejected(),
            SinkAnswer::Unknown => unknown(),
        };
        self.service
            .settle(&[AttemptResult::of(leased, answer.clone())])
            .await
            .expect("written");
    }

    async fn pause(&self, all: bool, on: bool) {
        let workspace = (!all).then_some("default");
        assert!(
            self.test
                .store
                .dispatch
                .set_sending(workspace, on)
                .await
                .expect("set")
        );
        if !on {
            // A dispatcher does this every second.
            self.service.release_parked().await.expect("released");
        }
    }

    /// Puts the schedule into the state of a release with older zone data, whose next wave has
    /// another time. Then recomputes it, as a release does when it starts.
    async fn other_release(&self, later: bool) {
        let Some(id) = self.schedule else { return };
        let id = if self.database.is_postgres() {
            format!("'{id}'")
        } else {
            format!("unhex('{}')", id.0.as_simple())
        };
        let by = if later { HOUR } else { -HOUR } * 1000;
        let which = format!(
            "id = {id} AND next_wave_ms IS NOT NULL AND (in_local_time OR at_optimal_time)"
        );
        for sql in [
            format!(
                "DELETE FROM canvas_schedule_wake WHERE id IN (SELECT id FROM canvas_schedule WHERE {which})"
            ),
            format!(
                "UPDATE canvas_schedule SET zone_rules = 202401, next_wave_ms = next_wave_ms + {by}, wake_ms = next_wave_ms + {by} WHERE {which}"
            ),
            format!(
                "INSERT INTO canvas_schedule_wake SELECT wake_ms, workspace_id, id FROM canvas_schedule WHERE {which}"
            ),
        ] {
            self.db.execute_unprepared(&sql).await.expect("done");
        }
        self.service.refresh_zone_rules().await.expect("refreshed");
    }

    async fn restart(&mut self) {
        let now = self.test.clock.now();
        (self.test, self.service) = start(self.database).await;
        self.test.move_to(now);
        self.workers.clear();
    }

    /// The schedule as the service returns it.
    pub(super) async fn view(&self) -> Option<View> {
        let details = self.details().await?;
        let (schedule, plan) = (&details.schedule, details.schedule.plan());
        Some(View {
            ask: ask(&schedule.schedule),
            revision: schedule.revision,
            stage: match schedule.state() {
                ScheduleState::Pending => Stage::Pending,
                ScheduleState::Dispatching => Stage::Dispatching,
                ScheduleState::Dispatched => Stage::Dispatched,
                ScheduleState::Cancelled => Stage::Cancelled,
            },
            open: zones(&schedule.open_zones()),
            missed: zones(&plan.missed),
            waves: plan.waves.iter().map(wave).collect(),
            next_wave: schedule.next_wave.map(time),
            updated_at: time(schedule.updated_at),
            cancelled_at: schedule.cancelled_at.map(time),
            dispatches: details.dispatches.iter().map(dispatch).collect(),
        })
    }

    /// The list of dispatches.
    pub(super) async fn dispatches(&self) -> Vec<Dispatch> {
        let filter = DispatchFilter {
            schedule_id: self.schedule,
            state: None,
        };
        let listed = self
            .service
            .dispatches(&caller(), filter, None, 1000)
            .await
            .expect("a list");
        listed.iter().map(|(_, stored)| dispatch(stored)).collect()
    }

    /// The numbers of the kept revisions, newest first.
    pub(super) async fn revisions(&self) -> Vec<i64> {
        let Some(schedule) = self.schedule else {
            return vec![];
        };
        let (revisions, _) = self
            .service
            .revisions(&caller(), schedule, None, 1000)
            .await
            .expect("a list");
        revisions.iter().map(|revision| revision.number).collect()
    }
}

async fn start(database: &Database) -> (TestStore, Service) {
    let policy = SchedulePolicy {
        lateness: TimeDelta::seconds(LATENESS),
        horizon: TimeDelta::seconds(HORIZON),
        ..SchedulePolicy::default()
    };
    let pause = TimeDelta::seconds(PAUSE);
    let delivery = DeliveryPolicy {
        lease: TimeDelta::seconds(LEASE),
        attempts: ATTEMPTS,
        backoff: pause,
        max_backoff: pause,
    };
    let test = TestStore::open_with(database, policy).await;
    let service = Service::new(test.store.clone(), test.clock.clone(), policy, delivery);
    (test, service)
}

fn caller() -> Caller {
    Caller {
        workspace: WorkspaceId::DEFAULT,
        actor: "model".into(),
        deadline: None,
        span: Span::default(),
    }
}

fn request_id() -> RequestId {
    RequestId::parse(&ScheduleId::new().to_string()).expect("a request id")
}

fn mode(id: RequestId) -> Mode {
    Mode {
        request_id: Some(id),
        validate_only: false,
    }
}

fn canvas() -> CanvasId {
    CanvasId::parse("canvas").expect("a canvas id")
}

fn value(ask: Ask) -> Schedule {
    Schedule::from_parts(
        ask.time * 1000,
        ask.kind == Kind::Local,
        ask.kind == Kind::Optimal,
    )
    .expect("a schedule")
}

/// A creation with one recipient in each zone.
fn create(ask: Ask) -> Create {
    let recipients = NAMES.map(|zone| Recipient {
        identifier: Identifier::ExternalUserId(zone.to_owned()),
        prioritization: vec![],
        trigger_properties: None,
        send_to_existing_only: None,
        attributes: json!({ "time_zone": zone }).as_object().cloned(),
    });
    Create {
        canvas_id: canvas(),
        schedule: value(ask),
        properties: None,
        target: Target {
            recipients: recipients.into(),
            ..Target::default()
        },
    }
}

fn update(id: ScheduleId, ask: Ask, terms: Terms, revision: i64) -> Request {
    let (etag, require_all) = (etag(id, terms, revision), terms.require_all);
    let overwrite = Overwrite {
        canvas_id: canvas(),
        schedule: value(ask),
        properties: None,
        etag,
        require_all,
    };
    Request::Update(Box::new(Update {
        schedule_id: Some(id),
        overwrite,
        mode: mode(request_id()),
    }))
}

fn cancel(id: ScheduleId, terms: Terms, revision: i64) -> Request {
    Request::Cancel(
        id,
        Cancel {
            canvas_id: canvas(),
            etag: etag(id, terms, revision),
            require_all: terms.require_all,
        },
        request_id(),
    )
}

fn etag(id: ScheduleId, terms: Terms, revision: i64) -> Option<RealEtag> {
    match terms.etag {
        Etag::None => None,
        Etag::Current => Some(RealEtag::of(id, revision)),
        Etag::Stale => Some(RealEtag::of(id, revision - 1)),
    }
}

fn accepted(outcome: &Outcome) -> Reply {
    let applied = if outcome.applied == Reached::All {
        Applied::All
    } else {
        Applied::Some
    };
    Reply::Accepted {
        revision: outcome.after.revision,
        applied,
        zones: outcome.applied_zones,
        missed: zones(&outcome.missed),
    }
}

fn refused(error: &Error) -> Reply {
    let since = |since: &str| time(instant(since));
    match error {
        Error::TimePast(_) => Reply::TimePast,
        Error::BeyondHorizon(_) => Reply::BeyondHorizon,
        Error::Cancelled { since: at, .. } => Reply::Cancelled { since: since(at) },
        Error::NothingLeft { since: at, .. } => Reply::NothingLeft { since: since(at) },
        Error::NotAll { taken, missed, .. } => Reply::NotAll {
            taken: *taken,
            missed: *missed,
        },
        Error::StaleEtag { revision, .. } => Reply::Stale {
            revision: *revision,
        },
        Error::DispatchNotFound { .. } => Reply::NoSuchDispatch,
        Error::NotDead { .. } => Reply::NotDead,
        other => panic!("{other:?}"),
    }
}

/// Rounds up to seconds, since a pause has jitter and is shorter than its bound.
fn time(at: DateTime<Utc>) -> Time {
    (at.timestamp_millis() + 999).div_euclid(1000)
}

fn zones(set: &ZoneSet) -> Zones {
    Zones::named(set.names())
}

fn ask(schedule: &Schedule) -> Ask {
    let kind = match (schedule.in_local_time, schedule.at_optimal_time) {
        (false, false) => Kind::Utc,
        (true, false) => Kind::Local,
        (_, true) => Kind::Optimal,
    };
    Ask {
        kind,
        time: schedule.millis() / 1000,
    }
}

fn wave(real: &RealWave) -> Wave {
    let optimal = real.mode == WaveMode::OptimalTime;
    Wave {
        time: time(real.time),
        zones: zones(&real.zones),
        unlisted: real.includes_unlisted_zones,
        optimal,
    }
}

fn dispatch(dispatch: &Stored) -> Dispatch {
    Dispatch {
        n: dispatch.number,
        revision: dispatch.revision,
        wave: wave(&dispatch.wave),
        status: match dispatch.state {
            DispatchState::InFlight => Status::InHand,
            DispatchState::Unknown => Status::Unknown,
            DispatchState::Delivered => Status::Delivered,
            DispatchState::Dead => Status::Dead,
            DispatchState::Abandoned => Status::Abandoned,
        },
        attempt: dispatch.attempt,
        last_attempt: dispatch.last_attempt,
        retry_at: dispatch.retry_at.map(time),
        fired_at: time(dispatch.claimed_at),
        finished_at: dispatch.finished_at.map(time),
        worker: None,
    }
}

fn delivery(leased: &Leased) -> Delivery {
    let dispatch = &leased.dispatch;
    assert_eq!(
        dispatch.id,
        DispatchId::of(dispatch.schedule_id, dispatch.number)
    );
    let names = dispatch
        .target
        .recipients
        .iter()
        .map(|recipient| match &recipient.identifier {
            Identifier::ExternalUserId(zone) => zone.as_str(),
            other => panic!("{other:?}"),
        });
    Delivery {
        n: dispatch.number,
        attempt: dispatch.attempt,
        revision: dispatch.revision,
        wave: wave(&dispatch.wave),
        lateness: dispatch.lateness.num_seconds(),
        recipients: Zones::named(names),
    }
}
