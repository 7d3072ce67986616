//! Commits of the dispatcher, and of callers that concern dispatches, whose connection is lost
//! before the server has them, or before its answer arrives.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use canvas_scheduler::pb::v1;
use tonic::Code;

use super::consumer::{Consumer, Mode, Received};
use super::database::Database;
use super::delivery::{SECRET, arrived, due, settled};
use super::load::{now_ms, reason};
use super::postgres::Postgres;
use super::postgres::process::run;
use super::proxy::{Action, Message, Proxy, Side};
use super::server::{Client, PATIENCE, Server, command};

/// When a commit is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// The server never gets it.
    Before,
    /// The server carries it out, and its answer is lost.
    After,
}

/// Cuts off the first commit of each transaction that contains a statement with this text, up to
/// `max` of them, and returns their number so far.
fn cut_commits(proxy: &Proxy, cut: Cut, text: &'static str, max: usize) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let (counted, mut contains) = (count.clone(), HashSet::new());
    proxy.set_rule(move |message: &Message<'_>| {
        if message.statement.contains(text) {
            contains.insert(message.connection);
        }
        let side = match cut {
            Cut::Before => Side::ToServer,
            Cut::After => Side::ToClient,
        };
        let is_commit = message.statement == "COMMIT" && contains.contains(&message.connection);
        if !is_commit || message.side != side || counted.load(Ordering::SeqCst) == max {
            return Action::Forward;
        }
        contains.remove(&message.connection);
        counted.fetch_add(1, Ordering::SeqCst);
        Action::CutBefore
    });
    count
}

/// A service that sends, whose leases outlive the test, behind a proxy.
struct Sender {
    proxy: Proxy,
    consumer: Consumer,
    server: Server,
}

impl Sender {
    async fn start(postgres: &Postgres, name: &str) -> Self {
        let (proxy, consumer) = (Proxy::start(postgres.port()), Consumer::start().await);
        let flags = [
            "--sink",
            "webhook",
            "--sink-url",
            &consumer.url(),
            "--sink-secret",
            SECRET,
            "--lease",
            "1h",
            "--workers",
            "8",
        ];
        let server = Server::start(&proxy.url(name), &flags).await;
        Self {
            proxy,
            consumer,
            server,
        }
    }

    async fn client(&self) -> Client {
        self.server.connect().await
    }
}

/// The commits of a few claims are cut off: each wave is delivered once, long before the end of its
/// lease.
async fn claims(cut: Cut) {
    let Some(database) = Database::postgres() else {
        return;
    };
    let Database::Postgres { server, name } = &database else {
        unreachable!()
    };
    let sender = Sender::start(server, name).await;
    let cuts = cut_commits(&sender.proxy, cut, "INSERT INTO dispatch", 3);
    let ids = due(&[sender.client().await], 30, now_ms() - 1_000, 900).await;
    let came = sender.consumer.until(|came| arrived(came) == ids).await;
    assert!(cuts.load(Ordering::SeqCst) > 0, "no commit was cut off");
    settled(&mut sender.client().await, ids.len()).await;
    assert_eq!(came.len(), ids.len(), "each wave must be delivered once");
    assert!(came.iter().all(|one| one.attempt == 1));
}

#[tokio::test]
async fn claims_whose_answer_is_lost_are_delivered_once_postgres() {
    claims(Cut::After).await;
}

#[tokio::test]
async fn claims_that_the_server_never_gets_are_delivered_once_postgres() {
    claims(Cut::Before).await;
}

/// The commit of the second attempt is cut off: the third comes from its consumer's answer alone.
async fn retries(cut: Cut) {
    let Some(database) = Database::postgres() else {
        return;
    };
    let Database::Postgres { server, name } = &database else {
        unreachable!()
    };
    let sender = Sender::start(server, name).await;
    sender.consumer.set(Mode::HalfClose);
    let cuts = cut_commits(&sender.proxy, cut, "retry_ms BETWEEN", 1);
    let ids = due(&[sender.client().await], 1, now_ms() - 1_000, 1).await;
    sender.consumer.until(|came| !came.is_empty()).await;
    sender.consumer.set(Mode::Take);
    let came = sender.consumer.until(|came| arrived(came) == ids).await;
    assert_eq!(cuts.load(Ordering::SeqCst), 1, "no commit was cut off");
    settled(&mut sender.client().await, 1).await;
    let attempts: Vec<u64> = came.iter().map(|one: &Received| one.attempt).collect();
    assert_eq!(attempts, [1, 2]);
}

#[tokio::test]
async fn a_retry_whose_answer_is_lost_is_delivered_once_postgres() {
    retries(Cut::After).await;
}

#[tokio::test]
async fn a_retry_that_the_server_never_gets_is_delivered_once_postgres() {
    retries(Cut::Before).await;
}

/// A caller's commit on a dispatcher's connection: its outcome must not be reported as nothing.
#[tokio::test]
async fn a_callers_commit_that_is_cut_off_has_an_unknown_outcome_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let Database::Postgres { server, name } = &database else {
        unreachable!()
    };
    let sender = Sender::start(server, name).await;
    sender.consumer.set(Mode::Say(400));
    let ids = due(&[sender.client().await], 1, now_ms() - 1_000, 1).await;
    let schedule_id = ids.first().expect("an id").clone();
    let mut client = sender.client().await;
    let dispatch_id = dead_letter(&mut client, &schedule_id).await;
    let cuts = cut_commits(&sender.proxy, Cut::After, "UPDATE dispatch AS d", 1);
    sender.consumer.set(Mode::Take);
    let request = v1::RetryDispatchRequest {
        schedule_id,
        dispatch_id,
    };
    let status = client
        .retry_dispatch(request)
        .await
        .expect_err("its commit is cut off");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unknown, "OUTCOME_UNKNOWN"),
        "{status:?}"
    );
    assert_eq!(cuts.load(Ordering::SeqCst), 1);
    sender.consumer.until(|came| arrived(came) == ids).await;

    let cuts = cut_commits(&sender.proxy, Cut::After, "UPDATE sending", 1);
    let url = sender.proxy.url(name);
    let pause = move || {
        let set = ["workspace", "set", "--all", "--sending", "paused"];
        let set = set.into_iter().chain(["--database-url", &url]);
        run(&mut command(&set.collect::<Vec<_>>()), PATIENCE)
    };
    let failed = tokio::task::spawn_blocking(pause)
        .await
        .unwrap()
        .expect_err("its commit is cut off");
    assert!(failed.contains("may or may not"), "{failed}");
    assert_eq!(cuts.load(Ordering::SeqCst), 1);
}

/// Waits until the dispatch of a schedule is a dead letter, and returns its id.
async fn dead_letter(client: &mut Client, schedule_id: &str) -> String {
    let request = v1::ListDispatchesRequest {
        schedule_id: schedule_id.to_owned(),
        ..Default::default()
    };
    let dead = async {
        loop {
            let page = client
                .list_dispatches(request.clone())
                .await
                .expect("a page");
            let mut dispatches = page.into_inner().dispatches.into_iter();
            if let Some(dead) = dispatches.find(|one| one.state() == v1::DispatchState::Dead) {
                return dead.dispatch_id;
            }
        }
    };
    tokio::time::timeout(PATIENCE, dead)
        .await
        .expect("it is rejected")
}
