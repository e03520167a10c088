//! `GET /api/openapi.json`: the OpenAPI 3.1 description of the API, generated from the handlers.

use axum::Json;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};

use super::{api, events, status};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "video-ingest",
        description = "The state of every pushed video."
    ),
    paths(
        api::videos,
        api::video,
        api::retry,
        api::retry_all,
        api::deliveries,
        api::delivery,
        status::get,
        api::reconcile,
        events::stream,
    )
)]
struct Document;

/// `GET /api/openapi.json`
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    let mut document = Document::openapi();
    let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    let components = document.components.get_or_insert_default();
    components.add_security_scheme("admin_token", bearer);
    Json(document)
}
