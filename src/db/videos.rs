//! The table `videos`: the records. A record is also the job: it is requested, claimed and finished here.
//!
//! `due_at` is the time from which a worker may claim the video. While it is running, `due_at` is the end
//! of its lease, so one query finds queued videos and expired leases.
//!
//! `requested` counts the requests, `observed` is the count that the last completed attempt served. An
//! attempt serves the requests that were counted when it was claimed; later ones queue the video again.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use sqlx::Row as _;
use sqlx::any::AnyRow;
use tokio::time::Instant;

use super::{BATCH_ROWS, Db, DbError, RowOwner, Unit};
use crate::domain::failure::{Class, Code, Failure};
use crate::domain::ids::{GitSha, VideoKey};
use crate::domain::plan::{Blobs, End, History, LATE_UPLOAD_LOOK, LEASE_MAX, Published, Waited};
use crate::domain::request::{Request, Source};
use crate::domain::state::VideoState;
use crate::domain::timeline::Entry;
use crate::domain::verdict::{Blocked, Record};

/// How far in the future a record's timestamp may be before the clock is considered to have been set back.
/// Smaller corrections of the clock delay a video by no more than this.
const CLOCK_SLACK: Duration = Duration::from_secs(60);

/// Upserts requests. `$2`: an array of [`to_json`]. `{recorded}`: the deliveries that request the videos.
///
/// - `forced` is set by a redelivery, and is kept until an attempt has served it.
/// - A running video keeps its state and lease. The end of its attempt sees the increased `requested`.
/// - Otherwise, the request starts the retry schedule from the beginning.
pub(super) const UPSERT_REQUESTS: &str = "insert into video_ingest.videos as videos
        (video_id, lesson_id, state, source, due_at, requested, requested_at, forced, created_at, updated_at)
    select k.value ->> 'video_id', k.value ->> 'lesson_id', 'queued', k.value ->> 'source', {now}, 1, {now},
        case when cast(k.value ->> 'forced' as bigint) = 1 or exists (
            select 1 from {each}(k.value -> 'deliveries') as g
            join {recorded} as recorded on recorded.guid = g.value ->> 'guid'
            where recorded.redeliveries > 0) then 1 else 0 end,
        {now}, {now}
    from {each}($2{jsonb}) as k
    where true
    on conflict (video_id, lesson_id) do update set
        requested = videos.requested + 1,
        requested_at = excluded.requested_at,
        source = excluded.source,
        forced = case when videos.forced + excluded.forced > 0 then 1 else 0 end,
        attempts = case when videos.state = 'running' then videos.attempts else 0 end,
        failing_since = case when videos.state = 'running' then videos.failing_since end,
        cause = case when videos.state = 'running' then videos.cause end,
        due_at = case when videos.state = 'running' then videos.due_at else excluded.due_at end,
        state = case when videos.state = 'running' then 'running' else 'queued' end,
        updated_at = excluded.updated_at";

/// Since when the video has the failure with which an attempt ends (`$5`, `$9`, `$11` and `$12` of
/// [`Db::finish`]). If an attempt only confirms the failure, the video did not change.
const FAILED_AT: &str = "case when $5 = 'failed' and requested = $4 then
        case when failed_at <= {now} and code = $9 and coalesce(mp4_sha, '') = coalesce($11, '')
            and coalesce(json_sha, '') = coalesce($12, '') then failed_at else {now} end
    end";

/// A request in the form that [`UPSERT_REQUESTS`] and [`INSERT_REQUESTS`](super::events::INSERT_REQUESTS)
/// read.
pub(super) fn to_json(request: &Request) -> serde_json::Value {
    let deliveries = request.deliveries.iter();
    let deliveries: serde_json::Value = deliveries.map(|guid| json!({"guid": guid})).collect();
    json!({
        "video_id": request.key.video_id,
        "lesson_id": request.key.lesson_id,
        "source": request.source.as_str(),
        "detail": request.detail,
        "forced": i64::from(request.forced),
        "deliveries": deliveries,
    })
}

