//! What an operator's tools ask: JSON in, JSON out.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::problem::ProblemBody;
use super::{AppState, ErrorCode, Problem};
use crate::db::{DeliveryView, Filter, VideoDetail, VideoView};
use crate::domain::ids::{VideoKey, canonical_uuid};
use crate::domain::report::SweepReport;
use crate::domain::request::{Request, Source};
use crate::domain::state::VideoState;
use crate::pipeline::sweep::{SweepError, SweepOptions};

/// The database has this long to say that it is there.
const READY_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long `/reconcile` waits for what it found, unless asked otherwise; and at most.
const WAIT_DEFAULT: u64 = 25;
const WAIT_MAX: u64 = 300;

/// `GET /readyz`: whether work can be accepted.
pub async fn readyz(State(app): State<AppState>) -> Result<&'static str, Problem> {
    match timeout(READY_TIMEOUT, app.ready.ping(&app.db)).await {
        Ok(Ok(())) => Ok("ready\n"),
        _ => Err(Problem::new(
            ErrorCode::DatabaseUnavailable,
            "the database does not answer",
        )),
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// `generating`, `queued`, `running`, `waiting`, `ready` or `failed`.
    state: Option<String>,
    /// An id of a video or a lesson, the beginning of one, or a file name.
    q: Option<String>,
    /// `next` of the page before.
    cursor: Option<String>,
    /// 1 to 200; 50 unless asked otherwise.
    limit: Option<i64>,
}

/// A page of videos, the last changed first.
#[derive(Serialize, ToSchema)]
pub(super) struct Videos {
    videos: Vec<VideoView>,
    /// Send it as `cursor` for the next page; `null` on the last one.
    #[schema(required)]
    next: Option<String>,
}

/// Videos, the last changed first; rows that wait for their first push are there as `generating`.
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
    let Query(query) = query.map_err(|error| malformed(error.body_text()))?;
    let state = query.state.filter(|s| !s.is_empty());
    let parsed = state.as_deref().and_then(VideoState::parse);
    if state.is_some() && parsed.is_none() {
        // No video is in a state that does not exist.
        let (videos, next) = (Vec::new(), None);
        return Ok(Json(Videos { videos, next }));
    }
    let filter = Filter {
        state: parsed,
        q: query.q.filter(|q| !q.is_empty()),
        cursor: query.cursor,
        limit: query.limit,
    };
    let page = app.db.videos(&filter).await?;
    Ok(Json(Videos {
        videos: page.items,
        next: page.next,
    }))
}

/// One video with its timeline.
#[utoipa::path(
    get,
    path = "/api/videos/{video_id}",
    params(("video_id" = Uuid, Path)),
    responses(
        (status = 200, body = VideoDetail, description = "The video"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn video(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
) -> Result<Json<VideoDetail>, Problem> {
    find(&app, &video_id).await.map(Json)
}

/// What was asked for.
#[derive(Serialize, ToSchema)]
pub(super) struct Queued {
    video_id: Uuid,
    #[schema(value_type = String)]
    status: VideoState,
}

/// Asks for a video again, rejected files included.
#[utoipa::path(
    post,
    path = "/api/videos/{video_id}/retry",
    params(("video_id" = Uuid, Path)),
    responses(
        (status = 202, body = Queued, description = "Recorded"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn retry(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
) -> Result<Response, Problem> {
    let key = ask_again(&app, &video_id).await?;
    let answer = Queued {
        video_id: key.video_id,
        status: VideoState::Queued,
    };
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Asks for a video for a person.
pub(super) async fn ask_again(app: &AppState, video_id: &str) -> Result<VideoKey, Problem> {
    let found = find(app, video_id).await?.video;
    let key = found.key();
    let request = Request::new(key, Source::Retry, "retried by an operator");
    app.db.request([request]).await?;
    app.wake.notify_waiters();
    Ok(key)
}

/// A video by its id, as addresses spell it.
pub(super) async fn find(app: &AppState, video_id: &str) -> Result<VideoDetail, Problem> {
    let id = canonical_uuid(video_id).ok_or_else(Problem::not_found)?;
    app.db.video(id).await?.ok_or_else(Problem::not_found)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeliveriesQuery {
    /// `next` of the page before.
    pub(super) cursor: Option<String>,
}

/// A page of deliveries, the newest first.
#[derive(Serialize, ToSchema)]
pub(super) struct Deliveries {
    deliveries: Vec<DeliveryView>,
    /// Send it as `cursor` for the next page; `null` on the last one.
    #[schema(required)]
    next: Option<String>,
}

/// Deliveries, newest first.
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
    let Query(query) = query.map_err(|error| malformed(error.body_text()))?;
    let page = app.db.deliveries(query.cursor.as_deref()).await?;
    Ok(Json(Deliveries {
        deliveries: page.items,
        next: page.next,
    }))
}

/// All as text: `dry_run=&wait=` means that neither is given.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ReconcileQuery {
    /// Write nothing; say what would be done.
    #[param(value_type = Option<bool>)]
    dry_run: Option<String>,
    /// Seconds to wait for what was found, 0 to 300; 25 unless asked otherwise.
    #[param(value_type = Option<u64>)]
    wait: Option<String>,
    /// Only this video.
    video_id: Option<String>,
    /// Compare ready rows with what the store holds, too.
    #[param(value_type = Option<bool>)]
    verify: Option<String>,
}

fn flag(name: &str, text: Option<&str>) -> Result<bool, Problem> {
    match text.unwrap_or_default() {
        "" | "false" | "0" => Ok(false),
        "true" | "1" => Ok(true),
        _ => Err(malformed(format!("{name} is true or false"))),
    }
}

fn malformed(detail: impl Into<String>) -> Problem {
    Problem::new(ErrorCode::Malformed, detail)
}

/// Looks for what no delivery brought: compares the branch, the rows and what the agent says.
#[utoipa::path(
    post,
    path = "/reconcile",
    params(ReconcileQuery),
    responses(
        (status = 200, body = SweepReport, description = "What was found"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn reconcile(
    State(app): State<AppState>,
    query: Result<Query<ReconcileQuery>, QueryRejection>,
) -> Result<Json<SweepReport>, Problem> {
    let Query(query) = query.map_err(|error| malformed(error.body_text()))?;
    let only = match query.video_id.as_deref() {
        None | Some("") => None,
        Some(text) => {
            Some(canonical_uuid(text).ok_or_else(|| malformed("video_id is not a UUID"))?)
        }
    };
    let wait = match query.wait.as_deref() {
        None | Some("") => Some(WAIT_DEFAULT),
        Some(text) => text.parse().ok().filter(|wait| *wait <= WAIT_MAX),
    };
    let wait = wait.ok_or_else(|| malformed(format!("wait is in seconds, at most {WAIT_MAX}")))?;
    let options = SweepOptions {
        dry_run: flag("dry_run", query.dry_run.as_deref())?,
        wait: Duration::from_secs(wait),
        only,
        verify: flag("verify", query.verify.as_deref())?,
    };
    app.sweep
        .run(&options)
        .await
        .map(Json)
        .map_err(|error| match error {
            SweepError::Db(error) => error.into(),
            SweepError::Failure(failure) => {
                Problem::new(ErrorCode::GithubUnavailable, failure.message)
            }
        })
}
