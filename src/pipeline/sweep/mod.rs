//! Sweeps and scans: they compare the listing with all records and rows, and request the videos that are
//! missing or changed. They do not depend on earlier webhooks, so they also find the videos of lost ones.

mod read;
mod verify;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::clock::Clock;
use crate::db::{Db, DbError, SCAN_TIMEOUT, Scan};
use crate::domain::failure::{Class, Code, Failure};
use crate::domain::ids::{FileKind, VideoKey};
use crate::domain::plan::Blobs;
use crate::domain::report::{Outcome, ServiceError, SweepReport, SweptVideo};
use crate::domain::request::{Purpose, Request, Source};
use crate::domain::state::VideoState;
use crate::domain::verdict::{
    AgentStatus, CAUSE_CHANGED, CHANGED_FILES, NEW_FILES, Snapshot, Verdict,
};
use crate::format::causes;
use crate::pipeline::branch::{Branch, ListingError};
use crate::pipeline::causes::Causes;
use crate::pipeline::limits::Limits;
use crate::services::github::{Github, for_purpose};
use crate::services::openhands::OpenHands;
use crate::services::storage::Store;
use crate::telemetry::metrics;

/// The interval at which a sweep with `wait` polls the state of the requested videos.
const WAIT_POLL: Duration = Duration::from_millis(200);

/// The entry in the report's errors if a row was skipped.
const ODD_ROW: ServiceError = ServiceError {
    service: "database",
    code: "odd_row",
};

/// The wait after a failed scan.
const SCAN_RETRY: Duration = Duration::from_secs(5);

/// The dependencies of a sweep.
#[derive(Clone)]
pub struct Sweep {
    /// The records and the app's rows.
    pub db: Db,
    /// The source of single files, for truncated listings.
    pub github: Arc<Github>,
    /// The listings of the branch.
    pub branch: Arc<Branch>,
    /// The storage, for `verify`.
    pub store: Arc<Store>,
    /// What the buckets accept. Each sweep has it read again.
    pub limits: Arc<Limits>,
    /// The source of generation statuses; `None` if there is no API key.
    pub openhands: Option<Arc<OpenHands>>,
    /// The videos folder, such as `videos`.
    pub videos_dir: Arc<str>,
    /// The age at which a pending row fails.
    pub generation_deadline: Duration,
    /// The age at which deliveries and timeline entries are deleted.
    pub history_retention: Duration,
    /// What failures depend on.
    pub causes: Arc<Causes>,
    /// The clock for the report.
    pub clock: Clock,
    /// Notified when videos were requested.
    pub wake: Arc<Notify>,
    /// Held during a sweep: one at a time per process.
    pub running: Arc<Mutex<()>>,
}

/// The options of a sweep.
#[derive(Clone, Debug, Default)]
pub struct SweepOptions {
    /// Only report, write nothing.
    pub dry_run: bool,
    /// The longest wait for the requested videos.
    pub wait: Duration,
    /// Process only this video.
    pub only: Option<Uuid>,
    /// Compare the ready rows with the objects in the storage.
    pub verify: bool,
}

impl SweepOptions {
    fn includes(&self, key: VideoKey) -> bool {
        self.only.is_none_or(|only| key.video_id == only)
    }
}

impl Sweep {
    /// Performs a scan, or schedules it again if it fails.
    ///
    /// # Errors
    /// The database is unavailable.
    pub async fn scan(&self, scan: &Scan) -> Result<(), DbError> {
        let scanned = for_purpose(Purpose::Scan, self.scan_once(scan));
        let result = timeout(SCAN_TIMEOUT, scanned).await;
        let result = result.unwrap_or_else(|_| Err(slow_scan().into()));
        let retry_in = match &result {
            Ok(()) => None,
            Err(SweepError::Db(_)) => Some(SCAN_RETRY),
            Err(SweepError::Failure(failure)) => {
                tracing::warn!(code = %failure.code, "scan failed, will retry: {}", failure.message);
                failure.retry_after.max(Some(SCAN_RETRY))
            }
        };
        self.db.settle_scan(scan, retry_in).await?;
        match result {
            Err(SweepError::Db(error)) => Err(error),
            _ => Ok(()),
        }
    }

