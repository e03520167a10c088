//! Listings: which videos the branch's head has, in one fetch for all concurrent callers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use reqwest::StatusCode;
use reqwest::header::{ACCEPT, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use serde::de::DeserializeSeed as _;
use serde::{Deserialize, Deserializer};
use tokio::time::Instant;

use super::tree::{TreeEntry, TreeSeed};
use super::{Github, denied, says, unavailable};
use crate::domain::failure::Failure;
use crate::domain::head::Relation;
use crate::domain::ids::{FileKind, GitSha, VideoKey};
use crate::domain::plan::{Entry, Pair};

/// The most names of files kept that do not belong to a video.
const IGNORED_MAX: usize = 100;

/// The most comparisons of two commits that are remembered.
const COMPARED_MAX: usize = 1024;

/// The videos folder as it was at one commit.
#[derive(Debug)]
pub struct Listing {
    /// The commit; all zeros for an empty repository.
    pub head: GitSha,
    /// Whether every file is listed. If GitHub truncated the listing, [`Github::lookup`] finds the
    /// files it lacks.
    pub complete: bool,
    /// Every listed video.
    pub files: Arc<HashMap<VideoKey, Pair>>,
    /// Names of files in the folder that do not belong to a video; at most 100.
    pub ignored: Arc<[String]>,
}

/// Two commits: another one and a head.
pub(super) type Comparison = (GitSha, GitSha);

/// The result of the last fetch. The caller that holds its lock does the next one.
#[derive(Default)]
pub(super) struct Shared {
    last: Option<Fetched>,
    seen: Option<Seen>,
}

/// The last fetch. Callers that waited for it share its failure too.
struct Fetched {
    began: Instant,
    ended: Instant,
    outcome: Result<Arc<Listing>, Failure>,
}

/// The last listing and its ETag: asking about an unchanged head costs no rate limit.
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

/// The entries of the videos folder that are kept.
#[derive(Default)]
struct Folder {
    files: HashMap<VideoKey, Pair>,
    ignored: Vec<String>,
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
    /// Callers share a fetch that began late enough for them. While an earlier fetch runs they wait,
    /// and the first of them starts the next one for all. Dropping the future of one caller does not affect
    /// the others.
    ///
    /// # Errors
    /// GitHub is unavailable, limits the rate, or denies access.
    pub async fn listing(&self, not_before: Instant) -> Result<Arc<Listing>, Failure> {
        let called = Instant::now();
        let mut shared = self.shared.lock().await;
        if let Some(last) = &shared.last
            && last.began >= not_before.min(called)
            // A failure is shared by the callers that waited for it; later ones try again.
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
        // Keeps the list of changed files in the response short: it is not used.
        url.set_query(Some("per_page=1"));
        let mut headers = HeaderMap::new();
        if let Some(etag) = seen.as_ref().and_then(|seen| seen.etag.clone()) {
            headers.insert(IF_NONE_MATCH, etag);
        }
        let response = self.get(url, headers).await?;
        match (response.status, &*seen) {
            (StatusCode::NOT_MODIFIED, Some(seen)) => return Ok(Arc::clone(&seen.listing)),
            (StatusCode::CONFLICT, _) if says(&response.body, "repository is empty") => {
                return Ok(Arc::new(Listing::empty()));
            }
            (StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY, _) => {
                return Err(denied(
                    "GitHub did not find the repository or branch; check GITHUB_REPOSITORY and GITHUB_BRANCH, and check that GITHUB_TOKEN can read the repository's contents.",
                ));
            }
            _ => {}
        }
        let commit: Commit = response.json()?;
        let tree = commit.commit.tree.sha;
        let (folder, complete) = match &*seen {
            Some(seen) if seen.tree == tree => (seen.folder, seen.listing.complete),
            _ => self.find_folder(tree).await?,
        };
        let listing = match (folder, &*seen) {
            // A tree's SHA is a hash of its content, so the folder did not change.
            (Some(sha), Some(seen)) if seen.folder == Some(sha) => seen.listing.at(commit.sha),
            (Some(sha), _) => self.read_folder(sha).await?.at(commit.sha),
            (None, _) => Listing {
                complete,
                ..Listing::empty().at(commit.sha)
            },
        };
        let listing = Arc::new(listing);
        *seen = Some(Seen {
            etag: response.headers.get(ETAG).cloned(),
            tree,
            folder,
            listing: Arc::clone(&listing),
        });
        Ok(listing)
    }

    /// Walks from the root tree to the videos folder. Returns its tree, and whether it is certain that
    /// there is none if it was not found.
    async fn find_folder(&self, root: GitSha) -> Result<(Option<GitSha>, bool), Failure> {
        let mut sha = root;
        for name in &self.videos_dir {
            let find = |(name, found): &mut (String, Option<GitSha>), entry: TreeEntry| {
                if entry.path == *name && entry.kind == "tree" {
                    *found = Some(entry.sha);
                }
            };
            let ((_, found), complete) = self.tree(sha, (name.clone(), None), find).await?;
            match found {
                Some(found) => sha = found,
                None => return Ok((None, complete)),
            }
        }
        Ok((Some(sha), true))
    }

    async fn read_folder(&self, sha: GitSha) -> Result<Listing, Failure> {
        let (folder, complete) = self.tree(sha, Folder::default(), Folder::add).await?;
        Ok(Listing {
            complete,
            files: Arc::new(folder.files),
            ignored: folder.ignored.into(),
            ..Listing::empty()
        })
    }

    /// The files of one video at `head`, for videos that a truncated listing lacks. Makes two calls.
    ///
    /// # Errors
    /// As for [`Github::listing`].
    pub async fn lookup(&self, key: VideoKey, head: GitSha) -> Result<Pair, Failure> {
        self.keep_reserve()?;
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
        let response = self
            .get(url, HeaderMap::from_iter([(ACCEPT, accept)]))
            .await?;
        if response.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let Content { kind, sha, size } = response.json()?;
        Ok((kind == "file").then_some(Entry { sha, size }))
    }

    /// How `head` relates to another commit. [`Relation::Unknown`] if GitHub cannot tell, for any reason.
    pub async fn relation(&self, commit: GitSha, head: GitSha) -> Relation {
        if let Some(&known) = self.compared().get(&(commit, head)) {
            return known;
        }
        let relation = match self.compare(commit, head).await {
            Ok(relation) => relation,
            Err(failure) => {
                tracing::warn!(code = %failure.code, "failed to compare commits: {}", failure.message);
                Relation::Unknown
            }
        };
        // What is unknown may become known: GitHub does not serve a pushed commit yet, or is unavailable.
        if relation != Relation::Unknown {
            let mut compared = self.compared();
            // Cleared at once: few of the pairs will be compared again, at one call each.
            if compared.len() >= COMPARED_MAX {
                compared.clear();
            }
            compared.insert((commit, head), relation);
        }
        relation
    }

    async fn compare(&self, commit: GitSha, head: GitSha) -> Result<Relation, Failure> {
        let mut url = self.endpoint(["compare", &format!("{commit}...{head}")]);
        url.set_query(Some("per_page=1"));
        let response = self.get(url, HeaderMap::new()).await?;
        if matches!(
            response.status,
            StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY
        ) {
            return Ok(Relation::Unknown);
        }
        let Compare { status } = response.json()?;
        match &*status {
            "identical" | "ahead" => Ok(Relation::Ahead),
            "diverged" => Ok(Relation::Diverged),
            "behind" => Ok(Relation::Behind),
            _ => Err(unavailable(
                "GitHub returned an unrecognized comparison result.",
            )),
        }
    }

    fn compared(&self) -> std::sync::MutexGuard<'_, HashMap<Comparison, Relation>> {
        self.compared.lock().expect("no panic while held")
    }
}

impl Listing {
    /// The listing of an empty repository.
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

impl Folder {
    fn add(&mut self, entry: TreeEntry) {
        if entry.kind != "blob" {
            return;
        }
        match (VideoKey::parse_file_name(&entry.path), entry.size) {
            (Some((key, kind)), Some(size)) => {
                let sha = entry.sha;
                *self.files.entry(key).or_default().slot(kind) = Some(Entry { sha, size });
            }
            _ if self.ignored.len() < IGNORED_MAX => self.ignored.push(entry.path),
            _ => {}
        }
    }
}

/// From a whole response of the trees API, which does not name the commit.
impl<'de> Deserialize<'de> for Listing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut folder = Folder::default();
        let truncated = TreeSeed {
            folded: &mut folder,
            fold: Folder::add,
        }
        .deserialize(deserializer)?;
        Ok(Listing {
            complete: !truncated,
            files: Arc::new(folder.files),
            ignored: folder.ignored.into(),
            ..Listing::empty()
        })
    }
}
