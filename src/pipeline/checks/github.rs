//! GitHub: token, repository, branch, videos and the webhook.

use std::collections::HashMap;

use jiff::tz::TimeZone;
use jiff::{Unit, civil};
use reqwest::Url;
use tokio::time::Instant;

use super::{Report, Services, compare_clocks};
use crate::clock::Clock;
use crate::config::Config;
use crate::domain::failure::{Code, Failure};
use crate::domain::lfs::{POINTER_BYTES_MAX, Pointer};
use crate::services::github::{Github, Hook, HookDelivery, Listing, RepositoryFacts, failed_guids};

/// Failed deliveries that are listed; the others are counted.
const GUIDS_MAX: usize = 5;

/// A token that expires within this many days should be replaced now.
const TOKEN_DAYS_MIN: i64 = 14;

/// Scopes of a classic token that reading a repository and managing its webhooks need.
const SCOPES_NEEDED: &[&str] = &[
    "repo",
    "public_repo",
    "admin:repo_hook",
    "write:repo_hook",
    "read:repo_hook",
];

pub(super) async fn examine(
    config: &Config,
    services: &Services,
    receiver: Option<&Url>,
) -> Report {
    let mut report = Report::default();
    let github = match &services.github {
        Ok(github) => github,
        Err(error) => {
            report.fail("github.api", format!("{error:#}."));
            return report;
        }
    };
    let Some(facts) = repository(config, github, &mut report).await else {
        return report;
    };
    token(config, &facts, &services.clock, &mut report);
    if let Some(theirs_ms) = facts.now_ms {
        let now_ms = services.clock.now_ms();
        compare_clocks(&mut report, "github.clock", "GitHub's", now_ms, theirs_ms);
    }
    let branch = config
        .github
        .branch
        .as_deref()
        .unwrap_or(&facts.default_branch);
    match github.has_branch(branch).await {
        Ok(true) => {
            report.ok("github.branch", format!("The branch {branch} exists."));
            videos(config, github, branch, &mut report).await;
        }
        Ok(false) if config.github.branch.is_some() => report.fail(
            "github.branch",
            format!("The repository has no branch named {branch}. Set GITHUB_BRANCH to the branch that videos are pushed to."),
        ),
        Ok(false) => report.warn("github.branch", "The repository is empty. The first push will create its branch."),
        Err(failure) => trouble(failure, "github.branch", &mut report),
    }
    // Without a token GitHub shows no webhooks, and that was reported above.
    if config.github.token.is_some() {
        hooks(github, receiver, &mut report).await;
    }
    if let Some(limit) = github.rate_limit() {
        let id = "github.rate_limit";
        let (left, all) = (limit.remaining, limit.limit);
        let text = format!("{left} of {all} API requests remain for this hour.");
        if left * 10 < all {
            let text = format!("{text} Check whether something else is using the token.");
            report.warn(id, text);
        } else {
            report.ok(id, text);
        }
    }
    report
}

async fn repository(
    config: &Config,
    github: &Github,
    report: &mut Report,
) -> Option<RepositoryFacts> {
    let name = config.github.repository.to_string();
    let facts = match github.repository().await {
        Ok(Some(facts)) => facts,
        Ok(None) => {
            let hint = match config.github.token {
                Some(_) => {
                    "Check GITHUB_REPOSITORY, and check that GITHUB_TOKEN has access to the repository (Contents: read)."
                }
                None => "Check GITHUB_REPOSITORY; a private repository requires GITHUB_TOKEN.",
            };
            report.fail(
                "github.repository",
                format!("GitHub did not find the repository {name}. {hint}"),
            );
            return None;
        }
        Err(failure) => {
            trouble(failure, "github.repository", report);
            return None;
        }
    };
    report.expect(
        "github.repository",
        facts.full_name.eq_ignore_ascii_case(&name),
        &format!("{name} is readable."),
        format!(
            "{name} was renamed, so its pushes contain the new name. Set GITHUB_REPOSITORY to {}.",
            facts.full_name
        ),
    );
    Some(facts)
}

/// Reports a failed request under the setting that its code points to, else under `id`.
fn trouble(failure: Failure, id: &'static str, report: &mut Report) {
    match failure.code {
        Code::GithubDenied => report.fail("github.token", failure.message),
        Code::RateLimited => report.fail("github.rate_limit", failure.message),
        Code::GithubUnavailable => {
            report.fail(
                "github.api",
                format!("{} Check GITHUB_API_URL if this persists.", failure.message),
            );
        }
        _ => report.fail(id, failure.message),
    }
}

