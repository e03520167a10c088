//! `GET /metrics`, and how things stand, read at most every few seconds however many ask.

use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::AppState;
use super::problem::Refused;
use crate::db::{Db, DbError, Overview};
use crate::telemetry::metrics;

/// How old the overview may be.
const OVERVIEW_AGE_MAX: Duration = Duration::from_secs(2);

/// A scrape waits for the database so long, then goes without it.
const OVERVIEW_TIMEOUT: Duration = Duration::from_secs(3);

/// Source: Prometheus's "Exposition formats".
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How old the news may be that the database answers.
const READY_AGE_MAX: Duration = Duration::from_millis(250);

/// What the database said, asked by one request for all that come at the same time: whoever asks much
/// without a token takes no connection from the deliveries.
#[derive(Debug)]
pub struct Cached<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Cached<T> {
    async fn within(
        &self,
        age_max: Duration,
        ask: impl Future<Output = Result<T, DbError>>,
    ) -> Result<T, DbError> {
        let mut cached = self.0.lock().await;
        if let Some((at, said)) = &*cached
            && at.elapsed() < age_max
        {
            return Ok(said.clone());
        }
        let said = ask.await?;
        *cached = Some((Instant::now(), said.clone()));
        Ok(said)
    }
}

impl Cached<Overview> {
    pub(super) async fn get(&self, db: &Db) -> Result<Overview, DbError> {
        self.within(OVERVIEW_AGE_MAX, db.overview()).await
    }
}

impl Cached<()> {
    pub(super) async fn ping(&self, db: &Db) -> Result<(), DbError> {
        self.within(READY_AGE_MAX, db.ping()).await
    }
}

/// `GET /metrics`
pub(super) async fn metrics(State(app): State<AppState>) -> impl IntoResponse {
    let overview = timeout(OVERVIEW_TIMEOUT, app.overview.get(&app.db)).await;
    let overview = overview.ok().and_then(Result::ok);
    let text = metrics::render(overview.as_ref(), app.github.rate_limit());
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn many_who_ask_at_once_are_one_question() {
        let (cached, asked) = (Cached::<()>::default(), AtomicU32::new(0));
        let ask = async || {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(())
        };
        let many = (0..100).map(|_| cached.within(READY_AGE_MAX, ask()));
        futures_util::future::join_all(many).await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }
}
