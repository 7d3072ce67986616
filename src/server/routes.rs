//! The services of the gRPC port: ours, health and reflection.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes as TonicRoutes;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::pb::v1::server_reflection_server as reflection_v1;
use tonic_reflection::pb::v1alpha::server_reflection_server as reflection_v1alpha;
use tower::Service as TowerService;

use crate::error::Error;
use crate::grpc::GrpcApi;
use crate::methods;
use crate::pb::FILE_DESCRIPTOR_SET;
use crate::pb::v1::canvas_schedule_service_server::{CanvasScheduleServiceServer, SERVICE_NAME};
use crate::service::Service;
use crate::service::access::store_unavailable;

/// The largest request.
const MAX_MESSAGE_BYTES: usize = 1024 * 1024;
/// The largest batch.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;

/// The largest request to a service that needs no key.
const MAX_OPEN_MESSAGE_BYTES: usize = 4 * 1024;

/// The service names in health checks: the empty one stands for the whole server.
pub(super) const HEALTH_NAMES: [&str; 2] = ["", SERVICE_NAME];

/// The services that a process offers.
#[derive(Debug, Clone, Copy)]
pub(super) struct EnabledServices {
    /// `CanvasScheduleService`.
    pub api: bool,
    /// Reflection.
    pub reflection: bool,
}

/// Routes a call by its path. Calls of our service bypass the general router, which costs more than
/// an empty call.
#[derive(Clone)]
pub(super) struct Routes {
    ours: CanvasScheduleServiceServer<GrpcApi>,
    batches: CanvasScheduleServiceServer<GrpcApi>,
    others: TonicRoutes,
    /// Whether this process serves callers.
    api: bool,
    ready: Arc<AtomicBool>,
}

impl Routes {
    /// The routes to `service`: unavailable until `ready`, unimplemented in a process without the
    /// role api.
    ///
    /// # Errors
    /// Never in practice: the descriptors are compiled in.
    pub(super) fn new(
        service: &Service,
        health: HealthReporter,
        ready: Arc<AtomicBool>,
        enabled: EnabledServices,
    ) -> Result<Self, Error> {
        let server = |bytes| {
            CanvasScheduleServiceServer::new(GrpcApi::new(service.clone()))
                .max_decoding_message_size(bytes)
        };
        let health = HealthServer::new(HealthService::from_health_reporter(health))
            .max_decoding_message_size(MAX_OPEN_MESSAGE_BYTES);
        let mut others = TonicRoutes::new(health);
        if enabled.reflection {
            let v1 = reflection(reflection_v1::SERVICE_NAME)
                .build_v1()
                .map_err(Error::internal)?;
            let v1alpha = reflection(reflection_v1alpha::SERVICE_NAME)
                .build_v1alpha()
                .map_err(Error::internal)?;
            let (v1, v1alpha) = (
                v1.max_decoding_message_size(MAX_OPEN_MESSAGE_BYTES),
                v1alpha.max_decoding_message_size(MAX_OPEN_MESSAGE_BYTES),
            );
            others = others.add_service(v1).add_service(v1alpha);
        }
        Ok(Self {
            ours: server(MAX_MESSAGE_BYTES),
            batches: server(MAX_BATCH_BYTES),
            others: others.prepare(),
            api: enabled.api,
            ready,
        })
    }
}

/// Reflection of our protos, health's, and those of error details, without which clients show
/// details as base64. It lists only the services that are served and itself as `own`: the protos
/// also define the service that a consumer implements.
fn reflection(own: &str) -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .with_service_name(SERVICE_NAME)
        .with_service_name(tonic_health::pb::health_server::SERVICE_NAME)
        .with_service_name(own)
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
}

type RouteFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl TowerService<Request<Body>> for Routes {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = RouteFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> RouteFuture {
        let path = request.uri().path();
        let batch = path == methods::BATCH_UPDATE.path;
        let ours = path
            .strip_prefix('/')
            .and_then(|path| path.strip_prefix(SERVICE_NAME))
            .filter(|_| self.api);
        match ours {
            Some(_) if !self.ready.load(Ordering::Relaxed) => {
                let refused = Status::from(store_unavailable());
                Box::pin(std::future::ready(Ok(refused.into_http())))
            }
            Some(_) if batch => TowerService::call(&mut self.batches, request),
            Some(_) => TowerService::call(&mut self.ours, request),
            None => Box::pin(TowerService::call(&mut self.others, request)),
        }
    }
}
