//! A GitHub with one repository, on loopback: what the demo and the tests talk to instead of github.com.
//!
//! It answers the REST and LFS calls that concern reading a repository, with GitHub's shapes, status
//! codes and quirks, from real git objects with real SHAs; and it derives its webhooks from the same
//! objects. The repository is in memory ([`FakeGithub::start`]) or is one on this disk
//! ([`FakeGithub::serve_git`]).

mod faults;
mod hooks;
mod lfs;
mod local;
mod model;
mod routes;
#[cfg(test)]
mod tests;
mod webhooks;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::routing::any;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use faults::{Call, Fault, Pause};
pub use local::{LocalError, git};
pub use model::Changes;
pub use webhooks::Delivery;

use crate::domain::ids::GitSha;
use faults::Traffic;
use local::Local;
use model::Repository;

/// A free port of the loopback interface.
const ANY_PORT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
/// The id that the repository keeps when it is renamed.
const REPOSITORY_ID: u64 = 1_138_000_042;
/// How a payload says "no such commit".
const NO_COMMIT: GitSha = GitSha::from_bytes([0; 20]);

/// A running fake. It stops when dropped.
pub struct FakeGithub {
    shared: Arc<Shared>,
    servers: JoinSet<()>,
}

/// What the server's tasks and the handle share.
struct Shared {
    state: Mutex<State>,
    traffic: Mutex<Traffic>,
    stopping: CancellationToken,
}

/// The repository and how it is served.
struct State {
    repository: Repository,
    local: Option<Local>,
    /// `http://127.0.0.1:<port>`
    url: String,
    /// Where LFS objects are; the same unless told otherwise.
    storage_url: String,
    /// Set: the repository is private.
    token: Option<String>,
    /// Calls left, and the Unix second at which there are more.
    quota: Option<(u32, u64)>,
    tree_entries_max: usize,
    hooks: Vec<hooks::Hook>,
}

impl State {
    fn clone_url(&self) -> String {
        format!("{}/{}.git", self.url, self.repository.full_name)
    }
}

impl Shared {
    // The data stays consistent between statements: a test's panic elsewhere must not hide its cause.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn traffic(&self) -> MutexGuard<'_, Traffic> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeGithub {
    /// Serves an empty repository of this name (`owner/name`) on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no loopback port can be had.
    pub async fn start(full_name: &str) -> std::io::Result<Self> {
        Self::start_at(full_name, ANY_PORT).await
    }

