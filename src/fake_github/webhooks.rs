//! Webhooks as GitHub sends them, derived from the repository.

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::Sha256;

use super::model::Repository;
use super::routes::repository_json;
use super::{NO_COMMIT, State};
use crate::domain::ids::GitSha;

/// A push payload lists at most this many commits.
/// Source: GitHub's webhook documentation of `push` (`commits`).
const COMMITS_MAX: usize = 2048;
/// A commit of a payload lists at most this many files.
/// Source: GitHub's webhook documentation of `push` (`commits`).
const COMMIT_FILES_MAX: usize = 3000;
/// The hook that every delivery comes from.
pub(super) const HOOK_ID: u64 = 501_000_001;

/// A webhook that can be sent any number of times, each time with the same GUID, as *Redeliver* does.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// `push` or `ping`.
    pub event: &'static str,
    /// `X-GitHub-Delivery`.
    pub guid: String,
    /// What is sent as JSON, or inside the form field `payload`.
    pub payload: Value,
    form: bool,
}

impl Delivery {
    fn new(event: &'static str, payload: Value) -> Self {
        Self {
            event,
            guid: uuid::Uuid::new_v4().to_string(),
            payload,
            form: false,
        }
    }

    /// The same as a form, which is the default of GitHub's UI.
    pub fn as_form(mut self) -> Self {
        self.form = true;
        self
    }

    /// The body, byte for byte.
    pub fn body(&self) -> Bytes {
        let json = self.payload.to_string();
        if !self.form {
            return json.into();
        }
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("payload", &json).finish().into()
    }

    /// The headers of a hook without a secret: no signature.
    pub fn unsigned(&self) -> Vec<(&'static str, String)> {
        let content_type = if self.form {
            "application/x-www-form-urlencoded"
        } else {
            "application/json"
        };
        vec![
            ("content-type", content_type.to_owned()),
            ("user-agent", "GitHub-Hookshot/044aadd".to_owned()),
            ("x-github-event", self.event.to_owned()),
            ("x-github-delivery", self.guid.clone()),
            ("x-github-hook-id", HOOK_ID.to_string()),
            (
                "x-github-hook-installation-target-type",
                "repository".to_owned(),
            ),
            (
                "x-github-hook-installation-target-id",
                super::REPOSITORY_ID.to_string(),
            ),
        ]
    }

    /// The headers of a hook with this secret. The signatures cover the body as it is sent.
    pub fn signed(&self, secret: &str) -> Vec<(&'static str, String)> {
        let body = self.body();
        let mut sha1 = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("any length will do");
        sha1.update(&body);
        let mut sha256 =
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("any length will do");
        sha256.update(&body);
        let mut headers = self.unsigned();
        let sha1 = hex::encode(sha1.finalize().into_bytes());
        let sha256 = hex::encode(sha256.finalize().into_bytes());
        headers.push(("x-hub-signature", format!("sha1={sha1}")));
        headers.push(("x-hub-signature-256", format!("sha256={sha256}")));
        headers
    }
}

impl State {
    /// The webhook of a push that moved a ref, such as `refs/heads/draft` or `refs/tags/v1`.
    pub fn push(&self, git_ref: &str, before: GitSha, after: GitSha) -> Delivery {
        let repository = &self.repository;
        let (created, deleted) = (before.is_zero(), after.is_zero());
        let forced = !created && !deleted && !repository.reachable(after).contains(&before);
        let commits = if created || deleted {
            Vec::new()
        } else {
            repository.between(before, after)
        };
        // GitHub does not say which end it cuts; a receiver must not rely on either.
        let listed = &commits[commits.len().saturating_sub(COMMITS_MAX)..];
        let listed: Vec<_> = listed
            .iter()
            .map(|sha| commit_json(repository, git_ref, *sha, &self.url))
            .collect();
        let head = if deleted {
            Value::Null
        } else {
            commit_json(repository, git_ref, after, &self.url)
        };
        let web = format!("{}/{}", self.url, repository.full_name);
        let compare = if created {
            format!("{web}/commit/{after}")
        } else {
            format!("{web}/compare/{before}...{after}")
        };
        Delivery::new(
            "push",
            json!({
                "ref": git_ref,
                "before": before,
                "after": after,
                "created": created,
                "deleted": deleted,
                "forced": forced,
                "base_ref": null,
                "compare": compare,
                "commits": listed,
                "head_commit": head,
                "repository": hook_repository_json(self),
                "pusher": {"name": "openhands", "email": "openhands@all-hands.dev"},
                "sender": {"login": "openhands", "id": 1, "type": "User"},
            }),
        )
    }

    /// The webhook that GitHub sends when a hook is created.
    pub fn ping(&self) -> Delivery {
        Delivery::new(
            "ping",
            json!({
                "zen": "Keep it logically awesome.",
                "hook_id": HOOK_ID,
                "hook": {
                    "type": "Repository", "id": HOOK_ID, "name": "web", "active": true, "events": ["push"],
                    "config": {"content_type": "json", "insecure_ssl": "0"},
                },
                "repository": hook_repository_json(self),
                "sender": {"login": "openhands", "id": 1, "type": "User"},
            }),
        )
    }
}

/// In a payload the dates of a repository are integers; in the API they are texts.
fn hook_repository_json(state: &State) -> Value {
    let repository = &state.repository;
    let head = repository.head().unwrap_or(NO_COMMIT);
    let mut json = repository_json(state);
    json["pushed_at"] = json!(repository.commit(head).map(|commit| commit.at));
    json
}

fn commit_json(repository: &Repository, git_ref: &str, sha: GitSha, url: &str) -> Value {
    let Some(commit) = repository.commit(sha) else {
        return Value::Null;
    };
    let pushed_before = repository.branches.iter().any(|(name, tip)| {
        git_ref != format!("refs/heads/{name}") && repository.reachable(*tip).contains(&sha)
    });
    let mut diff = repository.diff(commit.parents.first().copied(), sha);
    let mut room = COMMIT_FILES_MAX;
    for list in [&mut diff.added, &mut diff.removed, &mut diff.modified] {
        list.truncate(room);
        room -= list.len();
    }
    let who = json!({"name": commit.author, "email": commit.email, "username": commit.author});
    json!({
        "id": sha,
        "tree_id": commit.tree,
        "distinct": !pushed_before,
        "message": commit.message,
        "timestamp": commit.date(),
        "url": format!("{url}/{}/commit/{sha}", repository.full_name),
        "author": who,
        "committer": who,
        "added": diff.added,
        "removed": diff.removed,
        "modified": diff.modified,
    })
}
