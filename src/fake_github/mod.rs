//! A fake GitHub with one repository, on loopback, for the demo and the tests.
//!
//! It serves the REST and LFS calls that read a repository, with GitHub's shapes, status codes and quirks,
//! from real git objects with real SHAs, and derives its webhooks from the same objects. The repository
//! is in memory ([`FakeGithub::start`]) or on disk ([`FakeGithub::serve_git`]).

mod hooks;
mod lfs;
mod local;
mod model;
mod routes;
mod webhooks;

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::{self, Request};
use axum::http::Method;
use axum::response::Response;
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use local::{LocalError, git};
pub use model::{Changes, Repository};
pub use webhooks::Delivery;

use crate::domain::ids::GitSha;
use local::Local;

/// A free port of the loopback interface.
const ANY_PORT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
/// The id that the repository keeps when it is renamed.
const REPOSITORY_ID: u64 = 1_138_000_042;
/// How a payload says "no such commit".
const NO_COMMIT: GitSha = GitSha::from_bytes([0; 20]);

/// The fake. Dropping it stops the server that it started.
pub struct FakeGithub {
    shared: Arc<Shared>,
    server: JoinSet<()>,
}

struct Shared(Mutex<State>);

/// The repository and how it is served.
pub struct State {
    /// Its objects and branches.
    pub repository: Repository,
    local: Option<Local>,
    /// Base URL of the API, without a slash at its end.
    url: String,
    /// Base URL of the LFS objects (`/lfs-storage/<oid>`); GitHub has them on another host.
    pub storage_url: String,
    /// If set, the repository is private: only this token may read it.
    pub token: Option<String>,
    /// Calls left, and the Unix second of the next reset, which the fake does not carry out. `None`: no limit.
    pub quota: Option<(u32, u64)>,
    /// Entries after which a tree is truncated.
    pub tree_entries_max: usize,
    hooks: Vec<hooks::Hook>,
    /// How often the content of a blob was served.
    blob_reads: HashMap<GitSha, u64>,
}

impl State {
    fn clone_url(&self) -> String {
        format!("{}/{}.git", self.url, self.repository.full_name)
    }
}

impl Shared {
    // The data stays consistent between statements: a test's panic elsewhere must not hide its cause.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeGithub {
    /// A fake with an empty repository of this name (`owner/name`) that does not listen anywhere yet: serve
    /// [`FakeGithub::router`] at `url`, which has no slash at its end.
    pub fn new(full_name: &str, url: String) -> Self {
        Self::with(Repository::new(full_name), None, url)
    }

    fn with(repository: Repository, local: Option<Local>, url: String) -> Self {
        let state = State {
            repository,
            local,
            storage_url: url.clone(),
            url,
            token: None,
            quota: None,
            tree_entries_max: routes::TREE_ENTRIES_MAX,
            hooks: Vec::new(),
            blob_reads: HashMap::new(),
        };
        Self {
            shared: Arc::new(Shared(Mutex::new(state))),
            server: JoinSet::new(),
        }
    }

    /// Serves an empty repository of this name (`owner/name`) on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No loopback port is available.
    pub async fn start(full_name: &str) -> std::io::Result<Self> {
        Self::start_at(full_name, ANY_PORT).await
    }

    /// The same at this address.
    ///
    /// # Errors
    /// The address is not available.
    pub async fn start_at(full_name: &str, address: SocketAddr) -> std::io::Result<Self> {
        Self::serve(Repository::new(full_name), None, address).await
    }

    /// Serves HEAD of a local repository, bare or not, under this name.
    ///
    /// HEAD is read once; blobs and LFS objects are read from disk on each request.
    ///
    /// # Errors
    /// See [`LocalError`].
    pub async fn serve_git(full_name: &str, path: &Path) -> Result<Self, LocalError> {
        let (local, repository) = Local::open(path, full_name).await?;
        Ok(Self::serve(repository, Some(local), ANY_PORT).await?)
    }

    async fn serve(
        repository: Repository,
        local: Option<Local>,
        address: SocketAddr,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut fake = Self::with(repository, local, url);
        let router = fake.router();
        fake.server.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "fake GitHub server stopped unexpectedly");
            }
        });
        Ok(fake)
    }

    /// Every route: the API, the git host and the LFS storage.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/{*path}", any(serve))
            .with_state(Arc::clone(&self.shared))
    }

    /// What is served and how. No request is answered while the guard is held.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// The API's base URL, without a slash at its end.
    pub fn url(&self) -> String {
        self.state().url.clone()
    }

    /// The URL for git and LFS; the API shows it as `clone_url`.
    pub fn clone_url(&self) -> String {
        self.state().clone_url()
    }

    /// Commits changes on the default branch.
    pub fn commit(&self, changes: impl FnOnce(Changes) -> Changes) -> GitSha {
        let changes = changes(Changes::default());
        self.state().repository.apply(changes)
    }

    /// The default branch's commit as git has it; forty zeros before the first one.
    pub fn head(&self) -> GitSha {
        self.state().repository.head().unwrap_or(NO_COMMIT)
    }

    /// The blob of a path on the default branch.
    pub fn blob_sha(&self, path: &str) -> Option<GitSha> {
        let repository = &self.state().repository;
        Some(repository.entry(repository.head()?, path)?.sha)
    }

    /// How often the content of a blob was requested.
    pub fn blob_reads(&self, blob: GitSha) -> u64 {
        self.state().blob_reads.get(&blob).copied().unwrap_or(0)
    }

    /// The webhook of a push that moved the default branch. Forty zeros in `before`: it was created;
    /// in `after`: it was deleted.
    pub fn push(&self, before: GitSha, after: GitSha) -> Delivery {
        let state = self.state();
        let branch = format!("refs/heads/{}", state.repository.default_branch);
        state.push(&branch, before, after)
    }

    /// Adds a webhook as a call of the API would (`{"config": {"url": …, "secret": …}}`): its id.
    pub fn add_hook(&self, body: &serde_json::Value) -> u64 {
        self.state().add_hook(body)
    }

    /// Sends a delivery to a hook's receiver and records the result, as the API then shows it.
    pub async fn deliver(&self, hook: u64, delivery: &Delivery) {
        self.shared.deliver(hook, delivery.clone()).await;
    }
}

/// Routes every request: GitHub's API, its git host and its LFS storage.
async fn serve(
    extract::State(shared): extract::State<Arc<Shared>>,
    extract::Path(path): extract::Path<String>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let segments: Vec<&str> = path.split('/').collect();
    match &segments[..] {
        ["lfs-storage", oid] if parts.method == Method::GET => {
            lfs::download(&shared, oid, &parts).await
        }
        [owner, name, "info", "lfs", "objects", "batch"] if parts.method == Method::POST => {
            lfs::batch(&shared, &format!("{owner}/{name}"), &parts, body).await
        }
        ["repos", owner, name, "hooks", rest @ ..]
            if shared.state().repository.full_name == format!("{owner}/{name}") =>
        {
            hooks::answer(&shared, &parts, body, rest).await
        }
        segments => routes::api(&shared, &parts, segments).await,
    }
}
