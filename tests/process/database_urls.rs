//! No output contains a part of a database URL except hosts, ports and the database.
//!
//! Every secret piece of a URL contains [`PIECES`]. Every command runs with every URL at trace
//! level, and all its output is searched.

use std::process::{Command, Stdio};

use super::database::{Database, Folder};
use super::postgres::process::Running;
use super::server::{Lines, command};

/// Found in no output.
const PIECES: [&str; 2] = ["qxzv", "wkjq"];
const URL: &str = "CANVAS_SCHEDULER_DATABASE_URL";
const URL_FILE: &str = "CANVAS_SCHEDULER_DATABASE_URL_FILE";

/// Every command that uses a database.
const COMMANDS: [&[&str]; 10] = [
    &["migrate"],
    &["serve", "--grpc-addr", "127.0.0.1:0", "--gateway", "off"],
    &["dev", "--grpc-addr", "127.0.0.1:0", "--gateway", "off"],
    &["backup", "copy.db"],
    &["api-key", "create", "--name", "n", "--permissions", "all"],
    &["api-key", "list"],
    &["api-key", "revoke", "cs_0000000000000000"],
    &["workspace", "create", "w"],
    &["workspace", "list"],
    &["workspace", "set", "default", "--sending", "on"],
];

/// URLs that no command accepts.
const MALFORMED: [&str; 26] = [
    "qxzv:wkjq@h/d",
    "mysql://u:qxzv@h/d",
    "Postgres://u:qxzv@h/d",
    "jdbc:postgresql://h/d?user=u&password=qxzv",
    "host=h user=u password=qxzv dbname=d",
    "postgres:qxzv:wkjq@h/d",
    "postgres:/qxzv:wkjq@h/d",
    "postgres://u:qxzv#wkjq@h/d",
    "postgres://u:qxzv/wkjq@h/d",
    "postgres://u:qxzv?wkjq@h/d",
    "postgres://u:qxzv?wkjq=qxzv@h/d",
    "postgres://u:qxzv@wkjq/qxzv@h/d",
    "postgres://u:12/wkjq@h/d",
    "postgres://u:qxzv%wkjq@h/d",
    "postgres://u:qxzv%ff@h/d",
    "postgres://u:qxzv\nwkjq@h/d",
    "postgres://qxzv:wkjq",
    "postgres://qxzv:wkjq/d",
    "postgres://qxzv:pw@h:wkjq/d",
    "postgres://qxzv:wkjq@h:0/d",
    "postgres://qxzv:wkjq@h/d?wkjq",
    "postgres://qxzv:wkjq@h/d?qxzv=wkjq",
    "postgres://h/d?sslmode=qxzv&port=wkjq&connect_timeout=qxzv&options=wkjq",
    "postgres://h/d?target_session_attrs=qxzv",
    "sqlite:?mode=qxzv&cache=wkjq",
    "sqlite://d?qxzv=wkjq",
];

/// Command lines with a URL, or libpq's other form, where none belongs.
const MISTYPED: [&[&str]; 30] = [
    &["URL"],
    &["migrate", "URL"],
    &["migrate", "--database-ur", "URL"],
    &["migrate", "--database-ur=URL"],
    &["migrate", "-dURL"],
    &["migrate", "--database-url", "sqlite:a", "URL"],
    &["migrate", "--database-url-file", "URL"],
    &["migrate", "--", "URL"],
    &["backup", "URL"],
    &["api-key", "URL"],
    &["api-key", "create", "URL"],
    &["api-key", "create", "--name", "URL"],
    &["api-key", "create", "--permissions", "URL"],
    &["api-key", "create", "--expires", "URL"],
    &["api-key", "create", "--allow", "URL"],
    &["api-key", "revoke", "URL"],
    &["workspace", "create", "URL"],
    &["workspace", "set", "URL", "--sending", "on"],
    &["workspace", "set", "default", "--sending", "URL"],
    &["workspace", "set", "--all=URL"],
    &["workspace", "set", "default", "--requests", "URL"],
    &["serve", "--grpc-addr", "URL"],
    &["serve", "--sink", "URL"],
    &["serve", "--sink-url", "URL", "--sink", "grpc"],
    &["serve", "--sink-ca-file", "URL"],
    &["serve", "--sink-secret-file", "URL"],
    &["serve", "--otlp-endpoint", "URL"],
    &["serve", "--trusted-proxies", "URL"],
    &["--log-level", "URL", "migrate"],
    &["--log-format=URL", "migrate"],
];

