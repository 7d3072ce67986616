//! Requests to domain values. Validation reports all violations together, by field.

use crate::domain::payload::{MAX_RECIPIENTS, check_bytes, check_count, properties_bytes};
use crate::domain::{
    Cancel, CanvasId, Create, DispatchId, DispatchState, Etag, Identifier, Overwrite, Properties,
    Recipient, RequestId, Schedule, ScheduleId, ScheduleState, Target, WorkspaceId,
};
use crate::error::{Error, Violation, Violations};
use crate::pb::v1;
use crate::service::{DispatchFilter, Filter, Mode, Update};

use super::{json, page};

/// Reads the fields of a request and collects their violations.
struct RequestReader<'t> {
    /// The violations that the transport found.
    transport: &'t [Violation],
    violations: Violations,
}

impl<'t> RequestReader<'t> {
    fn new(transport: &'t [Violation]) -> Self {
        Self {
            transport,
            violations: Violations::default(),
        }
    }

    fn canvas_id(&mut self, sent: &str) -> Option<CanvasId> {
        self.violations.check("canvas_id", CanvasId::parse(sent))
    }

    fn schedule_id(&mut self, sent: &str) -> Option<ScheduleId> {
        if sent.is_empty() {
            self.violations.add(
                "schedule_id",
                "is missing; send the UUID that CreateCanvasSchedule returned",
            );
            return None;
        }
        self.violations
            .check("schedule_id", ScheduleId::parse(sent))
    }

    fn schedule(&mut self, sent: Option<v1::Schedule>) -> Option<Schedule> {
        let Some(sent) = sent else {
            self.violations
                .add("schedule", "is missing; send a schedule with a time");
            return None;
        };
        self.violations.check(
            "schedule.time",
            Schedule::parse(&sent.time, sent.in_local_time, sent.at_optimal_time),
        )
    }

    fn request_id(&mut self, sent: &str) -> Option<RequestId> {
        if sent.is_empty() {
            None
        } else {
            self.violations.check("request_id", RequestId::parse(sent))
        }
    }

    /// The properties under any of their three names; more than one of them is an error.
    fn properties(
        &mut self,
        prefix: &str,
        sent: [Option<prost_types::Struct>; 3],
    ) -> Option<Properties> {
        const NAMES: [&str; 3] = ["trigger_properties", "canvas_entry_properties", "context"];
        let mut found = NAMES
            .into_iter()
            .zip(sent)
            .filter_map(|(name, sent)| sent.map(|sent| (format!("{prefix}{name}"), sent)));
        let (field, first) = found.next()?;
        for (other, _) in found {
            let message =
                format!("is another name for {field}, which is also set; send only one of them");
            self.violations.add(other, message);
        }
        let properties = Properties(json::object(first, &field, &mut self.violations));
        properties.check(&field, &mut self.violations);
        Some(properties)
    }

    fn recipient(&mut self, n: usize, sent: v1::Recipient) -> Recipient {
        let prefix = format!("recipients[{n}].");
        let identifier = match sent.identifier {
            Some(v1::recipient::Identifier::ExternalUserId(id)) => Identifier::ExternalUserId(id),
            Some(v1::recipient::Identifier::UserAlias(alias)) => Identifier::UserAlias {
                alias_name: alias.alias_name,
                alias_label: alias.alias_label,
            },
            Some(v1::recipient::Identifier::Email(email)) => Identifier::Email(email),
            None => {
                let message = "has no identifier; send external_user_id, user_alias or email";
                self.violations.add(prefix.trim_end_matches('.'), message);
                // A valid placeholder, so that the other fields are checked too; the request is
                // refused.
                Identifier::Email("-".to_owned())
            }
        };
        let trigger_properties = self.properties(
            &prefix,
            [
                sent.trigger_properties,
                sent.canvas_entry_properties,
                sent.context,
            ],
        );
        let field = format!("{prefix}attributes");
        let attributes = sent
            .attributes
            .map(|sent| json::object(sent, &field, &mut self.violations));
        Recipient {
            identifier,
            prioritization: sent.prioritization,
            trigger_properties,
            send_to_existing_only: sent.send_to_existing_only,
            attributes,
        }
    }

    /// `value`, or every violation.
    fn finish<T>(self, value: Option<T>) -> Result<T, Error> {
        Ok(self.violations.after(self.transport).finish(value)?)
    }
}

