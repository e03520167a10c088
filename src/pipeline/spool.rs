//! Temporary storage of a download, in memory or in a file. Hashes and the MP4 check are computed while the
//! bytes arrive.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use sha1::Digest;
use tokio::io::AsyncWriteExt;

use crate::domain::failure::{Code, Failure};
use crate::domain::ids::GitSha;
use crate::domain::lfs::{Pointer, Sha256};
use crate::domain::mp4::{BoxWalk, Probe, grouped};

/// The largest download that is kept in memory, in bytes. Larger ones are written to a file.
pub const MEMORY_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The maximum number of bytes that are hashed, written or read at once. File operations run on another
/// thread, so much smaller chunks would cost too many context switches.
pub const CHUNK_BYTES_MAX: usize = 256 * 1024;

/// The kind of download, which determines the hash that identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A git blob, identified by the SHA-1 of a header and the content.
    Blob,
    /// An LFS object, identified by the SHA-256, which is computed for all downloads.
    LfsObject,
}

/// A download in progress. Its file has no name, so the operating system deletes it even after a crash.
pub struct Spool {
    declared_len: u64,
    received: u64,
    sink: Sink,
    git_sha: Option<sha1::Sha1>,
    sha256: sha2::Sha256,
    walk: BoxWalk,
}

enum Sink {
    Memory(Vec<u8>),
    File(tokio::fs::File),
}

/// A complete download.
pub struct Spooled {
    /// The length, in bytes. Equals the declared length.
    pub size: u64,
    /// The id of a git blob with these bytes; `None` for an LFS object.
    pub git_sha: Option<GitSha>,
    /// The SHA-256 of the bytes.
    pub sha256: Sha256,
    /// The result of the MP4 check.
    pub probe: Result<Probe, Failure>,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Memory(Bytes),
    File(Arc<File>),
}

impl Spool {
    /// Creates a spool for a download of exactly `declared_len` bytes. A large one uses a file in `dir`.
    ///
    /// # Errors
    /// `disk_full`, or `internal` if the file cannot be created.
    pub async fn create(dir: &Path, declared_len: u64, kind: Kind) -> Result<Self, Failure> {
        let sink = if declared_len <= MEMORY_BYTES_MAX {
            Sink::Memory(Vec::new())
        } else {
            let dir = dir.to_owned();
            let file = blocking(move || tempfile::tempfile_in(dir))
                .await
                .map_err(disk_failure)?;
            let mut file = tokio::fs::File::from_std(file);
            file.set_max_buf_size(CHUNK_BYTES_MAX);
            Sink::File(file)
        };
        // The id of a blob is the hash of this header and the content. Source: Pro Git, "Git Objects".
        let header = format!("blob {declared_len}\0");
        Ok(Self {
            declared_len,
            received: 0,
            sink,
            git_sha: (kind == Kind::Blob).then(|| sha1::Sha1::new_with_prefix(header)),
            sha256: sha2::Sha256::new(),
            walk: BoxWalk::new(declared_len),
        })
    }

    /// Adds the next bytes.
    ///
    /// # Errors
    /// `corrupt_download` if there are more bytes than declared, `disk_full`, or `internal` if a write fails for
    /// another reason.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        if bytes.len() as u64 > self.declared_len - self.received {
            let declared = grouped(self.declared_len);
            return Err(Failure::new(
                Code::CorruptDownload,
                format!(
                    "The download is larger than the declared {declared} bytes; it will be retried automatically."
                ),
            ));
        }
        for chunk in bytes.chunks(CHUNK_BYTES_MAX) {
            if let Some(git_sha) = &mut self.git_sha {
                git_sha.update(chunk);
            }
            self.sha256.update(chunk);
            self.walk.feed(chunk);
            match &mut self.sink {
                Sink::Memory(memory) => memory.extend_from_slice(chunk),
                Sink::File(file) => file.write_all(chunk).await.map_err(disk_failure)?,
            }
            self.received += chunk.len() as u64;
            // Hashing is CPU-bound. Yield regularly, so that other tasks of this thread are not delayed.
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    /// Completes the download after all bytes were written.
    ///
    /// # Errors
    /// `corrupt_download` if bytes are missing, `disk_full`, or `internal` if a write fails for another reason.
    pub async fn finish(self) -> Result<Spooled, Failure> {
        if self.received < self.declared_len {
            let (received, declared) = (grouped(self.received), grouped(self.declared_len));
            return Err(Failure::new(
                Code::CorruptDownload,
                format!(
                    "The download ended after {received} of {declared} bytes; it will be retried automatically."
                ),
            ));
        }
        let source = match self.sink {
            Sink::Memory(memory) => Source::Memory(memory.into()),
            Sink::File(mut file) => {
                // tokio completes writes in the background. Their errors are reported by `flush`.
                file.flush().await.map_err(disk_failure)?;
                Source::File(Arc::new(file.into_std().await))
            }
        };
        Ok(Spooled {
            size: self.received,
            git_sha: self
                .git_sha
                .map(|sha| GitSha::from_bytes(sha.finalize().into())),
            sha256: Sha256::from_bytes(self.sha256.finalize().into()),
            probe: self.walk.finish(),
            source,
        })
    }
}

