//! A standard output that is closed, full, or a pipe without a reader: no panic, and no active key
//! that was not shown.

use std::fs::File;
use std::process::{Command, Stdio};

use super::database::{Database, Folder, test_name};
use super::postgres::process::{Running, run};
use super::server::{Lines, PATIENCE, command};

/// An output that takes nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    Closed,
    Full,
    Unread,
    Discarded,
}

const ALL: [Broken; 4] = [
    Broken::Closed,
    Broken::Full,
    Broken::Unread,
    Broken::Discarded,
];

/// Runs the binary with this output. Returns whether it succeeded, and its errors.
fn run_with(output: Broken, args: &[&str]) -> (bool, String) {
    let mut line = command(args);
    match output {
        // A shell closes it, since `Command` cannot.
        Broken::Closed => {
            let mut shell = Command::new("sh");
            shell
                .env_clear()
                .args(["-c", "exec \"$@\" >&-", "sh"])
                .arg(line.get_program())
                .args(line.get_args());
            line = shell;
        }
        Broken::Full => {
            let full = File::options().write(true).open("/dev/full").unwrap();
            line.stdout(full);
        }
        Broken::Unread => {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            line.stdout(writer);
        }
        Broken::Discarded => {
            line.stdout(Stdio::null());
        }
    }
    let folder = Folder::new();
    let errors = folder.path().join("errors");
    line.stderr(File::create(&errors).unwrap());
    let ended = Running::start(&mut line).unwrap().wait(PATIENCE);
    let errors = std::fs::read_to_string(&errors).unwrap();
    let status = ended.unwrap_or_else(|| panic!("{output:?} {args:?} does not end: {errors}"));
    let what = format!("{output:?} {args:?}: {status} {errors}");
    assert!(!errors.contains("panicked"), "{what}");
    assert!(status.code().is_some_and(|code| code < 3), "{what}");
    (status.success(), errors)
}

/// The rows of `api-key list`.
fn keys(url: &str) -> Vec<String> {
    let list = ["api-key", "list", "--database-url", url];
    let list = run(&mut command(&list), PATIENCE).unwrap();
    list.lines().skip(1).map(str::to_owned).collect()
}

fn create(url: &str) -> [&str; 8] {
    [
        "api-key",
        "create",
        "--name",
        "n",
        "--permissions",
        "all",
        "--database-url",
        url,
    ]
}

#[test]
fn a_key_that_cannot_be_printed_is_not_created_sqlite() {
    not_created(&Database::sqlite());
}

#[test]
fn a_key_that_cannot_be_printed_is_not_created_postgres() {
    let Some(database) = Database::postgres() else {
        return;
    };
    not_created(&database);
}

fn not_created(database: &Database) {
    let url = database.url();
    for output in ALL {
        let (succeeded, errors) = run_with(output, &create(&url));
        assert!(!succeeded, "{output:?}: {errors}");
        assert!(errors.contains("standard output"), "{output:?}: {errors}");
        assert_eq!(keys(&url), Vec::<String>::new(), "{output:?}");
    }
    let printed = run(&mut command(&create(&url)), PATIENCE).unwrap();
    assert!(keys(&url)[0].starts_with(&printed[..19]), "{printed}");
    // The key is checked before it is printed.
    let folder = Folder::new();
    let output = folder.path().join("output");
    let mut again = command(&create(&url));
    again.stdout(File::create(&output).unwrap());
    let mut again = Running::start(again.stderr(Stdio::null())).unwrap();
    assert!(!again.wait(PATIENCE).expect("it ends").success());
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "");
}

#[test]
fn a_key_is_inactive_when_the_process_is_killed_at_its_output() {
    let traces = Command::new("strace").arg("true").output();
    if !traces.is_ok_and(|traced| traced.status.success()) {
        println!("skipped: {} needs strace", test_name());
        return;
    }
    let database = Database::sqlite();
    let url = database.url();
    let folder = Folder::new();
    let output = folder.path().join("output");
    let line = command(&create(&url));
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-e", "trace=write"])
        .args(["-e", "inject=write:signal=KILL", "-P"])
        .arg(&output)
        .arg(line.get_program())
        .args(line.get_args())
        .stdout(File::create(&output).unwrap())
        .stderr(Stdio::null());
    let mut killed = Running::start(&mut strace).unwrap();
    let status = killed.wait(PATIENCE).expect("it ends");
    assert!(!status.success(), "{status}");
    assert_eq!(keys(&url), Vec::<String>::new());
}

#[test]
fn commands_that_print_fail_without_a_panic() {
    let database = Database::sqlite();
    let url = database.url();
    for output in ALL {
        let fails = [Broken::Full, Broken::Unread].contains(&output);
        for args in [
            &["api-key", "list", "--database-url", &url][..],
            &["workspace", "list", "--database-url", &url],
            &["--help"],
            &["serve", "--help"],
            &["--version"],
        ] {
            let (succeeded, errors) = run_with(output, args);
            assert_eq!(succeeded, !fails, "{output:?} {args:?}: {errors}");
        }
        let (succeeded, _) = run_with(output, &["healthcheck", "--grpc-addr", "127.0.0.1:1"]);
        assert!(!succeeded, "no server listens");
    }
}

#[test]
fn dev_ends_without_a_key_when_its_output_is_broken() {
    for output in ALL {
        let folder = Folder::new();
        let url = format!(
            "sqlite://{}?mode=rwc",
            folder.path().join("dev.db").display()
        );
        let ports = [
            "--grpc-addr",
            "127.0.0.1:0",
            "--gateway-addr",
            "127.0.0.1:0",
        ];
        // Also where the command is a shell's, without the settings of `command`.
        let admin = ["--admin-addr", "127.0.0.1:0", "--database-url", &url];
        let (succeeded, errors) = run_with(output, &[&["dev"][..], &ports, &admin].concat());
        assert!(
            !succeeded && errors.contains("standard output"),
            "{output:?}: {errors}"
        );
        run(&mut command(&["migrate", "--database-url", &url]), PATIENCE).unwrap();
        assert_eq!(keys(&url), Vec::<String>::new(), "{output:?}");
    }
}

#[tokio::test]
async fn a_server_goes_on_while_its_log_cannot_be_written() {
    let folder = Folder::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let ports = [
        "--grpc-addr",
        "127.0.0.1:0",
        "--gateway-addr",
        "127.0.0.1:0",
    ];
    let mut dev = command(&[&["dev", "--log-level", "trace"][..], &ports].concat());
    let dev = dev.current_dir(folder.path()).stdout(Stdio::piped());
    let mut running = Running::start(dev.stderr(full)).unwrap();
    let screen = Lines::of_output(running.child().stdout.take().unwrap());
    screen
        .first(|line| line.contains("Ctrl-C").then_some(()))
        .await;
    let status = running.stop("INT", PATIENCE).unwrap();
    assert!(status.success(), "{status}");

    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut invalid = command(&["migrate", "--database-url", "invalid"]);
    let mut invalid = Running::start(invalid.stderr(full)).unwrap();
    assert_eq!(invalid.wait(PATIENCE).expect("it ends").code(), Some(1));
}
