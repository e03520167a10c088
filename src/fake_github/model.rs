//! A repository as git keeps it: content-addressed objects, and branches that point at commits.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use sha1::{Digest as _, Sha1};

use crate::domain::ids::GitSha;

/// Mode of a folder in a tree.
pub(super) const MODE_TREE: u32 = 0o040_000;
/// Mode of a submodule in a tree.
const MODE_COMMIT: u32 = 0o160_000;
/// Mode of a plain file in a tree.
const MODE_FILE: u32 = 0o100_644;
/// Date of the first commit, Unix seconds (2026-01-28T00:00:00Z).
const FIRST_COMMIT_AT: i64 = 1_769_558_400;
/// Seconds between two commits. Dates come from a counter, so equal scenarios have equal SHAs.
const COMMIT_SPACING: i64 = 60;

/// Anything with a SHA.
pub(super) enum Object {
    Blob(Blob),
    Tree(Vec<Entry>),
    Commit(Commit),
}

/// The bytes of a file, or the knowledge that `git cat-file` has them.
#[derive(Clone)]
pub(super) enum Blob {
    Memory(Bytes),
    Local { size: u64 },
}

impl Blob {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Local { size } => *size,
        }
    }
}

/// One line of a tree.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) mode: u32,
    pub(super) sha: GitSha,
}

impl Entry {
    /// The word for what the entry points at.
    pub(super) fn kind(&self) -> &'static str {
        match self.mode {
            MODE_TREE => "tree",
            MODE_COMMIT => "commit",
            _ => "blob",
        }
    }
}

pub(super) struct Commit {
    pub(super) tree: GitSha,
    pub(super) parents: Vec<GitSha>,
    pub(super) author: String,
    pub(super) email: String,
    /// Unix seconds.
    pub(super) at: i64,
    pub(super) message: String,
}

impl Commit {
    /// The date as GitHub prints it.
    pub(super) fn date(&self) -> String {
        jiff::Timestamp::from_second(self.at)
            .unwrap_or_default()
            .to_string()
    }

    fn encode(&self) -> Vec<u8> {
        let mut text = format!("tree {}\n", self.tree);
        for parent in &self.parents {
            text += &format!("parent {parent}\n");
        }
        let who = format!("{} <{}> {} +0000", self.author, self.email, self.at);
        text += &format!("author {who}\ncommitter {who}\n\n{}\n", self.message);
        text.into_bytes()
    }
}

/// An object of LFS storage; without bytes it is one whose upload never finished.
pub(super) struct LfsObject {
    pub(super) size: u64,
    pub(super) bytes: Option<Bytes>,
}

/// What one commit does to the files of its parent.
#[derive(Default)]
pub struct Changes {
    files: BTreeMap<String, Option<Bytes>>,
    lfs: HashMap<String, LfsObject>,
    message: Option<String>,
    merged: Option<GitSha>,
}

impl Changes {
    /// Adds or replaces a file.
    pub fn write(mut self, path: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        self.files.insert(path.into(), Some(bytes.into()));
        self
    }

    /// Removes a file; removing what is not there changes nothing.
    pub fn remove(mut self, path: impl Into<String>) -> Self {
        self.files.insert(path.into(), None);
        self
    }

    /// Adds a file kept in LFS: a pointer in git, the bytes in LFS storage.
    pub fn write_lfs(self, path: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let size = bytes.len() as u64;
        self.point(path, &bytes.clone(), size, Some(bytes))
    }

    /// Adds only the pointer: LFS storage does not have the object.
    pub fn write_lfs_missing(self, path: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        self.point(path, &bytes, bytes.len() as u64, None)
    }

    /// The commit's message.
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = Some(message.into());
        self
    }

    /// Makes it a merge commit: its second parent. The files of that commit are not added.
    pub fn merge(mut self, commit: GitSha) -> Self {
        self.merged = Some(commit);
        self
    }

    fn point(
        mut self,
        path: impl Into<String>,
        content: &[u8],
        size: u64,
        bytes: Option<Bytes>,
    ) -> Self {
        let oid = hex::encode(sha2::Sha256::digest(content));
        let pointer =
            format!("version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n");
        self.lfs.insert(oid, LfsObject { size, bytes });
        self.write(path, pointer)
    }
}

/// Paths that differ between two trees.
#[derive(Default)]
pub(super) struct Diff {
    pub(super) added: Vec<String>,
    pub(super) removed: Vec<String>,
    pub(super) modified: Vec<String>,
}

/// Full path → mode and blob.
pub(super) type Files = BTreeMap<String, (u32, GitSha)>;