    async fn scan_once(&self, scan: &Scan) -> Result<(), SweepError> {
        let listing = self.branch.listing(scan.requested_at).await?;
        let snapshot = self.snapshot(&listing, true).await?;
        let mut writes = Writes::default();
        for (key, verdict) in
            self.verdicts(&snapshot, snapshot.listed.keys().copied(), &HashMap::new())
        {
            match verdict {
                Verdict::Request(_) => {
                    writes.request(key, "found by a scan after a push", false);
                }
                Verdict::Failed(_) | Verdict::Waiting(_)
                    if scan.redelivered && snapshot.listed[&key] != (None, None) =>
                {
                    writes.request(key, "the push was redelivered", true);
                }
                Verdict::Adopt => writes.adopted.push((key, snapshot.listed[&key])),
                _ => {}
            }
        }
        self.write(writes).await?;
        let listed = snapshot.listed.len();
        tracing::info!(listed, "scan completed");
        Ok(())
    }

    /// Performs a sweep.
    ///
    /// # Errors
    /// The branch cannot be listed, or the database is unavailable.
    pub async fn run(&self, options: &SweepOptions) -> Result<SweepReport, SweepError> {
        // On the heap: a sweep has a large future, and many tasks and handlers contain one.
        let sweep = Box::pin(self.run_once(options));
        let result = for_purpose(Purpose::Sweep, sweep).await;
        if !options.dry_run {
            metrics::swept(result.as_ref().ok());
            if let Err(SweepError::Failure(failure)) = &result {
                self.db.note_failed_sweep(&failure.message).await?;
            }
        }
        match &result {
            Ok(report) => tracing::info!(
                checked = report.checked,
                found = report.found,
                processed = report.processed,
                failed = report.failed,
                generating = report.still_generating,
                dry_run = options.dry_run,
                "sweep completed"
            ),
            Err(error) => tracing::warn!(error = causes(error), "sweep failed"),
        }
        result
    }

    async fn run_once(&self, options: &SweepOptions) -> Result<SweepReport, SweepError> {
        let one_at_a_time = self.running.lock().await;
        self.limits.forget();
        let (listing, is_current) = self.branch.latest().await?;
        let mut snapshot = self.snapshot(&listing, !options.dry_run).await?;
        // No video is failed because an outdated listing lacks it.
        snapshot.complete &= is_current;
        let mut unannounced = 0;
        if !options.dry_run {
            // Before the requests to OpenHands and the storage, which may be slow.
            unannounced = self.request_pushed(&snapshot, options).await?;
        }
        let blocked = self.db.blocked().await?;
        let now = self.causes.now(&blocked).await;
        let changed = blocked.iter().filter(|blocked| now.may_differ(blocked));
        snapshot.changed = changed.map(|blocked| blocked.key).collect();
        let (agent, mut errors) = self.generation_statuses(&snapshot, options).await?;
        let mut drifted = HashMap::new();
        if options.verify {
            let (found, failures) = self.verify(&listing, options).await?;
            drifted = found;
            errors.extend(failures);
        }
        if !snapshot.odd.is_empty() {
            errors.push(ODD_ROW);
        }
        let (mut report, writes) = self.decide(&snapshot, &agent, &drifted, options);
        report.errors = errors;
        if !options.dry_run {
            self.write(writes).await?;
            // While this caller waits for its videos, other sweeps can run.
            drop(one_at_a_time);
            self.wait_for(&mut report, options.wait).await?;
            self.db.prune(self.history_retention).await?;
        }
        report.update_counts();
        if !options.dry_run && options.only.is_none() {
            self.db.note_sweep(report.counts(), unannounced).await?;
        }
        Ok(report)
    }

    /// Requests the videos whose verdict does not depend on OpenHands or the storage. Returns the number of
    /// those with new files, which no delivery has named.
    async fn request_pushed(
        &self,
        snapshot: &Snapshot,
        options: &SweepOptions,
    ) -> Result<usize, SweepError> {
        let listed = snapshot.listed.keys().copied();
        let listed = listed.filter(|key| options.includes(*key));
        let mut writes = Writes::default();
        let mut unannounced = 0;
        for (key, verdict) in self.verdicts(snapshot, listed, &HashMap::new()) {
            if let Verdict::Request(reason) = verdict {
                // An attempt that a delivery requested may have ended before it listed the files.
                let record = snapshot.records.get(&key);
                let is_unknown = record.is_none_or(|record| record.observed != (None, None));
                let is_found = [NEW_FILES, CHANGED_FILES].contains(&reason);
                unannounced += usize::from(is_found && is_unknown);
                writes.request(key, reason, false);
            }
        }
        self.write(writes).await?;
        Ok(unannounced)
    }

