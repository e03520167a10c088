//! The output of `doctor`, and the messages of `serve` and `migrate` about the same causes, from the real binary.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::support::child::Serve;
use crate::support::fake_github::TestGithub;
use crate::support::fake_storage::{ANON_JWT, SECRET_KEY};
use crate::support::postgres::Postgres;
use crate::support::scenario;

const SECRET: &str = "5a1be11f0d8c4f6e9b2d7c3a604e8f19";

/// Nothing listens there.
const CLOSED: &str = "http://127.0.0.1:1";

type Env<'a> = &'a [(&'a str, &'a str)];

/// Exit code, standard output and standard error with these settings on top of those of embedded mode. An empty
/// value removes a setting.
fn run(args: &[&str], env: Env<'_>) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_video-ingest"));
    command.args(args).current_dir(dir.path()).env_clear();
    let base = [
        ("GITHUB_REPOSITORY", "octo/video-artifacts"),
        ("GITHUB_WEBHOOK_SECRET", SECRET),
        ("GITHUB_API_URL", CLOSED),
        ("ADMIN_TOKEN", "81e6ff4f4c0a4be18f9bdb1cf0f0a9a2"),
        ("LISTEN_ADDR", "127.0.0.1:1"),
    ];
    for (name, value) in base.iter().chain(env) {
        command.env(name, value);
    }
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn expect(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn the_first_line_of_an_invalid_configuration_says_what_to_do() {
    let supabase = |key| {
        [
            ("DATABASE_URL", "postgres://u:p@localhost/app"),
            ("SUPABASE_URL", "https://abc.supabase.co"),
            ("SUPABASE_SERVICE_ROLE_KEY", key),
        ]
    };
    let cases: &[(Env<'_>, &[&str])] = &[
        (
            &supabase("sb_publishable_0123456789abcdef"),
            &[
                "SUPABASE_SERVICE_ROLE_KEY contains the publishable key",
                "secret key",
            ],
        ),
        (
            &supabase(ANON_JWT),
            &[
                "SUPABASE_SERVICE_ROLE_KEY contains the `anon` key",
                "secret key",
            ],
        ),
        (
            &[
                ("STORE", "folder"),
                (
                    "DATABASE_URL",
                    "postgres://u:12/34hunter2@db.example.org/app",
                ),
            ],
            &["DATABASE_URL", "percent-encoded"],
        ),
        (
            &[
                ("GITHUB_WEBHOOK_SECRET", ""),
                ("GITHUB_WEBHOOKSECRET", SECRET),
            ],
            &[
                "GITHUB_WEBHOOK_SECRET must be set",
                "GITHUB_WEBHOOKSECRET is set",
                "rename it",
            ],
        ),
        (
            &[
                ("DATABASE_URL", "postgres://u:p@localhost/app"),
                ("SUPABASE_URL", "https://abc.supabase.co"),
                ("SUPABASE_SERVICE_KEY", SECRET_KEY),
            ],
            &[
                "SUPABASE_SERVICE_ROLE_KEY is missing",
                "SUPABASE_SERVICE_KEY is set",
                "rename it",
            ],
        ),
    ];
    for (env, says) in cases {
        let (code, text, _) = run(&["doctor"], env);
        assert_eq!(code, Some(2), "{text}");
        let first = text.lines().next().unwrap();
        assert!(first.starts_with("✗ settings"), "{text}");
        expect(first, says);
        assert!(
            !text.contains("hunter2") && !text.contains(SECRET),
            "{text}"
        );
    }
}

#[test]
fn problems_come_first_and_the_summary_last() {
    let env = [("WORKERS", "0"), ("GITHUB_TOKN", "x")];
    let (code, text, _) = run(&["doctor"], &env);
    assert_eq!(code, Some(1), "{text}");
    let marks: Vec<_> = text
        .lines()
        .filter_map(|line| line.chars().next())
        .collect();
    // A misspelt setting can be the cause of the failures, so it is the first.
    assert_eq!(
        marks,
        ['!', '✗', '!', '!', '✓', ' ', ' ', ' ', '1'],
        "{text}"
    );
    expect(&text, &["✗ github.api", "disk: write, space\n"]);
    let last = text.lines().last().unwrap();
    assert_eq!(
        last,
        "1 check failed (✗); 3 warnings (!). Checks that depend on a failed check were skipped."
    );

    let (_, json, _) = run(&["doctor", "--json"], &env);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let findings = json["findings"].as_array().unwrap();
    assert_eq!(findings[0]["id"], "settings.unknown");
    assert!(
        findings
            .iter()
            .all(|finding| finding["mark"].is_string() && finding["text"].is_string())
    );
}

#[test]
fn colors_are_for_terminals_only() {
    let (_, text, _) = run(&["doctor"], &[]);
    assert!(!text.contains('\x1b'), "{text}");
    // As on a terminal.
    let forced = [("CLICOLOR_FORCE", "1")];
    let (_, text, _) = run(&["doctor"], &forced);
    assert!(text.starts_with("\x1b[31m✗ github.api"), "{text:?}");
    let (_, text, _) = run(&["doctor"], &[forced[0], ("NO_COLOR", "1")]);
    assert!(!text.contains('\x1b'), "{text}");
}

/// An HTTPS server with the certificate of the tests' Postgres, which an authority issued for 127.0.0.1.
struct Https {
    child: Child,
    port: String,
}

impl Https {
    fn start(postgres: &Postgres) -> Self {
        let file = |name| postgres.dir.join("data").join(name);
        let mut child = Command::new("openssl")
            .args(["s_server", "-www", "-accept", "127.0.0.1:0"])
            .arg("-cert")
            .arg(file("server.crt"))
            .arg("-key")
            .arg(file("server.key"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port =
            lines.find_map(|line| Some(line.ok()?.strip_prefix("ACCEPT 127.0.0.1:")?.to_owned()));
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            port: port.unwrap(),
        }
    }
}

impl Drop for Https {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_wrong_certificate_at_the_public_address_is_named() {
    let postgres = Postgres::shared();
    let https = Https::start(postgres);
    let ca = postgres.authority("ca.pem");
    let trusted = [("SSL_CERT_FILE", ca.to_str().unwrap())];
    let cases: [(&str, Env<'_>, &[&str]); 2] = [
        (
            "127.0.0.1",
            &[],
            &["authority", "does not trust", "Let's Encrypt"],
        ),
        (
            "localhost",
            &trusted,
            &[
                "issued for another host name",
                "Install a valid certificate",
            ],
        ),
    ];
    for (host, env, says) in cases {
        let url = format!("https://{host}:{}", https.port);
        let (code, text, _) = run(&["doctor", "--url", &url], env);
        assert_eq!(code, Some(1), "{text}");
        let first = text.lines().next().unwrap();
        expect(first, &["✗ hook.reach"]);
        expect(first, says);
    }
}

#[test]
fn serve_and_migrate_name_the_cause_and_the_cure() {
    let postgres = Postgres::shared();
    let refused = format!("postgres://u@{}/app", CLOSED.trim_start_matches("http://"));
    let unknown = postgres.url("nobody", "postgres");
    for (command, url, says) in [
        (
            "serve",
            &unknown,
            "the role does not exist. Run deploy/supabase/role.sql",
        ),
        (
            "migrate",
            &unknown,
            "the role does not exist. Run deploy/supabase/role.sql",
        ),
        ("migrate", &refused, "the connection was refused"),
    ] {
        let listen = ("LISTEN_ADDR", "127.0.0.1:0");
        let env = [("STORE", "folder"), ("DATABASE_URL", url), listen];
        let (code, _, text) = run(&[command], &env);
        assert_eq!(code, Some(1), "{text}");
        expect(
            &text,
            &["Cannot connect to the database at DATABASE_URL: ", says],
        );
    }
}

#[test]
fn serve_warns_about_a_misspelt_setting() {
    let listen = ("LISTEN_ADDR", "192.0.2.1:1");
    let (_, _, text) = run(&["serve"], &[("RECONCILE_INTERVALL", "1m"), listen]);
    expect(
        &text,
        &["RECONCILE_INTERVALL is not a setting", "RECONCILE_INTERVAL"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_problems_of_the_running_server_are_shown() {
    let github = TestGithub::start("octo/renamed").await;
    let settings = [
        ("GITHUB_REPOSITORY", "octo/video-artifacts"),
        ("GITHUB_WEBHOOK_SECRET", scenario::SECRET),
        ("GITHUB_API_URL", CLOSED),
        ("ADMIN_TOKEN", scenario::ADMIN_TOKEN),
        ("RECONCILE_INTERVAL", "0"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let server = Serve::start(dir.path(), &settings);
    let settings = [&settings[..], &[("LISTEN_ADDR", server.address())]].concat();
    let (_, text, _) = run(&["doctor"], &settings);
    expect(&text, &["server: problems"]);

    let push = github.push(github.head(), github.head());
    let client = reqwest::Client::new();
    assert_eq!(server.deliver(&client, &push).await, Some(200));
    let (_, text, _) = run(&["doctor"], &settings);
    expect(
        &text,
        &["✗ server.problems", "octo/renamed", "set GITHUB_REPOSITORY"],
    );

    let other = [
        &settings[..],
        &[("ADMIN_TOKEN", "another-token-than-that-of-the-server")],
    ];
    let (_, text, _) = run(&["doctor"], &other.concat());
    expect(&text, &["! server.problems", "rejected ADMIN_TOKEN"]);
}
