//! Authorization of operators: a bearer token for programs, a signed session cookie for browsers. Wrong tokens
//! are slowed down, counted and logged.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, Method, header};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::connections::Connection;
use super::{AppState, ErrorCode, Problem, header_value};
use crate::domain::signature::{same_secret, sign, verify};
use crate::telemetry::metrics::{self, TokenPath};
use crate::telemetry::refused::{Reason, refused};

/// The lifetime of a session, in seconds.
const SESSION_SECONDS: i64 = 12 * 3600;

/// The delay of the response to a wrong token. The right token is never delayed.
pub(super) const WRONG_TOKEN_DELAY: Duration = Duration::from_secs(1);

/// The maximum number of delayed responses at a time. Further wrong tokens are answered at once with 429.
const DELAYED_MAX: usize = 32;

/// How long a sign-in link is valid, in milliseconds.
const LINK_MS: i64 = 10 * 60 * 1000;

/// The session cookie over plain HTTP, on which browsers accept no secure cookies.
const COOKIE: &str = "video_ingest_session";

/// The session cookie over HTTPS. Because of its prefix, browsers accept it only if it is secure and belongs to
/// this host alone, so another host of the same domain cannot set it.
const HOST_COOKIE: &str = "__Host-video_ingest_session";

/// Slows down wrong tokens. All clients share the limit, because behind a proxy they have one address.
#[derive(Debug)]
pub struct WrongTokens {
    delayed: Semaphore,
}

impl Default for WrongTokens {
    fn default() -> Self {
        Self {
            delayed: Semaphore::new(DELAYED_MAX),
        }
    }
}

impl WrongTokens {
    /// Counts and logs a wrong token, and waits before it is answered.
    ///
    /// # Errors
    /// Too many responses are delayed already. The returned one must be sent at once.
    pub(super) async fn slow_down(&self, path: TokenPath) -> Result<(), Problem> {
        metrics::wrong_token(path);
        refused(Reason::WrongToken);
        let Ok(_permit) = self.delayed.try_acquire() else {
            return Err(Problem::new(
                ErrorCode::RateLimited,
                "Too many incorrect tokens were sent. Try again in a second; the correct token is always accepted.",
            ));
        };
        tokio::time::sleep(WRONG_TOKEN_DELAY).await;
        Ok(())
    }
}

/// A link that signs in once, for the demo, which prints it on the terminal. A server that issues none accepts
/// none.
///
/// Following it is a GET request, so a program that previews links would use it up. That is acceptable for a link
/// to this machine, which only a program on this machine can follow; the admin token still works then.
#[derive(Debug, Default)]
pub struct SignInLink {
    /// The token of the last link, and when it was issued, in milliseconds since the Unix epoch.
    issued: Mutex<Option<(SecretString, i64)>>,
}

impl SignInLink {
    /// Issues a link, valid for ten minutes, in place of the previous one. Returns its path with the query.
    pub fn issue(&self, now_ms: i64) -> String {
        // A random UUID has 122 random bits.
        let random = [Uuid::new_v4(), Uuid::new_v4()].map(Uuid::into_bytes);
        let token = hex::encode(&Sha256::digest(random.concat())[..16]);
        let path = format!("/sign-in?once={token}");
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        *issued = Some((token.into(), now_ms));
        path
    }

    /// Whether this is the token of the link. If so, it is not valid any more. Wrong ones need no delay: nobody
    /// guesses 128 bits in ten minutes.
    pub(super) fn redeem(&self, sent: &str, now_ms: i64) -> bool {
        let mut issued = self.issued.lock().unwrap_or_else(PoisonError::into_inner);
        let redeemed = issued.take_if(|(token, at)| {
            (0..LINK_MS).contains(&now_ms.saturating_sub(*at))
                && same_secret(sent.as_bytes(), token.expose_secret().as_bytes())
        });
        redeemed.is_some()
    }
}

/// Whether a request comes from an operator. If so, its connection is trusted. A wrong token is slowed down.
///
/// # Errors
/// Too many wrong tokens were sent, see [`WrongTokens`].
pub(super) async fn authorize(
    app: &AppState,
    connection: &Connection,
    method: &Method,
    headers: &HeaderMap,
) -> Result<bool, Problem> {
    match access(app, method, headers) {
        Access::Admin => {
            connection.trust();
            return Ok(true);
        }
        Access::WrongToken => app.wrong_tokens.slow_down(TokenPath::Bearer).await?,
        Access::Anonymous => {}
    }
    Ok(false)
}

/// What a request may do.
enum Access {
    /// Everything: it has the admin token or a valid session cookie.
    Admin,
    /// It has neither.
    Anonymous,
    /// It has a bearer token, which is wrong.
    WrongToken,
}

/// The access of a request. With a cookie, requests that change something must come from our own pages, because
/// other sites can make a browser send it.
fn access(app: &AppState, method: &Method, headers: &HeaderMap) -> Access {
    let Some(token) = &app.admin_token else {
        return Access::Anonymous;
    };
    let sent = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    if let Some(sent) = sent {
        return if is_admin_token(token, sent) {
            Access::Admin
        } else {
            Access::WrongToken
        };
    }
    if has_session(app, headers) && (method.is_safe() || is_same_origin(headers)) {
        return Access::Admin;
    }
    Access::Anonymous
}

