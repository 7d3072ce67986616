//! The tonic face: decode, call, encode.

mod decode;
mod encode;
mod json;
mod page;
pub mod status;

use prost::Message;
use tonic::{Request, Response, Status};

use crate::domain::{Charge, Dispatch, ScheduleId};
use crate::error::{Error, Violation};
use crate::layers::rate_limit::Meter;
use crate::layers::violations::TransportViolations;
use crate::pb::v1;
use crate::pb::v1::canvas_schedule_service_server::CanvasScheduleService;
use crate::service::{Caller, MAX_BATCH, Service};

/// A page of revisions or dispatches is cut short where it would pass this many bytes.
const PAGE_BYTES: usize = 1024 * 1024;

/// The service as gRPC callers see it.
#[derive(Clone)]
pub struct GrpcApi {
    service: Service,
}

impl GrpcApi {
    /// The face of `service`.
    pub fn new(service: Service) -> Self {
        Self { service }
    }
}

/// Who calls, as the stack has found out. Without the stack nobody does.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| refuse(Error::internal("a call came past the stack")))
}

/// What counts a call whose message says what it counts as.
fn meter<T>(request: &Request<T>) -> Result<Meter, Status> {
    request
        .extensions()
        .get::<Meter>()
        .cloned()
        .ok_or_else(|| refuse(Error::internal("a call came past the stack")))
}

/// What a face in front has found wrong with a request.
fn found<T>(request: &Request<T>) -> TransportViolations {
    request
        .extensions()
        .get::<TransportViolations>()
        .cloned()
        .unwrap_or_default()
}

fn refuse(error: Error) -> Status {
    status::status(&error)
}

#[tonic::async_trait]
impl CanvasScheduleService for GrpcApi {
    async fn create_canvas_schedule(
        &self,
        request: Request<v1::CreateCanvasScheduleRequest>,
    ) -> Result<Response<v1::CreateCanvasScheduleResponse>, Status> {
        let caller = caller(&request)?;
        let meter = meter(&request)?;
        let found = found(&request);
        let (create, mode) =
            decode::create(request.into_inner(), found.violations()).map_err(refuse)?;
        Box::pin(meter.count(&Charge::of_creation(&create.target))).await?;
        let validate_only = mode.validate_only;
        let created = self
            .service
            .create(caller, create, mode)
            .await
            .map_err(refuse)?;
        Ok(Response::new(encode::created(&created, validate_only)))
    }

    async fn update_canvas_schedule(
        &self,
        request: Request<v1::UpdateCanvasScheduleRequest>,
    ) -> Result<Response<v1::UpdateCanvasScheduleResponse>, Status> {
        let caller = caller(&request)?;
        let found = found(&request);
        let update = decode::update(request.into_inner(), found.violations()).map_err(refuse)?;
        let validate_only = update.mode.validate_only;
        let outcome = self.service.update(caller, update).await.map_err(refuse)?;
        Ok(Response::new(encode::updated(&outcome, validate_only)))
    }

    async fn batch_update_canvas_schedules(
        &self,
        request: Request<v1::BatchUpdateCanvasSchedulesRequest>,
    ) -> Result<Response<v1::BatchUpdateCanvasSchedulesResponse>, Status> {
        let caller = caller(&request)?;
        let meter = meter(&request)?;
        let sent = request.into_inner().requests;
        if sent.is_empty() || sent.len() > MAX_BATCH {
            let message = format!("has {} entries; 1 to {MAX_BATCH} are allowed", sent.len());
            return Err(refuse(Error::Invalid(vec![Violation::new(
                "requests", message,
            )])));
        }
        let (entries, validate_only) = (
            sent.len() as u64,
            sent.iter()
                .map(|update| update.validate_only)
                .collect::<Vec<_>>(),
        );
        // Before the count, which may wait: what is wrong takes no memory then.
        let updates = sent
            .into_iter()
            .map(|update| decode::update(update, &[]))
            .collect();
        Box::pin(meter.count(&Charge::Requests(entries))).await?;
        let answers = self.service.batch_update(&caller, updates).await;
        let results = answers
            .iter()
            .zip(validate_only)
            .map(|(answer, validate_only)| result(answer, validate_only))
            .collect();
        Ok(Response::new(v1::BatchUpdateCanvasSchedulesResponse {
            results,
        }))
    }

    async fn cancel_canvas_schedule(
        &self,
        request: Request<v1::CancelCanvasScheduleRequest>,
    ) -> Result<Response<v1::CancelCanvasScheduleResponse>, Status> {
        let caller = caller(&request)?;
        let (id, cancel, request_id) =
            decode::cancel(request.get_ref(), found(&request).violations()).map_err(refuse)?;
        let outcome = self
            .service
            .cancel(caller, id, cancel, request_id)
            .await
            .map_err(refuse)?;
        Ok(Response::new(encode::cancelled(&outcome)))
    }

    async fn get_canvas_schedule(
        &self,
        request: Request<v1::GetCanvasScheduleRequest>,
    ) -> Result<Response<v1::GetCanvasScheduleResponse>, Status> {
        let id = decode::get(request.get_ref()).map_err(refuse)?;
        let details = self
            .service
            .get(&caller(&request)?, id)
            .await
            .map_err(refuse)?;
        Ok(Response::new(encode::details(&details)))
    }

