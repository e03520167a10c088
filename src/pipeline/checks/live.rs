//! What is wrong with the running server as a whole. The status page, `GET /api/status` and `doctor` show it
//! before what is wrong with single videos. The checks call no service: they read what the server already
//! knows.

use std::time::Duration;

use jiff::Timestamp;

use super::{Mark, Report};
use crate::db::Overview;
use crate::domain::advice::advice;
use crate::domain::failure::Code;
use crate::domain::push::Ignored;
use crate::domain::state::VideoState;
use crate::format::elapsed;
use crate::services::github::RateLimit;
use crate::telemetry::refusals::{Refusal, Why};
use crate::telemetry::refused::Reason;

/// A video that is overdue for longer is not processed by any worker.
const OVERDUE_MAX: Duration = Duration::from_secs(600);

/// The same if no video is running: an idle worker looks for due videos every five seconds.
const OVERDUE_IDLE_MAX: Duration = Duration::from_secs(60);

/// For how long a refused or ignored delivery is a problem.
const REFUSAL_SHOWN: Duration = Duration::from_secs(24 * 3600);

/// From this part of the rate limit on, a warning is shown: 1/10.
const QUOTA_DIVISOR: u64 = 10;

/// GitHub's limit without a token, in requests per hour. Source: GitHub, "Rate limits for the REST API".
const ANONYMOUS_LIMIT: u64 = 60;

/// What a running server knows about itself. Times are in milliseconds since the Unix epoch.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The current time.
    pub now_ms: i64,
    /// The counts and times in the database.
    pub overview: &'a Overview,
    /// The deliveries that this process refused or ignored.
    pub refusals: &'a [Refusal],
    /// GitHub's rate limit; `None` before the first call.
    pub rate_limit: Option<RateLimit>,
    /// `owner/name`.
    pub repository: &'a str,
}

/// Why deliveries cannot be accepted; `None` if they can. `database`: whether it responds.
pub fn not_ready(database: bool) -> Option<&'static str> {
    (!database)
        .then_some("The database is unavailable. Check the server that DATABASE_URL points to.")
}

/// Why the server may not see what is pushed; `None` if no check of that has failed.
pub fn unseen_pushes(report: &Report) -> Option<&str> {
    let hides = |id: &str| id.starts_with("deliveries.") || id == "sweeps.failing";
    let mut failed = report.findings.iter().filter(|f| f.mark == Mark::Failed);
    let problem = failed.find(|finding| hides(finding.id));
    problem.map(|finding| finding.text.as_str())
}

/// The problems, failed checks first. Contains no finding that is correct.
pub fn problems(facts: &Facts<'_>) -> Report {
    let mut report = Report::default();
    workers(facts, &mut report);
    deliveries(facts, &mut report);
    sweeps(facts, &mut report);
    quota(facts, &mut report);
    outages(facts, &mut report);
    agents(facts, &mut report);
    report
        .findings
        .sort_by_key(|finding| finding.mark != Mark::Failed);
    report
}

fn workers(facts: &Facts<'_>, report: &mut Report) {
    let Some(due_ms) = facts.overview.oldest_due_ms else {
        return;
    };
    let overdue = facts.ago(due_ms);
    let is_idle = facts.overview.count(VideoState::Running) == 0;
    if overdue
        > if is_idle {
            OVERDUE_IDLE_MAX
        } else {
            OVERDUE_MAX
        }
    {
        let text = format!(
            "No worker has processed a video that was due {} ago. Check that a server with WORKERS greater than 0 is running, then check its log.",
            elapsed(overdue)
        );
        report.fail("server.workers", text);
    }
}

