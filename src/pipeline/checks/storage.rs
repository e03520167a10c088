//! Supabase Storage: its buckets, and one object stored, read back and deleted.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::Report;
use crate::config::Config;
use crate::domain::failure::{Code, Failure};
use crate::domain::ids::{GitSha, VideoKey};
use crate::pipeline::limits::VIDEO_BYTES_MAX_DEFAULT;
use crate::services::storage::{Digests, ObjectInfo, ObjectPath, Store};

/// The content of the test object.
const TEST_OBJECT: &[u8] = b"video-ingest doctor: this object may be deleted";

pub(super) async fn examine(
    config: &Config,
    store: &anyhow::Result<Option<Store>>,
    buckets: Vec<String>,
) -> Report {
    let mut report = Report::default();
    match store {
        Ok(None) => {}
        Ok(Some(store)) => {
            let mut all: BTreeSet<&str> = buckets.iter().map(String::as_str).collect();
            all.insert(&config.storage_bucket);
            for bucket in all {
                if accepts_videos(config, store, bucket, &mut report).await {
                    round_trip(store, bucket, &mut report).await;
                }
            }
        }
        Err(error) => report.fail("storage.key", format!("{error:#}")),
    }
    report
}

/// Whether storing a test object can work.
async fn accepts_videos(config: &Config, store: &Store, bucket: &str, report: &mut Report) -> bool {
    let limits = match store.limits(bucket).await {
        Ok(limits) => limits,
        Err(Failure { code, message, .. }) => {
            match code {
                Code::BucketMissing => report.fail(
                    "storage.bucket",
                    format!("The bucket {bucket} does not exist. Run deploy/supabase/bucket.sql, or correct STORAGE_BUCKET."),
                ),
                Code::StorageDenied => report.fail("storage.key", message),
                _ => report.fail("storage.reach", message),
            }
            return false;
        }
    };
    report.ok("storage.bucket", format!("The bucket {bucket} exists."));
    report.expect(
        "storage.private",
        !limits.public,
        "The bucket is private.",
        format!("The bucket {bucket} is public, so anyone can read the videos. Run deploy/supabase/bucket.sql to make it private."),
    );
    let id = "storage.size_limit";
    let wanted = config.max_video_bytes.unwrap_or(VIDEO_BYTES_MAX_DEFAULT);
    match limits.max_bytes {
        // In bytes, because that is what both settings are in.
        Some(max) if max < wanted && config.max_video_bytes.is_some() => report.fail(
            id,
            format!("The bucket {bucket} accepts objects of up to {max} bytes, but MAX_VIDEO_BYTES is {wanted}. Raise the bucket's limit or lower MAX_VIDEO_BYTES."),
        ),
        Some(max) if max < wanted => report.warn(
            id,
            format!("The bucket {bucket} accepts only objects of up to {max} bytes. Larger videos fail with too_large."),
        ),
        Some(max) => report.ok(id, format!("The bucket accepts objects of up to {max} bytes.")),
        None => report.ok(id, "The bucket has no size limit of its own; the project's limit applies."),
    }
    report.expect(
        "storage.mime",
        limits.mp4_allowed,
        "The bucket accepts video/mp4.",
        format!("The bucket {bucket} does not accept video/mp4. Run deploy/supabase/bucket.sql to add it to the allowed MIME types."),
    );
    limits.mp4_allowed
}

/// Stores an object, reads it back as the app does, and deletes it even after a failure.
async fn round_trip(store: &Store, bucket: &str, report: &mut Report) {
    let key = VideoKey {
        lesson_id: Uuid::nil(),
        video_id: Uuid::new_v4(),
    };
    let result = async {
        let path = ObjectPath::new(bucket, Uuid::nil(), key)?;
        let stored = store_and_read(store, &path).await;
        // After a failure there may be nothing to delete, and that failure is the one to report.
        let deleted = store.delete(&path).await;
        stored.and(deleted)
    };
    let id = "storage.write";
    match result.await {
        Ok(()) => report.ok(id, "A test object was stored, read back and deleted."),
        Err(failure) => {
            let text = format!(
                "Failed to store a test object in {bucket}: {}",
                failure.message
            );
            report.fail(id, text);
        }
    }
}

async fn store_and_read(store: &Store, path: &ObjectPath) -> Result<(), Failure> {
    let digests = Digests {
        blob_sha: GitSha::from_bytes([0; 20]),
        sha256: hex::encode(Sha256::digest(TEST_OBJECT)),
    };
    let size = TEST_OBJECT.len() as u64;
    let body = stream::once(async { Ok(Bytes::from_static(TEST_OBJECT)) }).boxed();
    store.put(path, size, &digests, body).await?;
    let expected = ObjectInfo {
        size,
        sha256: Some(digests.sha256),
        blob_sha: Some(digests.blob_sha),
    };
    let is_same = store.info(path).await? == Some(expected);
    let is_playable = store.playable(path).await?.is_some();
    if is_same && is_playable {
        return Ok(());
    }
    Err(Failure::new(
        Code::StorageUnavailable,
        "The stored object differs from the one that was uploaded. Try again; if the problem persists, check the project's storage logs.",
    ))
}
