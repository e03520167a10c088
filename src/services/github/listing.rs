//! What the branch's head holds in the videos folder, shared by everybody who asks at one time.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use reqwest::StatusCode;
use reqwest::header::{ACCEPT, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use serde::{Deserialize, Deserializer};
use tokio::time::Instant;

use super::{Github, denied, says, unavailable};
use crate::domain::failure::Failure;
use crate::domain::ids::{FileKind, GitSha, VideoKey};
use crate::domain::plan::Blobs;

/// The most file names kept that belong to no video.
const IGNORED_MAX: usize = 100;

/// The most comparisons of two commits that are remembered.
const COMPARED_MAX: usize = 1024;

/// One file at the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The blob's name, which its bytes can be checked against.
    pub sha: GitSha,
    /// The blob's size in bytes: of an LFS file, the pointer's.
    pub size: u64,
}

/// What there is of a video at the head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// `<lesson_id>_<video_id>.mp4`
    pub mp4: Option<Entry>,
    /// `<lesson_id>_<video_id>.json`
    pub json: Option<Entry>,
}

impl Pair {
    /// The names of both blobs.
    pub fn blobs(&self) -> Blobs {
        (self.mp4.map(|e| e.sha), self.json.map(|e| e.sha))
    }
}

/// The videos folder as it was at one commit.
#[derive(Debug)]
pub struct Listing {
    /// The commit: forty zeros for a repository without any.
    pub head: GitSha,
    /// Whether everything is listed; if not, [`Github::lookup`] says what a listing lacks.
    pub complete: bool,
    /// Every listed video.
    pub files: Arc<HashMap<VideoKey, Pair>>,
    /// The names of some files in the folder that belong to no video: at most 100.
    pub ignored: Arc<[String]>,
}

/// Whether a listing is as new as the pushes that asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It is, or the branch was forced elsewhere since: then the head is the truth.
    Fresh,
    /// GitHub does not serve the pushed commit yet.
    Behind,
}

/// (the pushed commit, the head)
pub(super) type Comparison = (GitSha, GitSha);

/// What the last fetch left behind; whoever holds its lock is the one who fetches.
#[derive(Default)]
pub(super) struct Shared {
    last: Option<Fetched>,
    seen: Option<Seen>,
}

/// The outcome of the last fetch, failures included: those who waited for it share them too.
struct Fetched {
    began: Instant,
    ended: Instant,
    outcome: Result<Arc<Listing>, Failure>,
}

/// The last listing, to be asked about with its ETag: an unchanged head costs no quota.
struct Seen {
    etag: Option<HeaderValue>,
    tree: GitSha,
    folder: Option<GitSha>,
    listing: Arc<Listing>,
}

#[derive(Deserialize)]
struct Commit {
    sha: GitSha,
    commit: CommitBody,
}

#[derive(Deserialize)]
struct CommitBody {
    tree: TreeRef,
}

#[derive(Deserialize)]
struct TreeRef {
    sha: GitSha,
}

#[derive(Deserialize)]
struct Tree<'a> {
    #[serde(borrow)]
    tree: Vec<TreeEntry<'a>>,
    truncated: bool,
}

#[derive(Deserialize)]
struct TreeEntry<'a> {
    #[serde(borrow)]
    path: Cow<'a, str>,
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    sha: GitSha,
    size: Option<u64>,
}

#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    sha: GitSha,
    size: u64,
}

#[derive(Deserialize)]
struct Compare<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
}

impl Github {
    /// The folder at the head, fetched at or after `not_before`.
    ///
    /// Callers share a fetch that began late enough for them; while an earlier one is under way
    /// they wait, and the first of them starts the next for all. After [`Freshness::Behind`], ask
    /// again with the present moment. A caller that goes away takes nothing from the others.
    ///
    /// # Errors
    /// GitHub cannot be read now, or not with this token.
    pub async fn listing(&self, not_before: Instant) -> Result<Arc<Listing>, Failure> {
        let called = Instant::now();
        let mut shared = self.shared.lock().await;
        if let Some(last) = &shared.last
            && last.began >= not_before.min(called)
            // A failure is shared by those who waited for it; whoever comes later tries again.
            && (last.outcome.is_ok() || called <= last.ended)
        {
            return last.outcome.clone();
        }
        let began = Instant::now();
        let outcome = self.fetch(&mut shared.seen).await;
        shared.last = Some(Fetched {
            began,
            ended: Instant::now(),
            outcome: outcome.clone(),
        });
        outcome
    }

