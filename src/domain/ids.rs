//! Identifiers of videos and git objects. Values are created by parsing, so every value is valid.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// The ids of a video and its lesson, as in the name of a pushed file.
///
/// Only the canonical lower-case form of both UUIDs is accepted, so each key has exactly one file name per
/// kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VideoKey {
    /// `lessons.id`.
    pub lesson_id: Uuid,
    /// `lesson_assets.id`.
    pub video_id: Uuid,
}

/// The kind of one of the two files of a video.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// `.mp4`
    Video,
    /// `.json`
    Metadata,
}

/// The reason why a file is ignored, shown in GitHub's *Recent deliveries*.
pub const NOT_A_VIDEO_NAME: &str = "not <lesson_id>_<video_id>.mp4 or .json";

impl VideoKey {
    /// Parses `<lesson_id>_<video_id>` with two canonical lower-case UUIDs.
    pub fn parse_stem(stem: &str) -> Option<Self> {
        let (lesson, video) = stem.split_once('_')?;
        Some(Self {
            lesson_id: canonical_uuid(lesson)?,
            video_id: canonical_uuid(video)?,
        })
    }

    /// Parses a file name: the stem and a lower-case extension.
    pub fn parse_file_name(name: &str) -> Option<(Self, FileKind)> {
        let (stem, kind) = match name.strip_suffix(".mp4") {
            Some(stem) => (stem, FileKind::Video),
            None => (name.strip_suffix(".json")?, FileKind::Metadata),
        };
        Some((Self::parse_stem(stem)?, kind))
    }

    /// The name of the video's file of this kind, without the folder.
    pub fn file_name(&self, kind: FileKind) -> String {
        match kind {
            FileKind::Video => format!("{self}.mp4"),
            FileKind::Metadata => format!("{self}.json"),
        }
    }
}

impl fmt::Display for VideoKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.lesson_id, self.video_id)
    }
}

/// Parses a UUID in canonical form: 36 characters, lower case, with hyphens.
pub fn canonical_uuid(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok()?;
    let mut buffer = [0u8; uuid::fmt::Hyphenated::LENGTH];
    (id.hyphenated().encode_lower(&mut buffer) == text).then_some(id)
}

/// The id of a git object: the SHA-1 of its type, length and content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GitSha([u8; 20]);

impl GitSha {
    /// Creates an id from the 20 raw bytes of the hash.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The first seven digits, the usual abbreviation in git and GitHub.
    pub fn short(&self) -> String {
        hex::encode(self.0)[..7].to_owned()
    }

    /// Whether all digits are zero, which means "no commit" in a push payload.
    /// Source: GitHub's webhook documentation of `push` (`before`, `after`).
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 20]
    }
}

impl FromStr for GitSha {
    type Err = NotAGitSha;

    fn from_str(text: &str) -> Result<Self, NotAGitSha> {
        let mut bytes = [0; 20];
        let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if lower => Ok(Self(bytes)),
            _ => Err(NotAGitSha),
        }
    }
}

/// The text is not 40 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a Git object ID (40 lowercase hexadecimal digits)")]
pub struct NotAGitSha;

impl fmt::Display for GitSha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for GitSha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> serde::Deserialize<'de> for GitSha {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for GitSha {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The longest names of owners and repositories that GitHub allows, in bytes.
const OWNER_BYTES_MAX: usize = 39;
const REPOSITORY_BYTES_MAX: usize = 100;

/// `owner/name`. GitHub compares both without regard to case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoName {
    /// A user or an organisation.
    pub owner: String,
    /// The repository, without `.git`.
    pub name: String,
}

impl FromStr for RepoName {
    type Err = NotARepoName;

    fn from_str(text: &str) -> Result<Self, NotARepoName> {
        // Owners on GitHub Enterprise Server may contain `_`.
        let is_allowed = |b: u8, extra: &[u8]| b.is_ascii_alphanumeric() || extra.contains(&b);
        let (owner, name) = text.split_once('/').ok_or(NotARepoName)?;
        let is_owner = (1..=OWNER_BYTES_MAX).contains(&owner.len())
            && owner.starts_with(|c: char| c.is_ascii_alphanumeric())
            && owner.bytes().all(|b| is_allowed(b, b"-_"));
        let is_name = (1..=REPOSITORY_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|b| is_allowed(b, b"-_."))
            && ![".", ".."].contains(&name)
            && !name.ends_with(".git");
        if !(is_owner && is_name) {
            return Err(NotARepoName);
        }
        Ok(Self {
            owner: owner.to_owned(),
            name: name.to_owned(),
        })
    }
}

/// The text is not a repository's full name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be in the form `owner/name`, not a URL, and must not end in `.git`")]
pub struct NotARepoName;

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LESSON: &str = "34b9a0c7-62d7-4002-a642-00488b2c7f7c";
    const VIDEO: &str = "0beee2d2-ace7-4ccf-81a7-41a6c43c1a75";

    #[test]
    fn a_file_name_is_two_canonical_ids_and_an_extension() {
        let name = format!("{LESSON}_{VIDEO}.mp4");
        let (key, kind) = VideoKey::parse_file_name(&name).unwrap();
        assert_eq!(kind, FileKind::Video);
        assert_eq!(key.file_name(kind), name);
    }

    #[test]
    fn other_file_names_are_rejected() {
        for name in [
            String::new(),
            "notes.json".into(),
            format!("{LESSON}_{VIDEO}"),
            format!("{LESSON}_{VIDEO}.MP4"),
            format!("{LESSON}_{VIDEO}.mp4.json"),
            format!("{}_{VIDEO}.mp4", LESSON.to_uppercase()),
            format!("{{{LESSON}}}_{VIDEO}.mp4"),
            format!("{}_{VIDEO}.mp4", LESSON.replace('-', "")),
            format!("{LESSON}-{VIDEO}.mp4"),
            format!("{LESSON}_{VIDEO}_{VIDEO}.mp4"),
            format!("../{LESSON}_{VIDEO}.mp4"),
            "x".repeat(10_000),
        ] {
            assert_eq!(VideoKey::parse_file_name(&name), None, "{name}");
        }
    }

    #[test]
    fn a_git_sha_is_forty_lower_case_digits() {
        let text = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
        assert_eq!(text.parse::<GitSha>().unwrap().to_string(), text);
        assert!("0".repeat(40).parse::<GitSha>().unwrap().is_zero());
        for bad in [&text[1..], &text.to_uppercase(), "", "main"] {
            assert!(bad.parse::<GitSha>().is_err(), "{bad}");
        }
    }
}
