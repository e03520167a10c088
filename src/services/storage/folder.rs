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

use super::{BodyStream, ObjectInfo, ObjectPath};
use crate::domain::failure::{Code, Failure};

/// How the names of unfinished objects begin; they end otherwise than `.mp4`.
const UNFINISHED_PREFIX: &str = ".tmp-";

/// Stored videos are for others to read, as the umask allows; temporary files are private by default.
const OBJECT_MODE: u32 = 0o644;

/// How much of an object is held in memory while it is read, in bytes.
const READ_BUFFER_BYTES: usize = 256 * 1024;

/// How deep unfinished objects lie below the root: bucket, user, lesson.
const DEPTH: usize = 3;

/// Objects as files. The bytes are the truth: there is nothing beside them that could disagree.
#[derive(Clone, Debug)]
pub struct FolderStore {
    root: Arc<Path>,
}

impl FolderStore {
    /// Opens (or makes) the folder and removes what crashed writers left unfinished; blocks.
    ///
    /// # Errors
    /// If the folder cannot be made or read.
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
        // Dropped before it is persisted (an error, a lost lease), the file removes itself.
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
                "The downloaded copy changed its length while it was stored.",
            ));
        }
        // A flush reports what went wrong with the last write; syncing alone would not.
        file.flush().await.map_err(failure)?;
        file.sync_all().await.map_err(failure)?;
        self.blocking(path, move |place| {
            temp.persist(place.file())?;
            place.sync_folder()
        })
        .await
    }

    /// Runs file system calls where they may block.
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
                "Writing the video stopped unexpectedly; the log says why.",
            )),
        }
    }
}

/// An object's place below the root.
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

    /// The object's file if there is one, refusing to follow a link on the way.
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

    /// An empty file beside the object's place, its folders durable before anything is in them.
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
                    // Made by another video at this moment: not durable before its maker says so.
                    _ => sync_folder(&parent)?,
                }
            }
        }
        let temp = tempfile::Builder::new()
            .prefix(UNFINISHED_PREFIX)
            .permissions(Permissions::from_mode(OBJECT_MODE))
            .tempfile_in(&at)?;
        // Tells a process that opens the store meanwhile that this writer is alive.
        temp.as_file().lock()?;
        Ok(temp)
    }

    fn sync_folder(&self) -> io::Result<()> {
        sync_folder(&self.folder())
    }
}

/// Whether something of the wanted type is there; anything else in its place is an error.
fn is_plain(path: &Path, wanted: fn(&fs::FileType) -> bool) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if wanted(&found.file_type()) => Ok(true),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "a link or another kind of file is in the way",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A rename or a new name is durable only once its folder is.
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
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn read_info(mut file: File) -> io::Result<ObjectInfo> {
    let size = file.metadata()?.len();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ObjectInfo {
        size,
        sha256: Some(hex::encode(hash.finalize())),
    })
}

fn failure(error: io::Error) -> Failure {
    use io::ErrorKind as K;
    tracing::warn!(%error, "the folder store failed");
    let (code, message) = match error.kind() {
        K::StorageFull | K::QuotaExceeded => (
            Code::DiskFull,
            "The disk of DATA_DIR is full; make room on it.",
        ),
        K::PermissionDenied | K::ReadOnlyFilesystem => (
            Code::StorageDenied,
            "The folder in DATA_DIR cannot be written; check its owner, its mode and that no link is in it.",
        ),
        _ => (
            Code::StorageUnavailable,
            "The folder in DATA_DIR could not be read or written; the log says why.",
        ),
    };
    Failure::new(code, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_called_by_its_name() {
        const ENOSPC: i32 = 28;
        const EACCES: i32 = 13;
        let code = |errno| failure(io::Error::from_raw_os_error(errno)).code;
        assert_eq!(code(ENOSPC), Code::DiskFull);
        assert_eq!(code(EACCES), Code::StorageDenied);
    }
}
