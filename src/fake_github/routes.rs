//! The REST API: which path shows what, with GitHub's shapes, codes and headers.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::io::ReaderStream;

use super::local::Local;
use super::model::{Blob, Commit, Entry, MODE_TREE, Repository};
use super::{REPOSITORY_ID, Shared, State};
use crate::clock::Clock;
use crate::domain::ids::GitSha;

/// Entries of one answer of the trees API. Source: GitHub's documentation of "Get a tree".
pub(super) const TREE_ENTRIES_MAX: usize = 100_000;
/// The largest blob that the API serves, bytes. Source: GitHub's documentation of "Get a blob".
const BLOB_BYTES_MAX: u64 = 100 << 20;
/// The largest file whose content is part of the contents API's JSON, bytes.
const CONTENTS_INLINE_MAX: u64 = 1 << 20;
/// Entries of a folder that the contents API shows.
const CONTENTS_ENTRIES_MAX: usize = 1_000;
/// Files that a commit or a comparison shows.
const FILES_MAX: usize = 300;
/// Commits that a comparison shows unless `per_page` says otherwise.
const COMPARE_COMMITS: usize = 250;
/// Characters of a line of the base64 that the API sends.
const BASE64_LINE: usize = 60;
/// Calls per hour with a token, as the headers have it.
const CALLS_PER_HOUR: u32 = 5_000;

const DOCS: &str = "https://docs.github.com/rest";

/// An answer of the API that is not 200.
pub(super) struct Problem {
    status: StatusCode,
    message: String,
}

impl Problem {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            message: message.into(),
        }
    }

    pub(super) fn not_found() -> Self {
        Self::new(404, "Not Found")
    }
}

impl axum::response::IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status.as_u16().to_string();
        let body = json!({"message": self.message, "documentation_url": DOCS, "status": status});
        (self.status, axum::Json(body)).into_response()
    }
}

/// What a path shows, as long as nothing has been read from disk for it.
enum Shown {
    Json(Value),
    /// A file: raw, or as the JSON with its content added.
    File {
        sha: GitSha,
        json: Option<Value>,
    },
}

/// A call of the API, except for hooks.
pub(super) async fn api(shared: &Shared, parts: &Parts, segments: &[&str]) -> Response {
    let authorized = authorize(&shared.state(), parts);
    let exhausted = matches!(shared.state().quota, Some((0, _)));
    let credited = matches!(authorized, Ok(true));
    let response = match authorized {
        Err(problem) => problem.into_response(),
        Ok(_) if exhausted => Problem::new(403, "API rate limit exceeded for user ID 1. If you reach out to GitHub Support for help, please include the request ID.").into_response(),
        Ok(_) => respond(shared, parts, segments).await,
    };
    let mut state = shared.state();
    let free = response.status() == StatusCode::NOT_MODIFIED && credited;
    if let Some((remaining, _)) = &mut state.quota
        && !free
    {
        *remaining = remaining.saturating_sub(1);
    }
    with_rate_limit(response, state.quota)
}

/// Whether the caller sent a credential; an error if it needs another one.
pub(super) fn authorize(state: &State, parts: &Parts) -> Result<bool, Problem> {
    let sent = parts.headers.get(header::AUTHORIZATION);
    match (&state.token, sent) {
        (None, sent) => Ok(sent.is_some()),
        // GitHub does not admit that a private repository exists.
        (Some(_), None) => Err(Problem::not_found()),
        (Some(token), Some(sent)) => {
            let sent = sent.to_str().unwrap_or_default();
            let bearer = sent.strip_prefix("Bearer ").or(sent.strip_prefix("token "));
            if bearer == Some(token) {
                Ok(true)
            } else {
                Err(Problem::new(401, "Bad credentials"))
            }
        }
    }
}

pub(super) fn with_rate_limit(mut response: Response, quota: Option<(u32, u64)>) -> Response {
    let in_an_hour = || Clock::default().now().as_second().unsigned_abs() + 3600;
    let (remaining, reset) = quota.unwrap_or_else(|| (CALLS_PER_HOUR - 1, in_an_hour()));
    let used = CALLS_PER_HOUR.saturating_sub(remaining);
    let headers: [(HeaderName, HeaderValue); 5] = [
        (
            HeaderName::from_static("x-ratelimit-limit"),
            CALLS_PER_HOUR.into(),
        ),
        (
            HeaderName::from_static("x-ratelimit-remaining"),
            remaining.into(),
        ),
        (HeaderName::from_static("x-ratelimit-used"), used.into()),
        (HeaderName::from_static("x-ratelimit-reset"), reset.into()),
        (
            HeaderName::from_static("x-ratelimit-resource"),
            HeaderValue::from_static("core"),
        ),
    ];
    response.headers_mut().extend(headers);
    response
}

