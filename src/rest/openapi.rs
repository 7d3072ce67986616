//! The OpenAPI 3.1 description of the gateway. `docs/openapi.json` is its committed copy.

use std::sync::LazyLock;

use axum::body::Body;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use super::answer::{CanvasScheduleDetails, Created, Deleted, Page, Updated};
use super::bounds;
use super::read::{Naming, ReadObject};
use super::schema::Schemas;
use super::status::Refusal;
use crate::pb::v1;

/// The description as text.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", document()));
    &TEXT
}

/// The answer with it.
pub fn response() -> Response {
    let mut response = Response::new(Body::from(text()));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn document() -> Value {
    let mut schemas = Schemas::default();
    let paths = paths(&mut schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "canvas-scheduler",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Schedules of API-triggered Canvases, by JSON over HTTP. Each operation is a call of the gRPC service \
                `canvas.schedule.v1.CanvasScheduleService`. A trailing slash and doubled slashes in a path are ignored.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "key": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas.finish(),
            "securitySchemes": { "key": { "type": "http", "scheme": "bearer", "description": "A key as `api-key create` printed it." } },
            "headers": limit_headers(),
        },
    })
}

fn paths(schemas: &mut Schemas) -> Value {
    let created = schemas.answer::<Created>();
    let updated = schemas.answer::<Updated>();
    let deleted = schemas.answer::<Deleted>();
    let read = schemas.answer::<CanvasScheduleDetails>();
    let page = schemas.answer::<Page>();
    let refusal = schemas.answer::<Refusal>();
    let update = body::<v1::UpdateCanvasScheduleRequest>(schemas);
    let campaign = schemas.object::<v1::UpdateCanvasScheduleRequest>(
        "UpdateCampaignScheduleRequest",
        Naming::Campaign,
    );
    let post = |id: &str, summary: &str, request: Value, answer: &Value| {
        let mut operation = operation(
            id,
            summary,
            (StatusCode::CREATED, answer),
            &refusal,
            &ON_POST,
        );
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": request } } });
        json!({ "post": operation })
    };
    let create = post(
        "createCanvasSchedule",
        "Schedules a Canvas for recipients, an audience, both, or everyone",
        body::<v1::CreateCanvasScheduleRequest>(schemas),
        &created,
    );
    let replaces = "Replaces the schedule, completely, for every zone that was not handed over";
    let cancels = "Cancels for every zone that was not handed over";
    let delete = post(
        "deleteCanvasSchedule",
        cancels,
        body::<v1::CancelCanvasScheduleRequest>(schemas),
        &deleted,
    );
    let mut get = operation(
        "getCanvasSchedule",
        "One schedule, what it carries, and the waves to come",
        (StatusCode::OK, &read),
        &refusal,
        &ON_GET,
    );
    let mut schedule_id = json!({ "type": "string" });
    bounds::add("schedule_id", true, &mut schedule_id);
    get["parameters"] =
        json!([{ "name": "schedule_id", "in": "path", "required": true, "schema": schedule_id }]);
    let listed = "Schedules by id (the order of creation), filtered by Canvas and state";
    let mut list = operation(
        "listCanvasSchedules",
        listed,
        (StatusCode::OK, &page),
        &refusal,
        &ON_GET,
    );
    list["parameters"] = json!(schemas.query::<v1::ListCanvasSchedulesRequest>());
    json!({
        "/canvas/trigger/schedule/create": create,
        "/canvas/trigger/schedule/update": post("updateCanvasSchedule", replaces, update.clone(), &updated),
        "/fr/canvas/trigger/schedule/update": post("updateCanvasScheduleFr", "The same under the documented prefix", update, &updated),
        "/campaigns/trigger/schedule/update": post("updateCampaignSchedule", "The same with campaign_id as the name of canvas_id", campaign, &updated),
        "/canvas/trigger/schedule/delete": delete,
        "/canvas/trigger/schedule/{schedule_id}": { "get": get },
        "/canvas/trigger/schedule": { "get": list },
    })
}

