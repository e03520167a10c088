//! Finds what lost webhooks left behind: compares the whole branch with all rows. A sweep takes no input
//! but the present, needs no memory of webhooks, and ends in the same request as a push.

mod read;
mod verify;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Clock;
use crate::db::{Db, DbError, Scan};
use crate::domain::failure::{Class, Failure, causes};
use crate::domain::ids::{FileKind, VideoKey};
use crate::domain::plan::Blobs;
use crate::domain::report::{Outcome, SweepReport, SweptVideo};
use crate::domain::request::{Request, Source};
use crate::domain::state::VideoState;
use crate::domain::verdict::{AgentStatus, Snapshot, Verdict};
use crate::pipeline::ingest::{PUSH_LAG_MAX, push_not_served};
use crate::services::github::{Freshness, Github};
use crate::services::openhands::OpenHands;
use crate::services::storage::Store;
use crate::telemetry::metrics;

/// Between two looks at whether what was found is ready.
const WAIT_LOOK: Duration = Duration::from_millis(200);

/// Between two attempts at a scan.
const SCAN_AGAIN: Duration = Duration::from_secs(5);

/// Everything a sweep touches.
#[derive(Clone)]
pub struct Sweep {
    /// Our records and the app's rows.
    pub db: Db,
    /// The branch.
    pub github: Arc<Github>,
    /// For `verify`.
    pub store: Arc<Store>,
    /// Asked about generations; `None`: there is no key.
    pub openhands: Option<Arc<OpenHands>>,
    /// `videos`
    pub videos_dir: Arc<str>,
    /// The age at which a row without a video is failed.
    pub generation_deadline: Duration,
    /// Deliveries and timelines that are older are pruned.
    pub history_retention: Duration,
    /// Stamps the report.
    pub clock: Clock,
    /// Notified when something was requested.
    pub wake: Arc<Notify>,
    /// One sweep at a time in this process.
    pub running: Arc<Mutex<()>>,
}

/// What one sweep is asked to do.
#[derive(Clone, Debug, Default)]
pub struct SweepOptions {
    /// Write nothing.
    pub dry_run: bool,
    /// How long to wait for what was found to become ready.
    pub wait: Duration,
    /// Only this video.
    pub only: Option<Uuid>,
    /// Compare ready rows with their objects too.
    pub verify: bool,
}

impl SweepOptions {
    fn includes(&self, key: VideoKey) -> bool {
        self.only.is_none_or(|only| key.video_id == only)
    }
}

impl Sweep {
    /// The scan that a delivery asked for: the whole tree, and requests for what it holds. Verdicts on
    /// generations are left to sweeps.
    ///
    /// # Errors
    /// Our database did not answer.
    pub async fn scan(&self, scan: &Scan) -> Result<(), DbError> {
        let result = self.scan_once(scan).await;
        let again = match &result {
            Ok(()) => None,
            Err(Stopped::Db(_)) => Some(SCAN_AGAIN),
            Err(Stopped::Failure(failure)) => {
                tracing::warn!(delivery.id = scan.guid, code = %failure.code, "scan failed, will retry: {}", failure.message);
                Some(failure.retry_after.unwrap_or(SCAN_AGAIN))
            }
        };
        self.db.settle_scan(scan, again).await?;
        match result {
            Err(Stopped::Db(error)) => Err(error),
            _ => Ok(()),
        }
    }

    async fn scan_once(&self, scan: &Scan) -> Result<(), Stopped> {
        let listing = self.github.listing(Instant::now()).await?;
        let fresh = self.github.freshness(&listing, &[scan.after]).await?;
        if fresh == Freshness::Behind && scan.age < PUSH_LAG_MAX {
            return Err(push_not_served().into());
        }
        let snapshot = self.snapshot(&listing, true).await?;
        let mut writes = Writes::default();
        for (key, verdict) in
            self.verdicts(&snapshot, snapshot.listed.keys().copied(), &HashMap::new())
        {
            match verdict {
                Verdict::Request(_) => {
                    writes.request(key, "found by the scan that a push asked for", false);
                }
                Verdict::Failed(_) | Verdict::Waiting(_)
                    if scan.redelivered && snapshot.listed[&key] != (None, None) =>
                {
                    writes.request(key, "the push was delivered again", true);
                }
                Verdict::Adopt => writes.adopted.push((key, snapshot.listed[&key])),
                _ => {}
            }
        }
        self.write(writes).await?;
        let listed = snapshot.listed.len();
        tracing::info!(delivery.id = scan.guid, listed, "scanned");
        Ok(())
    }

    /// One sweep.
    ///
    /// # Errors
    /// The branch cannot be read, or our database did not answer.
    pub async fn run(&self, options: &SweepOptions) -> Result<SweepReport, Stopped> {
        let result = self.run_once(options).await;
        if !options.dry_run {
            metrics::swept(result.as_ref().ok());
        }
        match &result {
            Ok(report) => tracing::info!(
                checked = report.checked,
                found = report.found,
                processed = report.processed,
                failed = report.failed,
                generating = report.still_generating,
                dry_run = options.dry_run,
                "swept"
            ),
            Err(stopped) => tracing::warn!(error = causes(stopped), "sweep failed"),
        }
        result
    }

