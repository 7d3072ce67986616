//! The admin port reports why a live process is not ready.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::database::own_postgres;
use super::server::{PATIENCE, Server, migrate};

/// Polls until the process reports these reasons. It must be live throughout.
pub(crate) async fn until(server: &Server, wanted: &[&str]) -> Value {
    let started = Instant::now();
    loop {
        let (status, body) = server.ask("/readyz").await;
        let body: Value = serde_json::from_str(&body).unwrap();
        let reasons: Vec<&str> = body["reasons"]
            .as_array()
            .unwrap()
            .iter()
            .map(|reason| reason["reason"].as_str().unwrap())
            .collect();
        assert_eq!(
            (status, body["ready"].as_bool()),
            if reasons.is_empty() {
                (200, Some(true))
            } else {
                (503, Some(false))
            },
            "{body}"
        );
        assert_eq!(
            server.ask("/livez").await,
            (200, r#"{"live":true}"#.to_owned())
        );
        if reasons == wanted {
            return body;
        }
        assert!(started.elapsed() < PATIENCE, "{reasons:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_process_reports_why_it_is_not_ready_and_is_live_without_its_database() {
    let Some(mut postgres) = own_postgres(&[]) else {
        return;
    };
    postgres.createdb("test").unwrap();
    let url = postgres.url("test");
    let server = Server::listening(&url, &["--sink", "log"]).await;
    let body = until(&server, &["migrations_pending"]).await;
    assert!(
        body["reasons"][0]["message"]
            .as_str()
            .unwrap()
            .contains("canvas-scheduler migrate"),
        "{body}"
    );
    let (_, text) = server.ask("/metrics").await;
    assert!(
        text.contains("\ncanvas_scheduler_ready 0\n")
            && !text.contains("\ncanvas_scheduler_migrations_pending 0\n"),
        "{text}"
    );

    migrate(&url);
    until(&server, &[]).await;

    postgres.stop().unwrap();
    until(&server, &["database_away"]).await;
    let (status, text) = server.ask("/metrics").await;
    assert!(
        status == 200 && text.contains("\ncanvas_scheduler_database_up 0\n"),
        "{text}"
    );

    postgres.restart().unwrap();
    until(&server, &[]).await;
    assert_eq!(server.ask("/nope").await.0, 404);
}