impl Spooled {
    /// Parses the bytes as a Git LFS pointer.
    pub fn lfs_pointer(&self) -> Option<Pointer> {
        match &self.source {
            Source::Memory(bytes) => Pointer::parse(bytes),
            // Files are larger than MEMORY_BYTES_MAX, and pointers are much smaller.
            Source::File(_) => None,
        }
    }

    /// A stream of all bytes, in chunks of at most [`CHUNK_BYTES_MAX`]. Streams are independent of each other.
    pub fn stream(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let (source, size) = (self.source.clone(), self.size);
        stream::try_unfold(0, move |start| {
            let source = source.clone();
            async move {
                let end = size.min(start + CHUNK_BYTES_MAX as u64);
                if start == end {
                    return Ok(None);
                }
                Ok(Some((source.read(start, end).await?, end)))
            }
        })
    }
}

impl Source {
    /// Reads the bytes `start..end`, at most [`CHUNK_BYTES_MAX`].
    async fn read(self, start: u64, end: u64) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes.slice(start as usize..end as usize)),
            Self::File(file) => {
                blocking(move || {
                    let mut chunk = vec![0; (end - start) as usize];
                    // `read` would use the position of the descriptor, which all streams share.
                    file.read_exact_at(&mut chunk, start)?;
                    Ok(chunk.into())
                })
                .await
            }
        }
    }
}

/// Whether the file system of `dir` has space for `needed` bytes.
pub(super) fn has_space(dir: &Path, needed: u64) -> bool {
    match free_bytes(dir) {
        Some(free) if free < needed => {
            tracing::error!(
                free_bytes = free,
                needed_bytes = needed,
                "not enough disk space in DATA_DIR, downloads suspended"
            );
            false
        }
        _ => true,
    }
}

/// The free space on the file system of `dir` that is available to this user, in bytes.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Runs a file operation on the thread pool for blocking operations.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

