//! The JSON API for operators: videos, deliveries and `POST /reconcile`.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::problem::ProblemBody;
use super::status::{next_sweep_ms, report};
use super::{AppState, ErrorCode, Problem};
use crate::db::{DbError, DeliveryView, Filter, Page, VideoDetail, VideoView, timestamp};
use crate::domain::explanation::Situation;
use crate::domain::failure::Code;
use crate::domain::ids::{VideoKey, canonical_uuid};
use crate::domain::links::Links;
use crate::domain::report::SweepReport;
use crate::domain::request::{Request, Source};
use crate::domain::state::VideoState;
use crate::pipeline::checks::live::{explained, unseen_pushes};
use crate::pipeline::sweep::{SweepError, SweepOptions};
use crate::telemetry::refusals::{Refusal, Why};

/// How long `/reconcile` waits by default, in seconds.
const WAIT_DEFAULT: u64 = 25;

/// How long `/reconcile` waits at most, in seconds.
const WAIT_MAX: u64 = 300;

/// The number of hexadecimal digits of a commit's SHA.
const SHA_DIGITS: usize = 40;

/// The number of videos that one statement requests when all failed videos are retried.
const RETRY_BATCH: usize = 500;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// `generating`, `queued`, `running`, `waiting`, `ready` or `failed`.
    state: Option<String>,
    /// A failure code.
    code: Option<String>,
    /// The id of a video or lesson, the beginning of one, or a file name. `<lesson_id>_` means the videos of
    /// one lesson.
    q: Option<String>,
    /// The SHA of a commit or its beginning: videos that were read from it, or that its delivery names.
    commit: Option<String>,
    /// RFC 3339: videos whose `updated_at` is not before this time.
    since: Option<String>,
    /// RFC 3339: videos whose `updated_at` is not after this time.
    until: Option<String>,
    /// `next` of the previous page.
    cursor: Option<String>,
    /// 1 to 200; the default is 50.
    limit: Option<i64>,
}

/// A page of videos, most recently updated first.
#[derive(Serialize, ToSchema)]
pub(super) struct Videos {
    videos: Vec<VideoView>,
    /// The `cursor` of the next page; `null` on the last page.
    #[schema(required)]
    next: Option<String>,
}

/// Lists videos, most recently updated first. Rows without a push have the state `generating`.
#[utoipa::path(
    get,
    path = "/api/videos",
    params(ListQuery),
    responses(
        (status = 200, body = Videos, description = "A page of videos"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn videos(
    State(app): State<AppState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Videos>, Problem> {
    let Query(query) = query?;
    let Some(filter) = query.filter()? else {
        // No video has an unknown state or code.
        let (videos, next) = (Vec::new(), None);
        return Ok(Json(Videos { videos, next }));
    };
    let page = page(&app, &filter).await?;
    Ok(Json(Videos {
        videos: page.items,
        next: page.next,
    }))
}

impl ListQuery {
    /// `None` if the state or the code is unknown.
    fn filter(self) -> Result<Option<Filter>, Problem> {
        let state = self.state.filter(|text| !text.is_empty());
        let code = self.code.filter(|text| !text.is_empty());
        let known_state = state.as_deref().and_then(VideoState::parse);
        let known_code = code.as_deref().and_then(Code::parse);
        if state.is_some() != known_state.is_some() || code.is_some() != known_code.is_some() {
            return Ok(None);
        }
        Ok(Some(Filter {
            state: known_state,
            code: known_code,
            q: self.q.filter(|q| !q.is_empty()),
            commit: commit("commit", self.commit)?,
            since_ms: time("since", self.since)?,
            until_ms: time("until", self.until)?,
            cursor: self.cursor,
            limit: self.limit,
        }))
    }
}

/// Parses a parameter that is the SHA of a commit or its beginning.
pub(super) fn commit(name: &str, text: Option<String>) -> Result<Option<String>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if text.len() > SHA_DIGITS || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Problem::malformed(format!(
            "`{name}` must be the SHA of a commit or its beginning."
        )));
    }
    Ok(Some(text))
}

/// Parses a parameter that is a time.
pub(super) fn time(name: &str, text: Option<String>) -> Result<Option<i64>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let time: Timestamp = text.parse().map_err(|_| {
        Problem::malformed(format!(
            "`{name}` must be a time such as 2026-01-28T21:00:00Z."
        ))
    })?;
    Ok(Some(time.as_millisecond()))
}

