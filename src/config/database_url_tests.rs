use std::path::Path;
use std::time::Duration;

use super::*;
use crate::config::Secret;

fn postgres(text: &str) -> PostgresUrl {
    match DatabaseUrl::parse(text) {
        Ok(DatabaseUrl::Postgres(url)) => url,
        other => panic!("{text}: {other:?}"),
    }
}

fn sqlite(text: &str) -> SqliteUrl {
    match DatabaseUrl::parse(text) {
        Ok(DatabaseUrl::Sqlite(url)) => url,
        other => panic!("{text}: {other:?}"),
    }
}

fn tcp(name: &str, port: u16) -> Host {
    Host::Tcp {
        name: name.to_owned(),
        port,
    }
}

#[test]
fn hosts_are_names_addresses_and_sockets() {
    let socket = Host::Socket {
        folder: "/run/pg".into(),
        port: 5433,
    };
    let table = [
        ("postgres://db.example/d", vec![tcp("db.example", 5432)]),
        ("postgresql://u@192.0.2.7:1/d", vec![tcp("192.0.2.7", 1)]),
        ("postgres://u:p@[::1]/d", vec![tcp("::1", 5432)]),
        (
            "postgres://[2001:db8::1]:65535",
            vec![tcp("2001:db8::1", 65535)],
        ),
        (
            "postgres://[fe80::1%25eth0]:5433/d",
            vec![tcp("fe80::1%eth0", 5433)],
        ),
        (
            "postgres://u@a:1,b,[::1]:3/d",
            vec![tcp("a", 1), tcp("b", 5432), tcp("::1", 3)],
        ),
        ("postgres://u@a,b/d?port=7", vec![tcp("a", 7), tcp("b", 7)]),
        (
            "postgres:///d?host=a,::1&port=1,2",
            vec![tcp("a", 1), tcp("::1", 2)],
        ),
        (
            "postgres://a/d?hostaddr=192.0.2.7",
            vec![tcp("192.0.2.7", 5432)],
        ),
        ("postgres://%2Frun%2Fpg:5433/d", vec![socket.clone()]),
        ("postgres:///d?host=/run/pg&port=5433", vec![socket.clone()]),
        (
            "postgres://u@/d?host=%2Frun%2Fpg,b&port=5433",
            vec![socket, tcp("b", 5433)],
        ),
    ];
    for (text, hosts) in table {
        assert_eq!(postgres(text).hosts, hosts, "{text}");
    }
}

#[test]
fn a_missing_host_is_this_machine() {
    for text in [
        "postgres://",
        "postgres:///d",
        "postgres://u:p@:1/d",
        "postgres://?sslmode=allow",
    ] {
        let hosts = postgres(text).hosts;
        let here = match &hosts[..] {
            [Host::Tcp { name, .. }] => name == "localhost",
            [Host::Socket { folder, port }] => folder.join(format!(".s.PGSQL.{port}")).exists(),
            _ => false,
        };
        assert!(here, "{text}: {hosts:?}");
    }
}

#[test]
fn every_part_may_be_percent_encoded() {
    let url =
        postgres(" postgres://u%40x:p%2Fa%3As%23s%3f%25@h%2Dx/d%20b?application_name=%C3%A4+\n");
    assert_eq!(url.user.as_deref(), Some("u@x"));
    assert_eq!(url.password, Some(Secret("p/a:s#s?%".to_owned())));
    assert_eq!(url.hosts, [tcp("h-x", 5432)]);
    assert_eq!(url.database.as_deref(), Some("d b"));
    assert_eq!(url.application_name.as_deref(), Some("ä+"));
}

#[test]
fn a_password_may_contain_what_cannot_be_mistaken() {
    for (text, password) in [
        ("postgres://u:a:b@h/d", "a:b"),
        ("postgres://u:a@b@h/d", "a@b"),
        ("postgres://u:a,b [c]&d=e@h/d", "a,b [c]&d=e"),
        ("postgres://u@h/d?password=a", "a"),
        ("postgres://u:a@h/d?password=b", "b"),
    ] {
        assert_eq!(
            postgres(text).password,
            Some(Secret(password.to_owned())),
            "{text}"
        );
        assert_eq!(postgres(text).user.as_deref(), Some("u"), "{text}");
    }
    assert_eq!(postgres("postgres://u:@h").password, None);
}

