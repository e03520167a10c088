//! The list of videos, and the page of one video.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde_json::Value;
use tower::ServiceExt as _;
use tower_http::services::ServeFile;

use super::views::{DayChart, LastAttempt, Moment, VideoRow, last_attempt};
use super::{ErrorPage, render};
use crate::db::{DbError, EventView, Filter, Overview};
use crate::domain::report::SweepCounts;
use crate::domain::state::VideoState;
use crate::format::{capitalized, elapsed};
use crate::http::{AppState, api, header_value, session};
use crate::services::storage::{ObjectPath, Playable, VIDEO_MIME};

/// The number of failed videos that the first page shows above the list.
const ATTENTION_MAX: i64 = 5;

/// If the oldest video in the queue waits longer, the first page says so.
const QUEUE_AGE_MAX: Duration = Duration::from_secs(600);

#[derive(Template)]
#[template(path = "videos.html", config = "src/http/page/templates/askama.toml")]
struct VideosPage {
    repository: Arc<str>,
    q: String,
    state: String,
    tabs: Vec<Tab>,
    /// `None` on pages that are filtered or not the first one.
    summary: Option<Summary>,
    videos: Vec<VideoRow>,
    next: Option<String>,
}

struct Tab {
    name: &'static str,
    label: String,
    count: Option<i64>,
}

struct Summary {
    failed: Vec<VideoRow>,
    /// The age of the oldest video in the queue, if it exceeds [`QUEUE_AGE_MAX`].
    stuck: Option<String>,
    day: DayChart,
    queue: i64,
    oldest: Option<String>,
    last_push: Option<Moment>,
    last_sweep: Option<(Moment, SweepCounts)>,
}

#[derive(Template)]
#[template(path = "video.html", config = "src/http/page/templates/askama.toml")]
struct VideoPage {
    repository: Arc<str>,
    /// The scheme and the host that the browser uses.
    origin: String,
    row: VideoRow,
    playable: bool,
    attempt: Option<LastAttempt>,
    timeline: Vec<(Moment, EventView)>,
    deliveries: Vec<String>,
    warnings: Vec<String>,
    metadata: Vec<(String, String)>,
}

#[derive(Deserialize)]
pub(in crate::http) struct ListQuery {
    #[serde(default)]
    state: String,
    #[serde(default)]
    q: String,
    cursor: Option<String>,
}

/// `GET /`
pub(in crate::http) async fn list(
    State(app): State<AppState>,
    Query(ListQuery { state, q, cursor }): Query<ListQuery>,
) -> Result<Response, ErrorPage> {
    let now = app.clock.now_ms();
    let filter = Filter {
        state: VideoState::parse(state.trim()),
        q: Some(q.trim().to_owned()).filter(|q| !q.is_empty()),
        cursor,
        ..Filter::default()
    };
    let overview = app.overview.get(&app.db).await?;
    let summary = if filter.state.is_none() && filter.q.is_none() && filter.cursor.is_none() {
        Some(summary(&app, &overview, now).await?)
    } else {
        None
    };
    let page = api::page(&app, &filter).await?;
    let videos = page.items.into_iter();
    Ok(render(&VideosPage {
        repository: app.repository,
        q,
        state,
        tabs: tabs(&overview),
        summary,
        videos: videos.map(|video| VideoRow::new(video, now)).collect(),
        next: page.next,
    }))
}

fn tabs(overview: &Overview) -> Vec<Tab> {
    let all = Tab {
        name: "",
        label: "All".to_owned(),
        count: None,
    };
    let states = VideoState::ALL.iter().map(|state| Tab {
        name: state.as_str(),
        label: capitalized(state.as_str()),
        // The overview counts records, and a generating video has none.
        count: (*state != VideoState::Generating).then(|| overview.count(*state)),
    });
    std::iter::once(all).chain(states).collect()
}