/// A page of videos as the API and the status page show them.
pub(super) async fn page(app: &AppState, filter: &Filter) -> Result<Page<VideoView>, DbError> {
    let mut page = app.db.videos(filter).await?;
    let lessons = page.items.iter().map(|video| video.lesson_id).collect();
    let titles = app.db.lesson_titles(lessons).await;
    for video in &mut page.items {
        video.lesson_title = titles.get(&video.lesson_id).cloned();
        complete(app, video);
    }
    Ok(page)
}

/// Why OpenHands is not asked about a video; `None` if it is.
fn not_asked(app: &AppState, conversation_id: Option<&str>) -> Option<&'static str> {
    if app.sweep.openhands.is_none() {
        Some("OPENHANDS_API_KEY is not set")
    } else if conversation_id.is_none() {
        Some("the row has no conversation_id")
    } else {
        None
    }
}

/// Adds what follows from the settings.
fn complete(app: &AppState, video: &mut VideoView) {
    let conversation = video.conversation_id.as_deref();
    video.conversation_url = conversation.and_then(|id| app.sites.conversation(id));
    if let Some(generation) = &mut video.generation {
        let created_ms = video.times.row_created_ms.unwrap_or_default();
        let deadline_ms = created_ms + app.sweep.generation_deadline.as_millis() as i64;
        video.times.deadline_ms = Some(deadline_ms);
        generation.deadline_at = Some(timestamp(deadline_ms));
        if let (None, Some(reason)) = (&generation.reported, not_asked(app, conversation)) {
            generation.detail = format!("OpenHands is not asked, because {reason}.");
        }
    }
}

/// A video with its timeline, an explanation of its state and links.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct Video {
    #[serde(flatten)]
    pub detail: VideoDetail,
    /// Why the video is in its state, since when, and what happens next.
    pub explanation: String,
    /// Web pages that show more.
    pub links: Links,
}

