//! Two servers on one PostgreSQL, whose callers update the same few schedules.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use canvas_scheduler::pb::v1;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Code;

use super::database::{Database, test_name};
use super::history::History;
use super::load::{Callers, Mix, millis, reason, schedule_at, schedules};
use super::server::{Client, PATIENCE, Server};

/// How long the callers run.
const LOAD: Duration = Duration::from_secs(5);
const CALLERS: usize = 32;
const SCHEDULES: usize = 5;

async fn start_two(database: &Database) -> ([Server; 2], Vec<Client>) {
    let servers = [
        Server::start(&database.url(), &[]).await,
        Server::start(&database.url(), &[]).await,
    ];
    let mut clients = Vec::new();
    for n in 0..8 {
        clients.push(servers[n % 2].connect().await);
    }
    (servers, clients)
}

#[tokio::test]
async fn two_replicas_lose_no_update_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (servers, clients) = start_two(&database).await;
    let (ids, mut calls) = schedules(&mut clients[0].clone(), SCHEDULES).await;
    let mut callers = Callers::start(
        &clients,
        &ids,
        CALLERS,
        Mix {
            request_id_every: 7,
            ..Mix::default()
        },
    );
    tokio::time::sleep(LOAD).await;
    callers.acknowledged(1).await;
    calls.extend(callers.stop().await);
    for call in &calls {
        assert!(
            call.end.is_ok(),
            "without a fault every call must succeed: {call:?}"
        );
    }
    let tally = History::read(&mut servers[1].connect().await)
        .await
        .check(&calls);
    println!(
        "{}: {:.0} updates/s, {tally:?}",
        test_name(),
        tally.done as f64 / LOAD.as_secs_f64()
    );
}

#[tokio::test]
async fn an_etag_makes_read_modify_write_exact_over_two_replicas_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let (_servers, clients) = start_two(&database).await;
    let (ids, _) = schedules(&mut clients[0].clone(), SCHEDULES).await;
    let ids: Arc<[String]> = ids.into();
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for caller in 0..CALLERS {
        tasks.spawn(count_up(
            clients[caller % clients.len()].clone(),
            ids.clone(),
            caller,
            stopped.clone(),
        ));
    }
    tokio::time::sleep(LOAD).await;
    stop.send_replace(true);
    let (mut won, mut lost) = (HashMap::<String, i64>::new(), 0);
    let all = async {
        while let Some(done) = tasks.join_next().await {
            let (id, succeeded, stale) = done.expect("a caller that does not panic");
            *won.entry(id).or_default() += succeeded;
            lost += stale;
        }
    };
    tokio::time::timeout(PATIENCE, all)
        .await
        .expect("every caller must end");
    let history = History::read(&mut clients[1].clone()).await;
    for id in ids.iter() {
        assert!(won[id] > 0, "no update succeeded");
        assert_eq!(
            history.newest(id) - 1,
            won[id],
            "{id}: successes and revisions differ"
        );
    }
    println!(
        "{}: {} succeeded, {lost} stale",
        test_name(),
        won.values().sum::<i64>()
    );
}

/// Reads a schedule, adds one millisecond, and writes it with the etag that it read. Returns how
/// often it succeeded, and how often another caller was faster.
async fn count_up(
    mut client: Client,
    ids: Arc<[String]>,
    caller: usize,
    stopped: watch::Receiver<bool>,
) -> (String, i64, i64) {
    let id = ids[caller % ids.len()].clone();
    let (mut won, mut stale) = (0, 0);
    while !*stopped.borrow() {
        let request = v1::GetCanvasScheduleRequest {
            schedule_id: id.clone(),
        };
        let read = client
            .get_canvas_schedule(request)
            .await
            .expect("it exists")
            .into_inner()
            .canvas_schedule
            .expect("a schedule");
        let next = millis(read.schedule.as_ref()) + 1;
        let request = v1::UpdateCanvasScheduleRequest {
            canvas_id: "canvas".to_owned(),
            schedule_id: id.clone(),
            schedule: schedule_at(next),
            etag: read.etag,
            ..Default::default()
        };
        match client.update_canvas_schedule(request).await {
            Ok(answer) => {
                let after = answer.into_inner().canvas_schedule.expect("a schedule");
                assert_eq!(
                    after.revision,
                    read.revision + 1,
                    "the etag must belong to the revision that was read"
                );
                won += 1;
            }
            Err(status) => {
                assert_eq!(
                    (status.code(), reason(&status).as_str()),
                    (Code::Aborted, "ETAG_STALE"),
                    "{status:?}"
                );
                stale += 1;
            }
        }
    }
    (id, won, stale)
}