fn deliveries(facts: &Facts<'_>, report: &mut Report) {
    let last_push_ms = facts.overview.last_push_ms;
    // One problem for all reasons of a kind: everybody who can push chooses names of branches.
    let mut kinds: Vec<(Refusal, u64)> = Vec::new();
    for refusal in facts.refusals.iter().filter(|r| facts.is_problem(r)) {
        match kinds
            .iter_mut()
            .find(|(newest, _)| newest.why == refusal.why)
        {
            Some((_, count)) => *count += refusal.count,
            None => kinds.push((refusal.clone(), refusal.count)),
        }
    }
    for (newest, count) in kinds {
        let is_refused = matches!(newest.why, Why::Refused(_));
        let (id, verb) = if is_refused {
            ("deliveries.refused", "refused")
        } else {
            ("deliveries.ignored", "ignored")
        };
        let is_name = newest.why == Why::Ignored(Ignored::Name);
        let verb = if is_name { "ignored in part" } else { verb };
        let text = format!(
            "{} {verb}, the last one at {}. {}",
            counted(count, "delivery was", "deliveries were"),
            facts.time(newest.at_ms),
            explained(&newest, facts.repository)
        );
        // If pushes were accepted before, the refused requests may be those of unauthenticated clients.
        if is_name || is_refused && last_push_ms.is_some() {
            report.warn(id, text);
        } else {
            report.fail(id, text);
        }
    }
    if let Some((found_ms, count)) = facts.overview.unannounced
        && last_push_ms.is_none_or(|push| push < found_ms)
        && report
            .findings
            .iter()
            .all(|finding| !finding.id.starts_with("deliveries."))
    {
        let videos = counted(count.unsigned_abs(), "video", "videos");
        let since = last_push_ms.map_or_else(
            || "The server has no record of a push from GitHub".to_owned(),
            |push| format!("GitHub has delivered no push since {}", facts.time(push)),
        );
        let text = format!(
            "{since}, but the sweep at {} found {videos} that no delivery had named. Run `video-ingest doctor`, which checks the repository's webhook.",
            facts.time(found_ms)
        );
        report.warn("deliveries.missing", text);
    }
}

/// What a refused or ignored delivery means, and what to do.
pub fn explained(refusal: &Refusal, repository: &str) -> String {
    match refusal.why {
        Why::Refused(Reason::BadSignature) | Why::NotGithub(Reason::BadSignature) => "The signature did not match GITHUB_WEBHOOK_SECRET, or the request did not come from GitHub. If GitHub's recent deliveries show status 401, run `video-ingest webhook install --url <URL>`, which sets the secret.".to_owned(),
        Why::Refused(Reason::Malformed) | Why::NotGithub(Reason::Malformed) => "The body or a header was not in the form that GitHub sends. Check what the webhook's URL points to and that no proxy changes requests.".to_owned(),
        Why::Refused(Reason::UnsupportedMediaType) | Why::NotGithub(Reason::UnsupportedMediaType) => "The content type is not supported. Set the webhook's content type to application/json.".to_owned(),
        Why::Refused(Reason::TooLarge) | Why::NotGithub(Reason::TooLarge) => "The body was larger than the limit. GitHub does not send such deliveries.".to_owned(),
        Why::Refused(Reason::Busy) | Why::NotGithub(Reason::Busy) => "Too many large bodies were being received. Redeliver failed deliveries with `video-ingest webhook redeliver --failed`.".to_owned(),
        Why::Refused(_) | Why::NotGithub(_) => "A client was rejected.".to_owned(),
        Why::Ignored(Ignored::Repository) => format!(
            "The payload names another repository ({}). If {repository} was renamed or transferred, set GITHUB_REPOSITORY to its new name and restart the server; otherwise, delete the other repository's webhook.",
            refusal.reason
        ),
        Why::Ignored(Ignored::Branch) => format!(
            "The pushed branch is not the one that this server watches ({}). If the videos are pushed to that branch, set GITHUB_BRANCH and restart the server.",
            refusal.reason
        ),
        Why::Ignored(Ignored::Folder) => format!(
            "Videos were pushed to another folder ({}). Push them to the right one, or set GITHUB_VIDEOS_DIR and restart the server.",
            refusal.reason
        ),
        Why::Ignored(Ignored::Name) => format!(
            "An MP4 in the videos folder has another name than <lesson_id>_<video_id>.mp4 ({}). If it is a video, rename it.",
            refusal.reason
        ),
        Why::Ignored(Ignored::Other) => format!("There was nothing to process: {}.", refusal.reason),
    }
}