#[test]
fn parameters_have_the_names_of_libpq() {
    let url = postgres(
        "postgres://h?user=u&dbname=d&sslmode=verify-full&sslrootcert=/ca&sslcert=c&sslkey=k\
         &target_session_attrs=primary&connect_timeout=3&application_name=app\
         &options=-c%20search_path=a%5C%20b%20--work-mem=1MB&options[jit]=off&",
    );
    assert_eq!(
        (url.user.as_deref(), url.database.as_deref()),
        (Some("u"), Some("d"))
    );
    assert_eq!(url.ssl_mode, SslMode::VerifyFull);
    assert_eq!(url.ssl_root_cert.as_deref(), Some(Path::new("/ca")));
    assert_eq!(url.ssl_cert.as_deref(), Some(Path::new("c")));
    assert_eq!(url.ssl_key.as_deref(), Some(Path::new("k")));
    assert_eq!(url.connect_timeout, Some(Duration::from_secs(3)));
    assert_eq!(url.application_name.as_deref(), Some("app"));
    let settings = [("jit", "off"), ("search_path", "a b"), ("work_mem", "1MB")];
    assert_eq!(
        url.settings,
        settings.map(|(name, value)| (name.to_owned(), value.to_owned()))
    );

    let url = postgres(
        "postgres://h?ssl-mode=disable&ssl-ca=x&target_session_attrs=any&connect_timeout=0",
    );
    assert_eq!(
        (url.ssl_mode, url.connect_timeout),
        (SslMode::Disable, None)
    );
    assert_eq!(url.ssl_root_cert.as_deref(), Some(Path::new("x")));
    let url = postgres("postgres://h");
    assert_eq!(
        (url.user, url.password, url.database, url.ssl_mode),
        (None, None, None, SslMode::Prefer)
    );
}

#[test]
fn variables_complete_a_url_and_override_nothing() {
    let variable = |name| match name {
        "PGHOST" => Some("ignored".to_owned()),
        "PGPORT" => Some("5433".to_owned()),
        "PGPASSWORD" => Some("p@ss/w:rd#%".to_owned()),
        "PGUSER" => Some("other".to_owned()),
        _ => None,
    };
    let Ok(DatabaseUrl::Postgres(url)) = DatabaseUrl::parse_with("postgres://u@h/d", variable)
    else {
        panic!("rejected")
    };
    assert_eq!(
        (url.user.as_deref(), &url.hosts[..]),
        (Some("u"), &[tcp("h", 5433)][..])
    );
    assert_eq!(url.password, Some(Secret("p@ss/w:rd#%".to_owned())));
    let port = |name| (name == "PGPORT").then(|| "secret".to_owned());
    let error = DatabaseUrl::parse_with("postgres://u@h/d", port).expect_err("no port");
    assert!(
        error.contains("has a port") && !error.contains("secret"),
        "{error}"
    );
}

#[test]
fn a_file_of_sqlite_has_a_mode() {
    let file = |path: &str| Some(path.into());
    let table = [
        ("sqlite://a.db?mode=rwc", file("a.db"), true, false),
        ("sqlite:a.db", file("a.db"), false, false),
        ("sqlite:a.db?mode=rw", file("a.db"), false, false),
        (
            "sqlite:///x/a%23%3F.db?mode=rwc&cache=shared",
            file("/x/a#?.db"),
            true,
            true,
        ),
        ("sqlite::memory:", None, false, true),
        ("sqlite://:memory:", None, false, true),
        ("sqlite://?mode=memory", None, false, true),
        ("sqlite://?mode=memory&cache=private", None, false, false),
    ];
    for (text, file, create, shared_cache) in table {
        let url = sqlite(text);
        assert_eq!(
            (url.file, url.create, url.shared_cache),
            (file, create, shared_cache),
            "{text}"
        );
    }
    assert_eq!(
        sqlite("sqlite:a?vfs=unix-excl").vfs.as_deref(),
        Some("unix-excl")
    );
    assert_eq!(
        DatabaseUrl::parse("sqlite://canvas-scheduler.db?mode=rwc"),
        Ok(DatabaseUrl::default())
    );
}

