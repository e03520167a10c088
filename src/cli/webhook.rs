//! `video-ingest webhook`: the repository's webhook, managed over GitHub's API.

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use reqwest::Url;
use secrecy::SecretString;
use serde_json::json;
use tokio::io::AsyncReadExt as _;
use uuid::Uuid;

use crate::app;
use crate::clock::Clock;
use crate::config::{self, Config, Problem, Sources};
use crate::domain::signature::sign;
use crate::services::client;
use crate::services::github::{Github, Hook, HookDelivery, RECEIVER_PATH, failed_guids};

/// The setting that a first installation makes up.
const SECRET: &str = config::GITHUB_WEBHOOK_SECRET.name;

/// How long GitHub may take to send what it was asked to send.
const DELIVERY_WAIT_MAX: Duration = Duration::from_secs(15);

/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(500);

/// Deliveries that `status` shows.
const SHOWN_MAX: usize = 10;

/// The largest body that `send` reads, in bytes: what a server takes as a form.
const BODY_BYTES_MAX: u64 = 40 << 20;

/// The longest `send` waits; GitHub gives up after 10 s.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer that `send` prints, in bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Its command line.
pub fn command() -> Command {
    let url = |help: &'static str| {
        let arg = Arg::new("url").long("url").value_name("URL").required(true);
        arg.value_parser(receiver).help(help)
    };
    let json = Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print it for programs");
    let with_settings = |command: Command| {
        command
            .args(config::arguments())
            .after_help(config::secrets_help())
    };
    Command::new("webhook")
        .about("Install the repository's webhook, look at it, and repeat deliveries")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(with_settings(
            Command::new("install")
                .about("Create or correct the webhook, and have GitHub ping it")
                .long_about(
                    "Create or correct the webhook, and have GitHub ping it. May be repeated.\n\n\
                     GITHUB_TOKEN needs \"Webhooks: read and write\". Without GITHUB_WEBHOOK_SECRET one is made \
                     up and shown, once.",
                )
                .arg(url("Where GitHub reaches this server: https://videos.example.org")),
        ))
        .subcommand(with_settings(
            Command::new("status").about("Show the webhook and its last deliveries").arg(json),
        ))
        .subcommand(with_settings(
            Command::new("redeliver")
                .about("Ask GitHub for pushes once more")
                .arg(
                    Arg::new("failed")
                        .long("failed")
                        .action(ArgAction::SetTrue)
                        .required(true)
                        .help("Those of the last three days of which no attempt succeeded"),
                ),
        ))
        .subcommand(with_settings(
            Command::new("send")
                .about("Sign a body and send it, as GitHub does")
                .arg(url("The server: https://videos.example.org"))
                .arg(
                    Arg::new("event")
                        .long("event")
                        .value_name("EVENT")
                        .default_value("push")
                        .help("The event it is"),
                )
                .arg(
                    Arg::new("file")
                        .long("file")
                        .value_name("FILE")
                        .required(true)
                        .value_parser(value_parser!(PathBuf))
                        .help("The JSON body, sent byte for byte"),
                ),
        ))
}

/// Does what the command line says.
///
/// # Errors
/// `Ok(Err(…))`: it was tried and failed. `Err(…)`: the settings are not usable.
pub async fn run(matches: &ArgMatches) -> Result<anyhow::Result<ExitCode>, Vec<Problem>> {
    let Some((name, matches)) = matches.subcommand() else {
        return Ok(Ok(ExitCode::from(2)));
    };
    let mut sources = Sources::from_process(matches);
    let made_up = match name {
        "install" => make_up_secret(&mut sources),
        _ => None,
    };
    let config = Config::load(&sources)?;
    Ok(match name {
        "install" => install(matches, &config, made_up).await,
        "status" => status(&config, matches.get_flag("json")).await,
        "redeliver" => redeliver(&config).await,
        _ => send(matches, &config).await,
    })
}

/// Reads `https://host` or `https://host/webhooks/github`.
///
/// # Errors
/// In words for the command line.
pub fn receiver(text: &str) -> Result<Url, String> {
    let right = "must be a URL, such as `https://videos.example.org`";
    let mut url: Url = text.parse().map_err(|_| right.to_owned())?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(right.to_owned());
    }
    if url.path() == "/" {
        url.set_path(RECEIVER_PATH);
    }
    Ok(url)
}

