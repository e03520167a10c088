//! `GET /api/events`: what changes, as it changes, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::sync::broadcast::error::RecvError;

use super::problem::ProblemBody;
use super::{AppState, ErrorCode, Problem};

/// Clients that may listen at once.
pub const STREAMS_MAX: usize = 64;

/// Proxies close connections on which nothing is said.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What changes, as it changes.
///
/// Each change that this process commits is an event `video`; a client that was too slow to hear all
/// of them, or that connects (again), gets `reload`.
#[utoipa::path(
    get,
    path = "/api/events",
    responses(
        (status = 200, body = String, content_type = "text/event-stream", description = "Events `video`, data `{\"video_id\",\"state\"}`, and `reload`"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn stream(
    State(app): State<AppState>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let slot = Arc::clone(&app.event_streams)
        .try_acquire_owned()
        .map_err(|_| Problem::new(ErrorCode::Busy, "too many are listening already"))?;
    let changes = app.db.changes();
    let events = stream::unfold((changes, slot), async |(mut changes, slot)| {
        let event = match changes.recv().await {
            Ok(change) => Event::default()
                .event("video")
                .json_data(change)
                .unwrap_or_else(|_| reload()),
            Err(RecvError::Lagged(_)) => reload(),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(event), (changes, slot)))
    });
    let events = stream::once(async { Ok(reload()) })
        .chain(events)
        .take_until(app.closing.clone().cancelled_owned());
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn reload() -> Event {
    Event::default().event("reload").data("{}")
}
