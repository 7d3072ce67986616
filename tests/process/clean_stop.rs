//! After a clean stop, and after each command, the database file of SQLite has everything, and no
//! file is left next to it.

use std::fs;
use std::path::{Path, PathBuf};

use super::database::{Database, Folder};
use super::dev;
use super::history::History;
use super::load::{Callers, Mix, schedules};
use super::postgres::process::run;
use super::server::{PATIENCE, Server, command};

/// Acknowledged calls before the stop.
const BEFORE: u64 = 300;

/// The names of the files in a folder.
fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Copies the database file only, and returns the URL of the copy.
fn copied(file: &Path, folder: &Folder) -> String {
    let copy: PathBuf = folder.path().join("copy.db");
    fs::copy(file, &copy).unwrap();
    format!("sqlite://{}?mode=rw", copy.display())
}

#[tokio::test]
async fn the_file_of_a_stopped_server_has_everything() {
    let (database, elsewhere) = (Database::sqlite(), Folder::new());
    let Database::Sqlite(folder) = &database else {
        panic!("SQLite expected")
    };
    let mut server = Server::start(&database.url(), &["--sink", "log"]).await;
    let (ids, mut calls) = schedules(&mut server.connect().await, 20).await;
    let mix = Mix {
        create_every: 10,
        request_id_every: 7,
        until_refused: true,
    };
    let mut callers = Callers::start(&server.connections(4).await, &ids, 16, mix);
    callers.acknowledged(BEFORE).await;
    server.signal("TERM");
    calls.extend(callers.ended().await);
    let status = server.ended(PATIENCE).await.expect("it stops");
    assert!(status.success(), "{status}");
    assert_eq!(files(folder.path()), ["test.db"]);

    let copy = copied(&folder.path().join("test.db"), &elsewhere);
    let other = Server::start_with_key(&copy, &[], server.key().to_owned()).await;
    let tally = History::read(&mut other.connect().await)
        .await
        .check(&calls);
    assert!(tally.done as u64 >= BEFORE, "{tally:?}");
}

#[tokio::test]
async fn the_file_of_dev_has_everything_after_ctrl_c() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let (running, screen) = dev::start(&folder).await;
    let key = screen
        .iter()
        .find_map(|line| line.split("Bearer ").nth(1)?.split('\'').next())
        .expect("a key")
        .to_owned();
    dev::interrupt(running);
    assert_eq!(files(folder.path()), ["canvas-scheduler.db"]);

    let copy = copied(&folder.path().join("canvas-scheduler.db"), &elsewhere);
    let other = Server::start_with_key(&copy, &[], key).await;
    let samples = super::history::every_schedule(&mut other.connect().await).await;
    assert_eq!(samples.len(), 2, "{samples:?}");
}

#[test]
fn the_file_has_everything_after_each_command() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let file = folder.path().join("test.db");
    let url = format!("sqlite://{}?mode=rwc", file.display());
    let target = elsewhere.path().join("backup.db").display().to_string();
    let commands: [&[&str]; 8] = [
        &["migrate"],
        &["api-key", "create", "--name", "n", "--permissions", "all"],
        &["api-key", "list"],
        &["workspace", "create", "w"],
        &["workspace", "set", "w", "--sending", "paused"],
        &["workspace", "list"],
        &["backup", &target],
        // One that fails.
        &["workspace", "create", "w"],
    ];
    for args in commands {
        let done = run(
            &mut command(&[args, &["--database-url", &url]].concat()),
            PATIENCE,
        );
        assert_eq!(files(folder.path()), ["test.db"], "{args:?}: {done:?}");
    }
    let copy = copied(&file, &elsewhere);
    for (args, expected) in [
        (["api-key", "list"], "\tn\t"),
        (["workspace", "list"], "w\t"),
    ] {
        let listed = run(
            &mut command(&[&args[..], &["--database-url", &copy]].concat()),
            PATIENCE,
        )
        .unwrap();
        assert!(listed.contains(expected), "{args:?}: {listed}");
    }
}