async fn respond(shared: &Shared, parts: &Parts, segments: &[&str]) -> Response {
    let (shown, local) = {
        let state = shared.state();
        let rest = match segments {
            ["repos", owner, name, rest @ ..] => {
                let name = format!("{owner}/{name}");
                if state
                    .repository
                    .former_names
                    .iter()
                    .any(|old| old.eq_ignore_ascii_case(&name))
                {
                    return moved(&state, parts, rest);
                }
                state
                    .repository
                    .full_name
                    .eq_ignore_ascii_case(&name)
                    .then_some(rest)
            }
            ["repositories", id, rest @ ..] => (*id == REPOSITORY_ID.to_string()).then_some(rest),
            _ => None,
        };
        let shown = match rest {
            Some(rest) if parts.method == Method::GET => show(&state, parts, rest),
            _ => Err(Problem::not_found()),
        };
        (shown, state.local.clone())
    };
    match shown {
        Err(problem) => problem.into_response(),
        Ok(Shown::Json(json)) => cacheable(parts, &json),
        Ok(Shown::File { sha, json }) => {
            let blob = {
                let mut state = shared.state();
                *state.blob_reads.entry(sha).or_default() += 1;
                state.repository.blob(sha).cloned()
            };
            match file(local, sha, blob, json).await {
                Ok(response) => response,
                Err(problem) => problem.into_response(),
            }
        }
    }
}

/// The old name of a renamed repository: the same place, by the id that stays.
fn moved(state: &State, parts: &Parts, rest: &[&str]) -> Response {
    let mut location = format!("{}/repositories/{REPOSITORY_ID}", state.url);
    // The path after `/repos/<owner>/<name>`, as it came.
    if let Some(tail) = parts
        .uri
        .path()
        .splitn(5, '/')
        .nth(4)
        .filter(|_| !rest.is_empty())
    {
        location += &format!("/{tail}");
    }
    if let Some(query) = parts.uri.query() {
        location += &format!("?{query}");
    }
    let docs = format!("{DOCS}/guides/best-practices-for-using-the-rest-api#follow-redirects");
    let body = json!({"message": "Moved Permanently", "url": location, "documentation_url": docs});
    let location = [(header::LOCATION, location)];
    (StatusCode::MOVED_PERMANENTLY, location, axum::Json(body)).into_response()
}

fn show(state: &State, parts: &Parts, rest: &[&str]) -> Result<Shown, Problem> {
    let repository = &state.repository;
    let not_found = Problem::not_found;
    let raw = parts.headers.get(header::ACCEPT).is_some_and(|accept| {
        let accept = String::from_utf8_lossy(accept.as_bytes());
        accept.contains("application/vnd.github.") && accept.contains("raw")
    });
    let json = match rest {
        [] => {
            let mut json = repository_json(state);
            if parts.headers.contains_key(header::AUTHORIZATION) {
                json["permissions"] = json!({"admin": false, "maintain": false, "push": false, "triage": false, "pull": true});
            }
            json
        }
        ["commits", name @ ..] => {
            let name = name.join("/");
            if repository.branches.is_empty() {
                return Err(Problem::new(409, "Git Repository is empty."));
            }
            let (sha, commit) = commit(repository, &name)
                .ok_or_else(|| Problem::new(422, format!("No commit found for SHA: {name}")))?;
            let mut json = commit_json(state, sha, commit);
            let max = number(parts, "per_page")
                .unwrap_or(FILES_MAX)
                .min(FILES_MAX);
            let parent = commit.parents.first().copied();
            json["files"] = files_json(repository, parent, sha, max);
            json
        }
        ["branches", name @ ..] => {
            let name = name.join("/");
            let sha = repository.branch(&name);
            let found = sha.and_then(|sha| Some((sha, repository.commit(sha)?)));
            let (sha, commit) = found.ok_or_else(|| Problem::new(404, "Branch not found"))?;
            json!({"name": name, "commit": commit_json(state, sha, commit), "protected": false})
        }
        ["git", "ref", "heads", name @ ..] => {
            let name = name.join("/");
            let sha = repository.branch(&name).ok_or_else(not_found)?;
            json!({
                "ref": format!("refs/heads/{name}"),
                "node_id": node_id("REF", &name),
                "url": api_url(state, &format!("git/refs/heads/{name}")),
                "object": {"type": "commit", "sha": sha, "url": api_url(state, &format!("git/commits/{sha}"))},
            })
        }
        ["git", "commits", name] => {
            // Unlike `commits/{ref}` this takes SHAs only.
            name.parse::<GitSha>().map_err(|_| not_found())?;
            let (sha, commit) = commit(repository, name).ok_or_else(not_found)?;
            let mut json = git_commit_json(state, commit);
            json["sha"] = json!(sha);
            json["node_id"] = json!(node_id("C", name));
            json["url"] = json!(api_url(state, &format!("git/commits/{sha}")));
            json["html_url"] = json!(web_url(state, &format!("commit/{sha}")));
            json["parents"] = parents_json(state, commit);
            json
        }
        ["git", "trees", name @ ..] => tree_json(state, parts, &name.join("/"))?,
        ["git", "blobs", name] => {
            let sha: GitSha = name.parse().map_err(|_| not_found())?;
            let size = repository.blob(sha).ok_or_else(not_found)?.size();
            let json = json!({
                "sha": sha, "node_id": node_id("B", name), "size": size, "encoding": "base64",
                "url": api_url(state, &format!("git/blobs/{sha}")),
            });
            let json = (!raw).then_some(json);
            return Ok(Shown::File { sha, json });
        }
        ["contents", path @ ..] => return contents(state, parts, &path.join("/"), raw),
        ["compare", spec @ ..] => {
            let spec = spec.join("/");
            let (base, head) = spec.split_once("...").ok_or_else(not_found)?;
            compare_json(state, parts, base, head)?
        }
        _ => return Err(not_found()),
    };
    Ok(Shown::Json(json))
}

