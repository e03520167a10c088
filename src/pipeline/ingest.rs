//! One attempt at a video: list the branch, download and check the file, upload it and confirm the object.
//!
//! This module determines the order of the steps. Retries are the responsibility of
//! [`crate::pipeline::worker`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::db::{Claim, ClaimError, Db, DbError, Row, RowOwner};
use crate::domain::failure::{Code, Failure};
use crate::domain::ids::VideoKey;
use crate::domain::lfs::Pointer;
use crate::domain::metadata::{METADATA_BYTES_MAX, Metadata};
use crate::domain::mp4::Probe;
use crate::domain::plan::{Blobs, End, History, Plan, Published, Waits, plan, wait_for_row};
use crate::domain::request::{Request, Source};
use crate::domain::timeline::{self, Step};
use crate::failpoint::FailPoints;
use crate::format::causes;
use crate::pipeline::branch::Branch;
use crate::pipeline::breaker::Breaker;
use crate::pipeline::causes::Causes;
use crate::pipeline::limits::Limits;
use crate::pipeline::spool::{Kind, Spool, Spooled, has_space};
use crate::services::github::{Download, Entry, Github, Listing, Pair};
use crate::services::storage::{Digests, ObjectPath, Store};
use crate::telemetry::metrics;

/// Settings of an attempt.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The folder for large downloads.
    pub data_dir: PathBuf,
    /// The bucket of inserted rows.
    pub bucket: String,
    /// The waiting periods for incomplete videos.
    pub waits: Waits,
    /// The owner of rows that are inserted for videos without one; `None`: these videos wait for a row.
    pub missing_rows_owner: Option<RowOwner>,
    /// The lease. It is renewed immediately before an upload.
    pub lease: Duration,
}

/// The circuit breakers.
#[derive(Debug)]
pub struct Breakers {
    /// The LFS server and its storage.
    pub lfs: Breaker,
    /// Object information from the storage.
    pub info: Breaker,
    /// Uploads to the storage. They can fail while other requests succeed.
    pub upload: Breaker,
}

impl Default for Breakers {
    fn default() -> Self {
        let storage = "Storage is currently unavailable; the video will be retried automatically.";
        let lfs =
            "The LFS server is currently unavailable; the video will be retried automatically.";
        Self {
            lfs: Breaker::new(Code::GithubUnavailable, lfs),
            info: Breaker::new(Code::StorageUnavailable, storage),
            upload: Breaker::new(Code::StorageUnavailable, storage),
        }
    }
}

/// The dependencies of an attempt.
#[derive(Clone)]
pub struct Ingest {
    /// The records and the app's rows.
    pub db: Db,
    /// The source of the videos.
    pub github: Arc<Github>,
    /// The listings of the branch.
    pub branch: Arc<Branch>,
    /// The destination of the videos.
    pub store: Arc<Store>,
    /// The circuit breakers.
    pub breakers: Arc<Breakers>,
    /// What failures depend on.
    pub causes: Arc<Causes>,
    /// The settings.
    pub rules: Arc<Rules>,
    /// What the buckets accept.
    pub limits: Arc<Limits>,
    /// The clock for timelines.
    pub clock: Clock,
    /// Fail points for tests.
    pub fail: FailPoints,
}

/// The progress of an attempt, which the worker needs regardless of how it ends.
pub struct Attempt<'a> {
    /// The claim.
    pub claim: &'a Claim,
    /// The timeline so far.
    pub steps: Vec<timeline::Entry>,
    /// The video's files in the branch, once known.
    pub listed: Option<Blobs>,
    /// The bucket in the row, once known.
    pub bucket: Option<String>,
    /// Whether an upload has started. If the lease is lost after that, the object must be repaired.
    pub uploading: Arc<AtomicBool>,
    clock: Clock,
    last: Instant,
}

impl<'a> Attempt<'a> {
    /// Creates an attempt without any steps.
    pub fn new(claim: &'a Claim, clock: Clock) -> Self {
        Self {
            claim,
            steps: Vec::new(),
            listed: None,
            bucket: None,
            uploading: Arc::default(),
            clock,
            last: Instant::now(),
        }
    }

