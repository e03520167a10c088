//! Both stores, the folder and Supabase Storage, store objects completely or not at all, and report each
//! failure with its code.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use sha1::{Digest, Sha1};
use tempfile::TempDir;
use tokio::sync::mpsc;
use video_ingest::clock::Clock;
use video_ingest::domain::failure::{Class, Code, Failure};
use video_ingest::domain::ids::GitSha;
use video_ingest::services::storage::{
    BodyStream, BucketLimits, Digests, FolderStore, ObjectPath, Playable, Store, SupabaseStore,
    Timeouts,
};

use crate::support::fake_storage::{
    ANON_JWT, Answer, EXPIRED_JWT, FakeStorage, Fault, Op, SECRET_KEY, SERVICE_JWT,
};

const BUCKET: &str = "lesson-assets";
const VIDEO: &str = "11111111-1111-4111-8111-111111111111/34b9a0c7-62d7-4002-a642-00488b2c7f7c/0beee2d2-ace7-4ccf-81a7-41a6c43c1a75.mp4";

/// A timeout that is longer than a response on loopback takes, and short enough for a test.
const SHORT: Duration = Duration::from_secs(1);

fn video() -> ObjectPath {
    ObjectPath::from_stored(BUCKET, VIDEO).unwrap()
}

fn digests(bytes: &[u8]) -> Digests {
    let hash = Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes);
    Digests {
        blob_sha: GitSha::from_bytes(hash.finalize().into()),
        sha256: hex::encode(sha2::Sha256::digest(bytes)),
    }
}

fn stored(bytes: &[u8]) -> Option<(u64, String)> {
    Some((bytes.len() as u64, digests(bytes).sha256))
}

async fn info(store: &Store) -> Option<(u64, String)> {
    let info = store.info(&video()).await.unwrap()?;
    Some((info.size, info.sha256.unwrap()))
}

fn body(bytes: &[u8]) -> BodyStream {
    stream::iter([Ok(Bytes::copy_from_slice(bytes))]).boxed()
}

async fn put(store: &Store, bytes: &[u8]) -> Result<(), Failure> {
    let size = bytes.len() as u64;
    store
        .put(&video(), size, &digests(bytes), body(bytes))
        .await
}

async fn put_code(store: &Store, bytes: &[u8]) -> Code {
    put(store, bytes).await.unwrap_err().code
}

async fn played(store: &Store) -> Vec<u8> {
    match store.playable(&video()).await.unwrap().unwrap() {
        Playable::File(file) => fs::read(file).unwrap(),
        Playable::Url(url) => {
            let response = reqwest::Client::new().get(url).send().await.unwrap();
            response.bytes().await.unwrap().into()
        }
    }
}

fn folder() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = FolderStore::open(dir.path()).unwrap();
    (dir, Store::Folder(store))
}

fn supabase(storage: &FakeStorage, key: &str, timeouts: Timeouts) -> Store {
    let url = storage.url().parse().unwrap();
    Store::Supabase(SupabaseStore::new(&url, &key.into(), Clock::default(), timeouts).unwrap())
}

fn with_key(storage: &FakeStorage, key: &str) -> Store {
    supabase(storage, key, Timeouts::default())
}

/// For tests in which a call stalls.
fn with_short_timeouts(storage: &FakeStorage) -> Store {
    let timeouts = Timeouts {
        connect: SHORT,
        stall: SHORT,
        answer: SHORT,
        request: SHORT,
        ..Timeouts::default()
    };
    supabase(storage, SECRET_KEY, timeouts)
}

async fn project() -> (FakeStorage, Store) {
    let storage = FakeStorage::start().await;
    storage.create_bucket(BUCKET, Some(50 << 20), Some(&["video/mp4"]));
    let store = with_key(&storage, SECRET_KEY);
    (storage, store)
}

/// Runs the same test on the folder and on Supabase Storage.
async fn on_both(test: impl AsyncFn(&Store)) {
    let (_dir, store) = folder();
    test(&store).await;
    let (_storage, store) = project().await;
    test(&store).await;
}

#[tokio::test]
async fn a_stored_object_is_found_and_plays() {
    on_both(async |store| {
        for size in [1, 65_537, 3_000_000] {
            let bytes = vec![7; size];
            put(store, &bytes).await.unwrap();
            assert_eq!(info(store).await, stored(&bytes));
            let read = store.digests(&video(), size as u64).await.unwrap();
            assert_eq!(read, Some(digests(&bytes)));
            for other in [size - 1, size + 1] {
                let read = store.digests(&video(), other as u64).await.unwrap();
                assert_eq!(read, None, "{other}");
            }
            assert_eq!(played(store).await, bytes);
        }
    })
    .await;
}

