//! Checks of the whole installation: every setting against the service it is for, and how to fix it.
//!
//! The checks leave no trace except `DATA_DIR` itself: one test object is stored and deleted again.
//! A check that depends on a failed one is skipped. Clients are constructed by the caller.

mod database;
mod github;
pub mod live;
mod receiver;
mod storage;

use std::sync::Arc;

use reqwest::Url;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use uuid::Uuid;

use crate::clock::Clock;
use crate::config::{ADMIN_TOKEN, Config, Database, Sources, StoreConfig, WEAK};
use crate::db::{Db, DbError};
use crate::domain::strength::Strength;
use crate::format::size;
use crate::pipeline::limits::VIDEO_BYTES_MAX_DEFAULT;
use crate::pipeline::spool::free_bytes;
use crate::services::github::Github;
use crate::services::openhands::OpenHands;
use crate::services::storage::Store;

/// From this clock difference on, in milliseconds, a check warns.
const SKEW_NOTED_MS: i64 = 10_000;

/// From this clock difference on, in milliseconds, deadlines and signed URLs are wrong.
const SKEW_MAX_MS: i64 = 120_000;

/// The id of the check for misspelt names of settings.
const MISSPELT: &str = "settings.unknown";

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// Correct.
    Ok,
    /// Works, but needs a look.
    Warning,
    /// Cannot work.
    Failed,
}

/// The result of one check.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// Stable across versions.
    pub id: &'static str,
    /// The severity.
    pub mark: Mark,
    /// What was found and how to fix it. Contains no secret.
    pub text: String,
}

/// All findings, in the order of the checks.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// At least one for each check that ran.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether any check failed.
    pub fn has_failed(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.mark == Mark::Failed)
    }

    /// The failed checks, then the warnings, each in the order of the checks. A misspelt setting comes first,
    /// because it can be the cause of a failed check.
    pub fn problems(&self) -> Vec<&Finding> {
        let problems = self.findings.iter().filter(|f| f.mark != Mark::Ok);
        let mut problems: Vec<_> = problems.collect();
        problems.sort_by_key(|f| (f.id != MISSPELT, f.mark != Mark::Failed));
        problems
    }

    /// Whether this check failed.
    fn has_failed_check(&self, id: &str) -> bool {
        let mut findings = self.findings.iter();
        findings.any(|finding| finding.id == id && finding.mark == Mark::Failed)
    }

    /// Adds a passed check.
    pub fn ok(&mut self, id: &'static str, text: impl Into<String>) {
        self.add(id, Mark::Ok, text);
    }

    /// Adds a warning.
    pub fn warn(&mut self, id: &'static str, text: impl Into<String>) {
        self.add(id, Mark::Warning, text);
    }

    /// Adds a failed check.
    pub fn fail(&mut self, id: &'static str, text: impl Into<String>) {
        self.add(id, Mark::Failed, text);
    }

    fn add(&mut self, id: &'static str, mark: Mark, text: impl Into<String>) {
        let text = text.into();
        self.findings.push(Finding { id, mark, text });
    }

    /// Adds `ok` if the condition holds, else the failure.
    fn expect(&mut self, id: &'static str, holds: bool, ok: &str, failed: impl Into<String>) {
        if holds {
            self.ok(id, ok);
        } else {
            self.fail(id, failed);
        }
    }
}

/// A client for each service of the settings, or why it could not be constructed.
pub struct Services {
    /// GitHub.
    pub github: anyhow::Result<Github>,
    /// Supabase Storage; `None` with the folder store, which needs no check beyond `DATA_DIR`'s.
    pub storage: anyhow::Result<Option<Store>>,
    /// OpenHands; `None` without a key.
    pub openhands: anyhow::Result<Option<Arc<OpenHands>>>,
    /// This machine's clock.
    pub clock: Clock,
}

/// Checks every setting. `receiver` is the URL at which GitHub should reach this server; `None`
/// accepts the URL of the repository's webhook. `connecting` opens the database, beside the checks that do
/// not need it; `None` while the embedded one does not exist.
pub async fn examine(
    config: &Config,
    sources: &Sources,
    services: &Services,
    connecting: impl Future<Output = Result<Option<Db>, DbError>>,
    receiver: Option<&Url>,
) -> Report {
    let mut report = Report::default();
    settings(config, sources, &mut report);
    let is_writable = disk(config, &mut report);
    let (reached, (github, videos), (data, limits), openhands) = tokio::join!(
        receiver::examine(config, receiver),
        github::examine(config, services, receiver),
        async {
            let connected = connecting.await;
            let clock = &services.clock;
            let (mut found, buckets) =
                database::examine(config, clock, connected, is_writable).await;
            let (storage, limits) = storage::examine(config, &services.storage, buckets).await;
            found.findings.extend(storage.findings);
            (found, limits)
        },
        openhands(&services.openhands),
    );
    let sizes = storage::sizes(config, &videos, &limits);
    // What is wrong with the address is the cause of failed deliveries.
    for part in [reached, github, data, sizes, openhands] {
        report.findings.extend(part.findings);
    }
    report
}

