//! The HTTP server: all routes, their authorization and the state that handlers share.

mod api;
mod body;
mod connections;
mod events;
mod listen;
mod openapi;
mod page;
mod probes;
mod problem;
mod session;
mod status;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::AsHeaderName;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use secrecy::SecretString;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::timeout::RequestBodyDeadlineLayer;

use crate::clock::Clock;
use crate::db::{Db, Overview};
use crate::domain::links::Sites;
use crate::domain::redact::Redactor;
use crate::pipeline::intake::Intake;
use crate::pipeline::sweep::Sweep;
use crate::services::github::Github;
use crate::services::storage::Store;
use crate::telemetry::refusals::Refusals;

use connections::Connection;

pub use body::BodyMemory;
pub use events::STREAMS_MAX;
pub use listen::{listen, serve};
pub use probes::Cached;
pub use problem::{ErrorCode, Problem};
pub use session::{SignInLink, WrongTokens};

/// The state that all handlers share.
#[derive(Clone)]
pub struct AppState {
    /// Records, deliveries and the app's rows.
    pub db: Db,
    /// The current time.
    pub clock: Clock,
    /// The GitHub client, whose rate limit is exported as a metric.
    pub github: Arc<Github>,
    /// Records deliveries.
    pub intake: Intake,
    /// Runs the sweeps that `POST /reconcile` requests.
    pub sweep: Sweep,
    /// Plays stored videos.
    pub store: Arc<Store>,
    /// Wakes idle workers after new work is committed.
    pub wake: Arc<Notify>,
    /// The webhook secrets that are accepted: the current one and, during a rotation, the previous one.
    pub webhook_secrets: Arc<Vec<SecretString>>,
    /// `owner/name`.
    pub repository: Arc<str>,
    /// `None`: the repository's default branch, which the payload names.
    pub branch: Option<Arc<str>>,
    /// Without leading and trailing slashes.
    pub videos_dir: Arc<str>,
    /// `None`: all routes that require it return 404.
    pub admin_token: Option<SecretString>,
    /// The memory for request bodies whose signature is not verified yet.
    pub body_memory: Arc<BodyMemory>,
    /// One permit for each client of `GET /api/events`.
    pub event_streams: Arc<Semaphore>,
    /// Slows down wrong admin tokens.
    pub wrong_tokens: Arc<WrongTokens>,
    /// The deliveries that this process refused or ignored.
    pub refusals: Arc<Refusals>,
    /// Removes the secrets of the configuration from names that others chose.
    pub redactor: Redactor,
    /// The web pages of the configured services.
    pub sites: Arc<Sites>,
    /// The interval of this process's sweeps; `None` if it makes none.
    pub reconcile_interval: Option<Duration>,
    /// The demo's link that signs in once.
    pub sign_in_link: Arc<SignInLink>,
    /// The counts of all videos, read at most every two seconds.
    pub overview: Arc<Cached<Overview>>,
    /// The text of `GET /metrics`, rendered at most every 100 ms.
    pub metrics: Arc<Cached<Bytes>>,
    /// The last successful ping of the database.
    pub ready: Arc<Cached<()>>,
    /// Cancelled at shutdown: ends event streams, which would otherwise never end.
    pub closing: CancellationToken,
}

/// Builds the router with all routes.
pub fn router(app: AppState) -> Router {
    let admin = Router::new()
        .route("/reconcile", post(api::reconcile))
        .route("/api/videos", get(api::videos))
        .route("/api/videos/retry", post(api::retry_all))
        .route("/api/videos/{video_id}", get(api::video))
        .route("/api/videos/{video_id}/retry", post(api::retry))
        .route("/api/deliveries", get(api::deliveries))
        .route("/api/deliveries/{delivery}", get(api::delivery))
        .route("/api/status", get(status::get))
        .route("/api/events", get(events::stream))
        .route("/api/openapi.json", get(openapi::document))
        .layer(middleware::from_fn_with_state(app.clone(), admin_only))
        .layer(DefaultBodyLimit::max(page::FORM_BYTES_MAX))
        .layer(RequestBodyDeadlineLayer::new(page::FORM_TIMEOUT));
    let page = Router::new()
        .route("/", get(page::videos::list))
        .route("/videos/{video_id}", get(page::videos::detail))
        .route("/videos/{video_id}/file", get(page::videos::file))
        .route("/videos/{video_id}/retry", post(page::videos::retry))
        .route("/videos/{video_id}/check", post(page::videos::check))
        .route("/videos/retry", post(page::videos::retry_all))
        .route("/deliveries", get(page::deliveries::list))
        .route("/deliveries/{guid}", get(page::deliveries::detail))
        .layer(middleware::from_fn_with_state(
            app.clone(),
            page::sign_in::require_session,
        ))
        .route(
            "/sign-in",
            get(page::sign_in::form).post(page::sign_in::submit),
        )
        .route("/sign-out", post(page::sign_in::sign_out))
        .route("/assets/page.css", get(page::stylesheet))
        .route("/assets/page.js", get(page::script))
        .layer(middleware::from_fn_with_state(app.clone(), page::guard))
        .layer(DefaultBodyLimit::max(page::FORM_BYTES_MAX))
        .layer(RequestBodyDeadlineLayer::new(page::FORM_TIMEOUT));
    Router::new()
        .route("/webhooks/github", post(webhook::receive))
        .route("/metrics", get(probes::metrics))
        .route("/healthz", get(probes::healthz))
        .route("/readyz", get(probes::readyz))
        .merge(admin)
        .merge(page)
        .method_not_allowed_fallback(async || {
            Problem::new(
                ErrorCode::MethodNotAllowed,
                "This endpoint does not support this HTTP method. See the HTTP API documentation for the methods it supports.",
            )
        })
        .fallback(async || Problem::not_found())
        .layer(middleware::from_fn_with_state(app.clone(), page::errors_as_pages))
        .layer(middleware::from_fn(common_headers))
        .with_state(app)
}

/// Adds the security headers of all responses. Those of the API must not be stored by caches.
async fn common_headers(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_api = path.starts_with("/api/") || path == "/reconcile";
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    if is_api {
        let no_store = HeaderValue::from_static("no-store");
        headers.insert(header::CACHE_CONTROL, no_store);
    }
    response
}

/// Requires the admin token or a session. Returns 404 if no admin token is configured.
async fn admin_only(
    State(app): State<AppState>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if app.admin_token.is_none() {
        return Err(Problem::not_found());
    }
    if session::authorize(&app, &connection, request.method(), request.headers()).await? {
        return Ok(next.run(request).await);
    }
    Err(Problem::new(
        ErrorCode::Unauthorized,
        "The admin token is missing or incorrect. Send the header `Authorization: Bearer <ADMIN_TOKEN>`.",
    ))
}

/// The value of a header; `None` if it is missing or not ASCII.
fn header_value(headers: &HeaderMap, name: impl AsHeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
