//! `GET /api/openapi.json`: the API's own description, OpenAPI 3.1, taken from the code that answers.

use axum::Json;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi};

use super::{api, events};

#[derive(OpenApi)]
#[openapi(
    info(title = "video-ingest", description = "What became of every pushed video."),
    paths(
        api::videos,
        api::video,
        api::retry,
        api::deliveries,
        api::reconcile,
        events::stream,
    ),
    modifiers(&AdminToken)
)]
struct Document;

struct AdminToken;

impl Modify for AdminToken {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("admin_token", bearer);
    }
}

/// `GET /api/openapi.json`
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}
