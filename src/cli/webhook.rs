//! `video-ingest webhook`: manages the repository's webhook through GitHub's API.

use std::collections::HashSet;
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

use super::manual::{with_examples, with_settings};
use super::{InvalidConfiguration, deliveries, json_flag, print_json, print_line};
use crate::app;
use crate::clock::Clock;
use crate::config::{
    self, Config, GITHUB_API_URL, GITHUB_REPOSITORY, GITHUB_TOKEN, GITHUB_WEBHOOK_SECRET, Setting,
    Sources,
};
use crate::domain::signature::sign;
use crate::format::plain;
use crate::services::client;
use crate::services::github::{Github, Hook, HookDelivery, RECEIVER_PATH, failed_guids};

/// The setting that `install` generates if it is not set.
const SECRET: &str = GITHUB_WEBHOOK_SECRET.name;

/// How long GitHub may take to send a ping.
const DELIVERY_WAIT_MAX: Duration = Duration::from_secs(15);

/// Time between two requests for the result of a ping.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How many deliveries `status` shows.
const SHOWN_MAX: usize = 10;

/// The largest body that `send` reads, in bytes: the server's limit for forms.
const BODY_BYTES_MAX: u64 = 40 << 20;

/// Timeout of `send`, which is GitHub's.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest response that `send` prints, in bytes.
const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// The command line of `webhook`.
pub fn command() -> Command {
    let url = |help: &'static str| {
        let arg = Arg::new("url").long("url").value_name("URL").required(true);
        arg.value_parser(receiver).help(help)
    };
    let github = [
        GITHUB_REPOSITORY,
        GITHUB_API_URL,
        GITHUB_TOKEN,
        GITHUB_WEBHOOK_SECRET,
    ];
    let group = Command::new("webhook")
        .about("Install, inspect and test the repository's webhook, and redeliver push deliveries")
        .subcommand_required(true)
        .arg_required_else_help(true);
    let examples = [
        (
            "Create the webhook, or update it",
            "video-ingest webhook install --url https://videos.example.org",
        ),
        (
            "Does GitHub reach the server?",
            "video-ingest webhook status",
        ),
    ];
    with_examples(group, &examples)
        .subcommand(with_examples(
            with_settings(
                Command::new("install")
                    .about("Create or update the webhook, and have GitHub ping the server")
                    .long_about(
                        "Create or update the webhook, and have GitHub ping the server. Safe to run more than once.\n\n\
                         GITHUB_TOKEN needs the \"Webhooks: read and write\" permission. If GITHUB_WEBHOOK_SECRET is not set, \
                         a secret is generated and shown once.",
                    )
                    .arg(url("URL at which GitHub can reach the server, such as https://videos.example.org")),
                &github,
            ),
            &[(
                "After the server was started, or moved to another address",
                "video-ingest webhook install --url https://videos.example.org",
            )],
        ))
        .subcommand(with_examples(
            with_settings(
                Command::new("status")
                    .about("Show the webhook and GitHub's most recent deliveries to it")
                    .after_help("Exit codes: 0 every push was delivered, 1 a push was not delivered, the webhook is disabled or the command failed, 2 invalid configuration.")
                    .arg(json_flag()),
                &github,
            ),
            &[("Does GitHub reach the server?", "video-ingest webhook status")],
        ))
        .subcommand(deliveries::command())
        .subcommand(redeliver_command(&github))
        .subcommand(with_examples(
            with_settings(
                Command::new("send")
                    .about("Sign a payload and send it the way GitHub would")
                    .arg(url("URL of the server, such as https://videos.example.org"))
                    .arg(
                        Arg::new("event")
                            .long("event")
                            .value_name("EVENT")
                            .default_value("push")
                            .help("Name of the event to send"),
                    )
                    .arg(
                        Arg::new("file")
                            .long("file")
                            .value_name("FILE")
                            .required(true)
                            .value_parser(value_parser!(PathBuf))
                            .help("File that contains the JSON payload"),
                    ),
                &[GITHUB_REPOSITORY, GITHUB_WEBHOOK_SECRET],
            ),
            &[(
                "A push that was saved from GitHub's list of deliveries",
                "video-ingest webhook send --url http://127.0.0.1:8080 --file push.json",
            )],
        ))
}

fn redeliver_command(used: &[Setting]) -> Command {
    let command = Command::new("redeliver")
        .about("Ask GitHub to redeliver pushes")
        .after_help("A redelivered push retries all of its videos that are not ready, including rejected ones.")
        .arg(
            Arg::new("guid")
                .value_name("GUID")
                .required_unless_present("failed")
                .help("GUID of a delivery from the last three days, as shown by `webhook status` or `webhook deliveries`"),
        )
        .arg(
            Arg::new("failed")
                .long("failed")
                .action(ArgAction::SetTrue)
                .conflicts_with("guid")
                .help("Redeliver pushes from the last three days that were never delivered successfully"),
        );
    with_examples(
        with_settings(command, used),
        &[
            (
                "All pushes that were not delivered",
                "video-ingest webhook redeliver --failed",
            ),
            (
                "One delivery",
                "video-ingest webhook redeliver 72d3162e-cc78-11e3-81ab-4c9367dc0958",
            ),
        ],
    )
}