fn body<T: ReadObject>(schemas: &mut Schemas) -> Value {
    schemas.object::<T>(T::NAME, Naming::Canvas)
}

/// What an operation may answer other than its success.
type Refusals = [(u16, &'static str)];

const ON_GET: [(u16, &str); 8] = [
    (
        400,
        "Something of the request is wrong; everything that is, is told at once",
    ),
    (401, "No key, or none that works"),
    (403, "The key may not do this, or not from there"),
    (404, "No such schedule in the key's workspace"),
    (429, "The workspace has used up its quota"),
    (
        500,
        "A fault of the service; the log has its cause under the request id",
    ),
    (
        503,
        "Too much is under way, the service is stopping, or its database is away; nothing was begun unless the message says so",
    ),
    (504, "It took too long; it may or may not have been done"),
];

const ON_POST: [(u16, &str); 11] = [
    ON_GET[0],
    ON_GET[1],
    ON_GET[2],
    ON_GET[3],
    (
        409,
        "The etag is stale, nothing is left to change, or the request id was used otherwise",
    ),
    (413, "The body is over 1 MB"),
    (415, "The body is not JSON by its Content-Type"),
    ON_GET[4],
    ON_GET[5],
    ON_GET[6],
    ON_GET[7],
];

fn operation(
    id: &str,
    summary: &str,
    (success, answer): (StatusCode, &Value),
    refusal: &Value,
    refusals: &Refusals,
) -> Value {
    let with = |text: &str, schema: &Value, headers: Value| json!({ "description": text, "headers": headers, "content": { "application/json": { "schema": schema } } });
    let limits: Map<String, Value> = limit_headers()
        .keys()
        .map(|name| {
            (
                name.clone(),
                json!({ "$ref": format!("#/components/headers/{name}") }),
            )
        })
        .collect();
    let mut responses = Map::from_iter([(
        success.as_str().to_owned(),
        with("Done", answer, json!(limits)),
    )]);
    for (status, text) in refusals {
        let headers = match status {
            401 => json!({ "WWW-Authenticate": { "schema": { "type": "string" } } }),
            429 | 503 => {
                json!({ "Retry-After": { "description": "Seconds", "required": true, "schema": { "type": "integer" } } })
            }
            _ => json!({}),
        };
        responses.insert(status.to_string(), with(text, refusal, headers));
    }
    json!({ "operationId": id, "summary": summary, "responses": responses })
}

fn limit_headers() -> Map<String, Value> {
    let header = |text: &str| json!({ "description": text, "schema": { "type": "integer" } });
    Map::from_iter([
        (
            "X-RateLimit-Limit".to_owned(),
            header("How much the workspace may ask in the window"),
        ),
        (
            "X-RateLimit-Remaining".to_owned(),
            header("How much of it is left, an estimate over replicas"),
        ),
        (
            "X-RateLimit-Reset".to_owned(),
            header("When the window ends, in seconds since 1970"),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_copy_is_the_description() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let committed = std::fs::read_to_string(path).expect("the copy");
        assert!(
            committed == text(),
            "docs/openapi.json is not what the code says: cargo run --example openapi > docs/openapi.json"
        );
    }

    #[test]
    fn every_field_is_described() {
        let document = document();
        for (name, schema) in document["components"]["schemas"]
            .as_object()
            .expect("schemas")
        {
            let parts = schema["allOf"]
                .as_array()
                .into_iter()
                .flatten()
                .chain([schema]);
            for (field, of) in parts
                .filter_map(|part| part["properties"].as_object())
                .flatten()
            {
                assert!(
                    of.to_string().contains(r#""description":"#),
                    "{name}.{field}: {of}"
                );
                assert_ne!(of["description"], "", "{name}.{field}");
            }
        }
        assert_eq!(
            document["components"]["schemas"]["UpdateCampaignScheduleRequest"]["required"],
            json!(["campaign_id", "schedule"])
        );
    }
}
