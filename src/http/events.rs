//! `GET /api/events`: changes of videos as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{self, Stream, StreamExt as _};
use tokio::sync::broadcast::error::RecvError;

use super::problem::ProblemBody;
use super::{AppState, ErrorCode, Problem};

/// The maximum number of concurrent streams.
pub const STREAMS_MAX: usize = 64;

/// How often a comment is sent on an idle stream, because proxies close idle connections.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Streams changes of videos.
///
/// Each change that this process commits is sent as an event `video`. The event `reload` is sent first
/// and whenever the client was too slow to receive every change; clients then reload what they show.
#[utoipa::path(
    get,
    path = "/api/events",
    responses(
        (status = 200, body = String, content_type = "text/event-stream", description = "Events `video` with data `{\"video_id\",\"state\"}`, and `reload`"),
        (status = "default", body = ProblemBody, content_type = "application/problem+json"),
    ),
    security(("admin_token" = [])),
)]
pub(super) async fn stream(
    State(app): State<AppState>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let permit = Arc::clone(&app.event_streams)
        .try_acquire_owned()
        .map_err(|_| {
            let detail = "All event streams are in use. Close one, or try again later.";
            Problem::new(ErrorCode::Busy, detail)
        })?;
    let changes = app.db.changes();
    let events = stream::unfold((changes, permit), async |(mut changes, permit)| {
        let event = match changes.recv().await {
            Ok(change) => Event::default()
                .event("video")
                .json_data(change)
                .unwrap_or_else(|_| reload()),
            Err(RecvError::Lagged(_)) => reload(),
            Err(RecvError::Closed) => return None,
        };
        Some((Ok(event), (changes, permit)))
    });
    let events = stream::once(async { Ok(reload()) })
        .chain(events)
        .take_until(app.closing.clone().cancelled_owned());
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn reload() -> Event {
    Event::default().event("reload").data("{}")
}
