//! Connections to consumers: TCP, and TLS for `https` and `tls` URLs.

use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, RootCertStore};

use super::SinkEndpoint;
use crate::client_tls;
use crate::error::Error;

/// A TLS configuration that trusts the certificates of `sink-ca-file`, or the system's without one.
///
/// # Errors
/// Certificates that cannot be read, or none.
pub(super) fn client_config(reach: &SinkEndpoint) -> Result<ClientConfig, Error> {
    let speaks_tls = matches!(reach.url.0.scheme_str(), Some("https" | "tls"));
    // The system's certificates are read for TLS only: a container may have none.
    let roots = if speaks_tls || reach.ca.is_some() {
        client_tls::roots(reach.ca.as_deref()).map_err(|why| Error::invalid("sink-ca-file", why))?
    } else {
        RootCertStore::empty()
    };
    let trusting = client_tls::trusting(roots).map_err(Error::internal)?;
    Ok(trusting.with_no_client_auth())
}

/// A TCP connector with the connect timeout. The connector around it adds TLS.
pub(super) fn tcp(reach: &SinkEndpoint) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(reach.connect_timeout));
    tcp
}
