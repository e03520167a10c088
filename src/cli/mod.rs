//! The command line: one table of commands, and the exit codes.

mod client;
mod deliveries;
#[cfg(feature = "demo")]
mod demo;
pub mod doctor;
#[cfg(feature = "demo")]
mod fake_github;
mod manual;
mod progress;
mod reconcile;
mod show;
mod status;
mod videos;
mod watch;
pub mod webhook;

use std::fmt;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};

use self::manual::{with_examples, with_settings};
use crate::app::{self, App, Injected};
use crate::clock::Clock;
use crate::config::{self, Config, Problem, Sources, reachable};
use crate::domain::advice::repeats;
use crate::http;
use crate::services;
use crate::telemetry;

/// Exit code of invalid usage or configuration: nothing was attempted.
const EXIT_USAGE: u8 = 2;

/// How long `healthcheck` waits for a response.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The command line, as `--help` shows it.
pub fn command() -> Command {
    let command = Command::new("video-ingest")
        .about("Ingest videos from GitHub into Supabase Storage, triggered by signed push webhooks")
        .version(manual::version())
        .after_help(
            "Exit codes: 0 success, 1 failure, 2 invalid usage or configuration.\n\
             `-h` shows the most important flags of a command, `--help` all of them.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(serve_command());
    #[cfg(feature = "demo")]
    let command = command
        .subcommand(with_examples(
            demo::command(),
            &[
                ("The whole pipeline, until Ctrl-C", "video-ingest demo"),
                (
                    "The videos of a local Git repository",
                    "video-ingest demo --exit --repo ../video-artifacts",
                ),
            ],
        ))
        .subcommand(fake_github::command());
    let command = command
        .subcommand(doctor::command())
        .subcommand(status::command())
        .subcommand(videos::command())
        .subcommand(reconcile::command())
        .subcommand(webhook::command())
        .subcommand(migrate_command())
        .subcommand(healthcheck_command())
        .subcommand(manual::completions_command())
        .subcommand(manual::man_command());
    with_examples(
        command,
        &[
            ("Check the settings and the services", "video-ingest doctor"),
            ("Is everything all right?", "video-ingest status"),
            (
                "Why is this video not playing?",
                "video-ingest videos show 0beee2d2-ace7-4ccf-81a7-41a6c43c1a75",
            ),
        ],
    )
}

fn serve_command() -> Command {
    let command = Command::new("serve")
        .about("Receive webhooks and ingest videos")
        .after_help("Exit codes: 0 stopped by a signal, 1 the server could not start, 2 invalid configuration.");
    with_examples(
        with_settings(command, config::SETTINGS),
        &[
            ("With settings from .env", "video-ingest serve"),
            (
                "On another port",
                "video-ingest serve --listen-addr 127.0.0.1:9000",
            ),
        ],
    )
}

fn migrate_command() -> Command {
    let used = [config::DATA_DIR, config::DATABASE_URL, config::DATABASE_TLS];
    with_examples(
        with_settings(
            Command::new("migrate").about("Migrate the database schema to this version and exit"),
            &used,
        ),
        &[("Before replacing a server", "video-ingest migrate")],
    )
}

fn healthcheck_command() -> Command {
    with_examples(
        Command::new("healthcheck")
            .about("Check that the server on this machine is up (for container health checks)")
            .after_help(
                "Exit codes: 0 the server responds, 1 it does not, 2 invalid configuration.",
            )
            .args([config::LISTEN_ADDR, config::PORT].map(|s| config::argument(&s))),
        &[
            ("The server of the settings", "video-ingest healthcheck"),
            ("Another port", "video-ingest healthcheck --port 9000"),
        ],
    )
}

/// Runs the command.
pub async fn run(matches: &ArgMatches) -> ExitCode {
    let Some((name, matches)) = matches.subcommand() else {
        return ExitCode::from(EXIT_USAGE);
    };
    let result = match name {
        "serve" => serve(matches).await,
        #[cfg(feature = "demo")]
        "demo" => demo::run(matches).await,
        "doctor" => doctor::run(matches).await,
        "webhook" => webhook::run(matches).await,
        #[cfg(feature = "demo")]
        "fake-github" => fake_github::run(matches).await,
        "status" => until_stopped(status::run(matches)).await,
        "videos" => until_stopped(videos::run(matches)).await,
        "reconcile" => until_stopped(reconcile::run(matches)).await,
        "migrate" => migrate(matches).await,
        "healthcheck" => healthcheck(matches).await,
        "completions" => manual::completions(matches),
        "man" => manual::man(matches),
        _ => unreachable!("clap accepts only the commands above"),
    };
    match result {
        Ok(code) => code,
        // The reader of the output, such as `head`, has exited: a failure, but not worth a message.
        Err(error) if is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("video-ingest: {error:#}");
            if error.is::<InvalidConfiguration>() {
                ExitCode::from(EXIT_USAGE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Every problem of the configuration; exits with [`EXIT_USAGE`].
#[derive(Debug)]
struct InvalidConfiguration(Vec<Problem>);

impl fmt::Display for InvalidConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalid configuration:")?;
        self.0
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for InvalidConfiguration {}

/// Loads the configuration, starts logging and logs what is dangerous about the configuration.
fn load(matches: &ArgMatches) -> Result<Config, InvalidConfiguration> {
    let sources = Sources::from_process(matches);
    let config = Config::load(&sources).map_err(InvalidConfiguration)?;
    telemetry::init(&config.log);
    for warning in sources.warnings().into_iter().chain(config.warnings()) {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Runs a client command until it ends or the process is asked to stop, which is a failure: a script that waits
/// for a video must not continue. Commands that run forever end by themselves with [`until_interrupted`].
async fn until_stopped(
    command: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    tokio::select! {
        biased;
        result = command => result,
        () = app::stop_signal() => Ok(ExitCode::FAILURE),
    }
}

/// Runs a command that only a signal ends, which is a success.
async fn until_interrupted(
    command: impl Future<Output = anyhow::Result<ExitCode>>,
) -> anyhow::Result<ExitCode> {
    tokio::select! {
        result = command => result,
        () = app::stop_signal() => Ok(ExitCode::SUCCESS),
    }
}

/// Writes to standard output; `print!` would panic on a closed pipe.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn print_line(line: &str) -> anyhow::Result<()> {
    print(&format!("{line}\n"))
}

fn print_json(value: &serde_json::Value) -> anyhow::Result<()> {
    // JSON allows unprintable characters in strings. The line breaks are those between the members.
    let mut text = String::new();
    for c in format!("{value:#}").chars() {
        if c != '\n' && crate::format::is_unprintable(c) {
            text += &format!("\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    print_line(&text)
}

fn json_flag() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print the output as JSON")
}

async fn serve(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let config = load(matches)?;
    let listener = http::listen(config.listen)
        .map_err(|error| anyhow::anyhow!(cannot_listen(config.listen, &error)))?;
    let address = listener.local_addr()?;
    let app = App::build(config, Injected::default()).await?;
    tracing::info!(%address, repository = %app.config.github.repository, workers = app.config.workers, "listening");
    if app.config.admin_token.is_none() {
        tracing::info!("ADMIN_TOKEN is not set: /reconcile, /api and the status page return 404");
    }
    app.serve_until_signal(listener).await;
    Ok(ExitCode::SUCCESS)
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    let what_to_do = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "Another process uses this address, possibly another video-ingest server. Stop it, or set another port with --listen-addr, LISTEN_ADDR or PORT."
        }
        io::ErrorKind::PermissionDenied => {
            "Ports below 1024 require privileges. Set another port with --listen-addr, LISTEN_ADDR or PORT, and let a reverse proxy forward to it."
        }
        io::ErrorKind::AddrNotAvailable => {
            "This machine does not have this IP address. Set LISTEN_ADDR to one of its addresses, or PORT to listen on all of them."
        }
        _ => "Set another address with --listen-addr, LISTEN_ADDR or PORT.",
    };
    format!("Cannot listen on {address}: {error}. {what_to_do}")
}

async fn migrate(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let config = load(matches)?;
    std::fs::create_dir_all(&config.data_dir)?;
    let db = app::open_database(&config, Clock::default()).await?;
    db.migrate().await?;
    print_line("The database is up to date.")?;
    Ok(ExitCode::SUCCESS)
}

async fn healthcheck(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let listen = Config::listen_addr(&Sources::from_process(matches));
    let address = reachable(listen.map_err(InvalidConfiguration)?);
    let client = services::client::direct(HEALTHCHECK_TIMEOUT)
        .timeout(HEALTHCHECK_TIMEOUT)
        .build()?;
    client
        .get(format!("http://{address}/healthz"))
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|error| anyhow::anyhow!("{address} is not healthy: {}", error.without_url()))?;
    print_line("healthy")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn advice_is_not_repeated_after_a_message_that_gives_it() {
        let advice = "Render the video again with a video track, then push it.";
        let message = "The MP4 has no video track; render the video again and push it.";
        assert!(repeats(message, advice));
        assert!(!repeats("The MP4 has no video track.", advice));
        assert!(!repeats("", advice));
    }

    #[test]
    fn wrong_usage_exits_with_2() {
        for wrong in [
            &["video-ingest"][..],
            &["video-ingest", "videos", "show", "notes.json"],
            &["video-ingest", "videos", "list", "--state", "blue"],
            &["video-ingest", "videos", "list", "--code", "blue"],
            &["video-ingest", "videos", "list", "--since", "soon"],
            &["video-ingest", "videos", "retry"],
            &["video-ingest", "videos", "retry", "--code", "truncated"],
            &["video-ingest", "webhook", "redeliver"],
            &["video-ingest", "webhook", "redeliver", "a-guid", "--failed"],
            &["video-ingest", "completions", "cmd.exe"],
            &["video-ingest", "reconcile", "--wait", "301"],
            &["video-ingest", "reconcile", "--wait", "6m"],
            &["video-ingest", "reconcile", "--watch", "30s", "--json"],
            &["video-ingest", "reconcile", "--url", "localhost:8080"],
            &["video-ingest", "reconcile", "--url", "http://example.org"],
            &["video-ingest", "videos", "list", "--url", "http://8.8.8.8"],
            &[
                "video-ingest",
                "webhook",
                "install",
                "--url",
                "http://example.org",
            ],
            &["video-ingest", "doctor", "--url", "http://example.org"],
        ] {
            let error = command().try_get_matches_from(wrong).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(EXIT_USAGE), "{wrong:?}");
        }
    }
}
