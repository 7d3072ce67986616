//! TLS and mutual TLS, with certificates that are reloaded when their files change. Open
//! connections keep the old certificate; new ones get the new one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::settings::TlsFiles;
use crate::error::{Error, Violation};

/// The time between checks of the files.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// The certificate that new connections get. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    current: Arc<ArcSwap<ServerConfig>>,
    files: Arc<TlsFiles>,
    /// When the certificate expires, in unix seconds.
    expires_at: Arc<AtomicI64>,
}

/// The bytes of the files.
struct Contents {
    certificates: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    /// Reports every file that cannot be read.
    fn read(files: &TlsFiles) -> Result<Self, Vec<Violation>> {
        let read = |flag: &str, file: &PathBuf| {
            std::fs::read(file).map_err(|why| {
                Violation::new(flag, format!("{} cannot be read: {why}", file.display()))
            })
        };
        let certificates = read("tls-cert", &files.certificates);
        let key = read("tls-key", &files.key);
        let client_ca = files
            .client_ca
            .as_ref()
            .map(|file| read("tls-client-ca", file))
            .transpose();
        match (certificates, key, client_ca) {
            (Ok(certificates), Ok(key), Ok(client_ca)) => Ok(Self {
                certificates,
                key,
                client_ca,
            }),
            (certificates, key, client_ca) => Err([certificates.err(), key.err(), client_ca.err()]
                .into_iter()
                .flatten()
                .collect()),
        }
    }

    fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for file in [
            &self.certificates,
            &self.key,
            self.client_ca.as_ref().unwrap_or(&vec![]),
        ] {
            hash.update(file.len().to_be_bytes());
            hash.update(file);
        }
        hash.finalize().into()
    }

    /// The server configuration, and when its certificate expires, in unix seconds.
    fn usable(&self) -> Result<(ServerConfig, i64), Vec<Violation>> {
        Ok((self.config()?, expiry(&self.certificates)?))
    }

    fn config(&self) -> Result<ServerConfig, Vec<Violation>> {
        let violation = |flag: &str, why: String| vec![Violation::new(flag, why)];
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions();
        let builder = builder.map_err(|why| violation("tls-cert", why.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for root in certificates("tls-client-ca", pem)? {
                    roots
                        .add(root)
                        .map_err(|why| violation("tls-client-ca", why.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|why| violation("tls-client-ca", why.to_string()))?,
                )
            }
        };
        // The parser's own error might repeat parts of the key.
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| violation("tls-key", "contains no private key in PEM".to_owned()))?;
        let config = builder.with_single_cert(certificates("tls-cert", &self.certificates)?, key);
        config.map_err(|why| violation("tls-cert", format!("does not match --tls-key: {why}")))
    }
}

/// When the first certificate of the chain expires, in unix seconds.
fn expiry(pem: &[u8]) -> Result<i64, Vec<Violation>> {
    let unreadable = || {
        vec![Violation::new(
            "tls-cert",
            "contains a certificate that cannot be read",
        )]
    };
    let chain = certificates("tls-cert", pem)?;
    let ends = chain.iter().map(|der| {
        Some(
            X509Certificate::from_der(der)
                .ok()?
                .1
                .validity()
                .not_after
                .timestamp(),
        )
    });
    ends.collect::<Option<Vec<_>>>()
        .and_then(|ends| ends.into_iter().min())
        .ok_or_else(unreadable)
}

fn certificates(flag: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Vec<Violation>> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    read.ok()
        .filter(|all| !all.is_empty())
        .ok_or_else(|| vec![Violation::new(flag, "contains no certificate in PEM")])
}

impl Tls {
    /// Reads the files.
    pub fn read(files: &TlsFiles) -> Result<Self, Error> {
        let (config, expires_at) = Contents::read(files)
            .and_then(|contents| contents.usable())
            .map_err(Error::Invalid)?;
        let (current, expires_at) = (
            Arc::new(ArcSwap::from_pointee(config)),
            Arc::new(AtomicI64::new(expires_at)),
        );
        Ok(Self {
            current,
            files: Arc::new(files.clone()),
            expires_at,
        })
    }

    /// For one new connection. `protocols` are what is protocol within, by preference.
    pub fn acceptor(&self, protocols: &[&[u8]]) -> TlsAcceptor {
        let mut config = ServerConfig::clone(&self.current.load());
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    /// When the first certificate of the chain in use expires, in unix seconds.
    pub fn expires_at(&self) -> i64 {
        self.expires_at.load(Ordering::Relaxed)
    }

    /// Reloads the files when they change. Files that cannot be used are logged once, and the old
    /// certificate stays. Never returns.
    pub async fn keep_fresh(self) {
        let read = || {
            let contents = Contents::read(&self.files);
            (contents.as_ref().ok().map(Contents::fingerprint), contents)
        };
        let (mut current, _) = read();
        let mut rejected = None;
        loop {
            sleep(RELOAD_INTERVAL).await;
            let (now, contents) = read();
            if now == current {
                continue;
            }
            match contents.and_then(|contents| contents.usable()) {
                Ok((config, expires_at)) => {
                    self.current.store(Arc::new(config));
                    self.expires_at.store(expires_at, Ordering::Relaxed);
                    tracing::info!("reloaded the certificate; new connections get the new one");
                    current = now;
                }
                // One file may be replaced and the other not yet, so only contents that stay are
                // reported.
                Err(_) if rejected != Some(now) => rejected = Some(now),
                Err(violations) => {
                    let why = Error::Invalid(violations);
                    tracing::error!(
                        %why,
                        "the new certificate cannot be used; the old one stays in use"
                    );
                    current = now;
                }
            }
        }
    }
}
