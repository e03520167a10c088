//! Errors as clients see them: RFC 9457, never with an internal cause.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::db::DbError;
use crate::domain::failure::causes;

/// Seconds after which a client that got 503 should ask again.
const RETRY_AFTER_SECONDS: &str = "5";

/// What went wrong, by what the client can do about it. The codes are the contract's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it, the contract defines it")]
pub enum ErrorCode {
    BadSignature,
    Unauthorized,
    Malformed,
    UnsupportedMediaType,
    PayloadTooLarge,
    MethodNotAllowed,
    NotFound,
    DatabaseUnavailable,
    GithubUnavailable,
    Busy,
}

/// An error, as RFC 9457 spells it.
#[derive(serde::Serialize, utoipa::ToSchema)]
pub(super) struct ProblemBody {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    /// What to do.
    detail: String,
    /// The kind of error, for programs.
    code: &'static str,
}

/// An error answer.
#[derive(Clone, Debug)]
pub struct Problem {
    code: ErrorCode,
    detail: String,
}

impl Problem {
    /// `detail` is shown to the client: say what to do.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { code, detail }
    }

    /// What the client can do about it.
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// Nothing is there, or nothing is told.
    pub fn not_found() -> Self {
        Self::new(ErrorCode::NotFound, "there is nothing here")
    }
}

/// An answer's code, for who logs it.
#[derive(Clone, Copy)]
pub(super) struct Refused(pub(super) &'static str);

impl From<DbError> for Problem {
    fn from(error: DbError) -> Self {
        tracing::error!(
            error = causes(&error),
            "the database did not answer a request"
        );
        Self::new(
            ErrorCode::DatabaseUnavailable,
            "nothing was recorded: the database does not answer; ask again",
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, code, title) = match self.code {
            ErrorCode::BadSignature => (StatusCode::UNAUTHORIZED, "bad_signature", "Bad signature"),
            ErrorCode::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized", "Unauthorized"),
            ErrorCode::Malformed => (StatusCode::BAD_REQUEST, "malformed", "Malformed request"),
            ErrorCode::UnsupportedMediaType => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_media_type",
                "Unsupported media type",
            ),
            ErrorCode::PayloadTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "payload_too_large",
                "Payload too large",
            ),
            ErrorCode::MethodNotAllowed => (
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "Method not allowed",
            ),
            ErrorCode::NotFound => (StatusCode::NOT_FOUND, "not_found", "Not found"),
            ErrorCode::DatabaseUnavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "database_unavailable",
                "Database unavailable",
            ),
            ErrorCode::GithubUnavailable => (
                StatusCode::BAD_GATEWAY,
                "github_unavailable",
                "GitHub unavailable",
            ),
            ErrorCode::Busy => (StatusCode::SERVICE_UNAVAILABLE, "busy", "Busy"),
        };
        let body = ProblemBody {
            kind: "about:blank",
            title,
            status: status.as_u16(),
            detail: self.detail,
            code,
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(
                header::RETRY_AFTER,
                HeaderValue::from_static(RETRY_AFTER_SECONDS),
            );
        }
        if self.code == ErrorCode::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Refused(code));
        response
    }
}
