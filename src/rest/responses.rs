//! The documented response bodies, converted from the responses of the RPCs.

use axum::body::Body;
use axum::response::Response;
use chrono::{DateTime, SecondsFormat};
use http::StatusCode;
use http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS,
};
use prost::{Message, Name};
use prost_types::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::requests::STATES;
use crate::pb::v1;
use crate::pb::values;

/// The response metadata of an RPC that the HTTP response carries as headers.
pub(super) const PASSED_HEADERS: [HeaderName; 5] = [
    RETRY_AFTER,
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
    HeaderName::from_static("x-request-id"),
];

/// The `message` of every successful response. Documented clients compare it.
const SUCCESS: &str = "success";

/// The JSON body of a successful response.
pub(super) trait ResponseBody: Serialize + ToSchema {
    /// The response of the RPC.
    type Message: Message + Name + Default + 'static;

    fn from_message(message: Self::Message) -> Self;
}

/// A response with a JSON body.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(text) => response(status, text),
        Err(error) => {
            // Only a map with keys other than text fails to serialize, and no body has one.
            tracing::error!(%error, "failed to serialize a response");
            internal_error()
        }
    }
}

/// The response to a fault of the service, whose cause is only in the log.
pub(super) fn internal_error() -> Response {
    let text = br#"{"message":"internal error"}"#;
    response(StatusCode::INTERNAL_SERVER_ERROR, text.to_vec())
}

fn response(status: StatusCode, text: Vec<u8>) -> Response {
    let length = HeaderValue::from(text.len());
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// When the Canvas is sent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StoredSchedule {
    /// The time in its normal form.
    time: String,
    /// Whether `time` is a wall-clock time in each zone.
    in_local_time: bool,
    /// Whether only the date counts, and the consumer chooses the time for each user.
    at_optimal_time: bool,
}

impl From<v1::Schedule> for StoredSchedule {
    fn from(value: v1::Schedule) -> Self {
        Self {
            time: value.time,
            in_local_time: value.in_local_time,
            at_optimal_time: value.at_optimal_time,
        }
    }
}

/// Zones that are dispatched together.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Wave)]
pub(super) struct WaveJson {
    /// When the wave is dispatched.
    #[schema(format = DateTime)]
    time: String,
    /// IANA zone names.
    zones: Vec<String>,
    /// Whether the wave also serves users who have no zone or a zone that the service does not
    /// know.
    includes_unlisted_zones: bool,
    /// `at_time` or `optimal_time`.
    #[schema(pattern = "^(at_time|optimal_time)$")]
    mode: &'static str,
}

impl From<v1::Wave> for WaveJson {
    fn from(value: v1::Wave) -> Self {
        let mode = match value.mode() {
            v1::WaveMode::OptimalTime => "optimal_time",
            v1::WaveMode::AtTime | v1::WaveMode::Unspecified => "at_time",
        };
        let time = value.time.map(instant).unwrap_or_default();
        Self {
            time,
            zones: value.zones,
            includes_unlisted_zones: value.includes_unlisted_zones,
            mode,
        }
    }
}

fn waves(waves: Vec<v1::Wave>) -> Vec<WaveJson> {
    waves.into_iter().map(WaveJson::from).collect()
}

fn instant(time: Timestamp) -> String {
    let instant =
        DateTime::from_timestamp(time.seconds, u32::try_from(time.nanos).unwrap_or_default());
    instant
        .map(|instant| instant.to_rfc3339_opts(SecondsFormat::Millis, true))
        .unwrap_or_default()
}

fn applied(value: v1::Applied) -> &'static str {
    match value {
        v1::Applied::All => "all",
        v1::Applied::Some | v1::Applied::Unspecified => "some",
    }
}

/// A schedule was created. With `validate_only`, nothing was written.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Created)]
pub(super) struct CreateResponse {
    /// The id of the first dispatch.
    #[serde(skip_serializing_if = "String::is_empty")]
    dispatch_id: String,
    /// The id of the schedule.
    #[serde(skip_serializing_if = "String::is_empty")]
    schedule_id: String,
    /// Always `success`.
    #[schema(pattern = "^success$")]
    message: &'static str,
    /// Zones whose time is too far in the past; they are not sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missed_zones: Vec<String>,
    /// The waves that would be sent; only with `validate_only`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waves: Vec<WaveJson>,
}

impl ResponseBody for CreateResponse {
    type Message = v1::CreateCanvasScheduleResponse;

