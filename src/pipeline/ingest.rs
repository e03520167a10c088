//! The story of one video: its row, what the branch holds for it, its bytes, the store, ready.
//!
//! The only file that sees GitHub, the store and the app's row together. It decides the order of the
//! steps and nothing else: whether and when to try again is [`crate::pipeline::worker`]'s.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::db::{Claim, Db, Lost, Row, RowOwner};
use crate::domain::failure::{Code, Failure, causes};
use crate::domain::metadata::{METADATA_BYTES_MAX, Metadata};
use crate::domain::mp4::Probe;
use crate::domain::plan::{Blobs, End, Plan, Published, Waits, plan, wait_for_row};
use crate::domain::timeline::{self, Step};
use crate::failpoint::FailPoints;
use crate::pipeline::breaker::Breaker;
use crate::pipeline::spool::{Kind, Spool, Spooled};
use crate::services::github::{Download, Entry, Freshness, Github, Listing, Pair};
use crate::services::storage::{Digests, ObjectPath, Store};
use crate::telemetry::metrics;

/// A listing that began earlier is not believed, whoever asks.
const LISTING_AGE_MAX: Duration = Duration::from_secs(5);

/// How long a push is waited for that GitHub's API does not serve yet; then its head is believed.
pub const PUSH_LAG_MAX: Duration = Duration::from_secs(120);

/// Between two looks for a push that GitHub's API does not serve yet.
const PUSH_LAG_WAIT: Duration = Duration::from_secs(2);

/// The size limit where neither the settings nor the bucket name one, in bytes.
pub const VIDEO_BYTES_MAX_DEFAULT: u64 = 52_428_800;

/// A video that failed of these is tried again by every sweep: the store is asked first, so that GitHub's
/// calls are not spent on what it would refuse again.
const STORE_REFUSED: [Code; 2] = [Code::StorageDenied, Code::BucketMissing];

/// What the story needs to know from the settings.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Large downloads are spooled here.
    pub data_dir: PathBuf,
    /// The bucket of rows that we insert.
    pub bucket: String,
    /// How long incomplete videos are waited for.
    pub waits: Waits,
    /// Who owns the rows that we insert for videos without one; `None`: such a video waits for its row.
    pub missing_rows_owner: Option<RowOwner>,
    /// How long a lease lasts; an upload begins with a whole one.
    pub lease: Duration,
}

/// Each stands before one kind of call.
#[derive(Debug)]
pub struct Breakers {
    /// The LFS server and its storage.
    pub lfs: Breaker,
    /// What the store has.
    pub info: Breaker,
    /// What goes to the store: it may take questions and no uploads.
    pub upload: Breaker,
}

impl Default for Breakers {
    fn default() -> Self {
        let storage = "the storage does not answer at the moment; trying again";
        let lfs = "the LFS server does not answer at the moment; trying again";
        Self {
            lfs: Breaker::new(Code::GithubUnavailable, lfs),
            info: Breaker::new(Code::StorageUnavailable, storage),
            upload: Breaker::new(Code::StorageUnavailable, storage),
        }
    }
}

/// Everything the story touches.
#[derive(Clone)]
pub struct Ingest {
    /// Our record and the app's rows.
    pub db: Db,
    /// Where videos come from.
    pub github: Arc<Github>,
    /// Where they go.
    pub store: Arc<Store>,
    /// Before what some videos do not need.
    pub breakers: Arc<Breakers>,
    /// From the settings.
    pub rules: Arc<Rules>,
    /// The largest video taken, in bytes: the settings' limit or the bucket's.
    pub video_bytes_max: Arc<AtomicU64>,
    /// Stamps the timeline.
    pub clock: Clock,
    /// For tests.
    pub fail: FailPoints,
}

/// One attempt, as far as it has come: what the worker needs whatever becomes of it.
pub struct Attempt<'a> {
    /// The right to do this.
    pub claim: &'a Claim,
    /// The timeline so far.
    pub steps: Vec<timeline::Entry>,
    /// The blobs that the branch holds, once known.
    pub listed: Option<Blobs>,
    /// Set before the first byte goes to the store: if the lease is lost now, what arrives late must be
    /// put right.
    pub uploading: Arc<AtomicBool>,
    clock: Clock,
    last: Instant,
}

impl<'a> Attempt<'a> {
    /// Nothing done yet.
    pub fn new(claim: &'a Claim, clock: Clock) -> Self {
        Self {
            claim,
            steps: Vec::new(),
            listed: None,
            uploading: Arc::default(),
            clock,
            last: Instant::now(),
        }
    }