/// Objects and branches of the one repository that is served.
pub struct Repository {
    /// `owner/name`
    pub full_name: String,
    /// Names that redirect here.
    pub former_names: Vec<String>,
    /// Its name.
    pub default_branch: String,
    /// The newest commit of each branch, by the branch's name.
    pub branches: BTreeMap<String, GitSha>,
    pub(super) objects: HashMap<GitSha, Object>,
    pub(super) lfs: HashMap<String, LfsObject>,
    /// The commit that the API still shows as the default branch's; it denies newer ones. `None`: no lag.
    pub served_head: Option<GitSha>,
    commits_made: i64,
}

impl Repository {
    pub(super) fn new(full_name: &str) -> Self {
        Self {
            full_name: full_name.to_owned(),
            former_names: Vec::new(),
            default_branch: "main".to_owned(),
            branches: BTreeMap::new(),
            objects: HashMap::new(),
            lfs: HashMap::new(),
            served_head: None,
            commits_made: 0,
        }
    }

    /// The default branch as git has it.
    pub(super) fn head(&self) -> Option<GitSha> {
        self.branches.get(&self.default_branch).copied()
    }

    /// A branch as the API shows it.
    pub(super) fn branch(&self, name: &str) -> Option<GitSha> {
        match self.served_head {
            Some(lagging) if name == self.default_branch => Some(lagging),
            _ => self.branches.get(name).copied(),
        }
    }

    /// The commit that a ref, a branch or a SHA means to the API.
    pub(super) fn resolve(&self, text: &str) -> Option<GitSha> {
        let name = text.strip_prefix("refs/").unwrap_or(text);
        let name = name.strip_prefix("heads/").unwrap_or(name);
        let branch = match name {
            "HEAD" => self.branch(&self.default_branch),
            name => self.branch(name),
        };
        branch.or_else(|| {
            let sha = text.parse().ok()?;
            self.commit(sha).filter(|_| !self.is_hidden(sha))?;
            Some(sha)
        })
    }

    /// Whether a lagging API does not know this commit yet.
    fn is_hidden(&self, sha: GitSha) -> bool {
        self.served_head.is_some_and(|served| {
            !self.reachable(served).contains(&sha)
                && self
                    .branches
                    .values()
                    .any(|tip| self.reachable(*tip).contains(&sha))
        })
    }

    pub(super) fn commit(&self, sha: GitSha) -> Option<&Commit> {
        match self.objects.get(&sha)? {
            Object::Commit(commit) => Some(commit),
            Object::Blob(_) | Object::Tree(_) => None,
        }
    }

    pub(super) fn tree(&self, sha: GitSha) -> Option<&[Entry]> {
        match self.objects.get(&sha)? {
            Object::Tree(entries) => Some(entries),
            Object::Blob(_) | Object::Commit(_) => None,
        }
    }

    pub(super) fn blob(&self, sha: GitSha) -> Option<&Blob> {
        match self.objects.get(&sha)? {
            Object::Blob(blob) => Some(blob),
            Object::Tree(_) | Object::Commit(_) => None,
        }
    }

