//! Workers: claims, leases, retries and the end of attempts. The attempt itself is in
//! [`crate::pipeline::ingest`].

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::Notify;
use tokio::time::{Instant, interval_at, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::db::{Claim, ClaimError, Db, DbError};
use crate::domain::failure::{Code, Failure};
use crate::domain::plan::{End, after_failure};
use crate::domain::request::{Request, Source};
use crate::format::causes;
use crate::pipeline::ingest::{Attempt, Ingest};
use crate::pipeline::spool::has_space;
use crate::pipeline::sweep::Sweep;
use crate::services::github::for_purpose;
use crate::telemetry::metrics;

/// The interval at which idle workers poll the database.
const IDLE_POLL: Duration = Duration::from_secs(5);

/// The wait after a database error.
const DATABASE_RETRY: Duration = Duration::from_secs(1);

/// The maximum number of attempts to finish a claim. After that, the lease expires.
const FINISH_TRIES_MAX: u32 = 5;

/// Processes scans, due videos and expired leases.
#[derive(Clone)]
pub struct Worker {
    /// The records.
    pub db: Db,
    /// The clock for timelines.
    pub clock: Clock,
    /// The steps of one video.
    pub ingest: Ingest,
    /// Performs scans.
    pub sweep: Sweep,
    /// The lease of a claim. It is renewed after a third of this period.
    pub lease: Duration,
    /// Notified when a video or scan was requested.
    pub wake: Arc<Notify>,
    /// If cancelled, the worker claims nothing more.
    pub stop: CancellationToken,
    /// If cancelled, the worker releases its claim.
    pub hand_back: CancellationToken,
}

impl Worker {
    /// Runs until `stop` is cancelled.
    pub async fn run(&self) {
        while !self.stop.is_cancelled() {
            // Created before the query, so that a notification during the query is not missed.
            let woken = self.wake.notified();
            let wait = match self.run_once().await {
                Ok(true) => continue,
                Ok(false) => self.ingest.branch.lag().unwrap_or(IDLE_POLL),
                Err(error) => {
                    tracing::warn!(error = causes(&error), "database unavailable, retrying");
                    DATABASE_RETRY
                }
            };
            tokio::select! {
                _ = timeout(wait, woken) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Processes one scan or video. Returns `false` if none is due, or if none can be processed because
    /// GitHub's API lags behind.
    pub async fn run_once(&self) -> Result<bool, DbError> {
        let db = &self.db;
        if self.ingest.branch.lag().is_some() {
            return Ok(false);
        }
        if let Some(scan) = db.claim_scan().await? {
            self.sweep.scan(&scan).await?;
            return Ok(true);
        }
        let ingest = &self.ingest;
        if !has_space(&ingest.rules.data_dir, ingest.limits.usual_bytes()) {
            return Ok(false);
        }
        if let Some(claim) = db.claim(self.lease).await? {
            if claim.expired {
                // A video that crashes the server must not be retried immediately, so an expired lease
                // counts as a failed attempt and follows the retry schedule.
                let failure = Failure::new(
                    Code::LeaseExpired,
                    "The server stopped during an attempt; the video will be retried automatically.",
                );
                let mut attempt = Attempt::new(&claim, self.clock.clone());
                self.settle(&mut attempt, Err(failure)).await;
            } else {
                self.work(&claim).await;
            }
            return Ok(true);
        }
        if db.undo_clock_jump(self.lease).await? > 0 {
            return Ok(true);
        }
        let owner = self.ingest.rules.missing_rows_owner;
        match db.queue_videos_with_rows(owner).await {
            // Reported at startup and by each attempt that reads a row.
            Err(DbError::Denied(cause)) => {
                tracing::debug!(cause, "cannot look for new rows");
                Ok(false)
            }
            queued => Ok(queued? > 0),
        }
    }

    async fn work(&self, claim: &Claim) {
        let mut attempt = Attempt::new(claim, self.clock.clone());
        let uploading = attempt.uploading.clone();
        let run = for_purpose(claim.source.purpose(), self.ingest.run(&mut attempt));
        let run = AssertUnwindSafe(run).catch_unwind();
        let ended = tokio::select! {
            result = run => Some(result.unwrap_or_else(|_| {
                tracing::error!(video.id = %claim.key.video_id, attempt = claim.history.attempts + 1, "attempt panicked");
                Err(Failure::new(Code::Internal, "Internal server error (this is a bug); see the server's log for details."))
            })),
            () = self.keep_lease(claim) => None,
            () = self.hand_back.cancelled() => {
                if let Err(error) = self.db.hand_back(claim).await {
                    tracing::warn!(video.id = %claim.key.video_id, error = causes(&error), "failed to release the claim, waiting for its lease to expire");
                }
                return;
            }
        };
        match ended {
            Some(result) => self.settle(&mut attempt, result).await,
            None => self.lost(claim, uploading.load(Ordering::Relaxed)).await,
        }
    }

    /// Renews the lease. Returns when it is lost, or when it has expired by our clock.
    async fn keep_lease(&self, claim: &Claim) {
        let mut held_until = Instant::now() + self.lease;
        let mut ticks = interval_at(Instant::now() + self.lease / 3, self.lease / 3);
        loop {
            ticks.tick().await;
            // The new lease begins when the database executes the statement, which is after this moment.
            // `held_until` is therefore never later than the end of the lease.
            let started = Instant::now();
            let remaining = held_until.saturating_duration_since(started);
            match timeout(remaining, self.db.renew(claim, self.lease)).await {
                Ok(Ok(())) => held_until = started + self.lease,
                Ok(Err(ClaimError::Db(error))) if Instant::now() < held_until => {
                    tracing::warn!(video.id = %claim.key.video_id, error = causes(&error), "failed to renew the lease, retrying");
                }
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Finishes the claim.
    async fn settle(&self, attempt: &mut Attempt<'_>, result: Result<End, Failure>) {
        let claim = attempt.claim;
        let decide = |result: Result<End, Failure>| {
            result.unwrap_or_else(|failure| after_failure(&claim.history, failure, fastrand::f64()))
        };
        let mut end = decide(result);
        attempt.step(end.step(), detail(&end));
        for tries in 1..=FINISH_TRIES_MAX {
            let finished = self
                .db
                .finish(claim, attempt.listed, &end, &attempt.steps)
                .await;
            let changed = match finished {
                Ok(()) => {
                    let _ = self.ingest.fail.at("published").await;
                    self.keep_cause(attempt, &end).await;
                    if let Err(failure) = self.ingest.delete_replaced(&end).await {
                        tracing::warn!(video.id = %claim.key.video_id, code = %failure.code, "failed to delete a replaced object: {failure}");
                    }
                    metrics::ended(claim, &end);
                    return log(claim, &end);
                }
                Err(ClaimError::RowChanged) => match self.ingest.row_changed(claim, &end).await {
                    Ok(Some(result)) => Ok(result),
                    Ok(None) => {
                        let video = claim.key.video_id;
                        return tracing::info!(video.id = %video, "the row changed during the attempt, queued the video again");
                    }
                    Err(error) => Err(error),
                },
                Err(ClaimError::Db(error @ DbError::Denied(_))) => Ok(Err(error.into())),
                Err(error) => Err(error),
            };
            match changed {
                Ok(result) => {
                    end = decide(result);
                    attempt.steps.pop();
                    attempt.step(end.step(), detail(&end));
                }
                Err(ClaimError::Db(error)) if tries < FINISH_TRIES_MAX => {
                    tracing::warn!(video.id = %claim.key.video_id, error = causes(&error), "failed to persist the result, retrying");
                    tokio::time::sleep(DATABASE_RETRY).await;
                }
                Err(_) => break,
            }
        }
        self.lost(claim, attempt.uploading.load(Ordering::Relaxed))
            .await;
    }

    /// Records what a failure depends on. If that fails, the next sweep retries the video once.
    async fn keep_cause(&self, attempt: &Attempt<'_>, end: &End) {
        let End::Failed { failure, .. } = end else {
            return;
        };
        let (claim, listed) = (attempt.claim, attempt.listed.is_some());
        // If the previous attempt also gave up, as for a corrupted download, its cause still applies.
        let last = claim.history.code.filter(|code| *code != Code::GaveUp);
        let last = last.or(claim.history.cause.as_deref().and_then(Code::parse));
        let bucket = attempt.bucket.as_deref();
        let cause = self.ingest.causes.of(failure.code, bucket, listed, last);
        if let Some(cause) = cause.await
            && let Err(error) = self.db.keep_cause(claim, &cause).await
        {
            tracing::warn!(video.id = %claim.key.video_id, error = causes(&error), "failed to record the cause of the failure");
        }
    }

    /// Handles a lost lease.
    ///
    /// The lease does not protect the storage: this worker's upload may complete after that of the next
    /// worker. The video is therefore requested again, the next attempt compares the object with the branch,
    /// and the object is compared once more some minutes later.
    async fn lost(&self, claim: &Claim, uploading: bool) {
        tracing::warn!(video.id = %claim.key.video_id, attempt = claim.history.attempts + 1, uploading, "lost the lease, aborted the attempt");
        if uploading {
            let repair = Request::new(
                claim.key,
                Source::Repair,
                "a worker lost its lease during an upload",
            );
            let requested = async {
                self.db.request([repair]).await?;
                self.db.look_again(claim.key).await
            };
            if let Err(error) = requested.await {
                tracing::error!(video.id = %claim.key.video_id, error = causes(&error), "failed to request a repair; run a sweep with verify=true");
            }
        }
    }
}

/// The end of an attempt in the timeline.
fn detail(end: &End) -> String {
    match end {
        End::Ready { .. } => "the row is ready".to_owned(),
        End::Unchanged => "no new files in the branch".to_owned(),
        End::Waiting { message, .. } => message.clone(),
        End::Retry { failure, wait, .. } => {
            format!("{failure} Next attempt in {} s.", wait.as_secs())
        }
        End::Failed { failure, .. } => failure.to_string(),
    }
}

/// Logs the end of an attempt.
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
            tracing::info!(video.id = %video, lesson.id = %claim.key.lesson_id, attempt, replaced, size_bytes = published.size_bytes, commit = %published.commit, "video ready");
        }
        End::Unchanged => tracing::info!(video.id = %video, attempt, "video unchanged"),
        End::Waiting { code, message, .. } => {
            tracing::info!(video.id = %video, attempt, code = %code, "video waiting: {message}");
        }
        End::Retry { failure, wait, .. } => {
            tracing::warn!(video.id = %video, attempt, code = %failure.code, wait_s = wait.as_secs(), "attempt failed, will retry: {}", failure.message);
        }
        End::Failed { failure, .. } => {
            tracing::warn!(video.id = %video, attempt, code = %failure.code, "video failed: {}", failure.message);
        }
    }
}