    /// Writes a step that ended just now.
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
    /// From a claim to its end. Safe to run twice and to stop anywhere: nothing is visible before the
    /// store's rename or commit, and nothing is ready before the end is written.
    pub async fn run(&self, attempt: &mut Attempt<'_>) -> Result<End, Failure> {
        let claim = attempt.claim;
        self.fail.at("claimed").await?;
        let Some(row) = self.row(claim).await? else {
            return Ok(wait_for_row(&claim.history));
        };
        let listing = self.fresh_listing(claim).await?;
        let pair = match listing.complete {
            true => listing.files.get(&claim.key).copied().unwrap_or_default(),
            false => self.github.lookup(claim.key, listing.head).await?,
        };
        attempt.listed = Some(pair.blobs());
        attempt.step(Step::Listed, format!("head {}", listing.head.short()));
        self.fail.at("listed").await?;

        let ready_path = row.storage_path.as_deref();
        let mp4 = match plan(&claim.history, ready_path, pair.blobs(), self.rules.waits) {
            Plan::End(end) => return Ok(end),
            Plan::Fail(failure) => return Err(failure),
            Plan::Ingest(_) => pair.mp4.ok_or_else(|| {
                Failure::new(
                    Code::Internal,
                    "The plan ingests a video that is not listed.",
                )
            })?,
        };
        let object = ObjectPath::new(&row.bucket, row.user_id, claim.key)?;
        if claim
            .history
            .code
            .is_some_and(|code| STORE_REFUSED.contains(&code))
        {
            self.breakers.info.call(self.store.info(&object)).await?;
        }
        let metadata = self.metadata(attempt, &pair).await?;
        let known = claim
            .history
            .stored
            .as_ref()
            .filter(|known| known.blob_sha == mp4.sha);
        let published = match known {
            Some(known)
                if self
                    .is_stored(&object, &known.sha256, known.size_bytes)
                    .await? =>
            {
                attempt.step(Step::Stored, "the same bytes are in the store already");
                let probe = Probe {
                    duration_ms: known.duration_ms,
                    width: known.width,
                    height: known.height,
                };
                (known.sha256.clone(), known.size_bytes, probe)
            }
            _ => {
                let (spooled, probe) = self.fetch(attempt, mp4).await?;
                self.put(attempt, &object, mp4, &spooled).await?;
                (spooled.sha256.to_string(), spooled.size, probe)
            }
        };
        self.fail.at("stored").await?;
        let (sha256, size_bytes, probe) = published;
        let warnings = match &metadata {
            Some(metadata) => metadata.warnings(&probe, size_bytes),
            None => vec!["ingested without its JSON, which was not pushed in time".to_owned()],
        };
        Ok(End::Ready {
            user_id: row.user_id,
            bucket: row.bucket,
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

    /// Writes the end. If the row has gone while the object was stored, the object goes too.
    pub async fn finish(&self, attempt: &Attempt<'_>, end: &End) -> Result<(), Lost> {
        let written = self
            .db
            .finish(attempt.claim, attempt.listed, end, &attempt.steps)
            .await;
        let (
            Err(Lost::Row),
            End::Ready {
                user_id, bucket, ..
            },
        ) = (&written, end)
        else {
            return written;
        };
        let key = attempt.claim.key;
        let row = self.db.find_row(key.video_id).await?;
        if row.is_none_or(|row| row.user_id != *user_id || row.lesson_id != key.lesson_id) {
            let deleted = match ObjectPath::new(bucket, *user_id, key) {
                Ok(object) => self.store.delete(&object).await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = deleted {
                tracing::warn!(video.id = %key.video_id, code = %failure.code, "the object of a row that is gone stays: {failure}");
            }
        }
        let end = wait_for_row(&attempt.claim.history);
        self.db
            .finish(attempt.claim, attempt.listed, &end, &attempt.steps)
            .await
    }

    /// The row that the video belongs to; `None`: not there yet.
    async fn row(&self, claim: &Claim) -> Result<Option<Row>, Failure> {
        let key = claim.key;
        let mut row = self.db.find_row(key.video_id).await?;
        if row.is_none()
            && let Some(owner) = self.rules.missing_rows_owner
        {
            let owned = self.db.create_row(key, owner, &self.rules.bucket).await?;
            row = self.db.find_row(key.video_id).await?;
            if owned && row.is_none() {
                return Err(Failure::new(
                    Code::RowMismatch,
                    format!("the row {} is not a video's", key.video_id),
                ));
            }
        }
        match row {
            Some(row) if row.lesson_id != key.lesson_id => Err(Failure::new(
                Code::RowMismatch,
                format!(
                    "the row of video {} belongs to another lesson than the file's name says",
                    key.video_id
                ),
            )),
            Some(row) if row.kind != "video" => Err(Failure::new(
                Code::RowMismatch,
                format!(
                    "the row {} is of kind '{}', not a video",
                    key.video_id, row.kind
                ),
            )),
            row => Ok(row),
        }
    }

    /// The branch as it is now, at least as new as every push that asked.
    async fn fresh_listing(&self, claim: &Claim) -> Result<Arc<Listing>, Failure> {
        let oldest = Instant::now()
            .checked_sub(LISTING_AGE_MAX)
            .unwrap_or(claim.asked_at);
        let mut listing = self.github.listing(claim.asked_at.max(oldest)).await?;
        let mut fresh = self.github.freshness(&listing, &claim.wanted).await?;
        if fresh == Freshness::Behind && claim.asked < PUSH_LAG_MAX {
            listing = self.github.listing(Instant::now()).await?;
            fresh = self.github.freshness(&listing, &claim.wanted).await?;
        }
        match fresh == Freshness::Behind && claim.asked < PUSH_LAG_MAX {
            false => Ok(listing),
            true => Err(push_not_served()),
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
        if json.size > METADATA_BYTES_MAX as u64 {
            let message = format!(
                "the JSON is {} bytes, more than the {METADATA_BYTES_MAX} allowed",
                json.size
            );
            return Err(Failure::new(Code::BadMetadata, message));
        }
        let bytes = self.github.small_blob(json.sha, json.size).await?;
        Metadata::parse(&bytes, &attempt.claim.key).map(Some)
    }

    /// Downloads the video and proves that the bytes are the pushed ones and a playable video.
    async fn fetch(
        &self,
        attempt: &mut Attempt<'_>,
        mp4: Entry,
    ) -> Result<(Spooled, Probe), Failure> {
        self.check_size(mp4.size)?;
        let download = self.github.blob(mp4.sha, mp4.size).await?;
        let mut spooled = self.spool(download, mp4.size, Kind::Blob).await?;
        if spooled.git_sha != Some(mp4.sha) {
            return Err(corrupt("the blob's bytes do not hash to its name"));
        }
        let pointer = spooled.lfs_pointer();
        if let Some(pointer) = &pointer {
            self.check_size(pointer.size)?;
            let fetch = async {
                let oid = pointer.oid.to_string();
                let download = self.github.lfs(&oid, pointer.size).await?;
                self.spool(download, pointer.size, Kind::LfsObject).await
            };
            spooled = self.breakers.lfs.call(fetch).await?;
            if spooled.sha256 != pointer.oid {
                return Err(corrupt("the LFS object's bytes do not hash to its name"));
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

    fn check_size(&self, size: u64) -> Result<(), Failure> {
        let max = self.video_bytes_max.load(Ordering::Relaxed);
        match size > max {
            false => Ok(()),
            true => Err(Failure::new(
                Code::TooLarge,
                format!(
                    "the video is {size} bytes, the limit is {max}: raise MAX_VIDEO_BYTES or the bucket's limit, or render it smaller"
                ),
            )),
        }
    }

    /// Stores the bytes, unless they are there, and confirms them.
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
            .is_stored(object, &digests.sha256, spooled.size)
            .await?
        {
            attempt.step(Step::Stored, "the same bytes are in the store already");
            return Ok(());
        }
        if let Err(error) = self.db.renew(attempt.claim, self.rules.lease).await {
            tracing::warn!(video.id = %attempt.claim.key.video_id, error = causes(&error), "not uploaded");
            return Err(Failure::new(
                Code::LeaseExpired,
                "the lease was lost before the upload",
            ));
        }
        attempt.uploading.store(true, Ordering::Relaxed);
        self.fail.at("uploading").await?;
        let upload = self
            .store
            .put(object, spooled.size, &digests, spooled.stream().boxed());
        let sent = self.breakers.upload.call(upload).await;
        if let Err(failure) = sent {
            self.learn_limit(&failure, object.bucket()).await;
            return Err(failure);
        }
        self.fail.at("uploaded").await?;
        match self
            .is_stored(object, &digests.sha256, spooled.size)
            .await?
        {
            true => {
                attempt.step(
                    Step::Stored,
                    format!("{} in {}", object.path(), object.bucket()),
                );
                Ok(())
            }
            false => Err(Failure::new(
                Code::StorageUnavailable,
                "the store took the upload but does not confirm it",
            )),
        }
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

    /// A refusal may mean that the bucket's settings have changed.
    async fn learn_limit(&self, failure: &Failure, bucket: &str) {
        if failure.code == Code::TooLarge
            && let Ok(limits) = self.store.limits(bucket).await
            && let Some(max) = limits.max_bytes
        {
            self.video_bytes_max.fetch_min(max, Ordering::Relaxed);
        }
    }
}

fn corrupt(message: &str) -> Failure {
    Failure::new(
        Code::CorruptDownload,
        format!("{message}; downloading again"),
    )
}

/// A push whose commit GitHub's API does not serve yet: its webhooks are faster than its replicas.
pub(super) fn push_not_served() -> Failure {
    let message = "GitHub's API does not serve the pushed commit yet; trying again in a moment.";
    Failure::new(Code::GithubUnavailable, message).after(PUSH_LAG_WAIT)
}
