//! What is wrong with the whole: every setting checked against the service it is for, and what to do.
//!
//! It leaves nothing behind but `DATA_DIR` itself: one test object is stored and deleted again. What a
//! check cannot be made without is checked first; a check whose ground is missing says nothing.

mod database;
mod github;
mod storage;

use std::collections::BTreeSet;

use reqwest::Url;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use uuid::Uuid;

use crate::app;
use crate::clock::Clock;
use crate::config::{Config, Database, StoreConfig};
use crate::pipeline::ingest::VIDEO_BYTES_MAX_DEFAULT;
use crate::pipeline::worker::free_bytes;
use crate::services::openhands::Pacing;
use crate::services::storage::Timeouts;

/// Fewer different bytes than this are a word or a pattern, not a random secret.
const SECRET_VARIETY_MIN: usize = 8;

/// A clock this far from another one, in milliseconds, is worth a word.
const SKEW_NOTED_MS: i64 = 10_000;

/// And this far, in milliseconds, deadlines and signed URLs are wrong.
const SKEW_MAX_MS: i64 = 120_000;

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// As it should be.
    Ok,
    /// It works, but look at it.
    Warning,
    /// It cannot work like this.
    Failed,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Stays the same from version to version.
    pub id: &'static str,
    /// How it is.
    pub mark: Mark,
    /// What is so, and what to do about it. Holds no secret.
    pub text: String,
}

/// All that was found, in the order of the checks.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// One for each thing.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether something cannot work.
    pub fn has_failed(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.mark == Mark::Failed)
    }

    fn ok(&mut self, id: &'static str, text: impl Into<String>) {
        self.add(id, Mark::Ok, text);
    }

    fn warn(&mut self, id: &'static str, text: impl Into<String>) {
        self.add(id, Mark::Warning, text);
    }

    /// Adds something that cannot work.
    pub fn fail(&mut self, id: &'static str, text: impl Into<String>) {
        self.add(id, Mark::Failed, text);
    }

    fn add(&mut self, id: &'static str, mark: Mark, text: impl Into<String>) {
        let text = text.into();
        self.findings.push(Finding { id, mark, text });
    }
}

/// What to compare with, and how patiently.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where GitHub reaches this server; `None`: the address of the repository's webhook.
    pub receiver: Option<Url>,
    /// This machine's clock.
    pub clock: Clock,
    /// How patient the storage client is.
    pub storage_timeouts: Timeouts,
    /// How fast and for how long OpenHands is called.
    pub openhands_pacing: Pacing,
}

/// Checks everything that the settings name.
pub async fn examine(config: &Config, options: &Options) -> Report {
    let mut report = Report::default();
    settings(config, &mut report);
    let is_writable = disk(config, &mut report);
    let (github, stores, agent) = tokio::join!(
        github::examine(config, options),
        async {
            let (mut found, buckets) = database::examine(config, options, is_writable).await;
            found
                .findings
                .extend(storage::examine(config, options, buckets).await.findings);
            found
        },
        generation(config, options),
    );
    for part in [github, stores, agent] {
        report.findings.extend(part.findings);
    }
    report
}

fn settings(config: &Config, report: &mut Report) {
    let is_random = |secret: &SecretString| {
        let different: BTreeSet<u8> = secret.expose_secret().bytes().collect();
        different.len() >= SECRET_VARIETY_MIN
    };
    const BETTER: &str = "make a random one: openssl rand -hex 32";
    match config.webhook_secrets.iter().all(is_random) {
        true => report.ok(
            "settings.webhook_secret",
            "GITHUB_WEBHOOK_SECRET is long and varied",
        ),
        false => report.fail(
            "settings.webhook_secret",
            format!("GITHUB_WEBHOOK_SECRET (or the previous one) can be guessed; {BETTER}"),
        ),
    }
    match &config.admin_token {
        Some(token) if is_random(token) => {
            report.ok("settings.admin_token", "ADMIN_TOKEN is long and varied");
        }
        Some(_) => report.fail(
            "settings.admin_token",
            format!("ADMIN_TOKEN can be guessed; {BETTER}"),
        ),
        None => report.warn(
            "settings.admin_token",
            "ADMIN_TOKEN is not set: the page, /api and /reconcile answer 404",
        ),
    }
    if config.workers == 0 {
        report.warn(
            "settings.workers",
            "WORKERS is 0: some other process has to ingest the videos",
        );
    }
    if config.reconcile_interval.is_none() {
        report.warn(
            "settings.reconcile_interval",
            "RECONCILE_INTERVAL is 0: nothing heals a lost webhook unless something calls /reconcile (deploy/cron)",
        );
    }
}

