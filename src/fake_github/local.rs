//! Serves a repository on disk, read with the `git` command.
//!
//! Commits and trees are read once; blobs stay in git and are streamed on request.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};

use super::model::{Blob, Commit, Entry, MODE_TREE, Object, Repository};
use crate::domain::ids::GitSha;

/// The longest wait for one answer of `git`.
const GIT_TIMEOUT: Duration = Duration::from_secs(30);
/// The most that is read of one answer of `git`, bytes: about 500,000 files.
const GIT_OUTPUT_MAX: u64 = 64 << 20;

/// Why a local repository cannot be served; worded for the person who named it.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The `git` command is not there.
    #[error("The git command was not found. Install git to serve a local repository.")]
    NoGit,
    /// The path is no repository that git can read.
    #[error("{path} is not a readable git repository: {reason}")]
    NoRepository {
        /// As the caller wrote it.
        path: String,
        /// What git said.
        reason: String,
    },
    /// HEAD names a branch that has no commit.
    #[error("{0} has no commits on its current branch. Commit something first.")]
    Empty(String),
    /// Git answered something that GitHub could not serve either.
    #[error("{0} cannot be served: {1}")]
    Unsupported(String, &'static str),
    /// Git could not be run, or no loopback port could be had.
    #[error("Failed to serve the local repository: {0}")]
    Io(#[from] std::io::Error),
}

/// A repository on this disk.
#[derive(Clone, Debug)]
pub(super) struct Local {
    path: PathBuf,
    lfs: PathBuf,
}

impl Local {
    /// Reads HEAD and its trees.
    pub(super) async fn open(
        path: &Path,
        full_name: &str,
    ) -> Result<(Self, Repository), LocalError> {
        let shown = path.display().to_string();
        let unsupported = |why| LocalError::Unsupported(shown.clone(), why);
        let git = |args: &'static [&'static str]| printed(path, args);

        let directory = git(&["rev-parse", "--path-format=absolute", "--git-common-dir"])
            .await?
            .map_err(|reason| LocalError::NoRepository {
                path: shown.clone(),
                reason,
            })?;
        let head = git(&["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).await?;
        let head = head.map_err(|_| LocalError::Empty(shown.clone()))?;
        let head: GitSha = head
            .trim()
            .parse()
            .map_err(|_| unsupported("its object IDs are not SHA-1 hashes"))?;
        let commit = git(&["cat-file", "commit", "HEAD"]).await?;
        let commit = commit
            .ok()
            .and_then(|raw| parse_commit(&raw))
            .ok_or_else(|| unsupported("its head commit cannot be read"))?;
        let listing = git(&["ls-tree", "-r", "-t", "-l", "-z", "--full-tree", "HEAD"]).await?;
        let listing = listing.map_err(|_| unsupported("its files cannot be listed"))?;

        let mut repository = Repository::new(full_name);
        if let Ok(branch) = git(&["symbolic-ref", "--quiet", "--short", "HEAD"]).await? {
            repository.default_branch = branch.trim().to_owned();
        }
        add_trees(&mut repository, commit.tree, &listing)
            .ok_or_else(|| unsupported("its list of files cannot be read"))?;
        repository.objects.insert(head, Object::Commit(commit));
        let branch = repository.default_branch.clone();
        repository.branches.insert(branch, head);
        let lfs = Path::new(directory.trim()).join("lfs/objects");
        let path = path.to_owned();
        Ok((Self { path, lfs }, repository))
    }

    /// The bytes of a blob. The child must live for as long as they are read.
    pub(super) fn blob(&self, sha: GitSha) -> std::io::Result<(Child, impl AsyncRead + use<>)> {
        let mut command = git(&self.path, &["cat-file", "blob"]);
        let mut child = command.arg(sha.to_string()).stderr(Stdio::null()).spawn()?;
        let stdout = child.stdout.take();
        stdout
            .map(|stdout| (child, stdout))
            .ok_or_else(|| std::io::Error::other("failed to capture git's standard output"))
    }

    /// Where git-lfs keeps an object, whose name must have been checked.
    pub(super) fn lfs_object(&self, oid: &str) -> PathBuf {
        self.lfs.join(&oid[..2]).join(&oid[2..4]).join(oid)
    }
}

/// Runs git in the repository at `path`, with what it prints piped.
pub fn git(path: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(path)
        .args(args)
        // Set inside git hooks; they would win over the path.
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// What git prints, or what it says when it refuses.
async fn printed(path: &Path, args: &[&str]) -> Result<Result<String, String>, LocalError> {
    let run = async {
        let mut child = git(path, args)
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::NotFound => LocalError::NoGit,
                _ => LocalError::Io(e),
            })?;
        let (mut printed, mut said) = (Vec::new(), Vec::new());
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            let mut stdout = stdout.take(GIT_OUTPUT_MAX);
            let mut stderr = stderr.take(GIT_OUTPUT_MAX);
            tokio::try_join!(
                stdout.read_to_end(&mut printed),
                stderr.read_to_end(&mut said)
            )?;
        }
        if printed.len() as u64 == GIT_OUTPUT_MAX {
            let shown = path.display().to_string();
            return Err(LocalError::Unsupported(shown, "it has too many files"));
        }
        let status = child.wait().await?;
        Ok(if status.success() {
            Ok(String::from_utf8_lossy(&printed).into_owned())
        } else {
            Err(String::from_utf8_lossy(&said).trim().to_owned())
        })
    };
    tokio::time::timeout(GIT_TIMEOUT, run)
        .await
        .map_err(|_| LocalError::Io(std::io::ErrorKind::TimedOut.into()))?
}

fn parse_commit(raw: &str) -> Option<Commit> {
    let (head, message) = raw.split_once("\n\n")?;
    let values = |key: &'static str| head.lines().filter_map(move |line| line.strip_prefix(key));
    let (who, when) = values("committer ").next()?.rsplit_once("> ")?;
    let (author, email) = who.split_once(" <")?;
    Some(Commit {
        tree: values("tree ").next()?.parse().ok()?,
        parents: values("parent ")
            .filter_map(|sha| sha.parse().ok())
            .collect(),
        author: author.to_owned(),
        email: email.to_owned(),
        at: when.split(' ').next()?.parse().ok()?,
        message: message.trim_end().to_owned(),
    })
}

/// Reads `<mode> <type> <sha> <size>\t<path>\0…`; folders come before what is in them.
fn add_trees(repository: &mut Repository, root: GitSha, listing: &str) -> Option<()> {
    let mut folders = std::collections::HashMap::from([("", (root, Vec::new()))]);
    for line in listing.split_terminator('\0') {
        let (facts, path) = line.split_once('\t')?;
        let mut facts = facts.split_ascii_whitespace();
        let mode = u32::from_str_radix(facts.next()?, 8).ok()?;
        let (_kind, sha, size) = (facts.next()?, facts.next()?.parse().ok()?, facts.next()?);
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let name = name.to_owned();
        folders.get_mut(folder)?.1.push(Entry { name, mode, sha });
        if mode == MODE_TREE {
            folders.insert(path, (sha, Vec::new()));
        } else if let Ok(size) = size.parse() {
            let blob = Object::Blob(Blob::Local { size });
            repository.objects.insert(sha, blob);
        }
    }
    for (sha, entries) in folders.into_values() {
        repository.objects.insert(sha, Object::Tree(entries));
    }
    Some(())
}
