//! Signing in and out, and the redirect to the form for browsers without a session.

use std::sync::Arc;

use askama::Template;
use axum::Extension;
use axum::extract::{Form, Query, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use secrecy::SecretString;
use serde::Deserialize;

use super::{ErrorPage, render};
use crate::http::connections::Connection;
use crate::http::problem::RATE_LIMITED_SECONDS;
use crate::http::session;
use crate::http::{AppState, Problem, header_value};
use crate::telemetry::metrics::TokenPath;

#[derive(Template)]
#[template(path = "sign_in.html", config = "src/http/page/templates/askama.toml")]
struct SignInPage {
    next: String,
    error: Option<&'static str>,
}

/// Redirects browsers without a session to the form, and back after they signed in.
pub(in crate::http) async fn require_session(
    State(app): State<AppState>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
    next: Next,
) -> Response {
    match session::authorize(&app, &connection, request.method(), request.headers()).await {
        Ok(true) => return next.run(request).await,
        Ok(false) => {}
        Err(problem) => return problem.into_response(),
    }
    if !request.method().is_safe() {
        if session::is_same_origin(request.headers()) {
            // A button on a page whose session has ended: after signing in, the page is shown again.
            let page = header_value(request.headers(), "referer").and_then(path_of);
            return Redirect::to(&form_url(page.unwrap_or("/"))).into_response();
        }
        return ErrorPage::new(
            StatusCode::FORBIDDEN,
            "Request rejected",
            "The request was not sent from a signed-in page on this server. Sign in, then press the button again.",
        )
        .into_response();
    }
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let cross_site = header_value(request.headers(), "sec-fetch-site") == Some("cross-site");
    if cross_site && let Some(path) = local_path(path) {
        // Browsers do not send a `SameSite=Strict` cookie when a link on another site is followed. A
        // request that our own response causes carries the cookie.
        let headers = [(header::REFRESH, format!("0; url={path}"))];
        return (headers, "").into_response();
    }
    Redirect::to(&form_url(path)).into_response()
}

/// The address of the form that leads back to this path.
pub(super) fn form_url(path: &str) -> String {
    let next: String = form_urlencoded::byte_serialize(path.as_bytes()).collect();
    format!("/sign-in?next={next}")
}

/// The path and query of a URL.
fn path_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    rest.find('/').map(|start| &rest[start..])
}

#[derive(Deserialize)]
pub(in crate::http) struct FormQuery {
    #[serde(default)]
    next: String,
    /// The token of a [`session::SignInLink`].
    once: Option<String>,
}

/// `GET /sign-in`
pub(in crate::http) async fn form(
    State(app): State<AppState>,
    method: Method,
    headers: HeaderMap,
    Query(FormQuery { next, once }): Query<FormQuery>,
) -> Response {
    // A HEAD request must not use the link up.
    let once = once.filter(|_| method == Method::GET);
    let Some((once, admin_token)) = once.zip(app.admin_token.as_ref()) else {
        return render(&SignInPage { next, error: None });
    };
    if app.sign_in_link.redeem(&once, app.clock.now_ms()) {
        return signed_in(&app, admin_token, &headers, "/");
    }
    let form = render(&SignInPage {
        next,
        error: Some(
            "This sign-in link was used before or has expired. Enter the admin token instead.",
        ),
    });
    (StatusCode::UNAUTHORIZED, form).into_response()
}

/// Starts a session and redirects to `path`.
fn signed_in(
    app: &AppState,
    admin_token: &SecretString,
    headers: &HeaderMap,
    path: &str,
) -> Response {
    tracing::info!("operator signed in");
    let cookie = session::begin(app, admin_token, headers);
    ([(header::SET_COOKIE, cookie)], Redirect::to(path)).into_response()
}

#[derive(Deserialize)]
pub(in crate::http) struct Submission {
    token: String,
    #[serde(default)]
    next: String,
}

/// `POST /sign-in`
pub(in crate::http) async fn submit(
    State(app): State<AppState>,
    headers: HeaderMap,
    Form(Submission { token, next }): Form<Submission>,
) -> Response {
    let Some(admin_token) = &app.admin_token else {
        return Problem::not_found().into_response();
    };
    let form = |error| {
        render(&SignInPage {
            next: next.clone(),
            error: Some(error),
        })
    };
    if !session::is_same_origin(&headers) {
        let form =
            form("Your browser did not confirm that the form came from this server. Try again.");
        return (StatusCode::FORBIDDEN, form).into_response();
    }
    if session::is_admin_token(admin_token, token.trim().as_bytes()) {
        return signed_in(
            &app,
            admin_token,
            &headers,
            local_path(&next).unwrap_or("/"),
        );
    }
    if app.wrong_tokens.slow_down(TokenPath::Form).await.is_err() {
        let form = form("Too many incorrect tokens were entered. Wait a second, then try again.");
        let wait = [(header::RETRY_AFTER, RATE_LIMITED_SECONDS)];
        return (StatusCode::TOO_MANY_REQUESTS, wait, form).into_response();
    }
    let form =
        form("The token is incorrect. Enter the value of this server's ADMIN_TOKEN setting.");
    (StatusCode::UNAUTHORIZED, form).into_response()
}

/// `text` if it is a path on this server. Browsers resolve some forms, such as `//host`, to other
/// servers.
fn local_path(text: &str) -> Option<&str> {
    let rest = text.strip_prefix('/')?;
    let local = !rest.starts_with(['/', '\\']) && rest.bytes().all(|b| b.is_ascii_graphic());
    local.then_some(text)
}

/// `POST /sign-out`
pub(in crate::http) async fn sign_out(State(app): State<AppState>, headers: HeaderMap) -> Response {
    if !session::is_same_origin(&headers) {
        return Redirect::to("/").into_response();
    }
    // Anybody can send this request, and must not be able to fill the log.
    if session::has_session(&app, &headers) {
        tracing::info!("operator signed out");
    }
    let cookie = session::end(&headers);
    ([(header::SET_COOKIE, cookie)], Redirect::to("/sign-in")).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_this_server() {
        for local in ["/", "/videos/1?x=y", "/?q=a%20b"] {
            assert_eq!(local_path(local), Some(local));
        }
        for other in [
            "",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "/\t/evil.example",
            "/a\r\nx: y",
        ] {
            assert_eq!(local_path(other), None, "{other:?}");
        }
    }
}
