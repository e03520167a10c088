//! What an operator's tools ask: JSON in, JSON out.

use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{ErrorCode, Problem, Surface};
use crate::db::{Filter, Request, Source, VideoDetail};
use crate::domain::ids::{VideoKey, canonical_uuid};
use crate::sweep::{Stopped, SweepOptions, SweepReport};

/// The database has this long to say that it is there.
const READY_TIMEOUT: Duration = Duration::from_millis(1500);

/// How long `/reconcile` waits for what it found, unless asked otherwise; and at most.
const WAIT_DEFAULT: u64 = 25;
const WAIT_MAX: u64 = 300;

/// `GET /readyz`: whether work can be accepted.
pub async fn readyz(State(surface): State<Surface>) -> Result<&'static str, Problem> {
    match timeout(READY_TIMEOUT, surface.db.ping()).await {
        Ok(Ok(())) => Ok("ready\n"),
        _ => Err(Problem::new(
            ErrorCode::DatabaseUnavailable,
            "the database does not answer",
        )),
    }
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    state: Option<String>,
    q: Option<String>,
    cursor: Option<String>,
    limit: Option<i64>,
}

/// `GET /api/videos`
pub(super) async fn videos(
    State(surface): State<Surface>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(query) = query.map_err(|error| malformed(error.body_text()))?;
    let filter = Filter {
        state: query.state.filter(|s| !s.is_empty()),
        q: query.q.filter(|q| !q.is_empty()),
        cursor: query.cursor,
        limit: query.limit,
    };
    let page = surface.db.videos(&filter).await?;
    Ok(Json(json!({"videos": page.items, "next": page.next})))
}

/// `GET /api/videos/{video_id}`
pub(super) async fn video(
    State(surface): State<Surface>,
    Path(video_id): Path<String>,
) -> Result<Json<VideoDetail>, Problem> {
    find(&surface, &video_id).await.map(Json)
}

/// `POST /api/videos/{video_id}/retry`
pub(super) async fn retry(
    State(surface): State<Surface>,
    Path(video_id): Path<String>,
) -> Result<Response, Problem> {
    let key = ask_again(&surface, &video_id).await?;
    let answer = json!({"video_id": key.video_id, "status": "queued"});
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// Asks for a video for a person.
pub(super) async fn ask_again(surface: &Surface, video_id: &str) -> Result<VideoKey, Problem> {
    let found = find(surface, video_id).await?.video;
    let key = format!("{}_{}", found.lesson_id, found.video_id);
    let key = VideoKey::parse_stem(&key).ok_or_else(Problem::not_found)?;
    let request = Request::asked(key, Source::Retry, "asked for by a person");
    surface.db.request([request]).await?;
    surface.wake.notify_waiters();
    Ok(key)
}

/// A video by its id, as addresses spell it.
pub(super) async fn find(surface: &Surface, video_id: &str) -> Result<VideoDetail, Problem> {
    let id = canonical_uuid(video_id).ok_or_else(Problem::not_found)?;
    surface.db.video(id).await?.ok_or_else(Problem::not_found)
}

#[derive(Deserialize)]
pub(super) struct DeliveriesQuery {
    cursor: Option<String>,
}

/// `GET /api/deliveries`
pub(super) async fn deliveries(
    State(surface): State<Surface>,
    query: Result<Query<DeliveriesQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let Query(query) = query.map_err(|error| malformed(error.body_text()))?;
    let page = surface.db.deliveries(query.cursor.as_deref()).await?;
    Ok(Json(json!({"deliveries": page.items, "next": page.next})))
}

/// All as text: `dry_run=&wait=` means that neither is given.
#[derive(Deserialize)]
pub(super) struct ReconcileQuery {
    dry_run: Option<String>,
    wait: Option<String>,
    video_id: Option<String>,
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

/// `POST /reconcile`
pub(super) async fn reconcile(
    State(surface): State<Surface>,
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
    surface
        .sweep
        .run(&options)
        .await
        .map(Json)
        .map_err(|stopped| match stopped {
            Stopped::Db(error) => error.into(),
            Stopped::Failure(failure) => {
                Problem::new(ErrorCode::GithubUnavailable, failure.message)
            }
        })
}
