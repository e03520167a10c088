//! The list of videos with the diagnosis, and the page of one video.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{Form, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde_json::Value;
use tower::ServiceExt as _;
use tower_http::services::ServeFile;

use super::filters::Filters;
use super::views::{
    DayChart, LastAttempt, Moment, VideoRow, is_retry_promising, last_attempt, video_href,
};
use super::{ErrorPage, render};
use crate::db::{EventView, GenerationView, Overview, VideoView};
use crate::domain::advice::repeats;
use crate::domain::failure::Code;
use crate::domain::ids::VideoKey;
use crate::domain::links::Links;
use crate::domain::report::SweepCounts;
use crate::domain::state::VideoState;
use crate::format::{capitalized, elapsed};
use crate::http::api::{LessonQuery, Video};
use crate::http::status::{self, FailureGroup, ProblemView};
use crate::http::{AppState, api, header_value, session};
use crate::pipeline::checks::Mark;
use crate::pipeline::sweep::SweepOptions;
use crate::services::storage::{ObjectPath, Playable, VIDEO_MIME};

/// The number of problems, and of groups of failures, that the first page shows at once.
const SHOWN_MAX: usize = 5;

#[derive(Template)]
#[template(path = "videos.html", config = "src/http/page/templates/askama.toml")]
struct VideosPage {
    repository: Arc<str>,
    filters: Filters,
    tabs: Vec<Tab>,
    /// `None` on pages that are filtered or not the first one.
    summary: Option<Summary>,
    videos: Vec<VideoRow>,
    /// The address of the next page.
    next: Option<String>,
}

struct Tab {
    url: String,
    label: String,
    count: Option<i64>,
    is_current: bool,
}

struct Summary {
    /// The first [`SHOWN_MAX`] problems, and the others.
    problems: [Vec<ShownProblem>; 2],
    /// The first [`SHOWN_MAX`] groups, and the others.
    failures: [Vec<Group>; 2],
    day: DayChart,
    queue: i64,
    backing_off: i64,
    oldest: Option<String>,
    last_push: Option<Moment>,
    last_sweep: Option<(Moment, SweepCounts)>,
    next_sweep: Option<Moment>,
}

impl Summary {
    fn is_calm(&self) -> bool {
        self.problems[0].is_empty() && self.failures[0].is_empty()
    }
}

/// A problem of the server as a whole.
struct ShownProblem {
    mark: &'static str,
    text: String,
    /// The address of the page that shows more, and its name.
    link: Option<(&'static str, &'static str)>,
}

/// The failed videos with the same code.
struct Group {
    failure: FailureGroup,
    oldest: Moment,
    /// The message of the most recent one.
    message: String,
    /// The page of the most recent one.
    href: String,
}

impl Group {
    /// What to do, unless the message says so.
    fn advice(&self) -> Option<&'static str> {
        let advice = self.failure.advice;
        (!repeats(&self.failure.message, advice)).then_some(advice)
    }

    fn is_retry_promising(&self) -> bool {
        is_retry_promising(self.failure.code)
    }
}

