//! Where the videos' bytes are kept: a folder, or Supabase Storage.
//!
//! Both promise the same: an object is never seen half written, the old version stays readable
//! until the new one is complete, and an object that `put` reported is there after a crash.

mod folder;
mod supabase;

use std::fmt;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use uuid::Uuid;

use crate::domain::failure::{Code, Failure};
use crate::domain::ids::{GitSha, VideoKey, canonical_uuid};

pub use folder::FolderStore;
pub use supabase::{SupabaseStore, Timeouts};

/// The one media type of what is stored. Supabase compares it byte for byte with the bucket's list.
pub const VIDEO_MIME: &str = "video/mp4";

/// The longest name a Supabase bucket can have, in bytes.
const BUCKET_NAME_MAX: usize = 100;

/// An object's bytes, in order.
pub type BodyStream = BoxStream<'static, io::Result<Bytes>>;

/// Where a video's object is: the only place that spells a storage path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectPath {
    bucket: String,
    user_id: Uuid,
    key: VideoKey,
}

impl ObjectPath {
    /// The place of a video; the ids are the row's.
    ///
    /// # Errors
    /// [`Code::BucketMissing`] if no bucket can have that name (the row's `storage_bucket` is free text).
    pub fn new(bucket: &str, user_id: Uuid, key: VideoKey) -> Result<Self, Failure> {
        if !is_bucket_name(bucket) {
            return Err(Failure::new(
                Code::BucketMissing,
                "The row's storage_bucket is not a possible bucket name; correct it in lesson_assets.",
            ));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            user_id,
            key,
        })
    }

    /// Reads what a row's `storage_bucket` and `storage_path` say; `None` if it is not a path of ours.
    pub fn from_stored(bucket: &str, path: &str) -> Option<Self> {
        let (user, rest) = path.split_once('/')?;
        let (lesson, file) = rest.split_once('/')?;
        let key = VideoKey {
            lesson_id: canonical_uuid(lesson)?,
            video_id: canonical_uuid(file.strip_suffix(".mp4")?)?,
        };
        Self::new(bucket, canonical_uuid(user)?, key).ok()
    }

    /// The bucket's name.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The path inside the bucket, as `lesson_assets.storage_path` holds it.
    pub fn path(&self) -> String {
        self.segments().join("/")
    }

    fn segments(&self) -> [String; 3] {
        [
            self.user_id.to_string(),
            self.key.lesson_id.to_string(),
            format!("{}.mp4", self.key.video_id),
        ]
    }
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.bucket, self.path())
    }
}

/// Supabase's own rule for bucket names, less those that begin with a dot: a name that passes is
/// also one safe path component (no separator, no `..`, none of our hidden files).
fn is_bucket_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_!-.*'() &$@=;:+,?".contains(&b);
    (1..=BUCKET_NAME_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('.')
        && name.trim() == name
}

/// What the bytes must hash to; kept beside the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// The git blob's name.
    pub blob_sha: GitSha,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// What the store says about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// In bytes.
    pub size: u64,
    /// Of its bytes, lower-case hex; `None` if another program stored it without saying so.
    pub sha256: Option<String>,
}

/// What a bucket lets in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketLimits {
    /// The largest object in bytes; `None` = no limit of the bucket's own.
    pub max_bytes: Option<u64>,
    /// Whether [`VIDEO_MIME`] is among the allowed types.
    pub mp4_allowed: bool,
    /// Whether anybody may read its objects.
    pub public: bool,
}

/// How a stored video can be played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Playable {
    /// A URL that works without credentials for [`SIGNED_URL_SECONDS`].
    Url(String),
    /// A file of this machine.
    File(PathBuf),
}

/// How long a signed URL plays, in seconds.
pub const SIGNED_URL_SECONDS: u32 = 3600;

/// One of the two stores.
#[derive(Clone, Debug)]
pub enum Store {
    /// A folder on this machine.
    Folder(FolderStore),
    /// A project's Supabase Storage.
    Supabase(SupabaseStore),
}

impl Store {
    /// What is stored under that path; `None` = no such object.
    pub async fn info(&self, path: &ObjectPath) -> Result<Option<ObjectInfo>, Failure> {
        match self {
            Self::Folder(store) => store.info(path).await,
            Self::Supabase(store) => store.info(path).await,
        }
    }

    /// Stores the bytes under that path in place of what is there.
    ///
    /// `body` yields exactly `size` bytes. `Ok` means that the store took the object; ask [`Store::info`]
    /// before you rely on it. After an error the old one is there, or the new one, never a mixture.
    pub async fn put(
        &self,
        path: &ObjectPath,
        size: u64,
        digests: &Digests,
        body: BodyStream,
    ) -> Result<(), Failure> {
        if size == 0 {
            // Supabase would take it, and the badge would turn green over nothing.
            return Err(Failure::new(
                Code::NotAnMp4,
                "The video is empty; render and push it again.",
            ));
        }
        match self {
            Self::Folder(store) => store.put(path, size, body).await,
            Self::Supabase(store) => store.put(path, size, digests, body).await,
        }
    }

    /// Removes the object; that there is none is fine.
    pub async fn delete(&self, path: &ObjectPath) -> Result<(), Failure> {
        match self {
            Self::Folder(store) => store.delete(path).await,
            Self::Supabase(store) => store.delete(path).await,
        }
    }

    /// What the bucket lets in. A folder lets in everything, into every bucket.
    pub async fn limits(&self, bucket: &str) -> Result<BucketLimits, Failure> {
        match self {
            Self::Folder(_) => Ok(BucketLimits {
                max_bytes: None,
                mp4_allowed: true,
                public: false,
            }),
            Self::Supabase(store) => store.limits(bucket).await,
        }
    }

    /// The origin of the URLs in [`Playable::Url`]; `None` = there are none.
    pub fn playable_origin(&self) -> Option<String> {
        match self {
            Self::Folder(_) => None,
            Self::Supabase(store) => Some(store.origin()),
        }
    }

    /// How to play the object; `None` = no such object.
    pub async fn playable(&self, path: &ObjectPath) -> Result<Option<Playable>, Failure> {
        match self {
            Self::Folder(store) => Ok(store.file(path).await?.map(Playable::File)),
            Self::Supabase(store) => Ok(store.sign(path).await?.map(Playable::Url)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "11111111-1111-4111-8111-111111111111/34b9a0c7-62d7-4002-a642-00488b2c7f7c/0beee2d2-ace7-4ccf-81a7-41a6c43c1a75.mp4";

    #[test]
    fn a_stored_path_reads_back_as_it_was_written() {
        for bucket in ["lesson-assets", "lesson_assets", "Lesson assets (old)"] {
            let path = ObjectPath::from_stored(bucket, PATH).unwrap();
            assert_eq!((path.bucket(), path.path().as_str()), (bucket, PATH));
        }
    }

    #[test]
    fn nothing_else_is_a_path() {
        for path in [
            "",
            "a/b/c.mp4",
            &PATH[1..],
            &PATH.to_uppercase(),
            &format!("/{PATH}"),
            &format!("{PATH}/"),
            &PATH.replace('/', "//"),
            &PATH.replace(".mp4", ".MP4"),
            &PATH.replace("34b9a0c7", "../a0c7"),
        ] {
            assert_eq!(ObjectPath::from_stored("b", path), None, "{path}");
        }
        for bucket in [
            "",
            ".",
            "..",
            ".tmp-x",
            "a/b",
            "../b",
            " a",
            "a\0",
            "ä",
            &"x".repeat(101),
        ] {
            assert_eq!(ObjectPath::from_stored(bucket, PATH), None, "{bucket}");
        }
    }
}