fn sweeps(facts: &Facts<'_>, report: &mut Report) {
    if let Some(failed) = &facts.overview.failed_sweep {
        let text = format!(
            "Sweeps have failed since {}, so videos whose webhooks were lost are not found. {}",
            facts.time(failed.since_ms),
            failed.message
        );
        report.fail("sweeps.failing", text);
    }
    let Some((at_ms, counts)) = &facts.overview.last_sweep else {
        return;
    };
    for (service, code) in &counts.errors {
        let text = match (service.as_str(), code.as_str()) {
            ("openhands", "unauthorized" | "forbidden") => "OpenHands rejected OPENHANDS_API_KEY, so failed generations are detected only at their deadline. Create a new key in the OpenHands settings.".to_owned(),
            ("openhands", "html_answer" | "malformed") => "OPENHANDS_API_URL does not serve the configured API version. Check OPENHANDS_API_URL and OPENHANDS_API_VERSION.".to_owned(),
            ("openhands", _) => format!("OpenHands did not respond as expected ({code}), so failed generations are detected later."),
            ("database", _) => "A row in lesson_assets has an invalid value and was skipped. Correct it; the server's log names the row and the column.".to_owned(),
            (service, code) => {
                let advice = Code::parse(code).map_or("", advice);
                format!("The {service} could not be checked ({code}). {advice}")
            }
        };
        let text = format!(
            "{text} This was found by the sweep at {}.",
            facts.time(*at_ms)
        );
        report.warn("sweeps.services", text);
    }
}

fn quota(facts: &Facts<'_>, report: &mut Report) {
    let Some(rate) = facts.rate_limit else {
        return;
    };
    let reset_ms = i64::try_from(rate.reset).unwrap_or(0).saturating_mul(1000);
    if rate.remaining >= rate.limit / QUOTA_DIVISOR || reset_ms <= facts.now_ms {
        return;
    }
    let fix = if rate.limit <= ANONYMOUS_LIMIT {
        "Set GITHUB_TOKEN, which raises the limit to 5,000 requests per hour."
    } else {
        "Until then, pushed videos wait. Check what else uses the token."
    };
    let text = format!(
        "{} of {} GitHub API requests remain until {}. {fix}",
        rate.remaining,
        rate.limit,
        facts.time(reset_ms)
    );
    if rate.remaining == 0 {
        report.fail("github.quota", text);
    } else {
        report.warn("github.quota", text);
    }
}

/// Videos that are tried again, because a service is unavailable.
fn outages(facts: &Facts<'_>, report: &mut Report) {
    for retried in &facts.overview.retried {
        let videos = counted(retried.count.unsigned_abs(), "video is", "videos are");
        let text = format!(
            "{videos} being retried because of {}, since {}. {}",
            retried.code,
            facts.time(retried.since_ms),
            advice(retried.code)
        );
        report.warn("videos.retried", text);
    }
}

fn agents(facts: &Facts<'_>, report: &mut Report) {
    let blocked = facts.overview.blocked;
    if blocked > 0 {
        let agents = counted(blocked.unsigned_abs(), "agent needs", "agents need");
        let text = format!(
            "{agents} a person to continue. Open the conversation from the page of each generating video whose status is blocked."
        );
        report.warn("agents.blocked", text);
    }
}

/// A number with the noun, and possibly the verb, that belongs to it.
fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

impl Facts<'_> {
    /// Whether deliveries of this kind are a problem. `refusals` is sorted, the newest first.
    fn is_problem(&self, refusal: &Refusal) -> bool {
        let last_push_ms = self.overview.last_push_ms;
        let is_one = match refusal.why {
            Why::Ignored(Ignored::Repository | Ignored::Folder | Ignored::Name) => true,
            // Pushes to other branches are common.
            Why::Ignored(Ignored::Branch) => last_push_ms.is_none(),
            // A later push that was accepted shows that the webhook is correct.
            Why::Refused(_) => last_push_ms.is_none_or(|push| push < refusal.at_ms),
            Why::Ignored(Ignored::Other) | Why::NotGithub(_) => false,
        };
        is_one && self.ago(refusal.at_ms) < REFUSAL_SHOWN
    }

    fn ago(&self, ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(self.now_ms - ms).unwrap_or(0))
    }

    /// Date and time in UTC.
    fn time(&self, ms: i64) -> String {
        let at = Timestamp::from_millisecond(ms).unwrap_or_default();
        at.strftime("%F %H:%M UTC").to_string()
    }
}
