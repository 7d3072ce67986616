use clap::Parser;

use super::*;

/// A parser of these flags alone.
#[derive(Parser)]
struct Line {
    #[command(flatten)]
    sink: SinkArgs,
}

fn read(args: &[&str]) -> Result<SinkSettings, Vec<String>> {
    let line = Line::try_parse_from([&["x"], args].concat()).expect("known flags");
    let mut reader = Reader::default();
    let sink = reader.sink(&line.sink);
    reader.finish(sink)
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
        reach,
        token,
        connections: 2,
    }) = grpc
    else {
        panic!("{grpc:?}")
    };
    assert_eq!(
        (reach.url.0.host(), token),
        (Some("engine"), Some(Secret("t0ken".to_owned())))
    );
    assert_eq!(
        (reach.timeout, reach.connect_timeout),
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
    assert!(
        matches!(nats, Ok(SinkSettings::Nats { token: None, ref subject, .. }) if subject == "canvas.trigger"),
        "{nats:?}"
    );
}

#[test]
fn every_fault_of_a_sink_is_told_at_once_and_no_secret_is_repeated() {
    let faults = read(&[
        "--sink=webhook",
        "--sink-url=ftp://user:hidden@engine",
        "--sink-secret=whsec_hidden",
        "--sink-timeout=0s",
        "--sink-connect-timeout=x",
        "--sink-connections=0",
        "--sink-subject=a..b",
        "--sink-ca-file=/no/such/file",
    ]);
    let faults = faults.expect_err("seven faults");
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
            faults
                .iter()
                .any(|fault| fault.starts_with(&format!("--{flag}:"))),
            "{flag}: {faults:?}"
        );
    }
    assert_eq!(faults.len(), flags.len(), "{faults:?}");
    assert!(!faults.concat().contains("hidden"), "{faults:?}");
}

#[test]
fn what_does_not_fit_a_sink_is_refused() {
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
            "only one",
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
    for (args, said) in cases {
        let faults = read(args).expect_err(&args.join(" "));
        assert!(
            faults.len() == 1 && faults[0].contains(said),
            "{args:?}: {faults:?}"
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
    std::fs::remove_file(&file).expect("it is there");
    let settings = read.expect("no fault");
    assert!(!format!("{settings:?}").contains("hidden"));
    assert!(
        matches!(settings, SinkSettings::Nats { token: Some(Secret(token)), .. } if token == "hidden")
    );
}