    /// Adds a step that has just ended to the timeline.
    pub fn step(&mut self, step: Step, detail: impl Into<String>) {
        let now = Instant::now();
        let took = now.duration_since(self.last);
        let ms = took.as_millis() as i64;
        self.last = now;
        metrics::step(step, took);
        self.steps.push(timeline::Entry {
            at: self.clock.now_ms(),
            step,
            detail: detail.into(),
            ms: Some(ms),
        });
    }
}

impl Ingest {
    /// Performs an attempt. Can be repeated and can be cancelled at any point: an object becomes visible only
    /// when it is complete, and the row becomes ready in [`Db::finish`].
    pub async fn run(&self, attempt: &mut Attempt<'_>) -> Result<End, Failure> {
        let claim = attempt.claim;
        self.fail.at("claimed").await?;
        if claim.look_is_due && self.is_unharmed(attempt).await? {
            return Ok(End::Unchanged);
        }
        let row = self.row(claim).await?;
        let Some(row) = self.reclaimed(claim, row).await? else {
            return Ok(wait_for_row(&claim.history));
        };
        let row = own(row, claim.key)?;
        attempt.bucket = Some(row.bucket.clone());
        let listing = self.branch.listing(claim.requested_at).await?;
        let pair = self.files(&listing, claim.key).await?;
        attempt.listed = Some(pair.blobs());
        attempt.step(Step::Listed, format!("head {}", listing.head.short()));
        self.fail.at("listed").await?;

        let ready_path = row.storage_path.as_deref();
        let history = History {
            forced: claim.history.forced || claim.look_is_due,
            ..claim.history.clone()
        };
        let mp4 = match plan(&history, ready_path, pair, self.rules.waits) {
            Plan::End(end) => return Ok(end),
            Plan::Fail(failure) => return Err(failure),
            Plan::Ingest(mp4) => mp4,
        };
        let object = ObjectPath::new(&row.bucket, row.user_id, claim.key)?;
        // The blob that was published last, for example after a redelivery or a retry. If the storage still
        // has the object, no download is required.
        let known = claim
            .history
            .stored
            .as_ref()
            .filter(|known| known.blob_sha == mp4.sha);
        if known.is_none() {
            // Before any download, so that retries do not download a video that the storage rejects again.
            self.check_size(claim, object.bucket(), mp4.size).await?;
        }
        let metadata = self.metadata(attempt, &pair).await?;
        let published = match known {
            Some(known)
                if self
                    .is_intact(claim, &object, &known.sha256, known.size_bytes)
                    .await? =>
            {
                attempt.step(Step::Stored, "the storage already has this video");
                let probe = Probe {
                    duration_ms: known.duration_ms,
                    width: known.width,
                    height: known.height,
                };
                (known.sha256.clone(), known.size_bytes, probe)
            }
            _ => {
                if known.is_some() {
                    self.check_size(claim, object.bucket(), mp4.size).await?;
                }
                let (spooled, probe) = self.fetch(attempt, object.bucket(), mp4).await?;
                let put = self.put(attempt, &object, mp4, &spooled).await;
                put.inspect_err(|failure| self.limits.note(object.bucket(), failure))?;
                (spooled.sha256.to_string(), spooled.size, probe)
            }
        };
        self.fail.at("stored").await?;
        let (sha256, size_bytes, probe) = published;
        let warnings = match &metadata {
            Some(metadata) => metadata.warnings(&probe, size_bytes),
            None => vec![
                "The branch has no JSON file for this video; the video was ingested without it."
                    .to_owned(),
            ],
        };
        Ok(End::Ready {
            user_id: row.user_id,
            bucket: row.bucket,
            replaces: row.storage_path,
            published: Box::new(Published {
                commit: listing.head,
                blob_sha: mp4.sha,
                sha256,
                size_bytes,
                duration_ms: probe.duration_ms,
                width: probe.width,
                height: probe.height,
                storage_path: object.path(),
                warnings,
                conversation_id: metadata.as_ref().and_then(|m| m.conversation_id.clone()),
                generated_at: metadata.as_ref().and_then(|m| m.generated_at.clone()),
                metadata: metadata.map(|m| m.public()).unwrap_or_default(),
            }),
        })
    }

