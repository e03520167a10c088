//! Every route on one screen: what is served, to whom, and within which limits.

mod api;
mod events;
mod listen;
mod openapi;
mod page;
mod probes;
mod problem;
mod session;
mod webhook;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use secrecy::SecretString;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tower_http::timeout::RequestBodyDeadlineLayer;

use crate::clock::Clock;
use crate::db::{Db, Overview};
use crate::pipeline::intake::Intake;
use crate::pipeline::sweep::Sweep;
use crate::services::github::Github;
use crate::services::storage::Store;

pub use events::STREAMS_MAX;
pub use listen::serve;
pub use probes::Cached;
pub use problem::{ErrorCode, Problem};
pub use session::SignIns;
pub use webhook::Places;

/// What the handlers share.
#[derive(Clone)]
pub struct AppState {
    /// Our records.
    pub db: Db,
    /// Tells how long ago things happened.
    pub clock: Clock,
    /// Its rate limit is a metric.
    pub github: Arc<Github>,
    /// For deliveries.
    pub intake: Intake,
    /// For `/reconcile`.
    pub sweep: Sweep,
    /// For playing a video.
    pub store: Arc<Store>,
    /// Told after every commit of new work.
    pub wake: Arc<Notify>,
    /// Signs the webhooks: the current secret, and the one before it during a rotation.
    pub webhook_secrets: Arc<Vec<SecretString>>,
    /// `owner/name`.
    pub repository: Arc<str>,
    /// `None`: the repository's default branch, as the payload names it.
    pub branch: Option<Arc<str>>,
    /// Without slashes around it.
    pub videos_dir: Arc<str>,
    /// `None`: what needs it answers 404.
    pub admin_token: Option<SecretString>,
    /// For bodies that are not small.
    pub places: Arc<Places>,
    /// How many may listen to [`Db::changes`] at once.
    pub event_streams: Arc<Semaphore>,
    /// Wrong tokens of late.
    pub sign_ins: Arc<SignIns>,
    /// How things stand, read seldom.
    pub overview: Arc<Cached<Overview>>,
    /// Whether the database answers, asked seldom.
    pub ready: Arc<Cached<()>>,
    /// Cancelled: answers that would go on for ever end.
    pub closing: CancellationToken,
}

/// Every route.
pub fn router(app: AppState) -> Router {
    let admin = Router::new()
        .route("/reconcile", post(api::reconcile))
        .route("/api/videos", get(api::videos))
        .route("/api/videos/{video_id}", get(api::video))
        .route("/api/videos/{video_id}/retry", post(api::retry))
        .route("/api/deliveries", get(api::deliveries))
        .route("/api/events", get(events::stream))
        .route("/api/openapi.json", get(openapi::document))
        .layer(middleware::from_fn_with_state(app.clone(), admin_only));
    let page = Router::new()
        .route("/", get(page::videos))
        .route("/videos/{video_id}", get(page::video))
        .route("/videos/{video_id}/file", get(page::file))
        .route("/videos/{video_id}/retry", post(page::retry))
        .route("/deliveries", get(page::deliveries))
        .layer(middleware::from_fn_with_state(
            app.clone(),
            page::signed_in_only,
        ))
        .route("/sign-in", get(page::sign_in_form).post(page::sign_in))
        .route("/sign-out", post(page::sign_out))
        .route("/assets/page.css", get(page::css))
        .route("/assets/page.js", get(page::script))
        .layer(middleware::from_fn_with_state(app.clone(), page::guard))
        .layer(DefaultBodyLimit::max(page::FORM_BYTES_MAX))
        .layer(RequestBodyDeadlineLayer::new(page::FORM_TIMEOUT));
    Router::new()
        .route(
            "/webhooks/github",
            post(webhook::receive).layer(middleware::from_fn(probes::measure)),
        )
        .route("/metrics", get(probes::metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(api::readyz))
        .merge(admin)
        .merge(page)
        .method_not_allowed_fallback(async || {
            Problem::new(
                ErrorCode::MethodNotAllowed,
                "this address takes another method",
            )
        })
        .fallback(async || Problem::not_found())
        .with_state(app)
}

/// Without a token set, nothing of the administration exists; with one, it must be shown.
async fn admin_only(
    State(app): State<AppState>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if app.admin_token.is_none() {
        return Err(Problem::not_found());
    }
    match session::is_admin(&app, request.method(), request.headers()) {
        true => Ok(next.run(request).await),
        false => Err(Problem::new(
            ErrorCode::Unauthorized,
            "send the ADMIN_TOKEN: `Authorization: Bearer …`",
        )),
    }
}
