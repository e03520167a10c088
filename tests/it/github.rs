//! The GitHub client sends the expected requests, protects its token, and maps each response to a result.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Response, StatusCode};
use axum::response::IntoResponse;
use futures_util::future::join_all;
use secrecy::SecretString;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use video_ingest::clock::Clock;
use video_ingest::domain::failure::{Code, Failure};
use video_ingest::domain::head::Relation;
use video_ingest::domain::ids::{GitSha, RepoName, VideoKey};
use video_ingest::services::github::{Entry, Github, Listing, Pair, RateLimit, Timeouts};

const TOKEN: &str = "ghp_made-up-for-tests";
const STEM: &str = "7d5c1f0e-3b52-4a6e-9a0f-2c64be1d8a11_0a1b2c3d-4e5f-4a6b-8c7d-9e0f1a2b3c4d";
const HEAD: &str = "1111111111111111111111111111111111111111";
const ROOT: &str = "2222222222222222222222222222222222222222";
const FOLDER: &str = "3333333333333333333333333333333333333333";
const BLOB: &str = "4444444444444444444444444444444444444444";
const REPO: &str = "/repos/acme/video-artifacts";

fn sha(text: &str) -> GitSha {
    text.parse().unwrap()
}

fn repo_name() -> RepoName {
    "acme/video-artifacts".parse().unwrap()
}

fn key() -> VideoKey {
    VideoKey::parse_stem(STEM).unwrap()
}

/// One call that a server received.
#[derive(Clone, Debug)]
struct Call {
    method: String,
    path: String,
    headers: HeaderMap,
}

impl Call {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

type Answer = Response<Body>;

/// A server on loopback that records every call and gets its responses from a closure.
struct Server {
    url: String,
    calls: Arc<Mutex<Vec<Call>>>,
}

/// Lets a test hold responses back: reports every call, which then waits for a permit.
#[derive(Clone)]
struct Gate {
    seen: mpsc::UnboundedSender<()>,
    permits: Arc<Semaphore>,
}

impl Server {
    async fn start(answer: impl Fn(&Call) -> Answer + Clone + Send + Sync + 'static) -> Self {
        Self::behind(None, answer).await
    }

    async fn behind(
        gate: Option<Gate>,
        answer: impl Fn(&Call) -> Answer + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let calls = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&calls);
        let app = axum::Router::new().fallback(async move |request: Request| {
            let call = Call {
                method: request.method().to_string(),
                path: request.uri().to_string(),
                headers: request.headers().clone(),
            };
            log.lock().unwrap().push(call.clone());
            if let Some(gate) = gate {
                gate.seen.send(()).unwrap();
                gate.permits.acquire().await.unwrap().forget();
            }
            answer(&call)
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, calls }
    }

    fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    fn paths(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.path).collect()
    }

    fn github(&self) -> Github {
        self.github_at("", Clock::default())
    }

    fn github_at(&self, prefix: &str, clock: Clock) -> Github {
        let url = format!("{}{prefix}", self.url);
        let token = Some(SecretString::from(TOKEN));
        Github::new(&url, token, repo_name(), None, "videos", clock).unwrap()
    }
}

fn ok(body: Value) -> Answer {
    axum::Json(body).into_response()
}

fn status(code: u16) -> Answer {
    StatusCode::from_u16(code).unwrap().into_response()
}