    async fn list_canvas_schedules(
        &self,
        request: Request<v1::ListCanvasSchedulesRequest>,
    ) -> Result<Response<v1::ListCanvasSchedulesResponse>, Status> {
        let sent = request.get_ref();
        let caller = caller(&request)?;
        let page =
            decode::list(sent, caller.workspace, found(&request).violations()).map_err(refuse)?;
        // One more than the page tells whether there is a next one.
        let mut found = self
            .service
            .list(&caller, &page.filter, page.after, page.size + 1)
            .await
            .map_err(refuse)?;
        let more = u64::try_from(found.len()).is_ok_and(|found| found > page.size);
        if more {
            found.pop();
        }
        let last = found.last().filter(|_| more);
        Ok(Response::new(v1::ListCanvasSchedulesResponse {
            next_page_token: last
                .map(|last| {
                    page::token(
                        &decode::list_query(sent, caller.workspace),
                        (last.id.0.as_u128(), 0),
                    )
                })
                .unwrap_or_default(),
            canvas_schedules: found.iter().map(encode::canvas_schedule).collect(),
        }))
    }

    async fn list_canvas_schedule_revisions(
        &self,
        request: Request<v1::ListCanvasScheduleRevisionsRequest>,
    ) -> Result<Response<v1::ListCanvasScheduleRevisionsResponse>, Status> {
        let sent = request.get_ref();
        let asked = decode::revisions(sent).map_err(refuse)?;
        let found = self
            .service
            .revisions(
                &caller(&request)?,
                asked.schedule_id,
                asked.before,
                asked.size + 1,
            )
            .await;
        let (found, carried) = found.map_err(refuse)?;
        let encoded = found
            .iter()
            .map(|value| encode::revision(value, value.properties.and_then(|id| carried.get(&id))));
        let revisions = what_fits(encoded, asked.size);
        let last = revisions
            .last()
            .filter(|_| revisions.len() < found.len())
            .and_then(|last| u128::try_from(last.revision).ok());
        let next_page_token = last
            .map(|last| page::token(&decode::revisions_query(sent), (last, 0)))
            .unwrap_or_default();
        Ok(Response::new(v1::ListCanvasScheduleRevisionsResponse {
            revisions,
            next_page_token,
        }))
    }

    async fn list_dispatches(
        &self,
        request: Request<v1::ListDispatchesRequest>,
    ) -> Result<Response<v1::ListDispatchesResponse>, Status> {
        let sent = request.get_ref();
        let asked = decode::dispatches(sent).map_err(refuse)?;
        let found = self
            .service
            .dispatches(
                &caller(&request)?,
                asked.filter,
                asked.after,
                asked.size + 1,
            )
            .await
            .map_err(refuse)?;
        let dispatches = what_fits(
            found
                .iter()
                .map(|(schedule, dispatch)| encode::dispatch(*schedule, dispatch)),
            asked.size,
        );
        let last = found
            .get(..dispatches.len())
            .and_then(<[_]>::last)
            .filter(|_| dispatches.len() < found.len());
        let token =
            |(schedule, dispatch): &(ScheduleId, Dispatch)| (schedule.0.as_u128(), dispatch.number);
        let next_page_token = last
            .map(|last| page::token(&decode::dispatches_query(sent), token(last)))
            .unwrap_or_default();
        Ok(Response::new(v1::ListDispatchesResponse {
            dispatches,
            next_page_token,
        }))
    }

    async fn retry_dispatch(
        &self,
        request: Request<v1::RetryDispatchRequest>,
    ) -> Result<Response<v1::RetryDispatchResponse>, Status> {
        let (schedule, dispatch) = decode::retry(request.get_ref()).map_err(refuse)?;
        let revived = self
            .service
            .retry_dispatch(&caller(&request)?, schedule, dispatch)
            .await
            .map_err(refuse)?;
        Ok(Response::new(v1::RetryDispatchResponse {
            dispatch: Some(encode::dispatch(schedule, &revived)),
        }))
    }
}

/// The first `size` of what there is, or as many as fit a page; at least one.
fn what_fits<T: Message>(all: impl Iterator<Item = T>, size: u64) -> Vec<T> {
    let (mut fitting, mut bytes) = (Vec::new(), 0);
    for one in all.take(usize::try_from(size).unwrap_or(usize::MAX)) {
        bytes += one.encoded_len();
        if bytes > PAGE_BYTES && !fitting.is_empty() {
            break;
        }
        fitting.push(one);
    }
    fitting
}

/// The answer to one entry of a batch: the same code, message and details as the update would have got on its own.
fn result(
    answer: &Result<crate::domain::Outcome, Error>,
    validate_only: bool,
) -> v1::BatchUpdateCanvasSchedulesResult {
    use v1::batch_update_canvas_schedules_result::Result as Entry;
    let entry = match answer {
        Ok(outcome) => Entry::Response(encode::updated(outcome, validate_only)),
        Err(error) => {
            if let Error::Internal(cause) = error {
                // The call itself ends well, so its own log line does not tell.
                tracing::error!(cause, "an entry of a batch failed");
            }
            Entry::Error(entry_error(&status::status(error)))
        }
    };
    v1::BatchUpdateCanvasSchedulesResult {
        result: Some(entry),
    }
}

fn entry_error(status: &Status) -> v1::BatchUpdateCanvasSchedulesError {
    // The status carries an encoded google.rpc.Status whose details these are; we wrote it ourselves a moment ago.
    let details = tonic_types::pb::Status::decode(status.details())
        .map(|status| status.details)
        .unwrap_or_default();
    let details = details
        .into_iter()
        .map(|any| prost_types::Any {
            type_url: any.type_url,
            value: any.value,
        })
        .collect();
    v1::BatchUpdateCanvasSchedulesError {
        code: status.code().into(),
        message: status.message().to_owned(),
        details,
    }
}