/// Returns a video with its timeline.
#[utoipa::path(
    get,
    path = "/api/videos/{video_id}",
    params(("video_id" = Uuid, Path), LessonQuery),
    responses(
        (status = 200, body = Video, description = "The video"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn video(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
    Query(lesson): Query<LessonQuery>,
) -> Result<Json<Video>, Problem> {
    find_video(&app, &video_id, &lesson).await.map(Json)
}

/// The response to a retry.
#[derive(Serialize, ToSchema)]
pub(super) struct Queued {
    video_id: Uuid,
    #[schema(value_type = String)]
    status: VideoState,
}

/// Requests a video again, even if its current files were rejected. Returns 409 `still_generating` if the
/// video is still being generated.
#[utoipa::path(
    post,
    path = "/api/videos/{video_id}/retry",
    params(("video_id" = Uuid, Path), LessonQuery),
    responses(
        (status = 202, body = Queued, description = "The video is queued"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn retry(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
    Query(lesson): Query<LessonQuery>,
) -> Result<Response, Problem> {
    let key = request_retry(&app, &video_id, &lesson).await?;
    let body = Queued {
        video_id: key.video_id,
        status: VideoState::Queued,
    };
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

/// Which videos to retry. Other members are rejected: a misspelt filter would retry all videos.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RetryAll {
    /// `failed`
    state: String,
    /// Only videos with this failure code.
    code: Option<String>,
}

/// The response to a retry of several videos.
#[derive(Serialize, ToSchema)]
pub(super) struct Retried {
    retried: u64,
}

/// Requests all failed videos again, or those with one failure code.
#[utoipa::path(
    post,
    path = "/api/videos/retry",
    request_body = RetryAll,
    responses(
        (status = 202, body = Retried, description = "The videos are queued"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn retry_all(
    State(app): State<AppState>,
    body: Result<Json<RetryAll>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(RetryAll { state, code }) = body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Problem::new(ErrorCode::PayloadTooLarge, "The body is larger than 4 KiB.");
        }
        Problem::malformed(
            "The body must be JSON such as {\"state\":\"failed\",\"code\":\"bucket_missing\"}.",
        )
    })?;
    if VideoState::parse(&state) != Some(VideoState::Failed) {
        return Err(Problem::malformed("`state` must be `failed`."));
    }
    let known = code.as_deref().map(Code::parse);
    if known == Some(None) {
        return Err(Problem::malformed("`code` must be a failure code."));
    }
    let retried = request_retries(&app, known.flatten()).await?;
    Ok((StatusCode::ACCEPTED, Json(Retried { retried })).into_response())
}

/// Requests all failed videos with this code on behalf of an operator. Returns their number.
pub(super) async fn request_retries(app: &AppState, code: Option<Code>) -> Result<u64, DbError> {
    let started_ms = app.clock.now_ms();
    let mut retried = 0;
    loop {
        // Without the time, a video that fails again at once would be requested in a loop.
        let keys = app.db.failed(code, started_ms, RETRY_BATCH).await?;
        let requests = keys
            .iter()
            .map(|key| Request::new(*key, Source::Retry, "retried by an operator"));
        app.db.request(requests).await?;
        app.wake.notify_waiters();
        retried += keys.len() as u64;
        if keys.len() < RETRY_BATCH {
            return Ok(retried);
        }
    }
}

/// Requests a video on behalf of an operator, unless nothing has been pushed for it yet: an attempt would find
/// no file and fail the row, although the agent is still working.
pub(super) async fn request_retry(
    app: &AppState,
    video_id: &str,
    lesson: &LessonQuery,
) -> Result<VideoKey, Problem> {
    let key = find_detail(app, video_id, lesson).await?.video.key();
    if app.db.is_generating(key).await? {
        return Err(Problem::new(
            ErrorCode::StillGenerating,
            "The video is still being generated, and nothing has been pushed for it. It is ingested when the agent pushes it.",
        ));
    }
    let request = Request::new(key, Source::Retry, "retried by an operator");
    app.db.request([request]).await?;
    app.wake.notify_waiters();
    Ok(key)
}

/// Returns the video that a URL names.
pub(super) async fn find_video(
    app: &AppState,
    video_id: &str,
    lesson: &LessonQuery,
) -> Result<Video, Problem> {
    let mut detail = find_detail(app, video_id, lesson).await?;
    let video = &mut detail.video;
    let mut titles = app.db.lesson_titles(vec![video.lesson_id]).await;
    video.lesson_title = titles.remove(&video.lesson_id);
    complete(app, video);
    let overview = app.overview.get(&app.db).await?;
    let agent = video.generation.as_ref().and_then(|g| g.reported.as_ref());
    let is_busy = overview.count(VideoState::Running) > 0;
    let problems = report(app, &overview);
    let situation = Situation {
        now_ms: app.clock.now_ms(),
        state: Some(video.state),
        code: video.code,
        message: video.message.as_deref(),
        changed_ms: video.times.updated_ms,
        requested_ms: video.times.requested_ms,
        next_attempt_ms: video.times.next_attempt_ms,
        row_created_ms: video.times.row_created_ms,
        deadline_ms: video.times.deadline_ms,
        agent: agent.zip(video.times.checked_ms),
        not_asked: not_asked(app, video.conversation_id.as_deref()),
        next_sweep_ms: next_sweep_ms(app, &overview),
        unseen_pushes: unseen_pushes(&problems),
        has_idle_queue: !is_busy,
    };
    let links = app.sites.links(
        video.key(),
        video.conversation_id.as_deref(),
        video.commit.as_deref(),
        detail.bucket.as_deref(),
    );
    Ok(Video {
        explanation: situation.explanation(),
        links,
        detail,
    })
}

async fn find_detail(
    app: &AppState,
    video_id: &str,
    lesson: &LessonQuery,
) -> Result<VideoDetail, Problem> {
    let id = canonical_uuid(video_id).ok_or_else(Problem::not_found)?;
    let lesson = match lesson.lesson_id.as_deref().filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(canonical_uuid(text).ok_or_else(Problem::not_found)?),
    };
    let found = app.db.video(id, lesson).await?;
    found.ok_or_else(Problem::not_found)
}

/// The lesson of a video, required if files name the video with several lessons.
#[derive(Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LessonQuery {
    /// The id of the lesson.
    pub(super) lesson_id: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeliveriesQuery {
    /// `next` of the previous page.
    pub(super) cursor: Option<String>,
}

/// A page of deliveries, newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Deliveries {
    deliveries: Vec<DeliveryView>,
    /// The `cursor` of the next page; `null` on the last page.
    #[schema(required)]
    next: Option<String>,
    /// The deliveries that this process refused or ignored, newest first: at most 100 reasons.
    refused: Vec<RefusalView>,
}

/// Deliveries that this process refused or ignored for the same reason.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct RefusalView {
    /// `refused` or `ignored`.
    pub status: &'static str,
    /// The code of the error, or the reason in words.
    pub reason: String,
    /// What it means and what to do.
    pub text: String,
    /// When the first one was received.
    pub first_at: String,
    /// When the last one was received.
    pub at: String,
    /// Their number.
    pub count: u64,
}