/// Contains only the kind of the error, because its text may contain a path.
fn disk_failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Failure::new(
                Code::DiskFull,
                "DATA_DIR does not have enough space for the download; free up disk space.",
            )
        }
        kind => Failure::new(
            Code::Internal,
            format!("The download could not be written to DATA_DIR: {kind}."),
        ),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, TryStreamExt};

    use super::*;

    const GOOD: &[u8] = include_bytes!("../../fixtures/videos/good.mp4");
    const POINTER: &[u8] = include_bytes!("../../fixtures/videos/lfs_pointer.mp4");

    async fn spooled(content: &[u8]) -> Spooled {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(dir.path(), content.len() as u64, Kind::Blob)
            .await
            .unwrap();
        for chunk in content.chunks(100_000) {
            spool.write(chunk).await.unwrap();
        }
        let spooled = spool.finish().await.unwrap();
        assert_eq!(
            std::fs::read_dir(&dir).unwrap().count(),
            0,
            "a named file remains"
        );
        spooled
    }

    /// A playable video with padding, larger than what is kept in memory.
    fn large_video() -> Vec<u8> {
        let padding = MEMORY_BYTES_MAX as usize + 12_345;
        let size = u32::try_from(padding + 8).unwrap().to_be_bytes();
        let noise = (0..padding).map(|i| (i * i / 7) as u8);
        GOOD.iter()
            .copied()
            .chain(size)
            .chain(*b"free")
            .chain(noise)
            .collect()
    }

    async fn read_all(spooled: &Spooled) -> Vec<u8> {
        let mut content = Vec::new();
        let mut stream = Box::pin(spooled.stream());
        while let Some(chunk) = stream.try_next().await.unwrap() {
            assert!((1..=CHUNK_BYTES_MAX).contains(&chunk.len()));
            content.extend_from_slice(&chunk);
        }
        content
    }

    #[tokio::test]
    async fn one_pass_computes_hashes_and_probe() {
        let spooled = spooled(GOOD).await;
        assert_eq!(spooled.size, 12_522);
        // According to `git hash-object` and `sha256sum`.
        assert_eq!(
            spooled.git_sha.unwrap().to_string(),
            "7fce7e4190e51f3507becb54b07a834fbfbd78f4"
        );
        assert_eq!(
            spooled.sha256.to_string(),
            "69784ca7ae1ee34444ddfae77e7cae33e9dd7e5fb59ee637ca580f6b1cfd16f4"
        );
        assert_eq!(spooled.probe.as_ref().unwrap().duration_ms, 1500);
        assert_eq!(spooled.lfs_pointer(), None);
        assert_eq!(read_all(&spooled).await, GOOD);
    }

    #[tokio::test]
    async fn a_pointer_is_recognized() {
        let pointer = spooled(POINTER).await.lfs_pointer().unwrap();
        let object = spooled(GOOD).await;
        assert_eq!((pointer.oid, pointer.size), (object.sha256, object.size));
    }

    #[tokio::test]
    async fn a_download_may_be_empty() {
        let spooled = spooled(b"").await;
        assert_eq!(
            spooled.git_sha.unwrap().to_string(),
            "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
        );
        assert_eq!(spooled.probe.as_ref().unwrap_err().code, Code::NotAnMp4);
        assert_eq!(read_all(&spooled).await, b"");
    }

    #[tokio::test]
    async fn a_large_download_can_be_read_repeatedly() {
        let content = large_video();
        let spooled = spooled(&content).await;
        assert!(matches!(spooled.source, Source::File(_)));
        assert_eq!(spooled.probe.as_ref().unwrap().duration_ms, 1500);

        // Streams do not affect the positions of each other.
        let mut halfway = Box::pin(spooled.stream());
        let first = halfway.next().await.unwrap().unwrap();
        assert!(read_all(&spooled).await == content);
        let second = halfway.next().await.unwrap().unwrap();
        drop(spooled);
        assert!([first, second].concat() == content[..2 * CHUNK_BYTES_MAX]);
        assert_eq!(
            halfway.count().await,
            content.len().div_ceil(CHUNK_BYTES_MAX) - 2
        );
    }

    #[tokio::test]
    async fn a_download_of_another_length_is_corrupt() {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(dir.path(), 2_007_071, Kind::Blob)
            .await
            .unwrap();
        spool.write(&[0; 1_000_000]).await.unwrap();
        let short = spool.finish().await.err().unwrap();
        assert_eq!(
            short,
            Failure::new(
                Code::CorruptDownload,
                "The download ended after 1,000,000 of 2,007,071 bytes; it will be retried automatically."
            )
        );

        let mut spool = Spool::create(dir.path(), 1000, Kind::Blob).await.unwrap();
        spool.write(&[0; 1000]).await.unwrap();
        let long = spool.write(&[0]).await.unwrap_err();
        assert_eq!(
            long,
            Failure::new(
                Code::CorruptDownload,
                "The download is larger than the declared 1,000 bytes; it will be retried automatically."
            )
        );
    }

    #[tokio::test]
    async fn a_missing_directory_is_an_internal_failure() {
        let missing = tempfile::tempdir().unwrap().path().join("gone");
        let failure = Spool::create(&missing, MEMORY_BYTES_MAX + 1, Kind::LfsObject)
            .await
            .err()
            .unwrap();
        assert_eq!(
            failure,
            Failure::new(
                Code::Internal,
                "The download could not be written to DATA_DIR: entity not found."
            )
        );
    }

    #[test]
    fn a_full_disk_is_distinguished_from_other_errors() {
        // ENOSPC, EFBIG, EDQUOT; EIO (errno(3)).
        for full in [28, 27, 122] {
            assert_eq!(
                disk_failure(io::Error::from_raw_os_error(full)).code,
                Code::DiskFull
            );
        }
        assert_eq!(
            disk_failure(io::Error::from_raw_os_error(5)).code,
            Code::Internal
        );
    }
}
