//! `GET /metrics`, and how things stand, read at most every few seconds however many ask.

use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::Surface;
use super::problem::Refused;
use crate::db::{Db, DbError, Overview};
use crate::metrics;

/// How old the overview may be.
const OVERVIEW_AGE_MAX: Duration = Duration::from_secs(2);

/// A scrape waits for the database so long, then goes without it.
const OVERVIEW_TIMEOUT: Duration = Duration::from_secs(3);

/// Source: Prometheus's "Exposition formats".
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The overview, read by one request for all that ask at the same time.
#[derive(Debug, Default)]
pub struct Cached(Mutex<Option<(Instant, Overview)>>);

impl Cached {
    pub(super) async fn get(&self, db: &Db) -> Result<Overview, DbError> {
        let mut cached = self.0.lock().await;
        if let Some((at, overview)) = &*cached
            && at.elapsed() < OVERVIEW_AGE_MAX
        {
            return Ok(overview.clone());
        }
        let overview = db.overview().await?;
        *cached = Some((Instant::now(), overview.clone()));
        Ok(overview)
    }
}

/// `GET /metrics`
pub(super) async fn metrics(State(surface): State<Surface>) -> impl IntoResponse {
    let overview = timeout(OVERVIEW_TIMEOUT, surface.overview.get(&surface.db)).await;
    let overview = overview.ok().and_then(Result::ok);
    let text = metrics::render(overview.as_ref(), surface.sweep.github.rate_limit());
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], text)
}

/// Counts and times the deliveries, and says which were refused. Not by their ids: anybody may have
/// made those up.
pub(super) async fn measure(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let response = next.run(request).await;
    if let Some(Refused(code)) = response.extensions().get() {
        tracing::warn!(code, "delivery refused");
    }
    metrics::delivery(response.status().as_u16(), begun.elapsed());
    response
}
