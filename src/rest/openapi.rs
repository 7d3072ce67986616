//! The OpenAPI 3.1 description of the gateway. `docs/openapi.json` is a committed copy.

mod constraints;
mod schemas;

use std::sync::LazyLock;

use axum::body::Body;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value, json};

use super::responses::{CreateResponse, DeleteResponse, GetResponse, ListResponse, UpdateResponse};
use super::status::ErrorBody;
use crate::methods;
use crate::pb::v1;
use schemas::Schemas;

/// The description as text.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", document()));
    &TEXT
}

pub(super) fn response() -> Response {
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
            "description": "Schedules of API-triggered Canvases, as JSON over HTTP. Each operation \
                calls an RPC of the gRPC service `canvas.schedule.v1.CanvasScheduleService`. \
                Trailing and doubled slashes in a path are ignored.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "key": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas.finish(),
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A key as `api-key create` prints it.",
                },
            },
            "headers": limit_headers(),
        },
    })
}

fn paths(schemas: &mut Schemas) -> Value {
    let error = schemas.response::<ErrorBody>();
    let updated = schemas.response::<UpdateResponse>();
    let post = |id: &str, summary: &str, request: Value, response: &Value| {
        let mut operation = operation(
            id,
            summary,
            (StatusCode::CREATED, response),
            &error,
            &POST_ERRORS,
        );
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": request } } });
        json!({ "post": operation })
    };
    let update = schemas.request::<v1::UpdateCanvasScheduleRequest>();
    let campaign_update = schemas
        .campaign_request::<v1::UpdateCanvasScheduleRequest>("UpdateCampaignScheduleRequest");
    let created = schemas.response::<CreateResponse>();
    let deleted = schemas.response::<DeleteResponse>();
    // One operation for each route of the method, in the same order.
    let operations = [
        (
            &methods::CREATE,
            vec![post(
                "createCanvasSchedule",
                "Schedule a Canvas for recipients, an audience, both, or everyone",
                schemas.request::<v1::CreateCanvasScheduleRequest>(),
                &created,
            )],
        ),
        (
            &methods::UPDATE,
            vec![
                post(
                    "updateCanvasSchedule",
                    "Replace the whole schedule for every zone that is not dispatched yet",
                    update.clone(),
                    &updated,
                ),
                post(
                    "updateCanvasScheduleFr",
                    "Replace the schedule; the same operation under the documented prefix",
                    update,
                    &updated,
                ),
                post(
                    "updateCampaignSchedule",
                    "Replace the schedule; the same operation with `campaign_id` for `canvas_id`",
                    campaign_update,
                    &updated,
                ),
            ],
        ),
        (
            &methods::CANCEL,
            vec![post(
                "deleteCanvasSchedule",
                "Cancel the schedule for every zone that is not dispatched yet",
                schemas.request::<v1::CancelCanvasScheduleRequest>(),
                &deleted,
            )],
        ),
        (&methods::GET, vec![get_operation(schemas, &error)]),
        (&methods::LIST, vec![list_operation(schemas, &error)]),
    ];
    let routes = operations
        .into_iter()
        .flat_map(|(method, operations)| method.routes.iter().copied().zip(operations));
    routes.collect()
}

fn get_operation(schemas: &mut Schemas, error: &Value) -> Value {
    let mut get = operation(
        "getCanvasSchedule",
        "Get a schedule, its payload and its remaining waves",
        (StatusCode::OK, &schemas.response::<GetResponse>()),
        error,
        &GET_ERRORS,
    );
    let mut schedule_id = json!({ "type": "string" });
    constraints::add("schedule_id", true, &mut schedule_id);
    get["parameters"] =
        json!([{ "name": "schedule_id", "in": "path", "required": true, "schema": schedule_id }]);
    json!({ "get": get })
}