/// Malformed URLs, each with what its error says.
const MALFORMED: [(&str, &[&str]); 43] = [
    ("", &["does not begin with postgres:// or sqlite:"]),
    (
        "u:hunter7@h/d",
        &["does not begin with postgres:// or sqlite:"],
    ),
    (
        "mysql://u:hunter7@h/d",
        &["does not begin with postgres:// or sqlite:"],
    ),
    (
        "Postgres://u:hunter7@h/d",
        &["does not begin with postgres:// or sqlite:"],
    ),
    ("host=h user=u password=hunter7", &["keyword=value"]),
    ("postgres:u:hunter7@h/d", &["no // after postgres:"]),
    ("postgres:/u:hunter7@h/d", &["no // after postgres:"]),
    ("jdbc:postgresql://h/d?password=hunter7", &["remove jdbc:"]),
    ("postgres://u:hun#ter7@h/d", &["unescaped #", "%23"]),
    ("postgres://u:hun/ter7@h/d", &["unescaped / or ?", "%2F"]),
    ("postgres://u:12/hunter7@h/d", &["unescaped / or ?", "%2F"]),
    ("postgres://u:hun?ter7@h/d", &["unescaped / or ?", "%3F"]),
    ("postgres://u:hu@nt/er7@h/d", &["unescaped / or ?", "%2F"]),
    (
        "postgres://u:hu@nt:12/er7@h/d",
        &["unescaped / or ?", "%2F"],
    ),
    (
        "postgres://u:pa?hunter7=word@h/d",
        &["unescaped / or ?", "%3F"],
    ),
    (
        "postgres://h/d?password=hun@ter7",
        &["unescaped / or ?", "%40"],
    ),
    (
        "postgres://u:hunter7",
        &["a port that is not a number from 1 to 65535", "%2F"],
    ),
    ("postgres://u:hunter7/d", &["a port that is not a number"]),
    (
        "postgres://u:hunter7?x=y",
        &["a port that is not a number", "an unknown parameter"],
    ),
    ("postgres://u:p@h:0/d", &["a port that is not a number"]),
    ("postgres://u:p@h:65536/d", &["a port that is not a number"]),
    (
        "postgres://u:p@h:hunter7,i:1/d",
        &["a port that is not a number"],
    ),
    (
        "postgres://u:p@h/d?port=hunter7",
        &["a port that is not a number"],
    ),
    ("postgres://u:p@::1/d", &["several :", "[::1]"]),
    ("postgres://u:p@[::1/d", &["does not begin an address"]),
    (
        "postgres://u:p@[::1]hunter7/d",
        &["does not begin an address"],
    ),
    (
        "postgres://u:p@[hunter7 word]/d",
        &["a host that is not a name"],
    ),
    ("postgres://u:p@hun ter7/d", &["a host that is not a name"]),
    (
        "postgres:///d?host=a,b&port=1,2,3",
        &["another number of ports"],
    ),
    (
        "postgres:///d?hostaddr=hunter7",
        &["a hostaddr that is not an IP address"],
    ),
    (
        "postgres://u:hunter7%@h/d",
        &["a % without two hex digits", "%25"],
    ),
    (
        "postgres://u:hunter7%zz@h/d",
        &["a % without two hex digits"],
    ),
    ("postgres://u:hunter7%ff@h/d", &["not UTF-8"]),
    ("postgres://u:hunter7%00@h/d", &["a control character"]),
    ("postgres://u:hun\nter7@h/d", &["a control character"]),
    ("postgres://h/d?hunter7", &["a parameter without a value"]),
    (
        "postgres://u:p@h/d?hunter7=hunter7",
        &["an unknown parameter", "sslmode", "%26"],
    ),
    (
        "postgres://h/d?sslmode=hunter7&connect_timeout=hunter7&options=hunter7",
        &["an unknown sslmode", "a connect_timeout", "-c name=value"],
    ),
    (
        "postgres://h/d?target_session_attrs=prefer-standby",
        &["may lead to a standby", "read-write"],
    ),
    (
        "postgres://h/d?target_session_attrs=hunter7",
        &["an unknown target_session_attrs"],
    ),
    (
        "postgres://u:hun#ter7@h:x/d%?sslmode=x",
        &["unescaped #", "a port", "a %", "sslmode"],
    ),
    ("sqlite://hunter7?mode=ro", &["mode=ro", "writes"]),
    (
        "sqlite:?mode=hunter7&cache=hunter7&immutable=1&hunter7=hunter7",
        &[
            "unknown mode",
            "unknown cache",
            "immutable",
            "unknown parameter",
            "names no file",
        ],
    ),
];

#[test]
fn an_error_says_all_that_is_wrong_and_contains_no_part_of_the_url() {
    for (text, expected) in MALFORMED {
        let error = DatabaseUrl::parse(text).expect_err(text);
        for expected in expected {
            assert!(error.contains(expected), "{text}: {error}");
        }
        for piece in ["hun", "ter7", "er7", "hu@", "u:", "@h/"] {
            assert!(!error.contains(piece), "{text}: {error}");
        }
    }
}

#[test]
fn output_shows_only_hosts_ports_and_the_database() {
    for (text, shown) in [
        (
            "postgres://hidden:hidden@a:1,[::1]/d?sslkey=hidden&application_name=hidden&options=-c%20hidden=1",
            "postgres://a:1,[::1]:5432/d",
        ),
        ("postgres://hidden@%2Frun%2Fpg", "postgres:///run/pg:5432"),
        ("sqlite://a.db?mode=rwc&vfs=hidden", "sqlite://a.db"),
        ("sqlite::memory:", "sqlite::memory:"),
    ] {
        let url = DatabaseUrl::parse(text).expect(text);
        let debug = match &url {
            DatabaseUrl::Postgres(url) => format!("{url:?}"),
            DatabaseUrl::Sqlite(url) => format!("{url:?}"),
        };
        assert_eq!(
            [url.to_string(), format!("{url:?}"), debug],
            [shown; 3],
            "{text}"
        );
    }
}