/// A claim on a video, with the parts of the record that an attempt needs.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The video.
    pub key: VideoKey,
    token: String,
    /// Whether the claim took over an expired lease.
    pub expired: bool,
    /// The count of requests that this attempt serves.
    requested: i64,
    /// Whether there was a request since the last completed attempt.
    pub is_requested: bool,
    /// Whether the object must be compared now, because an upload may have completed late.
    pub look_is_due: bool,
    /// Whether the object must be compared later, for the same reason.
    look_is_pending: bool,
    /// The time of the last request, or slightly later. A listing must have begun after it.
    pub requested_at: Instant,
    /// The origin of the last request.
    pub source: Source,
    /// The results of earlier attempts.
    pub history: History,
}

/// Why a claim could not be renewed or finished.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The lease has expired and another worker may have claimed the video. The worker must stop.
    #[error("the lease was lost")]
    LeaseLost,
    /// The app's row was deleted, or has another lesson, owner, bucket or kind than when it was read.
    #[error("the row was deleted or changed")]
    RowChanged,
    /// The database is unavailable. Nothing was written, unless the connection broke during the commit.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for ClaimError {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Db {
    /// Claims the video that has been due for the longest time: a queued one, one whose waiting period is
    /// over, one whose lease has expired, or a ready one whose object is to be compared.
    ///
    /// `{skip_locked}` lets concurrent workers claim different videos instead of waiting for each other.
    pub async fn claim(&self, lease: Duration) -> Result<Option<Claim>, DbError> {
        let statement = "update video_ingest.videos set
                state = 'running', due_at = {now} + $2,
                lease_token = case when state = 'running' then $3 else $1 end
            where (video_id, lesson_id) = (
                select video_id, lesson_id from video_ingest.videos
                where due_at <= {now}
                order by due_at limit 1 {skip_locked})
            returning video_id, lesson_id, lease_token, requested, observed, {now} - requested_at as requested_ago,
                look_again_at - {now} as look_in,
                source, forced, attempts, {now} - failing_since as failing, code, message, cause,
                {now} - row_since as row_waited, {now} - json_since as json_waited,
                {now} - mp4_since as mp4_waited, mp4_sha, json_sha, stored_sha, commit_sha, sha256,
                size_bytes, duration_ms, width, height, storage_path, metadata, warnings";
        let token = uuid::Uuid::new_v4().simple().to_string();
        // `returning` returns the new values only. Two tokens tell whether the video was running before,
        // which means that its lease has expired.
        let token_if_expired = uuid::Uuid::new_v4().simple().to_string();
        let mut unit = self.unit(&self.write).await?;
        let row = self
            .query(statement)
            .bind(token.as_str())
            .bind(lease.as_millis() as i64)
            .bind(token_if_expired.as_str())
            .fetch_optional(unit.connection())
            .await?;
        let claim = row
            .map(|row| claimed(&row, &token_if_expired))
            .transpose()?;
        unit.commit().await?;
        if let Some(claim) = &claim {
            self.announce(claim.key.video_id, VideoState::Running);
        }
        Ok(claim)
    }

    /// Extends the lease to `lease` from now.
    ///
    /// # Errors
    /// [`ClaimError::LeaseLost`] if the claim is no longer valid, [`ClaimError::Db`].
    pub async fn renew(&self, claim: &Claim, lease: Duration) -> Result<(), ClaimError> {
        self.extend(claim, lease, false).await
    }

    /// As [`Db::renew`], immediately before an upload. If the attempt does not end with a confirmed object,
    /// the upload may complete later, so the object is compared again [`LATE_UPLOAD_LOOK`] after the last
    /// renewal.
    pub async fn begin_upload(&self, claim: &Claim, lease: Duration) -> Result<(), ClaimError> {
        self.extend(claim, lease, true).await
    }

    async fn extend(
        &self,
        claim: &Claim,
        lease: Duration,
        uploads: bool,
    ) -> Result<(), ClaimError> {
        let statement = "update video_ingest.videos set due_at = {now} + $4,
                look_again_at = case when $5 = 1 or look_again_at is not null then {now} + $6 end
            where video_id = $1 and lesson_id = $2 and lease_token = $3 and state = 'running'";
        let query = self
            .query_for(statement, claim.key)
            .bind(claim.token.as_str())
            .bind(lease.as_millis() as i64)
            .bind(i64::from(uploads))
            .bind(LATE_UPLOAD_LOOK.as_millis() as i64);
        match self.execute(query).await? {
            0 => Err(ClaimError::LeaseLost),
            _ => Ok(()),
        }
    }

    /// Schedules another comparison of a video's object after [`LATE_UPLOAD_LOOK`], because an upload by a
    /// worker that lost its lease may complete late. Call this after requesting a repair: until that request
    /// is served, no attempt cancels the comparison.
    pub async fn look_again(&self, key: VideoKey) -> Result<(), DbError> {
        let statement = "update video_ingest.videos set look_again_at = {now} + $3
            where video_id = $1 and lesson_id = $2";
        let wait = LATE_UPLOAD_LOOK.as_millis() as i64;
        self.execute(self.query_for(statement, key).bind(wait))
            .await?;
        Ok(())
    }

    /// Releases a claim without an attempt. The video is due immediately.
    pub async fn hand_back(&self, claim: &Claim) -> Result<(), DbError> {
        let statement =
            "update video_ingest.videos set state = 'queued', due_at = {now}, lease_token = null
            where video_id = $1 and lesson_id = $2 and lease_token = $3 and state = 'running'";
        let query = self
            .query_for(statement, claim.key)
            .bind(claim.token.as_str());
        self.execute(query).await?;
        self.announce(claim.key.video_id, VideoState::Queued);
        Ok(())
    }

    /// Finishes a claim: writes the record, the app's row, the timeline and the counts in one transaction.
    /// `listed`: the blobs that the branch contains, if the attempt got so far.
    ///
    /// The update of the record checks the token and so fences the whole transaction. The app's row is
    /// written first: a worker that waits for the app's lock on the row must not hold the lock on the record,
    /// because a push of the video needs it.
    ///
    /// # Errors
    /// Nothing is written if the claim is no longer valid, or the row has changed or cannot be updated.
    pub async fn finish(
        &self,
        claim: &Claim,
        listed: Option<Blobs>,
        end: &End,
        steps: &[Entry],
    ) -> Result<(), ClaimError> {
        let mut tx = self.transaction().await?;
        match end {
            End::Ready {
                published,
                user_id,
                bucket,
                ..
            } => {
                self.make_row_ready(&mut tx, claim.key, published, *user_id, bucket)
                    .await?;
            }
            End::Failed { failure, .. } => {
                let blob = listed.unwrap_or(claim.history.observed).0;
                let written = self
                    .make_row_failed(&mut tx, claim.key, failure, blob)
                    .await;
                match written {
                    // The row cannot be written, so the failure is recorded only in the record. The
                    // rejected statement has aborted the transaction.
                    Err(DbError::Denied(_)) if failure.code == Code::RowDenied => {
                        drop(tx);
                        tx = self.transaction().await?;
                    }
                    written => written?,
                }
            }
            End::Unchanged | End::Waiting { .. } | End::Retry { .. } => {}
        }
        let state = self.finish_record(&mut tx, claim, listed, end).await?;
        if let End::Ready { published, .. } = end {
            self.keep_published(&mut tx, claim.key, published).await?;
        }
        self.insert_attempt(&mut tx, claim.key, steps).await?;
        self.count_end(&mut tx, claim, end).await?;
        tx.commit().await?;
        self.announce(claim.key.video_id, state);
        Ok(())
    }

    /// Writes the end to the record and returns the new state.
    ///
    /// `requested > $4` means that the video was requested during the attempt. It is then queued again and
    /// keeps `forced`, which may belong to the new request. After a retryable failure (`$7 = 1`), the
    /// requests are not served yet: `observed` and `forced` are kept. The times at which the row, the JSON
    /// and the MP4 were first found missing are kept until `$14 = 1`, see [`Waited`]. A time in the future,
    /// recorded before the clock was set back, counts as now.
    ///
    /// A ready video is due again when its object is to be compared (`$13 = 1`).
    async fn finish_record(
        &self,
        tx: &mut Unit,
        claim: &Claim,
        listed: Option<Blobs>,
        end: &End,
    ) -> Result<VideoState, ClaimError> {
        let state = end.state();
        let (code, message) = end.reason().unzip();
        let is_retry = matches!(end, End::Retry { .. });
        let observed = listed.unwrap_or(claim.history.observed);
        // Without a confirmed object, the upload of this attempt may still complete.
        let keeps_look = claim.look_is_pending || state != VideoState::Ready;
        let since = |column: &str, missing: Code| {
            format!(
                "case when $14 = 1 then null
                    when {column} <= {{now}} then {column}
                    when {column} is not null or $9 = '{missing}' then {{now}} end"
            )
        };
        let statement = "update video_ingest.videos set
                state = case when requested > $4 then 'queued' else $5 end,
                due_at = case when requested > $4 then {now} when $6 >= 0 then {now} + $6
                    when $5 = 'ready' and $13 = 1 then look_again_at end,
                look_again_at = case when $13 = 1 or requested > $4 then look_again_at end,
                lease_token = null,
                observed = case when $7 = 1 then observed else $4 end,
                forced = case when $7 = 1 or requested > $4 then forced else 0 end,
                attempts = attempts + $8,
                failing_since = case
                    when $7 = 0 then null
                    when failing_since <= {now} then failing_since
                    when failing_since is not null or $8 = 1 then {now} end,
                row_since = {row}, json_since = {json}, mp4_since = {mp4},
                code = $9, message = $10, mp4_sha = $11, json_sha = $12,
                failed_at = {failed_at}, updated_at = coalesce({failed_at}, {now})
            where video_id = $1 and lesson_id = $2 and lease_token = $3 and state = 'running'
            returning requested"
            .replace("{failed_at}", FAILED_AT)
            .replace("{row}", &since("row_since", Code::NoRow))
            .replace("{json}", &since("json_since", Code::MetadataMissing))
            .replace("{mp4}", &since("mp4_since", Code::VideoMissing));
        let done = self
            .query_for(&statement, claim.key)
            .bind(claim.token.as_str())
            .bind(claim.requested)
            .bind(state.as_str())
            .bind(end.recheck_in().map_or(-1, |wait| wait.as_millis() as i64))
            .bind(i64::from(is_retry))
            .bind(i64::from(end.is_counted()))
            .bind(code.map(Code::as_str))
            .bind(message)
            .bind(observed.0.map(|sha| sha.to_string()))
            .bind(observed.1.map(|sha| sha.to_string()))
            .bind(i64::from(keeps_look))
            .bind(i64::from(end.ends_waiting()))
            .fetch_optional(tx.connection())
            .await?;
        match done {
            None => Err(ClaimError::LeaseLost),
            Some(row) if row.get::<i64, _>("requested") > claim.requested => Ok(VideoState::Queued),
            Some(_) => Ok(state),
        }
    }

    /// Writes the published video to the record.
    async fn keep_published(
        &self,
        tx: &mut Unit,
        key: VideoKey,
        published: &Published,
    ) -> Result<(), sqlx::Error> {
        let statement = "update video_ingest.videos set
                stored_sha = $3, commit_sha = $4, sha256 = $5, size_bytes = $6, duration_ms = $7,
                width = $8, height = $9, storage_path = $10, metadata = $11, warnings = $12,
                ready_at = {now}
            where video_id = $1 and lesson_id = $2";
        let warnings = json!(published.warnings);
        self.query_for(statement, key)
            .bind(published.blob_sha.to_string())
            .bind(published.commit.to_string())
            .bind(published.sha256.as_str())
            .bind(published.size_bytes as i64)
            .bind(published.duration_ms as i64)
            .bind(i64::from(published.width))
            .bind(i64::from(published.height))
            .bind(published.storage_path.as_str())
            .bind(published.metadata.to_string())
            .bind(warnings.to_string())
            .execute(tx.connection())
            .await?;
        Ok(())
    }

    /// Queues the videos that wait for a row which exists now, or which can be inserted now because its
    /// lesson exists. Returns the number of videos. Leaves those that another replica is writing.
    pub async fn queue_videos_with_rows(
        &self,
        missing_rows_owner: Option<RowOwner>,
    ) -> Result<u64, DbError> {
        let lesson = match missing_rows_owner {
            Some(RowOwner::OfLesson) => {
                "or exists (select 1 from lessons as l where l.id = videos.lesson_id{uuid})"
            }
            Some(RowOwner::Fixed(_)) | None => "",
        };
        let statement = format!(
            "update video_ingest.videos set state = 'queued', due_at = {{now}}, updated_at = {{now}}
            where (video_id, lesson_id) in (
                select video_id, lesson_id from video_ingest.videos
                where state = 'waiting' and code = 'no_row'
                  and (exists (select 1 from lesson_assets as a where a.id = videos.video_id{{uuid}}) {lesson})
                {{skip_locked}})"
        );
        Ok(self.execute(self.query(&statement)).await?)
    }

    /// Writes what the failure of a finished claim depends on. The first one since the last request starts
    /// the retry schedule of configuration failures. Has no effect if the video was requested again.
    pub async fn keep_cause(&self, claim: &Claim, cause: &str) -> Result<(), DbError> {
        let statement = "update video_ingest.videos set
                attempts = case when cause is null then 1 else attempts end, cause = $4
            where video_id = $1 and lesson_id = $2 and state = 'failed' and requested = $3";
        let query = self
            .query_for(statement, claim.key)
            .bind(claim.requested)
            .bind(cause);
        self.execute(query).await?;
        Ok(())
    }

    /// The failed videos that are retried when the cause of their failure may have changed.
    pub async fn blocked(&self) -> Result<Vec<Blocked>, DbError> {
        let codes = Code::ALL
            .iter()
            .filter(|code| code.class() == Class::Configuration || **code == Code::GaveUp);
        let codes: Vec<String> = codes.map(|code| format!("'{code}'")).collect();
        let statement = format!(
            "select v.video_id, v.lesson_id, v.code, v.cause, a.storage_bucket
            from video_ingest.videos as v
            left join lesson_assets as a on a.id = v.video_id{{uuid}} and a.lesson_id = v.lesson_id{{uuid}}
            where v.state = 'failed' and v.code in ({})",
            codes.join(", ")
        );
        let rows = self.fetch_all(self.query(&statement)).await?;
        let blocked = rows.iter().filter_map(|row| {
            Some(Blocked {
                key: key(row).ok()?,
                code: code(row).ok()??,
                cause: row.get("cause"),
                bucket: row.get("storage_bucket"),
            })
        });
        Ok(blocked.collect())
    }

    /// Failed videos that were not requested since `before_ms`, up to `limit`: those with this code, or all.
    /// Without those that are being generated again under the same id, for which nothing was pushed.
    pub async fn failed(
        &self,
        code: Option<Code>,
        before_ms: i64,
        limit: usize,
    ) -> Result<Vec<VideoKey>, DbError> {
        let statement = "select v.video_id, v.lesson_id from video_ingest.videos as v
            where v.state = 'failed' and ($1 = '' or v.code = $1) and v.requested_at < $3
                and (v.mp4_sha is not null or v.json_sha is not null or not exists (
                    select 1 from lesson_assets as a
                    where a.id = v.video_id{uuid} and a.storage_path is null
                        and a.mime_type not like 'error:%'))
            order by v.updated_at desc, v.video_id desc limit $2";
        let query = self
            .query(statement)
            .bind(code.map_or("", Code::as_str))
            .bind(limit as i64)
            .bind(before_ms);
        let rows = self.fetch_all(query).await?;
        Ok(rows.iter().filter_map(|row| key(row).ok()).collect())
    }

    /// Corrects times that were scheduled before the database's clock was set back, and that would otherwise
    /// be due only after the clock has caught up: queued, waiting and failed videos become due, and leases
    /// end after `lease`. Heads are awaited from now on. Returns the number of videos.
    ///
    /// The clock was set back if a record was written in the future, or if a lease is longer than
    /// [`LEASE_MAX`].
    pub async fn undo_clock_jump(&self, lease: Duration) -> Result<u64, DbError> {
        self.await_heads_from_now(CLOCK_SLACK).await?;
        // Two statements, so that each uses an index.
        let scheduled = "update video_ingest.videos
            set due_at = {now}, requested_at = {now}, updated_at = {now}
            where (video_id, lesson_id) in (
                select video_id, lesson_id from video_ingest.videos
                where updated_at > {now} + $1 and due_at is not null and state <> 'running'
                {skip_locked})";
        let query = self.query(scheduled).bind(CLOCK_SLACK.as_millis() as i64);
        let corrected = self.execute(query).await?;
        let leased = "update video_ingest.videos
            set due_at = {now} + $1, requested_at = {now}, updated_at = {now}
            where (video_id, lesson_id) in (
                select video_id, lesson_id from video_ingest.videos
                where state = 'running' and due_at > {now} + $2
                {skip_locked})";
        let longest = LEASE_MAX + CLOCK_SLACK;
        let query = self
            .query(leased)
            .bind(lease.as_millis() as i64)
            .bind(longest.as_millis() as i64);
        Ok(corrected + self.execute(query).await?)
    }

    /// The videos that failed because this server inserted their row for a file with another lesson in its
    /// name, each with the video of that file.
    pub async fn mismatched(&self) -> Result<Vec<(VideoKey, VideoKey)>, DbError> {
        let statement = "select v.video_id, v.lesson_id, o.lesson_id as other
            from video_ingest.videos as v join video_ingest.videos as o
                on o.video_id = v.video_id and o.lesson_id <> v.lesson_id and o.created_row = 1
            where v.state = 'failed' and v.code = $1";
        let query = self.query(statement).bind(Code::RowMismatch.as_str());
        let rows = self.fetch_all(query).await?;
        let pair = |row: &AnyRow| {
            let key = key(row).ok()?;
            let lesson_id = row.get::<String, _>("other").parse().ok()?;
            Some((key, VideoKey { lesson_id, ..key }))
        };
        Ok(rows.iter().filter_map(pair).collect())
    }

    /// All records.
    pub async fn records(&self) -> Result<HashMap<VideoKey, Record>, DbError> {
        let statement =
            "select video_id, lesson_id, state, code, message, mp4_sha, json_sha, requested
            from video_ingest.videos where (video_id, lesson_id) > ($1, $2)
            order by video_id, lesson_id limit $3";
        let mut all = HashMap::new();
        let mut last = (String::new(), String::new());
        loop {
            let query = self
                .query(statement)
                .bind(last.0.as_str())
                .bind(last.1.as_str())
                .bind(BATCH_ROWS);
            let rows = self.fetch_all(query).await?;
            for row in &rows {
                last = (row.get("video_id"), row.get("lesson_id"));
                if let Ok(key) = key(row) {
                    all.insert(key, record(row)?);
                }
            }
            if rows.len() < BATCH_ROWS as usize {
                return Ok(all);
            }
        }
    }

    /// Adds records for videos whose rows were ready before this server was installed. Their files are
    /// not downloaded.
    pub async fn adopt(&self, videos: &[(VideoKey, Blobs)]) -> Result<(), DbError> {
        let statement = "insert into video_ingest.videos
                (video_id, lesson_id, state, source, requested, observed, requested_at, mp4_sha, json_sha, created_at, updated_at)
            select k.value ->> 'video_id', k.value ->> 'lesson_id', 'ready', 'sweep', 1, 1, {now},
                k.value ->> 'mp4', k.value ->> 'json', {now}, {now}
            from {each}($1{jsonb}) as k where true
            on conflict (video_id, lesson_id) do nothing";
        // Replicas that sweep at the same time insert the same records. A common order prevents deadlocks.
        let mut videos: Vec<&(VideoKey, Blobs)> = videos.iter().collect();
        videos.sort_by_key(|(key, _)| *key);
        let rows: serde_json::Value = videos
            .iter()
            .map(|(key, (mp4, json))| {
                json!({"video_id": key.video_id, "lesson_id": key.lesson_id, "mp4": mp4, "json": json})
            })
            .collect();
        self.execute(self.query(statement).bind(rows.to_string()))
            .await?;
        Ok(())
    }

    /// Fails a video that has a pending row and no files, in the record and in the row. `requested`: the
    /// record's count of requests when the sweep read it; `None`: there was no record. `conversation_id`: the
    /// conversation that the verdict is about. Returns `false` if the verdict does not apply any more.
    ///
    /// Has no effect if the video was requested since then, or if the row is ready or is generated by another
    /// conversation. The sweep calls the OpenHands API before it decides, which takes long enough for a push
    /// to be ingested, or for the video to be generated again under the same id.
    ///
    /// If the row cannot be updated, the record gets the failure [`Code::RowDenied`].
    pub async fn fail_pending(
        &self,
        key: VideoKey,
        requested: Option<i64>,
        conversation_id: Option<&str>,
        failure: &Failure,
    ) -> Result<bool, DbError> {
        let mut tx = self.transaction().await?;
        // The row before the record, as in `finish`.
        let written = match self.lock_row(&mut tx, key, Some(conversation_id)).await {
            Ok(true) => self.make_row_failed(&mut tx, key, failure, None).await,
            Ok(false) => return Ok(false),
            Err(error) => Err(error),
        };
        let denied = match written {
            Err(error @ DbError::Denied(_)) => {
                drop(tx);
                tx = self.transaction().await?;
                Some(Failure::from(error))
            }
            written => {
                written?;
                None
            }
        };
        let failure = denied.as_ref().unwrap_or(failure);
        let statement = "insert into video_ingest.videos as videos
                (video_id, lesson_id, state, source, requested, observed, requested_at, code, message,
                created_at, updated_at, failed_at)
            values ($1, $2, 'failed', 'sweep', 1, 1, {now}, $3, $4,
                coalesce((select {created} from lesson_assets as a where a.id = $1{uuid}), {now}), {now}, {now})
            on conflict (video_id, lesson_id) do update set
                state = 'failed', code = excluded.code, message = excluded.message, due_at = null,
                row_since = null, json_since = null, mp4_since = null, mp4_sha = null, json_sha = null,
                updated_at = excluded.updated_at, failed_at = excluded.failed_at
            where videos.requested = $5 and videos.state not in ('queued', 'running')
              and (videos.state <> 'failed' or $6 = 0 or videos.code <> excluded.code)"
            .replace("{created}", &self.created_ms("a.created_at"));
        let done = self
            .query_for(&statement, key)
            .bind(failure.code.as_str())
            .bind(failure.message.as_str())
            // No record has a count of 0.
            .bind(requested.unwrap_or(0))
            .bind(i64::from(denied.is_some()))
            .execute(tx.connection())
            .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        self.insert_failure(&mut tx, key, failure).await?;
        self.count_failed(&mut tx).await?;
        tx.commit().await?;
        self.announce(key.video_id, VideoState::Failed);
        Ok(true)
    }

    /// The number of these videos that are queued or running.
    pub async fn count_busy(&self, keys: &[VideoKey]) -> Result<usize, DbError> {
        let statement = "select count(*) as busy from {each}($1{jsonb}) as k
            join video_ingest.videos as v
                on v.video_id = k.value ->> 'video_id' and v.lesson_id = k.value ->> 'lesson_id'
            where v.state in ('queued', 'running')";
        let keys: serde_json::Value = keys
            .iter()
            .map(|key| json!({"video_id": key.video_id, "lesson_id": key.lesson_id}))
            .collect();
        let query = self.query(statement).bind(keys.to_string());
        let row = self.fetch_optional(query).await?;
        Ok(row.map_or(0, |row| row.get::<i64, _>("busy") as usize))
    }
}

