//! The pages: what needs attention, all videos, one video, the deliveries. They work without script;
//! with it, they follow what happens.

use std::time::{Duration, Instant};

use askama::Template;
use axum::extract::{Form, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Redirect, Response};
use serde::Deserialize;
use serde_json::Value;
use tower::ServiceExt as _;
use tower_http::services::ServeFile;

mod views;

use super::session::{self, WRONG_WINDOW};
use super::{AppState, ErrorCode, Problem, api};
use crate::db::{DbError, DeliveryView, Filter, Overview};
use crate::domain::failure::causes;
use crate::domain::report::SweepCounts;
use crate::domain::state::VideoState;
use crate::format::{capitalized, elapsed};
use crate::services::storage::{ObjectPath, Playable};
use views::{DayPicture, LastAttempt, Moment, VideoRow, last_attempt};

/// The largest form that a page sends, in bytes.
pub(super) const FORM_BYTES_MAX: usize = 4096;

/// A form that takes longer to arrive is given up.
pub(super) const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// Failed videos that the first page names above the list.
const ATTENTION_MAX: i64 = 5;

/// A queue whose oldest video waits for longer needs attention.
const QUEUE_AGE_MAX: Duration = Duration::from_secs(600);

/// Videos of one delivery that are shown.
const DELIVERED_MAX: usize = 20;

/// Videos on a page of deliveries whose state is looked up.
const STATES_MAX: usize = 100;

#[derive(Template)]
#[template(path = "videos.html", config = "src/http/page/templates/askama.toml")]
struct VideosPage {
    repository: String,
    q: String,
    state: String,
    tabs: Vec<Tab>,
    /// `None` where a filter asks for something else.
    top: Option<Top>,
    videos: Vec<VideoRow>,
    next: Option<String>,
}

struct Tab {
    name: &'static str,
    label: String,
    count: Option<i64>,
}

struct Top {
    failed: Vec<VideoRow>,
    slow: Option<String>,
    day: DayPicture,
    queue: i64,
    oldest: Option<String>,
    last_push: Option<Moment>,
    last_sweep: Option<(Moment, SweepCounts)>,
}

#[derive(Template)]
#[template(path = "video.html", config = "src/http/page/templates/askama.toml")]
struct VideoPage {
    repository: String,
    row: VideoRow,
    playable: bool,
    attempt: Option<LastAttempt>,
    timeline: Vec<(Moment, crate::db::EventView)>,
    deliveries: Vec<String>,
    warnings: Vec<String>,
    metadata: Vec<(String, String)>,
}

#[derive(Template)]
#[template(
    path = "deliveries.html",
    config = "src/http/page/templates/askama.toml"
)]
struct DeliveriesPage {
    repository: String,
    deliveries: Vec<DeliveryRow>,
    next: Option<String>,
}