/// The repository as the API and the webhooks show it.
pub(super) fn repository_json(state: &State) -> Value {
    let repository = &state.repository;
    let (owner, name) = repository.full_name.split_once('/').unwrap_or_default();
    let pushed = repository.head().and_then(|head| repository.commit(head));
    json!({
        "id": REPOSITORY_ID,
        "node_id": node_id("R", name),
        "name": name,
        "full_name": repository.full_name,
        "private": state.token.is_some(),
        "owner": {"login": owner, "name": owner, "id": 1, "type": "Organization"},
        "html_url": web_url(state, "").trim_end_matches('/'),
        "url": api_url(state, "").trim_end_matches('/'),
        "clone_url": state.clone_url(),
        "default_branch": repository.default_branch,
        "pushed_at": pushed.map(Commit::date),
    })
}

fn tree_json(state: &State, parts: &Parts, name: &str) -> Result<Value, Problem> {
    let repository = &state.repository;
    // A commit-ish works too, and the answer then carries the commit's SHA, not the tree's.
    let (sha, tree) = match commit(repository, name) {
        Some((sha, commit)) => (sha, commit.tree),
        None => {
            let sha = name.parse().map_err(|_| Problem::not_found())?;
            (sha, sha)
        }
    };
    let entries = repository.tree(tree).ok_or_else(Problem::not_found)?;
    let entries: Vec<(String, &Entry)> = match query(parts, "recursive") {
        Some(_) => repository.walk(tree),
        None => entries
            .iter()
            .map(|entry| (entry.name.clone(), entry))
            .collect(),
    };
    let listed = entries
        .iter()
        .take(state.tree_entries_max)
        .map(|(path, entry)| {
            let mut json = json!({
                "path": path,
                "mode": format!("{:06o}", entry.mode),
                "type": entry.kind(),
                "sha": entry.sha,
                "url": api_url(state, &format!("git/{}s/{}", entry.kind(), entry.sha)),
            });
            if let Some(blob) = repository.blob(entry.sha) {
                json["size"] = json!(blob.size());
            }
            json
        });
    Ok(json!({
        "sha": sha,
        "url": api_url(state, &format!("git/trees/{sha}")),
        "tree": listed.collect::<Vec<_>>(),
        "truncated": entries.len() > state.tree_entries_max,
    }))
}

