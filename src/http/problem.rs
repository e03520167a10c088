//! Error responses as problem details (RFC 9457). They never contain an internal cause.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::db::DbError;
use crate::domain::push;
use crate::format::causes;
use crate::telemetry::refused::Reason;

/// The value of `Retry-After` in a 503 response, in seconds.
const RETRY_AFTER_SECONDS: &str = "5";

/// The value of `Retry-After` after too many wrong tokens, in seconds: the time in which the delayed responses
/// to earlier ones are sent.
pub(super) const RATE_LIMITED_SECONDS: &str = "1";

/// The kind of an error. The codes are part of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the codes")]
pub enum ErrorCode {
    BadSignature,
    Unauthorized,
    Malformed,
    UnsupportedMediaType,
    PayloadTooLarge,
    MethodNotAllowed,
    NotFound,
    StillGenerating,
    DatabaseUnavailable,
    GithubUnavailable,
    Busy,
    RateLimited,
}

impl ErrorCode {
    pub(super) const fn parts(self) -> (StatusCode, &'static str) {
        match self {
            Self::BadSignature => (StatusCode::UNAUTHORIZED, "bad_signature"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Malformed => (StatusCode::BAD_REQUEST, "malformed"),
            Self::UnsupportedMediaType => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type")
            }
            Self::PayloadTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NotFound => (StatusCode::NOT_FOUND, "not_found"),
            Self::StillGenerating => (StatusCode::CONFLICT, "still_generating"),
            Self::DatabaseUnavailable => (StatusCode::SERVICE_UNAVAILABLE, "database_unavailable"),
            Self::GithubUnavailable => (StatusCode::BAD_GATEWAY, "github_unavailable"),
            Self::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
        }
    }

    /// The reason that is logged for a refused delivery; `None` if the cause is on our side, which is logged
    /// where it occurs.
    pub(super) fn refusal(self) -> Option<Reason> {
        match self {
            Self::BadSignature => Some(Reason::BadSignature),
            Self::Malformed => Some(Reason::Malformed),
            Self::UnsupportedMediaType => Some(Reason::UnsupportedMediaType),
            Self::PayloadTooLarge => Some(Reason::TooLarge),
            Self::Busy => Some(Reason::Busy),
            _ => None,
        }
    }
}

/// The body of an error response.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub(super) struct ProblemBody {
    #[serde(rename = "type")]
    kind: &'static str,
    /// The phrase of the HTTP status.
    title: &'static str,
    status: u16,
    /// The cause of the error and what to do.
    detail: String,
    /// The kind of the error, for programs.
    code: &'static str,
}

/// An error response.
#[derive(Clone, Debug)]
pub struct Problem {
    code: ErrorCode,
    detail: String,
}

impl Problem {
    /// `detail` is sent to the client. It states the cause, then what to do.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { code, detail }
    }

    /// A request that does not have the expected form.
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(ErrorCode::Malformed, detail)
    }

    /// A resource that does not exist or must not be disclosed.
    pub fn not_found() -> Self {
        Self::new(
            ErrorCode::NotFound,
            "The requested resource does not exist. Check the URL.",
        )
    }

    /// The kind of the error.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// The cause and what to do.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        tracing::error!(
            error = causes(&error),
            "request failed: database unavailable"
        );
        let detail = match error {
            DbError::Denied(_) => {
                "The database does not allow the server to read the app's tables. Run deploy/supabase/role.sql."
            }
            _ => "The database is unavailable. Try again in a few seconds.",
        };
        Self::new(ErrorCode::DatabaseUnavailable, detail)
    }
}

impl From<push::Malformed> for Problem {
    fn from(error: push::Malformed) -> Self {
        Self::malformed(error.to_string())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::malformed(rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code) = self.code.parts();
        let body = ProblemBody {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or_default(),
            status: status.as_u16(),
            detail: self.detail.clone(),
            code,
        };
        let mut response = (status, Json(body)).into_response();
        let mut set = |name, value| {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value)
        };
        set(header::CONTENT_TYPE, "application/problem+json");
        if status == StatusCode::SERVICE_UNAVAILABLE {
            set(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        if self.code == ErrorCode::RateLimited {
            set(header::RETRY_AFTER, RATE_LIMITED_SECONDS);
        }
        if self.code == ErrorCode::Unauthorized {
            set(header::WWW_AUTHENTICATE, "Bearer");
        }
        // For the page that browsers get instead.
        response.extensions_mut().insert(self);
        response
    }
}
