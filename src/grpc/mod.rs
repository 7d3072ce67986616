//! The gRPC service: each handler decodes the request, calls the service and encodes the response.

mod decode;
mod encode;
mod json;
mod page;

use prost::Message;
use tonic::{Request, Response, Status};

use crate::domain::{Charge, Dispatch, ScheduleId};
use crate::error::Error;
use crate::layers::rate_limit::Meter;
use crate::layers::violations::TransportViolations;
use crate::pb::v1;
use crate::pb::v1::canvas_schedule_service_server::CanvasScheduleService;
use crate::service::{Caller, MAX_BATCH, Service};
use crate::status::status;

/// The bytes of a page of revisions or dispatches; a page that would exceed them is shorter than
/// asked for.
const MAX_PAGE_BYTES: usize = 1024 * 1024;

/// The service as gRPC clients see it.
#[derive(Clone)]
pub struct GrpcApi {
    service: Service,
}

impl GrpcApi {
    /// The gRPC service over `service`.
    pub fn new(service: Service) -> Self {
        Self { service }
    }
}

/// The caller, from the authentication layer.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| Error::internal("a call did not pass the layers").into())
}

/// The meter of a call whose message says what it counts as, from the rate limit layer.
fn meter<T>(request: &Request<T>) -> Result<Meter, Status> {
    request
        .extensions()
        .get::<Meter>()
        .cloned()
        .ok_or_else(|| Error::internal("a call did not pass the layers").into())
}

/// The violations that the transport found.
fn transport<T>(request: &Request<T>) -> TransportViolations {
    request
        .extensions()
        .get::<TransportViolations>()
        .cloned()
        .unwrap_or_default()
}

#[tonic::async_trait]
impl CanvasScheduleService for GrpcApi {
    async fn create_canvas_schedule(
        &self,
        request: Request<v1::CreateCanvasScheduleRequest>,
    ) -> Result<Response<v1::CreateCanvasScheduleResponse>, Status> {
        let caller = caller(&request)?;
        let meter = meter(&request)?;
        let transport = transport(&request);
        let (create, mode) = decode::create(request.into_inner(), transport.violations())?;
        Box::pin(meter.count(&Charge::of_creation(&create.target))).await?;
        let validate_only = mode.validate_only;
        let created = self.service.create(caller, create, mode).await?;
        Ok(Response::new(encode::created(&created, validate_only)))
    }

    async fn update_canvas_schedule(
        &self,
        request: Request<v1::UpdateCanvasScheduleRequest>,
    ) -> Result<Response<v1::UpdateCanvasScheduleResponse>, Status> {
        let caller = caller(&request)?;
        let transport = transport(&request);
        let update = decode::update(request.into_inner(), transport.violations())?;
        let validate_only = update.mode.validate_only;
        let outcome = self.service.update(caller, update).await?;
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
            return Err(Error::invalid("requests", message).into());
        }
        let (entries, validate_only) = (
            sent.len() as u64,
            sent.iter()
                .map(|update| update.validate_only)
                .collect::<Vec<_>>(),
        );
        // Before the count, which may wait: invalid entries take no memory meanwhile.
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
            decode::cancel(request.get_ref(), transport(&request).violations())?;
        let outcome = self.service.cancel(caller, id, cancel, request_id).await?;
        Ok(Response::new(encode::cancelled(&outcome)))
    }

    async fn get_canvas_schedule(
        &self,
        request: Request<v1::GetCanvasScheduleRequest>,
    ) -> Result<Response<v1::GetCanvasScheduleResponse>, Status> {
        let id = decode::get(request.get_ref())?;
        let details = self.service.get(&caller(&request)?, id).await?;
        Ok(Response::new(encode::details(&details)))
    }

    async fn list_canvas_schedules(
        &self,
        request: Request<v1::ListCanvasSchedulesRequest>,
    ) -> Result<Response<v1::ListCanvasSchedulesResponse>, Status> {
        let sent = request.get_ref();
        let caller = caller(&request)?;
        let page = decode::list(sent, caller.workspace, transport(&request).violations())?;
        // One more than the page holds shows whether there is a next page.
        let mut found = self
            .service
            .list(&caller, &page.filter, page.after, page.size + 1)
            .await?;
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
        let asked = decode::revisions(sent)?;
        let found = self
            .service
            .revisions(
                &caller(&request)?,
                asked.schedule_id,
                asked.before,
                asked.size + 1,
            )
            .await;
        let (found, carried) = found?;
        let encoded = found
            .iter()
            .map(|value| encode::revision(value, value.properties.and_then(|id| carried.get(&id))));
        let revisions = page_of(encoded, asked.size);
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
        let asked = decode::dispatches(sent)?;
        let found = self
            .service
            .dispatches(
                &caller(&request)?,
                asked.filter,
                asked.after,
                asked.size + 1,
            )
            .await?;
        let dispatches = page_of(
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
        let (schedule, dispatch) = decode::retry(request.get_ref())?;
        let revived = self
            .service
            .retry_dispatch(&caller(&request)?, schedule, dispatch)
            .await?;
        Ok(Response::new(v1::RetryDispatchResponse {
            dispatch: Some(encode::dispatch(schedule, &revived)),
        }))
    }
}

/// The first `size` entries, or as many as fit a page; at least one.
fn page_of<T: Message>(all: impl Iterator<Item = T>, size: u64) -> Vec<T> {
    let (mut fitting, mut bytes) = (Vec::new(), 0);
    for one in all.take(usize::try_from(size).unwrap_or(usize::MAX)) {
        bytes += one.encoded_len();
        if bytes > MAX_PAGE_BYTES && !fitting.is_empty() {
            break;
        }
        fitting.push(one);
    }
    fitting
}

/// The result of one entry of a batch, with the code, message and details of a single update.
fn result(
    answer: &Result<crate::domain::Outcome, Error>,
    validate_only: bool,
) -> v1::BatchUpdateCanvasSchedulesResult {
    use v1::batch_update_canvas_schedules_result::Result as Entry;
    let entry = match answer {
        Ok(outcome) => Entry::Response(encode::updated(outcome, validate_only)),
        Err(error) => {
            if let Error::Internal(cause) = error {
                // The call itself succeeds, so its log line does not show the cause.
                tracing::error!(cause, "an entry of a batch failed");
            }
            Entry::Error(entry_error(&status(error)))
        }
    };
    v1::BatchUpdateCanvasSchedulesResult {
        result: Some(entry),
    }
}

fn entry_error(status: &Status) -> v1::BatchUpdateCanvasSchedulesError {
    // The details of a status are an encoded google.rpc.Status.
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
