//! The folder store: `<root>/<bucket>/<user_id>/<lesson_id>/<video_id>.mp4`.

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;

use super::{BodyStream, Digests, Hashing, ObjectInfo, ObjectPath};
use crate::domain::failure::{Code, Failure};

/// The prefix of the names of unfinished objects; they do not end with `.mp4`.
const UNFINISHED_PREFIX: &str = ".tmp-";

/// The mode of stored videos, before the umask: other users may read them, while temporary files are
/// private by default.
const OBJECT_MODE: u32 = 0o644;

/// The buffer for reading an object, in bytes.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// The number of folders between the root and an object: bucket, user, lesson.
const DEPTH: usize = 3;

/// Objects as files, without an index that could disagree with them.
#[derive(Clone, Debug)]
pub struct FolderStore {
    root: Arc<Path>,
}

impl FolderStore {
    /// Opens or creates the folder and removes the unfinished objects of crashed processes. Blocks.
    ///
    /// # Errors
    /// The folder cannot be created or read.
    pub fn open(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        let root = root.canonicalize()?;
        remove_unfinished(&root, DEPTH)?;
        Ok(Self { root: root.into() })
    }

    pub(super) async fn info(&self, path: &ObjectPath) -> Result<Option<ObjectInfo>, Failure> {
        self.blocking(path, |place| {
            let Some(file) = place.existing()? else {
                return Ok(None);
            };
            read_info(File::open(file)?).map(Some)
        })
        .await
    }

    pub(super) async fn digests(
        &self,
        path: &ObjectPath,
        size: u64,
    ) -> Result<Option<Digests>, Failure> {
        self.blocking(path, move |place| {
            let Some(file) = place.existing()? else {
                return Ok(None);
            };
            let mut hashing = Hashing::new(size);
            let mut is_longer = false;
            read_all(File::open(file)?, |bytes| is_longer |= !hashing.add(bytes))?;
            Ok(hashing.finish().filter(|_| !is_longer))
        })
        .await
    }

    pub(super) async fn file(&self, path: &ObjectPath) -> Result<Option<PathBuf>, Failure> {
        self.blocking(path, |place| place.existing()).await
    }

    pub(super) async fn delete(&self, path: &ObjectPath) -> Result<(), Failure> {
        self.blocking(path, |place| {
            if let Some(file) = place.existing()? {
                remove_if_there(&file)?;
                place.sync_folder()?;
            }
            Ok(())
        })
        .await
    }

    pub(super) async fn put(
        &self,
        path: &ObjectPath,
        size: u64,
        mut body: BodyStream,
    ) -> Result<(), Failure> {
        // If it is dropped before it is persisted (an error, a lost lease), the file deletes itself.
        let temp = self
            .blocking(path, |place| place.create_unfinished())
            .await?;
        let handle = temp.as_file().try_clone().map_err(failure)?;
        let mut file = tokio::fs::File::from_std(handle);
        let mut written = 0;
        while let Some(piece) = body.try_next().await.map_err(failure)? {
            file.write_all(&piece).await.map_err(failure)?;
            written += piece.len() as u64;
        }
        if written != size {
            return Err(Failure::new(
                Code::Internal,
                "The size of the downloaded copy changed while it was being stored.",
            ));
        }
        // tokio reports an error of the last write at the next flush; syncing would hide it.
        file.flush().await.map_err(failure)?;
        file.sync_all().await.map_err(failure)?;
        self.blocking(path, move |place| {
            temp.persist(place.file())?;
            place.sync_folder()
        })
        .await
    }

    /// Runs file system calls on a thread that may block.
    async fn blocking<T: Send + 'static>(
        &self,
        path: &ObjectPath,
        work: impl FnOnce(Place) -> io::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let [user, lesson, file] = path.segments();
        let place = Place {
            root: self.root.clone(),
            folders: [path.bucket().to_owned(), user, lesson],
            file,
        };
        match tokio::task::spawn_blocking(move || work(place)).await {
            Ok(done) => done.map_err(failure),
            Err(_) => Err(Failure::new(
                Code::Internal,
                "An unexpected error occurred while storing the video; see the server's log.",
            )),
        }
    }
}

