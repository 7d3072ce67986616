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
/// Calls that are offered to each replica by so many callers: 1.2 times the limit, unevenly.
const OFFERED: [usize; 2] = [6_480, 720];
const CALLERS: usize = 6;
/// Over which the calls are spread.
const SPREAD: Duration = Duration::from_secs(25);
/// The quota's window, aligned to the clock.
const WINDOW: Duration = Duration::from_secs(60 * 60);
/// All calls are answered within this, however slow the machine, so that they count in one window.
const ROOM: Duration = Duration::from_secs(3 * 60);
/// A window has begun by every clock so long after it has by ours.
const MARGIN: Duration = Duration::from_secs(2);

/// What became of some calls.
#[derive(Default)]
struct Tally {
    accepted: usize,
    refused: usize,
    /// When the window ends, by the header.
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
    let window_ends = a_window_with_room().await;
    let (mut callers, begin) = (JoinSet::new(), Instant::now());
    for (server, offered) in servers.iter().zip(OFFERED) {
        for _ in 0..CALLERS {
            callers.spawn(offer(server.connect().await, offered / CALLERS, begin));
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
    assert_eq!(all.accepted + all.refused, OFFERED.iter().sum::<usize>());
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

/// Waits for a window in which the calls have room, and answers when it ends, in seconds since 1970.
async fn a_window_with_room() -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let ends = (now.as_secs() / WINDOW.as_secs() + 1) * WINDOW.as_secs();
    let left = Duration::from_secs(ends) - now;
    if left > ROOM {
        return ends;
    }
    // The database's clock decides, and may be a little behind.
    sleep(left + MARGIN).await;
    ends + WINDOW.as_secs()
}

/// Makes so many calls, evenly spread.
async fn offer(mut client: Client, calls: usize, begin: Instant) -> Tally {
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