/// A command at trace level, whose URL comes from elsewhere.
fn traced(args: &[&str]) -> Command {
    command(&[args, &["--log-level", "trace"]].concat())
}

/// Fails if the output contains a piece, as text or as a list of bytes.
fn search(output: &[String], what: &str) {
    for piece in PIECES {
        let bytes: Vec<String> = piece.bytes().map(|byte| byte.to_string()).collect();
        for form in [piece.to_owned(), bytes.join(", ")] {
            let line = output.iter().find(|line| line.contains(&form));
            assert!(line.is_none(), "{what}: {line:?}");
        }
    }
}

/// A command in progress, and all its output.
pub(crate) struct CommandOutput {
    running: Running,
    lines: [Lines; 2],
}

impl CommandOutput {
    pub(crate) fn of(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut running = Running::start(command).unwrap();
        let child = running.child();
        let lines = [
            Lines::of_output(child.stdout.take().unwrap()),
            Lines::of_output(child.stderr.take().unwrap()),
        ];
        Self { running, lines }
    }

    /// Ends the command once a line of its log is as `wanted`, unless it ends before; returns all
    /// output.
    pub(crate) async fn until(mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        self.lines[1].first_or_end(wanted).await;
        self.running.signal("TERM");
        self.end().await
    }

    /// The same for a line of its output.
    async fn until_printed(mut self, text: &str) -> Vec<String> {
        self.lines[0].first_or_end(|line| line.contains(text)).await;
        self.running.signal("TERM");
        self.end().await
    }

    async fn end(self) -> Vec<String> {
        let [stdout, stderr] = &self.lines;
        [stdout.read_to_end().await, stderr.read_to_end().await].concat()
    }
}

/// Runs a command that must refuse its command line, and searches its output.
async fn refused(command: &mut Command, what: &str) {
    let output = CommandOutput::of(command);
    let lines = output.lines.clone();
    let all = output.end().await;
    search(&all, what);
    assert!(
        lines[0].all().is_empty() && !all.is_empty(),
        "{what}: {all:?}"
    );
}

#[tokio::test]
async fn malformed_urls_are_refused_and_not_shown() {
    let folder = Folder::new();
    let file = folder.path().join("url");
    let file = file.to_str().unwrap();
    for url in MALFORMED {
        std::fs::write(file, format!("{url}\n")).unwrap();
        for args in COMMANDS {
            let what = format!("{args:?} {url:?}");
            refused(traced(args).args(["--database-url", url]), &what).await;
            // The other ways are the same code for every command.
            if args == ["migrate"] {
                refused(traced(args).env(URL, url), &what).await;
                refused(traced(args).env(URL_FILE, file), &what).await;
                refused(traced(args).args(["--database-url-file", file]), &what).await;
            }
        }
    }
}