fn with(mut answer: Answer, headers: &[(&'static str, &str)]) -> Answer {
    for (name, value) in headers {
        answer.headers_mut().insert(*name, value.parse().unwrap());
    }
    answer
}

fn redirect(to: &str) -> Answer {
    with(status(301), &[("location", to)])
}

fn commit(head: &str) -> Answer {
    let body = json!({"sha": head, "commit": {"tree": {"sha": ROOT}}, "files": [{}]});
    with(ok(body), &[("etag", "\"the head\"")])
}

/// A small repository with one pair, one stray file and a subfolder. It supports ETags.
fn repository(call: &Call) -> Answer {
    let file = |path: String| json!({"path": path, "type": "blob", "sha": BLOB, "size": 7});
    let tree = |path: &str, sha| json!({"path": path, "type": "tree", "sha": sha});
    match call.path.strip_prefix(REPO).unwrap_or_default() {
        "/commits/HEAD?per_page=1" if call.header("if-none-match").is_some() => status(304),
        "/commits/HEAD?per_page=1" => commit(HEAD),
        path if path == format!("/git/trees/{ROOT}") => ok(json!({
            "truncated": false, "tree": [file("videos.txt".into()), tree("videos", FOLDER)],
        })),
        path if path == format!("/git/trees/{FOLDER}") => ok(json!({
            "truncated": false,
            "tree": [
                file(format!("{STEM}.json")), file(format!("{STEM}.mp4")),
                file("notes.md".into()), tree("drafts", ROOT),
            ],
        })),
        _ => status(404),
    }
}

async fn listing(github: &Github) -> Result<Arc<Listing>, Failure> {
    github.listing(Instant::now()).await
}

fn code<T>(result: Result<T, Failure>) -> Code {
    result.err().expect("a failure").code
}

#[tokio::test]
async fn a_listing_takes_three_calls_and_one_if_unchanged() {
    let server = Server::start(repository).await;
    let github = server.github();
    let first = listing(&github).await.unwrap();
    let entry = Some(Entry {
        sha: sha(BLOB),
        size: 7,
    });
    assert_eq!((first.head, first.complete), (sha(HEAD), true));
    assert_eq!(first.files.len(), 1);
    assert_eq!(
        first.files[&key()],
        Pair {
            mp4: entry,
            json: entry
        }
    );
    assert_eq!(*first.ignored, ["notes.md"]);
    assert_eq!(server.calls().len(), 3);

    let second = listing(&github).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(server.calls().len(), 4);
    assert_eq!(
        server.calls()[3].header("if-none-match"),
        Some("\"the head\"")
    );
}

#[tokio::test]
async fn a_listing_is_shared_only_with_requests_made_before_it_began() {
    let server = Server::start(repository).await;
    let github = server.github();
    let before = Instant::now();
    join_all((0..20).map(|_| github.listing(before))).await;
    github.listing(before).await.unwrap();
    assert_eq!(server.calls().len(), 3, "one fetch for all of them");
    github.listing(Instant::now()).await.unwrap();
    assert_eq!(server.calls().len(), 4, "too old for this one");
}

/// The small repository behind a [`Gate`].
async fn gated() -> (Server, Arc<Semaphore>, mpsc::UnboundedReceiver<()>) {
    let permits = Arc::new(Semaphore::new(0));
    let (seen, calls) = mpsc::unbounded_channel();
    let gate = Gate {
        seen,
        permits: Arc::clone(&permits),
    };
    let server = Server::behind(Some(gate), repository).await;
    (server, permits, calls)
}

#[tokio::test]
async fn requests_during_a_fetch_share_the_next_one() {
    let (server, gate, mut calls) = gated().await;
    let github = server.github();
    let early = listing(&github);
    let late = async {
        calls.recv().await.unwrap();
        let now = Instant::now();
        let waiting = join_all((0..20).map(|_| github.listing(now)));
        gate.add_permits(100);
        waiting.await
    };
    let (early, late) = tokio::join!(early, late);
    early.unwrap();
    assert!(late.iter().all(Result::is_ok));
    let heads = server
        .paths()
        .into_iter()
        .filter(|path| path.contains("commits"));
    assert_eq!(heads.count(), 2);
}

#[tokio::test]
async fn a_cancelled_request_does_not_affect_the_others() {
    let (server, gate, mut calls) = gated().await;
    let github = Arc::new(server.github());
    let spawn = || {
        let github = Arc::clone(&github);
        tokio::spawn(async move { listing(&github).await })
    };
    let first = spawn();
    calls.recv().await.unwrap();
    let second = spawn();
    first.abort();
    gate.add_permits(100);
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(second.await.unwrap().unwrap().head, sha(HEAD));
}

#[tokio::test]
async fn a_failure_is_shared_only_with_waiting_requests() {
    let server = Server::start(|_: &Call| status(502)).await;
    let github = server.github();
    let before = Instant::now();
    let outcomes = join_all((0..5).map(|_| github.listing(before))).await;
    assert!(
        outcomes
            .into_iter()
            .all(|o| code(o) == Code::GithubUnavailable)
    );
    assert_eq!(server.calls().len(), 1);
    assert_eq!(code(github.listing(before).await), Code::GithubUnavailable);
    assert_eq!(server.calls().len(), 2);
}

#[tokio::test]
async fn a_truncated_folder_falls_back_to_single_look_ups() {
    let server = Server::start(|call: &Call| {
        let path = call.path.strip_prefix(REPO).unwrap().to_owned();
        if path == format!("/git/trees/{FOLDER}") {
            ok(json!({"truncated": true, "tree": []}))
        } else if path == format!("/contents/videos/{STEM}.mp4?ref={HEAD}") {
            assert_eq!(
                call.header("accept"),
                Some("application/vnd.github.object+json")
            );
            ok(json!({"type": "file", "sha": BLOB, "size": 7}))
        } else {
            repository(call)
        }
    })
    .await;
    let github = server.github();
    let listing = listing(&github).await.unwrap();
    assert!(!listing.complete);
    let pair = github.lookup(key(), listing.head).await.unwrap();
    let mp4 = Some(Entry {
        sha: sha(BLOB),
        size: 7,
    });
    assert_eq!(pair, Pair { mp4, json: None });
}

#[tokio::test]
async fn a_missing_folder_is_an_empty_listing_unless_the_root_is_truncated() {
    for truncated in [false, true] {
        let server = Server::start(move |call: &Call| {
            if call.path.contains("trees") {
                ok(json!({"truncated": truncated, "tree": []}))
            } else {
                repository(call)
            }
        })
        .await;
        let listing = listing(&server.github()).await.unwrap();
        assert!(listing.files.is_empty());
        assert_eq!(listing.complete, !truncated);
    }
}

#[tokio::test]
async fn an_enterprise_path_a_branch_and_nested_folders_are_kept() {
    let server = Server::start(|call: &Call| {
        if call.path.contains("commits") {
            commit(HEAD)
        } else {
            ok(json!({"truncated": false, "tree": [
                {"path": "a b", "type": "tree", "sha": FOLDER},
                {"path": "c", "type": "tree", "sha": BLOB},
            ]}))
        }
    })
    .await;
    for prefix in ["/api/v3", "/api/v3/", "/r"] {
        let url = format!("{}{prefix}", server.url);
        let branch = Some("render/пробный #1".to_owned());
        let github = Github::new(&url, None, repo_name(), branch, "a b/c", Clock::default());
        server.calls.lock().unwrap().clear();
        listing(&github.unwrap()).await.unwrap();
        let api = format!("{}{REPO}", prefix.trim_end_matches('/'));
        let branch = "render/%D0%BF%D1%80%D0%BE%D0%B1%D0%BD%D1%8B%D0%B9%20%231";
        assert_eq!(
            server.paths(),
            [
                format!("{api}/commits/heads/{branch}?per_page=1"),
                format!("{api}/git/trees/{ROOT}"),
                format!("{api}/git/trees/{FOLDER}"),
                format!("{api}/git/trees/{BLOB}"),
            ]
        );
    }
}

#[tokio::test]
async fn a_comparison_is_made_once() {
    for (status_text, expected) in [
        ("identical", Relation::Ahead),
        ("ahead", Relation::Ahead),
        ("diverged", Relation::Diverged),
        ("behind", Relation::Behind),
    ] {
        let server = Server::start(move |call: &Call| {
            if call.path.contains("compare") {
                ok(json!({"status": status_text, "files": []}))
            } else {
                repository(call)
            }
        })
        .await;
        let github = server.github();
        for _ in 0..2 {
            assert_eq!(github.relation(sha(BLOB), sha(HEAD)).await, expected);
        }
        let compare = format!("{REPO}/compare/{BLOB}...{HEAD}?per_page=1");
        assert_eq!(server.paths(), [compare], "requested once, then cached");
    }
}

#[tokio::test]
async fn a_commit_that_cannot_be_compared_yet_is_compared_again() {
    let server = Server::start(repository).await;
    let github = server.github();
    for _ in 0..2 {
        let relation = github.relation(sha(BLOB), sha(HEAD)).await;
        assert_eq!(relation, Relation::Unknown);
    }
    assert_eq!(server.calls().len(), 2);
}

#[tokio::test]
async fn a_renamed_repository_is_followed_with_the_token() {
    let server = Server::start(
        |call: &Call| match call.path.strip_prefix("/repositories/7") {
            Some(rest) => repository(&Call {
                path: format!("{REPO}{rest}"),
                ..call.clone()
            }),
            None => redirect(&call.path.replace(REPO, "/repositories/7")),
        },
    )
    .await;
    let listing = listing(&server.github()).await.unwrap();
    assert_eq!(listing.files.len(), 1);
    let bearer = format!("Bearer {TOKEN}");
    for call in server.calls() {
        assert_eq!(call.header("authorization"), Some(&*bearer));
    }
}

#[tokio::test]
async fn redirects_are_limited_and_json_calls_stay_on_the_api_host() {
    let circle = Server::start(|call: &Call| redirect(&call.path)).await;
    assert_eq!(
        code(listing(&circle.github()).await),
        Code::GithubUnavailable
    );
    assert_eq!(circle.calls().len(), 4);

    let other = Server::start(repository).await;
    let there = format!("{}{REPO}/commits/HEAD?per_page=1", other.url);
    let server = Server::start(move |_: &Call| redirect(&there)).await;
    assert_eq!(
        code(listing(&server.github()).await),
        Code::GithubUnavailable
    );
    assert!(other.calls().is_empty());
}

#[tokio::test]
async fn a_blob_must_match_its_hash_and_size() {
    let bytes = b"{\"a\":1}";
    let name = GitSha::from_bytes(Sha1::digest(b"blob 7\0{\"a\":1}").into());
    let server = Server::start(|call: &Call| {
        assert_eq!(
            call.header("accept"),
            Some("application/vnd.github.raw+json")
        );
        bytes.as_slice().into_response()
    })
    .await;
    let github = server.github();
    assert_eq!(github.small_blob(name, 7).await.unwrap(), bytes);
    assert_eq!(
        code(github.small_blob(sha(BLOB), 7).await),
        Code::CorruptDownload
    );
    for size in [6, 8] {
        assert_eq!(code(github.blob(name, size).await), Code::CorruptDownload);
    }
}

#[tokio::test]
async fn a_body_without_a_length_is_counted() {
    let server = Server::start(|_: &Call| {
        let chunks = ["1234", "567"].map(Ok::<_, std::io::Error>);
        Body::from_stream(futures_util::stream::iter(chunks)).into_response()
    })
    .await;
    let github = server.github();
    for (size, expected) in [
        (7, None),
        (6, Some(Code::CorruptDownload)),
        (8, Some(Code::CorruptDownload)),
    ] {
        let mut download = github.blob(sha(BLOB), size).await.unwrap();
        let end = loop {
            match download.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => break None,
                Err(failure) => break Some(failure.code),
            }
        };
        assert_eq!(end, expected, "{size} bytes");
    }
}

#[tokio::test]
async fn a_blob_on_another_host_never_gets_the_token() {
    let other = Server::start(|_: &Call| b"1234567".into_response()).await;
    let there = format!("{}/storage?signed=1", other.url);
    let server = Server::start(move |_: &Call| redirect(&there)).await;
    server.github().blob(sha(BLOB), 7).await.unwrap();
    assert!(server.calls()[0].header("authorization").is_some());
    assert_eq!(other.calls()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_stalled_download_times_out() {
    let server = Server::start(|_: &Call| {
        let first = futures_util::stream::iter([Ok::<_, std::io::Error>("12")]);
        let never = futures_util::stream::pending();
        Body::from_stream(futures_util::StreamExt::chain(first, never)).into_response()
    })
    .await;
    let github = server.github().with_timeouts(Timeouts {
        stall: Duration::from_millis(200),
        ..Timeouts::default()
    });
    let mut download = github.blob(sha(BLOB), 7).await.unwrap();
    assert_eq!(download.chunk().await.unwrap().unwrap(), "12");
    assert_eq!(code(download.chunk().await), Code::GithubUnavailable);
}

#[tokio::test]
async fn a_download_that_trickles_ends() {
    // No pause is long enough for a stall.
    let byte = |_| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok::<_, std::io::Error>("1")
    };
    let bytes = move || futures_util::StreamExt::then(futures_util::stream::iter(0..100), byte);
    let server = Server::start(move |_: &Call| Body::from_stream(bytes()).into_response()).await;
    let github = server.github().with_timeouts(Timeouts {
        transfer: |bytes| Duration::from_millis(5 * bytes),
        ..Timeouts::default()
    });
    let mut download = github.blob(sha(BLOB), 100).await.unwrap();
    while let Ok(chunk) = download.chunk().await {
        assert!(chunk.is_some(), "not the whole file");
    }
}

/// Refuses every call in the same way.
async fn refusing(
    code: u16,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
) -> Server {
    Server::start(move |_: &Call| {
        let body = json!({"message": body});
        with(
            (StatusCode::from_u16(code).unwrap(), axum::Json(body)).into_response(),
            headers,
        )
    })
    .await
}

#[tokio::test]
async fn no_request_is_sent_before_retry_after_has_passed() {
    let server = refusing(403, &[("retry-after", "90")], "").await;
    let clock = Clock::default();
    let github = server.github_at("", clock.clone());
    // The JSON of the rate limit error must not be treated as the file.
    let failure = github.blob(sha(BLOB), 7).await.unwrap_err();
    assert_eq!(failure.code, Code::RateLimited);
    assert_eq!(failure.retry_after, Some(Duration::from_secs(90)));
    assert_eq!(code(github.blob(sha(BLOB), 7).await), Code::RateLimited);
    assert_eq!(code(listing(&github).await), Code::RateLimited);
    assert_eq!(server.calls().len(), 1);
    clock.advance(Duration::from_secs(91));
    assert_eq!(code(github.blob(sha(BLOB), 7).await), Code::RateLimited);
    assert_eq!(server.calls().len(), 2);
}

#[tokio::test]
async fn an_exhausted_rate_limit_waits_for_its_reset() {
    let reset = (Clock::default().now_ms() / 1000 + 600).to_string();
    let server = Server::start(move |_: &Call| {
        let headers = [
            ("x-ratelimit-limit", "5000"),
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", &*reset),
        ];
        with(status(403), &headers)
    })
    .await;
    let github = server.github();
    let failure = listing(&github).await.unwrap_err();
    assert_eq!(failure.code, Code::RateLimited);
    let wait = failure.retry_after.unwrap().as_secs();
    assert!((590..=601).contains(&wait), "{wait}");
    let Some(RateLimit {
        limit: 5000,
        remaining: 0,
        ..
    }) = github.rate_limit()
    else {
        panic!("{:?}", github.rate_limit());
    };
}

#[tokio::test]
async fn a_wait_without_retry_after_doubles() {
    for (status, body) in [(429, ""), (403, "You have exceeded a secondary rate limit")] {
        let server = refusing(status, &[], body).await;
        let clock = Clock::default();
        let github = server.github_at("", clock.clone());
        for expected in [60, 120, 240] {
            let failure = listing(&github).await.unwrap_err();
            assert_eq!(failure.retry_after, Some(Duration::from_secs(expected)));
            clock.advance(Duration::from_secs(expected + 1));
        }
    }
}

#[tokio::test]
async fn each_status_has_its_code() {
    for (status, listing_code, blob_code) in [
        (401, Code::GithubDenied, Code::GithubDenied),
        (403, Code::GithubDenied, Code::GithubDenied),
        (404, Code::GithubDenied, Code::GithubUnavailable),
        (422, Code::GithubDenied, Code::GithubUnavailable),
        (500, Code::GithubUnavailable, Code::GithubUnavailable),
        (503, Code::GithubUnavailable, Code::GithubUnavailable),
    ] {
        let server = refusing(status, &[], "Resource not accessible").await;
        let github = server.github();
        assert_eq!(code(listing(&github).await), listing_code, "{status}");
        assert_eq!(code(github.blob(sha(BLOB), 7).await), blob_code, "{status}");
    }
    let server = Server::start(|_: &Call| "<html>Unicorn!</html>".into_response()).await;
    assert_eq!(
        code(listing(&server.github()).await),
        Code::GithubUnavailable
    );
    // A 409 of a gateway must not be treated as an empty repository.
    let server = refusing(409, &[], "conflict").await;
    assert_eq!(
        code(listing(&server.github()).await),
        Code::GithubUnavailable
    );
    let server = refusing(409, &[], "Git Repository is empty.").await;
    assert!(listing(&server.github()).await.unwrap().head.is_zero());
}

#[tokio::test]
async fn invalid_settings_are_rejected() {
    let new = |url, token: &str| {
        let token = Some(SecretString::from(token));
        let github = Github::new(url, token, repo_name(), None, "videos", Clock::default());
        github.err().map(|invalid| invalid.name)
    };
    let api = "https://api.github.com";
    assert_eq!(new(api, "t"), None);
    assert_eq!(new("api.github.com", "t"), Some("GITHUB_API_URL"));
    assert_eq!(new(api, "t\nu"), Some("GITHUB_TOKEN"));
}

#[tokio::test]
async fn an_endless_response_is_cut_off() {
    let server = Server::start(|_: &Call| {
        let chunk = || Ok::<_, std::io::Error>(vec![b' '; 1 << 20]);
        Body::from_stream(futures_util::stream::repeat_with(chunk)).into_response()
    })
    .await;
    let failure = listing(&server.github()).await.unwrap_err();
    assert_eq!(
        failure.message,
        "GitHub's response was incomplete or too large."
    );
}

const OID: &str = "5555555555555555555555555555555555555555555555555555555555555555";
const BATCH: &str = "/acme/video-artifacts.git/info/lfs/objects/batch";

/// An API whose clone URL is on `git_host` or on itself, and whose batch response contains this object.
async fn lfs(git_host: Option<&Server>, object: Value) -> (Server, Github) {
    let git = git_host.map(|server| server.url.clone());
    let server = Server::start(move |call: &Call| {
        let own = format!("http://{}", call.header("host").unwrap());
        let git = git.as_ref().unwrap_or(&own);
        match &*call.path {
            REPO => ok(json!({"clone_url": format!("{git}/acme/video-artifacts.git")})),
            BATCH => ok(json!({"objects": [object]})),
            _ => status(500),
        }
    })
    .await;
    let github = server.github();
    (server, github)
}

#[tokio::test]
async fn an_lfs_object_is_downloaded_from_the_batch_link() {
    let storage = Server::start(|_: &Call| b"1234567".into_response()).await;
    let download = json!({
        "href": format!("{}/objects/5?signed=1", storage.url),
        "header": {"Authorization": "RemoteAuth abc", "X-Storage": "as told"},
    });
    let object = json!({"oid": OID, "size": 7, "actions": {"download": download}});
    let (server, github) = lfs(None, object).await;
    for _ in 0..2 {
        let mut download = github.lfs(OID, 7).await.unwrap();
        assert_eq!(download.chunk().await.unwrap().unwrap(), "1234567");
    }
    assert_eq!(
        server.paths(),
        [REPO, BATCH, BATCH],
        "the clone URL is kept"
    );
    let batch = &server.calls()[1];
    assert_eq!(batch.method, "POST");
    assert_eq!(
        batch.header("content-type"),
        Some("application/vnd.git-lfs+json")
    );
    assert_eq!(batch.headers.get_all("content-type").iter().count(), 1);
    assert_eq!(batch.header("accept"), Some("application/vnd.git-lfs+json"));
    let basic = "Basic eC1hY2Nlc3MtdG9rZW46Z2hwX21hZGUtdXAtZm9yLXRlc3Rz";
    assert_eq!(batch.header("authorization"), Some(basic));
    let download = &storage.calls()[0];
    assert_eq!(download.header("authorization"), Some("RemoteAuth abc"));
    assert_eq!(download.header("x-storage"), Some("as told"));
}

#[tokio::test]
async fn an_lfs_server_on_another_host_never_gets_the_token() {
    let storage = Server::start(|_: &Call| b"1234567".into_response()).await;
    let href = format!("{}/objects/5", storage.url);
    let git = Server::start(move |_: &Call| {
        let object = json!({"oid": OID, "actions": {"download": {"href": href}}});
        ok(json!({"objects": [object]}))
    })
    .await;
    let (_server, github) = lfs(Some(&git), json!(null)).await;
    github.lfs(OID, 7).await.unwrap();
    assert_eq!(git.calls()[0].header("authorization"), None);
    assert_eq!(storage.calls()[0].header("authorization"), None);
}

#[tokio::test]
async fn an_lfs_download_from_the_api_host_has_only_its_own_headers() {
    let server = Server::start(|call: &Call| {
        let own = format!("http://{}", call.header("host").unwrap());
        let download = json!({"href": format!("{own}/objects/5")});
        match &*call.path {
            REPO => ok(json!({"clone_url": format!("{own}/acme/video-artifacts.git")})),
            BATCH => ok(json!({"objects": [{"oid": OID, "actions": {"download": download}}]})),
            _ => b"1234567".into_response(),
        }
    })
    .await;
    server.github().lfs(OID, 7).await.unwrap();
    assert_eq!(server.calls()[2].path, "/objects/5");
    assert_eq!(server.calls()[2].header("authorization"), None);
}

#[tokio::test]
async fn lfs_headers_for_one_host_are_not_sent_to_another() {
    let other = Server::start(|_: &Call| b"1234567".into_response()).await;
    let there = format!("{}/moved", other.url);
    let storage = Server::start(move |_: &Call| redirect(&there)).await;
    let download = json!({"href": format!("{}/5", storage.url), "header": {"Authorization": "x"}});
    let object = json!({"oid": OID, "actions": {"download": download}});
    let (_server, github) = lfs(None, object).await;
    github.lfs(OID, 7).await.unwrap();
    assert_eq!(storage.calls()[0].header("authorization"), Some("x"));
    assert_eq!(other.calls()[0].header("authorization"), None);
}

#[tokio::test]
async fn each_lfs_error_has_its_code() {
    let failed = |code: u16| json!({"oid": OID, "error": {"code": code, "message": "no"}});
    let over = |code: u16| json!({"oid": OID, "error": {"code": code, "message": "Exceeded its LFS budget."}});
    for (object, expected) in [
        (over(403), Code::LfsQuota),
        (over(422), Code::LfsQuota),
        (failed(509), Code::LfsQuota),
        (failed(404), Code::LfsObjectMissing),
        (failed(410), Code::LfsObjectMissing),
        (failed(403), Code::GithubDenied),
        (failed(422), Code::GithubUnavailable),
        (failed(500), Code::GithubUnavailable),
        (json!({"oid": OID}), Code::GithubUnavailable),
        (
            json!({"oid": BLOB, "error": {"code": 404}}),
            Code::GithubUnavailable,
        ),
    ] {
        let (_server, github) = lfs(None, object.clone()).await;
        assert_eq!(code(github.lfs(OID, 7).await), expected, "{object}");
    }
    for (answer, expected) in [
        (404, Code::LfsObjectMissing),
        (410, Code::LfsObjectMissing),
        (509, Code::LfsQuota),
        (403, Code::GithubUnavailable),
        (500, Code::GithubUnavailable),
    ] {
        let storage = Server::start(move |_: &Call| status(answer)).await;
        let object = json!({"oid": OID, "actions": {"download": {"href": storage.url}}});
        let (_server, github) = lfs(None, object).await;
        assert_eq!(code(github.lfs(OID, 7).await), expected, "{answer}");
    }
}
