//! GitHub: token, repository, branch, videos and the webhook.

use std::collections::HashMap;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit, civil};
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

/// The most LFS pointers that are read for the sizes of videos. Each read is a request.
const POINTERS_MAX: usize = 20;

/// Scopes of a classic token that reading a repository and managing its webhooks need.
const SCOPES_NEEDED: &[&str] = &[
    "repo",
    "public_repo",
    "admin:repo_hook",
    "write:repo_hook",
    "read:repo_hook",
];

/// The findings, and the names of the videos on the branch with their sizes in bytes.
pub(super) async fn examine(
    config: &Config,
    services: &Services,
    receiver: Option<&Url>,
) -> (Report, Vec<(String, u64)>) {
    let mut report = Report::default();
    let mut sizes = Vec::new();
    match &services.github {
        Ok(github) => look(config, services, github, receiver, &mut report, &mut sizes).await,
        Err(error) => report.fail("github.api", format!("{error:#}.")),
    }
    (report, sizes)
}

async fn look(
    config: &Config,
    services: &Services,
    github: &Github,
    receiver: Option<&Url>,
    report: &mut Report,
    sizes: &mut Vec<(String, u64)>,
) {
    let Some(facts) = repository(config, github, report).await else {
        return;
    };
    token(config, &facts, &services.clock, report);
    if let Some(theirs_ms) = facts.now_ms {
        let now_ms = services.clock.now_ms();
        compare_clocks(report, "github.clock", "GitHub's", now_ms, theirs_ms);
    }
    let branch = config
        .github
        .branch
        .as_deref()
        .unwrap_or(&facts.default_branch);
    match github.has_branch(branch).await {
        Ok(true) => {
            report.ok("github.branch", format!("The branch {branch} exists."));
            *sizes = videos(config, github, branch, report).await;
        }
        Ok(false) if config.github.branch.is_some() => report.fail(
            "github.branch",
            format!("The repository has no branch named {branch}. Set GITHUB_BRANCH to the branch that videos are pushed to."),
        ),
        Ok(false) => report.warn("github.branch", "The repository is empty. The first push will create its branch."),
        Err(failure) => trouble(failure, "github.branch", report),
    }
    // Without a token GitHub shows no webhooks, and that was reported above.
    if config.github.token.is_some() {
        hooks(github, receiver, report).await;
    }
    if let Some(limit) = github.rate_limit()
        && !report.has_failed_check("github.rate_limit")
    {
        let id = "github.rate_limit";
        let (left, all) = (limit.remaining, limit.limit);
        let reset = Timestamp::from_second(limit.reset.cast_signed()).unwrap_or_default();
        let text = format!(
            "{left} of {all} API requests remain until {} UTC.",
            reset.strftime("%H:%M")
        );
        if left * 10 < all {
            let action = if config.github.token.is_none() {
                "Set GITHUB_TOKEN for a much higher limit."
            } else {
                "Check which other programs use the same token or account."
            };
            report.warn(id, format!("{text} {action}"));
        } else {
            report.ok(id, text);
        }
    }
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
/// Once only, because one cause can make several requests fail.
fn trouble(failure: Failure, id: &'static str, report: &mut Report) {
    let (id, text) = match failure.code {
        Code::GithubDenied => ("github.token", failure.message),
        Code::RateLimited => ("github.rate_limit", failure.message),
        Code::GithubUnavailable => (
            "github.api",
            format!(
                "{} Check GITHUB_API_URL, the network of this machine and githubstatus.com.",
                failure.message
            ),
        ),
        _ => (id, failure.message),
    };
    if !report.has_failed_check(id) {
        report.fail(id, text);
    }
}

fn token(config: &Config, facts: &RepositoryFacts, clock: &Clock, report: &mut Report) {
    let id = "github.token";
    if config.github.token.is_none() {
        report.warn(
            id,
            "GITHUB_TOKEN is not set, so GitHub allows only 60 requests per hour and the webhook cannot be checked. Set it to a fine-grained token with Contents: read and Webhooks: read.",
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

/// Checks the videos on the branch. Returns their names and sizes in bytes, as far as they are known.
async fn videos(
    config: &Config,
    github: &Github,
    branch: &str,
    report: &mut Report,
) -> Vec<(String, u64)> {
    let dir = &config.github.videos_dir;
    let listing = match github.listing(Instant::now()).await {
        Ok(listing) => listing,
        Err(failure) => {
            trouble(failure, "github.videos", report);
            return Vec::new();
        }
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
        Err(failure) => {
            trouble(failure, "github.lfs", report);
            return Vec::new();
        }
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
    sizes(dir, github, &listing).await
}

/// The videos with their sizes in bytes. Those in LFS have theirs in a pointer, of which only some are read.
async fn sizes(dir: &str, github: &Github, listing: &Listing) -> Vec<(String, u64)> {
    let mut sizes = Vec::new();
    let mut reads = 0;
    for (key, pair) in listing.files.iter() {
        let Some(entry) = pair.mp4 else {
            continue;
        };
        let mut size = entry.size;
        if size <= POINTER_BYTES_MAX as u64 && reads < POINTERS_MAX {
            reads += 1;
            // A failure of one of the reads does not matter: the worker will meet and report it.
            if let Ok(bytes) = github.small_blob(entry.sha, size).await
                && let Some(pointer) = Pointer::parse(&bytes)
            {
                size = pointer.size;
            }
        }
        let (lesson, video) = (key.lesson_id, key.video_id);
        sizes.push((format!("{dir}/{lesson}_{video}.mp4"), size));
    }
    sizes
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
        let url = receiver.map_or("https://YOUR-HOST", Url::as_str);
        report.fail("hook.installed", format!("The repository has no webhook that points to /webhooks/github. Run `video-ingest webhook install --url {url}`."));
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
        Ok(deliveries) => outcomes(&deliveries, &hook.config.url, report),
        Err(failure) => trouble(failure, "hook.deliveries", report),
    }
}

fn configuration(hook: &Hook, receiver: Option<&Url>, report: &mut Report) {
    let url = &hook.config.url;
    let target = receiver.map_or(url.as_str(), Url::as_str);
    let fix = format!("Run `video-ingest webhook install --url {target}`.");
    if let Some(receiver) = receiver {
        report.expect(
            "hook.url",
            receiver.as_str() == url,
            "The webhook points to this server.",
            format!("The webhook points to {url} instead of {receiver}. {fix}"),
        );
    }
    report.expect(
        "hook.active",
        hook.active,
        "The webhook is active.",
        format!("The webhook is disabled. {fix}"),
    );
    let id = "hook.events";
    let has = |event: &str| hook.events.iter().any(|e| e == event);
    if has("push") && hook.events.len() == 1 {
        report.ok(id, "The webhook is subscribed to push events.");
    } else if has("push") || has("*") {
        let text = format!(
            "The webhook is subscribed to events other than pushes, which are ignored. {fix}"
        );
        report.warn(id, text);
    } else {
        report.fail(
            id,
            format!("The webhook is not subscribed to push events. {fix}"),
        );
    }
    let id = "hook.content_type";
    if hook.config.content_type == "json" {
        report.ok(id, "The webhook sends JSON.");
    } else {
        let text = format!("The webhook sends form data, which is larger than JSON. {fix}");
        report.warn(id, text);
    }
    report.expect(
        "hook.secret",
        hook.config.is_signed(),
        "The webhook signs its deliveries.",
        format!("The webhook has no secret, so every delivery is rejected. {fix}"),
    );
    report.expect(
        "hook.tls",
        hook.config.checks_certificates(),
        "GitHub verifies the server's certificate.",
        format!("GitHub does not verify the server's certificate. {fix}"),
    );
}

fn outcomes(deliveries: &[HookDelivery], url: &str, report: &mut Report) {
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
    let pushes = format!(
        "{} push(es) were not delivered: {}.",
        guids.len(),
        named.join(", ")
    );
    const REDELIVER: &str = "run `video-ingest webhook redeliver --failed`";
    // The newest attempt of all shows whether the cause still exists.
    let cause = deliveries.first().filter(|newest| !newest.succeeded());
    let text = match cause.map(|newest| cause_of(newest, url)) {
        Some(cause) => format!("{cause}; then {REDELIVER}. {pushes}"),
        None => format!("{pushes} Later deliveries succeeded, so {REDELIVER}."),
    };
    report.fail(id, text);
}

/// Why an attempt failed and what to do, without the final period.
fn cause_of(attempt: &HookDelivery, url: &str) -> String {
    let status = &attempt.status;
    match attempt.status_code {
        0 => format!(
            "GitHub cannot connect to {url} ({status}). Run `video-ingest doctor --url {url}`, and check that the firewall allows connections from GitHub"
        ),
        401 => format!(
            "GitHub signs deliveries with a secret other than GITHUB_WEBHOOK_SECRET (status 401). Run `video-ingest webhook install --url {url}`"
        ),
        503 => format!(
            "The server at {url}, or its database, is unavailable (status 503). Check it with `video-ingest doctor --url {url}`"
        ),
        code @ (502 | 504) => format!(
            "The proxy at {url} does not reach the server (status {code}). Start the server with `video-ingest serve`, or correct the address to which the proxy forwards requests"
        ),
        code @ (300..=399 | 403..=405) => format!(
            "{url} is not the address of this server (status {code}). Run `video-ingest webhook install --url https://YOUR-HOST`"
        ),
        413 => format!(
            "The proxy at {url} rejects large requests (status 413). Configure it to accept request bodies of up to 25 MB"
        ),
        code => {
            format!("The program at {url} rejected the delivery (status {code}). Check its log")
        }
    }
}
