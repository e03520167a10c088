//! The store: its buckets, and one object stored, read back and deleted.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{Options, Report};
use crate::app;
use crate::config::{Config, StoreConfig};
use crate::domain::failure::{Code, Failure};
use crate::domain::ids::{GitSha, VideoKey};
use crate::pipeline::ingest::VIDEO_BYTES_MAX_DEFAULT;
use crate::services::storage::{Digests, ObjectInfo, ObjectPath, Store};

/// What the test object holds.
const TEST_OBJECT: &[u8] = b"video-ingest doctor: this object may be deleted";

pub(super) async fn examine(config: &Config, options: &Options, buckets: Vec<String>) -> Report {
    let mut report = Report::default();
    if matches!(config.store, StoreConfig::Folder) {
        // It is in DATA_DIR, which was checked.
        return report;
    }
    let store = match app::open_store(config, &options.clock, options.storage_timeouts) {
        Ok(store) => store,
        Err(error) => {
            report.fail("storage.key", format!("{error:#}"));
            return report;
        }
    };
    let mut all: BTreeSet<&str> = buckets.iter().map(String::as_str).collect();
    all.insert(&config.storage_bucket);
    for bucket in all {
        if bucket_is_there(config, &store, bucket, &mut report).await {
            try_out(&store, bucket, &mut report).await;
        }
    }
    report
}

/// Whether it makes sense to store something in it.
async fn bucket_is_there(
    config: &Config,
    store: &Store,
    bucket: &str,
    report: &mut Report,
) -> bool {
    let limits = match store.limits(bucket).await {
        Ok(limits) => limits,
        Err(failure) => {
            let Failure { code, message, .. } = failure;
            match code {
                Code::BucketMissing => report.fail(
                    "storage.bucket",
                    format!("there is no bucket {bucket}: run deploy/supabase/bucket.sql, or set STORAGE_BUCKET"),
                ),
                Code::StorageDenied => report.fail("storage.key", message),
                _ => report.fail("storage.reach", message),
            }
            return false;
        }
    };
    report.ok("storage.bucket", format!("the bucket {bucket} is there"));
    match limits.public {
        true => report.fail(
            "storage.private",
            format!(
                "anybody can read the bucket {bucket}: make it private (deploy/supabase/bucket.sql)"
            ),
        ),
        false => report.ok("storage.private", "it is private"),
    }
    let wanted = config.max_video_bytes.unwrap_or(VIDEO_BYTES_MAX_DEFAULT);
    match limits.max_bytes {
        Some(max) if max < wanted && config.max_video_bytes.is_some() => report.fail(
            "storage.size_limit",
            format!("{bucket} takes {max} bytes, MAX_VIDEO_BYTES is {wanted}: raise the one or lower the other"),
        ),
        Some(max) if max < wanted => report.warn(
            "storage.size_limit",
            format!("{bucket} takes {max} bytes only; larger videos fail as too_large"),
        ),
        Some(max) => report.ok("storage.size_limit", format!("it takes {max} bytes")),
        None => report.ok("storage.size_limit", "the project's own limit holds"),
    }
    match limits.mp4_allowed {
        true => report.ok("storage.mime", "it takes video/mp4"),
        false => report.fail(
            "storage.mime",
            format!("{bucket} does not take video/mp4: add it to its allowed MIME types (deploy/supabase/bucket.sql)"),
        ),
    }
    limits.mp4_allowed
}

/// Stores an object, reads it back as the app does, and deletes it whatever happened.
async fn try_out(store: &Store, bucket: &str, report: &mut Report) {
    let key = VideoKey {
        lesson_id: Uuid::nil(),
        video_id: Uuid::new_v4(),
    };
    let tried = match ObjectPath::new(bucket, Uuid::nil(), key) {
        Ok(path) => {
            let stored = store_and_read(store, &path).await;
            // After a failure there may be nothing to delete, and the failure is what counts.
            let deleted = store.delete(&path).await;
            stored.and(deleted)
        }
        Err(failure) => Err(failure),
    };
    match tried {
        Ok(()) => report.ok(
            "storage.write",
            "a test object was stored, read back and deleted",
        ),
        Err(failure) => report.fail(
            "storage.write",
            format!("a test object in {bucket} failed: {}", failure.message),
        ),
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
    };
    let is_same = store.info(path).await? == Some(expected);
    let is_playable = store.playable(path).await?.is_some();
    match is_same && is_playable {
        true => Ok(()),
        false => Err(Failure::new(
            Code::StorageUnavailable,
            "what was stored is not what is there; try again, then look at the project's storage logs",
        )),
    }
}
