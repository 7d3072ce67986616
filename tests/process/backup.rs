//! Backups as docs/operations.md describes them: taken from a running service, restored, and used.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use canvas_scheduler::pb::v1;
use sea_orm::{ConnectionTrait, Database as Connection, Statement};

use super::database::{Database, Folder};
use super::load::{Call, Callers, Mix, schedules, unique_time, update};
use super::postgres::process::run;
use super::server::{Client, PATIENCE, Server, command, migrate};

const SCHEDULES: usize = 50;

/// The revision of a schedule on a server.
async fn revision(client: &mut Client, id: &str) -> i64 {
    let request = v1::GetCanvasScheduleRequest {
        schedule_id: id.to_owned(),
    };
    client
        .get_canvas_schedule(request)
        .await
        .unwrap()
        .into_inner()
        .canvas_schedule
        .unwrap()
        .revision
}

/// The newest acknowledged revision of each schedule.
fn acknowledged(calls: &[Call]) -> HashMap<String, i64> {
    let mut newest = HashMap::new();
    for (id, revision) in calls.iter().filter_map(|call| call.end.as_ref().ok()) {
        let known: &mut i64 = newest.entry(id.clone()).or_default();
        *known = (*known).max(*revision);
    }
    newest
}

/// Changes schedules, takes a backup by `copy` while they change further, and updates the restored
/// schedules.
async fn restores_a_backup(database: &Database, copy: impl AsyncFnOnce() -> String) {
    let server = Server::start(&database.url(), &[]).await;
    let mut client = server.connect().await;
    let (ids, mut before) = schedules(&mut client, SCHEDULES).await;
    let mix = Mix {
        create_every: 10,
        ..Mix::default()
    };
    let clients = server.connections(4).await;
    let mut callers = Callers::start(&clients, &ids, 8, mix);
    callers.acknowledged(200).await;
    before.extend(callers.stop().await);
    let mut callers = Callers::start(&clients, &ids, 8, mix);
    callers.acknowledged(200).await;
    let restored = copy().await;
    callers.acknowledged(200).await;
    callers.stop().await;

    migrate(&restored);
    // The backup contains the key of the first server.
    let other = Server::start_with_key(&restored, &[], server.key().to_owned()).await;
    let mut other = other.connect().await;
    for (id, acknowledged) in acknowledged(&before) {
        let (kept, newest) = (
            revision(&mut other, &id).await,
            revision(&mut client, &id).await,
        );
        assert!(
            (acknowledged..=newest).contains(&kept),
            "{id}: {acknowledged} before the backup, {kept} in it, {newest} after it"
        );
        assert_eq!(
            update(&mut other, &id, unique_time(), String::new())
                .await
                .unwrap()
                .1,
            kept + 1,
            "the restored schedule accepts updates"
        );
    }
}

#[tokio::test]
async fn a_dump_of_postgresql_is_restored() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let Database::Postgres { server, name } = &database else {
        panic!("PostgreSQL expected")
    };
    let folder = Folder::new();
    let (file, restored) = (
        folder.path().join("canvas.dump").display().to_string(),
        format!("{name}_restored"),
    );
    let copy = async || {
        run(
            server.client("pg_dump", name).args(["-Fc", "-f", &file]),
            PATIENCE,
        )
        .unwrap();
        server.createdb(&restored).unwrap();
        run(
            server.client("pg_restore", &restored).args([
                "--exit-on-error",
                "-d",
                &restored,
                &file,
            ]),
            PATIENCE,
        )
        .unwrap();
        server.url(&restored)
    };
    restores_a_backup(&database, copy).await;
}

/// Runs `backup`.
fn backup(url: &str, file: &Path, more: &[&str]) -> Result<String, String> {
    let file = file.display().to_string();
    let args = [&["backup", "--database-url", url, &file], more].concat();
    run(&mut command(&args), PATIENCE)
}

/// Fails if a file of SQLite is damaged.
async fn check_integrity(file: &Path) {
    let copy = Connection::connect(url_of(file)).await.unwrap();
    let check = Statement::from_string(copy.get_database_backend(), "PRAGMA integrity_check");
    let row = copy.query_one_raw(check).await.unwrap().unwrap();
    assert_eq!(row.try_get_by_index::<String>(0).unwrap(), "ok");
    copy.close().await.unwrap();
}

fn url_of(file: &Path) -> String {
    format!("sqlite://{}?mode=rwc", file.display())
}

#[tokio::test]
async fn a_backup_of_sqlite_under_load_is_restored() {
    let (database, folder) = (Database::sqlite(), Folder::new());
    let file = folder.path().join("copy.db");
    let copy = async || {
        let (url, target) = (database.url(), file.clone());
        // The callers go on in this thread's runtime.
        tokio::task::spawn_blocking(move || backup(&url, &target, &[]))
            .await
            .unwrap()
            .unwrap();
        check_integrity(&file).await;
        url_of(&file)
    };
    restores_a_backup(&database, copy).await;
}

#[test]
fn a_backup_replaces_a_file_only_when_told_so_and_never_the_database() {
    let (database, folder) = (Database::sqlite(), Folder::new());
    let (url, file) = (database.url(), folder.path().join("copy.db"));
    let Database::Sqlite(place) = &database else {
        panic!("SQLite expected")
    };
    let refused = |url: &str, file: &Path, more: &[&str], why: &str| {
        let complaint = backup(url, file, more).unwrap_err();
        assert!(complaint.contains(why), "{complaint}");
    };
    backup(&url, &file, &[]).unwrap();
    fs::write(&file, "another backup").unwrap();
    refused(&url, &file, &[], "set --overwrite");
    assert_eq!(fs::read(&file).unwrap(), b"another backup");
    backup(&url, &file, &["--overwrite"]).unwrap();
    assert!(fs::read(&file).unwrap().starts_with(b"SQLite format 3"));
    let own = place.path().join("test.db");
    refused(&url, &own, &["--overwrite"], "the database itself");
    let link = folder.path().join("link.db");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    refused(&url, &link, &["--overwrite"], "the database itself");
    fs::write(folder.path().join("new.db-wal"), "of another").unwrap();
    refused(&url, &folder.path().join("new.db"), &[], "remove it");
    refused("postgres://h/d", &file, &[], "pg_dump");
    refused("sqlite::memory:", &file, &[], "without a file");
    let missing = url_of(&folder.path().join("missing.db"));
    refused(&missing, &folder.path().join("b.db"), &[], "does not exist");
    refused(&url, Path::new(&missing), &[], "is a URL");
    refused(
        &url,
        &folder.path().join("no/b.db"),
        &[],
        "cannot be written",
    );
    let mut left: Vec<_> = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["copy.db", "link.db", "new.db-wal"]);
}
