//! A quota shared by two replicas.

use std::time::{Duration, SystemTime};

use canvas_scheduler::pb::v1;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::Code;

use super::database::{Database, test_name};
use super::load::reason;
use super::postgres::process::run;
use super::server::{Client, PATIENCE, Server, command, key};

const LIMIT: usize = 6_000;
/// The calls to each replica. Together they are 1.2 times the limit.
const CALLS: [usize; 2] = [6_480, 720];
/// The callers of each replica.
const CALLERS: usize = 6;
/// The time over which the calls are spread.
const SPREAD: Duration = Duration::from_secs(25);
/// The quota's window, aligned to the clock.
const WINDOW: Duration = Duration::from_secs(60 * 60);
/// The time within which all calls must complete, even on a slow machine, so that they count in one
/// window.
const MAX_DURATION: Duration = Duration::from_secs(3 * 60);
/// The largest difference between our clock and the database's.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(2);

/// The outcomes of calls.
#[derive(Default)]
struct Tally {
    accepted: usize,
    refused: usize,
    /// The ends of the window in the headers, in seconds since 1970.
    resets: Vec<u64>,
}

#[tokio::test]
async fn two_replicas_accept_the_quota_to_within_one_percent_under_uneven_load_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let key = key(&database.url());
    let quota = format!("{LIMIT}/hour");
    run(
        &mut command(&[
            "workspace",
            "set",
            "default",
            "--requests",
            &quota,
            "--database-url",
            &database.url(),
        ]),
        PATIENCE,
    )
    .unwrap();
    let servers = [
        Server::start_with_key(&database.url(), &[], key.clone()).await,
        Server::start_with_key(&database.url(), &[], key.clone()).await,
    ];
    let window_ends = window_with_enough_time().await;
    let (mut callers, begin) = (JoinSet::new(), Instant::now());
    for (server, calls) in servers.iter().zip(CALLS) {
        for _ in 0..CALLERS {
            callers.spawn(make_calls(server.connect().await, calls / CALLERS, begin));
        }
    }
    let mut all = Tally::default();
    for tally in callers.join_all().await {
        all.accepted += tally.accepted;
        all.refused += tally.refused;
        all.resets.extend(tally.resets);
    }
    println!(
        "{}: {} of {LIMIT} accepted, {} refused, in {:?}",
        test_name(),
        all.accepted,
        all.refused,
        begin.elapsed()
    );
    assert_eq!(all.accepted + all.refused, CALLS.iter().sum::<usize>());
    assert!(
        (LIMIT - LIMIT / 100..=LIMIT).contains(&all.accepted),
        "{}",
        all.accepted
    );
    assert!(
        all.resets.iter().all(|reset| *reset == window_ends),
        "{window_ends}: {:?}",
        all.resets
    );
}

/// Waits until a window has enough time left for the calls. Returns when it ends, in seconds since
/// 1970.
async fn window_with_enough_time() -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let ends = (now.as_secs() / WINDOW.as_secs() + 1) * WINDOW.as_secs();
    let left = Duration::from_secs(ends) - now;
    if left > MAX_DURATION {
        return ends;
    }
    // The database's clock decides, and may be behind ours.
    sleep(left + MAX_CLOCK_SKEW).await;
    ends + WINDOW.as_secs()
}

/// Makes calls at a steady rate.
async fn make_calls(mut client: Client, calls: usize, begin: Instant) -> Tally {
    let mut tally = Tally::default();
    for n in 0..calls {
        sleep_until(begin + SPREAD * u32::try_from(n).unwrap() / u32::try_from(calls).unwrap())
            .await;
        match client
            .list_canvas_schedules(v1::ListCanvasSchedulesRequest::default())
            .await
        {
            Ok(_) => tally.accepted += 1,
            Err(status) => {
                assert_eq!(
                    (status.code(), reason(&status).as_str()),
                    (Code::ResourceExhausted, "RATE_LIMITED"),
                    "{status:?}"
                );
                tally.refused += 1;
                tally.resets.push(
                    status
                        .metadata()
                        .get("x-ratelimit-reset")
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .parse()
                        .unwrap(),
                );
            }
        }
    }
    tally
}
