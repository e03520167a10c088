//! Git LFS pointers: short text files that represent large files in a repository.
//!
//! Format: "The Pointer" in git-lfs's `docs/spec.md`.

use std::fmt;

/// Pointers are shorter than this, in bytes. git-lfs does not parse longer files as pointers.
pub const POINTER_BYTES_MAX: usize = 1024;

/// The first line of every pointer. The specification requires a plain string comparison.
const VERSION_LINE: &str = "version https://git-lfs.github.com/spec/v1";

/// The SHA-256 of a file's content, which identifies an LFS object and is stored with each video.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// Creates a hash from its raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Parses 64 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        (!text.bytes().any(|byte| byte.is_ascii_uppercase())).then_some(Self(bytes))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A pointer to an LFS object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointer {
    /// The object's id.
    pub oid: Sha256,
    /// The object's length in bytes.
    pub size: u64,
}

impl Pointer {
    /// Parses a whole file; `None` if it is not a pointer.
    ///
    /// Lines with other keys (extensions) are allowed after the first, as the specification requires.
    pub fn parse(file: &[u8]) -> Option<Self> {
        if file.len() >= POINTER_BYTES_MAX {
            return None;
        }
        let text = str::from_utf8(file).ok()?;
        // `lines()` would accept carriage returns.
        let mut lines = text.strip_suffix('\n').unwrap_or(text).split('\n');
        if lines.next() != Some(VERSION_LINE) {
            return None;
        }
        let (mut oid, mut size) = (None, None);
        for line in lines {
            match line.split_once(' ')? {
                ("oid", value) if oid.is_none() => {
                    oid = Some(Sha256::parse(value.strip_prefix("sha256:")?)?)
                }
                ("size", value) if size.is_none() => size = Some(parse_digits(value)?),
                ("oid" | "size", _) => return None,
                _ => {}
            }
        }
        Some(Self {
            oid: oid?,
            size: size?,
        })
    }
}

/// The canonical form that git-lfs writes, so that pointers to the same object are identical blobs.
impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { oid, size } = self;
        writeln!(f, "{VERSION_LINE}\noid sha256:{oid}\nsize {size}")
    }
}

/// Like `str::parse`, but rejects a sign.
fn parse_digits(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OID: &str = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";

    fn pointer() -> Pointer {
        Pointer {
            oid: Sha256::parse(OID).unwrap(),
            size: 12345,
        }
    }

    #[test]
    fn a_pointer_is_read_and_written_as_git_lfs_does() {
        let text =
            format!("version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 12345\n");
        assert_eq!(Pointer::parse(text.as_bytes()), Some(pointer()));
        assert_eq!(pointer().to_string(), text);
    }

    #[test]
    fn extensions_and_a_missing_last_newline_are_allowed() {
        let text =
            format!("{VERSION_LINE}\next-0-crypt sha256:{OID}\noid sha256:{OID}\nsize 12345");
        assert_eq!(Pointer::parse(text.as_bytes()), Some(pointer()));
    }

    #[test]
    fn other_files_are_not_pointers() {
        let good = pointer().to_string();
        let long = format!("{good}x-note {}\n", "a".repeat(POINTER_BYTES_MAX));
        for (why, text) in [
            ("empty", String::new()),
            ("carriage returns", good.replace('\n', "\r\n")),
            ("another version", good.replace("v1", "v2")),
            (
                "version not first",
                good.split_inclusive('\n').rev().collect(),
            ),
            ("upper case", good.replace(OID, &OID.to_uppercase())),
            ("short hash", good.replace(OID, &OID[2..])),
            ("another hash", good.replace("sha256", "sha512")),
            ("no oid", good.replace("oid", "id")),
            ("no size", good.replace("size", "length")),
            ("signed size", good.replace("12345", "+12345")),
            ("no size value", good.replace("12345", "")),
            (
                "size over 64 bits",
                good.replace("12345", "18446744073709551616"),
            ),
            ("two sizes", format!("{good}size 1\n")),
            ("a line without key", format!("{good}\n")),
            ("too long", long),
        ] {
            assert_eq!(Pointer::parse(text.as_bytes()), None, "{why}");
        }
        assert_eq!(
            Pointer::parse(include_bytes!("../../fixtures/videos/good.mp4")),
            None
        );
    }

    proptest! {
        #[test]
        fn every_pointer_survives_writing_and_reading(oid: [u8; 32], size: u64) {
            let pointer = Pointer { oid: Sha256::from_bytes(oid), size };
            prop_assert_eq!(Pointer::parse(pointer.to_string().as_bytes()), Some(pointer));
        }
    }
}
