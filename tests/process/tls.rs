//! TLS: replaced certificates, client certificates, and peers that do not speak TLS.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use canvas_scheduler::pb::v1;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::client::WantsClientCert;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::command_line::run_to_end;
use super::database::{Database, Folder};
use super::load::{Callers, Mix, schedules};
use super::server::{PATIENCE, Server, key};

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// Creates an authority.
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Signs a certificate for `localhost`. Returns it and its key as PEM.
    fn sign(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (
            params.signed_by(&key, &self.issuer).unwrap().pem(),
            key.serialize_pem(),
        )
    }

    /// A client that trusts the authority.
    pub(crate) fn trusted(&self) -> ClientConfig {
        self.client().with_no_client_auth()
    }

    /// The same with a client certificate.
    fn trusted_by(&self, (certificate, key): (String, String)) -> ClientConfig {
        let own = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        self.client()
            .with_client_auth_cert(own, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
            .unwrap()
    }

    fn client(&self) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap())
            .unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        builder
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
    }
}

/// A server's certificate in files.
pub(crate) struct Files {
    folder: Folder,
}

impl Files {
    /// Writes a certificate that the authority has signed.
    pub(crate) fn of(authority: &Authority) -> Self {
        let files = Self {
            folder: Folder::new(),
        };
        files.replace(authority);
        files
    }

