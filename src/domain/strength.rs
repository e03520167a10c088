//! Estimates how hard a secret is to guess. The estimate detects weak secrets; it cannot prove that a secret
//! is random.

use std::collections::BTreeSet;

/// Bits of a secret that nobody can guess.
const STRONG_BITS: u32 = 128;

/// Different characters of a secret that looks random: 32 random hexadecimal digits have fewer than 8 with a
/// probability below 1 in a million.
const VARIETY_MIN: usize = 8;

/// Different characters below which a secret is trivial.
const TRIVIAL_VARIETY_MIN: usize = 4;

/// Characters outside of [`WORDS`] below which a secret is trivial.
const TRIVIAL_REST_MIN: usize = 4;

/// What a word adds to a secret, in bits: it is one of a few hundred.
const WORD_BITS: f64 = 8.0;

/// Placeholders, words of secrets in documentation, and rows of the keyboard. No word is shorter than four
/// characters, because random secrets contain short ones. A word precedes its own parts.
const WORDS: [&str; 28] = [
    "placeholder",
    "password",
    "supabase",
    "example",
    "webhook",
    "default",
    "replace",
    "changeme",
    "letmein",
    "secret",
    "github",
    "change",
    "insert",
    "qwerty",
    "sample",
    "ingest",
    "passwd",
    "admin",
    "token",
    "video",
    "dummy",
    "ghjkl",
    "zxcvb",
    "your",
    "here",
    "test",
    "asdf",
    "uiop",
];

/// How hard a secret is to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strength {
    /// It is among the first that are tried: a repetition, a sequence, or words of documentation.
    Trivial,
    /// It has little variety, or fewer than 128 bits.
    Weak,
    /// No weakness was found.
    Strong,
}

impl Strength {
    /// The strength of a secret.
    pub fn of(secret: &str) -> Self {
        let is_separator = |c: &char| c.is_whitespace() || "-_.:,/".contains(*c);
        let text: Vec<char> = secret.chars().filter(|c| !is_separator(c)).collect();
        let lower: Vec<char> = text.iter().map(char::to_ascii_lowercase).collect();
        let variety = lower.iter().collect::<BTreeSet<_>>().len();
        let (rest, words) = without_words(lower.iter().collect());
        let is_trivial = variety < TRIVIAL_VARIETY_MIN
            || rest < TRIVIAL_REST_MIN
            || is_repetition(&lower)
            || is_sequence(&lower, 1)
            || is_sequence(&lower, 2);
        if is_trivial {
            Self::Trivial
        } else if variety < VARIETY_MIN || bits(&text, rest, words) < f64::from(STRONG_BITS) {
            Self::Weak
        } else {
            Self::Strong
        }
    }
}

/// The number of characters outside of [`WORDS`], and of words.
fn without_words(mut text: String) -> (usize, usize) {
    let mut words = 0;
    for word in WORDS {
        words += text.matches(word).count();
        text = text.replace(word, "");
    }
    (text.chars().count(), words)
}

/// Whether the text repeats its beginning, at least twice.
fn is_repetition(text: &[char]) -> bool {
    (1..=text.len() / 2).any(|period| text.iter().zip(&text[period..]).all(|(a, b)| a == b))
}

/// Whether at least three quarters of the characters are equal or next to the one `step` before:
/// `0123456789abcdef`, `aabbccdd…`, `a1b2c3d4…`.
fn is_sequence(text: &[char], step: usize) -> bool {
    let pairs = text.iter().zip(text.iter().skip(step));
    let near = pairs.filter(|(a, b)| u32::from(**a).abs_diff(u32::from(**b)) <= 1);
    near.count() * 4 >= text.len().saturating_sub(step) * 3
}

/// The bits of `rest` random characters of the text's alphabet, and of the words.
fn bits(text: &[char], rest: usize, words: usize) -> f64 {
    let has = |class: fn(&char) -> bool| text.iter().any(class);
    let is_hex = text.iter().all(char::is_ascii_hexdigit)
        && !(has(char::is_ascii_lowercase) && has(char::is_ascii_uppercase));
    let classes = [
        (has(char::is_ascii_digit), 10_u32),
        (has(char::is_ascii_lowercase), 26),
        (has(char::is_ascii_uppercase), 26),
        (has(|c| !c.is_ascii_alphanumeric()), 32),
    ];
    let found = classes.iter().filter(|(is_used, _)| *is_used);
    let sum: u32 = found.map(|(_, size)| size).sum();
    let alphabet = if is_hex { sum.min(16) } else { sum };
    let count = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    count(rest) * f64::from(alphabet).log2() + count(words) * WORD_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn all(expected: Strength, secrets: &[&str]) {
        for secret in secrets {
            assert_eq!(Strength::of(secret), expected, "{secret}");
        }
    }

    #[test]
    fn repetitions_sequences_and_placeholders_are_trivial() {
        let trivial = [
            "",
            "----------------",
            "aaaaaaaaaaaaaaaa",
            "abababababababab",
            "aabbaaabbbaaabab",
            "1212121212121212",
            "changemechangeme",
            "change-me-change-me",
            "ChangeMeChangeMeCh",
            "correct-correct-correct",
            "0123456789abcdef",
            "0123456789ABCDEF",
            "0123456789abcdef0123456789abcdef",
            "fedcba9876543210",
            "1234567890123456",
            "abcdefghijklmnop",
            "aabbccddeeffgghh",
            "a1b2c3d4e5f6g7h8",
            "qwertyuiopasdfgh",
            "passwordpassword1",
            "your_webhook_secret_here",
            "my-webhook-secret",
            "admin-token-123-test",
            "github webhook secret",
        ];
        all(Strength::Trivial, &trivial);
    }

    #[test]
    fn short_secrets_and_phrases_are_weak() {
        let weak = [
            "tr0ub4dor-and-3x",
            "5f0c2a9e81b7d463",
            "8305926174402918",
            "webhook-secret-of-the-tests",
            "acme-production-webhook-secret",
            "a-token-for-trials",
            "Hj4kTq9ZpW2xVb7N",
            // Long, but with little variety.
            "abcabdabcacbdabcdbacabdbcabdcabcbdabdcabcdabcbacabdcabcabdbacbdc",
        ];
        all(Strength::Weak, &weak);
    }

    #[test]
    fn generated_secrets_are_strong() {
        let strong = [
            // openssl rand -hex 32, -hex 16, -base64 32, -base64 16
            "b7c1f4d2908e6a5533bf01c9d47e82aa6f19e0c3587d24b6915fa8037c6e2d41",
            "e83d0d0f1c5b4a7796a2b4c87e15fa36",
            "k3vXq8mPzR5tLwY2nB7cJd0fHgS4aUe6iOoTqWx9ZrE=",
            "Zk9rT2+pQm/xV7bLc4sWfA==",
            // uuidgen
            "0b6f2f0e-9c1d-4f8a-a7e4-53d8c2b91e67",
        ];
        all(Strength::Strong, &strong);
    }

    /// No secret of a generator is refused, and not one in a thousand is reported.
    #[test]
    fn random_secrets_are_not_reported() {
        // An xorshift generator, because the domain has no randomness.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut weak = 0;
        for _ in 0..20_000 {
            let secret = format!("{:016x}{:016x}", next(), next());
            match Strength::of(&secret) {
                Strength::Trivial => panic!("{secret}"),
                Strength::Weak => weak += 1,
                Strength::Strong => {}
            }
        }
        assert!(weak < 20, "{weak}");
    }
}
