//! What every outbound HTTP call has in common: the client's policy, bounded bodies, `Retry-After`
//! and secret header values.

use std::time::{Duration, UNIX_EPOCH};

use reqwest::header::{HeaderMap, HeaderName, HeaderValue, InvalidHeaderValue, RETRY_AFTER};
use reqwest::{Client, ClientBuilder, Response};

use crate::domain::failure::clamp_retry_after;

/// Supabase refuses secret keys from browsers, so this must not look like one.
const USER_AGENT: &str = concat!("video-ingest/", env!("CARGO_PKG_VERSION"));

/// The time that every transfer gets, however small, for connections and pauses.
const TRANSFER_BASE: Duration = Duration::from_secs(60);

/// The lowest accepted average rate of a transfer, in bytes per second.
const TRANSFER_RATE_MIN: u64 = 64 * 1024;

/// A setting that makes every call impossible.
#[derive(Debug, thiserror::Error)]
#[error("{name} {problem}.")]
pub struct InvalidSetting {
    /// The setting's name.
    pub name: &'static str,
    /// What is wrong, as the rest of a sentence after the name; never the value of a secret.
    pub problem: &'static str,
}

/// A builder of clients that send credentials: without redirects, retries or a proxy.
///
/// `connect_max` bounds the time to establish a connection. The timeout of a whole call is the
/// caller's; for uploads and downloads it depends on their size, see [`transfer_max`].
pub fn direct(connect_max: Duration) -> ClientBuilder {
    // Credentials go to the service they are for, and to no host in between.
    via_proxy(connect_max).no_proxy()
}

/// As [`direct`], but through the proxy that `HTTP_PROXY` or `HTTPS_PROXY` names: for commands that
/// call a remote server from an operator's machine.
pub fn via_proxy(connect_max: Duration) -> ClientBuilder {
    Client::builder()
        // A redirect could carry the credentials to another host; callers that must follow one
        // check its target first.
        .redirect(reqwest::redirect::Policy::none())
        // The retry schedule of the videos is the only one.
        .retry(reqwest::retry::never())
        .connect_timeout(connect_max)
        .user_agent(USER_AGENT)
}

/// Builds the client for the service whose address is the setting `name`.
///
/// # Errors
/// This system has no TLS certificates.
pub fn build(builder: ClientBuilder, name: &'static str) -> Result<Client, InvalidSetting> {
    let problem = "requires TLS certificates on this system";
    builder
        .build()
        .map_err(|_| InvalidSetting { name, problem })
}

/// The longest time that a transfer of this many bytes may take.
///
/// A stall timeout alone is not sufficient: a peer that sends one byte before each timeout could occupy a
/// worker indefinitely.
pub const fn transfer_max(bytes: u64) -> Duration {
    TRANSFER_BASE.saturating_add(Duration::from_secs(bytes / TRANSFER_RATE_MIN))
}

/// Reads the rest of a response; `None` if it is longer than `bytes_max`.
///
/// # Errors
/// The connection broke, or the client's timeout expired.
pub async fn body(response: &mut Response, bytes_max: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    // `Content-Length` may be absent or wrong, so the bytes are counted as they arrive.
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > bytes_max {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// The wait that `Retry-After` asks for (RFC 9110, section 10.2.3: seconds or an HTTP date), within
/// the bounds of [`clamp_retry_after`].
///
/// A date that has passed is ignored: if the two clocks disagree, it could have passed each time,
/// and the service would be called in a loop.
pub fn retry_after(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let wait = if let Some(seconds) = number(headers, RETRY_AFTER.as_str()) {
        Duration::from_secs(seconds)
    } else {
        let wait_ms = http_date_ms(headers, &RETRY_AFTER)?.checked_sub(now_ms)?;
        Duration::from_millis(u64::try_from(wait_ms).ok()?)
    };
    Some(clamp_retry_after(wait))
}

/// A header that holds an HTTP date, in milliseconds since the Unix epoch.
pub fn http_date_ms(headers: &HeaderMap, name: &HeaderName) -> Option<i64> {
    let date = httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()?;
    let since_epoch = date.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since_epoch.as_millis()).ok()
}

/// A header that holds a decimal number.
pub fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// A header value that debug output and logs do not show.
///
/// # Errors
/// The text has characters that a header cannot carry, such as a line break.
pub fn sensitive(text: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(text)?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::failure::{RETRY_AFTER_MAX, RETRY_AFTER_MIN};

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now_ms = 1_785_585_600_000; // 2026-08-01T12:00:00Z
        for (text, expected) in [
            ("37", Some(Duration::from_secs(37))),
            (
                "Sat, 01 Aug 2026 12:00:37 GMT",
                Some(Duration::from_secs(37)),
            ),
            ("0", Some(RETRY_AFTER_MIN)),
            ("100000000", Some(RETRY_AFTER_MAX)),
            ("Thu, 31 Dec 9998 23:59:59 GMT", Some(RETRY_AFTER_MAX)),
            ("Sat, 01 Aug 2026 11:00:00 GMT", None),
            ("Fri, 31 Dec 1999 23:59:59 GMT", None),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now_ms), expected, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now_ms), None);
    }

    #[test]
    fn a_transfer_gets_time_by_its_size() {
        assert_eq!(transfer_max(0), Duration::from_secs(60));
        assert_eq!(transfer_max(50 << 20), Duration::from_secs(60 + 800));
        assert!(transfer_max(u64::MAX) > transfer_max(1 << 40));
    }

    #[test]
    fn a_sensitive_value_is_not_shown() {
        assert!(!format!("{:?}", sensitive("hush").unwrap()).contains("hush"));
        assert!(sensitive("a\nb").is_err());
    }
}