    /// Replaces the files one after the other, each of them atomically, as tools do.
    fn replace(&self, authority: &Authority) {
        let (certificate, key) = authority.sign();
        write(&self.path("tls.crt"), &certificate);
        write(&self.path("tls.key"), &key);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The flags with their paths.
    pub(crate) fn flags(&self) -> Vec<String> {
        ["crt", "key"]
            .map(|end| {
                (
                    if end == "crt" { "cert" } else { end },
                    self.path(&format!("tls.{end}")),
                )
            })
            .map(flag)
            .concat()
    }
}

fn flag((name, path): (&str, PathBuf)) -> Vec<String> {
    vec![format!("--tls-{name}"), path.display().to_string()]
}

fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Starts a server with these flags, for callers with this TLS configuration.
pub(crate) async fn start(database: &Database, flags: &[String], client: ClientConfig) -> Server {
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Server::start_with(&database.url(), &flags, key(&database.url()), Some(client)).await
}

#[tokio::test]
async fn a_certificate_is_replaced_under_load_and_no_call_fails() {
    let (database, old, new) = (Database::sqlite(), Authority::new(), Authority::new());
    let files = Files::of(&old);
    let server = start(&database, &files.flags(), old.trusted()).await;
    let (ids, _) = schedules(&mut server.connect().await, 10).await;
    let mut callers = Callers::start(&server.connections(4).await, &ids, 16, Mix::default());
    callers.acknowledged(50).await;
    files.replace(&new);
    server
        .log()
        .first(|line| line.contains("reloaded the certificate").then_some(()))
        .await;
    // New connections use the new certificate; open ones continue.
    schedules(&mut server.access().by(new.trusted()).connect().await, 1).await;
    assert!(
        server.access().try_connect().await.is_err(),
        "a client that trusts only the old authority must be refused"
    );
    callers.acknowledged(200).await;
    for call in callers.stop().await {
        assert!(call.end.is_ok(), "{call:?}");
    }
}

#[tokio::test]
async fn unusable_files_leave_the_certificate_in_place() {
    let (database, authority) = (Database::sqlite(), Authority::new());
    let files = Files::of(&authority);
    let server = start(&database, &files.flags(), authority.trusted()).await;
    for (n, (name, text)) in [
        ("tls.key", authority.sign().1),
        ("tls.crt", "nonsense".to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        write(&files.path(name), &text);
        server
            .log()
            .times(n + 1, "the new certificate cannot be used")
            .await;
        schedules(&mut server.connect().await, 1).await;
    }
    files.replace(&authority);
    server
        .log()
        .first(|line| line.contains("reloaded the certificate").then_some(()))
        .await;
    schedules(&mut server.connect().await, 1).await;
}

#[tokio::test]
async fn with_mutual_tls_a_client_without_a_certificate_is_refused_at_the_handshake() {
    let (database, authority, strangers) = (Database::sqlite(), Authority::new(), Authority::new());
    let files = Files::of(&authority);
    write(&files.path("ca.crt"), &authority.pem);
    let flags = [files.flags(), flag(("client-ca", files.path("ca.crt")))].concat();
    let server = start(&database, &flags, authority.trusted_by(authority.sign())).await;
    schedules(&mut server.connect().await, 1).await;
    for (who, client) in [
        ("no certificate", authority.trusted()),
        ("a stranger's", authority.trusted_by(strangers.sign())),
    ] {
        let stranger = server.access().by(client);
        // In TLS 1.3 a client notices its refusal at its first read.
        let Ok(mut client) = stranger.try_connect().await else {
            continue;
        };
        let refused = client
            .list_canvas_schedules(v1::ListCanvasSchedulesRequest::default())
            .await
            .expect_err(who);
        assert!(
            tonic_types::StatusExt::get_details_error_info(&refused).is_none(),
            "{who}: every call must fail: {refused:?}"
        );
    }
    // `healthcheck` with a client certificate.
    let (certificate, key) = authority.sign();
    write(&files.path("own.crt"), &certificate);
    write(&files.path("own.key"), &key);
    let [ca, own_certificate, own_key] =
        ["ca.crt", "own.crt", "own.key"].map(|name| files.path(name).display().to_string());
    let ask = [
        "healthcheck",
        "--timeout",
        "60s",
        "--grpc-addr",
        server.addr(),
        "--tls-ca",
        &ca,
    ];
    assert!(!run_to_end(&ask).status.success(), "without a certificate");
    let output = run_to_end(
        &[
            &ask[..],
            &["--tls-cert", &own_certificate, "--tls-key", &own_key],
        ]
        .concat(),
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn a_peer_that_does_not_speak_tls_is_closed_and_delays_no_call() {
    let (database, authority) = (Database::sqlite(), Authority::new());
    let files = Files::of(&authority);
    let flags = [
        files.flags(),
        ["--first-byte-timeout", "1s"].map(str::to_owned).to_vec(),
    ]
    .concat();
    let server = start(&database, &flags, authority.trusted()).await;
    let mut silent = TcpStream::connect(server.addr()).await.unwrap();
    let mut plain = TcpStream::connect(server.addr()).await.unwrap();
    plain
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    schedules(&mut server.connect().await, 1).await;
    for stream in [&mut silent, &mut plain] {
        let mut received = Vec::new();
        // A reset closes it too.
        let _end = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut received))
            .await
            .expect("it is closed");
        assert!(
            received.len() < 16,
            "only an alert may arrive: {received:?}"
        );
    }
}

/// Requests the gateway's OpenAPI document over TLS, with a client that offers these protocols.
/// Returns the negotiated protocol, and the HTTP/1.1 response.
async fn described(
    server: &Server,
    mut client: ClientConfig,
    protocols: &[&[u8]],
) -> std::io::Result<(Vec<u8>, String)> {
    client.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let stream = TcpStream::connect(server.gateway()).await?;
    let mut stream = TlsConnector::from(Arc::new(client))
        .connect("localhost".try_into().unwrap(), stream)
        .await?;
    let spoken = stream
        .get_ref()
        .1
        .alpn_protocol()
        .unwrap_or_default()
        .to_vec();
    let mut received = Vec::new();
    if spoken != b"h2" {
        stream
            .write_all(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .await?;
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut received))
            .await
            .expect("it answers")?;
    }
    Ok((spoken, String::from_utf8_lossy(&received).into_owned()))
}

#[tokio::test]
async fn the_gateway_uses_the_same_certificate() {
    let (database, authority, new) = (Database::sqlite(), Authority::new(), Authority::new());
    let files = Files::of(&authority);
    write(&files.path("ca.crt"), &authority.pem);
    let flags = [files.flags(), flag(("client-ca", files.path("ca.crt")))].concat();
    let server = start(&database, &flags, authority.trusted_by(authority.sign())).await;
    let known = || authority.trusted_by(authority.sign());
    for (protocols, spoken) in [
        (&[&b"h2"[..], b"http/1.1"][..], &b"h2"[..]),
        (&[b"http/1.1"], b"http/1.1"),
        (&[], b""),
    ] {
        let (negotiated, errors) = described(&server, known(), protocols)
            .await
            .expect("the handshake succeeds");
        assert_eq!(negotiated, spoken);
        assert!(
            spoken == b"h2" || errors.starts_with("HTTP/1.1 200 OK"),
            "{errors}"
        );
    }
    let refused = described(&server, authority.trusted(), &[b"http/1.1"]).await;
    assert!(
        refused
            .as_ref()
            .map_or(true, |(_, errors)| errors.is_empty()),
        "without a client certificate: {refused:?}"
    );
    files.replace(&new);
    server
        .log()
        .first(|line| line.contains("reloaded the certificate").then_some(()))
        .await;
    assert!(
        described(&server, known(), &[]).await.is_err(),
        "a client that trusts only the old authority must be refused"
    );
    assert_eq!(
        server
            .log()
            .all()
            .iter()
            .filter(|line| line.contains("reloaded the certificate"))
            .count(),
        1,
        "for both ports"
    );
}

#[test]
fn every_tls_violation_is_reported_before_a_port_is_bound() {
    let folder = Folder::new();
    let database = Database::sqlite();
    let file = |name: &str, text: &str| {
        write(&folder.path().join(name), text);
        folder.path().join(name).display().to_string()
    };
    let (certificate, key) = Authority::new().sign();
    let other = Authority::new().sign().1;
    let [certificate, key, other, junk] = [
        ("a.crt", &certificate),
        ("a.key", &key),
        ("b.key", &other),
        ("junk", &"junk".to_owned()),
    ]
    .map(|(name, text)| file(name, text));
    for (flags, expected) in [
        (vec!["--tls-cert", &certificate], "needs --tls-key"),
        (
            vec!["--tls-client-ca", &certificate],
            "--tls-client-ca: needs",
        ),
        (
            vec!["--tls-cert", &certificate, "--tls-key", "/no/such/file"],
            "--tls-key: /no/such/file cannot be read",
        ),
        (
            vec!["--tls-cert", &junk, "--tls-key", &key],
            "--tls-cert: contains no certificate",
        ),
        (
            vec!["--tls-cert", &certificate, "--tls-key", &junk],
            "--tls-key: contains no private key",
        ),
        (
            vec!["--tls-cert", &certificate, "--tls-key", &other],
            "does not match --tls-key",
        ),
        (
            vec![
                "--tls-cert",
                &certificate,
                "--tls-key",
                &key,
                "--tls-client-ca",
                &junk,
            ],
            "--tls-client-ca: contains no certificate",
        ),
    ] {
        let output = run_to_end(
            &[
                &[
                    "serve",
                    "--grpc-addr",
                    "127.0.0.1:0",
                    "--gateway",
                    "off",
                    "--database-url",
                    &database.url(),
                ],
                &flags[..],
            ]
            .concat(),
        );
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && errors.contains(expected) && !errors.contains("listening"),
            "{flags:?}: {errors}"
        );
    }
}

#[tokio::test]
async fn plaintext_beyond_loopback_needs_plaintext_on() {
    let database = Database::sqlite();
    let server = Server::start(
        &database.url(),
        &[
            "--grpc-addr",
            "0.0.0.0:0",
            "--gateway-addr",
            "0.0.0.0:0",
            "--plaintext",
            "on",
        ],
    )
    .await;
    schedules(&mut server.connect().await, 1).await;
    let authority = Authority::new();
    let files = Files::of(&authority);
    let flags = [
        files.flags(),
        ["--grpc-addr", "0.0.0.0:0"].map(str::to_owned).to_vec(),
    ]
    .concat();
    let server = start(&database, &flags, authority.trusted()).await;
    schedules(&mut server.connect().await, 1).await;
}
