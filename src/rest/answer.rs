//! Messages to the documented answers.

use axum::body::Body;
use axum::response::Response;
use chrono::{DateTime, SecondsFormat};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{StatusCode, header};
use prost::{Message, Name};
use prost_types::Timestamp;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::request::STATES;
use crate::pb::v1;
use crate::pb::values;

/// The headers of a call's answer that its caller gets.
pub(super) const MESSAGE_HEADERS: [HeaderName; 5] = [
    RETRY_AFTER,
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
    HeaderName::from_static("x-request-id"),
];

/// The `message` of every answer that is no refusal; documented clients compare it.
const SUCCESS: &str = "success";

/// The body of an answer to a call.
pub(super) trait Answer: Serialize + ToSchema {
    /// What the call answers.
    type Message: Message + Name + Default + 'static;

    /// The body that says so.
    fn of(sent: Self::Message) -> Self;
}

/// An answer with a body of JSON.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let (status, text) = match serde_json::to_vec(body) {
        Ok(text) => (status, text),
        Err(why) => {
            // Only a map whose keys are no text cannot be written, and there is none.
            tracing::error!(%why, "an answer could not be written");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                br#"{"message":"internal error"}"#.to_vec(),
            )
        }
    };
    let length = HeaderValue::from(text.len());
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    response
}

/// When a Canvas is sent.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StoredSchedule {
    /// In its normal form.
    time: String,
    /// Whether it is a wall-clock time in each zone.
    in_local_time: bool,
    /// Whether only the date counts.
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

/// Zones that are handed over together.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Wave {
    /// The instant.
    #[schema(format = DateTime)]
    time: String,
    /// IANA names.
    zones: Vec<String>,
    /// Whether it also serves users with no zone or one unknown to us.
    includes_unlisted_zones: bool,
    /// `at_time` or `optimal_time`.
    #[schema(pattern = "^(at_time|optimal_time)$")]
    mode: &'static str,
}

impl From<v1::Wave> for Wave {
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

fn waves(sent: Vec<v1::Wave>) -> Vec<Wave> {
    sent.into_iter().map(Wave::from).collect()
}

fn instant(sent: Timestamp) -> String {
    let instant =
        DateTime::from_timestamp(sent.seconds, u32::try_from(sent.nanos).unwrap_or_default());
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

/// A schedule was made, or with `validate_only` would be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Created {
    /// The id of its first dispatch.
    #[serde(skip_serializing_if = "String::is_empty")]
    dispatch_id: String,
    /// The schedule.
    #[serde(skip_serializing_if = "String::is_empty")]
    schedule_id: String,
    /// Always `success`.
    #[schema(pattern = "^success$")]
    message: &'static str,
    /// Zones whose time was too long past.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missed_zones: Vec<String>,
    /// With `validate_only`: what would follow.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waves: Vec<Wave>,
}

impl Answer for Created {
    type Message = v1::CreateCanvasScheduleResponse;

    fn of(sent: Self::Message) -> Self {
        Self {
            dispatch_id: sent.dispatch_id,
            schedule_id: sent.canvas_schedule.unwrap_or_default().schedule_id,
            message: SUCCESS,
            missed_zones: sent.missed_zones,
            waves: waves(sent.waves),
        }
    }
}

/// A schedule was replaced, or with `validate_only` would be.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Updated {
    /// Always `success`.
    #[schema(pattern = "^success$")]
    message: &'static str,
    /// The schedule.
    schedule_id: String,
    /// One more with each accepted change.
    revision: i64,
    /// Whom the change reaches: `all`, or `some` of the zones.
    #[schema(pattern = "^(all|some)$")]
    applied: &'static str,
    /// As it was understood.
    schedule: StoredSchedule,
    /// Zones whose time was too long past.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missed_zones: Vec<String>,
    /// With `validate_only`: what would follow.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    waves: Vec<Wave>,
}

impl Answer for Updated {
    type Message = v1::UpdateCanvasScheduleResponse;

    fn of(sent: Self::Message) -> Self {
        let applied = applied(sent.applied());
        let after = sent.canvas_schedule.unwrap_or_default();
        Self {
            message: SUCCESS,
            schedule_id: after.schedule_id,
            revision: after.revision,
            applied,
            schedule: after.schedule.unwrap_or_default().into(),
            missed_zones: sent.missed_zones,
            waves: waves(sent.waves),
        }
    }
}

/// A schedule was cancelled.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Deleted {
    /// Always `success`.
    #[schema(pattern = "^success$")]
    message: &'static str,
    /// Whom the cancellation reaches: `all`, or `some` of the zones.
    #[schema(pattern = "^(all|some)$")]
    applied: &'static str,
    /// Dispatches that are tried no more: perhaps sent.
    #[serde(skip_serializing_if = "is_none")]
    abandoned_dispatches: i32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
fn is_none(count: &i32) -> bool {
    *count == 0
}

impl Answer for Deleted {
    type Message = v1::CancelCanvasScheduleResponse;

    fn of(sent: Self::Message) -> Self {
        Self {
            message: SUCCESS,
            applied: applied(sent.applied()),
            abandoned_dispatches: sent.abandoned_dispatches,
        }
    }
}