/// A secret for settings that have none.
fn make_up_secret(sources: &mut Sources) -> Option<String> {
    let in_file = config::GITHUB_WEBHOOK_SECRET.file_variable();
    let is_set = |name: &str| {
        let layers = [&sources.env, &sources.dotenv];
        layers
            .iter()
            .any(|layer| layer.get(name).is_some_and(|value| !value.is_empty()))
    };
    if is_set(SECRET) || is_set(&in_file) {
        return None;
    }
    // 244 bits of the system's randomness.
    let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    sources.env.insert(SECRET.to_owned(), secret.clone());
    Some(secret)
}

async fn install(
    matches: &ArgMatches,
    config: &Config,
    made_up: Option<String>,
) -> anyhow::Result<ExitCode> {
    let url = matches.get_one::<Url>("url").context("--url is missing")?;
    let github = app::github(config, &Clock::default())?;
    if made_up.is_some()
        && existing(&github, url)
            .await?
            .is_some_and(|hook| hook.config.is_signed())
    {
        bail!(
            "the webhook is there and has a secret, which a server may be using: set {SECRET} to that one, or to a new one for both"
        );
    }
    let (hook, is_new) = save(&github, url, &config.webhook_secrets[0]).await?;
    let what = if is_new { "created" } else { "up to date" };
    say(&format!("✓ the webhook to {url} is {what}"))?;
    if let Some(secret) = made_up {
        // No server runs with it yet, so there is nothing to ping.
        say(&format!(
            "\nPut this into the server's settings; it is not shown again:\n\n{SECRET}={secret}\n\n\
             Then start the server, and run this once more: GitHub pings it."
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    match ping(&github, &hook).await? {
        Some(answer) if answer.succeeded() => say("✓ the server answered GitHub's ping")?,
        Some(answer) => {
            let hint = match answer.status_code {
                401 => "the server runs with another GITHUB_WEBHOOK_SECRET",
                0 => "GitHub does not reach that address",
                _ => "something else than this server is there",
            };
            say(&format!(
                "✗ GitHub's ping failed ({}): {hint}. Start the server, and run this again",
                answer.status
            ))?;
            return Ok(ExitCode::FAILURE);
        }
        None => say("! GitHub has not sent its ping yet: video-ingest webhook status")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the repository's webhook one for pushes to `url`; whether it had to be made.
///
/// One that has this address is corrected; else the only one of ours is moved here.
///
/// # Errors
/// In words for the command line.
pub async fn save(
    github: &Github,
    url: &Url,
    secret: &SecretString,
) -> anyhow::Result<(Hook, bool)> {
    let id = existing(github, url).await?.map(|hook| hook.id);
    Ok((github.save_hook(id, url, secret).await?, id.is_none()))
}

/// The webhook that has this address; else the only one of ours.
async fn existing(github: &Github, url: &Url) -> anyhow::Result<Option<Hook>> {
    let mut hooks = visible(github).await?;
    if let Some(at) = hooks
        .iter()
        .position(|hook| hook.config.url == url.as_str())
    {
        return Ok(Some(hooks.swap_remove(at)));
    }
    hooks.retain(Hook::is_ours);
    Ok(if hooks.len() == 1 { hooks.pop() } else { None })
}

async fn visible(github: &Github) -> anyhow::Result<Vec<Hook>> {
    let hooks = github.hooks().await?;
    hooks.context(
        "GitHub shows no webhooks: check GITHUB_REPOSITORY, and give GITHUB_TOKEN \"Webhooks: read and write\" (classic: admin:repo_hook)",
    )
}

/// Has GitHub ping the receiver; what came of it, once GitHub says so.
///
/// # Errors
/// GitHub cannot be asked.
pub async fn ping(github: &Github, hook: &Hook) -> anyhow::Result<Option<HookDelivery>> {
    let before = github.deliveries(hook.id).await?;
    let before: HashSet<u64> = before.iter().map(|delivery| delivery.id).collect();
    github.ping_hook(hook.id).await?;
    let arrives = async {
        loop {
            let all = github.deliveries(hook.id).await?;
            let is_new = |d: &HookDelivery| d.event == "ping" && !before.contains(&d.id);
            if let Some(found) = all.into_iter().find(is_new) {
                return anyhow::Ok(found);
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    match tokio::time::timeout(DELIVERY_WAIT_MAX, arrives).await {
        Ok(found) => found.map(Some),
        Err(_) => Ok(None),
    }
}

async fn ours(github: &Github) -> anyhow::Result<Hook> {
    let mut ours = visible(github).await?;
    ours.retain(Hook::is_ours);
    let at = ours.iter().position(|hook| hook.active).unwrap_or(0);
    ensure!(
        at < ours.len(),
        "the repository has no webhook to {RECEIVER_PATH}: video-ingest webhook install --url https://YOUR-HOST"
    );
    Ok(ours.swap_remove(at))
}

async fn status(config: &Config, as_json: bool) -> anyhow::Result<ExitCode> {
    let github = app::github(config, &Clock::default())?;
    let hook = ours(&github).await?;
    let deliveries = github.deliveries(hook.id).await?;
    let failed = failed_guids(&deliveries);
    if as_json {
        let shown = json!({
            "url": hook.config.url, "active": hook.active, "events": hook.events,
            "content_type": hook.config.content_type, "signed": hook.config.is_signed(),
            "deliveries": deliveries, "failed": failed,
        });
        say(&format!("{shown:#}"))?;
    } else {
        let active = if hook.active {
            "active"
        } else {
            "switched off"
        };
        say(&format!(
            "{}  ({active}; {})\n",
            hook.config.url,
            hook.events.join(", ")
        ))?;
        for delivery in deliveries.iter().take(SHOWN_MAX) {
            let mark = if delivery.succeeded() { '✓' } else { '✗' };
            let HookDelivery {
                delivered_at,
                event,
                guid,
                status,
                ..
            } = delivery;
            say(&format!(
                "{mark} {delivered_at}  {event:5} {guid}  {status}"
            ))?;
        }
        say(&match failed.len() {
            0 => format!(
                "\n{} deliveries in three days; no push is missing",
                deliveries.len()
            ),
            n => format!("\n{n} push(es) never arrived: video-ingest webhook redeliver --failed"),
        })?;
    }
    Ok(ExitCode::from(u8::from(!failed.is_empty() || !hook.active)))
}

async fn redeliver(config: &Config) -> anyhow::Result<ExitCode> {
    let github = app::github(config, &Clock::default())?;
    let asked = redeliver_failed(&github, &ours(&github).await?).await?;
    for guid in &asked {
        say(&format!("asked for {guid} once more"))?;
    }
    if asked.is_empty() {
        say("no push of the last three days is missing")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for every push of which no attempt succeeded, oldest first; their GUIDs.
///
/// # Errors
/// GitHub cannot be asked, or refuses; what was asked for until then is on its way.
pub async fn redeliver_failed(github: &Github, hook: &Hook) -> anyhow::Result<Vec<String>> {
    let deliveries = github.deliveries(hook.id).await?;
    let failed = failed_guids(&deliveries);
    for guid in &failed {
        if let Some(newest) = deliveries.iter().find(|delivery| delivery.guid == *guid) {
            github.redeliver(hook.id, newest.id).await?;
        }
    }
    Ok(failed)
}

async fn send(matches: &ArgMatches, config: &Config) -> anyhow::Result<ExitCode> {
    let (Some(url), Some(event), Some(file)) = (
        matches.get_one::<Url>("url"),
        matches.get_one::<String>("event"),
        matches.get_one::<PathBuf>("file"),
    ) else {
        bail!("--url or --file is missing");
    };
    let body = read(file).await?;
    let guid = Uuid::new_v4();
    let mut answer = client::direct(SEND_TIMEOUT)
        .timeout(SEND_TIMEOUT)
        .build()?
        .post(url.clone())
        .header("content-type", "application/json")
        .header("x-github-event", event)
        .header("x-github-delivery", guid.to_string())
        .header(
            "x-hub-signature-256",
            sign(&config.webhook_secrets[0], &body),
        )
        .body(body)
        .send()
        .await
        .map_err(|error| anyhow::anyhow!("{url} does not answer: {}", error.without_url()))?;
    let status = answer.status();
    let body = client::body(&mut answer, ANSWER_BYTES_MAX).await?;
    let body = body.unwrap_or_else(|| b"(the response is too long to print)".to_vec());
    say(&format!("{status}\n{}", String::from_utf8_lossy(&body)))?;
    Ok(ExitCode::from(u8::from(!status.is_success())))
}

async fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = file.display();
    let opened = tokio::fs::File::open(file).await;
    let opened = opened.with_context(|| format!("--file: {shown} cannot be read"))?;
    let mut body = Vec::new();
    opened
        .take(BODY_BYTES_MAX + 1)
        .read_to_end(&mut body)
        .await?;
    ensure!(
        body.len() as u64 <= BODY_BYTES_MAX,
        "--file: {shown} is larger than {BODY_BYTES_MAX} bytes, which no server takes"
    );
    Ok(body)
}

fn say(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}