#[derive(Template)]
#[template(path = "video.html", config = "src/http/page/templates/askama.toml")]
struct VideoPage {
    repository: Arc<str>,
    /// The scheme and the host that the browser uses.
    origin: String,
    row: VideoRow,
    explanation: String,
    /// Names and times of what happened and will happen.
    times: Vec<(&'static str, Moment)>,
    links: Links,
    playable: bool,
    attempt: Option<LastAttempt>,
    timeline: Vec<(Moment, EventView)>,
    deliveries: Vec<String>,
    warnings: Vec<String>,
    metadata: Vec<(String, String)>,
}

/// `GET /`
pub(in crate::http) async fn list(
    State(app): State<AppState>,
    Query(filters): Query<Filters>,
) -> Result<Response, ErrorPage> {
    let now = app.clock.now_ms();
    let overview = app.overview.get(&app.db).await?;
    let summary = if filters.is_first_page() {
        let day = DayChart::new(&app.db.day().await?);
        Some(summary(&app, &overview, day, now))
    } else {
        None
    };
    let (items, next) = match filters.to_filter()? {
        Some(filter) => {
            let page = api::page(&app, &filter).await?;
            (page.items, page.next)
        }
        None => (Vec::new(), None),
    };
    Ok(render(&VideosPage {
        repository: app.repository,
        tabs: tabs(&filters, &overview),
        next: next.map(|cursor| filters.next_page(cursor)),
        summary,
        videos: items
            .into_iter()
            .map(|video| VideoRow::new(video, now))
            .collect(),
        filters,
    }))
}

fn tabs(filters: &Filters, overview: &Overview) -> Vec<Tab> {
    let tab = |name: &str, count| Tab {
        url: filters.with_state(name),
        label: capitalized(if name.is_empty() { "all" } else { name }),
        count,
        is_current: filters.state == name,
    };
    let states = VideoState::ALL
        .iter()
        .map(|state| tab(state.as_str(), Some(overview.count(*state))));
    std::iter::once(tab("", None)).chain(states).collect()
}

fn summary(app: &AppState, overview: &Overview, day: DayChart, now: i64) -> Summary {
    let problems = status::problems(app, overview).into_iter().map(shown);
    let failures = status::failures(overview).into_iter().map(|failure| Group {
        oldest: Moment::parse(&failure.oldest_at, now),
        message: capitalized(&failure.message),
        href: video_href(
            &VideoKey {
                lesson_id: failure.lesson_id,
                video_id: failure.video_id,
            },
            "",
        ),
        failure,
    });
    let sweep = overview.last_sweep.as_ref();
    Summary {
        problems: first_and_others(problems),
        failures: first_and_others(failures),
        day,
        queue: overview.count(VideoState::Queued) + overview.count(VideoState::Running),
        backing_off: status::backing_off(overview),
        oldest: overview
            .oldest_due_ms
            .map(|due| elapsed(Duration::from_millis(now.saturating_sub(due).max(0) as u64))),
        last_push: overview.last_push_ms.map(|at| Moment::at(at, now)),
        last_sweep: sweep.map(|(at, counts)| (Moment::at(*at, now), counts.clone())),
        next_sweep: status::next_sweep_ms(app, overview).map(|at| Moment::at(at, now)),
    }
}

fn first_and_others<T>(items: impl Iterator<Item = T>) -> [Vec<T>; 2] {
    let mut first: Vec<T> = items.collect();
    let others = first.split_off(first.len().min(SHOWN_MAX));
    [first, others]
}

fn shown(problem: ProblemView) -> ShownProblem {
    let link = match problem.id.split('.').next() {
        Some("deliveries") => Some(("/deliveries", "Show the deliveries")),
        Some("agents") => Some(("/?state=generating", "Show the generating videos")),
        Some("videos") => Some(("/?state=queued", "Show the queue")),
        _ => None,
    };
    ShownProblem {
        mark: if problem.mark == Mark::Failed {
            "failed"
        } else {
            "warning"
        },
        text: problem.text,
        link,
    }
}

/// `GET /videos/{video_id}`
pub(in crate::http) async fn detail(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
    Query(lesson): Query<LessonQuery>,
    headers: HeaderMap,
) -> Result<Response, ErrorPage> {
    let now = app.clock.now_ms();
    let Video {
        detail,
        explanation,
        links,
    } = api::find_video(&app, &video_id, &lesson).await?;
    let overview = app.overview.get(&app.db).await?;
    let times = times(&detail.video, status::next_sweep_ms(&app, &overview), now);
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
        explanation,
        times,
        links,
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

/// The times that the explanation of the video mentions.
fn times(video: &VideoView, next_sweep_ms: Option<i64>, now: i64) -> Vec<(&'static str, Moment)> {
    let times = &video.times;
    let changed = Some(times.updated_ms);
    let is_asked = |g: &GenerationView| g.status != "not_asked";
    let is_asked = video.generation.as_ref().is_some_and(is_asked);
    let named = match video.state {
        VideoState::Generating => vec![
            ("Waiting since", times.row_created_ms.or(changed)),
            ("Last check", times.checked_ms),
            ("Next check", next_sweep_ms.filter(|_| is_asked)),
            ("Deadline", times.deadline_ms),
        ],
        VideoState::Waiting if video.code == Some(Code::MetadataMissing) => vec![
            ("Waiting since", changed),
            ("Ingested without JSON", times.next_attempt_ms),
        ],
        VideoState::Waiting => vec![
            ("Waiting since", changed),
            ("Deadline", times.next_attempt_ms),
        ],
        VideoState::Queued if video.code.is_some() => vec![
            ("Last attempt", changed),
            ("Next attempt", times.next_attempt_ms),
        ],
        VideoState::Queued | VideoState::Running => {
            vec![("Requested", times.requested_ms.or(changed))]
        }
        VideoState::Failed => vec![("Failed", changed), ("Next attempt", times.next_attempt_ms)],
        VideoState::Ready => Vec::new(),
    };
    let named = named.into_iter();
    named
        .filter_map(|(name, ms)| Some((name, Moment::at(ms?, now))))
        .collect()
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
    Query(lesson): Query<LessonQuery>,
    request: Request,
) -> Result<Response, ErrorPage> {
    let video = api::find_video(&app, &video_id, &lesson).await?;
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
    Query(lesson): Query<LessonQuery>,
) -> Result<Redirect, ErrorPage> {
    let key = api::request_retry(&app, &video_id, &lesson).await?;
    app.overview.forget().await;
    Ok(Redirect::to(&video_href(&key, "")))
}

/// `POST /videos/{video_id}/check`: a sweep of this video only, which asks OpenHands and looks for its files.
pub(in crate::http) async fn check(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
    Query(lesson): Query<LessonQuery>,
) -> Result<Redirect, ErrorPage> {
    let key = api::find_video(&app, &video_id, &lesson)
        .await?
        .detail
        .video
        .key();
    let options = SweepOptions {
        dry_run: false,
        wait: Duration::ZERO,
        only: Some(key.video_id),
        verify: false,
    };
    app.sweep.run(&options).await?;
    app.overview.forget().await;
    Ok(Redirect::to(&video_href(&key, "")))
}

#[derive(Deserialize)]
pub(in crate::http) struct RetryAll {
    code: String,
}

/// `POST /videos/retry`: retries the failed videos with this code.
pub(in crate::http) async fn retry_all(
    State(app): State<AppState>,
    Form(RetryAll { code }): Form<RetryAll>,
) -> Result<Redirect, ErrorPage> {
    let code = Code::parse(&code).ok_or_else(ErrorPage::not_found)?;
    api::request_retries(&app, Some(code)).await?;
    app.overview.forget().await;
    Ok(Redirect::to("/"))
}
