//! Two replicas over one database, failing statements, and a full queue.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use canvas_scheduler::pb::v1;
use tokio::task::JoinSet;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::support::*;

on_both![file:
    two_replicas_lose_no_update,
    two_replicas_create_one_revision_for_one_request_id,
    a_change_that_the_database_refuses_fails_no_other,
    a_creation_that_the_database_refuses_fails_no_other,
    a_full_queue_refuses_immediately,
];

/// The callers of each replica, and the updates of each caller.
const CALLERS: usize = 4;
const EACH: usize = 10;

async fn two_replicas_lose_no_update(database: &Database) {
    let replicas = [kept_all(database).await, kept_all(database).await];
    let contended = replicas[0].created(create("canvas", at(LATER))).await;
    let mut calls = JoinSet::new();
    for (r, replica) in replicas.iter().enumerate() {
        for caller in 0..CALLERS {
            let (mut client, schedule) = (replica.fresh_client(), contended.clone());
            calls.spawn(async move {
                let mut answers = Vec::new();
                for n in 0..EACH {
                    // A unique time for each update, to find it in the history.
                    let time = format!("2026-03-21T{r:02}:{caller:02}:{n:02}Z");
                    let answer = client
                        .update_canvas_schedule(update(&schedule, at(&time)))
                        .await
                        .expect("updated")
                        .into_inner();
                    assert_eq!(time_of(schedule_of(&answer)), time);
                    answers.push((schedule_of(&answer).revision, time));
                }
                assert!(
                    answers.is_sorted(),
                    "the updates of a caller must be in order"
                );
                answers
            });
        }
    }
    let answers: Vec<(i64, String)> = calls.join_all().await.concat();
    let reply: BTreeMap<i64, String> = answers.iter().cloned().collect();
    let last = i64::try_from(2 * CALLERS * EACH + 1).expect("a revision");
    assert_eq!(
        reply.keys().copied().collect::<Vec<_>>(),
        (2..=last).collect::<Vec<_>>(),
        "revisions must have no gap and no duplicate"
    );
    for replica in &replicas {
        let (got, history) = replica.seen(&contended).await;
        let kept: BTreeMap<i64, String> = history
            .into_iter()
            .map(|one| (one.revision, one.schedule.expect("a schedule").time))
            .filter(|(n, _)| *n > 1)
            .collect();
        assert_eq!(kept, reply, "every answer must be in the history");
        let now = got.canvas_schedule.expect("a schedule");
        assert_eq!((now.revision, time_of(&now)), (last, reply[&last].as_str()));
    }
}

async fn kept_all(database: &Database) -> TestApp {
    TestApp::start_with(database, |settings| {
        settings.store.revisions_kept = number(1000)
    })
    .await
}

async fn two_replicas_create_one_revision_for_one_request_id(database: &Database) {
    let replicas = [kept_all(database).await, kept_all(database).await];
    let schedule = replicas[0].created(create("canvas", at(LATER))).await;
    for round in 0..5 {
        let mut calls = JoinSet::new();
        for n in 0..8 {
            let mut client = replicas[n % 2].fresh_client();
            let request_id = format!("r{round}");
            let request = v1::UpdateCanvasScheduleRequest {
                request_id,
                ..update(&schedule, at(LATER))
            };
            calls.spawn(async move {
                client
                    .update_canvas_schedule(request)
                    .await
                    .expect("answered")
                    .into_inner()
            });
        }
        let answers = calls.join_all().await;
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "every caller must receive the same answer"
        );
        assert_eq!(schedule_of(&answers[0]).revision, round + 2, "one revision");
    }
    assert_eq!(replicas[1].revisions(&schedule).await.len(), 6);
}

/// A time that the test's database refuses, with an error that callers must not see.
const REFUSED_TIME: &str = "2026-03-21T06:06:06Z";

async fn refuse_in(database: &Database, table: &str) {
    let millis = instant(REFUSED_TIME).timestamp_millis();
    let postgres = format!(
        "ALTER TABLE {table} ADD CONSTRAINT secret_constraint CHECK (time_ms <> {millis}) NOT VALID"
    );
    let refuse =
        format!("WHEN NEW.time_ms = {millis} BEGIN SELECT RAISE(ABORT, 'secret_constraint'); END");
    let sqlite = format!(
        "CREATE TRIGGER a BEFORE INSERT ON {table} {refuse}; CREATE TRIGGER b BEFORE UPDATE ON {table} {refuse};"
    );
    database.sql(&postgres, &sqlite).await;
}

fn assert_internal(entry: &Entry, case: &str) {
    let status = entry.as_ref().expect_err("the database refuses it").clone();
    assert!(
        !format!("{status:?}").contains("secret_constraint"),
        "callers must not see the cause: {status:?}"
    );
    assert!(
        !status
            .get_details_request_info()
            .expect("a request id")
            .request_id
            .is_empty()
    );
    let refusal = refusal(Err::<(), _>(status));
    assert_eq!(
        (refusal.code, refusal.reason.as_str()),
        (Code::Internal, "INTERNAL"),
        "{case}"
    );
}

