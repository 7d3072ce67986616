//! `healthcheck`: asks a running server whether it serves, as a container's health check does.

use std::path::Path;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
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
        let endpoint = endpoint(asked).map_err(not_serving)?;
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

/// The way to the server, by TLS when its authority is stated.
fn endpoint(asked: &Healthcheck) -> Result<Endpoint, String> {
    let scheme = if asked.tls_ca.is_some() { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", asked.grpc_addr)).map_err(|why| why.to_string())?;
    let Some(authority) = &asked.tls_ca else { return Ok(endpoint) };
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(authority)?)).domain_name(&asked.tls_name);
    if let Some((certificates, key)) = &asked.tls_identity {
        tls = tls.identity(Identity::from_pem(read(certificates)?, read(key)?));
    }
    endpoint.tls_config(tls).map_err(|why| why.to_string())
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|why| format!("{} cannot be read: {why}", file.display()))
}