    /// What a path of a commit points at.
    pub(super) fn entry(&self, commit: GitSha, path: &str) -> Option<Entry> {
        let mut found = Entry {
            name: String::new(),
            mode: MODE_TREE,
            sha: self.commit(commit)?.tree,
        };
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let entries = self.tree(found.sha)?;
            found = entries.iter().find(|entry| entry.name == name)?.clone();
        }
        Some(found)
    }

    /// Every file of a commit.
    pub(super) fn files(&self, commit: GitSha) -> Files {
        let mut files = Files::new();
        if let Some(commit) = self.commit(commit) {
            for (path, entry) in self.walk(commit.tree) {
                if entry.mode != MODE_TREE {
                    files.insert(path, (entry.mode, entry.sha));
                }
            }
        }
        files
    }

    /// Forgets the trees of all commits but the head: thousands of commits to a large folder are gigabytes.
    /// How commits relate is still known; compared with a forgotten tree, every file is an added one.
    pub fn forget_old_trees(&mut self) {
        let Some(head) = self.head().and_then(|head| self.commit(head)) else {
            return;
        };
        let inside = self.walk(head.tree).into_iter();
        let kept: HashSet<_> = inside
            .map(|(_, entry)| entry.sha)
            .chain([head.tree])
            .collect();
        self.objects
            .retain(|sha, object| !matches!(object, Object::Tree(_)) || kept.contains(sha));
    }

    /// Every entry below a tree with its full path, folders before what is in them.
    pub(super) fn walk(&self, tree: GitSha) -> Vec<(String, &Entry)> {
        let mut found = Vec::new();
        for entry in self.tree(tree).unwrap_or_default() {
            found.push((entry.name.clone(), entry));
            if entry.mode == MODE_TREE {
                let inside = self.walk(entry.sha).into_iter();
                found.extend(inside.map(|(path, e)| (format!("{}/{path}", entry.name), e)));
            }
        }
        found
    }

    /// A commit and all its ancestors.
    pub(super) fn reachable(&self, tip: GitSha) -> HashSet<GitSha> {
        let mut seen = HashSet::new();
        let mut open = vec![tip];
        while let Some(sha) = open.pop() {
            if let Some(commit) = self.commit(sha)
                && seen.insert(sha)
            {
                open.extend(&commit.parents);
            }
        }
        seen
    }

    /// Commits of `tip` that `base` does not have, oldest first.
    pub(super) fn between(&self, base: GitSha, tip: GitSha) -> Vec<GitSha> {
        let old = self.reachable(base);
        let mut new: Vec<_> = self.reachable(tip).difference(&old).copied().collect();
        new.sort_by_key(|sha| (self.commit(*sha).map(|c| c.at), *sha));
        new
    }

    /// The newest commit that two commits share.
    pub(super) fn merge_base(&self, a: GitSha, b: GitSha) -> Option<GitSha> {
        let mine = self.reachable(a);
        mine.intersection(&self.reachable(b))
            .copied()
            .max_by_key(|sha| self.commit(*sha).map(|c| c.at))
    }

    /// What changed from one commit (or nothing) to another.
    pub(super) fn diff(&self, from: Option<GitSha>, to: GitSha) -> Diff {
        let old = from.map(|from| self.files(from)).unwrap_or_default();
        let new = self.files(to);
        let mut diff = Diff::default();
        for (path, file) in &new {
            match old.get(path) {
                None => diff.added.push(path.clone()),
                Some(before) if before != file => diff.modified.push(path.clone()),
                Some(_) => {}
            }
        }
        let gone = old.keys().filter(|path| !new.contains_key(*path));
        diff.removed = gone.cloned().collect();
        diff
    }

    /// Commits changes on top of the default branch and moves it there.
    pub(super) fn apply(&mut self, changes: Changes) -> GitSha {
        let head = self.head();
        let mut files = head.map(|head| self.files(head)).unwrap_or_default();
        for (path, bytes) in changes.files {
            match bytes {
                None => files.remove(&path),
                Some(bytes) => {
                    let sha = object_sha("blob", &bytes);
                    self.objects.insert(sha, Object::Blob(Blob::Memory(bytes)));
                    files.insert(path, (MODE_FILE, sha))
                }
            };
        }
        self.lfs.extend(changes.lfs);
        let message = changes
            .message
            .unwrap_or_else(|| "Update videos".to_owned());
        let parents = head.into_iter().chain(changes.merged);
        self.add_commit(&files, parents.collect(), message)
    }

    fn add_commit(&mut self, files: &Files, parents: Vec<GitSha>, message: String) -> GitSha {
        let files = files.iter().map(|(path, file)| (path.as_str(), *file));
        let tree = self.add_tree(files.collect());
        let commit = Commit {
            tree,
            parents,
            author: "openhands".to_owned(),
            email: "openhands@all-hands.dev".to_owned(),
            at: FIRST_COMMIT_AT + self.commits_made * COMMIT_SPACING,
            message,
        };
        self.commits_made += 1;
        let sha = object_sha("commit", &commit.encode());
        self.objects.insert(sha, Object::Commit(commit));
        self.branches.insert(self.default_branch.clone(), sha);
        sha
    }

    fn add_tree(&mut self, files: BTreeMap<&str, (u32, GitSha)>) -> GitSha {
        let mut entries = Vec::new();
        let mut folders: BTreeMap<&str, BTreeMap<&str, (u32, GitSha)>> = BTreeMap::new();
        for (path, (mode, sha)) in files {
            match path.split_once('/') {
                None => entries.push(Entry {
                    name: path.to_owned(),
                    mode,
                    sha,
                }),
                Some((folder, rest)) => {
                    folders.entry(folder).or_default().insert(rest, (mode, sha));
                }
            }
        }
        for (folder, inside) in folders {
            entries.push(Entry {
                name: folder.to_owned(),
                mode: MODE_TREE,
                sha: self.add_tree(inside),
            });
        }
        // Git sorts a folder as if its name ended in a slash.
        entries.sort_by_cached_key(|entry| match entry.mode {
            MODE_TREE => format!("{}/", entry.name),
            _ => entry.name.clone(),
        });
        let mut encoded = Vec::new();
        for entry in &entries {
            encoded.extend(format!("{:o} {}\0", entry.mode, entry.name).into_bytes());
            encoded.extend(hex::decode(entry.sha.to_string()).unwrap_or_default());
        }
        let sha = object_sha("tree", &encoded);
        self.objects.insert(sha, Object::Tree(entries));
        sha
    }
}

/// The name git gives to an object.
pub(super) fn object_sha(kind: &str, bytes: &[u8]) -> GitSha {
    let mut sha = Sha1::new();
    sha.update(format!("{kind} {}\0", bytes.len()));
    sha.update(bytes);
    GitSha::from_bytes(sha.finalize().into())
}
