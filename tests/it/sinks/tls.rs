use std::net::IpAddr;

use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

use super::*;

/// Creates a self-signed certificate for 127.0.0.1. Returns it as PEM, and an acceptor for these
/// protocols.
pub(crate) fn certificate(protocols: &[&str]) -> (Vec<u8>, TlsAcceptor) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::IpAddress(IpAddr::from([127, 0, 0, 1]))];
    let certificate = params.self_signed(&key).expect("a certificate");
    let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions");
    let mut server = server
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .expect("a certificate");
    server.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    (
        certificate.pem().into_bytes(),
        TlsAcceptor::from(Arc::new(server)),
    )
}

async fn trusting(url: &str, timeout: Duration, ca: Vec<u8>) -> SharedSink {
    let endpoint = SinkEndpoint {
        ca: Some(ca),
        ..endpoint(url, timeout)
    };
    open(SinkSettings::Webhook {
        endpoint,
        keys: vec![Secret(vec![7; 24])],
    })
    .await
}

/// A webhook sink that trusts none of the tests' certificates.
pub(super) async fn webhook(url: &str, timeout: Duration) -> SharedSink {
    trusting(url, timeout, certificate(&[]).0).await
}

/// A gRPC sink that trusts these certificates.
pub(super) async fn grpc(url: &str, timeout: Duration, ca: Vec<u8>) -> SharedSink {
    let endpoint = SinkEndpoint {
        ca: Some(ca),
        ..endpoint(url, timeout)
    };
    open(SinkSettings::Grpc {
        endpoint,
        token: None,
        connections: 1,
    })
    .await
}

/// Answers 200 on every connection whose handshake succeeds, and reports each.
async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    taken: tokio::sync::mpsc::UnboundedSender<()>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let Ok(mut stream) = acceptor.accept(stream).await else {
            continue;
        };
        let mut seen = [0; 4096];
        if stream.read(&mut seen).await.is_ok_and(|bytes| bytes > 0) {
            taken.send(()).expect("the test waits");
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .await
                .expect("the client reads");
        }
    }
}

#[tokio::test]
async fn https_trusts_the_stated_certificates_and_no_others() {
    let (ca, acceptor) = certificate(&[]);
    let (listener, addr) = listener().await;
    let (taken, mut seen) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(serve(listener, acceptor, taken));
    let url = format!("https://{addr}/");
    assert_eq!(
        deliver(&trusting(&url, LONG, ca).await, &dispatch()).await,
        DeliveryOutcome::Delivered
    );
    assert_not_taken(&deliver(&webhook(&url, LONG).await, &dispatch()).await);
    assert!(
        seen.try_recv().is_ok() && seen.try_recv().is_err(),
        "one request, not two"
    );
}

#[tokio::test]
async fn a_file_without_certificates_is_refused() {
    let endpoint = SinkEndpoint {
        ca: Some(b"no PEM".to_vec()),
        ..endpoint("https://127.0.0.1/", LONG)
    };
    let opened = sink::open(
        &SinkSettings::Webhook {
            endpoint,
            keys: vec![Secret(vec![7; 24])],
        },
        Arc::new(SystemClock),
    )
    .await;
    let Err(refused) = opened else {
        panic!("the file must be refused")
    };
    assert!(
        refused.to_string().starts_with("sink-ca-file: "),
        "{refused}"
    );
}