    async fn run_once(&self, options: &SweepOptions) -> Result<SweepReport, Stopped> {
        let one_at_a_time = self.running.lock().await;
        let listing = self.github.listing(Instant::now()).await?;
        let snapshot = self.snapshot(&listing, !options.dry_run).await?;
        if !options.dry_run {
            // Before OpenHands and the storage are asked: what was pushed waits for neither.
            self.request_pushed(&snapshot, options).await?;
        }
        let (agent, mut errors) = self.ask_openhands(&snapshot, options).await?;
        let mut drifted = HashMap::new();
        if options.verify {
            let (found, failures) = self.verify(options).await?;
            drifted = found;
            errors.extend(failures);
        }
        let (mut report, writes) = self.decide(&snapshot, &agent, &drifted, options);
        report.errors = errors;
        if !options.dry_run {
            self.write(writes).await?;
            // A caller that waits for videos does not keep others from sweeping.
            drop(one_at_a_time);
            self.wait_for(&mut report, options.wait).await?;
            self.db.prune(self.history_retention).await?;
        }
        report.sum_up();
        if !options.dry_run && options.only.is_none() {
            self.db.note_sweep(report.counts()).await?;
        }
        Ok(report)
    }

    /// Requests what was pushed and not ingested, before anything else is known.
    async fn request_pushed(
        &self,
        snapshot: &Snapshot,
        options: &SweepOptions,
    ) -> Result<(), Stopped> {
        let listed = snapshot.listed.keys().copied();
        let listed = listed.filter(|key| options.includes(*key));
        let mut writes = Writes::default();
        for (key, verdict) in self.verdicts(snapshot, listed, &HashMap::new()) {
            if let Verdict::Request(reason) = verdict {
                writes.request(key, reason, false);
            }
        }
        self.write(writes).await
    }

    /// The report on every video that is not settled, and what has to be written.
    fn decide(
        &self,
        snapshot: &Snapshot,
        agent: &HashMap<VideoKey, AgentStatus>,
        drifted: &HashMap<VideoKey, &'static str>,
        options: &SweepOptions,
    ) -> (SweepReport, Writes) {
        let mut seen = HashSet::new();
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
                        "{reason}, and the branch has no file to replace it: push the video again."
                    ))
                };
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
            });
            if let Verdict::Fail(code, message) = verdict {
                let requested = snapshot.records.get(&key).map(|record| record.requested);
                writes
                    .verdicts
                    .push((key, requested, Failure::new(code, message)));
            }
        }
        (report, writes)
    }

    /// Files in the branch for which the app has no row.
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

    async fn write(&self, writes: Writes) -> Result<(), Stopped> {
        if !writes.adopted.is_empty() {
            self.db.adopt(&writes.adopted).await?;
        }
        for (key, requested, failure) in writes.verdicts {
            debug_assert_eq!(failure.code.class(), Class::Expired);
            self.db.give_verdict(key, requested, &failure).await?;
            tracing::warn!(video.id = %key.video_id, code = %failure.code, "failed: {}", failure.message);
        }
        if !writes.requests.is_empty() {
            self.db.request(writes.requests).await?;
            self.wake.notify_waiters();
        }
        Ok(())
    }

    /// Waits for what was queued, then reports how it ended.
    async fn wait_for(&self, report: &mut SweepReport, wait: Duration) -> Result<(), Stopped> {
        let queued = report.videos.iter();
        let queued = queued.filter(|video| video.outcome == Outcome::Queued);
        let queued: Vec<VideoKey> = queued.map(SweptVideo::key).collect();
        if queued.is_empty() || wait.is_zero() {
            return Ok(());
        }
        let until = Instant::now() + wait;
        while Instant::now() < until && self.db.count_busy(&queued).await? > 0 {
            tokio::time::sleep(WAIT_LOOK).await;
        }
        let records = self.db.records().await?;
        for video in &mut report.videos {
            let key = video.key();
            let Some(record) = records.get(&key).filter(|_| queued.contains(&key)) else {
                continue;
            };
            (video.outcome, video.detail) = match record.state {
                VideoState::Ready => (Outcome::Processed, "ready".to_owned()),
                VideoState::Failed => (Outcome::Failed, record.message.clone()),
                VideoState::Waiting => (Outcome::Waiting, record.message.clone()),
                VideoState::Generating | VideoState::Queued | VideoState::Running => continue,
            };
            if record.state == VideoState::Ready {
                // Its row was inserted while we waited, by the app or by us.
                let files = [FileKind::Video, FileKind::Metadata].map(|kind| self.path(&key, kind));
                report.orphans.retain(|orphan| !files.contains(orphan));
            }
        }
        Ok(())
    }
}

/// What a sweep or a scan has decided to write.
#[derive(Default)]
struct Writes {
    requests: Vec<Request>,
    adopted: Vec<(VideoKey, Blobs)>,
    /// With the count of requests that the record had when it was read; `None`: there was no record.
    verdicts: Vec<(VideoKey, Option<i64>, Failure)>,
}

impl Writes {
    fn request(&mut self, key: VideoKey, reason: &str, forced: bool) {
        let request = Request::new(key, Source::Sweep, reason);
        self.requests.push(Request { forced, ..request });
    }
}

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// Our database did not answer.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The branch cannot be read.
    #[error(transparent)]
    Failure(#[from] Failure),
}
