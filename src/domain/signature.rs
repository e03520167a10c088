//! Webhook signatures: HMAC-SHA256 of the raw request body.
//!
//! Source: GitHub's documentation, "Validating webhook deliveries".

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

/// The prefix of the digits in `X-Hub-Signature-256`.
const SCHEME: &str = "sha256=";

/// Verifies a body that arrives in chunks against all configured secrets.
pub struct Verifier {
    macs: Vec<Hmac<Sha256>>,
}

impl Verifier {
    /// Creates a verifier for an empty body. During a rotation there are several secrets.
    pub fn new(secrets: &[SecretString]) -> Self {
        Self {
            macs: secrets.iter().map(keyed).collect(),
        }
    }

    /// Adds the next chunk of the raw body.
    pub fn update(&mut self, chunk: &[u8]) {
        for mac in &mut self.macs {
            mac.update(chunk);
        }
    }

    /// Whether `header` (`X-Hub-Signature-256`) is a valid signature of the body with one of the secrets.
    ///
    /// All secrets are compared, each in constant time, so that the duration reveals neither the number
    /// of correct digits nor which secret matches.
    pub fn verify(self, header: Option<&str>) -> bool {
        let Some(claimed) = header.and_then(digest_of) else {
            return false;
        };
        let matches = self.macs.into_iter().fold(Choice::from(0), |matches, mac| {
            matches | mac.finalize().into_bytes().as_slice().ct_eq(&claimed)
        });
        matches.into()
    }
}

/// Verifies a complete body, see [`Verifier`].
pub fn verify(secrets: &[SecretString], header: Option<&str>, body: &[u8]) -> bool {
    let mut verifier = Verifier::new(secrets);
    verifier.update(body);
    verifier.verify(header)
}

/// The value of `X-Hub-Signature-256` that GitHub sends with `body`.
pub fn sign(secret: &SecretString, body: &[u8]) -> String {
    let mac = keyed(secret).chain_update(body);
    format!("{SCHEME}{}", hex::encode(mac.finalize().into_bytes()))
}

/// The response to a `ping` with the random number `nonce`, which only a server with the secret can compute.
pub fn proof(secret: &SecretString, nonce: &str) -> String {
    let mac = keyed(secret).chain_update("video-ingest pong ");
    hex::encode(mac.chain_update(nonce).finalize().into_bytes())
}

/// Whether a text can be the `nonce` of a [`proof`]: 32 hexadecimal digits. A longer text could be that of
/// something else to sign.
pub fn is_nonce(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Compares two secrets in constant time.
///
/// Both are hashed first. A direct comparison would reveal whether the lengths are equal.
pub fn same_secret(a: &[u8], b: &[u8]) -> bool {
    Sha256::digest(a)
        .as_slice()
        .ct_eq(Sha256::digest(b).as_slice())
        .into()
}

fn keyed(secret: &SecretString) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret.expose_secret().as_bytes())
        .expect("HMAC accepts keys of any length")
}

/// The 32 bytes after `sha256=`. Upper-case digits, which GitHub never sends, are rejected.
fn digest_of(header: &str) -> Option<[u8; 32]> {
    let digits = header.strip_prefix(SCHEME)?;
    if digits.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let mut digest = [0; 32];
    hex::decode_to_slice(digits, &mut digest).ok()?;
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = b"Hello, World!";
    /// GitHub's documented test vector.
    const SIGNATURE: &str =
        "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";

    fn secret(text: &str) -> SecretString {
        SecretString::from(text)
    }

    fn documented() -> Vec<SecretString> {
        vec![secret("It's a Secret to Everybody")]
    }

    #[test]
    fn the_documented_vectors_verify() {
        assert!(verify(&documented(), Some(SIGNATURE), BODY));
        assert_eq!(sign(&documented()[0], BODY), SIGNATURE);

        let form = "sha256=30f622d549ca623f1c553f7e395a80c9487b43b9feaf9af4a1811381ddf5a94d";
        let body = b"payload=%7B%22yo%22%3Atrue%7D";
        assert!(verify(&[secret("0123456789abcdef")], Some(form), body));
    }

    #[test]
    fn chunks_and_rotation_make_no_difference() {
        let old_and_new = [
            secret("something else entirely"),
            documented().remove(0),
            secret("x"),
        ];
        for chunk in 1..=BODY.len() {
            let mut verifier = Verifier::new(&old_and_new);
            BODY.chunks(chunk).for_each(|piece| verifier.update(piece));
            assert!(verifier.verify(Some(SIGNATURE)));
        }
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        for bit in 0..BODY.len() * 8 {
            let mut body = BODY.to_vec();
            body[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(&documented(), Some(SIGNATURE), &body), "bit {bit}");
        }
        for bit in 0..SIGNATURE.len() * 8 {
            let mut header = SIGNATURE.as_bytes().to_vec();
            header[bit / 8] ^= 1 << (bit % 8);
            if let Ok(header) = str::from_utf8(&header) {
                assert!(!verify(&documented(), Some(header), BODY), "bit {bit}");
            }
        }
    }

    #[test]
    fn other_forms_are_rejected() {
        let digits = SIGNATURE.strip_prefix(SCHEME).unwrap();
        for header in [
            None,
            Some(""),
            Some(SCHEME),
            Some(digits),
            Some(&SIGNATURE[..SIGNATURE.len() - 2]),
            Some(&*format!("{SIGNATURE}00")),
            Some(&*format!("{SIGNATURE} ")),
            Some(&*format!("{SCHEME}{}", digits.to_uppercase())),
            Some(&*format!("sha1={digits}")),
        ] {
            assert!(!verify(&documented(), header, BODY), "{header:?}");
        }
        assert!(!verify(&[], Some(SIGNATURE), BODY), "no secrets");
    }

    #[test]
    fn a_proof_depends_on_secret_and_nonce_and_is_no_signature() {
        let [a, b] = [
            "0123456789abcdef0123456789abcdef",
            "0123456789abcdef0123456789abcdee",
        ];
        let other = secret("something else entirely");
        // As `printf 'video-ingest pong …' | openssl dgst -sha256 -hmac "$SECRET"` prints it.
        let expected = "09f79a2b1c23d010bf5c53bcd56cbfdc4f3d01a35ce29c5cfc801a37adee45fd";
        assert_eq!(proof(&documented()[0], a), expected);
        assert_ne!(proof(&documented()[0], a), proof(&documented()[0], b));
        assert_ne!(proof(&documented()[0], a), proof(&other, a));
        assert!(is_nonce(a));
        for text in ["", &a[1..], &a.replace('0', "g"), &format!("{a}0")] {
            assert!(!is_nonce(text), "{text}");
        }
    }

    #[test]
    fn secrets_compare_by_content() {
        assert!(same_secret(b"a token", b"a token"));
        assert!(!same_secret(b"a token", b"a tokem"));
        assert!(!same_secret(b"a token", b"a token "));
    }
}