/// Whether a client sent the admin token.
pub(super) fn is_admin_token(token: &SecretString, sent: &[u8]) -> bool {
    same_secret(sent, token.expose_secret().as_bytes())
}

/// Whether the client uses HTTPS, according to the proxy in front of this server. The first of several proxies
/// is the one that the client is connected to.
pub(super) fn is_https(headers: &HeaderMap) -> bool {
    let schemes = header_value(headers, "x-forwarded-proto").unwrap_or_default();
    let first = schemes.split(',').next().unwrap_or_default();
    first.trim().eq_ignore_ascii_case("https")
}

/// Whether a browser states that one of our own pages sent the request.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| header_value(headers, name);
    match (text("sec-fetch-site"), text("origin"), text("host")) {
        (Some(site), _, _) => site == "same-origin",
        // Browsers omit Sec-Fetch-Site over plain HTTP.
        (None, Some(origin), Some(host)) => {
            origin.split_once("://").is_some_and(|(scheme, authority)| {
                // A proxy that terminates TLS may not say so.
                let is_same_scheme = scheme == "https" || scheme == "http" && !is_https(headers);
                is_same_scheme && authority == host
            })
        }
        _ => false,
    }
}

/// The `Set-Cookie` value that starts a session. The cookie is signed with the token and does not
/// contain it.
pub(super) fn begin(app: &AppState, token: &SecretString, headers: &HeaderMap) -> String {
    let issued = now_s(app);
    let value = format!("{issued}.{}", sign(token, &signed_text(issued)));
    cookie(&value, SESSION_SECONDS, headers)
}

/// The `Set-Cookie` value that ends a session.
pub(super) fn end(headers: &HeaderMap) -> String {
    cookie("", 0, headers)
}

fn cookie(value: &str, max_age: i64, headers: &HeaderMap) -> String {
    let name = cookie_name(headers);
    let secure = if is_https(headers) { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=Strict{secure}")
}

fn cookie_name(headers: &HeaderMap) -> &'static str {
    if is_https(headers) {
        HOST_COOKIE
    } else {
        COOKIE
    }
}

/// Whether a request has a valid session cookie.
pub(super) fn has_session(app: &AppState, headers: &HeaderMap) -> bool {
    let Some(token) = &app.admin_token else {
        return false;
    };
    let name = cookie_name(headers);
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split("; "))
        .filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        .any(|value| is_valid(token, value, now_s(app)))
}

fn is_valid(token: &SecretString, value: &str, now: i64) -> bool {
    let Some((issued, signature)) = value.split_once('.') else {
        return false;
    };
    let Ok(issued) = issued.parse::<i64>() else {
        return false;
    };
    (0..SESSION_SECONDS).contains(&now.saturating_sub(issued))
        && verify(
            std::slice::from_ref(token),
            Some(signature),
            &signed_text(issued),
        )
}

fn signed_text(issued: i64) -> Vec<u8> {
    format!("video-ingest session of {issued}").into_bytes()
}

fn now_s(app: &AppState) -> i64 {
    app.clock.now_ms() / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> SecretString {
        "a token of sixteen".into()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_session_expires_and_cannot_be_forged() {
        let value = |at: i64| format!("{at}.{}", sign(&token(), &signed_text(at)));
        assert!(is_valid(&token(), &value(1000), 1000 + SESSION_SECONDS - 1));
        assert!(!is_valid(&token(), &value(1000), 1000 + SESSION_SECONDS));
        assert!(!is_valid(&token(), &value(1000), 999));
        assert!(!is_valid(&"another token here".into(), &value(1000), 1000));
        let moved = value(1000).replacen("1000", "2000", 1);
        for forged in [moved.as_str(), "", ".", "1000.", "a token of sixteen"] {
            assert!(!is_valid(&token(), forged, 2000), "{forged}");
        }
    }

    #[test]
    fn only_our_own_pages_are_of_the_same_origin() {
        for (sent, ours) in [
            (headers(&[("sec-fetch-site", "same-origin")]), true),
            (headers(&[("sec-fetch-site", "cross-site")]), false),
            (headers(&[("sec-fetch-site", "same-site")]), false),
            (
                headers(&[("origin", "http://ours:80"), ("host", "ours:80")]),
                true,
            ),
            (
                headers(&[("origin", "http://theirs"), ("host", "ours")]),
                false,
            ),
            (headers(&[("origin", "null"), ("host", "null")]), false),
            (headers(&[("host", "ours")]), false),
        ] {
            assert_eq!(is_same_origin(&sent), ours, "{sent:?}");
        }
    }

    #[test]
    fn the_scheme_is_that_of_the_client() {
        for (sent, https) in [
            ("https", true),
            ("HTTPS, http", true),
            ("http, https", false),
            ("", false),
        ] {
            assert_eq!(
                is_https(&headers(&[("x-forwarded-proto", sent)])),
                https,
                "{sent}"
            );
        }
        assert!(!is_https(&headers(&[])));
    }
}