    /// The report, and the writes that follow from the verdicts.
    fn decide(
        &self,
        snapshot: &Snapshot,
        agent: &HashMap<VideoKey, AgentStatus>,
        drifted: &HashMap<VideoKey, &'static str>,
        options: &SweepOptions,
    ) -> (SweepReport, Writes) {
        let mut seen = HashSet::new();
        let pending = snapshot.pending.iter();
        let conversations: HashMap<_, _> = pending
            .filter_map(|row| Some((row.key, row.conversation_id.as_ref()?)))
            .collect();
        let pending = snapshot.pending.iter().map(|row| row.key);
        let keys = pending
            .chain(snapshot.listed.keys().copied())
            .chain(drifted.keys().copied())
            .filter(|key| options.includes(*key) && seen.insert(*key));
        let mut report = SweepReport {
            timestamp: self.clock.now().to_string(),
            orphans: self.orphans(snapshot, options),
            ..SweepReport::default()
        };
        let mut writes = Writes::default();
        for (key, mut verdict) in self.verdicts(snapshot, keys, agent) {
            let listed = snapshot.blobs(&key).unwrap_or_default();
            if let Some(reason) = drifted.get(&key)
                && matches!(verdict, Verdict::Settled | Verdict::Adopt)
            {
                verdict = if listed.0.is_some() {
                    writes.request(key, reason, true);
                    Verdict::Request(reason)
                } else {
                    Verdict::Failed(format!(
                        "{reason}, and the branch has no file to replace it; push the video again."
                    ))
                };
            }
            if verdict == Verdict::Request(CAUSE_CHANGED) {
                writes.request(key, CAUSE_CHANGED, false);
            }
            if verdict == Verdict::Adopt {
                writes.adopted.push((key, listed));
            }
            let Some((outcome, detail)) = verdict.outcome() else {
                continue;
            };
            report.videos.push(SweptVideo {
                lesson_id: key.lesson_id,
                video_id: key.video_id,
                outcome,
                detail: detail.to_owned(),
                found: outcome == Outcome::Queued,
                is_new: !matches!(verdict, Verdict::Failed(_)) || drifted.contains_key(&key),
            });
            if let Verdict::Fail(code, message) = verdict {
                writes.failed.push(Overdue {
                    key,
                    requested: snapshot.records.get(&key).map(|record| record.requested),
                    conversation_id: conversations.get(&key).copied().cloned(),
                    failure: Failure::new(code, message),
                });
            }
        }
        let odd = snapshot.odd.iter();
        let odd = odd.filter_map(|(key, column)| Some(((*key)?, column)));
        for (key, column) in odd.filter(|(key, _)| options.includes(*key) && !seen.contains(key)) {
            report.videos.push(SweptVideo {
                lesson_id: key.lesson_id,
                video_id: key.video_id,
                outcome: Outcome::Unknown,
                detail: format!("The row's {column} is unusable; correct it in lesson_assets."),
                found: false,
                is_new: true,
            });
        }
        (report, writes)
    }

    /// The paths of files in the branch whose video has no row.
    fn orphans(&self, snapshot: &Snapshot, options: &SweepOptions) -> Vec<String> {
        let pending: HashSet<VideoKey> = snapshot.pending.iter().map(|row| row.key).collect();
        let mut orphans = Vec::new();
        for (key, (mp4, json)) in &snapshot.listed {
            if options.includes(*key) && !pending.contains(key) && !snapshot.ready.contains(key) {
                let files = [(mp4, FileKind::Video), (json, FileKind::Metadata)];
                let files = files.iter().filter(|(blob, _)| blob.is_some());
                orphans.extend(files.map(|(_, kind)| self.path(key, *kind)));
            }
        }
        orphans.sort();
        orphans
    }