/// The location of an object below the root.
struct Place {
    root: Arc<Path>,
    folders: [String; DEPTH],
    file: String,
}

impl Place {
    fn folder(&self) -> PathBuf {
        self.root.join(self.folders.join("/"))
    }

    fn file(&self) -> PathBuf {
        self.folder().join(&self.file)
    }

    /// The object's file, if there is one. A symbolic link in its path is an error: it could lead
    /// outside the root.
    fn existing(&self) -> io::Result<Option<PathBuf>> {
        let mut at = self.root.to_path_buf();
        for folder in &self.folders {
            at.push(folder);
            if !is_plain(&at, fs::FileType::is_dir)? {
                return Ok(None);
            }
        }
        at.push(&self.file);
        Ok(is_plain(&at, fs::FileType::is_file)?.then_some(at))
    }

    /// Creates an empty file in the object's folder, and its folders first. Each folder is durable
    /// before anything is created in it.
    fn create_unfinished(&self) -> io::Result<NamedTempFile> {
        let mut at = self.root.to_path_buf();
        for folder in &self.folders {
            let parent = at.clone();
            at.push(folder);
            if !is_plain(&at, fs::FileType::is_dir)? {
                match fs::create_dir(&at) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    // If another upload has just created it, it may not be durable yet.
                    _ => sync_folder(&parent)?,
                }
            }
        }
        let temp = tempfile::Builder::new()
            .prefix(UNFINISHED_PREFIX)
            .permissions(Permissions::from_mode(OBJECT_MODE))
            .tempfile_in(&at)?;
        // Shows a process that opens the store that this file is in use: see `remove_unfinished`.
        temp.as_file().lock()?;
        Ok(temp)
    }

    fn sync_folder(&self) -> io::Result<()> {
        sync_folder(&self.folder())
    }
}

/// Whether a file or folder (as `wanted` decides) exists. Another type of file there is an error.
fn is_plain(path: &Path, wanted: fn(&fs::FileType) -> bool) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if wanted(&found.file_type()) => Ok(true),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "a link or another type of file already exists at this path",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes new and renamed files in a folder durable.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn remove_unfinished(folder: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            remove_unfinished(&entry.path(), depth - 1)?;
        }
        let name = entry.file_name();
        if kind.is_file() && name.to_string_lossy().starts_with(UNFINISHED_PREFIX) {
            match File::open(entry.path()) {
                Ok(file) if file.try_lock().is_ok() => remove_if_there(&entry.path())?,
                // Locked: its writer is still running.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn read_info(file: File) -> io::Result<ObjectInfo> {
    let size = file.metadata()?.len();
    let mut hash = Sha256::new();
    read_all(file, |bytes| hash.update(bytes))?;
    Ok(ObjectInfo {
        size,
        sha256: Some(hex::encode(hash.finalize())),
        blob_sha: None,
    })
}

fn read_all(mut file: File, mut each: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => each(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn failure(error: io::Error) -> Failure {
    use io::ErrorKind as K;
    tracing::warn!(%error, "folder store operation failed");
    let (code, message) = match error.kind() {
        K::StorageFull | K::QuotaExceeded => (
            Code::DiskFull,
            "The disk that contains DATA_DIR is full; free up some space.",
        ),
        K::PermissionDenied | K::ReadOnlyFilesystem => (
            Code::StorageDenied,
            "The store in DATA_DIR is not writable; check its owner and mode, and check that it contains no links.",
        ),
        _ => (
            Code::StorageUnavailable,
            "The store in DATA_DIR could not be read or written; see the server's log.",
        ),
    };
    Failure::new(code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_its_own_code() {
        const ENOSPC: i32 = 28;
        const EACCES: i32 = 13;
        let code = |errno| failure(io::Error::from_raw_os_error(errno)).code;
        assert_eq!(code(ENOSPC), Code::DiskFull);
        assert_eq!(code(EACCES), Code::StorageDenied);
    }
}