/// The deliveries that this process refused or ignored, newest first.
pub(super) fn refusals(app: &AppState) -> Vec<RefusalView> {
    let refusals = app.refusals.newest_first().into_iter();
    let view = |refusal: Refusal| RefusalView {
        text: explained(&refusal, &app.repository),
        first_at: timestamp(refusal.first_ms),
        at: timestamp(refusal.at_ms),
        count: refusal.count,
        status: match refusal.why {
            Why::Refused(_) | Why::NotGithub(_) => "refused",
            Why::Ignored(_) => "ignored",
        },
        reason: match refusal.why {
            Why::Refused(reason) | Why::NotGithub(reason) => reason.as_str().to_owned(),
            Why::Ignored(_) => refusal.reason,
        },
    };
    refusals.map(view).collect()
}

/// Lists deliveries, newest first.
#[utoipa::path(
    get,
    path = "/api/deliveries",
    params(DeliveriesQuery),
    responses(
        (status = 200, body = Deliveries, description = "A page of deliveries"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn deliveries(
    State(app): State<AppState>,
    query: Result<Query<DeliveriesQuery>, QueryRejection>,
) -> Result<Json<Deliveries>, Problem> {
    let Query(query) = query?;
    let page = app.db.deliveries(query.cursor.as_deref()).await?;
    Ok(Json(Deliveries {
        deliveries: page.items,
        next: page.next,
        refused: refusals(&app),
    }))
}

/// Returns a delivery.
#[utoipa::path(
    get,
    path = "/api/deliveries/{delivery}",
    params(("delivery" = String, Path, description = "The GUID that GitHub assigned to it")),
    responses(
        (status = 200, body = DeliveryView, description = "The delivery"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn delivery(
    State(app): State<AppState>,
    Path(guid): Path<String>,
) -> Result<Json<DeliveryView>, Problem> {
    let found = app.db.delivery(&guid).await?;
    found.map(Json).ok_or_else(Problem::not_found)
}

/// All parameters are text, because an empty value, as in `dry_run=&wait=`, means the default.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ReconcileQuery {
    /// Report what a sweep would do, without writing anything.
    #[param(value_type = Option<bool>)]
    dry_run: Option<String>,
    /// How many seconds to wait for the queued videos, 0 to 300; the default is 25.
    #[param(value_type = Option<u64>)]
    wait: Option<String>,
    /// Limit the sweep to this video.
    video_id: Option<String>,
    /// Compare ready rows with the objects in the storage, too.
    #[param(value_type = Option<bool>)]
    verify: Option<String>,
}

fn flag(name: &str, text: Option<&str>) -> Result<bool, Problem> {
    match text.unwrap_or_default() {
        "" | "false" | "0" => Ok(false),
        "true" | "1" => Ok(true),
        _ => Err(Problem::malformed(format!(
            "`{name}` must be true or false."
        ))),
    }
}

/// Runs a sweep: compares the branch with all records and rows, and requests what is missing.
#[utoipa::path(
    post,
    path = "/reconcile",
    params(ReconcileQuery),
    responses(
        (status = 200, body = SweepReport, description = "The result of the sweep"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn reconcile(
    State(app): State<AppState>,
    query: Result<Query<ReconcileQuery>, QueryRejection>,
) -> Result<Json<SweepReport>, Problem> {
    let Query(query) = query?;
    let only = match query.video_id.as_deref() {
        None | Some("") => None,
        Some(text) => Some(
            canonical_uuid(text).ok_or_else(|| Problem::malformed("`video_id` must be a UUID."))?,
        ),
    };
    let wait = match query.wait.as_deref() {
        None | Some("") => Some(WAIT_DEFAULT),
        Some(text) => text.parse().ok().filter(|wait| *wait <= WAIT_MAX),
    };
    let wait = wait.ok_or_else(|| {
        Problem::malformed(format!(
            "`wait` must be a number of seconds from 0 to {WAIT_MAX}."
        ))
    })?;
    let options = SweepOptions {
        dry_run: flag("dry_run", query.dry_run.as_deref())?,
        wait: Duration::from_secs(wait),
        only,
        verify: flag("verify", query.verify.as_deref())?,
    };
    Ok(Json(app.sweep.run(&options).await?))
}

impl From<SweepError> for Problem {
    fn from(error: SweepError) -> Self {
        match error {
            SweepError::Db(error) => error.into(),
            SweepError::Failure(failure) => {
                Self::new(ErrorCode::GithubUnavailable, failure.message)
            }
        }
    }
}
