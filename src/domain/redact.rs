//! Removes credentials from texts of other services before they are shown, stored or logged.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use crate::format::is_unprintable;

/// Replaces a credential.
const REDACTED: &str = "[redacted]";

/// Shorter secrets are part of ordinary words, in bytes.
const SECRET_BYTES_MIN: usize = 4;

/// Longer runs of letters and digits are likely keys or hashes, in characters. A UUID has 36.
const RUN_CHARS_MAX: usize = 30;

/// Knows the secrets of the configuration. Its `Debug` output contains none.
#[derive(Clone, Default)]
pub struct Redactor {
    /// The secrets in all their forms, longest first: one can be a part of another.
    forms: Vec<String>,
}

impl Redactor {
    /// Knows these secrets, also percent-encoded and in base64.
    pub fn new<S: AsRef<str>>(secrets: impl IntoIterator<Item = S>) -> Self {
        let mut forms = Vec::new();
        for secret in secrets {
            let secret = secret.as_ref().trim();
            if secret.len() >= SECRET_BYTES_MIN {
                forms.push(secret.to_owned());
                forms.extend(percent_encoded(secret));
                forms.extend((0..3).flat_map(|shift| base64_forms(secret, shift)));
            }
        }
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        forms.dedup();
        Self { forms }
    }

    /// `text` without the known secrets.
    pub fn without_secrets(&self, text: &str) -> String {
        let known = |text: String, form: &String| text.replace(form, REDACTED);
        self.forms.iter().fold(text.to_owned(), known)
    }

    /// `text` in one line without credentials: the known secrets, user, password and query of URLs, and long
    /// runs of letters and digits.
    pub fn redact(&self, text: &str) -> String {
        let text: String = text.chars().filter_map(printable).collect();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let text = self.without_secrets(&text);
        let ends_url = |c: char| c.is_whitespace() || "\"'`<>\\".contains(c);
        let words = text.split_inclusive(ends_url);
        without_keys(&words.map(without_url_credentials).collect::<String>())
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redactor")
    }
}

/// The first `chars` characters, with `…` if there are more.
pub fn cut(text: &str, chars: usize) -> String {
    match text.char_indices().nth(chars) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

/// Line breaks become spaces. Other control characters and invisible ones, which could hide or reorder text,
/// are removed.
fn printable(c: char) -> Option<char> {
    match c {
        _ if c.is_whitespace() => Some(' '),
        _ => (!is_unprintable(c)).then_some(c),
    }
}

/// The secret as in a query and in a path, with digits of both cases.
fn percent_encoded(secret: &str) -> [String; 4] {
    let query: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let path = query.replace('+', "%20");
    let lower = |text: &str| {
        let mut parts = text.split('%');
        let mut lower = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (digits, rest) = part.split_at_checked(2).unwrap_or((part, ""));
            lower.extend(["%", &digits.to_ascii_lowercase(), rest]);
        }
        lower
    };
    [lower(&query), lower(&path), query, path]
}

/// The part of the base64 form that does not depend on the bytes around the secret, if `shift` bytes, modulo 3,
/// precede it. With `user:password` in base64, the password is not at the start.
fn base64_forms(secret: &str, shift: usize) -> impl Iterator<Item = String> {
    let bytes = [vec![0; shift], secret.into()].concat();
    // Each character has 6 bits.
    let (start, end) = ((shift * 8).div_ceil(6), bytes.len() * 8 / 6);
    [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD]
        .map(|engine| engine.encode(&bytes)[start..end].to_owned())
        .into_iter()
}

/// A word, without the user and password in front of the host, and from its query or fragment on.
fn without_url_credentials(word: &str) -> String {
    let (scheme, rest) = word.split_at(word.find("://").map_or(0, |at| at + 3));
    let names_value = |rest: &str| {
        let name = |c: char| c.is_ascii_alphanumeric() || "_-.~[]%".contains(c);
        rest.trim_start_matches(name).starts_with('=')
    };
    let starts_query = |&(at, c): &(usize, char)| {
        "?#&".contains(c) && (!scheme.is_empty() || names_value(&rest[at + 1..]))
    };
    let query = rest.char_indices().find(starts_query).map(|(at, _)| at);
    let address = &rest[..query.unwrap_or(rest.len())];
    // A password can contain slashes although it should not.
    let is_user = |at: &usize| {
        let before = &address[..*at];
        !scheme.is_empty() && (before.contains(':') || !before.contains('/'))
    };
    let host = address.rfind('@').filter(is_user);
    let mut text = scheme.to_owned();
    match host {
        Some(at) => text.extend([REDACTED, &address[at..]]),
        None => text.push_str(address),
    }
    if let Some(at) = query {
        let end = word
            .chars()
            .next_back()
            .filter(|c| "\"'`<>\\ ".contains(*c));
        text.extend([&rest[at..=at], REDACTED]);
        text.extend(end);
    }
    text
}