    fn path(&self, key: &VideoKey, kind: FileKind) -> String {
        format!("{}/{}", self.videos_dir, key.file_name(kind))
    }

    fn verdicts(
        &self,
        snapshot: &Snapshot,
        keys: impl IntoIterator<Item = VideoKey>,
        agent: &HashMap<VideoKey, AgentStatus>,
    ) -> Vec<(VideoKey, Verdict)> {
        snapshot.verdicts(keys, agent, self.generation_deadline)
    }

    async fn write(&self, writes: Writes) -> Result<(), SweepError> {
        if !writes.adopted.is_empty() {
            self.db.adopt(&writes.adopted).await?;
        }
        for overdue in writes.failed {
            let Overdue {
                key,
                requested,
                conversation_id,
                failure,
            } = overdue;
            debug_assert_eq!(failure.code.class(), Class::Expired);
            let conversation = conversation_id.as_deref();
            let failed = self.db.fail_pending(key, requested, conversation, &failure);
            if failed.await? {
                tracing::warn!(video.id = %key.video_id, code = %failure.code, "video failed: {}", failure.message);
            }
        }
        if !writes.requests.is_empty() {
            self.db.request(writes.requests).await?;
            self.wake.notify_waiters();
        }
        Ok(())
    }

    /// Waits for the queued videos and updates their outcomes.
    async fn wait_for(&self, report: &mut SweepReport, wait: Duration) -> Result<(), SweepError> {
        let queued = report.videos.iter();
        let queued = queued.filter(|video| video.outcome == Outcome::Queued);
        let queued: Vec<VideoKey> = queued.map(SweptVideo::key).collect();
        if queued.is_empty() || wait.is_zero() {
            return Ok(());
        }
        let until = Instant::now() + wait;
        while Instant::now() < until && self.db.count_busy(&queued).await? > 0 {
            tokio::time::sleep(WAIT_POLL).await;
        }
        let records = self.db.records().await?;
        let queued = report.videos.iter_mut();
        for video in queued.filter(|video| video.outcome == Outcome::Queued) {
            let key = video.key();
            let Some(record) = records.get(&key) else {
                continue;
            };
            (video.outcome, video.detail) = match record.state {
                VideoState::Ready => (Outcome::Processed, "ready".to_owned()),
                VideoState::Failed => (Outcome::Failed, record.message.clone()),
                VideoState::Waiting => (Outcome::Waiting, record.message.clone()),
                VideoState::Generating | VideoState::Queued | VideoState::Running => continue,
            };
            if record.state == VideoState::Ready {
                // The row was inserted during the wait, by the app or by a worker.
                let files = [FileKind::Video, FileKind::Metadata].map(|kind| self.path(&key, kind));
                report.orphans.retain(|orphan| !files.contains(orphan));
            }
        }
        Ok(())
    }
}

/// The failure of a scan that was aborted. The next one continues with the look-ups.
fn slow_scan() -> Failure {
    let message = "The scan took too long; it will be continued automatically.";
    Failure::new(Code::GithubUnavailable, message)
}

/// The writes of a sweep or scan.
#[derive(Default)]
struct Writes {
    requests: Vec<Request>,
    adopted: Vec<(VideoKey, Blobs)>,
    failed: Vec<Overdue>,
}

/// A video to fail, with what the verdict is based on.
struct Overdue {
    key: VideoKey,
    /// The count of requests in its record; `None` if it has no record.
    requested: Option<i64>,
    /// The conversation in its row.
    conversation_id: Option<String>,
    failure: Failure,
}

impl Writes {
    fn request(&mut self, key: VideoKey, reason: &str, forced: bool) {
        let request = Request::new(key, Source::Sweep, reason);
        self.requests.push(Request { forced, ..request });
    }
}

/// Why a sweep or scan failed.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The database is unavailable.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The branch cannot be listed.
    #[error(transparent)]
    Failure(#[from] Failure),
}

impl From<ListingError> for SweepError {
    fn from(error: ListingError) -> Self {
        match error {
            ListingError::Db(error) => Self::Db(error),
            ListingError::Failure(failure) => Self::Failure(failure),
        }
    }
}