fn list_operation(schemas: &mut Schemas, error: &Value) -> Value {
    let mut list = operation(
        "listCanvasSchedules",
        "List schedules by id, which is the order of creation, filtered by Canvas and state",
        (StatusCode::OK, &schemas.response::<ListResponse>()),
        error,
        &GET_ERRORS,
    );
    list["parameters"] = json!(schemas.query::<v1::ListCanvasSchedulesRequest>());
    json!({ "get": list })
}

/// Status codes of errors, with descriptions.
type ErrorResponses = [(u16, &'static str)];

const GET_ERRORS: [(u16, &str); 8] = [
    (
        400,
        "The request is invalid; the body lists every violation",
    ),
    (401, "The key is missing or not valid"),
    (
        403,
        "The key lacks the permission or is not allowed from this address",
    ),
    (404, "The workspace of the key has no such schedule"),
    (429, "The workspace has used up its quota"),
    (
        500,
        "Internal error; the log has the cause under the request id",
    ),
    (
        503,
        "The service is overloaded or stopping, or its database is unavailable; \
         nothing was begun unless the message says otherwise",
    ),
    (504, "The deadline passed; the change may have been made"),
];

const POST_ERRORS: [(u16, &str); 11] = [
    GET_ERRORS[0],
    GET_ERRORS[1],
    GET_ERRORS[2],
    GET_ERRORS[3],
    (
        409,
        "The etag is stale, nothing is left to change, \
         or the request id was used for another request",
    ),
    (413, "The body is larger than 1 MB"),
    (415, "The `Content-Type` of the body is not JSON"),
    GET_ERRORS[4],
    GET_ERRORS[5],
    GET_ERRORS[6],
    GET_ERRORS[7],
];

fn operation(
    id: &str,
    summary: &str,
    (success, response): (StatusCode, &Value),
    error: &Value,
    errors: &ErrorResponses,
) -> Value {
    let response_with = |text: &str, schema: &Value, headers: Value| {
        json!({
            "description": text,
            "headers": headers,
            "content": { "application/json": { "schema": schema } },
        })
    };
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
        response_with("Success", response, json!(limits)),
    )]);
    for (status, text) in errors {
        let headers = match status {
            401 => json!({ "WWW-Authenticate": { "schema": { "type": "string" } } }),
            429 | 503 => {
                json!({
                    "Retry-After": {
                        "description": "Seconds",
                        "required": true,
                        "schema": { "type": "integer" },
                    },
                })
            }
            _ => json!({}),
        };
        responses.insert(status.to_string(), response_with(text, error, headers));
    }
    json!({ "operationId": id, "summary": summary, "responses": responses })
}

fn limit_headers() -> Map<String, Value> {
    let header = |text: &str| json!({ "description": text, "schema": { "type": "integer" } });
    Map::from_iter([
        (
            "X-RateLimit-Limit".to_owned(),
            header("The quota of the workspace in the current window"),
        ),
        (
            "X-RateLimit-Remaining".to_owned(),
            header("What is left of the quota, estimated over all replicas"),
        ),
        (
            "X-RateLimit-Reset".to_owned(),
            header("When the window ends, in Unix seconds"),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_committed_copy_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let committed = std::fs::read_to_string(path).expect("the copy");
        assert!(
            committed == text(),
            "docs/openapi.json is out of date; run: cargo run --example openapi > docs/openapi.json"
        );
    }

    #[test]
    fn every_route_of_the_methods_is_described() {
        let document = document();
        let paths = document["paths"].as_object().expect("paths");
        let described: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
        let routes: BTreeSet<&str> = methods::METHODS
            .iter()
            .flat_map(|method| method.routes)
            .copied()
            .collect();
        assert_eq!(described, routes);
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
            for (field, described) in parts
                .filter_map(|part| part["properties"].as_object())
                .flatten()
            {
                assert!(
                    described.to_string().contains(r#""description":"#),
                    "{name}.{field}: {described}"
                );
                assert_ne!(described["description"], "", "{name}.{field}");
            }
        }
        assert_eq!(
            document["components"]["schemas"]["UpdateCampaignScheduleRequest"]["required"],
            json!(["campaign_id", "schedule"])
        );
    }
}
