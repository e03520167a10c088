//! The status page: videos that need attention, all videos, one video and the deliveries. The pages work
//! without JavaScript; with it, they update themselves.

pub(super) mod deliveries;
mod filters;
pub(super) mod sign_in;
pub(super) mod videos;
mod views;

use std::borrow::Cow;
use std::time::Duration;

use askama::Template;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};

use super::{AppState, ErrorCode, Problem, header_value, session};
use crate::format::causes;

/// The maximum size of a form body, in bytes.
pub(super) const FORM_BYTES_MAX: usize = 4096;

/// The maximum time to receive a form body.
pub(super) const FORM_TIMEOUT: Duration = Duration::from_secs(10);

/// After a page was loaded over HTTPS, browsers use only HTTPS for this host, for a year. The other hosts of the
/// domain are not ours to decide about.
const TRANSPORT_SECURITY: &str = "max-age=31536000";

/// An error response for browsers.
#[derive(Template)]
#[template(path = "error.html", config = "src/http/page/templates/askama.toml")]
pub(super) struct ErrorPage {
    status: StatusCode,
    title: &'static str,
    /// The cause of the error and what to do.
    detail: Cow<'static, str>,
    /// The address of the sign-in form, if a session is missing.
    sign_in: Option<String>,
}

impl ErrorPage {
    const fn new(status: StatusCode, title: &'static str, detail: &'static str) -> Self {
        let (detail, sign_in) = (Cow::Borrowed(detail), None);
        Self {
            status,
            title,
            detail,
            sign_in,
        }
    }

    fn not_found() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "Not found",
            "This page, video or delivery does not exist. The video may belong to another repository, or its row may have been deleted.",
        )
    }
}

impl<E: Into<Problem>> From<E> for ErrorPage {
    fn from(error: E) -> Self {
        let problem = error.into();
        let (status, _) = problem.code().parts();
        let title = match problem.code() {
            ErrorCode::NotFound => return Self::not_found(),
            ErrorCode::StillGenerating => {
                return Self::new(
                    status,
                    "Still generating",
                    "Nothing to retry: the video is still being generated. It is ingested when the agent pushes it.",
                );
            }
            ErrorCode::Unauthorized => {
                return Self::new(
                    status,
                    "Not signed in",
                    "This address requires a session or the admin token.",
                );
            }
            ErrorCode::DatabaseUnavailable => "Database unavailable",
            ErrorCode::GithubUnavailable => "GitHub unavailable",
            _ => status.canonical_reason().unwrap_or_default(),
        };
        let detail = problem.detail().to_owned().into();
        Self {
            status,
            title,
            detail,
            sign_in: None,
        }
    }
}

impl IntoResponse for ErrorPage {
    fn into_response(self) -> Response {
        (self.status, render(&self)).into_response()
    }
}

fn render(page: &impl Template) -> Response {
    match page.render() {
        Ok(html) => Html(html).into_response(),
        Err(error) => {
            tracing::error!(error = causes(&error), "failed to render the template");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// Returns 404 if no admin token is configured, and adds the security headers of all pages.
pub(super) async fn guard(State(app): State<AppState>, request: Request, next: Next) -> Response {
    if app.admin_token.is_none() {
        return Problem::not_found().into_response();
    }
    let is_https = session::is_https(request.headers());
    with_page_headers(&app, is_https, next.run(request).await)
}

/// Replaces problem details with a page for clients that prefer HTML, which only browsers do. Without an admin
/// token, there are no pages.
pub(super) async fn errors_as_pages(
    State(app): State<AppState>,
    request: Request,
    next: Next,
) -> Response {
    let accept = header_value(request.headers(), "accept").unwrap_or_default();
    if app.admin_token.is_none() || !accept.contains("text/html") {
        return next.run(request).await;
    }
    let is_https = session::is_https(request.headers());
    let path = request.uri().path_and_query().map(ToString::to_string);
    let mut response = next.run(request).await;
    let Some(problem) = response.extensions_mut().remove::<Problem>() else {
        return response;
    };
    let mut page = ErrorPage::from(problem);
    if page.status == StatusCode::UNAUTHORIZED {
        page.sign_in = Some(sign_in::form_url(path.as_deref().unwrap_or("/")));
    }
    let mut page = page.into_response();
    for name in [header::RETRY_AFTER, header::ALLOW] {
        if let Some(value) = response.headers_mut().remove(&name) {
            page.headers_mut().insert(name, value);
        }
    }
    with_page_headers(&app, is_https, page)
}

fn with_page_headers(app: &AppState, is_https: bool, mut response: Response) -> Response {
    let media = app.store.playable_origin().unwrap_or_default();
    let policy = format!(
        "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; \
         media-src 'self' {media}; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    );
    let headers = response.headers_mut();
    for (name, value) in [
        // With `no-referrer`, browsers would omit the origin of our own forms.
        (header::REFERRER_POLICY, "same-origin"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if is_https {
        let value = HeaderValue::from_static(TRANSPORT_SECURITY);
        headers.insert(header::STRICT_TRANSPORT_SECURITY, value);
    }
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// `GET /assets/page.css`
pub(super) async fn stylesheet() -> impl IntoResponse {
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
