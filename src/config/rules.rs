//! Validation: each rule returns the parsed value, or a description of a valid one.
//!
//! The description never repeats the refused value: people paste secrets into the wrong variable.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use reqwest::Url;
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

use crate::domain::ids::{NotARepoName, RepoName};
use crate::domain::plan::LEASE_MAX;
use crate::domain::strength::Strength;
use crate::format;

/// Shortest secret that this server compares, and shortest storage key, in bytes.
const SECRET_MIN_BYTES: usize = 16;

/// Longest branch name, videos folder and bucket name, in bytes.
const BRANCH_MAX_BYTES: usize = 255;
const VIDEOS_DIR_MAX_BYTES: usize = 1024;
const BUCKET_MAX_BYTES: usize = 100;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Units of a duration and their seconds, largest first.
const UNITS: [(char, u64); 4] = [('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Bounds of intervals, deadlines and retentions.
pub(super) const ANY_DURATION: RangeInclusive<Duration> = seconds(1)..=seconds(3_650 * 86_400);

/// Shorter leases expire during a slow write; longer ones delay the videos of a crashed replica.
pub(super) const LEASE: RangeInclusive<Duration> = seconds(5)..=LEASE_MAX;

/// The value, or a description of a valid one, as the rest of a sentence after the variable's name.
pub(super) type Rule<T> = Result<T, String>;

pub(super) fn ensure<T>(holds: bool, value: T, right: &str) -> Rule<T> {
    if holds {
        Ok(value)
    } else {
        Err(right.to_owned())
    }
}

/// A whole number within bounds.
pub(super) fn number<T: FromStr + PartialOrd + std::fmt::Display>(
    text: &str,
    bounds: RangeInclusive<T>,
) -> Rule<T> {
    // `from_str` would let a leading `+` pass.
    let parsed = text
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse());
    match parsed {
        Some(Ok(n)) if bounds.contains(&n) => Ok(n),
        _ => Err(format!(
            "must be a whole number from {} to {}",
            bounds.start(),
            bounds.end()
        )),
    }
}

/// `30s`, `5m`, `6h` or `30d`, within bounds: the syntax of durations in settings and flags.
///
/// # Errors
/// A description of a valid value, as the rest of a sentence after the name of the setting or flag.
pub fn duration(text: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, String> {
    let parse = || {
        let (unit, scale) = UNITS.iter().find(|(unit, _)| text.ends_with(*unit))?;
        let count = number(text.strip_suffix(*unit)?, 0..=u64::MAX).ok()?;
        let duration = seconds(count.checked_mul(*scale)?);
        bounds.contains(&duration).then_some(duration)
    };
    parse().ok_or_else(|| {
        format!(
            "must be a number followed by a unit (such as `30s`, `5m`, `6h` or `30d`), from {} to {}",
            format::duration(*bounds.start()),
            format::duration(*bounds.end())
        )
    })
}

/// Like [`duration`], with `0` for never.
pub(super) fn duration_or_never(
    text: &str,
    bounds: RangeInclusive<Duration>,
) -> Rule<Option<Duration>> {
    match text {
        "0" => Ok(None),
        _ => duration(text, bounds)
            .map(Some)
            .map_err(|right| format!("{right}, or `0` to disable it")),
    }
}

/// One of a list of words.
pub(super) fn one_of<T: Copy>(text: &str, words: &[(&str, T)]) -> Rule<T> {
    let known = words.iter().find(|(word, _)| *word == text);
    known.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        format!("must be {}", words.join(" or "))
    })
}

/// `owner/name`, as GitHub allows them.
pub(super) fn repository(text: &str) -> Rule<RepoName> {
    text.parse()
        .map_err(|error: NotARepoName| error.to_string())
}

/// A branch name by the rules of `git check-ref-format --branch`, without `refs/heads/`.
pub(super) fn branch(text: &str) -> Rule<String> {
    let forbidden = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    let part_fits =
        |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    let fits = text.len() <= BRANCH_MAX_BYTES
        && !text.contains(forbidden)
        && text.split('/').all(part_fits)
        && !text.contains("..")
        && !text.contains("@{")
        && !text.starts_with('-')
        && !text.starts_with("refs/")
        && !text.ends_with('.')
        && text != "@";
    ensure(
        fits,
        text.to_owned(),
        "must be a branch name, such as `main`, without the `refs/heads/` prefix",
    )
}

/// A folder inside the repository; a trailing slash is removed.
pub(super) fn videos_dir(text: &str) -> Rule<String> {
    let folder = text.strip_suffix('/').unwrap_or(text);
    let part_fits = |part: &str| !["", ".", ".."].contains(&part);
    let fits = folder.len() <= VIDEOS_DIR_MAX_BYTES
        && folder.split('/').all(part_fits)
        && !folder.contains(|c: char| c.is_control() || c == '\\');
    ensure(
        fits,
        folder.to_owned(),
        "must be the relative path of a folder in the repository, such as `videos`, without `..`",
    )
}

