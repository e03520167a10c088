//! What a person types.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::{self, App, Injected};
use crate::clock::Clock;
use crate::config::{self, Config, Problem, Sources};
use crate::{demo, doctor, hooks, standin, telemetry};

/// Done.
const DONE: ExitCode = ExitCode::SUCCESS;
/// Tried, and failed.
const FAILED: u8 = 1;
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
    Command::new("video-ingest")
        .about("From a signed GitHub push to a playable video in Supabase")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_settings(
            Command::new("serve").about("Receive webhooks and ingest videos"),
        ))
        .subcommand(demo::command())
        .subcommand(doctor::command())
        .subcommand(hooks::command())
        .subcommand(standin::command::command())
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
        "demo" => demo::run(matches).await,
        "doctor" => match doctor::run(matches).await {
            Ok(code) => return code,
            Err(error) => Err(error.into()),
        },
        "webhook" => match hooks::run(matches).await {
            Ok(Ok(code)) => return code,
            Ok(Err(error)) => Err(error),
            Err(problems) => return refuse(&problems),
        },
        "healthcheck" => match Config::listen_addr(&Sources::from_process(matches)) {
            Ok(address) => healthcheck(address).await,
            Err(problems) => return refuse(&problems),
        },
        _ => match Config::load(&Sources::from_process(matches)) {
            Ok(config) => {
                telemetry::init(&config.log);
                match name {
                    "standin" => standin::command::run(matches, &config).await,
                    "migrate" => migrate(&config).await,
                    _ => serve(config).await,
                }
            }
            Err(problems) => return refuse(&problems),
        },
    };
    match result {
        Ok(()) => DONE,
        Err(error) => {
            eprintln!("video-ingest: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn refuse(problems: &[Problem]) -> ExitCode {
    eprintln!("video-ingest: the settings are not usable:");
    for problem in problems {
        eprintln!("  {problem}");
    }
    ExitCode::from(USAGE)
}

async fn serve(config: Config) -> anyhow::Result<()> {
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
    tokio::spawn(stop_on_signal(stop.clone()));
    app.serve(listener, stop).await;
    Ok(())
}

/// SIGTERM from a service manager, SIGINT from a terminal.
async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) else {
        tracing::error!(
            "signals cannot be received: stop the process with SIGKILL, nothing is lost"
        );
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stop.cancel();
}

async fn migrate(config: &Config) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.data_dir)?;
    let db = app::open_database(config, Clock::default()).await?;
    db.migrate().await?;
    println!("the database is up to date");
    Ok(())
}

async fn healthcheck(mut address: std::net::SocketAddr) -> anyhow::Result<()> {
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let client = reqwest::Client::builder()
        .timeout(HEALTHCHECK_TIMEOUT)
        .build()?;
    client
        .get(format!("http://{address}/healthz"))
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(|error| anyhow::anyhow!("{address} is not healthy: {}", error.without_url()))?;
    println!("healthy");
    Ok(())
}
