//! Changes to one schedule keep their order even if the first fails, and a failing change affects
//! no other.

use canvas_scheduler::pb::v1;
use canvas_scheduler::pb::v1::batch_update_canvas_schedules_result::Result as Entry;
use tonic::Code;

use super::database::Database;
use super::load::{schedule_at, schedules, unique_time};
use super::server::{Client, Server};

/// One worker thread and one writer, so that all changes of a batch are in the same commit.
const ONE_WRITER: [&str; 4] = ["--cores", "1", "--writers", "1"];

fn entry(schedule_id: &str, time_ms: i64) -> v1::UpdateCanvasScheduleRequest {
    let (canvas_id, schedule_id) = ("canvas".to_owned(), schedule_id.to_owned());
    v1::UpdateCanvasScheduleRequest {
        canvas_id,
        schedule_id,
        schedule: schedule_at(time_ms),
        ..Default::default()
    }
}

/// Sends a batch. Returns the new revision or the error code of each entry.
async fn batch(
    client: &mut Client,
    requests: Vec<v1::UpdateCanvasScheduleRequest>,
) -> Vec<Result<i64, Code>> {
    let response = client
        .batch_update_canvas_schedules(v1::BatchUpdateCanvasSchedulesRequest { requests })
        .await
        .expect("a batch");
    let results = response.into_inner().results.into_iter().map(|result| {
        match result.result.expect("a result") {
            Entry::Response(response) => Ok(response.canvas_schedule.expect("a schedule").revision),
            Entry::Error(status) => Err(Code::from(status.code)),
        }
    });
    results.collect()
}

/// Makes PostgreSQL fail with these codes, one for each attempt to write a revision with that time.
/// Later attempts succeed.
fn fail_writes(database: &Database, time_ms: i64, codes: &[&str]) {
    let Database::Postgres { server, name } = database else {
        panic!("not PostgreSQL")
    };
    let codes = codes.join(",");
    let body = format!(
        "DECLARE code text; BEGIN IF NEW.time_ms = {time_ms} THEN \
         code := split_part('{codes}', ',', nextval('failures')::int); \
         IF code <> '' THEN RAISE EXCEPTION 'failure' USING ERRCODE = code; END IF; END IF; RETURN NEW; END"
    );
    let sql = [
        "CREATE SEQUENCE failures".to_owned(),
        format!("CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"),
        "CREATE TRIGGER fail BEFORE INSERT ON canvas_schedule_revision FOR EACH ROW EXECUTE FUNCTION fail()".to_owned(),
    ];
    server.psql(name, &sql.join("; ")).unwrap();
}

#[tokio::test]
async fn a_retried_change_is_not_overtaken_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let server = Server::start(&database.url(), &ONE_WRITER).await;
    let mut client = server.connect().await;
    let (ids, _) = schedules(&mut client, 1).await;
    let first = unique_time();
    // The first error splits the batch in half. The second one, a serialization failure, retries
    // the first half.
    fail_writes(&database, first, &["P0001", "40001"]);
    let requests = vec![entry(&ids[0], first), entry(&ids[0], unique_time())];
    assert_eq!(batch(&mut client, requests).await, [Ok(2), Ok(3)]);
}

#[tokio::test]
async fn a_faulty_change_fails_alone_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    let server = Server::start(&database.url(), &ONE_WRITER).await;
    let mut client = server.connect().await;
    let (ids, _) = schedules(&mut client, 8).await;
    let faulty = unique_time();
    let mut requests: Vec<_> = ids.iter().map(|id| entry(id, unique_time())).collect();
    requests.insert(3, entry(&ids[2], faulty));
    requests.push(entry(&ids[2], unique_time()));
    fail_writes(&database, faulty, &["P0001"; 50]);
    let answers = batch(&mut client, requests).await;
    let others = [
        Ok(2),
        Ok(2),
        Ok(2),
        Err(Code::Internal),
        Ok(2),
        Ok(2),
        Ok(2),
        Ok(2),
        Ok(2),
        Ok(3),
    ];
    assert_eq!(answers, others);
}

#[tokio::test]
async fn a_change_does_not_overtake_a_repeated_request_id_sqlite() {
    a_change_does_not_overtake_a_repeated_request_id(&Database::sqlite()).await;
}

#[tokio::test]
async fn a_change_does_not_overtake_a_repeated_request_id_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    a_change_does_not_overtake_a_repeated_request_id(&database).await;
}

async fn a_change_does_not_overtake_a_repeated_request_id(database: &Database) {
    let server = Server::start(&database.url(), &ONE_WRITER).await;
    let mut client = server.connect().await;
    let (ids, _) = schedules(&mut client, 1).await;
    let request_id = "repeated".to_owned();
    let refused = v1::UpdateCanvasScheduleRequest {
        require_all: true,
        request_id: request_id.clone(),
        ..entry(&ids[0], unique_time())
    };
    let refused = v1::UpdateCanvasScheduleRequest {
        etag: "stale".to_owned(),
        ..refused
    };
    let retry = v1::UpdateCanvasScheduleRequest {
        request_id,
        ..entry(&ids[0], unique_time())
    };
    let after = entry(&ids[0], unique_time());
    // The first is refused and stores no response, so the second is a new request. The third
    // follows it.
    let answers = batch(&mut client, vec![refused, retry, after]).await;
    assert!(answers[0].is_err(), "{answers:?}");
    assert_eq!(answers[1..], [Ok(2), Ok(3)]);
}