#[tokio::test]
async fn a_missing_object_is_not_an_error() {
    on_both(async |store| {
        assert_eq!(store.info(&video()).await.unwrap(), None);
        assert_eq!(store.playable(&video()).await.unwrap(), None);
        store.delete(&video()).await.unwrap();
        put(store, b"video").await.unwrap();
        store.delete(&video()).await.unwrap();
        store.delete(&video()).await.unwrap();
        assert_eq!(store.info(&video()).await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn the_old_version_stays_until_the_new_one_is_complete() {
    on_both(async |store| {
        put(store, b"old").await.unwrap();
        let (pieces, mut receiver) = mpsc::unbounded_channel::<io::Result<Bytes>>();
        let (taken, mut progress) = mpsc::unbounded_channel();
        let body = stream::poll_fn(move |cx| receiver.poll_recv(cx))
            .inspect_ok(move |piece| taken.send(piece.len()).unwrap())
            .boxed();
        let wanted = digests(b"new version");
        let path = video();
        let putting = store.put(&path, 11, &wanted, body);
        let checking = async {
            pieces.send(Ok(Bytes::from_static(b"new "))).unwrap();
            assert_eq!(progress.recv().await, Some(4));
            assert_eq!(played(store).await, b"old");
            pieces.send(Ok(Bytes::from_static(b"version"))).unwrap();
            drop(pieces);
            assert_eq!(progress.recv().await, Some(7));
            Ok(())
        };
        tokio::try_join!(putting, checking).unwrap();
        assert_eq!(info(store).await, stored(b"new version"));
    })
    .await;
}

#[tokio::test]
async fn an_incomplete_body_changes_nothing() {
    on_both(async |store| {
        put(store, b"old").await.unwrap();
        let pieces = [Ok(Bytes::from_static(b"ne")), Err(io::Error::other("gone"))];
        let broken = stream::iter(pieces).boxed();
        let path = video();
        let done = store.put(&path, 3, &digests(b"new"), broken).await;
        assert_eq!(done.unwrap_err().code, Code::StorageUnavailable);
        // Nor does one that is too short.
        let short = body(b"ne");
        assert!(store.put(&path, 3, &digests(b"new"), short).await.is_err());
        assert_eq!(played(store).await, b"old");
    })
    .await;
}

#[tokio::test]
async fn an_empty_file_is_not_stored() {
    on_both(async |store| {
        assert_eq!(put_code(store, b"").await, Code::NotAnMp4);
        assert_eq!(store.info(&video()).await.unwrap(), None);
    })
    .await;
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[tokio::test]
async fn an_abandoned_put_leaves_no_file() {
    let (dir, store) = folder();
    let (begun, mut has_begun) = mpsc::unbounded_channel();
    let first = stream::iter([Ok(Bytes::from_static(b"x"))]);
    let then = stream::once(async move {
        begun.send(()).unwrap();
        std::future::pending().await
    });
    let endless = first.chain(then).boxed();
    let (path, wanted) = (video(), digests(b"xy"));
    let half_done = async {
        has_begun.recv().await;
        assert_eq!(files_below(dir.path()).len(), 1);
    };
    tokio::select! {
        _ = store.put(&path, 2, &wanted, endless) => unreachable!("the body never ends"),
        () = half_done => {}
    }
    assert_eq!(files_below(dir.path()), [] as [PathBuf; 0]);
}

#[tokio::test]
async fn opening_the_folder_removes_only_leftovers_of_a_crash() {
    let (dir, store) = folder();
    put(&store, b"video").await.unwrap();
    let object = dir.path().join(BUCKET).join(VIDEO);
    let left = object.with_file_name(".tmp-of-a-crash");
    let alive = object.with_file_name(".tmp-of-another-process");
    fs::write(&left, b"half").unwrap();
    let writer = fs::File::create(&alive).unwrap();
    writer.lock().unwrap();
    FolderStore::open(dir.path()).unwrap();
    let mut files = files_below(dir.path());
    files.sort();
    assert_eq!(files, [alive, object]);
}

#[tokio::test]
async fn the_folder_follows_no_link_out_of_its_root() {
    let (dir, store) = folder();
    let outside = tempfile::tempdir().unwrap();
    let (user, _) = VIDEO.split_once('/').unwrap();
    fs::create_dir(dir.path().join(BUCKET)).unwrap();
    std::os::unix::fs::symlink(outside.path(), dir.path().join(BUCKET).join(user)).unwrap();
    fs::write(outside.path().join(".tmp-not-ours"), b"").unwrap();

    assert_eq!(put_code(&store, b"video").await, Code::StorageDenied);
    assert_eq!(
        store.info(&video()).await.unwrap_err().code,
        Code::StorageDenied
    );
    FolderStore::open(dir.path()).unwrap();
    assert_eq!(
        files_below(outside.path()),
        [outside.path().join(".tmp-not-ours")]
    );
}

#[tokio::test]
async fn an_upload_is_one_sized_request_with_its_digests() {
    let (storage, store) = project().await;
    put(&store, &[7; 300_000]).await.unwrap();
    let at = format!("{BUCKET}/{VIDEO}");
    let headers = storage.history(&at).remove(0).headers;
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("content-length"), Some("300000"));
    assert_eq!(header("transfer-encoding"), None);
    assert_eq!(header("content-type"), Some("video/mp4"));
    assert_eq!(header("x-upsert"), Some("true"));
    assert_eq!(header("cache-control"), Some("no-cache"));
    assert_eq!(
        header("user-agent"),
        Some(concat!("video-ingest/", env!("CARGO_PKG_VERSION")))
    );
    assert_eq!(header("apikey"), Some(SECRET_KEY));
    assert_eq!(header("authorization"), None);
    assert_eq!(storage.calls(), [format!("POST /storage/v1/object/{at}"),]);

    let with_jwt = with_key(&storage, SERVICE_JWT);
    put(&with_jwt, b"video").await.unwrap();
    let headers = storage.history(&at).remove(1).headers;
    assert_eq!(headers["apikey"], SERVICE_JWT);
    assert_eq!(headers["authorization"], format!("Bearer {SERVICE_JWT}"));
}

#[tokio::test]
async fn a_lost_response_is_resolved_by_checking_the_object() {
    let (storage, _) = project().await;
    let store = with_short_timeouts(&storage);
    for (n, fault) in [
        Fault::LoseAnswer,
        Fault::NoAnswer,
        Fault::DoneBut(Answer::new(502, "text/html", "<html>Bad Gateway</html>")),
        Fault::DoneBut(Answer::new(500, "text/plain", "")),
    ]
    .into_iter()
    .enumerate()
    {
        storage.fault(Op::Upload, fault.clone());
        let bytes = vec![n as u8; 1000];
        put(&store, &bytes)
            .await
            .unwrap_or_else(|failure| panic!("{fault:?}: {failure}"));
        assert_eq!(storage.uploads(&format!("{BUCKET}/{VIDEO}")), n + 1);
    }
}

#[tokio::test]
async fn a_failed_upload_is_retried_later() {
    let (storage, store) = project().await;
    // It has the same size as the new one, so that only the digest differs.
    put(&store, b"old").await.unwrap();
    let html = || Answer::new(502, "text/html", "<html>Bad Gateway</html>");
    let long = Answer::new(503, "text/plain", "x".repeat(1 << 20));
    for fault in [
        Fault::CutAfter(1),
        Fault::Answer(html()),
        Fault::Answer(Answer::new(500, "text/plain", "")),
        Fault::Answer(Answer::refusal(
            500,
            "500",
            "connect ECONNREFUSED 10.0.0.7:9000",
            "Error",
            "S3Error",
        )),
        Fault::Answer(long),
        Fault::Poison(html()),
    ] {
        storage.fault(Op::Upload, fault.clone());
        let failure = put(&store, b"new").await.expect_err(&format!("{fault:?}"));
        assert_eq!(failure.code, Code::StorageUnavailable, "{fault:?}");
        assert!(!failure.message.contains("10.0.0.7"), "{failure}");
        assert!(!failure.message.contains("127.0.0.1"), "{failure}");
    }
    assert_eq!(played(&store).await, b"old");
    drop(storage);
    let failure = put(&store, b"new").await.unwrap_err();
    assert_eq!(failure.code, Code::StorageUnavailable);
    assert!(!failure.message.contains("127.0.0.1"), "{failure}");
}

#[tokio::test]
async fn an_oversized_response_is_rejected() {
    let (storage, store) = project().await;
    let long = format!(r#"{}{{"size":1}}"#, " ".repeat(1 << 20));
    storage.fault(
        Op::Info,
        Fault::Answer(Answer::new(200, "application/json", long)),
    );
    let failure = store.info(&video()).await.unwrap_err();
    assert_eq!(failure.code, Code::StorageUnavailable);
}

#[tokio::test]
async fn no_redirect_is_followed_with_our_key() {
    let (storage, store) = project().await;
    let moved = || Answer::new(302, "text/plain", "").with("location", "/elsewhere");
    storage.fault(Op::Info, Fault::Answer(moved()));
    let failure = store.info(&video()).await.unwrap_err();
    assert_eq!(failure.code, Code::StorageUnavailable);
    assert_eq!(storage.calls().len(), 1, "{:?}", storage.calls());
}

#[tokio::test]
async fn retry_after_of_the_storage_is_returned() {
    let (storage, store) = project().await;
    let busy = Answer::new(429, "text/plain", "").with("retry-after", "17");
    storage.fault(Op::Upload, Fault::Answer(busy));
    let failure = put(&store, b"video").await.unwrap_err();
    assert_eq!(failure.retry_after, Some(Duration::from_secs(17)));
}

#[tokio::test]
async fn each_refusal_has_its_code() {
    let (storage, store) = project().await;
    storage.create_bucket(BUCKET, Some(5), Some(&["video/mp4"]));
    assert_eq!(put_code(&store, b"six by").await, Code::TooLarge);
    put(&store, b"fives").await.unwrap();
    storage.create_bucket(BUCKET, None, Some(&["image/png"]));
    assert_eq!(put_code(&store, b"video").await, Code::MimeNotAllowed);

    let nowhere = ObjectPath::from_stored("nowhere", VIDEO).unwrap();
    let put = store.put(&nowhere, 1, &digests(b"x"), body(b"x")).await;
    assert_eq!(put.unwrap_err().code, Code::BucketMissing);
    assert_eq!(
        store.limits("nowhere").await.unwrap_err().code,
        Code::BucketMissing
    );

    for key in ["eyJh.eyJi.x", EXPIRED_JWT, "sb_secret_of_another"] {
        assert_eq!(
            put_code(&with_key(&storage, key), b"video").await,
            Code::StorageDenied
        );
    }
    // A JWT of another project, or of this one before its secret was rotated.
    let rotated = with_key(&storage, "eyJh.eyJi.x");
    let refused = rotated.info(&video()).await.unwrap_err();
    assert_eq!(refused.code, Code::StorageDenied);
    let refused = rotated.playable(&video()).await.unwrap_err();
    assert_eq!(refused.code, Code::StorageDenied);
    let refused = rotated.delete(&video()).await.unwrap_err();
    assert_eq!(refused.code, Code::StorageDenied);

    storage.create_bucket(BUCKET, None, None);
    assert_eq!(
        put_code(&with_key(&storage, ANON_JWT), b"video").await,
        Code::StorageDenied
    );
    storage.fault(
        Op::Upload,
        Fault::Answer(Answer::new(413, "text/html", "<html>nginx</html>")),
    );
    assert_eq!(put_code(&store, b"video").await, Code::TooLarge);
}

#[tokio::test]
async fn a_used_up_quota_and_a_paused_project_have_their_own_codes() {
    let (storage, store) = project().await;
    let html = "<html><title>Error</title></html>";
    let json =
        r#"{"statusCode":"402","error":"Payment Required","message":"exceed_storage_size_quota"}"#;
    for (answer, code) in [
        (Answer::new(402, "text/html", html), Code::StorageQuota),
        (
            Answer::new(402, "application/json", "{}"),
            Code::StorageQuota,
        ),
        (
            Answer::new(400, "application/json", json),
            Code::StorageQuota,
        ),
        (Answer::new(540, "text/html", html), Code::StoragePaused),
        (
            Answer::new(540, "application/json", r#"{"message":"project paused"}"#),
            Code::StoragePaused,
        ),
    ] {
        for op in [Op::Upload, Op::Info, Op::Sign, Op::Delete, Op::Bucket] {
            storage.fault(op, Fault::Answer(answer.clone()));
            let failure = match op {
                Op::Upload => put(&store, b"video").await.unwrap_err(),
                Op::Info => store.info(&video()).await.unwrap_err(),
                Op::Sign => store.playable(&video()).await.unwrap_err(),
                Op::Delete => store.delete(&video()).await.unwrap_err(),
                _ => store.limits(BUCKET).await.unwrap_err(),
            };
            assert_eq!(failure.code, code, "{op:?} {answer:?}");
            assert_eq!(failure.code.class(), Class::Configuration);
        }
    }
}

#[tokio::test]
async fn a_gateway_without_support_for_new_keys_is_reported() {
    let (storage, store) = project().await;
    storage.translate_keys(false);
    let failure = put(&store, b"video").await.unwrap_err();
    assert_eq!(failure.code, Code::StorageDenied);
    assert!(
        failure.message.contains("does not translate sb_ keys"),
        "{failure}"
    );
}

#[tokio::test]
async fn limits_are_read_from_the_bucket() {
    let (storage, store) = project().await;
    for (limit, mimes, mp4_allowed) in [
        (None, None, true),
        (
            Some(52_428_800),
            Some(&["image/png", "video/mp4"][..]),
            true,
        ),
        (Some(1), Some(&["video/*"]), true),
        (Some(1), Some(&["*/*"]), false),
        (Some(1), Some(&["video/webm", "Video/MP4"]), false),
        (None, Some(&[]), true),
    ] {
        storage.create_bucket("odd name", limit, mimes);
        let limits = BucketLimits {
            max_bytes: limit,
            mp4_allowed,
            public: false,
        };
        assert_eq!(store.limits("odd name").await.unwrap(), limits, "{mimes:?}");
    }
}

/// Reports when the body is dropped.
struct Ended(mpsc::UnboundedSender<()>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

#[tokio::test]
async fn an_early_refusal_ends_the_upload_and_its_connection() {
    let (storage, _) = project().await;
    let store = with_short_timeouts(&storage);
    let denied = Answer::refusal(
        400,
        "403",
        "Unauthorized",
        "new row violates row-level security policy",
        "AccessDenied",
    );
    storage.fault(Op::Upload, Fault::Poison(denied.clone()));
    // Small enough for the socket buffers, so that it looks sent: the next request must not get this
    // connection.
    assert_eq!(put_code(&store, &[7; 500_000]).await, Code::StorageDenied);
    put(&store, b"video").await.unwrap();

    // Too large for the socket buffers: the upload ends with the response, not when the server disconnects.
    storage.fault(Op::Upload, Fault::Poison(denied));
    let (ended, mut has_ended) = mpsc::unbounded_channel();
    let ended = Ended(ended);
    let endless = stream::repeat_with(move || {
        let _until_dropped = &ended;
        Ok(Bytes::from_static(&[7; 65_536]))
    })
    .boxed();
    let path = video();
    let put = store.put(&path, 40 << 20, &digests(b""), endless).await;
    assert_eq!(put.unwrap_err().code, Code::StorageDenied);
    tokio::time::timeout(Duration::from_secs(10), has_ended.recv())
        .await
        .expect("the body is dropped");
}

#[tokio::test]
async fn a_stalled_storage_times_out() {
    let (storage, _) = project().await;
    let store = with_short_timeouts(&storage);
    storage.fault(Op::Upload, Fault::Stall);
    let bytes = vec![7; 40 << 20];
    let failure = put(&store, &bytes).await.unwrap_err();
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (
            Code::StorageUnavailable,
            "The upload to Supabase Storage stalled."
        )
    );

    storage.fault(Op::Upload, Fault::Stall);
    let failure = put(&store, b"video").await.unwrap_err();
    assert_eq!(
        failure.message,
        "Supabase Storage did not respond to the upload."
    );

    storage.fault(Op::Info, Fault::Stall);
    let failure = store.info(&video()).await.unwrap_err();
    assert_eq!(failure.message, "Supabase Storage did not respond in time.");
}

#[tokio::test]
async fn a_slow_body_is_not_a_stall() {
    let (storage, _) = project().await;
    let store = with_short_timeouts(&storage);
    // Each piece takes a quarter of the limit, and all of them together take longer than the limit.
    let slow = stream::iter(0..5)
        .then(|_| async {
            tokio::time::sleep(SHORT / 4).await;
            Ok(Bytes::from_static(b"x"))
        })
        .boxed();
    let path = video();
    store.put(&path, 5, &digests(b"xxxxx"), slow).await.unwrap();
}

#[tokio::test]
async fn an_upload_that_trickles_ends() {
    let (storage, _) = project().await;
    let timeouts = Timeouts {
        stall: SHORT,
        transfer: |_| SHORT,
        ..Timeouts::default()
    };
    let store = supabase(&storage, SECRET_KEY, timeouts);
    // No pause is long enough for a stall.
    let trickle = stream::iter(0..20)
        .then(|_| async {
            tokio::time::sleep(SHORT / 4).await;
            Ok(Bytes::from_static(b"x"))
        })
        .boxed();
    let path = video();
    let failure = store
        .put(&path, 20, &digests(&[b'x'; 20]), trickle)
        .await
        .unwrap_err();
    assert_eq!(
        (failure.code, failure.message.as_str()),
        (
            Code::StorageUnavailable,
            "The upload to Supabase Storage was too slow."
        )
    );
    assert_eq!(storage.uploads(&format!("{BUCKET}/{VIDEO}")), 0);
}
