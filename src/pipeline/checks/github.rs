//! GitHub: token, repository, branch, videos, and the webhook that brings the pushes.

use std::collections::HashMap;

use tokio::time::Instant;

use super::{Options, Report, compare_clocks};
use crate::app;
use crate::config::Config;
use crate::domain::failure::{Code, Failure};
use crate::domain::lfs::{POINTER_BYTES_MAX, Pointer};
use crate::services::github::{Github, Hook, HookDelivery, Listing, RepositoryFacts, failed_guids};

/// Failed deliveries that are named; the others are counted.
const GUIDS_MAX: usize = 5;

/// A token that ends within this many days should be replaced now.
const TOKEN_DAYS_MIN: i64 = 14;

/// A classic token needs no more than one of these to read a repository and manage its webhooks.
const SCOPES_NEEDED: &[&str] = &[
    "repo",
    "public_repo",
    "admin:repo_hook",
    "write:repo_hook",
    "read:repo_hook",
];

pub(super) async fn examine(config: &Config, options: &Options) -> Report {
    let mut report = Report::default();
    let github = match app::github(config, &options.clock) {
        Ok(github) => github,
        Err(error) => {
            report.fail("github.api", error.to_string());
            return report;
        }
    };
    let Some(facts) = repository(config, &github, &mut report).await else {
        return report;
    };
    token(config, &facts, &mut report);
    if let Some(theirs_ms) = facts.now_ms {
        let now_ms = options.clock.now_ms();
        compare_clocks(&mut report, "github.clock", "GitHub's", now_ms, theirs_ms);
    }
    let branch = config
        .github
        .branch
        .as_deref()
        .unwrap_or(&facts.default_branch);
    match github.has_branch(branch).await {
        Ok(true) => {
            report.ok("github.branch", format!("the branch {branch} is there"));
            videos(config, &github, branch, &mut report).await;
        }
        Ok(false) if config.github.branch.is_some() => report.fail(
            "github.branch",
            format!("the repository has no branch {branch}: set GITHUB_BRANCH to the one that videos are pushed to"),
        ),
        Ok(false) => report.warn("github.branch", "the repository is empty: the first push makes its branch"),
        Err(failure) => trouble(failure, "github.branch", &mut report),
    }
    // Without a token GitHub shows no webhooks, which was said.
    if config.github.token.is_some() {
        hooks(&github, options, &mut report).await;
    }
    match github.rate_limit() {
        Some(limit) if limit.remaining * 10 < limit.limit => report.warn(
            "github.rate_limit",
            format!(
                "{} of {} calls are left in this hour: does something else use the token?",
                limit.remaining, limit.limit
            ),
        ),
        Some(limit) => report.ok(
            "github.rate_limit",
            format!(
                "{} of {} calls are left in this hour",
                limit.remaining, limit.limit
            ),
        ),
        None => {}
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
                    "check the name, and that GITHUB_TOKEN was given this repository (Contents: read)"
                }
                None => "check the name; a private one needs GITHUB_TOKEN",
            };
            report.fail(
                "github.repository",
                format!("GitHub shows no repository {name}: {hint}"),
            );
            return None;
        }
        Err(failure) => {
            trouble(failure, "github.repository", report);
            return None;
        }
    };
    match facts.full_name.eq_ignore_ascii_case(&name) {
        true => report.ok("github.repository", format!("{name} can be read")),
        false => report.fail(
            "github.repository",
            format!(
                "{name} is called {} now, and so do its pushes: set GITHUB_REPOSITORY to that",
                facts.full_name
            ),
        ),
    }
    Some(facts)
}

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

