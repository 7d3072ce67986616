use clap::Parser;

use super::*;
use crate::config::parse;

/// A parser of these flags alone.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    sink: SinkArgs,
}

fn read(args: &[&str]) -> Result<SinkSettings, Vec<String>> {
    let line = [&["x"], args].concat().iter().map(Into::into).collect();
    let (line, mut violations) = parse::<Line>(line).expect("known flags");
    let sink = line.sink.read(&mut violations);
    let lines = violations
        .iter()
        .map(|one| format!("--{}: {}", one.field, one.message));
    sink.filter(|_| violations.is_empty())
        .ok_or_else(|| lines.collect())
}

/// The base64 of 24 bytes.
const KEY: &str = "whsec_MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0";

#[test]
fn each_sink_is_read() {
    assert!(matches!(read(&["--sink=log"]), Ok(SinkSettings::Log)));
    let grpc = read(&[
        "--sink=grpc",
        "--sink-url=http://engine:50061",
        "--sink-secret=t0ken",
        "--sink-connections=2",
    ]);
    let Ok(SinkSettings::Grpc {
        endpoint,
        token,
        connections: 2,
    }) = grpc
    else {
        panic!("{grpc:?}")
    };
    assert_eq!(
        (endpoint.url.0.host(), token),
        (Some("engine"), Some(Secret("t0ken".to_owned())))
    );
    assert_eq!(
        (endpoint.timeout, endpoint.connect_timeout),
        (Duration::from_secs(10), Duration::from_secs(3))
    );
    let two = format!("--sink-secret={KEY} {KEY}");
    let webhook = read(&[
        "--sink=webhook",
        "--sink-url=https://engine/hook?code=1",
        &two,
    ]);
    let Ok(SinkSettings::Webhook { keys, .. }) = webhook else {
        panic!("{webhook:?}")
    };
    assert_eq!(keys, vec![Secret(b"123456789012345678901234".to_vec()); 2]);
    let nats = read(&["--sink=nats", "--sink-url=nats://127.0.0.1:4222"]);
    let Ok(SinkSettings::Nats { token, subject, .. }) = nats else {
        panic!("{nats:?}")
    };
    assert_eq!((token, subject.as_str()), (None, "canvas.trigger"));
}

#[test]
fn every_violation_of_a_sink_is_reported_at_once_without_secrets() {
    let violations = read(&[
        "--sink=webhook",
        "--sink-url=ftp://user:hidden@engine",
        "--sink-secret=whsec_hidden",
        "--sink-timeout=0s",
        "--sink-connect-timeout=x",
        "--sink-connections=0",
        "--sink-subject=a..b",
        "--sink-ca-file=/no/such/file",
    ]);
    let violations = violations.expect_err("seven violations");
    let flags = [
        "sink-url",
        "sink-secret",
        "sink-timeout",
        "sink-connect-timeout",
        "sink-connections",
        "sink-subject",
        "sink-ca-file",
    ];
    for flag in flags {
        assert!(
            violations
                .iter()
                .any(|violation| violation.starts_with(&format!("--{flag}:"))),
            "{flag}: {violations:?}"
        );
    }
    assert_eq!(violations.len(), flags.len(), "{violations:?}");
    assert!(!violations.concat().contains("hidden"), "{violations:?}");
}

#[test]
fn settings_that_do_not_fit_the_sink_are_rejected() {
    let long = format!("--sink-secret={KEY} {KEY} {KEY}");
    let url = "--sink-url=http://engine";
    let cases: [(&[&str], &str); 12] = [
        (&["--sink=stdout"], "--sink:"),
        (&["--sink-url=http://engine"], "--sink-url:"),
        (&["--sink=log", "--sink-secret=x"], "--sink-secret:"),
        (&["--sink=grpc"], "--sink-url:"),
        (
            &["--sink=grpc", "--sink-url=http://engine/path"],
            "--sink-url:",
        ),
        (&["--sink=grpc", "--sink-url=nats://engine"], "--sink-url:"),
        (
            &["--sink=grpc", url, "--sink-secret=two words"],
            "--sink-secret:",
        ),
        (
            &[
                "--sink=grpc",
                url,
                "--sink-secret=x",
                "--sink-secret-file=y",
            ],
            "together with",
        ),
        (&["--sink=webhook", url], "--sink-secret:"),
        (
            &["--sink=webhook", url, "--sink-secret=whsec_c2hvcnQ="],
            "--sink-secret:",
        ),
        (&["--sink=webhook", url, &long], "--sink-secret:"),
        (
            &["--sink=webhook", url, "--sink-secret-file=/no/such/file"],
            "--sink-secret-file:",
        ),
    ];
    for (args, expected) in cases {
        let violations = read(args).expect_err(&args.join(" "));
        assert!(
            violations.len() == 1 && violations[0].contains(expected),
            "{args:?}: {violations:?}"
        );
    }
}

#[test]
fn a_secret_is_read_from_a_file_and_never_shown() {
    let file = std::env::temp_dir().join(format!("canvas-scheduler-secret-{}", std::process::id()));
    std::fs::write(&file, "hidden\n").expect("a file");
    let read = read(&[
        "--sink=nats",
        "--sink-url=tls://h",
        &format!("--sink-secret-file={}", file.display()),
    ]);
    std::fs::remove_file(&file).expect("the file exists");
    let settings = read.expect("no violation");
    assert!(!format!("{settings:?}").contains("hidden"));
    let SinkSettings::Nats { token, .. } = settings else {
        panic!("{settings:?}")
    };
    assert_eq!(token, Some(Secret("hidden".to_owned())));
}
