//! The `dev` command.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::database::{Folder, test_name};
use super::postgres::process::{Running, run};
use super::server::{Lines, PATIENCE, command};

/// Starts `dev` in a folder, waits for its last line, and returns everything that it printed.
pub(crate) async fn start(folder: &Folder) -> (Running, Vec<String>) {
    let mut dev = command(&[
        "dev",
        "--grpc-addr",
        "127.0.0.1:0",
        "--gateway-addr",
        "127.0.0.1:0",
    ]);
    let mut running = Running::start(
        dev.current_dir(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null()),
    )
    .unwrap();
    let screen = Lines::of_output(running.child().stdout.take().unwrap());
    screen
        .first(|line| line.contains("Ctrl-C stops the server").then_some(()))
        .await;
    (running, screen.all())
}

pub(crate) fn interrupt(mut running: Running) {
    let status = running.stop("INT", PATIENCE).unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn it_starts_in_an_empty_folder_stops_by_sigint_and_starts_again() {
    let folder = Folder::new();
    let began = Instant::now();
    let (running, screen) = start(&folder).await;
    println!(
        "{}: printed everything after {:?}",
        test_name(),
        began.elapsed()
    );
    assert!(
        screen
            .iter()
            .filter(|line| line.starts_with("grpcurl "))
            .count()
            >= 5,
        "{screen:#?}"
    );
    interrupt(running);
    let (running, again) = start(&folder).await;
    assert_eq!(
        sample(&screen),
        sample(&again),
        "it must print the same sample again"
    );
    interrupt(running);
}

/// The command that reads a sample, without the address.
fn sample(screen: &[String]) -> Option<&str> {
    screen
        .iter()
        .find(|line| line.ends_with("/GetCanvasSchedule"))?
        .split('\'')
        .nth(3)
}

#[tokio::test]
async fn every_printed_command_works_when_pasted() {
    let there = |tool| Command::new(tool).arg("--version").output().is_ok();
    if !there("grpcurl") || !there("curl") {
        println!("skipped: {} needs grpcurl and curl", test_name());
        return;
    }
    let folder = Folder::new();
    // The second time with the data of the first.
    for time in ["first", "second"] {
        let (running, screen) = start(&folder).await;
        for line in screen
            .iter()
            .filter(|line| line.starts_with("grpcurl ") || line.starts_with("curl "))
        {
            let output = run(
                Command::new("sh").args(["-c", line]),
                Duration::from_secs(60),
            );
            assert!(
                output
                    .as_ref()
                    .is_ok_and(|output| !output.trim().is_empty()),
                "the {time} time, {line}: {output:?}"
            );
        }
        interrupt(running);
    }
}
