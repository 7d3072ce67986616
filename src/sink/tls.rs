//! Connections to consumers: TCP, and TLS for `https` and `tls` URLs.

use std::sync::Arc;

use hyper_util::client::legacy::connect::HttpConnector;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::SinkEndpoint;
use crate::error::{Error, Violation};

/// A TLS configuration that trusts the certificates of `sink-ca-file`, or the system's without one.
///
/// # Errors
/// Certificates that cannot be read, or none.
pub(super) fn client_config(reach: &SinkEndpoint) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match &reach.ca {
        Some(pem) => {
            let stated: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let stated = stated
                .map_err(|why| invalid(format!("has a certificate that cannot be read ({why})")))?;
            roots.add_parsable_certificates(stated);
        }
        // The system's certificates are read for TLS only: a container may have none.
        None if matches!(reach.url.0.scheme_str(), Some("https" | "tls")) => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        None => return build(roots),
    }
    if roots.is_empty() {
        return Err(invalid(
            "has no certificate, or is not set and the system has none; set it to a \
             PEM file of certificates to trust"
                .to_owned(),
        ));
    }
    build(roots)
}

fn build(roots: RootCertStore) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions();
    Ok(builder
        .map_err(Error::internal)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn invalid(message: String) -> Error {
    Error::Invalid(vec![Violation::new("sink-ca-file", message)])
}

/// A TCP connector with the connect timeout. The connector around it adds TLS.
pub(super) fn tcp(reach: &SinkEndpoint) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(reach.connect_timeout));
    tcp
}