    /// The same at this address.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn start_at(full_name: &str, address: SocketAddr) -> std::io::Result<Self> {
        Self::serve(Repository::new(full_name), None, address).await
    }

    /// Serves HEAD of a local repository, bare or not, under this name.
    ///
    /// HEAD is read once; blobs and LFS objects are read from disk whenever they are asked for.
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
        let state = State {
            repository,
            local,
            storage_url: url.clone(),
            url,
            token: None,
            quota: None,
            tree_entries_max: routes::TREE_ENTRIES_MAX,
            hooks: Vec::new(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            traffic: Mutex::default(),
            stopping: CancellationToken::new(),
        });
        let mut fake_github = Self {
            shared,
            servers: JoinSet::new(),
        };
        fake_github.listen(listener);
        Ok(fake_github)
    }

    fn listen(&mut self, listener: TcpListener) {
        let observe =
            axum::middleware::from_fn_with_state(Arc::clone(&self.shared), faults::observe);
        let router = Router::new()
            .route("/{*path}", any(routes::serve))
            .with_state(Arc::clone(&self.shared))
            .layer(observe);
        let stopping = self.shared.stopping.clone().cancelled_owned();
        self.servers.spawn(async move {
            let server = axum::serve(listener, router).with_graceful_shutdown(stopping);
            if let Err(error) = server.await {
                tracing::error!(%error, "the fake GitHub stopped");
            }
        });
    }

    /// Stops listening and waits until the answers under way are sent.
    pub async fn stop(mut self) {
        self.shared.stopping.cancel();
        while self.servers.join_next().await.is_some() {}
    }

    /// The API's base URL, without a slash at its end.
    pub fn url(&self) -> String {
        self.shared.state().url.clone()
    }

    /// Where git and LFS are, as the API's `clone_url` says it too.
    pub fn clone_url(&self) -> String {
        self.shared.state().clone_url()
    }

    /// The repository's name, `owner/name`.
    pub fn full_name(&self) -> String {
        self.shared.state().repository.full_name.clone()
    }

    // What the repository contains.

    /// Commits changes on the default branch.
    pub fn commit(&self, changes: impl FnOnce(Changes) -> Changes) -> GitSha {
        let changes = changes(Changes::default());
        self.shared.state().repository.apply(changes)
    }

    /// Merges a commit into the default branch; where both changed a file, the merged one wins.
    pub fn merge(&self, other: GitSha) -> GitSha {
        let head = self.head();
        self.shared.state().repository.merge(head, other)
    }

    /// Moves the default branch, as `git push --force` does.
    pub fn force_to(&self, commit: GitSha) {
        let name = self.shared.state().repository.default_branch.clone();
        self.set_branch(&name, Some(commit));
    }

    /// Creates, moves or (with none) deletes a branch.
    pub fn set_branch(&self, name: &str, commit: Option<GitSha>) {
        let branches = &mut self.shared.state().repository.branches;
        match commit {
            Some(commit) => branches.insert(name.to_owned(), commit),
            None => branches.remove(name),
        };
    }

    /// Forgets the trees of all commits but the head: thousands of commits to a large folder are gigabytes.
    /// How commits relate is still known; compared with a forgotten tree, every file is an added one.
    pub fn forget_old_trees(&self) {
        self.shared.state().repository.forget_old_trees();
    }

    /// The default branch's commit as git has it; forty zeros before the first one.
    pub fn head(&self) -> GitSha {
        self.shared.state().repository.head().unwrap_or(NO_COMMIT)
    }

    /// The blob of a path on the default branch.
    pub fn blob_sha(&self, path: &str) -> Option<GitSha> {
        let repository = &self.shared.state().repository;
        Some(repository.entry(repository.head()?, path)?.sha)
    }

    // How it is served.

    /// Renames the repository: the old name answers 301 from now on.
    pub fn rename(&self, full_name: &str) {
        let repository = &mut self.shared.state().repository;
        let old = std::mem::replace(&mut repository.full_name, full_name.to_owned());
        repository.former_names.retain(|name| name != full_name);
        repository.former_names.push(old);
    }

    /// Lets the API lag: it shows the default branch at this commit and denies younger ones. None: no lag.
    pub fn serve_head(&self, commit: Option<GitSha>) {
        self.shared.state().repository.served_head = commit;
    }

    /// Makes the repository private: only this token may read it.
    pub fn require_token(&self, token: &str) {
        self.shared.state().token = Some(token.to_owned());
    }

    /// Lets the API answer so many more calls until `resets_at` (Unix seconds). It does not reset by itself.
    pub fn quota(&self, remaining: u32, resets_at: u64) {
        self.shared.state().quota = Some((remaining, resets_at));
    }

    /// Takes the quota away again.
    pub fn no_quota(&self) {
        self.shared.state().quota = None;
    }

    /// Truncates answers of the trees API after so many entries instead of GitHub's 100,000.
    pub fn truncate_trees_at(&self, entries: usize) {
        self.shared.state().tree_entries_max = entries;
    }

    /// Serves LFS objects (`/lfs-storage/<oid>`) from another host, 127.0.0.2, as GitHub does.
    ///
    /// # Errors
    /// On systems where only 127.0.0.1 is loopback.
    pub async fn lfs_on_another_host(&mut self) -> std::io::Result<()> {
        let listener = TcpListener::bind("127.0.0.2:0").await?;
        self.shared.state().storage_url = format!("http://{}", listener.local_addr()?);
        self.listen(listener);
        Ok(())
    }

    // What tests see and do at the wire.

    /// Every call so far, in the order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.traffic().calls()
    }

    /// The same, and forgets them.
    pub fn take_calls(&self) -> Vec<Call> {
        let mut traffic = self.shared.traffic();
        let calls = traffic.calls();
        traffic.forget_calls();
        calls
    }

    /// Spoils every matching answer. The first fault that matches counts.
    pub fn fault(&self, matches: impl Fn(&Call) -> bool + Send + Sync + 'static, fault: Fault) {
        let matches = Box::new(matches);
        self.shared.traffic().add_fault(matches, fault, false);
    }

    /// Spoils the next matching answer only.
    pub fn fault_once(
        &self,
        matches: impl Fn(&Call) -> bool + Send + Sync + 'static,
        fault: Fault,
    ) {
        let matches = Box::new(matches);
        self.shared.traffic().add_fault(matches, fault, true);
    }

    /// Answers as it should again.
    pub fn clear_faults(&self) {
        self.shared.traffic().clear_faults();
    }

    /// Holds every matching request until the guard is dropped.
    pub fn pause(&self, matches: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Pause {
        self.shared.traffic().add_pause(Box::new(matches))
    }

    // Webhooks.

    /// The webhook of a push that moved the default branch. Forty zeros in `before`: it was created;
    /// in `after`: it was deleted.
    pub fn push(&self, before: GitSha, after: GitSha) -> Delivery {
        let branch = self.shared.state().repository.default_branch.clone();
        self.push_to(&format!("refs/heads/{branch}"), before, after)
    }

    /// The webhook of a push to another ref, such as `refs/heads/draft` or `refs/tags/v1`.
    pub fn push_to(&self, git_ref: &str, before: GitSha, after: GitSha) -> Delivery {
        webhooks::push(&self.shared.state(), git_ref, before, after)
    }

    /// The webhook that GitHub sends when a hook is created.
    pub fn ping(&self) -> Delivery {
        webhooks::ping(&self.shared.state())
    }

    /// Adds a webhook as a call of the API would (`{"config": {"url": …, "secret": …}}`): its number.
    pub fn add_hook(&self, body: &serde_json::Value) -> u64 {
        self.shared.state().add_hook(body)
    }

    /// Changes a webhook as a call of the API would.
    pub fn change_hook(&self, hook: u64, body: &serde_json::Value) {
        self.shared.state().change_hook(hook, body);
    }

    /// Sends a delivery to a hook's receiver and remembers how it went, as the API then shows it.
    pub async fn deliver(&self, hook: u64, delivery: &Delivery) {
        self.shared.deliver(hook, delivery.clone()).await;
    }

    /// Remembers an attempt at a delivery that nobody made: `timed out`, 0.
    pub fn record(&self, hook: u64, delivery: &Delivery, status: &str, code: u16) {
        self.shared.record(hook, delivery, status, code);
    }
}

impl Drop for FakeGithub {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
        self.servers.detach_all();
    }
}