fn token(config: &Config, facts: &RepositoryFacts, clock: &Clock, report: &mut Report) {
    let id = "github.token";
    if config.github.token.is_none() {
        report.warn(
            id,
            "GITHUB_TOKEN is not set, so GitHub allows only 60 requests per hour and the webhook cannot be checked.",
        );
        return;
    }
    let scopes = facts.scopes.as_deref().unwrap_or_default();
    let extra: Vec<&str> = scopes
        .split(',')
        .map(str::trim)
        .filter(|scope| !scope.is_empty() && !SCOPES_NEEDED.contains(scope))
        .collect();
    if !extra.is_empty() {
        let extra = extra.join(", ");
        report.warn(
            id,
            format!("The token has more scopes than it needs ({extra}). A fine-grained token with Contents: read and Webhooks: write is enough."),
        );
    } else if let Some(days) = days_left(facts, clock)
        && days < TOKEN_DAYS_MIN
    {
        let text = format!("The token expires in {days} day(s). Create a new one.");
        report.warn(id, text);
    } else {
        report.ok(id, "GitHub accepts the token.");
    }
}

/// Days until the token expires, which GitHub writes as `2026-12-24 18:00:00 UTC`.
fn days_left(facts: &RepositoryFacts, clock: &Clock) -> Option<i64> {
    let day: civil::Date = facts
        .token_expires
        .as_deref()?
        .split(' ')
        .next()?
        .parse()
        .ok()?;
    let left = day.since((Unit::Day, clock.now().to_zoned(TimeZone::UTC).date()));
    Some(i64::from(left.ok()?.get_days()))
}

async fn videos(config: &Config, github: &Github, branch: &str, report: &mut Report) {
    let dir = &config.github.videos_dir;
    let listing = match github.listing(Instant::now()).await {
        Ok(listing) => listing,
        Err(failure) => return trouble(failure, "github.videos", report),
    };
    let (count, ignored) = (listing.files.len(), listing.ignored.len());
    match (count, ignored) {
        (0, 0) => report.warn("github.videos", format!("{dir}/ is empty. Check GITHUB_VIDEOS_DIR if videos have already been pushed.")),
        (_, 0) => report.ok("github.videos", format!("{dir}/ contains {count} video(s).")),
        _ => report.warn(
            "github.videos",
            format!("{dir}/ contains {count} video(s) and {ignored} file(s) that are not named <lesson_id>_<video_id>.mp4 or .json, such as {}.", listing.ignored[0]),
        ),
    }
    let tracked = match github.top_file(".gitattributes", branch).await {
        Ok(text) => text.is_some_and(|text| tracks_videos(&String::from_utf8_lossy(&text))),
        Err(failure) => return trouble(failure, "github.lfs", report),
    };
    match download(github, &listing).await {
        Ok(None) => {}
        Ok(Some(kept)) => {
            let text = format!("Downloaded a video successfully (stored in {kept}).");
            report.ok("github.download", text);
            if tracked && kept == "git" {
                report.warn(
                    "github.lfs",
                    ".gitattributes assigns videos to Git LFS, but they were pushed without it. Run `git lfs install` on the machine that the agent pushes from.",
                );
            } else {
                report.ok("github.lfs", "The pushed videos match .gitattributes.");
            }
        }
        Err(failure) => report.fail(
            "github.download",
            format!("Failed to download a video: {}", failure.message),
        ),
    }
}

/// Whether a `.gitattributes` puts `*.mp4`, or everything, into LFS.
fn tracks_videos(attributes: &str) -> bool {
    attributes.lines().any(|line| {
        let mut words = line.split_whitespace();
        let pattern = words.next().unwrap_or_default();
        let is_video =
            !pattern.starts_with('#') && (pattern.ends_with(".mp4") || pattern.ends_with('*'));
        is_video && words.any(|word| word == "filter=lfs")
    })
}

/// Starts to download the smallest video, which is an LFS pointer if there is one. Returns where the
/// video is stored, `None` without a video.
async fn download(github: &Github, listing: &Listing) -> Result<Option<&'static str>, Failure> {
    let smallest = listing
        .files
        .values()
        .filter_map(|pair| pair.mp4)
        .min_by_key(|entry| entry.size);
    let Some(entry) = smallest else {
        return Ok(None);
    };
    if entry.size > POINTER_BYTES_MAX as u64 {
        github.blob(entry.sha, entry.size).await?.chunk().await?;
        return Ok(Some("git"));
    }
    let bytes = github.small_blob(entry.sha, entry.size).await?;
    let Some(pointer) = Pointer::parse(&bytes) else {
        return Ok(Some("git"));
    };
    github
        .lfs(&pointer.oid.to_string(), pointer.size)
        .await?
        .chunk()
        .await?;
    Ok(Some("LFS"))
}