async fn a_change_that_the_database_refuses_fails_no_other(database: &Database) {
    for table in ["canvas_schedule", "canvas_schedule_revision"] {
        let app = TestApp::start(database).await;
        let mut schedules = Vec::new();
        for n in 0..20 {
            schedules.push(
                app.created(create(&format!("{table} {n}"), at(LATER)))
                    .await,
            );
        }
        refuse_in(database, table).await;
        let bad = [0, 7, 8, 19];
        let time = |n: usize| {
            if bad.contains(&n) {
                REFUSED_TIME.to_owned()
            } else {
                format!("2026-03-21T07:00:{n:02}Z")
            }
        };
        let answers = app
            .batch(
                (0..20)
                    .map(|n| update(&schedules[n], at(&time(n))))
                    .collect(),
            )
            .await
            .expect("answers");
        for (n, answer) in answers.iter().enumerate() {
            let now = app
                .get(&schedules[n])
                .await
                .canvas_schedule
                .expect("a schedule");
            if bad.contains(&n) {
                assert_internal(answer, &format!("{table} {n}"));
                assert_eq!(
                    (now.revision, time_of(&now)),
                    (1, LATER),
                    "{table} {n}: nothing may change"
                );
                assert_eq!(app.revisions(&schedules[n]).await.len(), 1);
            } else {
                let after = schedule_of(answer.as_ref().expect("the other change must be applied"));
                assert_eq!(
                    (after, now.revision, time_of(&now)),
                    (&now, 2, time(n).as_str()),
                    "{table} {n}"
                );
            }
        }
        refused_between_valid_changes(&app, &schedules[0], table, [time(1), time(2)]).await;
        app.stop().await;
        database
            .sql(
                &format!("ALTER TABLE {table} DROP CONSTRAINT secret_constraint"),
                "DROP TRIGGER a; DROP TRIGGER b;",
            )
            .await;
    }
}

/// Between two valid changes of the same schedule, only the refused one fails.
async fn refused_between_valid_changes(
    app: &TestApp,
    schedule: &v1::CanvasSchedule,
    table: &str,
    times: [String; 2],
) {
    let [first, last] = times;
    let mixed =
        [first, REFUSED_TIME.to_owned(), last.clone()].map(|time| update(schedule, at(&time)));
    let answers = app.batch(mixed.to_vec()).await.expect("answers");
    if table == "canvas_schedule_revision" {
        assert_internal(&answers[1], table);
        let revisions = [0, 2].map(|n| {
            schedule_of(
                answers[n]
                    .as_ref()
                    .expect("the other change must be applied"),
            )
            .revision
        });
        assert_eq!(revisions, [2, 3]);
    }
    assert_eq!(
        time_of(&app.get(schedule).await.canvas_schedule.expect("a schedule")),
        last
    );
}

async fn a_creation_that_the_database_refuses_fails_no_other(database: &Database) {
    let app = TestApp::start(database).await;
    refuse_in(database, "canvas_schedule").await;
    let mut calls = JoinSet::new();
    for n in 0..20 {
        let mut client = app.fresh_client();
        let time = if n % 5 == 0 { REFUSED_TIME } else { LATER };
        let request_id = if n % 2 == 0 {
            format!("r{n}")
        } else {
            String::new()
        };
        let request = v1::CreateCanvasScheduleRequest {
            request_id,
            ..create(&format!("{n}"), at(time))
        };
        calls.spawn(async move { (time, client.create_canvas_schedule(request).await) });
    }
    for (time, answer) in calls.join_all().await {
        if time == REFUSED_TIME {
            refused(answer, Code::Internal, "INTERNAL");
        } else {
            let made = answer
                .expect("the other creation must succeed")
                .into_inner()
                .canvas_schedule
                .expect("a schedule");
            assert_eq!(app.get(&made).await.canvas_schedule, Some(made));
        }
    }
    assert_eq!(app.list_ids(Default::default()).await.len(), 16);
}

async fn a_full_queue_refuses_immediately(database: &Database) {
    let app = TestApp::start_with(database, |settings| settings.store = one_at_a_time()).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    // Reserves quota for the calls below, which on SQLite needs the same lock.
    app.list(Default::default()).await.expect("a list");
    let lock = database.lock(&schedule.schedule_id).await;
    let mut calls = JoinSet::new();
    for _ in 0..6 {
        let (mut client, request) = (app.fresh_client(), update(&schedule, at(LATER)));
        calls.spawn(async move { client.update_canvas_schedule(request).await });
    }
    // The writer has at most one, and at most one waits: at least four are refused while the row is
    // locked.
    for _ in 0..4 {
        let answer = calls
            .join_next()
            .await
            .expect("six calls")
            .expect("no panic");
        let retry = answer
            .as_ref()
            .expect_err("refused")
            .get_details_retry_info()
            .expect("a retry delay");
        assert!(retry.retry_delay.is_some_and(|delay| !delay.is_zero()));
        refused(answer, Code::Unavailable, "BUSY");
    }
    lock.rollback().await.expect("the lock is released");
    let rest = calls.join_all().await;
    let applied = rest.iter().filter(|answer| answer.is_ok()).count();
    assert!(applied >= 1, "the waiting change must be applied");
    let now = app
        .get(&schedule)
        .await
        .canvas_schedule
        .expect("a schedule");
    assert_eq!(
        now.revision,
        i64::try_from(applied + 1).expect("a revision"),
        "refused changes must not be applied"
    );
    app.update(update(&schedule, at(LATER)))
        .await
        .expect("the queue accepts changes again");
}