/// The text without long runs of letters and digits. Names have no digits.
fn without_keys(text: &str) -> String {
    let separates = |c: char| !(c.is_alphanumeric() || "_-+/=".contains(c));
    let shown = |part: &str| {
        let run = part.trim_end_matches(separates);
        let is_key =
            run.chars().count() > RUN_CHARS_MAX && run.contains(|c: char| c.is_ascii_digit());
        if is_key {
            format!("{REDACTED}{}", &part[run.len()..])
        } else {
            part.to_owned()
        }
    };
    text.split_inclusive(separates).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    use super::*;

    const SECRET: &str = "p@ss wörd/+1~>";

    #[test]
    fn every_form_of_a_secret_is_redacted() {
        let redactor = Redactor::new(["p@ss", SECRET, "ab", ""]);
        let percent: String = form_urlencoded::byte_serialize(SECRET.as_bytes()).collect();
        let mut forms = vec![
            SECRET.to_owned(),
            percent.replace('+', "%20"),
            percent.to_ascii_lowercase(),
            percent,
        ];
        for user in ["", "u:", "us:", "usr:", "user:"] {
            for engine in [STANDARD, URL_SAFE] {
                forms.push(engine.encode(format!("{user}{SECRET}")));
                forms.push(engine.encode(format!("{user}{SECRET}:more")));
            }
        }
        for form in forms {
            let text = redactor.redact(&format!("Key {form} is wrong"));
            assert!(text.contains(REDACTED), "{form}: {text}");
            for part in ["wörd", "w%C3%B6rd", "w%c3%b6rd"] {
                assert!(!text.contains(part), "{form}: {text}");
            }
            // Only the characters that also depend on the neighbouring bytes are left.
            assert!(text.len() <= 45, "{form}: {text}");
        }
        let hidden = redactor.redact("Key p@ss w\u{200b}ör\u{7}d/+1~>");
        assert_eq!(hidden, "Key [redacted]");
        assert_eq!(redactor.redact("ab and p@ss"), "ab and [redacted]");
        assert_eq!(format!("{redactor:?}"), "Redactor");
    }

    #[test]
    fn credentials_in_urls_and_keys_are_redacted() {
        let redactor = Redactor::default();
        let key = "A1".repeat(16);
        for (text, expected) in [
            ("invalid x-api-key", "invalid x-api-key"),
            ("Is it? Yes & no #1", "Is it? Yes & no #1"),
            ("at https://host/a/b, line 1", "at https://host/a/b, line 1"),
            (
                "at https://user:pa/ss@host/a?token=x&y=z failed",
                "at https://[redacted]@host/a?[redacted] failed",
            ),
            (
                "{\"url\":\"postgres://u:p@h:1/d?x\"}",
                "{\"url\":\"postgres://[redacted]@h:1/d?[redacted]\"}",
            ),
            ("https://token@host", "https://[redacted]@host"),
            ("https://host/@scope/name", "https://host/@scope/name"),
            ("GET /v1?key=abc: 401", "GET /v1?[redacted] 401"),
            ("https://host#access=x", "https://host#[redacted]"),
            (
                "LLMMalformedConversationHistoryError: no",
                "LLMMalformedConversationHistoryError: no",
            ),
            (&format!("key {key}."), "key [redacted]."),
            ("two\r\n\tlines \u{1b}[31mred", "two lines [31mred"),
        ] {
            assert_eq!(redactor.redact(text), expected);
        }
        let twice = "https://user:pass@host/a?token=x";
        let once = redactor.redact(twice);
        assert_eq!(redactor.redact(&once), once);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("ééé", 3), "ééé");
        assert_eq!(cut("é éé", 2), "é…");
    }
}