/// Runs `install`, `status`, `deliveries`, `redeliver` or `send`.
///
/// # Errors
/// Fails if the configuration is invalid or a request fails.
pub async fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let Some((name, matches)) = matches.subcommand() else {
        unreachable!("clap requires one of the subcommands");
    };
    if name == "deliveries" {
        return deliveries::run(matches).await;
    }
    let mut sources = Sources::from_process(matches);
    let generated = if name == "install" {
        generate_secret(&mut sources)
    } else {
        None
    };
    let config = Config::load(&sources).map_err(InvalidConfiguration)?;
    match name {
        "install" => install(matches, &config, generated).await,
        "status" => status(&config, matches.get_flag("json")).await,
        "redeliver" => redeliver(&config, matches.get_one("guid")).await,
        _ => send(matches, &config).await,
    }
}

/// Parses `https://host` or `https://host/webhooks/github`.
///
/// # Errors
/// A description of a valid value.
pub fn receiver(text: &str) -> Result<Url, String> {
    let mut url = config::url(text)?;
    if url.path() == "/" {
        url.set_path(RECEIVER_PATH);
    }
    Ok(url)
}

/// Adds a webhook secret to settings that have none, and returns it.
fn generate_secret(sources: &mut Sources) -> Option<String> {
    if sources.has(&[GITHUB_WEBHOOK_SECRET]) {
        return None;
    }
    // 244 random bits of the operating system.
    let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
    // As if it were in the file to which it is added next, so that it is not taken for an exported one.
    sources.dotenv.insert(SECRET.to_owned(), secret.clone());
    Some(secret)
}

