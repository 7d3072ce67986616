use clap::Parser;

use super::*;
use crate::config::reader::DATABASE_DEFAULT;
use crate::config::{Command, CommandLine};

fn serve(args: &[&str]) -> Result<Serve, Vec<String>> {
    stated(args).read()
}

fn stated(args: &[&str]) -> ServeArgs {
    let line = CommandLine::try_parse_from([&["canvas-scheduler", "serve"], args].concat())
        .expect("known flags");
    match line.command {
        Command::Serve(args) => args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_defaults_are_good() {
    let read = serve(&[]).expect("no fault");
    assert_eq!(
        (read.database_url.0.as_str(), read.grpc_addr.port()),
        (DATABASE_DEFAULT, 50051)
    );
    assert_eq!(
        read.roles,
        Roles {
            api: true,
            dispatcher: true
        }
    );
    assert_eq!(
        (read.lateness, read.horizon_days, read.drain),
        (Duration::from_secs(3600), 366, Duration::from_secs(20))
    );
}

#[test]
fn every_fault_is_told_at_once_with_its_flag_and_value() {
    let faults = serve(&[
        "--database-url=mysql://u:secret@h/d",
        "--grpc-addr=0.0.0.0:1",
        "--lateness=soon",
        "--commit-max=0",
        "--drain=-3s",
        "--cores=x",
        "--roles=api,sender",
    ])
    .expect_err("seven faults");
    for (flag, value) in [
        ("database-url", "postgres://"),
        ("grpc-addr", "0.0.0.0:1"),
        ("lateness", "soon"),
        ("commit-max", "1 to 1000"),
        ("roles", "api,sender"),
    ] {
        assert!(
            faults
                .iter()
                .any(|fault| fault.contains(flag) && fault.contains(value)),
            "{flag}: {faults:?}"
        );
    }
    assert_eq!(faults.len(), 7);
    assert!(!faults.concat().contains("secret"));
}

#[test]
fn sending_is_set_to_what_can_work() {
    let grpc = [
        "--sink=grpc",
        "--sink-url=http://127.0.0.1:1",
        "--sink-timeout=45s",
    ];
    for (args, needed) in [
        (&["--roles=dispatcher"][..], "--sink:"),
        (&grpc[..], "--sink-timeout"),
    ] {
        let faults = serve(args).expect_err("a fault");
        assert!(
            faults.len() == 1 && faults[0].contains(needed),
            "{faults:?}"
        );
    }
    assert!(serve(&[&grpc[..], &["--lease=61s", "--roles=dispatcher"]].concat()).is_ok());
}

#[test]
fn no_debug_print_shows_a_secret() {
    let sink = [
        "--sink=grpc",
        "--sink-url=http://hidden:1",
        "--sink-secret=hidden",
    ];
    let args = stated(&[&sink[..], &["--database-url=postgres://u:hidden@h/d"]].concat());
    let read = args.read().expect("no fault");
    for shown in [format!("{args:?}"), format!("{read:?}")] {
        assert!(
            shown.contains("50051") && !shown.contains("hidden"),
            "{shown}"
        );
    }
}

#[test]
fn the_command_line_is_well_formed() {
    use clap::CommandFactory;
    CommandLine::command().debug_assert();
}