fn key(row: &AnyRow) -> Result<VideoKey, sqlx::Error> {
    let id = |column: &str| -> Result<uuid::Uuid, sqlx::Error> {
        let text: String = row.try_get(column)?;
        uuid::Uuid::try_parse(&text).map_err(|e| sqlx::Error::Decode(e.into()))
    };
    Ok(VideoKey {
        lesson_id: id("lesson_id")?,
        video_id: id("video_id")?,
    })
}

fn sha(row: &AnyRow, column: &str) -> Result<Option<GitSha>, sqlx::Error> {
    let text: Option<String> = row.try_get(column)?;
    Ok(text.and_then(|text| text.parse().ok()))
}

fn code(row: &AnyRow) -> Result<Option<Code>, sqlx::Error> {
    Ok(row
        .try_get::<Option<&str>, _>("code")?
        .and_then(Code::parse))
}

fn record(row: &AnyRow) -> Result<Record, sqlx::Error> {
    Ok(Record {
        state: super::state(row),
        code: code(row)?,
        message: row.get::<Option<String>, _>("message").unwrap_or_default(),
        observed: (sha(row, "mp4_sha")?, sha(row, "json_sha")?),
        requested: row.get("requested"),
    })
}

fn claimed(row: &AnyRow, token_if_expired: &str) -> Result<Claim, sqlx::Error> {
    let ago = |column: &str| -> Result<Option<Duration>, sqlx::Error> {
        let ms: Option<i64> = row.try_get(column)?;
        Ok(ms.map(|ms| Duration::from_millis(ms.max(0) as u64)))
    };
    let number = |column: &str| {
        row.try_get::<Option<i64>, _>(column)
            .map(Option::unwrap_or_default)
    };
    let text = |column: &str| {
        row.try_get::<Option<String>, _>(column)
            .map(Option::unwrap_or_default)
    };
    let stored = match (sha(row, "stored_sha")?, sha(row, "commit_sha")?) {
        (Some(blob_sha), Some(commit)) => {
            let metadata: serde_json::Value =
                serde_json::from_str(&text("metadata")?).unwrap_or_default();
            let field = |name: &str| metadata[name].as_str().map(str::to_owned);
            Some(Published {
                commit,
                blob_sha,
                sha256: text("sha256")?,
                size_bytes: number("size_bytes")? as u64,
                duration_ms: number("duration_ms")? as u64,
                width: number("width")? as u32,
                height: number("height")? as u32,
                storage_path: text("storage_path")?,
                warnings: serde_json::from_str(&text("warnings")?).unwrap_or_default(),
                conversation_id: field("conversation_id"),
                generated_at: field("generated_at"),
                metadata,
            })
        }
        _ => None,
    };
    let token: String = row.try_get("lease_token")?;
    let requested_ago = ago("requested_ago")?.unwrap_or_default();
    let requested: i64 = row.try_get("requested")?;
    let look_in: Option<i64> = row.try_get("look_in")?;
    let now = Instant::now();
    Ok(Claim {
        key: key(row)?,
        expired: token == token_if_expired,
        token,
        requested,
        is_requested: requested > row.try_get::<i64, _>("observed")?,
        look_is_due: look_in.is_some_and(|ms| ms <= 0),
        look_is_pending: look_in.is_some_and(|ms| ms > 0),
        requested_at: now.checked_sub(requested_ago).unwrap_or(now),
        source: Source::parse(row.try_get("source")?).unwrap_or(Source::Sweep),
        history: History {
            forced: row.try_get::<i64, _>("forced")? == 1,
            attempts: row.try_get::<i64, _>("attempts")? as u32,
            failing_for: ago("failing")?,
            code: code(row)?,
            message: row.try_get("message")?,
            cause: row.try_get("cause")?,
            waited: Waited {
                row: ago("row_waited")?.unwrap_or_default(),
                json: ago("json_waited")?.unwrap_or_default(),
                mp4: ago("mp4_waited")?.unwrap_or_default(),
            },
            observed: (sha(row, "mp4_sha")?, sha(row, "json_sha")?),
            stored,
        },
    })
}
