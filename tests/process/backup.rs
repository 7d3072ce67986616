//! Backups as docs/operations.md describes them: taken from a running service, restored, and used.

use canvas_scheduler::pb::v1;
use sea_orm::{ConnectionTrait, Database as Connection};

use super::database::{Database, Folder};
use super::load::{Callers, Mix, schedules, unique_time, update};
use super::postgres::process::run;
use super::server::{Client, PATIENCE, Server, migrate};

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

/// Creates schedules, takes a backup by `copy` while they change, and updates the restored
/// schedules.
async fn restores_a_backup(database: &Database, copy: impl AsyncFnOnce() -> String) {
    let server = Server::start(&database.url(), &[]).await;
    let mut client = server.connect().await;
    let (ids, _) = schedules(&mut client, SCHEDULES).await;
    let mut acknowledged = Vec::new();
    for id in &ids {
        acknowledged.push(
            update(&mut client, id, unique_time(), String::new())
                .await
                .unwrap()
                .1,
        );
    }
    let mut callers = Callers::start(&server.connections(4).await, &ids, 8, Mix::default());
    callers.acknowledged(200).await;
    let restored = copy().await;
    callers.acknowledged(200).await;
    callers.stop().await;

    migrate(&restored);
    // The backup contains the key of the first server.
    let other = Server::start_with_key(&restored, &[], server.key().to_owned()).await;
    let mut other = other.connect().await;
    for (id, acknowledged) in ids.iter().zip(acknowledged) {
        let (kept, newest) = (
            revision(&mut other, id).await,
            revision(&mut client, id).await,
        );
        assert!(
            (acknowledged..=newest).contains(&kept),
            "{id}: {acknowledged} before the backup, {kept} in it, {newest} after it"
        );
        assert_eq!(
            update(&mut other, id, unique_time(), String::new())
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

#[tokio::test]
async fn a_copy_of_sqlite_is_restored() {
    let (database, folder) = (Database::sqlite(), Folder::new());
    let copy = async || {
        let file = folder.path().join("copy.db");
        let connection = Connection::connect(database.url()).await.unwrap();
        connection
            .execute_unprepared(&format!("VACUUM INTO '{}'", file.display()))
            .await
            .unwrap();
        format!("sqlite://{}?mode=rwc", file.display())
    };
    restores_a_backup(&database, copy).await;
}
