//! Whether, when and how often a video is worked on: claim, lease, the retry schedule, the end.
//! What is done with it is [`crate::pipeline::ingest`]'s.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::Notify;
use tokio::time::{Instant, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::db::{Claim, Db, DbError, Lost};
use crate::domain::failure::{Code, Failure, causes};
use crate::domain::plan::{End, after_failure};
use crate::domain::request::{Request, Source};
use crate::pipeline::ingest::{Attempt, Ingest};
use crate::pipeline::sweep::Sweep;
use crate::telemetry::metrics;

/// A worker that has nothing to do looks again after this time. Source: the contract.
pub const IDLE_LOOK: Duration = Duration::from_secs(5);

/// After an error of the database.
const DATABASE_WAIT: Duration = Duration::from_secs(1);

/// How often the end of a claim is written before it is left to the lease.
const FINISH_TRIES_MAX: u32 = 5;

/// Works on what is due: videos, scans, leases that ran out.
#[derive(Clone)]
pub struct Worker {
    /// Where claims come from and ends go.
    pub db: Db,
    /// Stamps the timeline.
    pub clock: Clock,
    /// The steps of one video.
    pub ingest: Ingest,
    /// Looks at whole trees.
    pub sweep: Sweep,
    /// How long a video is ours without renewal; renewed at a third of it.
    pub lease: Duration,
    /// Wakes idle workers of this process when something was recorded.
    pub wake: Arc<Notify>,
    /// Cancelled: take nothing new.
    pub stop: CancellationToken,
    /// Cancelled: hand back what is running.
    pub hand_back: CancellationToken,
}

impl Worker {
    /// Works until told to stop, waiting where there is nothing to do.
    pub async fn run(&self) {
        while !self.stop.is_cancelled() {
            // Registered before looking, so that a wake-up in between is not missed.
            let woken = self.wake.notified();
            let wait = match self.run_once().await {
                Ok(true) => continue,
                Ok(false) => IDLE_LOOK,
                Err(error) => {
                    tracing::warn!(error = causes(&error), "no work without the database");
                    DATABASE_WAIT
                }
            };
            tokio::select! {
                _ = timeout(wait, woken) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Does one thing that is due. `false`: there was none.
    pub async fn run_once(&self) -> Result<bool, DbError> {
        let db = &self.db;
        if let Some(scan) = db.claim_scan().await? {
            self.sweep.scan(&scan).await?;
            return Ok(true);
        }
        if !self.has_room() {
            return Ok(false);
        }
        if let Some(claim) = db.claim(self.lease).await? {
            match claim.expired {
                false => self.work(&claim).await,
                true => {
                    let failure = Failure::new(
                        Code::LeaseExpired,
                        "the process that had the video stopped before it was done",
                    );
                    let mut attempt = Attempt::new(&claim, self.clock.clone());
                    self.settle(&mut attempt, Err(failure)).await;
                }
            }
            return Ok(true);
        }
        let owner = self.ingest.rules.missing_rows_owner;
        Ok(db.wake_those_with_rows(owner).await? > 0)
    }

    /// A download that would fill the disk is not begun.
    fn has_room(&self) -> bool {
        let needed = self.ingest.video_bytes_max.load(Ordering::Relaxed);
        match free_bytes(&self.ingest.rules.data_dir) {
            Some(free) if free < needed => {
                tracing::error!(
                    free_bytes = free,
                    needed_bytes = needed,
                    "too little room in DATA_DIR: nothing is fetched until there is more"
                );
                false
            }
            _ => true,
        }
    }

    async fn work(&self, claim: &Claim) {
        let mut attempt = Attempt::new(claim, self.clock.clone());
        let uploading = attempt.uploading.clone();
        let story = AssertUnwindSafe(self.ingest.run(&mut attempt)).catch_unwind();
        let ended = tokio::select! {
            result = story => Some(result.unwrap_or_else(|_| {
                tracing::error!(video.id = %claim.key.video_id, attempt = claim.history.attempts + 1, "ingest panicked");
                Err(Failure::new(Code::Internal, "a defect of the server; its log has the details"))
            })),
            () = self.keep_lease(claim) => None,
            () = self.hand_back.cancelled() => {
                if let Err(error) = self.db.hand_back(claim).await {
                    tracing::warn!(video.id = %claim.key.video_id, error = causes(&error), "not handed back; its lease will end");
                }
                return;
            }
        };
        match ended {
            Some(result) => self.settle(&mut attempt, result).await,
            None => self.lost(claim, uploading.load(Ordering::Relaxed)).await,
        }
    }

    /// Returns when the lease is lost, or can no longer be known to hold.
    async fn keep_lease(&self, claim: &Claim) {
        let mut held_until = Instant::now() + self.lease;
        let mut ticks = interval_at(Instant::now() + self.lease / 3, self.lease / 3);
        loop {
            ticks.tick().await;
            let asked = Instant::now();
            let left = held_until.saturating_duration_since(asked);
            match timeout(left, self.db.renew(claim, self.lease)).await {
                Ok(Ok(())) => held_until = asked + self.lease,
                Ok(Err(Lost::Db(error))) if Instant::now() < held_until => {
                    tracing::warn!(video.id = %claim.key.video_id, error = causes(&error), "lease not renewed yet");
                }
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Writes how the attempt ended.
    async fn settle(&self, attempt: &mut Attempt<'_>, result: Result<End, Failure>) {
        let claim = attempt.claim;
        let end = result
            .unwrap_or_else(|failure| after_failure(&claim.history, failure, fastrand::f64()));
        let detail = match &end {
            End::Ready { .. } => "the row is ready".to_owned(),
            End::Unchanged => "the branch holds nothing new".to_owned(),
            End::Waiting { message, .. } => message.clone(),
            End::Retry { failure, wait, .. } => {
                format!("{failure} Next attempt in {} s.", wait.as_secs())
            }
            End::Failed { failure, .. } => failure.to_string(),
        };
        attempt.step(end.step(), detail);
        for tries in 1..=FINISH_TRIES_MAX {
            match self.ingest.finish(attempt, &end).await {
                Ok(()) => {
                    let _ = self.ingest.fail.at("published").await;
                    metrics::ended(claim, &end);
                    return log(claim, &end);
                }
                Err(Lost::Db(error)) if tries < FINISH_TRIES_MAX => {
                    tracing::warn!(video.id = %claim.key.video_id, error = causes(&error), "end not written yet");
                    tokio::time::sleep(DATABASE_WAIT).await;
                }
                Err(_) => {
                    return self
                        .lost(claim, attempt.uploading.load(Ordering::Relaxed))
                        .await;
                }
            }
        }
    }

    /// The lease does not fence the store: what this worker sent may arrive after the next one's, so
    /// the video is asked for again and the next pass compares the store with the branch.
    async fn lost(&self, claim: &Claim, uploading: bool) {
        tracing::warn!(video.id = %claim.key.video_id, attempt = claim.history.attempts + 1, uploading, "lease lost: stopped");
        if uploading {
            let repair = Request::new(
                claim.key,
                Source::Repair,
                "a worker lost its lease while uploading",
            );
            if let Err(error) = self.db.request([repair]).await {
                tracing::error!(video.id = %claim.key.video_id, error = causes(&error), "repair not requested: run a sweep with verify=true");
            }
        }
    }
}

/// One line per outcome; ERROR only where a person must look.
fn log(claim: &Claim, end: &End) {
    let video = claim.key.video_id;
    let attempt = claim.history.attempts + 1;
    match end {
        End::Ready { published, .. } => {
            let replaced = claim
                .history
                .stored
                .as_ref()
                .is_some_and(|s| s.sha256 != published.sha256);
            tracing::info!(video.id = %video, lesson.id = %claim.key.lesson_id, attempt, replaced, size_bytes = published.size_bytes, commit = %published.commit, "ready");
        }
        End::Unchanged => tracing::info!(video.id = %video, attempt, "unchanged"),
        End::Waiting { code, message, .. } => {
            tracing::info!(video.id = %video, attempt, code = %code, "waiting: {message}");
        }
        End::Retry { failure, wait, .. } => {
            tracing::warn!(video.id = %video, attempt, code = %failure.code, wait_s = wait.as_secs(), "not yet: {}", failure.message);
        }
        End::Failed { failure, .. } => {
            tracing::warn!(video.id = %video, attempt, code = %failure.code, "failed: {}", failure.message);
        }
    }
}

/// The room left for us on the disk that holds `dir`, in bytes.
pub(crate) fn free_bytes(dir: &std::path::Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(dir).ok()?;
    Some(disk.f_bavail.saturating_mul(disk.f_frsize))
}