    fn from_message(message: Self::Message) -> Self {
        Self {
            dispatch_id: message.dispatch_id,
            schedule_id: message.canvas_schedule.unwrap_or_default().schedule_id,
            message: SUCCESS,
            missed_zones: message.missed_zones,
            waves: waves(message.waves),
        }
    }
}

/// A schedule was replaced. With `validate_only`, nothing was written.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Updated)]
pub(super) struct UpdateResponse {
    /// Always `success`.
    #[schema(pattern = "^success$")]
    message: &'static str,
    /// The id of the schedule.
    schedule_id: String,
    /// The revision: 1 at creation, plus 1 for each accepted change.
    revision: i64,
    /// The zones that the change reaches: `all` or `some`.
    #[schema(pattern = "^(all|some)$")]
    applied: &'static str,
    /// The schedule in its normal form.
    schedule: StoredSchedule,
    /// Zones whose time is too far in the past; they are not sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missed_zones: Vec<String>,
    /// The waves that would be sent; only with `validate_only`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waves: Vec<WaveJson>,
}

impl ResponseBody for UpdateResponse {
    type Message = v1::UpdateCanvasScheduleResponse;

    fn from_message(message: Self::Message) -> Self {
        let applied = applied(message.applied());
        let after = message.canvas_schedule.unwrap_or_default();
        Self {
            message: SUCCESS,
            schedule_id: after.schedule_id,
            revision: after.revision,
            applied,
            schedule: after.schedule.unwrap_or_default().into(),
            missed_zones: message.missed_zones,
            waves: waves(message.waves),
        }
    }
}

/// A schedule was cancelled.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Deleted)]
pub(super) struct DeleteResponse {
    /// Always `success`.
    #[schema(pattern = "^success$")]
    message: &'static str,
    /// The zones that the cancellation reaches: `all` or `some`.
    #[schema(pattern = "^(all|some)$")]
    applied: &'static str,
    /// The number of dispatches of unknown outcome that are not retried. They may have been
    /// delivered.
    #[serde(skip_serializing_if = "is_zero")]
    abandoned_dispatches: i32,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(count: &i32) -> bool {
    *count == 0
}

impl ResponseBody for DeleteResponse {
    type Message = v1::CancelCanvasScheduleResponse;

    fn from_message(message: Self::Message) -> Self {
        Self {
            message: SUCCESS,
            applied: applied(message.applied()),
            abandoned_dispatches: message.abandoned_dispatches,
        }
    }
}

/// The schedule of a Canvas.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CanvasSchedule)]
pub(super) struct CanvasScheduleJson {
    /// The id of the schedule, a lower-case UUID.
    schedule_id: String,
    /// The id of the Canvas.
    canvas_id: String,
    /// The schedule in its normal form.
    schedule: StoredSchedule,
    /// The state: `pending`, `dispatching`, `dispatched` or `cancelled`.
    #[schema(pattern = "^(pending|dispatching|dispatched|cancelled)$")]
    state: &'static str,
    /// The revision: 1 at creation, plus 1 for each accepted change.
    revision: i64,
    /// Identifies the revision.
    etag: String,
    /// When the schedule was created.
    #[schema(format = DateTime)]
    create_time: String,
    /// When the schedule was last changed.
    #[schema(format = DateTime)]
    update_time: String,
    /// When the schedule was cancelled; absent unless it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    cancel_time: Option<String>,
    /// The zone of users who have no zone.
    default_time_zone: String,
    /// When the next wave is dispatched; absent when no wave is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    next_wave_time: Option<String>,
    /// The number of zones of the schedule.
    total_zones: i32,
    /// The number of zones that are not dispatched yet.
    open_zones: i32,
}

impl From<v1::CanvasSchedule> for CanvasScheduleJson {
    fn from(message: v1::CanvasSchedule) -> Self {
        let state = STATES
            .iter()
            .find(|(_, state)| *state == message.state())
            .map_or("", |(name, _)| name);
        Self {
            schedule_id: message.schedule_id,
            canvas_id: message.canvas_id,
            schedule: message.schedule.unwrap_or_default().into(),
            state,
            revision: message.revision,
            etag: message.etag,
            create_time: message.create_time.map(instant).unwrap_or_default(),
            update_time: message.update_time.map(instant).unwrap_or_default(),
            cancel_time: message.cancel_time.map(instant),
            default_time_zone: message.default_time_zone,
            next_wave_time: message.next_wave_time.map(instant),
            total_zones: message.total_zones,
            open_zones: message.open_zones,
        }
    }
}

/// The number of dispatches of a schedule in each state.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Dispatches)]
pub(super) struct DispatchCountsJson {
    /// Being delivered.
    in_hand: i32,
    /// Of unknown outcome, to be retried.
    unknown: i32,
    /// Delivered.
    delivered: i32,
    /// Dead letters.
    dead: i32,
    /// Of unknown outcome when the schedule was cancelled; they may have been delivered and are not
    /// retried.
    abandoned: i32,
}

impl From<v1::DispatchCounts> for DispatchCountsJson {
    fn from(message: v1::DispatchCounts) -> Self {
        Self {
            in_hand: message.in_hand,
            unknown: message.unknown,
            delivered: message.delivered,
            dead: message.dead,
            abandoned: message.abandoned,
        }
    }
}

/// One schedule, its payload and its remaining waves.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CanvasScheduleDetails)]
pub(super) struct GetResponse {
    /// Always `success`.
    #[schema(pattern = "^success$")]
    message: &'static str,
    /// The schedule.
    #[serde(flatten)]
    canvas_schedule: CanvasScheduleJson,
    /// Values for the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    trigger_properties: Option<Value>,
    /// The recipients, without duplicates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recipients: Vec<StoredRecipient>,
    /// The audience filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    audience: Option<Value>,
    /// Whether the schedule is for every user that the Canvas targets.
    broadcast: bool,
    /// The remaining waves, earliest first.
    waves: Vec<WaveJson>,
    /// Open zones that no wave serves, because their time was too far in the past.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missed_zones: Vec<String>,
    /// The number of dispatches in each state.
    dispatches: DispatchCountsJson,
}

impl ResponseBody for GetResponse {
    type Message = v1::GetCanvasScheduleResponse;