    async fn fetch(&self, seen: &mut Option<Seen>) -> Result<Arc<Listing>, Failure> {
        let head = match &self.branch {
            Some(branch) => format!("heads/{branch}"),
            None => "HEAD".to_owned(),
        };
        let mut url = self.endpoint(["commits"].into_iter().chain(head.split('/')));
        // The answer lists changed files too, which nobody here reads.
        url.set_query(Some("per_page=1"));
        let mut headers = HeaderMap::new();
        if let Some(etag) = seen.as_ref().and_then(|seen| seen.etag.clone()) {
            headers.insert(IF_NONE_MATCH, etag);
        }
        let answer = self.get(url, headers).await?;
        match (answer.status, &*seen) {
            (StatusCode::NOT_MODIFIED, Some(seen)) => return Ok(Arc::clone(&seen.listing)),
            (StatusCode::CONFLICT, _) if says(&answer.body, "repository is empty") => {
                return Ok(Arc::new(Listing::empty()));
            }
            (StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY, _) => {
                return Err(denied(
                    "GitHub shows no such repository or branch: check GITHUB_REPOSITORY, GITHUB_BRANCH, and that GITHUB_TOKEN may read its contents",
                ));
            }
            _ => {}
        }
        let commit: Commit = answer.json()?;
        let tree = commit.commit.tree.sha;
        let (folder, complete) = match &*seen {
            Some(seen) if seen.tree == tree => (seen.folder, seen.listing.complete),
            _ => self.find_folder(tree).await?,
        };
        let listing = match (folder, &*seen) {
            // Trees are named by their content: the same name is the same folder.
            (Some(sha), Some(seen)) if seen.folder == Some(sha) => seen.listing.at(commit.sha),
            (Some(sha), _) => self.read_folder(sha).await?.at(commit.sha),
            (None, _) => Listing {
                complete,
                ..Listing::empty().at(commit.sha)
            },
        };
        let listing = Arc::new(listing);
        *seen = Some(Seen {
            etag: answer.headers.get(ETAG).cloned(),
            tree,
            folder,
            listing: Arc::clone(&listing),
        });
        Ok(listing)
    }

    /// Walks from the root tree to the videos folder. `None` with `true`: there is none.
    async fn find_folder(&self, root: GitSha) -> Result<(Option<GitSha>, bool), Failure> {
        let mut sha = root;
        for name in &self.videos_dir {
            let answer = self.get(self.tree_url(sha), HeaderMap::new()).await?;
            let tree: Tree<'_> = answer.json()?;
            let mut entries = tree.tree.iter();
            match entries.find(|entry| entry.path == *name && entry.kind == "tree") {
                Some(entry) => sha = entry.sha,
                None => return Ok((None, !tree.truncated)),
            }
        }
        Ok((Some(sha), true))
    }

    async fn read_folder(&self, sha: GitSha) -> Result<Listing, Failure> {
        self.get(self.tree_url(sha), HeaderMap::new()).await?.json()
    }

    fn tree_url(&self, sha: GitSha) -> reqwest::Url {
        self.endpoint(["git", "trees", &sha.to_string()])
    }

    /// What there is of one video at `head`: for what an incomplete listing lacks. Two calls.
    ///
    /// # Errors
    /// As for [`Github::listing`].
    pub async fn lookup(&self, key: VideoKey, head: GitSha) -> Result<Pair, Failure> {
        Ok(Pair {
            mp4: self.lookup_file(key, FileKind::Video, head).await?,
            json: self.lookup_file(key, FileKind::Metadata, head).await?,
        })
    }