fn token(config: &Config, facts: &RepositoryFacts, report: &mut Report) {
    if config.github.token.is_none() {
        report.warn(
            "github.token",
            "GITHUB_TOKEN is not set: 60 calls an hour, and the webhook cannot be looked at",
        );
        return;
    }
    let scopes: Vec<&str> = facts
        .scopes
        .as_deref()
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .collect();
    let extra: Vec<&str> = scopes
        .iter()
        .copied()
        .filter(|scope| !scope.is_empty() && !SCOPES_NEEDED.contains(scope))
        .collect();
    if !extra.is_empty() {
        let extra = extra.join(", ");
        report.warn(
            "github.token",
            format!("the token may do more than it needs ({extra}): a fine-grained one with Contents: read and Webhooks: write will do"),
        );
    } else if let Some(days) = facts.token_expires.as_deref().and_then(days_left)
        && days < TOKEN_DAYS_MIN
    {
        report.warn(
            "github.token",
            format!("the token ends in {days} day(s): make a new one"),
        );
    } else {
        report.ok("github.token", "GitHub accepts the token");
    }
}

/// From `2026-12-24 18:00:00 UTC`.
fn days_left(expires: &str) -> Option<i64> {
    let day: jiff::civil::Date = expires.split(' ').next()?.parse().ok()?;
    let today = jiff::Zoned::now()
        .with_time_zone(jiff::tz::TimeZone::UTC)
        .date();
    day.since((jiff::Unit::Day, today))
        .ok()
        .map(|span| i64::from(span.get_days()))
}

async fn videos(config: &Config, github: &Github, branch: &str, report: &mut Report) {
    let dir = &config.github.videos_dir;
    let listing = match github.listing(Instant::now()).await {
        Ok(listing) => listing,
        Err(failure) => return trouble(failure, "github.videos", report),
    };
    let (count, ignored) = (listing.files.len(), listing.ignored.len());
    match (count, ignored) {
        (0, 0) => report.warn("github.videos", format!("nothing is in {dir}/ yet: check GITHUB_VIDEOS_DIR if something was pushed")),
        (_, 0) => report.ok("github.videos", format!("{dir}/ holds {count} video(s)")),
        _ => report.warn(
            "github.videos",
            format!("{dir}/ holds {count} video(s), and {ignored} file(s) that are not called <lesson_id>_<video_id>.mp4 or .json, such as {}", listing.ignored[0]),
        ),
    }
    let tracked = match github.top_file(".gitattributes", branch).await {
        Ok(text) => text.is_some_and(|text| tracks_videos(&String::from_utf8_lossy(&text))),
        Err(failure) => return trouble(failure, "github.lfs", report),
    };
    match download(github, &listing).await {
        Ok(None) => {}
        Ok(Some(kept)) => {
            let text = format!("a video can be downloaded (kept in {kept})");
            report.ok("github.download", text);
            match (kept, tracked) {
                ("git", true) => report.warn(
                    "github.lfs",
                    ".gitattributes wants videos in LFS, but they were pushed without: git lfs install where the agent pushes",
                ),
                _ => report.ok("github.lfs", ".gitattributes and what was pushed agree"),
            }
        }
        Err(failure) => report.fail(
            "github.download",
            format!("a video cannot be downloaded: {}", failure.message),
        ),
    }
}

/// Whether a `.gitattributes` has `*.mp4`, or everything, kept in LFS.
fn tracks_videos(attributes: &str) -> bool {
    attributes.lines().any(|line| {
        let mut words = line.split_whitespace();
        let pattern = words.next().unwrap_or_default();
        let is_video =
            !pattern.starts_with('#') && (pattern.ends_with(".mp4") || pattern.ends_with('*'));
        is_video && words.any(|word| word == "filter=lfs")
    })
}

/// Begins to download the smallest video, which is an LFS pointer if there is one.
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

