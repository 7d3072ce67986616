//! Backups as docs/operations.md makes them: taken while the service works, and what is restored from them goes on.

use canvas_scheduler::pb::v1;
use sea_orm::{ConnectionTrait, Database as Connection};

use super::database::{Database, Folder};
use super::load::{Callers, Mix, schedules, unique_time, update};
use super::postgres::process::run;
use super::server::{Client, PATIENCE, Server, migrate};

const SCHEDULES: usize = 50;

/// The revision that a server has of a schedule.
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

/// Makes schedules, takes a backup by `copy` while they change, and goes on from it.
async fn goes_on_from_a_backup(database: &Database, copy: impl AsyncFnOnce() -> String) {
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
    // The key of the first server is in the backup.
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
            "it goes on from there"
        );
    }
}

#[tokio::test]
async fn a_dump_of_postgresql_is_restored() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let Database::Postgres { server, name } = &database else {
        panic!("it is PostgreSQL")
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
    goes_on_from_a_backup(&database, copy).await;
}

#[tokio::test]
async fn a_copy_of_sqlite_is_a_whole_database() {
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
    goes_on_from_a_backup(&database, copy).await;
}
