//! What a person types.

mod client;
#[cfg(feature = "demo")]
mod demo;
pub mod doctor;
#[cfg(feature = "demo")]
mod fake_github;
mod reconcile;
mod videos;
pub mod webhook;
mod words;

use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command};
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::app::{self, App, Injected};
use crate::clock::Clock;
use crate::config::{self, Config, Problem, Sources};
use crate::services;
use crate::telemetry;
use client::Client;

/// Wrong usage or settings; nothing was tried.
const USAGE: u8 = 2;

/// How long `healthcheck` waits for the answer.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The command line, as `--help` shows it.
pub fn command() -> Command {
    let with_settings = |command: Command| {
        command
            .args(config::arguments())
            .after_help(config::secrets_help())
    };
    let command = Command::new("video-ingest")
        .about("From a signed GitHub push to a playable video in Supabase")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_settings(
            Command::new("serve").about("Receive webhooks and ingest videos"),
        ));
    #[cfg(feature = "demo")]
    let command = command
        .subcommand(demo::command())
        .subcommand(fake_github::command());
    command
        .subcommand(doctor::command())
        .subcommand(webhook::command())
        .subcommand(reconcile::command())
        .subcommand(videos::command())
        .subcommand(with_settings(
            Command::new("migrate").about("Bring the database up to this version and exit"),
        ))
        .subcommand(
            Command::new("healthcheck")
                .about("Ask this server's /healthz: for containers")
                .arg(
                    Arg::new("LISTEN_ADDR")
                        .long("listen-addr")
                        .value_name("LISTEN_ADDR"),
                )
                .arg(Arg::new("PORT").long("port").value_name("PORT")),
        )
}

/// Does what the command line says. The exit code is 0 done, 1 failed, 2 usage or settings.
pub async fn run(matches: &ArgMatches) -> ExitCode {
    let Some((name, matches)) = matches.subcommand() else {
        return ExitCode::from(USAGE);
    };
    let result = match name {
        #[cfg(feature = "demo")]
        "demo" => demo::run(matches).await,
        "doctor" => doctor::run(matches).await.map_err(anyhow::Error::from),
        "webhook" => match webhook::run(matches).await {
            Ok(result) => result,
            Err(problems) => return refuse(&problems),
        },
        "healthcheck" => match Config::listen_addr(&Sources::from_process(matches)) {
            Ok(address) => healthcheck(address).await,
            Err(problems) => return refuse(&problems),
        },
        "reconcile" | "videos" => {
            // `videos` has subcommands, which have the flag.
            let flags = matches.subcommand().map_or(matches, |(_, flags)| flags);
            let client = match server(flags) {
                Ok((url, token)) => Client::new(&url, token),
                Err(problems) => return refuse(&problems),
            };
            let asked = async {
                match name {
                    "videos" => videos::run(matches, &client?).await,
                    _ => reconcile::run(matches, &client?).await,
                }
            };
            tokio::select! {
                result = asked => result,
                () = app::stop_signal() => Ok(ExitCode::SUCCESS),
            }
        }
        _ => match Config::load(&Sources::from_process(matches)) {
            Ok(config) => {
                telemetry::init(&config.log);
                match name {
                    #[cfg(feature = "demo")]
                    "fake-github" => fake_github::run(matches, &config)
                        .await
                        .map(|()| ExitCode::SUCCESS),
                    "migrate" => migrate(&config).await,
                    _ => serve(config).await,
                }
            }
            Err(problems) => return refuse(&problems),
        },
    };
    match result {
        Ok(code) => code,
        // Whoever read the output has read enough, such as `head`: not done, but nothing to complain of.
        Err(error) if is_broken_pipe(&error) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("video-ingest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes to standard output, which may be a pipe that nobody reads any more.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn print_json(value: &serde_json::Value) -> io::Result<()> {
    print(&format!("{value:#}\n"))
}

fn url_flag() -> Arg {
    Arg::new("url")
        .long("url")
        .value_name("URL")
        .value_parser(server_url)
        .help("The server [default: this machine's, at LISTEN_ADDR or PORT]")
}

fn json_flag() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print the server's answer for programs")
}

fn server_url(text: &str) -> Result<String, String> {
    match reqwest::Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(text.to_owned()),
        _ => Err("must be a URL, such as `https://videos.example.org`".to_owned()),
    }
}

/// The running server that a command is about, and the right to ask it.
fn server(matches: &ArgMatches) -> Result<(String, SecretString), Vec<Problem>> {
    let sources = Sources::from_process(matches);
    let url = match matches.get_one::<String>("url") {
        Some(url) => url.clone(),
        None => format!("http://{}", reachable(Config::listen_addr(&sources)?)),
    };
    let unset = || Problem {
        name: "ADMIN_TOKEN".to_owned(),
        right: "must be set to the one that the server runs with (or ADMIN_TOKEN_FILE)".to_owned(),
    };
    let token = Config::admin_token(&sources)?.ok_or_else(|| vec![unset()])?;
    Ok((url, token))
}

/// Where to find a server that listens there: every address includes this machine's own.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(Ipv4Addr::LOCALHOST.into());
    }
    address
}

fn refuse(problems: &[Problem]) -> ExitCode {
    eprintln!("video-ingest: the settings are not usable:");
    for problem in problems {
        eprintln!("  {problem}");
    }
    ExitCode::from(USAGE)
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let listener = TcpListener::bind(config.listen).await.map_err(|error| {
        anyhow::anyhow!("LISTEN_ADDR: cannot listen on {}: {error}", config.listen)
    })?;
    let address = listener.local_addr()?;
    let app = App::build(config, Injected::default()).await?;
    tracing::info!(%address, repository = %app.config.github.repository, workers = app.config.workers, "listening");
    if app.config.admin_token.is_none() {
        tracing::info!("ADMIN_TOKEN is not set: /reconcile, /api and the page answer 404");
    }
    let stop = CancellationToken::new();
    let stop_on_signal = stop.clone();
    tokio::spawn(async move {
        app::stop_signal().await;
        stop_on_signal.cancel();
    });
    app.serve(listener, stop).await;
    Ok(ExitCode::SUCCESS)
}

async fn migrate(config: &Config) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&config.data_dir)?;
    let db = app::open_database(config, Clock::default()).await?;
    db.migrate().await?;
    print("the database is up to date\n")?;
    Ok(ExitCode::SUCCESS)
}

async fn healthcheck(address: SocketAddr) -> anyhow::Result<ExitCode> {
    let address = reachable(address);
    let client = services::client::direct(HEALTHCHECK_TIMEOUT)
        .timeout(HEALTHCHECK_TIMEOUT)
        .build()?;
    client
        .get(format!("http://{address}/healthz"))
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|error| anyhow::anyhow!("{address} is not healthy: {}", error.without_url()))?;
    print("healthy\n")?;
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
    fn wrong_usage_is_clap_s_exit_code_2() {
        for wrong in [
            &["video-ingest"][..],
            &["video-ingest", "videos", "show", "notes.json"],
            &["video-ingest", "videos", "list", "--state", "blue"],
            &["video-ingest", "reconcile", "--wait", "301"],
            &["video-ingest", "reconcile", "--watch", "30s", "--json"],
            &["video-ingest", "reconcile", "--url", "localhost:8080"],
        ] {
            let error = command().try_get_matches_from(wrong).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(USAGE), "{wrong:?}");
        }
    }
}
