//! The file lists of a push. They are read as a stream into sets of limited size, because anyone who can
//! push can have GitHub sign lists of 25 MB.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};
use serde::{Deserialize, Serialize};

use super::ids::{FileKind, GitSha, NOT_A_VIDEO_NAME, VideoKey};

/// The maximum number of commits that GitHub lists in a push. With this many, some may be missing.
/// Source: GitHub's webhook documentation of `push` (`commits`).
pub(super) const COMMITS_MAX: usize = 2048;

/// The maximum number of changed files that GitHub lists per commit. Source: as above.
pub(super) const COMMIT_FILES_MAX: usize = 3000;

/// The maximum number of videos that are requested one by one. If a push names more, a scan is requested
/// instead.
pub const VIDEOS_MAX: usize = 2000;

/// The maximum number of ignored paths in a response, without the final entry for the rest.
pub const IGNORED_MAX: usize = 100;

/// The longest text of a payload that is repeated in a response or stored, in characters.
pub const ECHO_CHARS_MAX: usize = 200;

/// A file of the videos folder that is ignored.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct IgnoredPath {
    /// The path, limited to [`ECHO_CHARS_MAX`] characters.
    pub path: String,
    /// The reason, for people.
    pub reason: String,
}

/// Sanitizes a text of the payload: at most [`ECHO_CHARS_MAX`] characters, and no NUL, which Postgres
/// rejects.
pub(super) fn echo(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c == '\0' { '\u{fffd}' } else { c });
    let mut short: String = chars.by_ref().take(ECHO_CHARS_MAX).collect();
    if chars.next().is_some() {
        short.pop();
        short.push('…');
    }
    short
}

/// The changes that the commits of a push made in the videos folder.
#[derive(Debug, Default)]
pub(super) struct FileLists {
    commits: usize,
    /// The id of the last listed commit.
    last: Option<GitSha>,
    /// Whether changed files may be missing from the lists.
    incomplete: bool,
    /// The named videos, each with its MP4 and its JSON: at most [`VIDEOS_MAX`], and none if there were more.
    videos: BTreeMap<VideoKey, [Changes; 2]>,
    too_many_videos: bool,
    /// The first other paths of the folder, in their order, and whether each is in a subfolder: at most
    /// [`IGNORED_MAX`].
    others: BTreeMap<String, (bool, Changes)>,
    too_many_others: bool,
}

/// The numbers of the last commits that changed a file.
#[derive(Clone, Copy, Debug, Default)]
struct Changes {
    written: Option<usize>,
    removed: Option<usize>,
}

/// What a list says about its files.
#[derive(Clone, Copy)]
enum Change {
    /// `added` or `modified`.
    Written,
    /// `removed`
    Removed,
}

impl Changes {
    fn note(&mut self, change: Change, commit: usize) {
        match change {
            Change::Written => self.written = Some(commit),
            Change::Removed => self.removed = Some(commit),
        }
    }

    /// Whether a removal is the last listed change.
    fn is_removed(self) -> bool {
        self.removed > self.written
    }
}

impl FileLists {
    /// Reads the member `commits` of a payload. `prefix`: the common prefix of the folder's paths.
    pub(super) fn read(commits: &str, prefix: &str) -> Result<Self, serde_json::Error> {
        let mut lists = Self::default();
        let reader = Reader {
            lists: &mut lists,
            prefix,
        };
        serde_json::Deserializer::from_str(commits).deserialize_seq(Commits(reader))?;
        Ok(lists)
    }

    /// Whether the lists name no file of the folder.
    pub(super) fn is_empty(&self) -> bool {
        self.videos.is_empty() && self.others.is_empty() && !self.too_many_videos
    }

    /// The first path whose name is that of a video's file, if the lists were read with an empty prefix.
    pub(super) fn first_video_path(&self) -> Option<String> {
        let is_video = |path: &&String| {
            let name = path.rsplit('/').next().unwrap_or_default();
            VideoKey::parse_file_name(name).is_some()
        };
        let root = || Some(self.videos.keys().next()?.file_name(FileKind::Video));
        let path = self.others.keys().find(is_video);
        path.map(|path| echo(path)).or_else(root)
    }

    /// Splits the changes into the videos to request, sorted, the other files, sorted, and whether a scan is
    /// required because the lists do not tell what the branch contains. `after`: the head after the push.
    ///
    /// Only a removal by the head itself is certain. The commits of a push can come from several branches,
    /// and the payload does not contain their parents: a merge may have kept what one side removed.
    pub(super) fn settle(
        self,
        prefix: &str,
        after: GitSha,
    ) -> (Vec<VideoKey>, Vec<IgnoredPath>, bool) {
        let head = (self.last == Some(after)).then(|| self.commits - 1);
        let mut scan = self.incomplete
            || self.too_many_videos
            || self.commits == 0
            || self.commits >= COMMITS_MAX;
        let mut videos = Vec::new();
        let mut ignored = Vec::new();
        for (path, (in_subfolder, changes)) in self.others {
            let reason = if changes.is_removed() {
                "removed".to_owned()
            } else if in_subfolder {
                format!("in a subfolder of {prefix}")
            } else {
                NOT_A_VIDEO_NAME.to_owned()
            };
            ignored.push(IgnoredPath { path, reason });
        }
        for (key, files) in self.videos {
            let is_certain = |file: &Changes| file.is_removed() && file.removed == head;
            scan |= files.iter().any(|f| f.is_removed() && !is_certain(f));
            if files.iter().any(|f| f.written.is_some() && !is_certain(f)) {
                videos.push(key);
            }
            for (file, kind) in files.iter().zip([FileKind::Video, FileKind::Metadata]) {
                if is_certain(file) || file.removed.is_some() && file.written.is_none() {
                    let path = format!("{prefix}{}", key.file_name(kind));
                    let reason = "removed".to_owned();
                    ignored.push(IgnoredPath { path, reason });
                }
            }
        }
        ignored.sort_by(|a, b| a.path.cmp(&b.path));
        if self.too_many_others || ignored.len() > IGNORED_MAX {
            ignored.truncate(IGNORED_MAX);
            ignored.push(IgnoredPath {
                path: format!("{prefix}…"),
                reason: "and more".to_owned(),
            });
        }
        (videos, ignored, scan)
    }