async fn hooks(github: &Github, receiver: Option<&Url>, report: &mut Report) {
    let all = match github.hooks().await {
        Ok(Some(all)) => all,
        Ok(None) => {
            report.warn(
                "hook.installed",
                "GITHUB_TOKEN does not have access to webhooks (Webhooks: read). Check the webhook in the repository's settings.",
            );
            return;
        }
        Err(failure) => return trouble(failure, "hook.installed", report),
    };
    let ours: Vec<&Hook> = all.iter().filter(|hook| hook.is_ours()).collect();
    let Some(hook) = ours.iter().find(|hook| hook.active).or(ours.first()) else {
        report.fail("hook.installed", "The repository has no webhook that points to /webhooks/github. Run `video-ingest webhook install --url https://YOUR-HOST`.");
        return;
    };
    match ours.len() {
        1 => report.ok(
            "hook.installed",
            format!("GitHub delivers webhooks to {}.", hook.config.url),
        ),
        n => report.warn(
            "hook.installed",
            format!(
                "{n} webhooks point to /webhooks/github. The checks below apply to {}.",
                hook.config.url
            ),
        ),
    }
    configuration(hook, receiver, report);
    match github.deliveries(hook.id).await {
        Ok(deliveries) => outcomes(&deliveries, report),
        Err(failure) => trouble(failure, "hook.deliveries", report),
    }
}

fn configuration(hook: &Hook, receiver: Option<&Url>, report: &mut Report) {
    const FIX: &str = "Run `video-ingest webhook install` to fix it.";
    if let Some(receiver) = receiver {
        let url = &hook.config.url;
        report.expect(
            "hook.url",
            receiver.as_str() == url,
            "The webhook points to this server.",
            format!("The webhook points to {url} instead of {receiver}. {FIX}"),
        );
    }
    report.expect(
        "hook.active",
        hook.active,
        "The webhook is active.",
        format!("The webhook is disabled. {FIX}"),
    );
    let id = "hook.events";
    let has = |event: &str| hook.events.iter().any(|e| e == event);
    if has("push") && hook.events.len() == 1 {
        report.ok(id, "The webhook is subscribed to push events.");
    } else if has("push") || has("*") {
        let text = format!(
            "The webhook is subscribed to events other than pushes, which are ignored. {FIX}"
        );
        report.warn(id, text);
    } else {
        report.fail(
            id,
            format!("The webhook is not subscribed to push events. {FIX}"),
        );
    }
    let id = "hook.content_type";
    if hook.config.content_type == "json" {
        report.ok(id, "The webhook sends JSON.");
    } else {
        let text = format!("The webhook sends form data, which is larger than JSON. {FIX}");
        report.warn(id, text);
    }
    report.expect(
        "hook.secret",
        hook.config.is_signed(),
        "The webhook signs its deliveries.",
        format!("The webhook has no secret, so every delivery is rejected. {FIX}"),
    );
    report.expect(
        "hook.tls",
        hook.config.checks_certificates(),
        "GitHub verifies the server's certificate.",
        format!("GitHub does not verify the server's certificate. {FIX}"),
    );
}

fn outcomes(deliveries: &[HookDelivery], report: &mut Report) {
    let id = "hook.deliveries";
    let guids = failed_guids(deliveries);
    if guids.is_empty() {
        let text = match deliveries.first() {
            Some(last) => format!(
                "Every push from the last three days was delivered, most recently at {}.",
                last.delivered_at
            ),
            None => "GitHub has not sent any deliveries in the last three days.".to_owned(),
        };
        report.ok(id, text);
        return;
    }
    // Newest first, so that collecting them in reverse keeps the last attempt of each delivery.
    let last: HashMap<&str, &HookDelivery> = deliveries
        .iter()
        .rev()
        .map(|d| (d.guid.as_str(), d))
        .collect();
    let failed: Vec<&HookDelivery> = guids
        .iter()
        .filter_map(|guid| last.get(guid.as_str()).copied())
        .collect();
    let named = failed.iter().take(GUIDS_MAX);
    let named: Vec<String> = named
        .map(|d| format!("{} ({})", d.guid, d.status))
        .collect();
    let hint = if failed.iter().any(|d| d.status_code == 401) {
        "Status 401 means that GitHub's secret differs from GITHUB_WEBHOOK_SECRET: run `video-ingest webhook install` first. "
    } else {
        ""
    };
    let text = format!(
        "{} push(es) were not delivered: {}. {hint}Run `video-ingest webhook redeliver --failed`.",
        guids.len(),
        named.join(", ")
    );
    report.fail(id, text);
}