async fn summary(app: &AppState, overview: &Overview, now: i64) -> Result<Summary, DbError> {
    let failed = Filter {
        state: Some(VideoState::Failed),
        limit: Some(ATTENTION_MAX),
        ..Filter::default()
    };
    let failed = api::page(app, &failed).await?.items.into_iter();
    let sweep = overview.last_sweep.clone();
    Ok(Summary {
        failed: failed.map(|video| VideoRow::new(video, now)).collect(),
        stuck: overview
            .oldest
            .filter(|age| *age > QUEUE_AGE_MAX)
            .map(elapsed),
        day: DayChart::new(&app.db.day().await?),
        queue: overview.count(VideoState::Queued) + overview.count(VideoState::Running),
        oldest: overview.oldest.map(elapsed),
        last_push: overview.last_push_ms.map(|at| Moment::at(at, now)),
        last_sweep: sweep.map(|(at, counts)| (Moment::at(at, now), counts)),
    })
}

/// `GET /videos/{video_id}`
pub(in crate::http) async fn detail(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ErrorPage> {
    let now = app.clock.now_ms();
    let detail = api::find_video(&app, &video_id, &api::LessonQuery::default())
        .await?
        .detail;
    let attempt = last_attempt(&detail.timeline);
    let warnings = detail.warnings.as_array().into_iter().flatten();
    let metadata = detail.metadata.as_object().into_iter().flatten();
    // The page shows the ids elsewhere.
    let metadata = metadata
        .filter(|(name, _)| !["lesson_id", "video_id"].contains(&name.as_str()))
        .map(|(name, value)| (capitalized(&name.replace('_', " ")), unquoted(value)))
        .collect();
    let timeline = detail.timeline.into_iter();
    Ok(render(&VideoPage {
        repository: app.repository,
        origin: origin(&headers),
        // A row that was ready before this server was installed has no path in our record.
        playable: detail.video.storage_path.is_some() || detail.video.state == VideoState::Ready,
        attempt,
        timeline: timeline
            .map(|event| (Moment::parse(&event.at, now).with_seconds(), event))
            .rev()
            .collect(),
        deliveries: detail.deliveries,
        warnings: warnings.map(unquoted).collect(),
        metadata,
        row: VideoRow::new(detail.video, now),
    }))
}

/// The address of this server as the browser knows it, for commands to copy.
fn origin(headers: &HeaderMap) -> String {
    let host = header_value(headers, "host").unwrap_or_default();
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b".:-[]".contains(&b);
    let host = if host.bytes().all(is_plain) { host } else { "" };
    let scheme = if session::is_https(headers) {
        "https"
    } else {
        "http"
    };
    format!("{scheme}://{host}")
}

/// A JSON value as text, strings without quotes.
fn unquoted(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// `GET /videos/{video_id}/file`: the stored MP4, or a redirect to it.
pub(in crate::http) async fn file(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
    request: Request,
) -> Result<Response, ErrorPage> {
    let video = api::find_video(&app, &video_id, &api::LessonQuery::default()).await?;
    let id = video.detail.video.video_id;
    let row = app
        .db
        .find_row(id)
        .await?
        .ok_or_else(ErrorPage::not_found)?;
    let path = row.storage_path.as_deref();
    let object = path.and_then(|path| ObjectPath::from_stored(&row.bucket, path));
    let playable = app
        .store
        .playable(&object.ok_or_else(ErrorPage::not_found)?)
        .await;
    match playable {
        Ok(Some(Playable::Url(url))) => Ok(Redirect::temporary(&url).into_response()),
        Ok(Some(Playable::File(file))) => {
            let mime = VIDEO_MIME.parse().map_err(|_| ErrorPage::not_found())?;
            match ServeFile::new_with_mime(file, &mime).oneshot(request).await {
                Ok(response) => Ok(response.map(axum::body::Body::new)),
                Err(never) => match never {},
            }
        }
        Ok(None) => Err(ErrorPage::not_found()),
        Err(failure) => {
            tracing::warn!(video.id = %id, code = %failure.code, "failed to play back a video: {failure}");
            Err(ErrorPage::new(
                StatusCode::BAD_GATEWAY,
                "Storage unavailable",
                "Storage is unavailable. Try again in a few seconds.",
            ))
        }
    }
}

/// `POST /videos/{video_id}/retry`
pub(in crate::http) async fn retry(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
) -> Result<Redirect, ErrorPage> {
    let key = api::request_retry(&app, &video_id, &api::LessonQuery::default()).await?;
    Ok(Redirect::to(&format!("/videos/{}", key.video_id)))
}
