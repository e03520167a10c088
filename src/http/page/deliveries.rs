//! The list of deliveries.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use serde_json::Value;

use super::views::Moment;
use super::{ErrorPage, render};
use crate::db::DeliveryView;
use crate::http::{AppState, api};

/// The number of videos that the page shows for each delivery.
const DELIVERY_VIDEOS_MAX: usize = 20;

/// The number of videos on the page whose state is looked up.
const STATES_MAX: usize = 100;

#[derive(Template)]
#[template(
    path = "deliveries.html",
    config = "src/http/page/templates/askama.toml"
)]
struct DeliveriesPage {
    repository: Arc<str>,
    deliveries: Vec<DeliveryRow>,
    next: Option<String>,
}

struct DeliveryRow {
    delivery: DeliveryView,
    received: Moment,
    /// Ids and states. The state of a video without a record is empty.
    videos: Vec<(String, &'static str)>,
    more: usize,
    /// Paths and reasons.
    ignored: Vec<(String, String)>,
}

/// `GET /deliveries`
pub(in crate::http) async fn list(
    State(app): State<AppState>,
    Query(query): Query<api::DeliveriesQuery>,
) -> Result<Response, ErrorPage> {
    let now = app.clock.now_ms();
    let page = app.db.deliveries(query.cursor.as_deref()).await?;
    let ids = page.items.iter().flat_map(video_ids);
    let states = app.db.states(ids.take(STATES_MAX).collect()).await?;
    let row = |delivery: DeliveryView| {
        let with_state = |id: String| {
            let state = states.get(&id).map_or("", |state| state.as_str());
            (id, state)
        };
        let videos = delivery.videos.as_array().map_or(0, Vec::len);
        let ignored = delivery.ignored.as_array().into_iter().flatten();
        DeliveryRow {
            received: Moment::parse(&delivery.received_at, now),
            videos: video_ids(&delivery).map(with_state).collect(),
            more: videos.saturating_sub(DELIVERY_VIDEOS_MAX),
            ignored: ignored
                .map(|entry| (text(entry, "path"), text(entry, "reason")))
                .collect(),
            delivery,
        }
    };
    Ok(render(&DeliveriesPage {
        repository: app.repository.clone(),
        deliveries: page.items.into_iter().map(row).collect(),
        next: page.next,
    }))
}

fn video_ids(delivery: &DeliveryView) -> impl Iterator<Item = String> {
    let videos = delivery.videos.as_array().into_iter().flatten();
    videos
        .take(DELIVERY_VIDEOS_MAX)
        .map(|video| text(video, "video_id"))
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}
