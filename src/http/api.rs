//! The JSON API for operators: videos, deliveries and `POST /reconcile`.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
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

/// How long `/reconcile` waits by default, in seconds.
const WAIT_DEFAULT: u64 = 25;

/// How long `/reconcile` waits at most, in seconds.
const WAIT_MAX: u64 = 300;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// `generating`, `queued`, `running`, `waiting`, `ready` or `failed`.
    state: Option<String>,
    /// The id of a video or lesson, the beginning of one, or a file name.
    q: Option<String>,
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
    let state = query.state.filter(|s| !s.is_empty());
    let parsed = state.as_deref().and_then(VideoState::parse);
    if state.is_some() && parsed.is_none() {
        // No video has an unknown state.
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

/// Returns a video with its timeline.
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
    find_video(&app, &video_id).await.map(Json)
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
    params(("video_id" = Uuid, Path)),
    responses(
        (status = 202, body = Queued, description = "The video is queued"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn retry(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
) -> Result<Response, Problem> {
    let key = request_retry(&app, &video_id).await?;
    let body = Queued {
        video_id: key.video_id,
        status: VideoState::Queued,
    };
    Ok((StatusCode::ACCEPTED, Json(body)).into_response())
}

/// Requests a video on behalf of an operator, unless nothing has been pushed for it yet: an attempt would find
/// no file and fail the row, although the agent is still working.
pub(super) async fn request_retry(app: &AppState, video_id: &str) -> Result<VideoKey, Problem> {
    let key = find_video(app, video_id).await?.video.key();
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
pub(super) async fn find_video(app: &AppState, video_id: &str) -> Result<VideoDetail, Problem> {
    let id = canonical_uuid(video_id).ok_or_else(Problem::not_found)?;
    app.db.video(id).await?.ok_or_else(Problem::not_found)
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
    }))
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
    let report = app.sweep.run(&options).await;
    report.map(Json).map_err(|error| match error {
        SweepError::Db(error) => error.into(),
        SweepError::Failure(failure) => Problem::new(ErrorCode::GithubUnavailable, failure.message),
    })
}
