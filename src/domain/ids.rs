//! The names things go by. Each type can only be made by parsing, so a value that exists is valid.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A video and the lesson it belongs to: what the name of a pushed file says.
///
/// Both ids are canonical lower-case UUIDs, so a key spells exactly one file name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VideoKey {
    /// `lessons.id`.
    pub lesson_id: Uuid,
    /// `lesson_assets.id`.
    pub video_id: Uuid,
}

/// Which of a video's two files a name belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// `.mp4`
    Video,
    /// `.json`
    Metadata,
}

/// Why a file name names no video; worded for GitHub's *Recent deliveries*.
pub const NOT_A_VIDEO_NAME: &str = "not <lesson_id>_<video_id>.mp4 or .json";

impl VideoKey {
    /// Reads `<lesson_id>_<video_id>` with two canonical lower-case UUIDs; nothing else.
    pub fn parse_stem(stem: &str) -> Option<Self> {
        let (lesson, video) = stem.split_once('_')?;
        Some(Self {
            lesson_id: canonical_uuid(lesson)?,
            video_id: canonical_uuid(video)?,
        })
    }

    /// Reads a file name: the stem and one of the two extensions, lower case.
    pub fn parse_file_name(name: &str) -> Option<(Self, FileKind)> {
        let (stem, kind) = match name.strip_suffix(".mp4") {
            Some(stem) => (stem, FileKind::Video),
            None => (name.strip_suffix(".json")?, FileKind::Metadata),
        };
        Some((Self::parse_stem(stem)?, kind))
    }

    /// The file name of one of the video's two files, without its folder.
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

/// A UUID in the one spelling that the app's tables print: 36 characters, lower case, hyphens.
pub fn canonical_uuid(text: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(text).ok()?;
    let mut buffer = [0u8; uuid::fmt::Hyphenated::LENGTH];
    (id.hyphenated().encode_lower(&mut buffer) == text).then_some(id)
}

/// The name of a git object: a SHA-1 over its type, length and content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GitSha([u8; 20]);

impl GitSha {
    /// From the 20 raw bytes of a finished hash.
    pub const fn from_bytes(bytes: [u8; 20]) -> Self {
        Self(bytes)
    }

    /// The first seven digits, as git and GitHub abbreviate it.
    pub fn short(&self) -> String {
        hex::encode(self.0)[..7].to_owned()
    }

    /// Forty zeros: how a push payload says "there is no such commit".
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

/// The text was not forty lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a git object name (forty lower-case hexadecimal digits)")]
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
#[error("must be `owner/name`, not a URL and without `.git`")]
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
    fn every_other_spelling_is_refused() {
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
