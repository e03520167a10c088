//! `GET /healthz`, `GET /readyz` and `GET /metrics`, and the cache that protects the database from
//! frequent requests to them.

use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{AppState, ErrorCode, Problem};
use crate::db::{Db, DbError, Overview};
use crate::pipeline::checks::live::not_ready;
use crate::telemetry::metrics;

/// The maximum age of a cached overview.
const OVERVIEW_AGE_MAX: Duration = Duration::from_secs(2);

/// `GET /metrics` waits this long for the overview, then omits the metrics that need it.
const OVERVIEW_TIMEOUT: Duration = Duration::from_secs(3);

/// The maximum age of the cached text of `GET /metrics`. Rendering it costs more than sending it.
const METRICS_AGE_MAX: Duration = Duration::from_millis(100);

/// The maximum age of a cached ping.
const READY_AGE_MAX: Duration = Duration::from_millis(250);

/// `GET /readyz` waits this long for the database.
const READY_TIMEOUT: Duration = Duration::from_millis(1500);

/// Source: Prometheus, "Exposition formats".
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Headers that proxies add to requests. Sources: RFC 7239, section 4, for `forwarded`; the others are common
/// practice.
const ADDED_BY_PROXIES: [&str; 3] = ["forwarded", "x-forwarded-for", "x-forwarded-proto"];

/// The last result of a query. Concurrent requests share one query, so that unauthenticated clients
/// cannot exhaust the database connections that deliveries need.
#[derive(Debug, Default)]
pub struct Cached<T>(Mutex<Option<(Instant, T)>>);

impl<T: Clone> Cached<T> {
    async fn get_or_query(
        &self,
        age_max: Duration,
        query: impl Future<Output = Result<T, DbError>>,
    ) -> Result<T, DbError> {
        let mut cached = self.0.lock().await;
        if let Some((at, value)) = &*cached
            && at.elapsed() < age_max
        {
            return Ok(value.clone());
        }
        let value = query.await?;
        *cached = Some((Instant::now(), value.clone()));
        Ok(value)
    }
}

impl Cached<Overview> {
    /// The next page shows what an operator has just changed.
    pub(super) async fn forget(&self) {
        *self.0.lock().await = None;
    }

    pub(super) async fn get(&self, db: &Db) -> Result<Overview, DbError> {
        self.get_or_query(OVERVIEW_AGE_MAX, db.overview()).await
    }
}

/// `GET /healthz`: whether the process serves requests.
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: whether deliveries can be accepted.
pub(super) async fn readyz(State(app): State<AppState>) -> Result<&'static str, Problem> {
    let ping = app.ready.get_or_query(READY_AGE_MAX, app.db.ping());
    let database = matches!(timeout(READY_TIMEOUT, ping).await, Ok(Ok(())));
    match not_ready(database) {
        None => Ok("ready\n"),
        Some(reason) => Err(Problem::new(ErrorCode::DatabaseUnavailable, reason)),
    }
}

/// `GET /metrics`. Returns 404 if the request came through a proxy.
///
/// Metrics contain no secrets, but show outsiders how busy and how healthy the server is. Prometheus can reach
/// the server directly. Requests from the internet come through a proxy, because the server does not terminate
/// TLS; on platforms such as Fly.io, users cannot configure that proxy to block the path.
pub(super) async fn metrics(
    State(app): State<AppState>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Problem> {
    if ADDED_BY_PROXIES
        .iter()
        .any(|name| headers.contains_key(*name))
    {
        return Err(Problem::not_found());
    }
    let text = app.metrics.get_or_query(METRICS_AGE_MAX, async {
        let overview = timeout(OVERVIEW_TIMEOUT, app.overview.get(&app.db)).await;
        let overview = overview.ok().and_then(Result::ok);
        Ok(Bytes::from(metrics::render(overview.as_ref(), &app.github)))
    });
    let text = text.await.unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], text))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn concurrent_requests_share_one_query() {
        let (cached, queries) = (Cached::<()>::default(), AtomicU32::new(0));
        let query = async || {
            queries.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            Ok(())
        };
        let requests = (0..100).map(|_| cached.get_or_query(READY_AGE_MAX, query()));
        futures_util::future::join_all(requests).await;
        assert_eq!(queries.load(Ordering::Relaxed), 1);
    }
}
