//! TLS and mutual TLS: certificates from files, which are read again when they change. Connections that are open stay as they
//! are; new ones get the new certificate.

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

use crate::config::TlsFiles;
use crate::error::{Error, Violation};

/// Between looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// The certificate that new connections get. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    current: Arc<ArcSwap<ServerConfig>>,
    files: Arc<TlsFiles>,
    /// When the certificate expires, in unix seconds.
    expires_at: Arc<AtomicI64>,
}

/// The bytes of the files, and what tells them from others.
struct Contents {
    certificates: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Contents {
    /// Every file that cannot be read is a fault.
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

    /// What they are good for, and until when, in unix seconds.
    fn usable(&self) -> Result<(ServerConfig, i64), Vec<Violation>> {
        Ok((self.config()?, expiry(&self.certificates)?))
    }

    /// What they are good for, together.
    fn config(&self) -> Result<ServerConfig, Vec<Violation>> {
        let fault = |flag: &str, why: String| vec![Violation::new(flag, why)];
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions();
        let builder = builder.map_err(|why| fault("tls-cert", why.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for root in certificates("tls-client-ca", pem)? {
                    roots
                        .add(root)
                        .map_err(|why| fault("tls-client-ca", why.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build();
                builder.with_client_cert_verifier(
                    verifier.map_err(|why| fault("tls-client-ca", why.to_string()))?,
                )
            }
        };
        // The text of the fault says nothing of what is in the file.
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| fault("tls-key", "holds no private key in PEM".to_owned()))?;
        let config = builder.with_single_cert(certificates("tls-cert", &self.certificates)?, key);
        config.map_err(|why| fault("tls-cert", format!("does not go with --tls-key: {why}")))
    }
}

/// When the first of the chain expires, in unix seconds.
fn expiry(pem: &[u8]) -> Result<i64, Vec<Violation>> {
    let unreadable = || {
        vec![Violation::new(
            "tls-cert",
            "holds a certificate that cannot be read",
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
        .ok_or_else(|| vec![Violation::new(flag, "holds no certificate in PEM")])
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Everything that is wrong with them.
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

    /// Looks at the files again and again. What cannot be used is logged once, and the certificate before it stays.
    pub async fn keep_current(self) {
        let look = || {
            let contents = Contents::read(&self.files);
            (contents.as_ref().ok().map(Contents::fingerprint), contents)
        };
        let (mut settled, _) = look();
        let mut doubtful = None;
        loop {
            sleep(LOOK_EVERY).await;
            let (now, contents) = look();
            if now == settled {
                continue;
            }
            match contents.and_then(|contents| contents.usable()) {
                Ok((config, expires_at)) => {
                    self.current.store(Arc::new(config));
                    self.expires_at.store(expires_at, Ordering::Relaxed);
                    tracing::info!("the certificate was replaced; new connections get it");
                    settled = now;
                }
                // One file may have been replaced and the other not yet: only what stays so is complained of.
                Err(_) if doubtful != Some(now) => doubtful = Some(now),
                Err(faults) => {
                    let why = Error::Invalid(faults);
                    tracing::error!(%why, "the new certificate cannot be used; the one before it stays");
                    settled = now;
                }
            }
        }
    }
}
