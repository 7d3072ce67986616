//! TLS of outgoing connections: rustls with ring.

use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};

/// The certificates of this PEM file's content, or without one those that the system trusts.
///
/// # Errors
/// A sentence without its subject, if a certificate cannot be read or there is none.
pub fn roots(pem: Option<&[u8]>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match pem {
        Some(pem) => {
            let stated: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let stated =
                stated.map_err(|why| format!("has a certificate that cannot be read ({why})"))?;
            roots.add_parsable_certificates(stated);
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err(
            "has no certificate, or is not set and the system has none; set it to a PEM file of \
             certificates to trust"
                .to_owned(),
        );
    }
    Ok(roots)
}

/// A configuration that trusts these certificates.
pub fn trusting(
    roots: RootCertStore,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions();
    Ok(builder?.with_root_certificates(roots))
}