fn contents(state: &State, parts: &Parts, path: &str, raw: bool) -> Result<Shown, Problem> {
    let repository = &state.repository;
    let name = query(parts, "ref").unwrap_or_else(|| "HEAD".to_owned());
    let (commit, _) = commit(repository, &name)
        .ok_or_else(|| Problem::new(404, format!("No commit found for the ref {name}")))?;
    let found = repository
        .entry(commit, path)
        .ok_or_else(Problem::not_found)?;
    let describe = |path: &str, entry: &Entry| {
        let size = repository.blob(entry.sha).map_or(0, Blob::size);
        json!({
            "type": if entry.mode == MODE_TREE { "dir" } else { "file" },
            "name": entry.name,
            "path": path,
            "sha": entry.sha,
            "size": size,
            "url": api_url(state, &format!("contents/{path}?ref={name}")),
            "download_url": null,
        })
    };
    if found.mode == MODE_TREE {
        let entries = repository.tree(found.sha).unwrap_or_default();
        let shown = entries.iter().take(CONTENTS_ENTRIES_MAX).map(|entry| {
            let path = format!("{path}/{}", entry.name);
            describe(path.trim_start_matches('/'), entry)
        });
        return Ok(Shown::Json(shown.collect()));
    }
    let size = repository.blob(found.sha).map_or(0, Blob::size);
    let mut json = describe(path, &found);
    if !raw && size > CONTENTS_INLINE_MAX && size <= BLOB_BYTES_MAX {
        json["content"] = json!("");
        json["encoding"] = json!("none");
        return Ok(Shown::Json(json));
    }
    json["encoding"] = json!("base64");
    let json = (!raw).then_some(json);
    Ok(Shown::File {
        sha: found.sha,
        json,
    })
}

fn compare_json(state: &State, parts: &Parts, base: &str, head: &str) -> Result<Value, Problem> {
    let repository = &state.repository;
    let (base_sha, base) = commit(repository, base).ok_or_else(Problem::not_found)?;
    let (head_sha, _) = commit(repository, head).ok_or_else(Problem::not_found)?;
    let merge_base = repository.merge_base(base_sha, head_sha);
    let merge_base = merge_base.and_then(|sha| Some((sha, repository.commit(sha)?)));
    let (merge_base_sha, merge_base) = merge_base.ok_or_else(|| {
        let message = format!("No common ancestor between {base_sha} and {head_sha}.");
        Problem::new(404, message)
    })?;
    let ahead = repository.between(base_sha, head_sha);
    let behind = repository.between(head_sha, base_sha);
    let status = match (ahead.len(), behind.len()) {
        (0, 0) => "identical",
        (_, 0) => "ahead",
        (0, _) => "behind",
        _ => "diverged",
    };
    let max = number(parts, "per_page")
        .unwrap_or(COMPARE_COMMITS)
        .min(COMPARE_COMMITS);
    let commits = ahead.iter().take(max).filter_map(|sha| {
        let commit = repository.commit(*sha)?;
        Some(commit_json(state, *sha, commit))
    });
    Ok(json!({
        "url": api_url(state, &format!("compare/{base_sha}...{head_sha}")),
        "base_commit": commit_json(state, base_sha, base),
        "merge_base_commit": commit_json(state, merge_base_sha, merge_base),
        "status": status,
        "ahead_by": ahead.len(),
        "behind_by": behind.len(),
        "total_commits": ahead.len(),
        "commits": commits.collect::<Vec<_>>(),
        "files": files_json(repository, Some(merge_base_sha), head_sha, FILES_MAX),
    }))
}

fn commit<'a>(repository: &'a Repository, name: &str) -> Option<(GitSha, &'a Commit)> {
    let sha = repository.resolve(name)?;
    Some((sha, repository.commit(sha)?))
}

fn commit_json(state: &State, sha: GitSha, commit: &Commit) -> Value {
    let url = api_url(state, &format!("commits/{sha}"));
    json!({
        "sha": sha,
        "node_id": node_id("C", &sha.to_string()),
        "commit": git_commit_json(state, commit),
        "url": url,
        "html_url": web_url(state, &format!("commit/{sha}")),
        "comments_url": format!("{url}/comments"),
        "author": null,
        "committer": null,
        "parents": parents_json(state, commit),
    })
}

fn git_commit_json(state: &State, commit: &Commit) -> Value {
    let who = json!({"name": commit.author, "email": commit.email, "date": commit.date()});
    let tree_url = api_url(state, &format!("git/trees/{}", commit.tree));
    json!({
        "author": who,
        "committer": who,
        "message": commit.message,
        "tree": {"sha": commit.tree, "url": tree_url},
        "url": tree_url,
        "comment_count": 0,
    })
}

