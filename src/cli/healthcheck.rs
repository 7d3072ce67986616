//! `healthcheck`: asks a running server whether it serves, as a container's health check does.

use tonic::transport::Endpoint;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use super::{Faults, block_on};
use crate::config::Healthcheck;

/// Runs the subcommand.
///
/// # Errors
/// Why the server does not serve.
pub fn run(asked: &Healthcheck) -> Result<(), Faults> {
    let not_serving = |why: String| vec![format!("{} is not serving: {why}", asked.grpc_addr)];
    block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{}", asked.grpc_addr)).map_err(|why| not_serving(why.to_string()))?;
        let endpoint = endpoint.connect_timeout(asked.timeout).timeout(asked.timeout);
        let channel = endpoint.connect().await.map_err(|why| not_serving(format!("no connection ({why})")))?;
        let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
        match answer.map(|answer| answer.into_inner().status()) {
            Ok(ServingStatus::Serving) => Ok(()),
            Ok(other) => Err(not_serving(format!("it says {}", other.as_str_name()))),
            Err(status) => Err(not_serving(format!("{}: {}", status.code(), status.message()))),
        }
    })
}