pub(super) fn create(
    sent: v1::CreateCanvasScheduleRequest,
    transport: &[Violation],
) -> Result<(Create, Mode), Error> {
    let mut reader = RequestReader::new(transport);
    let canvas_id = reader.canvas_id(&sent.canvas_id);
    let schedule = reader.schedule(sent.schedule);
    let properties = reader.properties(
        "",
        [
            sent.trigger_properties,
            sent.canvas_entry_properties,
            sent.context,
        ],
    );
    check_count(sent.recipients.len(), &mut reader.violations);
    let recipients = sent.recipients.into_iter().take(MAX_RECIPIENTS).enumerate();
    let recipients = recipients
        .map(|(n, sent)| reader.recipient(n, sent))
        .collect();
    let audience = sent
        .audience
        .map(|sent| json::object(sent, "audience", &mut reader.violations));
    let target = Target {
        recipients,
        audience,
        broadcast: sent.broadcast,
    };
    target.check(&mut reader.violations);
    check_bytes(
        properties_bytes(properties.as_ref(), &target),
        &mut reader.violations,
    );
    let request_id = reader.request_id(&sent.request_id);
    let create = canvas_id.zip(schedule);
    let create = create.map(|(canvas_id, schedule)| Create {
        canvas_id,
        schedule,
        properties,
        target: target.collapsed(),
    });
    Ok((
        reader.finish(create)?,
        Mode {
            request_id,
            validate_only: sent.validate_only,
        },
    ))
}

pub(super) fn update(
    sent: v1::UpdateCanvasScheduleRequest,
    transport: &[Violation],
) -> Result<Update, Error> {
    let mut reader = RequestReader::new(transport);
    let canvas_id = reader.canvas_id(&sent.canvas_id);
    let schedule_id = if sent.schedule_id.is_empty() {
        None
    } else {
        reader.schedule_id(&sent.schedule_id)
    };
    let schedule = reader.schedule(sent.schedule);
    let properties = reader.properties(
        "",
        [
            sent.trigger_properties,
            sent.canvas_entry_properties,
            sent.context,
        ],
    );
    check_bytes(
        properties_bytes(properties.as_ref(), &Target::default()),
        &mut reader.violations,
    );
    let request_id = reader.request_id(&sent.request_id);
    let (etag, require_all) = (etag(&sent.etag), sent.require_all);
    let overwrite = canvas_id.zip(schedule);
    let overwrite = overwrite.map(|(canvas_id, schedule)| Overwrite {
        canvas_id,
        schedule,
        properties,
        etag,
        require_all,
    });
    let overwrite = reader.finish(overwrite)?;
    Ok(Update {
        schedule_id,
        overwrite,
        mode: Mode {
            request_id,
            validate_only: sent.validate_only,
        },
    })
}

fn etag(sent: &str) -> Option<Etag> {
    (!sent.is_empty()).then(|| Etag::from_caller(sent))
}

pub(super) fn cancel(
    sent: &v1::CancelCanvasScheduleRequest,
    transport: &[Violation],
) -> Result<(ScheduleId, Cancel, Option<RequestId>), Error> {
    let mut reader = RequestReader::new(transport);
    let canvas_id = reader.canvas_id(&sent.canvas_id);
    let schedule_id = reader.schedule_id(&sent.schedule_id);
    let request_id = reader.request_id(&sent.request_id);
    let cancel = canvas_id.map(|canvas_id| Cancel {
        canvas_id,
        etag: etag(&sent.etag),
        require_all: sent.require_all,
    });
    let (schedule_id, cancel) = reader.finish(schedule_id.zip(cancel))?;
    Ok((schedule_id, cancel, request_id))
}

pub(super) fn get(sent: &v1::GetCanvasScheduleRequest) -> Result<ScheduleId, Error> {
    let mut reader = RequestReader::new(&[]);
    let schedule_id = reader.schedule_id(&sent.schedule_id);
    reader.finish(schedule_id)
}

/// The requested page of schedules.
pub(super) struct ListPage {
    /// Which schedules.
    pub filter: Filter,
    /// The last entry of the previous page.
    pub after: Option<ScheduleId>,
    /// How many.
    pub size: u64,
}

pub(super) fn list(
    sent: &v1::ListCanvasSchedulesRequest,
    workspace: WorkspaceId,
    transport: &[Violation],
) -> Result<ListPage, Error> {
    let mut reader = RequestReader::new(transport);
    let canvas_id = if sent.canvas_id.is_empty() {
        None
    } else {
        reader.canvas_id(&sent.canvas_id)
    };
    let state = match v1::CanvasScheduleState::try_from(sent.state) {
        Ok(v1::CanvasScheduleState::Unspecified) => None,
        Ok(v1::CanvasScheduleState::Pending) => Some(ScheduleState::Pending),
        Ok(v1::CanvasScheduleState::Dispatching) => Some(ScheduleState::Dispatching),
        Ok(v1::CanvasScheduleState::Dispatched) => Some(ScheduleState::Dispatched),
        Ok(v1::CanvasScheduleState::Cancelled) => Some(ScheduleState::Cancelled),
        Err(_) => {
            let message = format!(
                "{} is not a valid state; send PENDING, DISPATCHING, DISPATCHED or CANCELLED, or 0 \
                 for all",
                sent.state
            );
            reader.violations.add("state", message);
            None
        }
    };
    let size = page::size(sent.page_size, &mut reader.violations);
    let after = page::after(
        &sent.page_token,
        &list_query(sent, workspace),
        &mut reader.violations,
    );
    let after = after.map(|(last, _)| ScheduleId(uuid::Uuid::from_u128(last)));
    reader.finish(Some(ListPage {
        filter: Filter { canvas_id, state },
        after,
        size,
    }))
}