    async fn lookup_file(
        &self,
        key: VideoKey,
        kind: FileKind,
        head: GitSha,
    ) -> Result<Option<Entry>, Failure> {
        let name = key.file_name(kind);
        let folders = self.videos_dir.iter().map(String::as_str);
        let path = ["contents"].into_iter().chain(folders).chain([&*name]);
        let mut url = self.endpoint(path);
        url.set_query(Some(&format!("ref={head}")));
        let accept = HeaderValue::from_static("application/vnd.github.object+json");
        let answer = self
            .get(url, HeaderMap::from_iter([(ACCEPT, accept)]))
            .await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let Content { kind, sha, size } = answer.json()?;
        Ok((kind == "file").then_some(Entry { sha, size }))
    }

    /// Whether `listing` is as new as each of the `wanted` commits.
    ///
    /// # Errors
    /// As for [`Github::listing`].
    pub async fn freshness(
        &self,
        listing: &Listing,
        wanted: &[GitSha],
    ) -> Result<Freshness, Failure> {
        for &wanted in wanted {
            if self.compare(wanted, listing.head).await? == Freshness::Behind {
                return Ok(Freshness::Behind);
            }
        }
        Ok(Freshness::Fresh)
    }

    async fn compare(&self, wanted: GitSha, head: GitSha) -> Result<Freshness, Failure> {
        if wanted == head {
            return Ok(Freshness::Fresh);
        }
        if let Some(&known) = self.compared().get(&(wanted, head)) {
            return Ok(known);
        }
        let mut url = self.endpoint(["compare", &format!("{wanted}...{head}")]);
        url.set_query(Some("per_page=1"));
        let answer = self.get(url, HeaderMap::new()).await?;
        if matches!(
            answer.status,
            StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY
        ) {
            // Not served yet: no fact about the two commits, so nothing to remember.
            return Ok(Freshness::Behind);
        }
        let Compare { status } = answer.json()?;
        let freshness = match &*status {
            "identical" | "ahead" | "diverged" => Freshness::Fresh,
            "behind" => Freshness::Behind,
            _ => return Err(unavailable("GitHub compared two commits in an unknown way")),
        };
        let mut compared = self.compared();
        if compared.len() >= COMPARED_MAX {
            compared.clear();
        }
        compared.insert((wanted, head), freshness);
        Ok(freshness)
    }

    fn compared(&self) -> std::sync::MutexGuard<'_, HashMap<Comparison, Freshness>> {
        self.compared.lock().expect("no panic while held")
    }
}

impl Listing {
    /// What there is without any commit.
    fn empty() -> Self {
        Self {
            head: GitSha::from_bytes([0; 20]),
            complete: true,
            files: Arc::default(),
            ignored: Arc::default(),
        }
    }

    /// The same folder at another commit.
    fn at(&self, head: GitSha) -> Self {
        Self {
            head,
            complete: self.complete,
            files: Arc::clone(&self.files),
            ignored: Arc::clone(&self.ignored),
        }
    }
}

/// The folder, as the trees API describes it, at no commit yet.
impl<'de> Deserialize<'de> for Listing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tree = Tree::deserialize(deserializer)?;
        let mut files: HashMap<VideoKey, Pair> = HashMap::new();
        let mut ignored = Vec::new();
        for entry in tree.tree.iter().filter(|entry| entry.kind == "blob") {
            match (VideoKey::parse_file_name(&entry.path), entry.size) {
                (Some((key, kind)), Some(size)) => {
                    let sha = entry.sha;
                    *files.entry(key).or_default().slot(kind) = Some(Entry { sha, size });
                }
                _ if ignored.len() < IGNORED_MAX => ignored.push(entry.path.to_string()),
                _ => {}
            }
        }
        Ok(Listing {
            complete: !tree.truncated,
            files: Arc::new(files),
            ignored: ignored.into(),
            ..Listing::empty()
        })
    }
}

impl Pair {
    fn slot(&mut self, kind: FileKind) -> &mut Option<Entry> {
        match kind {
            FileKind::Video => &mut self.mp4,
            FileKind::Metadata => &mut self.json,
        }
    }
}