/// A bucket name, which is also the name of a folder in the folder store.
pub(super) fn bucket(text: &str) -> Rule<String> {
    let fits = text.len() <= BUCKET_MAX_BYTES
        && !text.starts_with('.')
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    ensure(
        fits,
        text.to_owned(),
        "must be a bucket name of up to 100 letters, digits, hyphens, underscores and periods",
    )
}

/// A URL to which credentials can be sent: plain http is accepted only for loopback and private networks.
///
/// # Errors
/// A description of a valid value, as the rest of a sentence after the name of the setting or flag.
pub fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok();
    let url = url.filter(|url| ["http", "https"].contains(&url.scheme()) && url.has_host());
    let Some(url) = url else {
        return Err("must be a valid URL, such as `https://example.com`".to_owned());
    };
    let is_safe = url.scheme() == "https" || url.host_str().is_some_and(is_private);
    ensure(
        is_safe,
        url,
        "must start with `https://`: plain HTTP is allowed only for loopback and private hosts",
    )
}

/// The base URL of an API; a trailing slash is removed.
///
/// # Errors
/// A description of a valid value, like [`url`].
pub fn base_url(text: &str) -> Result<String, String> {
    let url = url(text)?;
    ensure(
        url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none(),
        url.as_str().trim_end_matches('/').to_owned(),
        "must be a URL without a user name, query or fragment, such as `https://example.com`",
    )
}

/// Loopback, RFC 1918 and RFC 4193 addresses, names without a dot (compose services), `.internal`.
pub(super) fn is_private(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_private(),
        Ok(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local(),
        Err(_) => {
            !host.contains('.') || host.ends_with(".internal") || host.ends_with(".localhost")
        }
    }
}

/// A secret that is too long to guess.
pub(super) fn long_enough(secret: &str) -> Rule<()> {
    let fits = secret.trim().len() >= SECRET_MIN_BYTES;
    let right = format!(
        "must be at least {SECRET_MIN_BYTES} bytes long, such as the output of `openssl rand -hex 32`"
    );
    ensure(fits, (), &right)
}

/// A secret that is not among the first that an attacker tries.
pub(super) fn not_trivial(secret: &str) -> Rule<()> {
    ensure(
        Strength::of(secret) > Strength::Trivial,
        (),
        "is easy to guess, because it is a repetition, a sequence or a placeholder: use the output of `openssl rand -hex 32`",
    )
}

/// A secret that can be sent in an HTTP header.
pub(super) fn sendable(secret: &str) -> Rule<()> {
    let fits = secret.bytes().all(|b| b.is_ascii_graphic());
    ensure(
        fits,
        (),
        "must consist of printable ASCII characters without spaces or line breaks",
    )
}

/// A key of Supabase that is not one of the public ones, as far as the key itself shows. Row-level security
/// applies to those, so every upload would be rejected.
///
/// Source: Supabase's guide "Understanding API keys".
pub(super) fn service_key(key: &str) -> Rule<()> {
    let right = |kind| {
        format!(
            "contains {kind}: use the project's secret key (`sb_secret_…`) or the legacy `service_role` JWT, from the dashboard under Project Settings > API Keys"
        )
    };
    if key.starts_with("sb_publishable_") {
        return Err(right("the publishable key, which is public"));
    }
    match role_of(key).as_deref() {
        Some("anon") => Err(right("the `anon` key, which is public")),
        Some("authenticated") => Err(right("the token of a user")),
        _ => Ok(()),
    }
}

/// The role in the payload of a JWT.
fn role_of(token: &str) -> Option<String> {
    let payload = BASE64_URL_SAFE_NO_PAD
        .decode(token.split('.').nth(1)?)
        .ok()?;
    let payload: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    Some(payload["role"].as_str()?.to_owned())
}

/// A UUID in any notation.
pub(super) fn uuid(text: &str) -> Rule<Uuid> {
    Uuid::try_parse(text).map_err(|_| "must be a UUID".to_owned())
}

