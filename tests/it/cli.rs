//! The built program: the demo, the commands for a running server, their exit codes and error messages.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use clap::Command as Clap;
use video_ingest::cli;

pub const GOOD: &[u8] = include_bytes!("../../fixtures/videos/good.mp4");
pub const KEY: &str = "34b9a0c7-62d7-4002-a642-00488b2c7f7c_0beee2d2-ace7-4ccf-81a7-41a6c43c1a75";

/// The program in its own folder, with settings that break every command that reads them.
pub fn program(dir: &Path, args: &[&str]) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the demo needs git of PATH")]
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut command = Command::new(env!("CARGO_BIN_EXE_video-ingest"));
    command
        .args(args)
        .current_dir(dir)
        .env_clear()
        .env("PATH", path)
        .env("TMPDIR", dir)
        .env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing")
        .env("GITHUB_REPOSITORY", "not a repository");
    command
}

pub fn run(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    ended(&program(dir, args).output().unwrap())
}

pub fn ended(output: &Output) -> (Option<i32>, String) {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text += &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[track_caller]
pub fn expect(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

/// A running demo, with its URL and admin token.
struct Demo {
    child: Child,
    url: String,
    token: String,
}

impl Demo {
    fn start(dir: &Path) -> Self {
        let mut command = program(dir, &["demo", "--still"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut url, mut token) = (String::new(), String::new());
        for line in lines.map(Result::unwrap) {
            match line.trim().split_once("  ") {
                Some(("server", value)) => url = value.trim().to_owned(),
                Some(("admin token", value)) => token = value.trim().to_owned(),
                _ => {}
            }
            // The last line.
            if line.contains("videos list --url") {
                break;
            }
        }
        Self { child, url, token }
    }

    fn ask(&self, dir: &Path, args: &[&str]) -> (Option<i32>, String) {
        let mut command = program(dir, args);
        command
            .args(["--url", &self.url])
            .env("ADMIN_TOKEN", &self.token);
        ended(&command.output().unwrap())
    }

    fn interrupt(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-INT", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.child.wait().unwrap().code()
    }
}

impl Drop for Demo {
    /// A test that fails leaves no server behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_demo_succeeds_and_reads_no_settings() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(".env"), "this is = no .env\n").unwrap();
    let (code, text) = run(dir.path(), &["demo", "--exit"]);
    assert_eq!(code, Some(0), "{text}");
    expect(
        &text,
        &[
            "generating",
            "202",
            "ready",
            "of the pushed bytes",
            "truncated",
            "render the video again",
        ],
    );
    assert!(!text.contains('\x1b'), "no colours in a pipe");
    let stored = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("stored  "));
    assert_eq!(std::fs::read(stored.unwrap()).unwrap(), GOOD);
}

#[test]
fn a_local_repository_is_ingested_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("artifacts");
    std::fs::create_dir_all(repo.join("videos")).unwrap();
    std::fs::write(repo.join(format!("videos/{KEY}.mp4")), GOOD).unwrap();
    commit_all(&repo);
    let demo = ["demo", "--exit", "--repo", "artifacts"];
    let (code, text) = run(dir.path(), &demo);
    assert_eq!(code, Some(0), "{text}");
    expect(
        &text,
        &[
            "duration_ms 1500",
            "160 × 90",
            "of the repository's bytes",
            "1 of 1 video(s)",
        ],
    );

    let bad = KEY.replace("0beee2d2", "1beee2d2");
    std::fs::write(repo.join(format!("videos/{bad}.mp4")), &GOOD[..9000]).unwrap();
    commit_all(&repo);
    let (code, text) = run(dir.path(), &demo);
    assert_eq!(code, Some(1), "{text}");
    expect(
        &text,
        &[
            "1 of 2 video(s)",
            "truncated: ",
            "1 of 2 videos are not ready",
        ],
    );
}

pub fn commit_all(repo: &Path) {
    for args in [
        &["init", "-q"][..],
        &["add", "-A"],
        &["commit", "-q", "-m", "Add videos"],
    ] {
        let mut git = Command::new("git");
        git.arg("-C").arg(repo);
        git.args([
            "-c",
            "user.name=agent",
            "-c",
            "user.email=agent@example.org",
        ]);
        assert!(git.args(args).status().unwrap().success());
    }
}

#[test]
fn a_running_server_is_queried_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let demo = Demo::start(dir.path());

    let (code, text) = demo.ask(dir.path(), &["videos", "list"]);
    assert_eq!(code, Some(0), "{text}");
    expect(&text, &["VIDEO", "ready", "12.5 kB, 0:02", "truncated"]);

    let (_, text) = demo.ask(
        dir.path(),
        &["videos", "list", "--state", "failed", "--json"],
    );
    let list: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(list["videos"].as_array().unwrap().len(), 1);
    let id = list["videos"][0]["video_id"].as_str().unwrap();

    let (code, text) = demo.ask(
        dir.path(),
        &["videos", "show", &format!("videos/x_{id}.mp4")],
    );
    assert_eq!(code, Some(0), "{text}");
    expect(&text, &[id, "what to do    Render", "listed", "delivery"]);

    // The failure is older than the sweep.
    let (code, text) = demo.ask(dir.path(), &["reconcile"]);
    assert_eq!(code, Some(0), "{text}");
    let parts = [
        "1 video(s) failed earlier.",
        "Needs attention",
        id,
        "render the video again",
    ];
    expect(&text, &parts);
    assert!(!text.contains('→'), "the advice is in the message:\n{text}");
    let (code, text) = demo.ask(dir.path(), &["reconcile", "--json", "--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&report["checked"], &report["failed"]),
        (&1.into(), &1.into())
    );

    let (code, text) = demo.ask(dir.path(), &["videos", "retry", id]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = demo.ask(dir.path(), &["videos", "show", KEY]);
    assert_eq!(code, Some(1), "{text}");
    expect(&text, &["has no video"]);
    assert_eq!(demo.interrupt(), Some(0));
}

#[test]
fn errors_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (code, text) = run(dir.path(), &["videos", "list"]);
    assert_eq!(code, Some(2), "{text}");
    expect(&text, &["ADMIN_TOKEN must be set"]);

    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut nowhere = program(dir.path(), &["reconcile"]);
    nowhere.env("LISTEN_ADDR", free.to_string());
    nowhere.env("ADMIN_TOKEN", "0123456789abcdef");
    let (code, text) = ended(&nowhere.output().unwrap());
    assert_eq!(code, Some(1), "{text}");
    expect(
        &text,
        &["No server is responding", "video-ingest serve", "--url"],
    );

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut second = program(dir.path(), &["serve"]);
    second
        .env("LISTEN_ADDR", taken.local_addr().unwrap().to_string())
        .env("GITHUB_REPOSITORY", "acme/videos")
        .env("GITHUB_WEBHOOK_SECRET", "5f1d7c0a9b3e4862a0c4d8e7f6b5a493")
        .env_remove("DATABASE_URL");
    let (code, text) = ended(&second.output().unwrap());
    assert_eq!(code, Some(1), "{text}");
    expect(
        &text,
        &[
            "Cannot listen on",
            "Another process uses this address",
            "--listen-addr",
        ],
    );

    let mut demo = Demo::start(dir.path());
    let token = std::mem::replace(&mut demo.token, "another-token-than-its-own".to_owned());
    let (code, text) = demo.ask(dir.path(), &["videos", "list"]);
    assert_eq!(code, Some(1), "{text}");
    expect(&text, &["rejected ADMIN_TOKEN"]);
    assert!(
        !text.contains(&token) && !text.contains("another-token"),
        "{text}"
    );
    assert_eq!(demo.interrupt(), Some(0));
}

/// The commands of a group and of its groups, with their names.
fn commands(command: &Clap, name: &str) -> Vec<(String, Clap)> {
    let mut all = vec![(name.to_owned(), command.clone())];
    let shown = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set());
    for part in shown.filter(|command| command.get_name() != "help") {
        all.extend(commands(part, &format!("{name} {}", part.get_name())));
    }
    all
}