mod on_postgres {
    use super::*;

    #[tokio::test]
    async fn a_call_whose_deadline_passes_in_the_queue_is_not_started() {
        run(
            Kind::Postgres,
            concat!(
                module_path!(),
                "::a_call_whose_deadline_passes_in_the_queue_is_not_started"
            ),
            in_the_queue,
        )
        .await;
    }

    #[tokio::test]
    async fn lists_are_read_from_an_index() {
        run(
            Kind::Postgres,
            concat!(module_path!(), "::lists_are_read_from_an_index"),
            lists,
        )
        .await;
    }
}

/// Writers of this database that wait for a lock.
const LOCK_WAITS: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
     AND application_name LIKE '%writer'";

async fn in_the_queue(database: &Database) {
    let app = TestApp::start_with(database, |settings| settings.store.writers = number(1)).await;
    // The writer waits at most a second for a lock: the late call counts if it was made and
    // answered meanwhile.
    for _ in 0..20 {
        if late_in_the_queue(&app, database).await {
            return;
        }
    }
    panic!("no call was made while the writer waited for a lock");
}

/// Makes a call with a short deadline while the writer waits for a lock. Returns whether the writer
/// waited all the time.
async fn late_in_the_queue(app: &TestApp, database: &Database) -> bool {
    let before_it = app.created(create("before it", at(LATER))).await;
    let queued = app.created(create("queued", at(LATER))).await;
    let lock = database.lock(&before_it.schedule_id).await;
    let (mut client, request) = (app.fresh_client(), update(&before_it, at(LATER)));
    let begun = tokio::spawn(async move { client.update_canvas_schedule(request).await });
    let patience = Instant::now() + Duration::from_secs(2);
    while database.count(LOCK_WAITS).await == 0 && Instant::now() < patience {
        assert!(!begun.is_finished(), "it must wait for the lock");
    }
    let mut request = Request::new(update(&queued, at("2026-03-21T09:00:00Z")));
    request.set_timeout(Duration::from_millis(50));
    let late = bare_client(app.addr(), &app.key)
        .await
        .update_canvas_schedule(request)
        .await;
    let waited = database.count(LOCK_WAITS).await > 0;
    lock.rollback().await.expect("the lock is released");
    begun
        .await
        .expect("no panic")
        .expect("the started change must be applied");
    if waited {
        refused(late, Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
        // It is behind everything that was queued before it.
        let after = app
            .update(update(&queued, at(LATER)))
            .await
            .expect("updated");
        assert_eq!(
            schedule_of(&after).revision,
            2,
            "the late call must not start"
        );
    }
    waited
}

async fn lists(database: &Database) {
    let app = TestApp::start(database).await;
    let schedule = app.created(create("canvas", at(LATER))).await;
    let copies = "INSERT INTO canvas_schedule (workspace_id, id, revision, version, time_ms, next_wave_ms, wake_ms, missed_before_ms, created_ms, \
         updated_ms, state, in_local_time, at_optimal_time, default_zone, canvas_id) \
         SELECT workspace_id, gen_random_uuid(), revision, version, time_ms, next_wave_ms, wake_ms, missed_before_ms, created_ms, updated_ms, \
         n % 4, in_local_time, at_optimal_time, default_zone, 'canvas ' || n % 100 FROM canvas_schedule, generate_series(1, 20000) AS n; \
         ANALYZE canvas_schedule";
    database.sql(copies, "").await;
    let explained = async |condition: &str| {
        let sql = format!(
            "EXPLAIN SELECT * FROM canvas_schedule WHERE workspace_id = 1 AND {condition} ORDER BY id LIMIT 51"
        );
        let plan = database.rows(&sql).await.join("\n");
        assert!(
            plan.contains("Index Scan using")
                && !plan.contains("Sort")
                && !plan.contains("Seq Scan"),
            "{condition}: {plan}"
        );
        plan
    };
    let after = format!("id > '{}'", schedule.schedule_id);
    assert!(
        explained(&format!("canvas_id = 'canvas 7' AND {after}"))
            .await
            .contains("canvas_schedule_canvas")
    );
    assert!(
        explained(&format!("state = 3 AND {after}"))
            .await
            .contains("canvas_schedule_state")
    );
    assert!(
        explained("canvas_id = 'canvas 7' AND state <= 1")
            .await
            .contains("canvas_schedule_")
    );
    explained(&after).await;
}
