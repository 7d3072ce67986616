use clap::Parser;

use super::*;
use crate::config::parse;

#[derive(Debug, Parser)]
struct TestLine {
    #[command(flatten)]
    serve: ServeArgs,
}

fn parsed(args: &[&str]) -> (ServeArgs, Violations) {
    let args = [&["canvas-scheduler"], args].concat();
    let (line, violations) =
        parse::<TestLine>(args.iter().map(Into::into).collect()).expect("known flags");
    (line.serve, violations)
}

/// The settings, or the violations, a line each.
fn serve(args: &[&str]) -> Result<Serve, Vec<String>> {
    let (args, mut violations) = parsed(args);
    let serve = args.read(&mut violations);
    let lines = violations
        .iter()
        .map(|one| format!("--{}: {}", one.field, one.message));
    if violations.is_empty() {
        Ok(serve)
    } else {
        Err(lines.collect())
    }
}

#[test]
fn the_defaults_are_valid() {
    let read = serve(&[]).expect("no violation");
    assert_eq!(
        (&read.database_url, read.grpc_addr.port()),
        (&DatabaseUrl::default(), 50051)
    );
    assert_eq!(
        read.roles,
        Roles {
            api: true,
            dispatcher: true
        }
    );
    assert_eq!(
        (read.policy.lateness, read.policy.horizon, read.drain),
        (
            chrono::TimeDelta::hours(1),
            chrono::TimeDelta::days(366),
            Duration::from_secs(20)
        )
    );
}

#[test]
fn every_violation_is_reported_at_once_with_its_flag_and_value() {
    let violations = serve(&[
        "--database-url=mysql://u:secret@h/d",
        "--grpc-addr=0.0.0.0:1",
        "--lateness=soon",
        "--commit-max",
        "0",
        "--drain=-3s",
        "--cores=x",
        "--roles=api,sender",
    ])
    .expect_err("seven violations");
    for (flag, value) in [
        ("database-url", "postgres://"),
        ("grpc-addr", "0.0.0.0:1"),
        ("lateness", "soon"),
        ("commit-max", "1 to 1000"),
        ("roles", "api,sender"),
    ] {
        assert!(
            violations
                .iter()
                .any(|line| line.contains(flag) && line.contains(value)),
            "{flag}: {violations:?}"
        );
    }
    assert_eq!(violations.len(), 7);
    assert!(!violations.concat().contains("secret"));
}

#[test]
fn a_dispatcher_needs_a_sink_and_a_lease_that_outlasts_a_delivery() {
    let grpc = [
        "--sink=grpc",
        "--sink-url=http://127.0.0.1:1",
        "--sink-timeout=45s",
    ];
    for (args, needed) in [
        (&["--roles=dispatcher"][..], "--sink:"),
        (&grpc[..], "--sink-timeout"),
    ] {
        let violations = serve(args).expect_err("a violation");
        assert!(
            violations.len() == 1 && violations[0].contains(needed),
            "{violations:?}"
        );
    }
    assert!(serve(&[&grpc[..], &["--lease=61s", "--roles=dispatcher"]].concat()).is_ok());
}

#[test]
fn debug_output_shows_no_secret() {
    let sink = [
        "--sink=grpc",
        "--sink-url=http://hidden:1",
        "--sink-secret=hidden",
    ];
    let (args, mut violations) =
        parsed(&[&sink[..], &["--database-url=postgres://u:hidden@h/d"]].concat());
    let flags = format!("{args:?}");
    let read = format!("{:?}", args.read(&mut violations));
    assert!(violations.is_empty(), "{violations:?}");
    for shown in [flags, read] {
        assert!(
            shown.contains("50051") && !shown.contains("hidden"),
            "{shown}"
        );
    }
}

#[test]
fn the_collector_comes_from_a_flag_or_the_names_of_opentelemetry() {
    let url = |args: &[&str]| {
        let collector = serve(args)?.collector;
        Ok::<_, Vec<String>>(collector.map(|collector| collector.url.0.to_string()))
    };
    let all = [
        "--otlp-endpoint=https://a:1",
        "--otel-exporter-otlp-traces-endpoint=http://b:1",
        "--otel-exporter-otlp-endpoint=http://c:1",
    ];
    for (args, expected) in [
        (&all[..], Some("https://a:1/")),
        (&all[1..], Some("http://b:1/")),
        (&all[2..], Some("http://c:1/")),
        (&[], None),
    ] {
        assert_eq!(url(args), Ok(expected.map(str::to_owned)), "{args:?}");
    }
    for value in ["true", "TRUE"] {
        let disabled = format!("--otel-sdk-disabled={value}");
        assert_eq!(url(&[&disabled, "--otlp-endpoint=not a url"]), Ok(None));
    }
    let enabled = url(&["--otel-sdk-disabled=1", all[0]]);
    assert_eq!(enabled, Ok(Some("https://a:1/".to_owned())));
    for invalid in [
        "hidden",
        "grpc://hidden:1",
        "http://hidden:hidden@a:1",
        "https://",
    ] {
        let error = url(&["--otlp-endpoint", invalid]).expect_err(invalid);
        assert!(
            error.len() == 1 && error[0].contains("https://") && !error[0].contains("hidden"),
            "{error:?}"
        );
    }
    let error = url(&[all[0], "--otel-exporter-otlp-certificate=no/such/file"]);
    let error = error.expect_err("no such file").concat();
    assert!(
        error.contains("certificate: the file cannot be read"),
        "{error}"
    );
}