    /// Whether the only reason for this attempt is an upload that may have completed late, and the object is
    /// still the published one. Needs no call to GitHub.
    async fn is_unharmed(&self, attempt: &mut Attempt<'_>) -> Result<bool, Failure> {
        let Claim { key, history, .. } = attempt.claim;
        let Some(stored) = &history.stored else {
            return Ok(false);
        };
        if attempt.claim.is_requested || history.code.is_some() {
            return Ok(false);
        }
        let row = self.db.find_row(key.video_id).await?;
        let row = row.filter(|row| row.storage_path.as_ref() == Some(&stored.storage_path));
        let object = row.and_then(|row| ObjectPath::from_stored(&row.bucket, &stored.storage_path));
        let Some(object) = object else {
            // The row was deleted or reset, so no reader depends on the object.
            return Ok(true);
        };
        if self
            .is_stored(&object, &stored.sha256, stored.size_bytes)
            .await?
        {
            attempt.step(Step::Stored, "the storage still has this video");
            return Ok(true);
        }
        tracing::warn!(video.id = %key.video_id, "an upload without a response replaced the published object, repairing");
        Ok(false)
    }

    /// Handles [`ClaimError::RowChanged`] after an upload. Returns the end of the attempt; `None` if the row
    /// has another owner or bucket now, so the video was queued again.
    ///
    /// Deletes the uploaded object, but only if the row was pending when it was read and no row names the
    /// object now. A ready row that is no longer found may have another kind and still name its object,
    /// because row-level security hides such rows from us.
    ///
    /// # Errors
    /// As for [`Db::renew`].
    pub async fn row_changed(
        &self,
        claim: &Claim,
        end: &End,
    ) -> Result<Option<Result<End, Failure>>, ClaimError> {
        let End::Ready {
            published,
            user_id,
            bucket,
            replaces,
        } = end
        else {
            return Ok(Some(Ok(end.clone())));
        };
        let key = claim.key;
        // Another worker may have claimed the video and uploaded the same object.
        self.db.renew(claim, self.rules.lease).await?;
        let row = self.db.find_row(key.video_id).await?;
        if replaces.is_none() && !self.db.is_named(bucket, &published.storage_path).await? {
            let deleted = match ObjectPath::new(bucket, *user_id, key) {
                Ok(object) => self.store.delete(&object).await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = deleted {
                tracing::warn!(video.id = %key.video_id, code = %failure.code, "failed to delete the stored object of a row that changed: {failure}");
            }
        }
        match row.map(|row| own(row, key)) {
            None => Ok(Some(Ok(wait_for_row(&claim.history)))),
            Some(Err(failure)) => Ok(Some(Err(failure))),
            Some(Ok(_)) => {
                let detail = "its row changed during the attempt";
                let again = Request::new(key, Source::Repair, detail);
                self.db.request([again]).await?;
                self.db.hand_back(claim).await?;
                Ok(None)
            }
        }
    }

    /// The row of the video, inserted if the settings allow it; `None` if the video must wait for its row.
    async fn row(&self, claim: &Claim) -> Result<Option<Row>, Failure> {
        let key = claim.key;
        let mut row = self.db.find_row(key.video_id).await?;
        if row.is_none()
            && let Some(owner) = self.rules.missing_rows_owner
        {
            let owned = self.db.create_row(key, owner, &self.rules.bucket).await?;
            row = self.db.find_row(key.video_id).await?;
            // The insert conflicted with a row that we cannot read, because of row-level security.
            if owned && row.is_none() {
                return Err(Failure::new(
                    Code::RowMismatch,
                    format!(
                        "Row {} is not accessible; it might not be a video row.",
                        key.video_id
                    ),
                ));
            }
        }
        if claim.history.code == Some(Code::RowDenied) {
            // Before the download, which would be repeated until the row can be updated.
            self.db.check_row_is_writable(key).await?;
        }
        Ok(row)
    }

    async fn files(&self, listing: &Listing, key: VideoKey) -> Result<Pair, Failure> {
        if listing.complete {
            return Ok(listing.files.get(&key).copied().unwrap_or_default());
        }
        self.github.lookup(key, listing.head).await
    }

    /// The row, moved to the lesson of the claimed video if we inserted it for a file that is gone from the
    /// branch: the file had the wrong lesson in its name.
    async fn reclaimed(&self, claim: &Claim, row: Option<Row>) -> Result<Option<Row>, Failure> {
        let key = claim.key;
        let (Some(found), Some(owner)) = (&row, self.rules.missing_rows_owner) else {
            return Ok(row);
        };
        let other = VideoKey {
            lesson_id: found.lesson_id,
            ..key
        };
        if other == key || !self.db.has_created_row(other).await? {
            return Ok(row);
        }
        let listing = self.branch.listing(claim.requested_at).await?;
        if self.files(&listing, other).await?.blobs() != (None, None)
            || self.files(&listing, key).await?.mp4.is_none()
        {
            return Ok(row);
        }
        match self.db.move_created_row(other.lesson_id, key, owner).await {
            Ok(_) => {
                tracing::info!(video.id = %key.video_id, lesson.id = %key.lesson_id, "moved a row to the lesson of the pushed file");
                Ok(self.db.find_row(key.video_id).await?)
            }
            // Then the row keeps its lesson, and the video fails with `row_mismatch`.
            Err(DbError::Denied(_)) => Ok(row),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes the object that the row named before it was moved to another lesson, now that the new one is
    /// published, unless a row names it.
    pub async fn delete_replaced(&self, end: &End) -> Result<(), Failure> {
        let End::Ready {
            published,
            bucket,
            replaces: Some(path),
            ..
        } = end
        else {
            return Ok(());
        };
        // Only an object of the same video.
        let file = |path: &str| path.rsplit('/').next().map(str::to_owned);
        let is_ours = file(path) == file(&published.storage_path);
        if !is_ours || *path == published.storage_path || self.db.is_named(bucket, path).await? {
            return Ok(());
        }
        match ObjectPath::from_stored(bucket, path) {
            Some(object) => self.store.delete(&object).await,
            None => Ok(()),
        }
    }

    async fn metadata(
        &self,
        attempt: &mut Attempt<'_>,
        pair: &Pair,
    ) -> Result<Option<Metadata>, Failure> {
        let Some(json) = pair.json else {
            return Ok(None);
        };
        check_metadata_size(json.size)?;
        let mut bytes = self.github.small_blob(json.sha, json.size).await?;
        if let Some(pointer) = Pointer::parse(&bytes) {
            check_metadata_size(pointer.size)?;
            let fetch = self.github.small_lfs(&pointer);
            bytes = self.breakers.lfs.call(fetch).await?;
        }
        Metadata::parse(&bytes, &attempt.claim.key).map(Some)
    }

    /// Downloads the video and verifies its hash and format.
    async fn fetch(
        &self,
        attempt: &mut Attempt<'_>,
        bucket: &str,
        mp4: Entry,
    ) -> Result<(Spooled, Probe), Failure> {
        let download = self.github.blob(mp4.sha, mp4.size).await?;
        let mut spooled = self.spool(download, mp4.size, Kind::Blob).await?;
        if spooled.git_sha != Some(mp4.sha) {
            return Err(corrupt("The downloaded blob has the wrong hash"));
        }
        let pointer = spooled.lfs_pointer();
        if let Some(pointer) = &pointer {
            self.check_size(attempt.claim, bucket, pointer.size).await?;
            let fetch = async {
                let oid = pointer.oid.to_string();
                let download = self.github.lfs(&oid, pointer.size).await?;
                self.spool(download, pointer.size, Kind::LfsObject).await
            };
            spooled = self.breakers.lfs.call(fetch).await?;
            if spooled.sha256 != pointer.oid {
                return Err(corrupt("The downloaded LFS object has the wrong hash"));
            }
        }
        let from = if pointer.is_some() {
            "from LFS"
        } else {
            "from the repository"
        };
        attempt.step(Step::Fetched, format!("{} bytes {from}", spooled.size));
        self.fail.at("fetched").await?;
        let probe = spooled.probe.clone()?;
        let seconds = probe.duration_ms as f64 / 1000.0;
        attempt.step(
            Step::Checked,
            format!("{} × {}, {seconds:.3} s", probe.width, probe.height),
        );
        self.fail.at("checked").await?;
        Ok((spooled, probe))
    }

    async fn spool(
        &self,
        mut download: Download,
        size: u64,
        kind: Kind,
    ) -> Result<Spooled, Failure> {
        let mut spool = Spool::create(&self.rules.data_dir, size, kind).await?;
        while let Some(chunk) = download.chunk().await? {
            spool.write(&chunk).await?;
        }
        spool.finish().await
    }

    /// Whether the bucket and the disk have space for a file of this size, in bytes.
    async fn check_size(&self, claim: &Claim, bucket: &str, size: u64) -> Result<(), Failure> {
        let breaker = &self.breakers.info;
        let check = self
            .limits
            .check(breaker, bucket, size, claim.requested_at.elapsed());
        check.await?;
        if has_space(&self.rules.data_dir, size) {
            return Ok(());
        }
        Err(Failure::new(
            Code::DiskFull,
            "DATA_DIR does not have enough space for the video; free up disk space.",
        ))
    }

    /// Uploads the video unless the storage already has it, and confirms the object.
    async fn put(
        &self,
        attempt: &mut Attempt<'_>,
        object: &ObjectPath,
        mp4: Entry,
        spooled: &Spooled,
    ) -> Result<(), Failure> {
        let digests = Digests {
            blob_sha: mp4.sha,
            sha256: spooled.sha256.to_string(),
        };
        if self
            .is_intact(attempt.claim, object, &digests.sha256, spooled.size)
            .await?
        {
            attempt.step(Step::Stored, "the storage already has this video");
            return Ok(());
        }
        // A stalled worker must not overwrite a newer object. The database cannot prevent that, so the lease
        // is checked as late as possible.
        if let Err(error) = self.db.begin_upload(attempt.claim, self.rules.lease).await {
            tracing::warn!(video.id = %attempt.claim.key.video_id, error = causes(&error), "lost the lease before the upload");
            return Err(Failure::new(
                Code::LeaseExpired,
                "The lease was lost before the upload; the video will be retried automatically.",
            ));
        }
        attempt.uploading.store(true, Ordering::Relaxed);
        self.fail.at("uploading").await?;
        let upload = self
            .store
            .put(object, spooled.size, &digests, spooled.stream().boxed());
        self.breakers.upload.call(upload).await?;
        self.fail.at("uploaded").await?;
        if !self
            .is_stored(object, &digests.sha256, spooled.size)
            .await?
        {
            return Err(Failure::new(
                Code::StorageUnavailable,
                "Storage accepted the upload but does not have the object; the video will be retried automatically.",
            ));
        }
        let detail = format!("{} in {}", object.path(), object.bucket());
        attempt.step(Step::Stored, detail);
        Ok(())
    }

    /// Whether no upload is required. A forced request can be for an object whose bytes the storage has lost.
    async fn is_intact(
        &self,
        claim: &Claim,
        object: &ObjectPath,
        sha256: &str,
        size: u64,
    ) -> Result<bool, Failure> {
        let is_stored = self.is_stored(object, sha256, size).await?;
        Ok(is_stored
            && (!claim.history.forced
                || self.store.is_readable(object, size).await.unwrap_or(false)))
    }

    async fn is_stored(
        &self,
        object: &ObjectPath,
        sha256: &str,
        size: u64,
    ) -> Result<bool, Failure> {
        let info = self.breakers.info.call(self.store.info(object)).await?;
        Ok(info.is_some_and(|info| info.size == size && info.sha256.as_deref() == Some(sha256)))
    }
}

fn check_metadata_size(size: u64) -> Result<(), Failure> {
    if size <= METADATA_BYTES_MAX as u64 {
        return Ok(());
    }
    let message =
        format!("The JSON file is {size} bytes, but the limit is {METADATA_BYTES_MAX} bytes.");
    Err(Failure::new(Code::BadMetadata, message))
}

/// The row, unless it is not the one of this video.
fn own(row: Row, key: VideoKey) -> Result<Row, Failure> {
    let message = if row.lesson_id != key.lesson_id {
        format!(
            "Row {} belongs to a different lesson than the one in the file name.",
            key.video_id
        )
    } else if row.kind != "video" {
        format!(
            "Row {} is of kind '{}', not 'video'.",
            key.video_id, row.kind
        )
    } else {
        return Ok(row);
    };
    Err(Failure::new(Code::RowMismatch, message))
}

fn corrupt(message: &str) -> Failure {
    Failure::new(
        Code::CorruptDownload,
        format!("{message}; the download will be retried automatically."),
    )
}
