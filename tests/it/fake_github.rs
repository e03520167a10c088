//! The fake GitHub itself: its shapes, status codes and quirks, and the faults that tests inject.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use video_ingest::domain::ids::GitSha;
use video_ingest::fake_github::{FakeGithub, LocalError};

use crate::support::fake_github::{Call, Fault, TestGithub};

const REPO: &str = "acme/video-artifacts";
const RAW: &str = "application/vnd.github.raw+json";
const LFS: &str = "application/vnd.git-lfs+json";
const TOKEN: &str = "ghp_fake";
/// Nothing listens there.
const CLOSED: &str = "http://127.0.0.1:1/webhooks/github";
/// The SHA that means "no commit" in a payload.
const NO_COMMIT: GitSha = GitSha::from_bytes([0; 20]);

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn send(request: reqwest::RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    Ok(Answer {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        body: response.bytes().await?.to_vec(),
    })
}

fn client() -> reqwest::Client {
    let no_redirects = reqwest::redirect::Policy::none();
    let client = reqwest::Client::builder().no_proxy().redirect(no_redirects);
    client.build().unwrap()
}

/// `GET /repos/acme/video-artifacts<path>` with headers.
async fn get(gh: &FakeGithub, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = client().get(format!("{}/repos/{REPO}{path}", gh.url()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    send(request).await.unwrap()
}

async fn started() -> TestGithub {
    TestGithub::start(REPO).await
}

fn git(directory: &Path, args: &[&str]) -> String {
    let author = ["-c", "user.name=A", "-c", "user.email=a@example.org"];
    let mut command = Command::new("git");
    command.current_dir(directory).args(author).args(args);
    let output = command.output().unwrap();
    assert!(output.status.success(), "git {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn objects_have_the_same_ids_as_in_git() {
    let gh = started().await;
    let head = gh.commit(|c| c);
    let commit = get(&gh, &format!("/git/commits/{head}"), &[]).await.json();
    let empty_tree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904";
    assert_eq!(commit["tree"]["sha"], empty_tree);
    gh.commit(|c| c.write("a", ""));
    let empty_blob = gh.blob_sha("a").unwrap().to_string();
    assert_eq!(empty_blob, "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
}

#[tokio::test]
async fn trees_and_commits_have_the_same_ids_as_in_git() {
    let gh = started().await;
    // `videos.txt` sorts before the folder, `videos0` after it.
    let files = [("videos/a.mp4", "A"), ("videos.txt", "B"), ("videos0", "C")];
    let head = gh.commit(|c| {
        files
            .iter()
            .fold(c, |c, (path, text)| c.write(*path, *text))
    });
    let commit = get(&gh, "/git/commits/", &[]).await;
    assert_eq!(commit.status, 404, "a SHA is needed");
    let commit = get(&gh, &format!("/git/commits/{head}"), &[]).await.json();

    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    git(at, &["init", "-q"]);
    std::fs::create_dir(at.join("videos")).unwrap();
    for (path, text) in files {
        std::fs::write(at.join(path), text).unwrap();
    }
    git(at, &["add", "."]);
    let tree = git(at, &["write-tree"]);
    assert_eq!(commit["tree"]["sha"], tree);

    let raw = format!(
        "tree {tree}\nauthor openhands <openhands@all-hands.dev> 1769558400 +0000\n\
         committer openhands <openhands@all-hands.dev> 1769558400 +0000\n\nUpdate videos\n"
    );
    std::fs::write(at.join("raw"), raw).unwrap();
    let sha = git(at, &["hash-object", "-t", "commit", "raw"]);
    assert_eq!(head.to_string(), sha);
    assert_eq!(commit["committer"]["date"], "2026-01-28T00:00:00Z");
}

#[tokio::test]
async fn two_trees_give_the_path_and_blob_of_every_file() {
    let gh = started().await;
    let head = gh.commit(|c| c.write("videos/a.mp4", "12345").write("README.md", ""));
    let commit = get(&gh, "/commits/heads/main", &[]).await.json();
    assert_eq!(commit["sha"], head.to_string());
    let root = commit["commit"]["tree"]["sha"].as_str().unwrap();
    let root = get(&gh, &format!("/git/trees/{root}"), &[]).await.json();
    let videos = &root["tree"][1];
    assert_eq!(
        (&videos["path"], &videos["type"]),
        (&json!("videos"), &json!("tree"))
    );
    let videos = videos["sha"].as_str().unwrap();
    let videos = get(&gh, &format!("/git/trees/{videos}"), &[]).await.json();
    let blob = gh.blob_sha("videos/a.mp4").unwrap();
    let url = format!("{}/repos/{REPO}/git/blobs/{blob}", gh.url());
    let entry = json!({"path": "a.mp4", "mode": "100644", "type": "blob", "sha": blob, "size": 5, "url": url});
    assert_eq!(videos["tree"], json!([entry]));
    assert_eq!(videos["truncated"], false);

    // A branch works as well; the response then contains the commit's SHA.
    let all = get(&gh, "/git/trees/main?recursive=1", &[]).await.json();
    assert_eq!(all["sha"], head.to_string());
    let paths: Vec<_> = all["tree"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["path"])
        .collect();
    assert_eq!(paths, ["README.md", "videos", "videos/a.mp4"]);

    gh.truncate_trees_at(2);
    let cut = get(&gh, "/git/trees/main?recursive=1", &[]).await.json();
    assert_eq!(cut["truncated"], true);
    assert_eq!(cut["tree"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_blob_is_base64_in_lines_unless_raw_is_requested() {
    let gh = started().await;
    gh.commit(|c| c.write("videos/a.mp4", vec![0xff; 60]));
    let blob = gh.blob_sha("videos/a.mp4").unwrap();
    let path = format!("/git/blobs/{blob}");
    let json = get(&gh, &path, &[]).await.json();
    assert_eq!(
        (&json["size"], &json["encoding"]),
        (&json!(60), &json!("base64"))
    );
    let line = "/".repeat(60);
    assert_eq!(json["content"], format!("{line}\n{}\n", "/".repeat(20)));
    let raw = get(&gh, &path, &[("accept", RAW)]).await;
    assert_eq!(raw.header("content-length"), "60");
    assert_eq!(raw.body, [0xff; 60]);
}

#[tokio::test]
async fn contents_over_one_mebibyte_are_empty_unless_raw() {
    let gh = started().await;
    let large = vec![7; (1 << 20) + 1];
    gh.commit(|c| {
        c.write("videos/a.mp4", large.clone())
            .write("videos/a.json", "{}")
    });
    let small = get(&gh, "/contents/videos/a.json?ref=main", &[])
        .await
        .json();
    assert_eq!(
        (&small["content"], &small["encoding"]),
        (&json!("e30=\n"), &json!("base64"))
    );
    let file = get(&gh, "/contents/videos/a.mp4", &[]).await.json();
    assert_eq!(
        (&file["content"], &file["encoding"]),
        (&json!(""), &json!("none"))
    );
    assert_eq!(file["size"], large.len());
    let raw = get(&gh, "/contents/videos/a.mp4", &[("accept", RAW)]).await;
    assert_eq!(raw.body, large);
    let folder = get(&gh, "/contents/videos", &[]).await.json();
    assert_eq!(folder[1]["path"], "videos/a.mp4");
}

#[tokio::test]
async fn each_call_has_its_own_not_found_message() {
    let gh = started().await;
    assert_eq!(get(&gh, "/commits/main", &[]).await.status, 409);
    gh.commit(|c| c.write("a", "a"));
    let zeros = "0".repeat(40);
    for (path, status, message) in [
        ("/nothing".to_owned(), 404, "Not Found".to_owned()),
        (format!("/git/commits/{zeros}"), 404, "Not Found".into()),
        (format!("/git/trees/{zeros}"), 404, "Not Found".into()),
        (format!("/git/blobs/{zeros}"), 404, "Not Found".into()),
        (format!("/compare/{zeros}...main"), 404, "Not Found".into()),
        ("/git/ref/heads/draft".into(), 404, "Not Found".into()),
        ("/contents/b".into(), 404, "Not Found".into()),
        ("/branches/draft".into(), 404, "Branch not found".into()),
        (
            format!("/commits/{zeros}"),
            422,
            format!("No commit found for SHA: {zeros}"),
        ),
    ] {
        let answer = get(&gh, &path, &[]).await;
        let docs = "https://docs.github.com/rest";
        let body =
            json!({"message": message, "documentation_url": docs, "status": status.to_string()});
        assert_eq!((answer.status, answer.json()), (status, body), "{path}");
    }
}

#[tokio::test]
async fn branches_and_refs_show_their_commit() {
    let gh = started().await;
    let head = gh.commit(|c| c.write("a", "a")).to_string();
    let branch = get(&gh, "/branches/main", &[]).await.json();
    assert_eq!(
        (&branch["name"], &branch["commit"]["sha"]),
        (&json!("main"), &json!(head))
    );
    let reference = get(&gh, "/git/ref/heads/main", &[]).await.json();
    assert_eq!(reference["ref"], "refs/heads/main");
    assert_eq!(reference["object"]["sha"], head);
    for name in ["HEAD", "main", "heads/main", "heads%2Fmain", &head] {
        let commit = get(&gh, &format!("/commits/{name}"), &[]).await.json();
        assert_eq!(commit["sha"], head, "{name}");
        assert_eq!(commit["files"][0]["status"], "added", "{name}");
    }
}

#[tokio::test]
async fn a_comparison_says_which_side_is_ahead() {
    let gh = started().await;
    let base = gh.commit(|c| c.write("a", "1"));
    let left = gh.commit(|c| c.write("a", "2"));
    gh.force_to(base);
    let right = gh.commit(|c| c.write("b", "3"));
    let merged = gh.commit(|c| c.write("a", "2").merge(left));
    for (from, to, status, ahead, behind) in [
        (base, base, "identical", 0, 0),
        (base, left, "ahead", 1, 0),
        (left, base, "behind", 0, 1),
        (left, right, "diverged", 1, 1),
        (base, merged, "ahead", 3, 0),
    ] {
        let path = format!("/compare/{from}...{to}?per_page=1");
        let json = get(&gh, &path, &[]).await.json();
        assert_eq!(json["status"], status);
        assert_eq!(
            (&json["ahead_by"], &json["behind_by"]),
            (&json!(ahead), &json!(behind))
        );
        let at_most_one = json["commits"].as_array().unwrap().len();
        assert_eq!(at_most_one, 1.min(ahead));
    }
    let json = get(&gh, &format!("/compare/{left}...{right}"), &[])
        .await
        .json();
    assert_eq!(json["merge_base_commit"]["sha"], base.to_string());
    let merged = get(&gh, "/git/trees/main", &[]).await.json();
    assert_eq!(merged["tree"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_lagging_api_shows_the_old_head_and_denies_the_new_one() {
    let gh = started().await;
    let old = gh.commit(|c| c.write("a", "1"));
    let new = gh.commit(|c| c.write("a", "2"));
    gh.serve_head(Some(old));
    assert_eq!(
        get(&gh, "/commits/main", &[]).await.json()["sha"],
        old.to_string()
    );
    assert_eq!(
        get(&gh, &format!("/compare/{new}...main"), &[])
            .await
            .status,
        404
    );
    assert_eq!(get(&gh, &format!("/commits/{new}"), &[]).await.status, 422);
    gh.serve_head(None);
    assert_eq!(
        get(&gh, "/commits/main", &[]).await.json()["sha"],
        new.to_string()
    );
    assert_eq!(
        get(&gh, &format!("/compare/{new}...main"), &[])
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn an_unchanged_response_is_304_and_free_with_a_token() {
    let gh = started().await;
    gh.commit(|c| c.write("a", "1"));
    gh.quota(10, 1_800_000_000);
    let first = get(&gh, "/commits/main", &[]).await;
    assert_eq!(first.header("x-ratelimit-remaining"), "9");
    assert_eq!(first.header("x-ratelimit-used"), "4991");
    let etag = first.header("etag");
    let with_token = [("if-none-match", etag), ("authorization", "Bearer t")];
    let again = get(&gh, "/commits/main", &with_token).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    assert_eq!(again.header("x-ratelimit-remaining"), "9");
    let anonymous = get(&gh, "/commits/main", &with_token[..1]).await;
    assert_eq!(anonymous.status, 304);
    assert_eq!(anonymous.header("x-ratelimit-remaining"), "8");
    gh.commit(|c| c.write("a", "2"));
    assert_eq!(get(&gh, "/commits/main", &with_token).await.status, 200);
}

#[tokio::test]
async fn an_exhausted_quota_is_a_403_with_the_time_of_its_reset() {
    let gh = started().await;
    gh.commit(|c| c.write("a", "1"));
    gh.quota(0, 1_800_000_000);
    let refused = get(&gh, "", &[]).await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.header("x-ratelimit-remaining"), "0");
    assert_eq!(refused.header("x-ratelimit-reset"), "1800000000");
    let message = refused.json()["message"].as_str().unwrap().to_owned();
    assert!(message.starts_with("API rate limit exceeded"), "{message}");
    gh.no_quota();
    assert_eq!(get(&gh, "", &[]).await.status, 200);
}

#[tokio::test]
async fn a_private_repository_is_hidden_without_a_token() {
    let gh = started().await;
    gh.commit(|c| c.write("a", "1"));
    gh.require_token(TOKEN);
    let hidden = get(&gh, "", &[]).await;
    assert_eq!(
        (hidden.status, &hidden.json()["message"]),
        (404, &json!("Not Found"))
    );
    let wrong = get(&gh, "", &[("authorization", "Bearer x")]).await;
    assert_eq!(
        (wrong.status, &wrong.json()["message"]),
        (401, &json!("Bad credentials"))
    );
    let bearer = format!("Bearer {TOKEN}");
    let right = get(&gh, "", &[("authorization", &bearer)]).await.json();
    assert_eq!(
        (&right["private"], &right["full_name"]),
        (&json!(true), &json!(REPO))
    );
    assert_eq!(right["clone_url"], gh.clone_url());
    assert_eq!(right["permissions"]["pull"], true);
}

#[tokio::test]
async fn a_renamed_repository_moves_to_its_id_and_its_new_name() {
    let gh = started().await;
    gh.commit(|c| c.write("a", "1"));
    gh.rename("acme/films");
    let new_name = format!("{}/repos/acme/films", gh.url());
    let new_name = send(client().get(new_name)).await.unwrap().json();
    assert_eq!(new_name["full_name"], "acme/films");
    let moved = get(&gh, "/commits/heads%2Fmain?per_page=1", &[]).await;
    assert_eq!(moved.status, 301);
    let location = moved.header("location");
    let id = &new_name["id"];
    let tail = format!("/repositories/{id}/commits/heads%2Fmain?per_page=1");
    assert_eq!(location, format!("{}{tail}", gh.url()));
    assert_eq!(moved.json()["message"], "Moved Permanently");
    assert_eq!(send(client().get(location)).await.unwrap().status, 200);
}

async fn batch(gh: &FakeGithub, objects: Value, password: &str) -> Answer {
    let body = json!({"operation": "download", "transfers": ["basic"], "objects": objects});
    let url = format!("{}/info/lfs/objects/batch", gh.clone_url());
    let request = client().post(url).body(body.to_string());
    let request = request.header("accept", LFS).header("content-type", LFS);
    send(request.basic_auth("x-access-token", Some(password)))
        .await
        .unwrap()
}

#[tokio::test]
async fn lfs_needs_basic_auth_for_the_batch_and_its_own_header_for_the_object() {
    let mut gh = started().await;
    gh.require_token(TOKEN);
    gh.lfs_on_another_host().await;
    gh.commit(|c| {
        c.write_lfs("a.mp4", "large")
            .write_lfs_missing("b.mp4", "gone")
    });
    let oid = |text: &str| hex::encode(<sha2::Sha256 as sha2::Digest>::digest(text));
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n",
        oid("large")
    );
    let blob = gh.blob_sha("a.mp4").unwrap();
    let blob = get(
        &gh,
        &format!("/git/blobs/{blob}"),
        &[
            ("accept", RAW),
            ("authorization", &format!("Bearer {TOKEN}")),
        ],
    )
    .await;
    assert_eq!(blob.body, pointer.as_bytes());

    let objects = json!([{"oid": oid("large"), "size": 5}, {"oid": oid("gone"), "size": 4}]);
    let refused = batch(&gh, objects.clone(), "wrong").await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("lfs-authenticate"), "Basic realm=\"GitHub\"");
    let answer = batch(&gh, objects, TOKEN).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, LFS));
    let answer = answer.json();
    let missing = json!({"code": 404, "message": "Object does not exist on the server"});
    assert_eq!(answer["objects"][1]["error"], missing);

    let link = &answer["objects"][0]["actions"]["download"];
    let href = link["href"].as_str().unwrap();
    assert!(href.starts_with("http://127.0.0.2:"), "{href}");
    let ticket = link["header"]["Authorization"].as_str().unwrap();
    for (authorization, status) in [
        (String::new(), 403),
        (format!("Bearer {TOKEN}"), 400),
        // x-access-token:ghp_fake
        ("Basic eC1hY2Nlc3MtdG9rZW46Z2hwX2Zha2U=".to_owned(), 400),
        (ticket.to_owned(), 200),
    ] {
        let request = client().get(href).header("authorization", &authorization);
        assert_eq!(
            send(request).await.unwrap().status,
            status,
            "{authorization}"
        );
    }
    let bytes = client().get(href).header("authorization", ticket);
    assert_eq!(send(bytes).await.unwrap().body, b"large");
}

#[tokio::test]
async fn a_push_lists_the_changes_of_each_commit_to_its_first_parent() {
    let gh = started().await;
    let before = gh.commit(|c| c.write("videos/a.mp4", "1").write("videos/b.mp4", "1"));
    let first = gh.commit(|c| c.write("videos/a.mp4", "2").remove("videos/b.mp4"));
    let after = gh.commit(|c| c.write("videos/c.mp4", "1").message("Add c 🎬"));
    let push = gh.push(before, after).payload;
    assert_eq!(push["ref"], "refs/heads/main");
    assert_eq!(
        (&push["created"], &push["forced"]),
        (&json!(false), &json!(false))
    );
    let ids: Vec<_> = push["commits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["id"])
        .collect();
    assert_eq!(ids, [&json!(first), &json!(after)]);
    assert_eq!(push["commits"][0]["modified"], json!(["videos/a.mp4"]));
    assert_eq!(push["commits"][0]["removed"], json!(["videos/b.mp4"]));
    assert_eq!(push["head_commit"]["added"], json!(["videos/c.mp4"]));
    assert!(push["repository"]["pushed_at"].is_i64());
    assert_eq!(push["repository"]["default_branch"], "main");
}

#[tokio::test]
async fn creation_deletion_and_roll_back_list_no_commits() {
    let gh = started().await;
    let old = gh.commit(|c| c.write("a", "1"));
    let new = gh.commit(|c| c.write("a", "2"));
    for (before, after, created, deleted, forced) in [
        (NO_COMMIT, new, true, false, false),
        (new, NO_COMMIT, false, true, false),
        (new, old, false, false, true),
    ] {
        let push = gh.push(before, after).payload;
        assert_eq!(push["commits"], json!([]));
        assert_eq!(push["created"], created);
        assert_eq!(push["deleted"], deleted);
        assert_eq!(push["forced"], forced);
        assert_eq!(push["head_commit"].is_null(), deleted);
    }
    gh.state().repository.branches.insert("draft".into(), new);
    let merged = gh.push(old, new).payload;
    assert_eq!(
        merged["commits"][0]["distinct"], false,
        "draft has it already"
    );
}

#[tokio::test]
async fn a_push_lists_at_most_2048_commits() {
    let gh = started().await;
    let before = gh.commit(|c| c.write("a", "0"));
    let mut after = before;
    for n in 1..=2049 {
        after = gh.commit(|c| c.write("a", n.to_string()));
    }
    let push = gh.push(before, after).payload;
    assert_eq!(push["commits"].as_array().unwrap().len(), 2048);
    assert_eq!(push["head_commit"]["id"], after.to_string());
}

#[tokio::test]
async fn a_delivery_is_signed_over_its_body_as_it_is_sent() {
    // The vectors of GitHub's documentation, and the form, which is the default of its UI.
    let gh = started().await;
    let mut delivery = gh.ping().as_form();
    delivery.payload = json!({"yo": true});
    assert_eq!(delivery.body(), "payload=%7B%22yo%22%3Atrue%7D");
    let headers = delivery.signed("0123456789abcdef");
    let header = |name| &headers.iter().find(|(n, _)| *n == name).unwrap().1;
    let signature = header("x-hub-signature-256");
    assert!(signature.starts_with("sha256=30f622d5"), "{signature}");
    assert!(signature.ends_with("a94d"), "{signature}");
    assert!(header("x-hub-signature").starts_with("sha1="));
    assert_eq!(header("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(header("x-github-event"), "ping");
    assert_eq!(header("x-github-delivery"), &delivery.guid);
    assert!(header("user-agent").starts_with("GitHub-Hookshot/"));
    let unsigned = delivery.unsigned();
    assert!(
        !unsigned
            .iter()
            .any(|(name, _)| name.starts_with("x-hub-signature"))
    );
}

#[tokio::test]
async fn requests_and_responses_are_recorded() {
    let gh = started().await;
    gh.commit(|c| c.write("a", "1"));
    get(
        &gh,
        "/commits/main?per_page=1",
        &[("authorization", "Bearer t"), ("accept", RAW)],
    )
    .await;
    let call = Call {
        method: "GET".into(),
        path: format!("/repos/{REPO}/commits/main"),
        query: "per_page=1".into(),
        authorization: Some("Bearer t".into()),
        accept: Some(RAW.into()),
        if_none_match: None,
        status: Some(200),
    };
    assert_eq!(gh.take_calls(), [call]);
    assert_eq!(gh.calls(), []);
}

/// A blob of 1,000 zeros, and how to get it.
async fn with_a_blob() -> (TestGithub, reqwest::RequestBuilder) {
    let gh = started().await;
    gh.commit(|c| c.write("a", vec![0; 1000]));
    let blob = gh.blob_sha("a").unwrap();
    let url = format!("{}/repos/{REPO}/git/blobs/{blob}", gh.url());
    (gh, client().get(url).header("accept", RAW))
}

#[tokio::test]
async fn whole_responses_can_be_replaced_once_or_permanently() {
    let (gh, blob) = with_a_blob().await;
    let again = || blob.try_clone().unwrap();
    let busy = Fault::Status {
        code: 503,
        headers: vec![("retry-after", "7".into())],
        body: "busy".into(),
    };
    gh.fault_once(|call| call.path.contains("/git/blobs/"), busy);
    let answer = send(again()).await.unwrap();
    assert_eq!((answer.status, answer.header("retry-after")), (503, "7"));
    gh.fault(|_| true, Fault::Empty200);
    for _ in 0..2 {
        assert_eq!(send(again()).await.unwrap().body, b"");
    }
    gh.clear_faults();
    gh.fault(|_| true, Fault::Html);
    let html = send(again()).await.unwrap();
    assert_eq!(html.header("content-type"), "text/html; charset=utf-8");
    gh.clear_faults();
    gh.fault(|_| true, Fault::Delay(Duration::from_millis(1)));
    assert_eq!(send(again()).await.unwrap().body, [0; 1000]);
    assert_eq!(gh.calls()[0].status, Some(503));
}

#[tokio::test]
async fn bodies_can_be_cut_stalled_corrupted_or_endless() {
    let (gh, blob) = with_a_blob().await;
    let again = || blob.try_clone().unwrap();

    gh.fault_once(|_| true, Fault::CorruptByte { at: 999 });
    let corrupt = send(again()).await.unwrap().body;
    assert_eq!((corrupt.len(), corrupt[998], corrupt[999]), (1000, 0, 0xff));

    gh.fault_once(|_| true, Fault::Cut { after_bytes: 10 });
    let mut cut = again().send().await.unwrap();
    assert_eq!(cut.content_length(), Some(1000));
    assert_eq!(cut.chunk().await.unwrap().unwrap().len(), 10);
    assert!(cut.chunk().await.is_err());

    gh.fault_once(|_| true, Fault::Endless);
    let mut endless = again().send().await.unwrap();
    assert_eq!(endless.content_length(), None);
    let mut read = 0;
    while read < 1 << 20 {
        read += endless.chunk().await.unwrap().unwrap().len();
    }
    drop(endless);

    gh.fault_once(|_| true, Fault::Stall { after_bytes: 10 });
    let mut stalled = again().send().await.unwrap();
    assert_eq!(stalled.chunk().await.unwrap().unwrap().len(), 10);
    gh.fault_once(|_| true, Fault::Hang);
    let hanging = tokio::spawn(send(again()));
    // Hanging and stalled requests end only when the server stops.
    while gh.calls().last().unwrap().status.is_some() {
        tokio::task::yield_now().await;
    }
    gh.stop().await;
    assert!(stalled.chunk().await.is_err());
    assert!(
        hanging
            .await
            .unwrap()
            .is_ok_and(|answer| answer.status == 503)
    );
}

#[tokio::test]
async fn a_pause_holds_requests_until_it_is_dropped() {
    let (gh, blob) = with_a_blob().await;
    let pause = gh.pause(|call| call.path.contains("/git/blobs/"));
    let held = tokio::spawn(send(blob.try_clone().unwrap()));
    pause.held(1).await;
    assert_eq!(gh.calls()[0].status, None);
    assert_eq!(
        get(&gh, "", &[]).await.status,
        200,
        "other requests are not held"
    );
    drop(pause);
    assert_eq!(held.await.unwrap().unwrap().status, 200);
    assert_eq!(send(blob).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_local_repository_is_served_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    git(at, &["init", "-q", "-b", "trunk"]);
    let empty = FakeGithub::serve_git(REPO, at).await;
    assert!(
        matches!(empty, Err(LocalError::Empty(_))),
        "{:?}",
        empty.err()
    );
    std::fs::create_dir(at.join("videos")).unwrap();
    std::fs::write(at.join("videos/ä b.mp4"), vec![1; 100_000]).unwrap();
    std::fs::write(at.join("README.md"), "# hello").unwrap();
    git(at, &["add", "."]);
    git(at, &["commit", "-q", "-m", "First\n\nand more"]);
    let (head, tree) = (
        git(at, &["rev-parse", "HEAD"]),
        git(at, &["rev-parse", "HEAD^{tree}"]),
    );
    let oid = "ab".repeat(32);
    let stored = at.join(".git/lfs/objects/ab/ab");
    std::fs::create_dir_all(&stored).unwrap();
    std::fs::write(stored.join(&oid), "large").unwrap();

    let gh = FakeGithub::serve_git(REPO, at).await.unwrap();
    assert_eq!(gh.head().to_string(), head);
    assert_eq!(get(&gh, "", &[]).await.json()["default_branch"], "trunk");
    let commit = get(&gh, "/commits/HEAD", &[]).await.json();
    assert_eq!(commit["commit"]["tree"]["sha"], tree);
    assert_eq!(commit["commit"]["message"], "First\n\nand more");
    let tree = get(&gh, "/git/trees/trunk?recursive=1", &[]).await.json();
    let video = &tree["tree"][2];
    assert_eq!(
        (&video["path"], &video["size"]),
        (&json!("videos/ä b.mp4"), &json!(100_000))
    );
    let blob = format!("/git/blobs/{}", video["sha"].as_str().unwrap());
    assert_eq!(
        get(&gh, &blob, &[("accept", RAW)]).await.body,
        vec![1; 100_000]
    );
    assert_eq!(get(&gh, &blob, &[]).await.json()["size"], 100_000);
    assert_eq!(gh.push(NO_COMMIT, gh.head()).payload["after"], head);

    let link = batch(&gh, json!([{"oid": oid, "size": 5}]), "")
        .await
        .json();
    let link = &link["objects"][0]["actions"]["download"];
    let ticket = link["header"]["Authorization"].as_str().unwrap();
    let object = client()
        .get(link["href"].as_str().unwrap())
        .header("authorization", ticket);
    assert_eq!(send(object).await.unwrap().body, b"large");
}

#[tokio::test]
async fn a_path_without_a_repository_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let error = FakeGithub::serve_git(REPO, directory.path())
        .await
        .err()
        .unwrap();
    let message = error.to_string();
    assert!(
        message.contains("is not a readable git repository"),
        "{message}"
    );
    let nowhere = directory.path().join("nowhere");
    let error = FakeGithub::serve_git(REPO, &nowhere).await.err().unwrap();
    assert!(matches!(error, LocalError::NoRepository { .. }), "{error}");
}

/// A request to a path below `/hooks`, with a token.
fn hooks_call(gh: &FakeGithub, method: &str, path: &str) -> reqwest::RequestBuilder {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/repos/{REPO}/hooks{path}", gh.url());
    client
        .request(method.parse().unwrap(), url)
        .bearer_auth("t")
}

async fn answer_of(request: reqwest::RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.unwrap();
    (
        answer.status().as_u16(),
        answer.json().await.unwrap_or_default(),
    )
}

#[tokio::test]
async fn a_hook_never_shows_its_secret_and_exists_once_for_a_url() {
    let gh = started().await;
    let body = json!({"config": {"url": CLOSED, "secret": "a canary"}});
    let (status, made) = answer_of(hooks_call(&gh, "POST", "").json(&body)).await;
    assert_eq!(
        (status, &made["config"]["secret"]),
        (201, &json!("********"))
    );
    assert_eq!(
        (&made["config"]["content_type"], &made["events"]),
        (&json!("form"), &json!(["push"]))
    );
    let (status, refused) = answer_of(hooks_call(&gh, "POST", "").json(&body)).await;
    assert_eq!(
        (status, &refused["message"]),
        (422, &json!("Validation Failed"))
    );
    let (status, all) = answer_of(hooks_call(&gh, "GET", "")).await;
    assert_eq!((status, all), (200, json!([made])));
}

#[tokio::test]
async fn hooks_are_hidden_without_a_token() {
    let gh = started().await;
    let hooks = format!("{}/repos/{REPO}/hooks", gh.url());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let (status, body) = answer_of(client.get(hooks)).await;
    assert_eq!((status, &body["message"]), (404, &json!("Not Found")));
}

#[tokio::test]
async fn each_attempt_has_its_own_id_and_the_guid_of_the_delivery() {
    let gh = started().await;
    let id = gh.add_hook(&json!({"config": {"url": CLOSED}}));
    let (status, _) = answer_of(hooks_call(&gh, "POST", &format!("/{id}/pings"))).await;
    assert_eq!(status, 204);
    let log = format!("/{id}/deliveries");
    let (_, first) = answer_of(hooks_call(&gh, "GET", &log)).await;
    let attempts = format!("{log}/{}/attempts", first[0]["id"]);
    let (status, _) = answer_of(hooks_call(&gh, "POST", &attempts)).await;
    assert_eq!(status, 202);
    let (_, both) = answer_of(hooks_call(&gh, "GET", &log)).await;
    assert_eq!(both[0]["guid"], both[1]["guid"]);
    assert_ne!(both[0]["id"], both[1]["id"]);
    assert_eq!(
        (&both[0]["redelivery"], &both[1]["redelivery"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        (&both[0]["status"], &both[0]["status_code"]),
        (&json!("failed to connect to host"), &json!(0))
    );
}
