//! The list of deliveries, and the page of one delivery.

use std::collections::HashMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde_json::Value;

use super::views::{Moment, video_href};
use super::{ErrorPage, render};
use crate::db::DeliveryView;
use crate::domain::ids::{VideoKey, canonical_uuid};
use crate::domain::state::VideoState;
use crate::http::api::RefusalView;
use crate::http::{AppState, api};

/// The number of videos, and of ignored paths, that the list shows for each delivery.
const LISTED_MAX: usize = 5;

/// The number of videos on the list whose state is looked up.
const STATES_MAX: usize = 100;

/// The number of refused or ignored deliveries that the list shows at once.
const REFUSED_MAX: usize = 5;

#[derive(Template)]
#[template(
    path = "deliveries.html",
    config = "src/http/page/templates/askama.toml"
)]
struct DeliveriesPage {
    repository: Arc<str>,
    /// The first [`REFUSED_MAX`], and the others. Empty except on the first page.
    refused: [Vec<Refused>; 2],
    deliveries: Vec<DeliveryRow>,
    next: Option<String>,
}

/// Deliveries that were refused or ignored for the same reason.
struct Refused {
    refusal: RefusalView,
    first: Moment,
    last: Moment,
}

#[derive(Template)]
#[template(path = "delivery.html", config = "src/http/page/templates/askama.toml")]
struct DeliveryPage {
    repository: Arc<str>,
    row: DeliveryRow,
}

struct DeliveryRow {
    delivery: DeliveryView,
    received: Moment,
    videos: Vec<DeliveredVideo>,
    /// Paths and reasons.
    ignored: Vec<(String, String)>,
    /// The number of videos and paths that are not shown.
    more: usize,
}

struct DeliveredVideo {
    id: String,
    href: String,
    /// Empty without a record.
    state: &'static str,
}

/// `GET /deliveries`
pub(in crate::http) async fn list(
    State(app): State<AppState>,
    Query(query): Query<api::DeliveriesQuery>,
) -> Result<Response, ErrorPage> {
    let now = app.clock.now_ms();
    let page = app.db.deliveries(query.cursor.as_deref()).await?;
    let ids = page
        .items
        .iter()
        .flat_map(|delivery| video_ids(delivery, LISTED_MAX));
    let states = app.db.states(ids.take(STATES_MAX).collect()).await?;
    let mut refused = match query.cursor {
        None => api::refusals(&app),
        Some(_) => Vec::new(),
    };
    refused.sort_by_key(|refusal| refusal.status != "refused");
    let others = refused.split_off(refused.len().min(REFUSED_MAX));
    let shown = |refusals: Vec<RefusalView>| {
        let refused = |refusal: RefusalView| Refused {
            first: Moment::parse(&refusal.first_at, now),
            last: Moment::parse(&refusal.at, now),
            refusal,
        };
        refusals.into_iter().map(refused).collect()
    };
    Ok(render(&DeliveriesPage {
        repository: app.repository.clone(),
        refused: [shown(refused), shown(others)],
        deliveries: page
            .items
            .into_iter()
            .map(|delivery| DeliveryRow::new(delivery, &states, LISTED_MAX, now))
            .collect(),
        next: page.next,
    }))
}

/// `GET /deliveries/{guid}`
pub(in crate::http) async fn detail(
    State(app): State<AppState>,
    Path(guid): Path<String>,
) -> Result<Response, ErrorPage> {
    let now = app.clock.now_ms();
    let found = app.db.delivery(&guid).await?;
    let delivery = found.ok_or_else(ErrorPage::not_found)?;
    let ids = video_ids(&delivery, usize::MAX).collect();
    let states = app.db.states(ids).await?;
    Ok(render(&DeliveryPage {
        repository: app.repository.clone(),
        row: DeliveryRow::new(delivery, &states, usize::MAX, now),
    }))
}

impl DeliveryRow {
    /// Shows at most `max` videos and ignored paths each.
    fn new(
        delivery: DeliveryView,
        states: &HashMap<String, VideoState>,
        max: usize,
        now: i64,
    ) -> Self {
        let of = |list: &Value| list.as_array().cloned().unwrap_or_default();
        let (videos, ignored) = (of(&delivery.videos), of(&delivery.ignored));
        let beyond = |list: &[Value]| list.len().saturating_sub(max);
        Self {
            received: Moment::parse(&delivery.received_at, now),
            more: beyond(&videos) + beyond(&ignored),
            videos: videos
                .iter()
                .take(max)
                .map(|video| DeliveredVideo::new(video, states))
                .collect(),
            ignored: ignored
                .iter()
                .take(max)
                .map(|entry| (text(entry, "path"), text(entry, "reason")))
                .collect(),
            delivery,
        }
    }
}

impl DeliveredVideo {
    fn new(video: &Value, states: &HashMap<String, VideoState>) -> Self {
        let id = text(video, "video_id");
        let key = canonical_uuid(&text(video, "lesson_id"))
            .zip(canonical_uuid(&id))
            .map(|(lesson_id, video_id)| VideoKey {
                lesson_id,
                video_id,
            });
        Self {
            href: key.map_or_else(String::new, |key| video_href(&key, "")),
            state: states.get(&id).map_or("", |state| state.as_str()),
            id,
        }
    }
}

fn video_ids(delivery: &DeliveryView, max: usize) -> impl Iterator<Item = String> {
    let videos = delivery.videos.as_array().into_iter().flatten();
    videos.take(max).map(|video| text(video, "video_id"))
}

fn text(value: &Value, name: &str) -> String {
    value[name].as_str().unwrap_or_default().to_owned()
}
