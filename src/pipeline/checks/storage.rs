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
use crate::services::storage::{BucketLimits, Digests, ObjectInfo, ObjectPath, Store};

/// The most names of too large videos that are listed; the others are counted.
const NAMES_MAX: usize = 5;

/// The content of the test object.
const TEST_OBJECT: &[u8] = b"video-ingest doctor: this object may be deleted";

/// The findings, and the limits of the buckets that exist; `None` if storage could not be asked for them.
pub(super) async fn examine(
    config: &Config,
    store: &anyhow::Result<Option<Store>>,
    buckets: Vec<String>,
) -> (Report, Option<Vec<Limit>>) {
    let mut report = Report::default();
    let store = match store {
        Ok(Some(store)) => store,
        Ok(None) => return (report, Some(vec![Limit::default()])),
        Err(error) => {
            report.fail("storage.key", format!("{error:#}."));
            return (report, None);
        }
    };
    let mut limits = Vec::new();
    let mut all: BTreeSet<&str> = buckets.iter().map(String::as_str).collect();
    all.insert(&config.storage_bucket);
    for bucket in all {
        if let Some(found) = limits_of(config, store, bucket, &mut report).await {
            if found.mp4_allowed {
                round_trip(store, bucket, &mut report).await;
            }
            limits.push(Limit {
                bucket: Some(bucket.to_owned()),
                max_bytes: found.max_bytes,
            });
        }
    }
    let limits = (!limits.is_empty()).then_some(limits);
    (report, limits)
}

/// The size limit of a bucket.
#[derive(Default)]
pub(super) struct Limit {
    /// `None` for the folder store.
    bucket: Option<String>,
    max_bytes: Option<u64>,
}

/// Compares the videos on the branch, with their sizes in bytes, with the limit for them. Which bucket is
/// for which video is not known, so only videos that no bucket accepts are reported.
pub(super) fn sizes(
    config: &Config,
    videos: &[(String, u64)],
    limits: &Option<Vec<Limit>>,
) -> Report {
    let mut report = Report::default();
    let limits = limits.iter().flatten();
    let setting = config.max_video_bytes;
    let limits = limits.map(|limit| match (&limit.bucket, limit.max_bytes, setting) {
        (Some(bucket), Some(max), _) if setting.is_none_or(|setting| max <= setting) => {
            (max, format!("Raise the file size limit of the bucket {bucket} (and of the project, if that is lower)"))
        }
        (_, _, Some(max)) => (max, "Raise MAX_VIDEO_BYTES".to_owned()),
        _ => (VIDEO_BYTES_MAX_DEFAULT, "Set MAX_VIDEO_BYTES".to_owned()),
    });
    let Some((max, remedy)) = limits.max() else {
        return report;
    };
    let mut large: Vec<_> = videos.iter().filter(|(_, size)| *size > max).collect();
    if large.is_empty() {
        return report;
    }
    large.sort();
    let named = large.iter().take(NAMES_MAX);
    let mut named: Vec<_> = named
        .map(|(name, size)| format!("{name} ({size} bytes)"))
        .collect();
    if large.len() > NAMES_MAX {
        named.push(format!("and {} more", large.len() - NAMES_MAX));
    }
    report.fail(
        "storage.size_limit",
        format!(
            "{} video(s) on the branch are larger than the limit of {max} bytes: {}. {remedy}, or render smaller videos.",
            large.len(),
            named.join(", ")
        ),
    );
    report
}

/// What a bucket accepts; `None` if that was reported as a failure.
async fn limits_of(
    config: &Config,
    store: &Store,
    bucket: &str,
    report: &mut Report,
) -> Option<BucketLimits> {
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
            return None;
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
            format!("The bucket {bucket} accepts only objects of up to {max} bytes. Larger videos fail with too_large; if you expect any, raise the bucket's file size limit."),
        ),
        Some(max) => report.ok(id, format!("The bucket accepts objects of up to {max} bytes.")),
        None => report.ok(id, "The bucket has no size limit of its own; the project's limit applies."),
    }
    report.expect(
        "storage.mime",
        limits.mp4_allowed,
        "The bucket accepts video/mp4.",
        format!("The bucket {bucket} does not accept video/mp4 (Storage does not support the wildcard `*/*`). Run deploy/supabase/bucket.sql to add it to the allowed MIME types."),
    );
    Some(limits)
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