struct DeliveryRow {
    delivery: DeliveryView,
    received: Moment,
    /// Each with its state.
    videos: Vec<(String, &'static str)>,
    more: usize,
    ignored: Vec<(String, String)>,
}

#[derive(Template)]
#[template(path = "sign_in.html", config = "src/http/page/templates/askama.toml")]
struct SignInPage {
    next: String,
    error: Option<&'static str>,
}

#[derive(Template)]
#[template(path = "problem.html", config = "src/http/page/templates/askama.toml")]
struct ProblemPage {
    title: &'static str,
    detail: &'static str,
}

/// What a person sees instead of a page.
pub(super) struct Oops(StatusCode, &'static str, &'static str);

const NOT_FOUND: Oops = Oops(
    StatusCode::NOT_FOUND,
    "Not found",
    "There is nothing at this address. The video may belong to another repository, or its row is gone.",
);

impl From<DbError> for Oops {
    fn from(error: DbError) -> Self {
        Problem::from(error).into()
    }
}

impl From<Problem> for Oops {
    fn from(problem: Problem) -> Self {
        match problem.code() {
            ErrorCode::NotFound => NOT_FOUND,
            _ => Self(
                StatusCode::SERVICE_UNAVAILABLE,
                "Not now",
                "The database does not answer. Videos that are stored keep playing in the app; try again in a moment.",
            ),
        }
    }
}

impl IntoResponse for Oops {
    fn into_response(self) -> Response {
        let Self(status, title, detail) = self;
        let page = ProblemPage { title, detail };
        (status, shown(&page)).into_response()
    }
}

fn shown(page: &impl Template) -> Response {
    match page.render() {
        Ok(html) => Html(html).into_response(),
        Err(error) => {
            tracing::error!(error = causes(&error), "a page was not written");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Nothing is there without an `ADMIN_TOKEN`; what is there runs nothing that is not ours.
pub(super) async fn guard(State(app): State<AppState>, request: Request, next: Next) -> Response {
    if app.admin_token.is_none() {
        return Problem::not_found().into_response();
    }
    let media = app.store.playable_origin().unwrap_or_default();
    let policy = format!(
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
         media-src 'self' {media}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Not `no-referrer`: with it, browsers hide the origin of our own forms from us.
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Sends who is not signed in to the form, and back afterwards.
pub(super) async fn signed_in_only(
    State(app): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    if session::is_admin(&app, request.method(), request.headers()) {
        return next.run(request).await;
    }
    if request.method() != Method::GET {
        return Oops(
            StatusCode::FORBIDDEN,
            "Not done",
            "The request did not come from a signed-in page of this server. Sign in and press the button again.",
        )
        .into_response();
    }
    let asked = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let foreign = request
        .headers()
        .get("sec-fetch-site")
        .is_some_and(|site| site == "cross-site");
    if foreign && let Some(asked) = own_address(asked) {
        // A link from a chat: the browser keeps a strict cookie back. Asked again from here, it shows it.
        let headers = [(header::REFRESH, format!("0; url={asked}"))];
        return (headers, "").into_response();
    }
    let next: String = form_urlencoded::byte_serialize(asked.as_bytes()).collect();
    Redirect::to(&format!("/sign-in?next={next}")).into_response()
}

#[derive(Deserialize)]
pub(super) struct SignInQuery {
    #[serde(default)]
    next: String,
}

/// `GET /sign-in`
pub(super) async fn sign_in_form(Query(SignInQuery { next }): Query<SignInQuery>) -> Response {
    sign_in_page(next, None)
}

fn sign_in_page(next: String, error: Option<&'static str>) -> Response {
    shown(&SignInPage { next, error })
}

#[derive(Deserialize)]
pub(super) struct SignIn {
    token: String,
    #[serde(default)]
    next: String,
}

/// `POST /sign-in`
pub(super) async fn sign_in(
    State(app): State<AppState>,
    headers: HeaderMap,
    Form(form): Form<SignIn>,
) -> Response {
    let Some(token) = &app.admin_token else {
        return Problem::not_found().into_response();
    };
    if !session::is_same_origin(&headers) {
        let error = "Your browser did not say that this form is ours. Try again from this page.";
        let page = sign_in_page(form.next, Some(error));
        return (StatusCode::FORBIDDEN, page).into_response();
    }
    match app.sign_ins.check(token, form.token.trim(), Instant::now()) {
        Some(true) => {
            let cookie = session::begin(&app, token, &headers);
            let to = own_address(&form.next).unwrap_or("/");
            ([(header::SET_COOKIE, cookie)], Redirect::to(to)).into_response()
        }
        Some(false) => {
            let error = "That is not this server's ADMIN_TOKEN.";
            let page = sign_in_page(form.next, Some(error));
            (StatusCode::UNAUTHORIZED, page).into_response()
        }
        None => {
            let error = "Too many wrong tokens. Wait a minute, then try again.";
            let page = sign_in_page(form.next, Some(error));
            let wait = [(header::RETRY_AFTER, WRONG_WINDOW.as_secs().to_string())];
            (StatusCode::TOO_MANY_REQUESTS, wait, page).into_response()
        }
    }
}

/// An address on this server, nothing that a browser would read as another's.
fn own_address(text: &str) -> Option<&str> {
    let rest = text.strip_prefix('/')?;
    let own = !rest.starts_with(['/', '\\']) && rest.bytes().all(|b| b.is_ascii_graphic());
    own.then_some(text)
}

/// `POST /sign-out`
pub(super) async fn sign_out(headers: HeaderMap) -> Response {
    match session::is_same_origin(&headers) {
        true => {
            let cookie = session::end(&headers);
            ([(header::SET_COOKIE, cookie)], Redirect::to("/sign-in")).into_response()
        }
        false => Redirect::to("/").into_response(),
    }
}

#[derive(Deserialize)]
pub(super) struct ListQuery {
    #[serde(default)]
    state: String,
    #[serde(default)]
    q: String,
    cursor: Option<String>,
}

/// `GET /`
pub(super) async fn videos(
    State(app): State<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<Response, Oops> {
    let now = app.clock.now_ms();
    let ListQuery { state, q, cursor } = query;
    let some = |text: &str| Some(text.trim().to_owned()).filter(|t| !t.is_empty());
    let filter = Filter {
        state: VideoState::parse(state.trim()),
        q: some(&q),
        cursor,
        limit: None,
    };
    let overview = app.overview.get(&app.db).await?;
    let first = filter.state.is_none() && filter.q.is_none() && filter.cursor.is_none();
    let top = match first {
        true => Some(top(&app, &overview, now).await?),
        false => None,
    };
    let page = app.db.videos(&filter).await?;
    let rows = page.items.into_iter();
    Ok(shown(&VideosPage {
        repository: app.repository.to_string(),
        q,
        state,
        tabs: tabs(&overview),
        top,
        videos: rows.map(|video| VideoRow::new(video, now)).collect(),
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
        // Of rows without a record there is no count.
        count: (*state != VideoState::Generating).then(|| overview.count(*state)),
    });
    std::iter::once(all).chain(states).collect()
}

async fn top(app: &AppState, overview: &Overview, now: i64) -> Result<Top, DbError> {
    let failed = Filter {
        state: Some(VideoState::Failed),
        limit: Some(ATTENTION_MAX),
        ..Filter::default()
    };
    let failed = app.db.videos(&failed).await?.items.into_iter();
    let sweep = overview.last_sweep.clone();
    Ok(Top {
        failed: failed.map(|video| VideoRow::new(video, now)).collect(),
        slow: overview
            .oldest
            .filter(|age| *age > QUEUE_AGE_MAX)
            .map(elapsed),
        day: DayPicture::new(&app.db.day().await?),
        queue: overview.count(VideoState::Queued) + overview.count(VideoState::Running),
        oldest: overview.oldest.map(elapsed),
        last_push: overview.last_push_ms.map(|at| Moment::at(at, now)),
        last_sweep: sweep.map(|(at, counted)| (Moment::at(at, now), counted)),
    })
}

/// `GET /videos/{video_id}`
pub(super) async fn video(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
) -> Result<Response, Oops> {
    let now = app.clock.now_ms();
    let detail = api::find(&app, &video_id).await?;
    let attempt = last_attempt(&detail.timeline);
    let warnings = detail.warnings.as_array().into_iter().flatten();
    let fields = detail.metadata.as_object().into_iter().flatten();
    // Its ids are on the page already.
    let fields = fields
        .filter(|(name, _)| !["lesson_id", "video_id"].contains(&name.as_str()))
        .map(|(name, value)| (capitalized(&name.replace('_', " ")), plain(value)))
        .collect();
    let timeline = detail.timeline.into_iter();
    Ok(shown(&VideoPage {
        repository: app.repository.to_string(),
        playable: detail.video.storage_path.is_some(),
        attempt,
        timeline: timeline
            .map(|event| (Moment::parse(&event.at, now), event))
            .rev()
            .collect(),
        deliveries: detail.deliveries,
        warnings: warnings.map(plain).collect(),
        metadata: fields,
        row: VideoRow::new(detail.video, now),
    }))
}

/// A JSON value without its quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `GET /videos/{video_id}/file`: the bytes, or where they are.
pub(super) async fn file(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
    request: Request,
) -> Result<Response, Oops> {
    let detail = api::find(&app, &video_id).await?;
    let id = detail.video.video_id;
    let row = app.db.find_row(id).await?.ok_or(NOT_FOUND)?;
    let path = row.storage_path.as_deref();
    let object = path.and_then(|path| ObjectPath::from_stored(&row.bucket, path));
    let playable = app.store.playable(&object.ok_or(NOT_FOUND)?).await;
    match playable {
        Ok(Some(Playable::Url(url))) => Ok(Redirect::temporary(&url).into_response()),
        Ok(Some(Playable::File(file))) => {
            let mime = crate::services::storage::VIDEO_MIME;
            let file = ServeFile::new_with_mime(file, &mime.parse().map_err(|_| NOT_FOUND)?);
            match file.oneshot(request).await {
                Ok(response) => Ok(response.map(axum::body::Body::new)),
                Err(never) => match never {},
            }
        }
        Ok(None) => Err(NOT_FOUND),
        Err(failure) => {
            tracing::warn!(video.id = %id, code = %failure.code, "not played: {failure}");
            Err(Oops(
                StatusCode::BAD_GATEWAY,
                "Not now",
                "The store does not answer. Try again in a moment.",
            ))
        }
    }
}

/// `POST /videos/{video_id}/retry`
pub(super) async fn retry(
    State(app): State<AppState>,
    Path(video_id): Path<String>,
) -> Result<Redirect, Oops> {
    let key = api::ask_again(&app, &video_id).await?;
    Ok(Redirect::to(&format!("/videos/{}", key.video_id)))
}

/// `GET /deliveries`
pub(super) async fn deliveries(
    State(app): State<AppState>,
    Query(query): Query<api::DeliveriesQuery>,
) -> Result<Response, Oops> {
    let now = app.clock.now_ms();
    let page = app.db.deliveries(query.cursor.as_deref()).await?;
    let text = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let named = |delivery: &DeliveryView| -> Vec<String> {
        let videos = delivery.videos.as_array().into_iter().flatten();
        videos
            .take(DELIVERED_MAX)
            .map(|v| text(v, "video_id"))
            .collect()
    };
    let ids = page.items.iter().flat_map(named).take(STATES_MAX).collect();
    let states = app.db.states(ids).await?;
    let row = |delivery: DeliveryView| {
        let state = |id: String| {
            let state = states.get(&id).map_or("", |state| state.as_str());
            (id, state)
        };
        let all = delivery.videos.as_array().map_or(0, Vec::len);
        let ignored = delivery.ignored.as_array().into_iter().flatten();
        DeliveryRow {
            received: Moment::parse(&delivery.received_at, now),
            videos: named(&delivery).into_iter().map(state).collect(),
            more: all.saturating_sub(DELIVERED_MAX),
            ignored: ignored
                .map(|i| (text(i, "path"), text(i, "reason")))
                .collect(),
            delivery,
        }
    };
    Ok(shown(&DeliveriesPage {
        repository: app.repository.to_string(),
        deliveries: page.items.into_iter().map(row).collect(),
        next: page.next,
    }))
}

/// `GET /assets/page.css`
pub(super) async fn css() -> impl IntoResponse {
    asset("text/css", include_str!("assets/page.css"))
}

/// `GET /assets/page.js`
pub(super) async fn script() -> impl IntoResponse {
    asset("text/javascript", include_str!("assets/page.js"))
}

fn asset(mime: &'static str, text: &'static str) -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, mime),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_another_server() {
        for own in ["/", "/videos/1?x=y", "/?q=a%20b"] {
            assert_eq!(own_address(own), Some(own));
        }
        for other in [
            "",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "/\t/evil.example",
            "/a\r\nx: y",
        ] {
            assert_eq!(own_address(other), None, "{other:?}");
        }
    }
}