/// One pending send of one Canvas.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CanvasSchedule {
    /// A lower-case UUID.
    schedule_id: String,
    /// The Canvas.
    canvas_id: String,
    /// In its normal form.
    schedule: StoredSchedule,
    /// `pending`, `dispatching`, `dispatched` or `cancelled`.
    #[schema(pattern = "^(pending|dispatching|dispatched|cancelled)$")]
    state: &'static str,
    /// One more with each accepted change.
    revision: i64,
    /// Stands for the revision.
    etag: String,
    /// When it was created.
    #[schema(format = DateTime)]
    create_time: String,
    /// When it was last changed.
    #[schema(format = DateTime)]
    update_time: String,
    /// When it was cancelled, if it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    cancel_time: Option<String>,
    /// The zone of users with no zone of their own.
    default_time_zone: String,
    /// When the next wave is handed over; absent when none is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    next_wave_time: Option<String>,
    /// The number of zones that it is about.
    total_zones: i32,
    /// The number of zones that were not handed over yet.
    open_zones: i32,
}

impl From<v1::CanvasSchedule> for CanvasSchedule {
    fn from(sent: v1::CanvasSchedule) -> Self {
        let state = STATES
            .iter()
            .find(|(_, state)| *state == sent.state())
            .map_or("", |(name, _)| name);
        Self {
            schedule_id: sent.schedule_id,
            canvas_id: sent.canvas_id,
            schedule: sent.schedule.unwrap_or_default().into(),
            state,
            revision: sent.revision,
            etag: sent.etag,
            create_time: sent.create_time.map(instant).unwrap_or_default(),
            update_time: sent.update_time.map(instant).unwrap_or_default(),
            cancel_time: sent.cancel_time.map(instant),
            default_time_zone: sent.default_time_zone,
            next_wave_time: sent.next_wave_time.map(instant),
            total_zones: sent.total_zones,
            open_zones: sent.open_zones,
        }
    }
}

/// How many dispatches of a schedule stand where.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Dispatches {
    /// Being handed over.
    in_hand: i32,
    /// Of unknown outcome, to be tried again.
    unknown: i32,
    /// Delivered.
    delivered: i32,
    /// Dead letters.
    dead: i32,
    /// Perhaps sent, and tried no more.
    abandoned: i32,
}

impl From<v1::DispatchCounts> for Dispatches {
    fn from(sent: v1::DispatchCounts) -> Self {
        Self {
            in_hand: sent.in_hand,
            unknown: sent.unknown,
            delivered: sent.delivered,
            dead: sent.dead,
            abandoned: sent.abandoned,
        }
    }
}

/// One schedule, what it carries, and the waves to come.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CanvasScheduleDetails {
    /// Always `success`.
    #[schema(pattern = "^success$")]
    message: &'static str,
    /// The schedule.
    #[serde(flatten)]
    canvas_schedule: CanvasSchedule,
    /// The values for the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    trigger_properties: Option<Value>,
    /// Whom it is for, duplicates removed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recipients: Vec<StoredRecipient>,
    /// The filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    audience: Option<Value>,
    /// Whether it is for everyone whom the Canvas targets.
    broadcast: bool,
    /// The waves to come, the earliest first.
    waves: Vec<Wave>,
    /// Open zones that no wave will serve, since their time was too long past.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missed_zones: Vec<String>,
    /// What became of the waves that were handed over.
    dispatches: Dispatches,
}

impl Answer for CanvasScheduleDetails {
    type Message = v1::GetCanvasScheduleResponse;

    fn of(sent: Self::Message) -> Self {
        Self {
            message: SUCCESS,
            canvas_schedule: sent.canvas_schedule.unwrap_or_default().into(),
            trigger_properties: sent.trigger_properties.map(values::json),
            recipients: sent
                .recipients
                .into_iter()
                .map(StoredRecipient::from)
                .collect(),
            audience: sent.audience.map(values::json),
            broadcast: sent.broadcast,
            waves: waves(sent.waves),
            missed_zones: sent.missed_zones,
            dispatches: sent.dispatches.unwrap_or_default().into(),
        }
    }
}

/// One user to send to, under the names that a request states him by.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct StoredRecipient {
    /// The caller's own id of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    external_user_id: Option<String>,
    /// An alias of the user.
    #[serde(skip_serializing_if = "Option::is_none")]
    user_alias: Option<StoredUserAlias>,
    /// An email address.
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    /// Which of several users with that address is meant.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    prioritization: Vec<String>,
    /// Values for this user's message.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    trigger_properties: Option<Value>,
    /// Carried as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    send_to_existing_only: Option<bool>,
    /// Carried as they are; `time_zone` is the user's zone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    attributes: Option<Value>,
}

/// A user known by an alias.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StoredUserAlias {
    /// The alias.
    alias_name: String,
    /// Its kind.
    alias_label: String,
}

impl From<v1::Recipient> for StoredRecipient {
    fn from(sent: v1::Recipient) -> Self {
        use v1::recipient::Identifier;
        let mut recipient = Self {
            prioritization: sent.prioritization,
            trigger_properties: sent.trigger_properties.map(values::json),
            send_to_existing_only: sent.send_to_existing_only,
            attributes: sent.attributes.map(values::json),
            ..Self::default()
        };
        match sent.identifier {
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
pub(super) struct Page {
    /// Always `success`.
    #[schema(pattern = "^success$")]
    message: &'static str,
    /// In the order of their ids, which is the order of their creation.
    schedules: Vec<CanvasSchedule>,
    /// For the next page; absent on the last.
    #[serde(skip_serializing_if = "String::is_empty")]
    next_page_token: String,
}

impl Answer for Page {
    type Message = v1::ListCanvasSchedulesResponse;

    fn of(sent: Self::Message) -> Self {
        let schedules = sent
            .canvas_schedules
            .into_iter()
            .map(CanvasSchedule::from)
            .collect();
        Self {
            message: SUCCESS,
            schedules,
            next_page_token: sent.next_page_token,
        }
    }
}
