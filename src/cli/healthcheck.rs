//! `healthcheck`: asks a running server whether it is serving, for the health check of a container.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use http::uri::Authority;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use super::block_on;
use crate::client_tls;
use crate::config::values;
use crate::error::{Error, Violations};

/// The server to ask.
#[derive(Debug, Args)]
pub(super) struct HealthcheckArgs {
    /// The address of the server, or its name and port
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_GRPC_ADDR",
        default_value = "127.0.0.1:50051",
        value_parser = values::host
    )]
    grpc_addr: Authority,
    /// The certificate authority that signed its certificate, PEM; with it the connection uses TLS
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_CA",
        value_name = "FILE",
        help_heading = "TLS"
    )]
    tls_ca: Option<PathBuf>,
    /// The name in its certificate
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_NAME",
        default_value = "localhost",
        value_name = "NAME",
        help_heading = "TLS"
    )]
    tls_name: String,
    /// A client certificate, PEM, for a server that requires one
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_CERT",
        value_name = "FILE",
        help_heading = "TLS"
    )]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert, PEM
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HEALTHCHECK_TLS_KEY",
        value_name = "FILE",
        help_heading = "TLS"
    )]
    tls_key: Option<PathBuf>,
    /// Timeout of the check
    #[arg(
        long,
        env = "CANVAS_SCHEDULER_HEALTHCHECK_TIMEOUT",
        default_value = "3s",
        value_parser = values::duration
    )]
    timeout: Duration,
}

/// A client certificate and its key.
type TlsIdentity = (PathBuf, PathBuf);

impl HealthcheckArgs {
    pub(super) fn tls_identity(&self, violations: &mut Violations) -> Option<TlsIdentity> {
        values::tls_pair(self.tls_cert.as_ref(), self.tls_key.as_ref(), violations)
    }
}

pub(super) fn run(args: &HealthcheckArgs, identity: Option<TlsIdentity>) -> Result<(), Error> {
    let not_serving =
        |why: String| Error::internal(format!("{} is not serving: {why}", args.grpc_addr));
    block_on(async {
        let channel = connect(args, identity)
            .await
            .map_err(|why| not_serving(format!("no connection ({why})")))?;
        let response = HealthClient::new(channel)
            .check(HealthCheckRequest::default())
            .await;
        match response.map(|response| response.into_inner().status()) {
            Ok(ServingStatus::Serving) => Ok(()),
            Ok(other) => Err(not_serving(format!(
                "its status is {}",
                other.as_str_name()
            ))),
            Err(status) => Err(not_serving(format!(
                "{}: {}",
                status.code(),
                status.message()
            ))),
        }
    })
}

/// Connects to the server, with TLS when its certificate authority is set.
async fn connect(args: &HealthcheckArgs, identity: Option<TlsIdentity>) -> Result<Channel, String> {
    let scheme = if args.tls_ca.is_some() {
        "https"
    } else {
        "http"
    };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{}", args.grpc_addr))
        .map_err(|why| why.to_string())?;
    let endpoint = endpoint.connect_timeout(args.timeout).timeout(args.timeout);
    let connected = match &args.tls_ca {
        None => endpoint.connect().await,
        Some(authority) => {
            let mut tcp = HttpConnector::new();
            tcp.enforce_http(false);
            let https = HttpsConnectorBuilder::new()
                .with_tls_config(tls(authority, identity)?)
                .https_only();
            let name =
                ServerName::try_from(args.tls_name.clone()).map_err(|why| why.to_string())?;
            let https = https
                .with_server_name_resolver(FixedServerNameResolver::new(name))
                .enable_http2()
                .wrap_connector(tcp);
            endpoint.connect_with_connector(https).await
        }
    };
    connected.map_err(|why| why.to_string())
}

/// Trusts this certificate authority alone.
fn tls(authority: &Path, identity: Option<TlsIdentity>) -> Result<ClientConfig, String> {
    let unusable = |why: &dyn Display| format!("{}: {why}", authority.display());
    let pem = std::fs::read(authority).map_err(|why| unusable(&why))?;
    let roots = client_tls::roots(Some(&pem)).map_err(|why| unusable(&why))?;
    let builder = client_tls::trusting(roots).map_err(|why| why.to_string())?;
    let Some((certificate, key)) = identity else {
        return Ok(builder.with_no_client_auth());
    };
    let private =
        PrivateKeyDer::from_pem_file(&key).map_err(|why| format!("{}: {why}", key.display()))?;
    builder
        .with_client_auth_cert(certificates(&certificate)?, private)
        .map_err(|why| format!("{}: {why}", certificate.display()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |why| format!("{}: {why}", file.display());
    CertificateDer::pem_file_iter(file)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)
}