#[test]
fn every_help_has_examples_that_parse() {
    for (name, mut command) in commands(&cli::command(), "video-ingest") {
        let help = command.render_help().to_string();
        let long = command.render_long_help().to_string();
        assert!(long.contains("Examples:"), "{name}");
        let examples = help
            .lines()
            .filter(|line| line.starts_with("  video-ingest "));
        let mut count = 0;
        for example in examples {
            assert!(example.len() <= 80, "a terminal would break it: {example}");
            let words = example.split(['|', '>']).next().unwrap().split_whitespace();
            let parsed = cli::command().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
            assert!(
                name == "video-ingest" || example.trim().starts_with(&name),
                "{name}: {example}"
            );
            count += 1;
        }
        assert!(count > 0, "{name}");
    }
}

#[test]
fn help_lists_only_settings_that_the_command_uses() {
    let help = |args: &[&str]| {
        let (code, text) = run(Path::new("."), args);
        assert_eq!(code, Some(0), "{text}");
        text
    };
    expect(
        &help(&["serve", "--help"]),
        &["--workers", "--data-dir", "ADMIN_TOKEN:"],
    );
    expect(&help(&["doctor", "--help"]), &["--workers", "--url"]);
    let webhook = help(&["webhook", "redeliver", "--help"]);
    expect(
        &webhook,
        &["--github-repository", "GITHUB_TOKEN:", "--failed"],
    );
    for (args, own) in [
        (&["webhook", "redeliver", "--help"][..], "GUID"),
        (&["videos", "list", "--help"], "--code"),
        (&["status", "--help"], "--json"),
        (&["reconcile", "--help"], "--dry-run"),
        (&["serve", "-h"], "--help"),
        (&["doctor", "-h"], "--url"),
    ] {
        let text = help(args);
        expect(&text, &[own]);
        assert!(
            !text.contains("--workers") && !text.contains("--data-dir"),
            "{text}"
        );
    }
}

#[test]
fn the_version_names_the_commit_it_was_built_from() {
    let (code, text) = run(Path::new("."), &["--version"]);
    assert_eq!(code, Some(0), "{text}");
    let mut expected = format!("video-ingest {}", env!("CARGO_PKG_VERSION"));
    if Path::new(".git").exists() {
        let mut git = Command::new("git");
        let head = git
            .args(["rev-parse", "--short=12", "HEAD"])
            .output()
            .unwrap();
        expected += &format!(" ({})", String::from_utf8(head.stdout).unwrap().trim());
    }
    assert_eq!(text.trim(), expected);
}

#[test]
fn completions_and_man_pages_are_printed() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let (code, text) = run(Path::new("."), &["completions", shell]);
        assert_eq!(code, Some(0), "{text}");
        expect(&text, &["redeliver", "listen-addr"]);
    }
    let (code, text) = run(Path::new("."), &["man"]);
    assert_eq!(code, Some(0), "{text}");
    expect(&text, &[".TH", "reconcile", "Exit codes"]);
    let (code, text) = run(Path::new("."), &["man", "videos", "watch"]);
    assert_eq!(code, Some(0), "{text}");
    expect(
        &text,
        &[".TH", "videos watch", "Wait until a video is ready"],
    );
    let (code, text) = run(Path::new("."), &["man", "videos", "wait"]);
    assert_eq!(code, Some(1), "{text}");
    expect(&text, &["no command `wait`"]);
}