    fn from_message(message: Self::Message) -> Self {
        Self {
            message: SUCCESS,
            canvas_schedule: message.canvas_schedule.unwrap_or_default().into(),
            trigger_properties: message.trigger_properties.map(values::json),
            recipients: message
                .recipients
                .into_iter()
                .map(StoredRecipient::from)
                .collect(),
            audience: message.audience.map(values::json),
            broadcast: message.broadcast,
            waves: waves(message.waves),
            missed_zones: message.missed_zones,
            dispatches: message.dispatches.unwrap_or_default().into(),
        }
    }
}

/// One user to send to.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct StoredRecipient {
    /// The caller's id of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    external_user_id: Option<String>,
    /// An alias of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_alias: Option<StoredUserAlias>,
    /// An email address.
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    /// Which user is meant when several have this email address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    prioritization: Vec<String>,
    /// Values for the message to this user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    trigger_properties: Option<Value>,
    /// Passed to the consumer unchanged.
    #[serde(skip_serializing_if = "Option::is_none")]
    send_to_existing_only: Option<bool>,
    /// Passed to the consumer unchanged; `time_zone` is the zone of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    attributes: Option<Value>,
}

/// An alias of a user.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StoredUserAlias {
    /// The name of the alias.
    alias_name: String,
    /// The kind of alias.
    alias_label: String,
}

impl From<v1::Recipient> for StoredRecipient {
    fn from(message: v1::Recipient) -> Self {
        use v1::recipient::Identifier;
        let mut recipient = Self {
            prioritization: message.prioritization,
            trigger_properties: message.trigger_properties.map(values::json),
            send_to_existing_only: message.send_to_existing_only,
            attributes: message.attributes.map(values::json),
            ..Self::default()
        };
        match message.identifier {
            Some(Identifier::ExternalUserId(id)) => recipient.external_user_id = Some(id),
            Some(Identifier::UserAlias(alias)) => {
                recipient.user_alias = Some(StoredUserAlias {
                    alias_name: alias.alias_name,
                    alias_label: alias.alias_label,
                });
            }
            Some(Identifier::Email(email)) => recipient.email = Some(email),
            None => {}
        }
        recipient
    }
}

/// A page of schedules.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Page)]
pub(super) struct ListResponse {
    /// Always `success`.
    #[schema(pattern = "^success$")]
    message: &'static str,
    /// The schedules in the order of their ids, which is the order of creation.
    schedules: Vec<CanvasScheduleJson>,
    /// The token of the next page; absent on the last page.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

impl ResponseBody for ListResponse {
    type Message = v1::ListCanvasSchedulesResponse;

    fn from_message(message: Self::Message) -> Self {
        let schedules = message
            .canvas_schedules
            .into_iter()
            .map(CanvasScheduleJson::from)
            .collect();
        Self {
            message: SUCCESS,
            schedules,
            next_page_token: message.next_page_token,
        }
    }
}
