//! `GET /api/status`: what is wrong with the whole, and how much is in which state. The first page and the
//! command line show the same.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::problem::ProblemBody;
use super::{AppState, Problem};
use crate::db::{Overview, timestamp};
use crate::domain::advice::advice;
use crate::domain::failure::{Class, Code};
use crate::domain::state::VideoState;
use crate::pipeline::checks::live::{self, Facts};
use crate::pipeline::checks::{Finding, Mark, Report};

/// The state of the server and of all videos.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Status {
    /// The problems of the server as a whole, failed checks first.
    pub problems: Vec<ProblemView>,
    /// The failed videos by code: those with a common cause first, then the most frequent ones.
    pub failures: Vec<FailureGroup>,
    /// The number of generating videos whose agent needs a person.
    pub attention: i64,
    /// The number of videos per state. At most 1,000 generating videos are counted.
    pub counts: BTreeMap<&'static str, i64>,
    /// The number of queued videos whose next attempt is later, at most 1,000.
    pub backing_off: i64,
    /// When the video that has waited longest for a worker became due.
    pub oldest_due_at: Option<String>,
    /// When the last push was accepted.
    pub last_push_at: Option<String>,
    /// The last completed sweep.
    pub last_sweep: Option<LastSweep>,
    /// About when the next sweep of this process begins.
    pub next_sweep_at: Option<String>,
    /// The last 24 hours.
    pub day: DayView,
}

/// A problem of the server as a whole.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct ProblemView {
    /// The check, stable across versions.
    pub id: &'static str,
    /// `failed` or `warning`.
    #[schema(value_type = String)]
    pub mark: Mark,
    /// The cause and what to do.
    pub text: String,
}

/// The failed videos with the same code.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct FailureGroup {
    /// The code of the failure.
    #[schema(value_type = String)]
    pub code: Code,
    /// `invalid`, `configuration`, `transient` or `expired`.
    #[schema(value_type = String)]
    pub class: Class,
    /// The number of videos.
    pub count: i64,
    /// When the first of them failed.
    pub oldest_at: String,
    /// What to do.
    pub advice: &'static str,
    /// The last one that failed.
    pub video_id: Uuid,
    /// Its lesson.
    pub lesson_id: Uuid,
    /// Its message.
    pub message: String,
}

/// A completed sweep. The counts are those of its report.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct LastSweep {
    pub at: String,
    pub checked: usize,
    pub found: usize,
    pub failed: usize,
    pub generating: usize,
}

/// The last 24 hours.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct DayView {
    /// The number of videos that became ready.
    pub ready: i64,
    /// The number of videos that failed.
    pub failed: i64,
    /// The median time from the request to the ready row, in milliseconds.
    pub median_ms: Option<u64>,
    /// The 95th percentile of that time, in milliseconds.
    pub p95_ms: Option<u64>,
    /// The hours, oldest first.
    pub hours: Vec<HourView>,
}

/// One hour.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct HourView {
    pub at: String,
    pub ready: i64,
    pub failed: i64,
}

/// Returns what is wrong with the server as a whole, the failed videos by code, and all counts.
#[utoipa::path(
    get,
    path = "/api/status",
    responses(
        (status = 200, body = Status, description = "The state of the server and of all videos"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn get(State(app): State<AppState>) -> Result<Json<Status>, Problem> {
    let overview = app.overview.get(&app.db).await?;
    let day = app.db.day().await?;
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(Json(Status {
        problems: problems(&app, &overview),
        failures: failures(&overview),
        attention: overview.blocked,
        counts: VideoState::ALL
            .iter()
            .map(|state| (state.as_str(), overview.count(*state)))
            .collect(),
        backing_off: backing_off(&overview),
        oldest_due_at: overview.oldest_due_ms.map(timestamp),
        last_push_at: overview.last_push_ms.map(timestamp),
        last_sweep: overview.last_sweep.as_ref().map(|(at, counts)| LastSweep {
            at: timestamp(*at),
            checked: counts.checked,
            found: counts.found,
            failed: counts.failed,
            generating: counts.generating,
        }),
        next_sweep_at: next_sweep_ms(&app, &overview).map(timestamp),
        day: DayView {
            ready: day.hours.iter().map(|hour| hour.ready).sum(),
            failed: day.hours.iter().map(|hour| hour.failed).sum(),
            median_ms: day.median.map(ms),
            p95_ms: day.p95.map(ms),
            hours: day
                .hours
                .iter()
                .map(|hour| HourView {
                    at: timestamp(hour.start_ms),
                    ready: hour.ready,
                    failed: hour.failed,
                })
                .collect(),
        },
    }))
}

/// What is wrong with the server as a whole, failed checks first.
pub(super) fn problems(app: &AppState, overview: &Overview) -> Vec<ProblemView> {
    let view = |Finding { id, mark, text }| ProblemView { id, mark, text };
    report(app, overview)
        .findings
        .into_iter()
        .map(view)
        .collect()
}

/// The same as a report.
pub(super) fn report(app: &AppState, overview: &Overview) -> Report {
    live::problems(&Facts {
        now_ms: app.clock.now_ms(),
        overview,
        refusals: &app.refusals.newest_first(),
        rate_limit: app.github.rate_limit(),
        repository: &app.repository,
    })
}

/// The failed videos by code.
pub(super) fn failures(overview: &Overview) -> Vec<FailureGroup> {
    let groups = overview.failures.iter().map(|group| FailureGroup {
        code: group.code,
        class: group.code.class(),
        count: group.count,
        oldest_at: timestamp(group.oldest_ms),
        advice: advice(group.code),
        video_id: group.newest.video_id,
        lesson_id: group.newest.lesson_id,
        message: group.message.clone(),
    });
    groups.collect()
}

/// The number of queued videos whose next attempt is later.
pub(super) fn backing_off(overview: &Overview) -> i64 {
    overview.retried.iter().map(|retried| retried.count).sum()
}

/// About when the next sweep begins, in milliseconds since the Unix epoch; `None` if no process that is known
/// here sweeps by itself.
pub(super) fn next_sweep_ms(app: &AppState, overview: &Overview) -> Option<i64> {
    let interval = app.reconcile_interval?;
    let succeeded = overview.last_sweep.as_ref().map(|(at_ms, _)| *at_ms);
    let failed = overview.failed_sweep.as_ref().map(|failed| failed.at_ms);
    let last_ms = succeeded.max(failed)?;
    Some((last_ms + interval.as_millis() as i64).max(app.clock.now_ms()))
}