    fn note(&mut self, path: &str, prefix: &str, change: Change) {
        let Some(name) = path.strip_prefix(prefix) else {
            return;
        };
        let commit = self.commits;
        match VideoKey::parse_file_name(name) {
            Some(_) if self.too_many_videos => {}
            Some((key, kind)) => {
                let files = self.videos.entry(key).or_default();
                files[usize::from(kind == FileKind::Metadata)].note(change, commit);
                if self.videos.len() > VIDEOS_MAX {
                    self.videos.clear();
                    self.too_many_videos = true;
                }
            }
            None => {
                let other = self.others.entry(echo(path)).or_default();
                other.0 |= name.contains('/');
                other.1.note(change, commit);
                // A path that is dropped here cannot be among the first ones later.
                if self.others.len() > IGNORED_MAX {
                    self.others.pop_last();
                    self.too_many_others = true;
                }
            }
        }
    }
}

/// Where the parsed parts of a payload go.
struct Reader<'a> {
    lists: &'a mut FileLists,
    prefix: &'a str,
}

impl Reader<'_> {
    fn reborrow(&mut self) -> Reader<'_> {
        Reader {
            lists: self.lists,
            prefix: self.prefix,
        }
    }
}

/// Reads `commits`.
struct Commits<'a>(Reader<'a>);

/// Reads a commit.
struct Commit<'a>(Reader<'a>);

/// Reads a list of paths, or null. Returns the number of paths.
struct Paths<'a>(Reader<'a>, Change);

/// Reads a path.
struct Path<'a>(Reader<'a>, Change);

/// The members of a commit.
#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Member {
    Id,
    Added,
    Modified,
    Removed,
    #[serde(other)]
    Other,
}

/// Rejects a string without quoting it, because it may be as long as the body.
macro_rules! no_string {
    () => {
        fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::invalid_type(Unexpected::Other("string"), &self))
        }
    };
}

impl<'de> Visitor<'de> for Commits<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of commits")
    }

    no_string!();

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut commits: A) -> Result<(), A::Error> {
        // GitHub does not send more.
        while self.0.lists.commits < COMMITS_MAX
            && let Some(id) = commits.next_element_seed(Commit(self.0.reborrow()))?
        {
            self.0.lists.last = id;
            self.0.lists.commits += 1;
        }
        while commits.next_element::<IgnoredAny>()?.is_some() {
            self.0.lists.last = None;
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Commit<'_> {
    type Value = Option<GitSha>;

    fn deserialize<D: Deserializer<'de>>(self, commit: D) -> Result<Self::Value, D::Error> {
        commit.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Commit<'_> {
    type Value = Option<GitSha>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a commit")
    }

    no_string!();

    fn visit_map<A: MapAccess<'de>>(mut self, mut commit: A) -> Result<Self::Value, A::Error> {
        let mut id = None;
        let mut files = [None; 3];
        while let Some(member) = commit.next_key()? {
            let (list, change) = match member {
                Member::Id => {
                    id = commit.next_value()?;
                    continue;
                }
                Member::Other => {
                    commit.next_value::<IgnoredAny>()?;
                    continue;
                }
                Member::Added => (0, Change::Written),
                Member::Modified => (1, Change::Written),
                Member::Removed => (2, Change::Removed),
            };
            files[list] = commit.next_value_seed(Paths(self.0.reborrow(), change))?;
        }
        // A missing list is incomplete, too.
        let files: Option<usize> = files.into_iter().sum();
        self.0.lists.incomplete |= files.is_none_or(|files| files >= COMMIT_FILES_MAX);
        Ok(id)
    }
}

impl<'de> DeserializeSeed<'de> for Paths<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, paths: D) -> Result<Self::Value, D::Error> {
        paths.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Paths<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of paths")
    }

    no_string!();

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut paths: A) -> Result<Self::Value, A::Error> {
        let mut count = 0;
        while let Some(()) = paths.next_element_seed(Path(self.0.reborrow(), self.1))? {
            count += 1;
        }
        Ok(Some(count))
    }
}

impl<'de> DeserializeSeed<'de> for Path<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, path: D) -> Result<(), D::Error> {
        path.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Path<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path")
    }

    fn visit_str<E: Error>(self, path: &str) -> Result<(), E> {
        self.0.lists.note(path, self.0.prefix, self.1);
        Ok(())
    }
}