#[tokio::test]
async fn a_url_where_none_belongs_is_not_shown() {
    for args in MISTYPED {
        for url in [
            "postgres://u:qxzv@h/d",
            "postgresql://u:wkjq/qxzv@h/d",
            "host=h user=u password=qxzv",
        ] {
            let args: Vec<String> = args.iter().map(|arg| arg.replace("URL", url)).collect();
            let what = format!("{args:?}");
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            refused(&mut command(&args), &what).await;
        }
    }
    // A password with a space and no quotes.
    for args in [
        &["migrate", "--database-url", "postgres://u:qxzv", "wkjq@h/d"][..],
        &[
            "migrate",
            "--database-url",
            "postgres://u:12",
            "wkjq",
            "qxzv@h/d",
        ],
        &[
            "workspace",
            "create",
            "--database-url",
            "postgres://u:12",
            "wkjq@h/d",
        ],
        &[
            "workspace",
            "set",
            "--database-url",
            "postgres://u:12",
            "wkjq@h/d",
        ],
        &[
            "api-key",
            "revoke",
            "--database-url",
            "postgres://u:12",
            "wkjq@h/d",
        ],
    ] {
        refused(&mut command(args), &format!("{args:?}")).await;
    }
    let variables = [
        "PGPORT",
        "PGSSLMODE",
        "PGCONNECT_TIMEOUT",
        "PGOPTIONS",
        "PGHOSTADDR",
    ];
    for variable in variables {
        let mut migrate = traced(&["migrate", "--database-url", "postgres://"]);
        refused(migrate.env(variable, "qxzv wkjq"), variable).await;
    }
}

#[tokio::test]
async fn an_unreachable_server_is_named_without_the_rest_of_its_url() {
    let closed = super::postgres::ports::lasting().unwrap();
    let here = format!("127.0.0.1:{closed}");
    let login = "qxzv%2F:wkjq%40wkjq";
    let urls = [
        format!("postgres://{login}@{here}/d?sslmode=disable&options=-c%20a.b=qxzv"),
        format!("postgres://{login}@{here},localhost:{closed}/d?application_name=qxzv"),
        format!("postgresql://{login}@[::1]:{closed}/d?target_session_attrs=read-write"),
        format!("postgres://?host=/qxzv/wkjq,{here}&user=qxzv&password=wkjq&port={closed}"),
        format!("postgres://{login}@{here}/d?sslmode=verify-full&sslrootcert=/qxzv/wkjq"),
    ];
    // All at once: a command waits for its database.
    let mut running = Vec::new();
    for (url, args) in urls.iter().flat_map(|url| COMMANDS.map(|args| (url, args))) {
        let folder = Folder::new();
        let mut command = traced(args);
        command
            .args(["--database-url", url])
            .current_dir(folder.path());
        running.push((url, args, CommandOutput::of(&mut command), folder));
    }
    for (url, args, output, _folder) in running {
        let reported = |line: &str| {
            let at_level = line.contains("\"WARN\"") || line.contains("\"ERROR\"");
            line.starts_with("canvas-scheduler: ") || at_level && line.contains("database")
        };
        let all = output.until(reported).await;
        search(&all, &format!("{args:?} {url}"));
        assert!(!all.is_empty(), "{args:?} {url}");
    }
}

#[tokio::test]
async fn a_reachable_server_is_used_without_showing_the_url_postgres() {
    let Some(database) = Database::postgres_empty() else {
        return;
    };
    let Database::Postgres { server, name } = &database else {
        panic!("PostgreSQL expected")
    };
    server
        .psql(name, "CREATE ROLE qxzv SUPERUSER LOGIN PASSWORD 'wkjq'")
        .unwrap();
    let url = database.url().replace("postgres@", "qxzv:wkjq@")
        + "?options=-c%20search_path=wkjq,public&application_name=wkjq";
    for args in COMMANDS {
        let output = CommandOutput::of(traced(args).args(["--database-url", &url]));
        let all = match args[0] {
            "serve" => output.until(|line| line.contains("\"listening\"")).await,
            "dev" => output.until_printed("Ctrl-C").await,
            _ => output.end().await,
        };
        let worked = [
            "listening",
            "Ctrl-C",
            "level\":\"INFO",
            "NAME",
            "no key has",
            // The refusal to back up PostgreSQL.
            "use pg_dump",
        ];
        let worked = |line: &String| worked.iter().any(|text| line.contains(text));
        assert!(all.iter().any(worked), "{args:?}: {all:?}");
        search(&all, &format!("{args:?}"));
    }
}
