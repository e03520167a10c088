//! Authorization of operators: a bearer token for programs, a signed session cookie for browsers.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Method, header};
use secrecy::{ExposeSecret as _, SecretString};

use super::{AppState, header_value};
use crate::domain::signature::{same_secret, sign, verify};

/// The lifetime of a session, in seconds.
const SESSION_SECONDS: i64 = 12 * 3600;

/// The maximum number of failed sign-ins within [`FAILURE_WINDOW`]. When it is reached, all sign-ins are
/// rejected.
const FAILURES_MAX: usize = 10;

/// See [`FAILURES_MAX`].
pub(super) const FAILURE_WINDOW: Duration = Duration::from_secs(60);

const COOKIE: &str = "video_ingest_session";

/// Limits failed sign-ins. All clients share the limit, because behind a proxy they have one address.
#[derive(Debug, Default)]
pub struct SignInLimiter {
    failures: Mutex<Vec<Instant>>,
}

/// The result of a sign-in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SignIn {
    Accepted,
    WrongToken,
    /// The token was not compared, because too many sign-ins failed before.
    Limited,
}

impl SignInLimiter {
    /// Compares the token that a client sent with the admin token.
    pub(super) fn check(&self, token: &SecretString, sent: &str, now: Instant) -> SignIn {
        let mut failures = self.failures.lock().expect("no panic while held");
        failures.retain(|at| now.duration_since(*at) < FAILURE_WINDOW);
        if failures.len() >= FAILURES_MAX {
            return SignIn::Limited;
        }
        if same_secret(sent.as_bytes(), token.expose_secret().as_bytes()) {
            return SignIn::Accepted;
        }
        failures.push(now);
        SignIn::WrongToken
    }
}

/// Whether a request carries the admin token or a valid session cookie. With a cookie, requests that
/// change something must come from our own pages, because other sites can make a browser send it.
pub(super) fn is_admin(app: &AppState, method: &Method, headers: &HeaderMap) -> bool {
    let Some(token) = &app.admin_token else {
        return false;
    };
    let sent = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    match sent {
        Some(sent) => same_secret(sent, token.expose_secret().as_bytes()),
        None => {
            has_session(token, headers, now_s(app)) && (method.is_safe() || is_same_origin(headers))
        }
    }
}

/// Whether a browser states that one of our own pages sent the request.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| header_value(headers, name);
    match (text("sec-fetch-site"), text("origin"), text("host")) {
        (Some(site), _, _) => site == "same-origin",
        // Browsers omit Sec-Fetch-Site over plain HTTP.
        (None, Some(origin), Some(host)) => origin
            .split_once("://")
            .is_some_and(|(_, authority)| authority == host),
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
    let https = header_value(headers, "x-forwarded-proto") == Some("https");
    let secure = if https { "; Secure" } else { "" };
    format!("{COOKIE}={value}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=Strict{secure}")
}

fn has_session(token: &SecretString, headers: &HeaderMap, now: i64) -> bool {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split("; "))
        .filter_map(|pair| pair.strip_prefix(COOKIE)?.strip_prefix('='))
        .any(|value| is_valid(token, value, now))
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
    fn failed_sign_ins_are_limited() {
        let (limiter, now) = (SignInLimiter::default(), Instant::now());
        for _ in 0..FAILURES_MAX {
            assert_eq!(limiter.check(&token(), "wrong", now), SignIn::WrongToken);
        }
        let right = "a token of sixteen";
        assert_eq!(limiter.check(&token(), right, now), SignIn::Limited);
        let later = now + FAILURE_WINDOW;
        assert_eq!(limiter.check(&token(), right, later), SignIn::Accepted);
    }
}
