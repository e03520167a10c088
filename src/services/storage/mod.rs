//! Object storage for videos: a folder, or Supabase Storage.
//!
//! Both give the same guarantees: no reader sees a partly written object, the old version stays
//! readable until the new one is complete, and an object survives a crash once `put` has returned.

mod folder;
mod supabase;

use std::fmt;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use sha1::Digest as _;
use uuid::Uuid;

use crate::domain::failure::{Code, Failure};
use crate::domain::ids::{GitSha, VideoKey, canonical_uuid};

pub use folder::FolderStore;
pub use supabase::{SupabaseStore, Timeouts};

/// The media type of every object. Supabase compares it byte for byte with the bucket's allowed types.
pub const VIDEO_MIME: &str = "video/mp4";

/// The longest name of a Supabase bucket, in bytes.
const BUCKET_NAME_BYTES_MAX: usize = 100;

/// An object's bytes, in order.
pub type BodyStream = BoxStream<'static, io::Result<Bytes>>;

/// The location of a video's object. Only this type builds storage paths.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectPath {
    bucket: String,
    user_id: Uuid,
    key: VideoKey,
}

impl ObjectPath {
    /// The location for the ids of a row.
    ///
    /// # Errors
    /// [`Code::BucketMissing`] if the name is not valid for a bucket: `storage_bucket` is free text.
    pub fn new(bucket: &str, user_id: Uuid, key: VideoKey) -> Result<Self, Failure> {
        if !is_bucket_name(bucket) {
            return Err(Failure::new(
                Code::BucketMissing,
                "The row's storage_bucket is not a valid bucket name; correct it in lesson_assets.",
            ));
        }
        Ok(Self {
            bucket: bucket.to_owned(),
            user_id,
            key,
        })
    }

    /// Parses a row's `storage_bucket` and `storage_path`; `None` if they are not as [`Self::path`] builds
    /// them.
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

    /// The path inside the bucket, as in `lesson_assets.storage_path`.
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

/// Supabase's own rule for bucket names, except names that begin with a dot: a valid name is also a
/// safe path component (no separator, not `..`, not a hidden file of the folder store).
fn is_bucket_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_!-.*'() &$@=;:+,?".contains(&b);
    (1..=BUCKET_NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(allowed)
        && !name.starts_with('.')
        && name.trim() == name
}

/// The hashes of an object's bytes, stored as its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// The git blob's SHA.
    pub blob_sha: GitSha,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
}

/// Computes [`Digests`] while the bytes arrive.
struct Hashing {
    left: u64,
    git: sha1::Sha1,
    sha256: sha2::Sha256,
}

impl Hashing {
    fn new(size: u64) -> Self {
        Self {
            left: size,
            git: sha1::Sha1::new_with_prefix(format!("blob {size}\0")),
            sha256: sha2::Sha256::new(),
        }
    }

    /// Adds the next bytes. Returns `false` if there are more than expected.
    fn add(&mut self, bytes: &[u8]) -> bool {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return false;
        };
        self.left = left;
        self.git.update(bytes);
        self.sha256.update(bytes);
        true
    }

    fn finish(self) -> Option<Digests> {
        (self.left == 0).then(|| Digests {
            blob_sha: GitSha::from_bytes(self.git.finalize().into()),
            sha256: hex::encode(self.sha256.finalize()),
        })
    }
}

/// What the store knows about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256, lower-case hexadecimal; `None` if another program stored it without one.
    pub sha256: Option<String>,
    /// The SHA of its git blob or LFS pointer; `None` if the store does not have it.
    pub blob_sha: Option<GitSha>,
}

/// What a bucket accepts, and who can read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketLimits {
    /// The largest object in bytes; `None` = the bucket has no limit of its own.
    pub max_bytes: Option<u64>,
    /// Whether [`VIDEO_MIME`] is among the allowed types.
    pub mp4_allowed: bool,
    /// Whether everyone can read its objects.
    pub public: bool,
}

/// How a stored video can be played.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Playable {
    /// A URL that works without credentials for [`SIGNED_URL_SECONDS`].
    Url(String),
    /// A file on this machine.
    File(PathBuf),
}

/// How long a signed URL is valid, in seconds.
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
    /// The object at that path; `None` = no such object.
    pub async fn info(&self, path: &ObjectPath) -> Result<Option<ObjectInfo>, Failure> {
        match self {
            Self::Folder(store) => store.info(path).await,
            Self::Supabase(store) => store.info(path).await,
        }
    }

    /// Whether the last byte of the object can be read. Supabase can have lost the bytes of an object whose
    /// information it still returns.
    ///
    /// # Errors
    /// The storage is unavailable. For a single object, this cannot be distinguished from lost bytes.
    pub async fn is_readable(&self, path: &ObjectPath, size: u64) -> Result<bool, Failure> {
        match self {
            // For its information, the whole file was read.
            Self::Folder(_) => Ok(true),
            Self::Supabase(store) => store.is_readable(path, size).await,
        }
    }

    /// Reads an object of `size` bytes and computes its hashes, `blob_sha` as that of a git blob with these
    /// bytes. `None` = no such object, or not of that size.
    pub async fn digests(&self, path: &ObjectPath, size: u64) -> Result<Option<Digests>, Failure> {
        match self {
            Self::Folder(store) => store.digests(path, size).await,
            Self::Supabase(store) => store.digests(path, size).await,
        }
    }

    /// Stores an object, replacing the one at that path.
    ///
    /// `body` yields exactly `size` bytes. `Ok` means that the store accepted the object; confirm it with
    /// [`Store::info`] before publishing it. After an error the old object or the new one is stored,
    /// never a mixture.
    pub async fn put(
        &self,
        path: &ObjectPath,
        size: u64,
        digests: &Digests,
        body: BodyStream,
    ) -> Result<(), Failure> {
        if size == 0 {
            // Supabase would accept it, and the video would be published without content.
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

    /// Deletes the object. Succeeds if there is none.
    pub async fn delete(&self, path: &ObjectPath) -> Result<(), Failure> {
        match self {
            Self::Folder(store) => store.delete(path).await,
            Self::Supabase(store) => store.delete(path).await,
        }
    }

    /// The limits of a bucket. A folder has none, and every bucket exists.
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

    /// The origin of the URLs in [`Playable::Url`]; `None` for a folder.
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