fn parents_json(state: &State, commit: &Commit) -> Value {
    let parent = |sha: &GitSha| {
        let html_url = web_url(state, &format!("commit/{sha}"));
        json!({"sha": sha, "url": api_url(state, &format!("commits/{sha}")), "html_url": html_url})
    };
    commit.parents.iter().map(parent).collect()
}

fn files_json(repository: &Repository, from: Option<GitSha>, to: GitSha, max: usize) -> Value {
    let diff = repository.diff(from, to);
    let list = |paths: Vec<String>, status: &'static str, of: Option<GitSha>| {
        paths.into_iter().map(move |path| {
            let entry = of.and_then(|commit| repository.entry(commit, &path));
            json!({"filename": path, "status": status, "sha": entry.map(|entry| entry.sha)})
        })
    };
    list(diff.added, "added", Some(to))
        .chain(list(diff.removed, "removed", from))
        .chain(list(diff.modified, "modified", Some(to)))
        .take(max)
        .collect()
}

/// JSON with its ETag, or 304 for a client that has it already.
fn cacheable(parts: &Parts, json: &Value) -> Response {
    let body = json.to_string();
    let etag = format!("\"{}\"", hex::encode(Sha256::digest(&body)));
    let known = parts
        .headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|tags| {
            let tags = String::from_utf8_lossy(tags.as_bytes());
            tags.split(',')
                .any(|tag| tag.trim().trim_start_matches("W/") == etag)
        });
    let etag = [(header::ETAG, format!("W/{etag}"))];
    if known {
        return (StatusCode::NOT_MODIFIED, etag).into_response();
    }
    let content_type = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
    (etag, content_type, body).into_response()
}

/// A blob's bytes as they are, or in base64 inside of JSON.
async fn file(
    local: Option<Local>,
    sha: GitSha,
    blob: Option<Blob>,
    json: Option<Value>,
) -> Result<Response, Problem> {
    let blob = blob.ok_or_else(Problem::not_found)?;
    let size = blob.size();
    if size > BLOB_BYTES_MAX {
        let message = "This API returns blobs up to 100 MB in size. The requested blob is too large to fetch via the API, but you can use the Git Data API to request blobs up to 100 MB in size.";
        return Err(Problem::new(403, message));
    }
    let body = match (blob, local) {
        (Blob::Memory(bytes), _) => Body::from(bytes),
        (Blob::Local { .. }, Some(local)) => from_git(&local, sha)?,
        (Blob::Local { .. }, None) => return Err(Problem::not_found()),
    };
    let Some(mut json) = json else {
        let content_type = [(
            header::CONTENT_TYPE,
            "application/vnd.github.raw+json; charset=utf-8",
        )];
        let length = [(header::CONTENT_LENGTH, HeaderValue::from(size))];
        return Ok((content_type, length, body).into_response());
    };
    let bytes = axum::body::to_bytes(body, BLOB_BYTES_MAX as usize).await;
    let bytes: Bytes = bytes.map_err(|_| Problem::new(500, "Server Error"))?;
    let text = BASE64_STANDARD.encode(bytes);
    let mut content = String::with_capacity(text.len() + text.len() / BASE64_LINE + 1);
    for (at, letter) in text.chars().enumerate() {
        content.push(letter);
        if at % BASE64_LINE == BASE64_LINE - 1 || at == text.len() - 1 {
            content.push('\n');
        }
    }
    json["content"] = json!(content);
    Ok(axum::Json(json).into_response())
}

fn from_git(local: &Local, sha: GitSha) -> Result<Body, Problem> {
    let (child, stdout) = local
        .blob(sha)
        .map_err(|_| Problem::new(500, "Server Error"))?;
    // Git is killed when its handle is dropped, so the stream keeps it.
    let stream = ReaderStream::new(stdout).inspect_ok(move |_| {
        let _running = &child;
    });
    Ok(Body::from_stream(stream))
}

fn query(parts: &Parts, name: &str) -> Option<String> {
    let query = parts.uri.query().unwrap_or_default().as_bytes();
    let mut pairs = form_urlencoded::parse(query);
    pairs
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

pub(super) fn number(parts: &Parts, name: &str) -> Option<usize> {
    query(parts, name)?.parse().ok()
}

fn api_url(state: &State, path: &str) -> String {
    format!("{}/repos/{}/{path}", state.url, state.repository.full_name)
}

fn web_url(state: &State, path: &str) -> String {
    format!("{}/{}/{path}", state.url, state.repository.full_name)
}

fn node_id(kind: &str, of: &str) -> String {
    format!("{kind}_{}", BASE64_STANDARD.encode(of))
}
