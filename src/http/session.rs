//! Who may see and do things: a bearer token for tools, a signed cookie for a browser.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, Method, header};
use secrecy::{ExposeSecret as _, SecretString};

use super::AppState;
use crate::domain::signature::{same_secret, sign, verify};

/// How long a browser stays signed in, in seconds.
const SESSION_SECONDS: i64 = 12 * 3600;

/// Wrong tokens that are taken within [`WRONG_WINDOW`]; then nobody can sign in until it has passed.
const WRONG_MAX: usize = 10;

/// See [`WRONG_MAX`].
pub(super) const WRONG_WINDOW: Duration = Duration::from_secs(60);

const COOKIE: &str = "video_ingest_session";

/// Wrong tokens of late, over all clients: behind a proxy, addresses tell nobody apart.
#[derive(Debug, Default)]
pub struct SignIns {
    wrong: Mutex<VecDeque<Instant>>,
}

impl SignIns {
    /// Whether the token is right; `None`: too many were wrong, this one was not looked at.
    pub(super) fn check(&self, token: &SecretString, shown: &str, now: Instant) -> Option<bool> {
        let mut wrong = self.wrong.lock().expect("no panic while held");
        while wrong
            .front()
            .is_some_and(|at| now.duration_since(*at) >= WRONG_WINDOW)
        {
            wrong.pop_front();
        }
        if wrong.len() >= WRONG_MAX {
            return None;
        }
        let right = same_secret(shown.as_bytes(), token.expose_secret().as_bytes());
        if !right {
            wrong.push_back(now);
        }
        Some(right)
    }
}

/// A request with the token, or with a session's cookie. What changes something must with a cookie
/// come from a page of ours: another site can make a browser send one.
pub(super) fn is_admin(app: &AppState, method: &Method, headers: &HeaderMap) -> bool {
    let Some(token) = &app.admin_token else {
        return false;
    };
    let shown = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    match shown {
        Some(shown) => same_secret(shown, token.expose_secret().as_bytes()),
        None => {
            has_session(token, headers, now_s(app)) && (method.is_safe() || is_same_origin(headers))
        }
    }
}

/// Whether a browser says that one of our own pages sent this.
pub(super) fn is_same_origin(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match (text("sec-fetch-site"), text("origin"), text("host")) {
        (Some(site), _, _) => site == "same-origin",
        // Browsers leave Sec-Fetch-Site out where the page came by plain HTTP.
        (None, Some(origin), Some(host)) => origin
            .split_once("://")
            .is_some_and(|(_, authority)| authority == host),
        _ => false,
    }
}

/// The `Set-Cookie` of a session that begins now. Its value is signed with the token, and is not it.
pub(super) fn begin(app: &AppState, token: &SecretString, headers: &HeaderMap) -> String {
    let issued = now_s(app);
    let value = format!("{issued}.{}", sign(token, &signed_text(issued)));
    cookie(&value, SESSION_SECONDS, headers)
}

/// The `Set-Cookie` that ends a session.
pub(super) fn end(headers: &HeaderMap) -> String {
    cookie("", 0, headers)
}

fn cookie(value: &str, max_age: i64, headers: &HeaderMap) -> String {
    let https = headers
        .get("x-forwarded-proto")
        .is_some_and(|proto| proto == "https");
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
    app.sweep.clock.now_ms() / 1000
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
    fn a_session_ends_and_cannot_be_made_up() {
        let value = |at: i64| format!("{at}.{}", sign(&token(), &signed_text(at)));
        assert!(is_valid(&token(), &value(1000), 1000 + SESSION_SECONDS - 1));
        assert!(!is_valid(&token(), &value(1000), 1000 + SESSION_SECONDS));
        assert!(!is_valid(&token(), &value(1000), 999));
        assert!(!is_valid(&"another token here".into(), &value(1000), 1000));
        let moved = value(1000).replacen("1000", "2000", 1);
        for made_up in [moved.as_str(), "", ".", "1000.", "a token of sixteen"] {
            assert!(!is_valid(&token(), made_up, 2000), "{made_up}");
        }
    }

    #[test]
    fn only_a_page_of_ours_may_act() {
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
    fn guessing_is_slow() {
        let (sign_ins, now) = (SignIns::default(), Instant::now());
        for _ in 0..WRONG_MAX {
            assert_eq!(sign_ins.check(&token(), "wrong", now), Some(false));
        }
        let right = "a token of sixteen";
        assert_eq!(sign_ins.check(&token(), right, now), None);
        let later = now + WRONG_WINDOW;
        assert_eq!(sign_ins.check(&token(), right, later), Some(true));
    }
}