fn settings(config: &Config, sources: &Sources, report: &mut Report) {
    for text in sources.warnings() {
        report.warn(MISSPELT, text);
    }
    for (name, secret) in config.own_secrets() {
        let id = if name == ADMIN_TOKEN.name {
            "settings.admin_token"
        } else {
            "settings.webhook_secret"
        };
        match Strength::of(secret.expose_secret()) {
            Strength::Trivial => report.fail(id, format!("{name} {WEAK}.")),
            Strength::Weak => report.warn(id, format!("{name} {WEAK}.")),
            Strength::Strong => report.ok(id, format!("{name} is hard to guess.")),
        }
    }
    if config.admin_token.is_none() {
        let state = if sources.is_empty(&ADMIN_TOKEN) {
            "is empty, which counts as not set"
        } else {
            "is not set"
        };
        report.warn(
            "settings.admin_token",
            format!("ADMIN_TOKEN {state}, so the status page, /api and /reconcile return 404. Set it to the output of `openssl rand -hex 32`."),
        );
    }
    if config.workers == 0 {
        report.warn(
            "settings.workers",
            "WORKERS is 0, so another process must ingest the videos.",
        );
    }
    if config.reconcile_interval.is_none() {
        report.warn(
            "settings.reconcile_interval",
            "RECONCILE_INTERVAL is 0, so lost webhooks are never recovered unless something calls /reconcile. See deploy/cron.",
        );
    }
}

/// Whether `DATA_DIR` is writable.
fn disk(config: &Config, report: &mut Report) -> bool {
    let dir = &config.data_dir;
    let shown = dir.display();
    let writes = std::fs::create_dir_all(dir).and_then(|()| tempfile::tempfile_in(dir));
    if let Err(error) = writes {
        let text = format!(
            "DATA_DIR ({shown}) is not writable: {error}. Change its owner to the user that runs the server."
        );
        report.fail("disk.write", text);
        return false;
    }
    report.ok("disk.write", format!("DATA_DIR ({shown}) is writable."));
    let id = "disk.space";
    let largest = config.max_video_bytes.unwrap_or(VIDEO_BYTES_MAX_DEFAULT);
    let all = largest.saturating_mul(config.workers.max(1) as u64);
    let Some(free) = free_bytes(dir) else {
        report.warn(id, format!("Failed to get the free space in {shown}."));
        return true;
    };
    let text = format!("{shown} has {} of free space", size(free));
    if free < largest {
        let text = format!(
            "{text}, but one video can require {}. Free up some space or lower MAX_VIDEO_BYTES.",
            size(largest)
        );
        report.fail(id, text);
    } else if free < all {
        let text = format!(
            "{text}, but {} concurrent videos can require {}. Free up some space or lower WORKERS.",
            config.workers,
            size(all)
        );
        report.warn(id, text);
    } else {
        report.ok(id, format!("{text}."));
    }
    true
}

/// Asks OpenHands about a conversation that does not exist.
async fn openhands(agent: &anyhow::Result<Option<Arc<OpenHands>>>) -> Report {
    let mut report = Report::default();
    let agent = match agent {
        Ok(Some(agent)) => agent,
        Ok(None) => {
            report.warn(
                "openhands.key",
                "OPENHANDS_API_KEY is not set, so a failed generation is detected only after GENERATION_DEADLINE.",
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
                "OpenHands rejected OPENHANDS_API_KEY. Create a new key in the OpenHands settings.",
            ),
            "html_answer" | "malformed" => report.fail(
                "openhands.version",
                "OPENHANDS_API_URL does not serve the configured API version. Check OPENHANDS_API_URL (the API, not the web page) and OPENHANDS_API_VERSION.",
            ),
            "rate_limited" => report.warn(
                "openhands.api",
                "The OpenHands rate limit was reached. Try again in a minute.",
            ),
            _ => report.fail(
                "openhands.api",
                "OpenHands did not respond. Check OPENHANDS_API_URL and the OpenHands status page.",
            ),
        }
    }
    if errors.is_empty() {
        report.ok(
            "openhands.key",
            "OpenHands accepts the key and serves the configured API version.",
        );
    }
    report
}

/// Compares this machine's clock with another one.
fn compare_clocks(report: &mut Report, id: &'static str, whose: &str, now_ms: i64, theirs_ms: i64) {
    let apart = (now_ms - theirs_ms).abs();
    let seconds = apart / 1000;
    let text = format!("This machine's clock and {whose} differ by {seconds} s.");
    let fix = "Enable NTP: run `timedatectl set-ntp true`.";
    match apart {
        SKEW_MAX_MS.. => report.fail(id, format!("{text} {fix}")),
        SKEW_NOTED_MS.. => report.warn(id, format!("{text} {fix}")),
        _ => report.ok(id, text),
    }
}

/// Whether there is an app, with its tables, roles and publication.
fn is_supabase(config: &Config) -> bool {
    matches!(config.store, StoreConfig::Supabase { .. })
        && matches!(config.database, Database::Postgres { .. })
}