async fn install(
    matches: &ArgMatches,
    config: &Config,
    generated: Option<String>,
) -> anyhow::Result<ExitCode> {
    let url = matches
        .get_one::<Url>("url")
        .context("--url is required.")?;
    let github = app::github(config, &Clock::default())?;
    if generated.is_some()
        && existing(&github, url)
            .await?
            .is_some_and(|hook| hook.config.is_signed())
    {
        bail!(
            "The webhook already exists and has a secret that a server may be using. Set {SECRET} to that secret, or choose a new secret and set it both here and on that server."
        );
    }
    let (hook, is_new) = save(&github, url, &config.webhook_secrets[0]).await?;
    let what = if is_new {
        "was created"
    } else {
        "is up to date"
    };
    print_line(&format!("✓ The webhook for {url} {what}."))?;
    if let Some(secret) = generated {
        // No server has this secret yet, so a ping would fail.
        print_line(&format!(
            "\nAdd this to the server's settings; it will not be shown again:\n\n{SECRET}={secret}\n\n\
             Then start the server and run this command again to have GitHub ping the server."
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    match ping(&github, &hook).await? {
        Some(response) if response.succeeded() => {
            print_line("✓ The server responded to GitHub's ping.")?
        }
        Some(response) => {
            let hint = match response.status_code {
                401 => "The server uses a different GITHUB_WEBHOOK_SECRET",
                0 => "GitHub cannot reach that URL",
                _ => "That URL does not belong to a video-ingest server",
            };
            print_line(&format!(
                "✗ GitHub's ping failed ({}). {hint}. Fix this and run the command again.",
                response.status
            ))?;
            return Ok(ExitCode::FAILURE);
        }
        None => print_line(
            "! GitHub has not sent the ping yet. To check later, run `video-ingest webhook status`.",
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Creates or corrects the webhook that delivers pushes to `url`. Returns it, and whether it is new.
///
/// Corrects the webhook with this URL, else the only webhook that points to a server like this one.
///
/// # Errors
/// Fails if GitHub does not respond or denies access to webhooks.
pub async fn save(
    github: &Github,
    url: &Url,
    secret: &SecretString,
) -> anyhow::Result<(Hook, bool)> {
    let id = existing(github, url).await?.map(|hook| hook.id);
    Ok((github.save_hook(id, url, secret).await?, id.is_none()))
}

/// The webhook that [`save`] corrects.
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
        "GITHUB_TOKEN does not have access to the webhooks of GITHUB_REPOSITORY. Check the repository's name, and grant the token the \"Webhooks: read and write\" permission (classic tokens: the admin:repo_hook scope).",
    )
}

/// Has GitHub ping the receiver. Returns the result, `None` if GitHub reports none in time.
///
/// # Errors
/// Fails if GitHub does not respond.
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
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    match tokio::time::timeout(DELIVERY_WAIT_MAX, arrives).await {
        Ok(found) => found.map(Some),
        Err(_) => Ok(None),
    }
}

/// The webhook that points to a server like this one, preferably an active one.
async fn installed(github: &Github) -> anyhow::Result<Hook> {
    let mut hooks = visible(github).await?;
    hooks.retain(Hook::is_ours);
    let at = hooks.iter().position(|hook| hook.active).unwrap_or(0);
    ensure!(
        at < hooks.len(),
        "The repository has no webhook that points to {RECEIVER_PATH}. Run `video-ingest webhook install --url https://YOUR-HOST`."
    );
    Ok(hooks.swap_remove(at))
}

async fn status(config: &Config, as_json: bool) -> anyhow::Result<ExitCode> {
    let github = app::github(config, &Clock::default())?;
    let hook = installed(&github).await?;
    let deliveries = github.deliveries(hook.id).await?;
    let failed = failed_guids(&deliveries);
    if as_json {
        let shown = json!({
            "url": hook.config.url, "active": hook.active, "events": hook.events,
            "content_type": hook.config.content_type, "signed": hook.config.is_signed(),
            "deliveries": deliveries, "failed": failed,
        });
        print_json(&shown)?;
    } else {
        let active = if hook.active { "active" } else { "disabled" };
        print_line(&format!(
            "{}  ({active}; {})\n",
            plain(&hook.config.url),
            plain(&hook.events.join(", "))
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
            let line = format!("{delivered_at}  {event:5} {guid}  {status}");
            print_line(&format!("{mark} {}", plain(&line)))?;
        }
        print_line(&match failed.len() {
            0 if !hook.active => "\nThe webhook is disabled. Run `video-ingest webhook install --url <URL>`, which enables it.".to_owned(),
            0 => format!(
                "\nDeliveries in the last three days: {}. Every push was delivered.",
                deliveries.len()
            ),
            n if deliveries.iter().any(|delivery| delivery.status_code == 401) => format!(
                "\n{n} push(es) were not delivered, because the server uses a different GITHUB_WEBHOOK_SECRET. Run `video-ingest webhook install --url {}`, then `video-ingest webhook redeliver --failed`.",
                plain(hook.config.url.trim_end_matches("/webhooks/github"))
            ),
            n => format!(
                "\n{n} push(es) were not delivered. To redeliver them, run `video-ingest webhook redeliver --failed`."
            ),
        })?;
    }
    Ok(ExitCode::from(u8::from(!failed.is_empty() || !hook.active)))
}

async fn redeliver(config: &Config, guid: Option<&String>) -> anyhow::Result<ExitCode> {
    let github = app::github(config, &Clock::default())?;
    let hook = installed(&github).await?;
    if let Some(guid) = guid {
        redeliver_one(&github, &hook, guid).await?;
        print_line(&format!("Requested redelivery of {guid}."))?;
        return Ok(ExitCode::SUCCESS);
    }
    let asked = redeliver_failed(&github, &hook).await?;
    for guid in &asked {
        print_line(&format!("Requested redelivery of {}.", plain(guid)))?;
    }
    if asked.is_empty() {
        print_line("Every push from the last three days was delivered.")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Requests redelivery of one delivery, whether it succeeded or not.
///
/// # Errors
/// Fails if GitHub does not have the delivery, does not respond or refuses.
pub async fn redeliver_one(github: &Github, hook: &Hook, guid: &str) -> anyhow::Result<()> {
    let deliveries = github.deliveries(hook.id).await?;
    let newest = deliveries.iter().find(|delivery| delivery.guid == guid);
    let newest = newest.with_context(|| {
        format!("GitHub has no delivery {guid} from the last three days. Run `video-ingest webhook status` for the newest ones; for an older push, run `video-ingest reconcile`, which ingests what is missing.")
    })?;
    Ok(github.redeliver(hook.id, newest.id).await?)
}

/// Requests redelivery of every push that was never delivered, oldest first. Returns their GUIDs.
///
/// # Errors
/// Fails if GitHub does not respond or refuses; redeliveries requested before that are on their way.
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
        bail!("--url and --file are required.");
    };
    let body = read(file).await?;
    let guid = Uuid::new_v4();
    let mut response = client::direct(SEND_TIMEOUT)
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
        .map_err(|error| anyhow::anyhow!("{url} did not respond: {}", error.without_url()))?;
    let status = response.status();
    let body = client::body(&mut response, RESPONSE_BYTES_MAX).await?;
    let body = body.unwrap_or_else(|| b"(the response is too long to print)".to_vec());
    print_line(&format!("{status}\n{}", String::from_utf8_lossy(&body)))?;
    Ok(ExitCode::from(u8::from(!status.is_success())))
}

async fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = file.display();
    let opened = tokio::fs::File::open(file).await;
    let opened = opened.with_context(|| format!("Cannot read the file {shown}"))?;
    let mut body = Vec::new();
    opened
        .take(BODY_BYTES_MAX + 1)
        .read_to_end(&mut body)
        .await?;
    ensure!(
        body.len() as u64 <= BODY_BYTES_MAX,
        "{shown} is larger than the server's limit of {BODY_BYTES_MAX} bytes."
    );
    Ok(body)
}