/// Whether `DATA_DIR` can be written to.
fn disk(config: &Config, report: &mut Report) -> bool {
    let dir = &config.data_dir;
    let shown = dir.display();
    let made = std::fs::create_dir_all(dir).and_then(|()| tempfile::tempfile_in(dir));
    if let Err(error) = made {
        let text = format!(
            "DATA_DIR: {shown} cannot be written to ({error}); give it to the user that the server runs as"
        );
        report.fail("disk.write", text);
        return false;
    }
    report.ok("disk.write", format!("{shown} can be written to"));
    let largest = config.max_video_bytes.unwrap_or(VIDEO_BYTES_MAX_DEFAULT);
    let all = largest.saturating_mul(config.workers.max(1) as u64);
    match free_bytes(dir) {
        Some(free) if free < largest => report.fail(
            "disk.space",
            format!("{free} bytes are free in {shown}, fewer than one video may have ({largest}); make room or lower MAX_VIDEO_BYTES"),
        ),
        Some(free) if free < all => report.warn(
            "disk.space",
            format!("{free} bytes are free in {shown}, fewer than {} videos at once may need ({all})", config.workers),
        ),
        Some(free) => report.ok("disk.space", format!("{free} bytes are free")),
        None => report.warn("disk.space", format!("how much is free in {shown} cannot be told")),
    }
    true
}

/// Asks the agent's API about a conversation that nobody has.
async fn generation(config: &Config, options: &Options) -> Report {
    let mut report = Report::default();
    let agent = match app::openhands(config, &options.clock, options.openhands_pacing) {
        Ok(Some(agent)) => agent,
        Ok(None) => {
            report.warn(
                "openhands.key",
                "OPENHANDS_API_KEY is not set: a failed generation is noticed at GENERATION_DEADLINE only",
            );
            return report;
        }
        Err(error) => {
            report.fail("openhands.api", error.to_string());
            return report;
        }
    };
    let errors = agent.probe(&[Uuid::new_v4().to_string()]).await.errors;
    for error in &errors {
        match error.code {
            "unauthorized" | "forbidden" => report.fail(
                "openhands.key",
                "OpenHands refuses OPENHANDS_API_KEY: make a new one in its settings",
            ),
            "html_answer" | "malformed" => report.fail(
                "openhands.version",
                "that is not the API of this version: check OPENHANDS_API_URL (not the web page's address) and OPENHANDS_API_VERSION",
            ),
            "rate_limited" => report.warn("openhands.api", "OpenHands asks us to wait; try again in a minute"),
            _ => report.fail(
                "openhands.api",
                "OpenHands does not answer: check OPENHANDS_API_URL, and its status page",
            ),
        }
    }
    if errors.is_empty() {
        report.ok(
            "openhands.key",
            "OpenHands accepts the key and speaks the version that is set",
        );
    }
    report
}

/// Compares this machine's clock with another one.
fn compare_clocks(report: &mut Report, id: &'static str, whose: &str, now_ms: i64, theirs_ms: i64) {
    let apart = (now_ms - theirs_ms).abs();
    let seconds = apart / 1000;
    let text = format!("this machine's clock and {whose} are {seconds} s apart");
    match apart {
        SKEW_MAX_MS.. => report.fail(
            id,
            format!("{text}: have it set by NTP (timedatectl set-ntp true)"),
        ),
        SKEW_NOTED_MS.. => report.warn(
            id,
            format!("{text}: have it set by NTP (timedatectl set-ntp true)"),
        ),
        _ => report.ok(id, text),
    }
}

/// Whether there is an app, with its tables, roles and publication.
fn is_supabase(config: &Config) -> bool {
    matches!(config.store, StoreConfig::Supabase { .. })
        && matches!(config.database, Database::Postgres { .. })
}