async fn hooks(github: &Github, options: &Options, report: &mut Report) {
    let all = match github.hooks().await {
        Ok(Some(all)) => all,
        Ok(None) => {
            report.warn(
                "hook.installed",
                "the token may not see webhooks (Webhooks: read): look at the repository's settings yourself",
            );
            return;
        }
        Err(failure) => return trouble(failure, "hook.installed", report),
    };
    let ours: Vec<&Hook> = all.iter().filter(|hook| hook.is_ours()).collect();
    let Some(hook) = ours.iter().find(|hook| hook.active).or(ours.first()) else {
        report.fail("hook.installed", "no webhook of the repository leads to /webhooks/github: video-ingest webhook install --url https://YOUR-HOST");
        return;
    };
    match ours.len() {
        1 => report.ok(
            "hook.installed",
            format!("GitHub delivers to {}", hook.config.url),
        ),
        n => report.warn(
            "hook.installed",
            format!(
                "{n} webhooks lead to /webhooks/github; looking at the one to {}",
                hook.config.url
            ),
        ),
    }
    configuration(hook, options, report);
    match github.deliveries(hook.id).await {
        Ok(deliveries) => outcomes(&deliveries, report),
        Err(failure) => trouble(failure, "hook.deliveries", report),
    }
}

fn configuration(hook: &Hook, options: &Options, report: &mut Report) {
    const MEND: &str = "video-ingest webhook install mends it";
    match &options.receiver {
        Some(receiver) if receiver.as_str() == hook.config.url => {
            report.ok("hook.url", "it leads to this server");
        }
        Some(receiver) => report.fail(
            "hook.url",
            format!("it leads to {}, not to {receiver}; {MEND}", hook.config.url),
        ),
        None => {}
    }
    match hook.active {
        true => report.ok("hook.active", "it is active"),
        false => report.fail("hook.active", format!("it is switched off; {MEND}")),
    }
    let has = |event: &str| hook.events.iter().any(|e| e == event);
    match (has("push"), hook.events.len()) {
        (true, 1) => report.ok("hook.events", "it brings pushes"),
        (true, _) => report.warn(
            "hook.events",
            format!("it brings other events too, which are ignored; {MEND}"),
        ),
        _ if has("*") => report.warn(
            "hook.events",
            format!("it brings every event, most of which are ignored; {MEND}"),
        ),
        _ => report.fail("hook.events", format!("it brings no pushes; {MEND}")),
    }
    match hook.config.content_type.as_str() {
        "json" => report.ok("hook.content_type", "it sends JSON"),
        _ => report.warn(
            "hook.content_type",
            format!("it sends forms, which are larger; {MEND}"),
        ),
    }
    match hook.config.is_signed() {
        true => report.ok("hook.secret", "its deliveries are signed"),
        false => report.fail(
            "hook.secret",
            format!("it has no secret, so every delivery is refused; {MEND}"),
        ),
    }
    match hook.config.checks_certificates() {
        true => report.ok("hook.tls", "certificates are checked"),
        false => report.fail(
            "hook.tls",
            format!("GitHub does not check our certificate; {MEND}"),
        ),
    }
}

fn outcomes(deliveries: &[HookDelivery], report: &mut Report) {
    let guids = failed_guids(deliveries);
    if guids.is_empty() {
        let text = match deliveries.first() {
            Some(last) => format!(
                "none of the last three days is missing; the last came {}",
                last.delivered_at
            ),
            None => "GitHub has sent nothing in the last three days".to_owned(),
        };
        report.ok("hook.deliveries", text);
        return;
    }
    let last: HashMap<&str, &HookDelivery> = deliveries
        .iter()
        .rev()
        .map(|d| (d.guid.as_str(), d))
        .collect();
    let named: Vec<String> = guids
        .iter()
        .take(GUIDS_MAX)
        .filter_map(|guid| Some(format!("{guid} ({})", last.get(guid.as_str())?.status)))
        .collect();
    let is_refused = guids.iter().any(|guid| {
        last.get(guid.as_str())
            .is_some_and(|d| d.status_code == 401)
    });
    let hint = match is_refused {
        true => {
            "401 means another secret than GITHUB_WEBHOOK_SECRET: video-ingest webhook install sets it; then "
        }
        false => "",
    };
    report.fail(
        "hook.deliveries",
        format!(
            "{} delivery(ies) never arrived: {}; {hint}video-ingest webhook redeliver --failed",
            guids.len(),
            named.join(", ")
        ),
    );
}
