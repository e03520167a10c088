//! The whole surface on one screen: what is served, to whom, and within which limits.

mod api;
mod listen;
mod problem;
mod webhook;

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{Notify, Semaphore};

use crate::db::Db;
use crate::domain::signature::same_secret;
use crate::store::Store;
use crate::sweep::Sweep;

pub use listen::serve;
pub use problem::{ErrorCode, Problem};
pub use webhook::LARGE_BODIES_MAX;

/// What the handlers share.
#[derive(Clone)]
pub struct Surface {
    /// Our records.
    pub db: Db,
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
    /// Bodies over 1 MiB are read by one request at a time.
    pub large_body: Arc<Semaphore>,
    /// How many requests may read or wait for that.
    pub large_body_queue: Arc<Semaphore>,
}

/// Every route.
pub fn router(surface: Surface) -> Router {
    let admin = Router::new()
        .route("/reconcile", post(api::reconcile))
        .route("/api/videos", get(api::videos))
        .route("/api/videos/{video_id}", get(api::video))
        .route("/api/videos/{video_id}/retry", post(api::retry))
        .route("/api/deliveries", get(api::deliveries))
        .layer(middleware::from_fn_with_state(surface.clone(), admin_only));
    Router::new()
        .route("/webhooks/github", post(webhook::receive))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(api::readyz))
        .merge(admin)
        .method_not_allowed_fallback(async || {
            Problem::new(
                ErrorCode::MethodNotAllowed,
                "this address takes another method",
            )
        })
        .fallback(async || Problem::not_found())
        .with_state(surface)
}

/// Without a token set, nothing of the administration exists; with one, it must be shown.
async fn admin_only(
    State(surface): State<Surface>,
    headers: HeaderMap,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let Some(token) = &surface.admin_token else {
        return Err(Problem::not_found());
    };
    let shown = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "))
        .unwrap_or_default();
    match same_secret(shown, token.expose_secret().as_bytes()) {
        true => Ok(next.run(request).await),
        false => Err(Problem::new(
            ErrorCode::Unauthorized,
            "send the ADMIN_TOKEN: `Authorization: Bearer …`",
        )),
    }
}