/// Directives of `tracing-subscriber`.
pub(super) fn log_filter(text: &str) -> Rule<String> {
    ensure(
        EnvFilter::try_new(text).is_ok(),
        text.to_owned(),
        "must be a valid log filter, such as `info` or `info,video_ingest=debug`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every good text is accepted and every bad one refused.
    fn check<T: std::fmt::Debug>(rule: impl Fn(&str) -> Rule<T>, good: &[&str], bad: &[&str]) {
        for text in good {
            assert!(rule(text).is_ok(), "{text:?} was refused");
        }
        for text in bad {
            assert!(rule(text).is_err(), "{text:?} passed as {:?}", rule(text));
        }
    }

    #[test]
    fn durations_are_a_number_and_a_unit() {
        let parsed = ["1s", "5m", "6h", "30d"].map(|text| duration(text, ANY_DURATION).unwrap());
        assert_eq!(parsed.map(|d| d.as_secs()), [1, 300, 21_600, 2_592_000]);
        let bad = [
            "", "5", "s", "0", "0s", "-5m", "+5m", "5 m", "1.5h", "5M", "5ms", "3651d",
        ];
        check(|text| duration(text, ANY_DURATION), &[], &bad);
        // Wrapped to 64 bits, 2^57 + 1 days would be the seconds of one day.
        check(
            |text| duration(text, ANY_DURATION),
            &[],
            &["5µ", "144115188075855873d"],
        );
        check(
            |text| duration(text, LEASE),
            &["5s", "600s", "10m"],
            &["4s", "601s"],
        );
    }

    #[test]
    fn a_refused_duration_is_reported_with_its_bounds() {
        let right = duration("1h", LEASE).unwrap_err();
        assert!(right.ends_with("from 5 s to 10 min"), "{right}");
    }

    #[test]
    fn only_intervals_may_be_never() {
        assert_eq!(duration_or_never("0", ANY_DURATION), Ok(None));
        assert_eq!(duration_or_never("9s", ANY_DURATION), Ok(Some(seconds(9))));
        check(
            |text| duration_or_never(text, ANY_DURATION),
            &[],
            &["00", "0s", "never"],
        );
    }

    #[test]
    fn repositories_are_owner_and_name() {
        let good = [
            "octo/video-artifacts",
            "o/n",
            "emu_corp/a.b_c",
            "a-b/.github",
        ];
        let bad = [
            "video-artifacts",
            "octo/",
            "/name",
            "octo/a/b",
            "octo/..",
            "octo/x.git",
            "-octo/x",
            "octo/a b",
            "octo/ä",
            "https://github.com/octo/x",
        ];
        check(repository, &good, &bad);
        assert_eq!(repository("octo/x").unwrap().to_string(), "octo/x");
        check(repository, &[], &[&format!("octo/{}", "x".repeat(101))]);
    }

    #[test]
    fn branches_are_what_git_allows() {
        let good = ["main", "release/1.x", "feature-ü", "v1.0"];
        let bad = [
            "",
            "/main",
            "main/",
            "a//b",
            "a..b",
            "a b",
            "-x",
            ".a",
            "a/.b",
            "a.lock",
            "a~1",
            "@",
            "a@{0}",
            "a.",
            "a\\b",
            "a\n",
            "refs/heads/main",
        ];
        check(branch, &good, &bad);
    }

    #[test]
    fn the_videos_folder_stays_inside_the_repository() {
        let good = ["videos", "videos/", "out/videos"];
        let bad = [
            "/videos", "/", ".", "..", "../x", "a/../b", "./a", "a//b", "a//", "a\\b", "a\0",
        ];
        check(videos_dir, &good, &bad);
        assert_eq!(videos_dir("out/videos/").unwrap(), "out/videos");
    }

    #[test]
    fn buckets_are_one_plain_name() {
        check(
            bucket,
            &["lesson-assets", "lesson_assets"],
            &["a/b", "..", ".a", "a b", &"x".repeat(101)],
        );
    }

    #[test]
    fn plain_http_is_for_private_hosts() {
        let good = [
            "https://api.github.com",
            "https://ghe.example.com/api/v3",
            "http://127.0.0.1:9000",
            "http://[::1]:9000",
            "http://localhost:9000",
            "http://storage:5000",
            "http://10.1.2.3",
            "http://192.168.0.1",
            "http://[fd00::1]",
            "http://openhands.internal",
        ];
        let bad = [
            "",
            "api.github.com",
            "ftp://example.com",
            "https://",
            "http://api.github.com",
            "http://8.8.8.8",
            "http://172.32.0.1",
            "http://[2001:db8::1]",
            "http://127.0.0.1.example.com",
            "https://user:password@example.com",
            "https://example.com?key=1",
            "https://example.com/#x",
        ];
        check(base_url, &good, &bad);
        assert_eq!(
            base_url("http://127.0.0.1:1/api/").unwrap(),
            "http://127.0.0.1:1/api"
        );
    }

    #[test]
    fn secrets_are_long_and_fit_a_header() {
        check(
            long_enough,
            &["0123456789abcdef"],
            &["0123456789abcde", &" ".repeat(32), ""],
        );
        check(
            sendable,
            &["ghp_a.b-c/d+e="],
            &["two words", "line\nbreak", "ümlaut"],
        );
    }

    #[test]
    fn a_storage_key_is_not_a_public_one() {
        let jwt = |payload: &str| format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(payload));
        let service = jwt(r#"{"iss":"supabase","role":"service_role"}"#);
        let good = ["sb_secret_0123456789", &service, "not.a.token", "opaque"];
        let public = [
            "sb_publishable_0123456789",
            &jwt(r#"{"role":"anon"}"#),
            &jwt(r#"{"role":"authenticated","sub":"x"}"#),
        ];
        check(service_key, &good, &public);
    }

    #[test]
    fn numbers_have_bounds() {
        let bad = ["", "65", "-1", "+1", "1e1", " 1", "99999999999999999999"];
        check(|text| number(text, 0..=64usize), &["0", "64"], &bad);
    }
}
