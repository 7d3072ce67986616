//! `healthcheck`: asks a running server whether it serves, as a container's health check does.

use std::path::Path;
use std::sync::Arc;

use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tonic::transport::{Channel, Endpoint};
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
        let channel = connect(asked)
            .await
            .map_err(|why| not_serving(format!("no connection ({why})")))?;
        let answer = HealthClient::new(channel)
            .check(HealthCheckRequest::default())
            .await;
        match answer.map(|answer| answer.into_inner().status()) {
            Ok(ServingStatus::Serving) => Ok(()),
            Ok(other) => Err(not_serving(format!("it says {}", other.as_str_name()))),
            Err(status) => Err(not_serving(format!(
                "{}: {}",
                status.code(),
                status.message()
            ))),
        }
    })
}

/// A connection to the server, by TLS when its authority is stated.
async fn connect(asked: &Healthcheck) -> Result<Channel, String> {
    let scheme = if asked.tls_ca.is_some() {
        "https"
    } else {
        "http"
    };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", asked.grpc_addr))
        .map_err(|why| why.to_string())?;
    let endpoint = endpoint
        .connect_timeout(asked.timeout)
        .timeout(asked.timeout);
    let connected = match &asked.tls_ca {
        None => endpoint.connect().await,
        Some(authority) => {
            let mut tcp = HttpConnector::new();
            tcp.enforce_http(false);
            let https = HttpsConnectorBuilder::new()
                .with_tls_config(tls(authority, asked)?)
                .https_only();
            let name =
                ServerName::try_from(asked.tls_name.clone()).map_err(|why| why.to_string())?;
            let https = https
                .with_server_name_resolver(FixedServerNameResolver::new(name))
                .enable_http2()
                .wrap_connector(tcp);
            endpoint.connect_with_connector(https).await
        }
    };
    connected.map_err(|why| why.to_string())
}

/// Trusts this authority alone, and has a certificate of its own if one is stated.
fn tls(authority: &Path, asked: &Healthcheck) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for root in certificates(authority)? {
        roots
            .add(root)
            .map_err(|why| format!("{}: {why}", authority.display()))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions();
    let builder = builder
        .map_err(|why| why.to_string())?
        .with_root_certificates(roots);
    let Some((own, key)) = &asked.tls_identity else {
        return Ok(builder.with_no_client_auth());
    };
    let private =
        PrivateKeyDer::from_pem_file(key).map_err(|why| format!("{}: {why}", key.display()))?;
    builder
        .with_client_auth_cert(certificates(own)?, private)
        .map_err(|why| format!("{}: {why}", own.display()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let told = |why| format!("{}: {why}", file.display());
    CertificateDer::pem_file_iter(file)
        .map_err(told)?
        .collect::<Result<_, _>>()
        .map_err(told)
}