/// The part of a request that must stay the same from page to page, and the workspace.
pub(super) fn list_query(
    sent: &v1::ListCanvasSchedulesRequest,
    workspace: WorkspaceId,
) -> impl std::hash::Hash + use<> {
    ("schedules", workspace, sent.canvas_id.clone(), sent.state)
}

/// The requested page of revisions.
pub(super) struct RevisionsPage {
    /// The schedule.
    pub schedule_id: ScheduleId,
    /// The last entry of the previous page.
    pub before: Option<i64>,
    /// How many.
    pub size: u64,
}

pub(super) fn revisions(
    sent: &v1::ListCanvasScheduleRevisionsRequest,
) -> Result<RevisionsPage, Error> {
    let mut reader = RequestReader::new(&[]);
    let schedule_id = reader.schedule_id(&sent.schedule_id);
    let size = page::size(sent.page_size, &mut reader.violations);
    let before = page::after(
        &sent.page_token,
        &revisions_query(sent),
        &mut reader.violations,
    );
    let before = before.and_then(|(last, _)| i64::try_from(last).ok());
    reader.finish(schedule_id.map(|schedule_id| RevisionsPage {
        schedule_id,
        before,
        size,
    }))
}

/// The part of a request that must stay the same from page to page.
pub(super) fn revisions_query(
    sent: &v1::ListCanvasScheduleRevisionsRequest,
) -> impl std::hash::Hash + use<> {
    ("revisions", sent.schedule_id.clone())
}

/// The requested page of dispatches.
pub(super) struct DispatchesPage {
    /// Which dispatches.
    pub filter: DispatchFilter,
    /// The last entry of the previous page.
    pub after: Option<(ScheduleId, u32)>,
    /// How many.
    pub size: u64,
}

pub(super) fn dispatches(sent: &v1::ListDispatchesRequest) -> Result<DispatchesPage, Error> {
    let mut reader = RequestReader::new(&[]);
    let schedule_id = if sent.schedule_id.is_empty() {
        None
    } else {
        reader.schedule_id(&sent.schedule_id)
    };
    let state = match v1::DispatchState::try_from(sent.state) {
        Ok(v1::DispatchState::Unspecified) => None,
        Ok(v1::DispatchState::InHand) => Some(DispatchState::InFlight),
        Ok(v1::DispatchState::Unknown) => Some(DispatchState::Unknown),
        Ok(v1::DispatchState::Delivered) => Some(DispatchState::Delivered),
        Ok(v1::DispatchState::Dead) => Some(DispatchState::Dead),
        Ok(v1::DispatchState::Abandoned) => Some(DispatchState::Abandoned),
        Err(_) => {
            let message = format!(
                "{} is not a valid state; send IN_HAND, UNKNOWN, DELIVERED, DEAD or ABANDONED, or 0 \
                 for all",
                sent.state
            );
            reader.violations.add("state", message);
            None
        }
    };
    let size = page::size(sent.page_size, &mut reader.violations);
    let after = page::after(
        &sent.page_token,
        &dispatches_query(sent),
        &mut reader.violations,
    );
    let after = after.map(|(schedule, n)| (ScheduleId(uuid::Uuid::from_u128(schedule)), n));
    reader.finish(Some(DispatchesPage {
        filter: DispatchFilter { schedule_id, state },
        after,
        size,
    }))
}

/// The part of a request that must stay the same from page to page.
pub(super) fn dispatches_query(sent: &v1::ListDispatchesRequest) -> impl std::hash::Hash + use<> {
    ("dispatches", sent.schedule_id.clone(), sent.state)
}

pub(super) fn retry(sent: &v1::RetryDispatchRequest) -> Result<(ScheduleId, DispatchId), Error> {
    let mut reader = RequestReader::new(&[]);
    let schedule_id = reader.schedule_id(&sent.schedule_id);
    let dispatch_id = reader
        .violations
        .check("dispatch_id", DispatchId::parse(&sent.dispatch_id));
    reader.finish(schedule_id.zip(dispatch_id))
}
