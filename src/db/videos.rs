//! A video's row: asked for, claimed, worked on, finished.

use std::time::Duration;

use serde_json::json;
use sqlx::Row as _;
use sqlx::any::AnyRow;
use tokio::time::Instant;

use super::{Db, DbError, Unit};
use crate::domain::failure::Code;
use crate::domain::ids::{GitSha, VideoKey};
use crate::domain::plan::{Blobs, End, History, Published};
use crate::domain::request::Request;
use crate::domain::state::VideoState;
use crate::domain::timeline::Entry;

/// How many characters of `wanted` are kept: the newest eight commits. A push that is older than
/// seven others of the same video, all within the two minutes in which it matters, is not waited for.
const WANTED_CHARS_MAX: usize = 8 * 41 - 1;

/// Upserts requests. `$2`: JSON as [`to_json`] makes it. `{recorded}`: the deliveries that ask, with how
/// often each was delivered again.
pub(super) const UPSERT_REQUESTS: &str = "insert into video_ingest.videos as videos
        (video_id, lesson_id, state, source, due_at, requested, requested_at, wanted, forced, created_at, updated_at)
    select k.value ->> 'video_id', k.value ->> 'lesson_id', 'queued', k.value ->> 'source', {now}, 1, {now},
        k.value ->> 'wanted',
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
        wanted = case
            when videos.requested = videos.observed then excluded.wanted
            when videos.wanted like '%' || excluded.wanted || '%' then videos.wanted
            else substr(excluded.wanted || ' ' || videos.wanted, 1, 327) end,
        forced = case when videos.forced + excluded.forced > 0 then 1 else 0 end,
        attempts = case when videos.state = 'running' then videos.attempts else 0 end,
        failing_since = case when videos.state = 'running' then videos.failing_since end,
        due_at = case when videos.state = 'running' then videos.due_at else excluded.due_at end,
        state = case when videos.state = 'running' then 'running' else 'queued' end,
        updated_at = excluded.updated_at";

/// Writes the requests into the timelines. `$2`: as for [`UPSERT_REQUESTS`].
pub(super) const INSERT_TIMELINE: &str = "insert into video_ingest.events
        (video_id, lesson_id, at, seq, step, detail, delivery)
    select k.value ->> 'video_id', k.value ->> 'lesson_id', {now}, 0,
        case when k.value ->> 'source' = 'push' then 'received' else 'requested' end,
        k.value ->> 'detail', g.value ->> 'guid'
    from {each}($2{jsonb}) as k left join {each}(k.value -> 'deliveries') as g on true";

/// A request as [`UPSERT_REQUESTS`] and [`INSERT_TIMELINE`] read it.
pub(super) fn to_json(request: &Request) -> serde_json::Value {
    let wanted: Vec<String> = request.wanted.iter().map(GitSha::to_string).collect();
    let mut wanted = wanted.join(" ");
    wanted.truncate(WANTED_CHARS_MAX);
    let deliveries: Vec<_> = request
        .deliveries
        .iter()
        .map(|guid| json!({"guid": guid}))
        .collect();
    json!({
        "video_id": request.key.video_id,
        "lesson_id": request.key.lesson_id,
        "source": request.source.as_str(),
        "detail": request.detail,
        "wanted": wanted,
        "forced": i64::from(request.forced),
        "deliveries": deliveries,
    })
}

/// The right to work on one video until its lease ends, and what is known of it.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Which video.
    pub key: VideoKey,
    token: String,
    /// The worker that had it before let its lease end.
    pub expired: bool,
    /// Up to which request this claim answers.
    requested: i64,
    /// How long ago it was last asked for.
    pub asked: Duration,
    /// When that was, at the latest: a listing must have begun after it.
    pub asked_at: Instant,
    /// The pushes that the branch must contain.
    pub wanted: Vec<GitSha>,
    /// What is known of the video from earlier attempts.
    pub history: History,
}

/// Why the end of a claim was not written.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Somebody else has the video now, or nobody: this worker must stop.
    #[error("the lease is lost")]
    Lease,
    /// The app's row is gone, or is no longer the one that was read.
    #[error("the row is gone")]
    Row,
    /// Not written, as far as we know.
    #[error(transparent)]
    Db(#[from] DbError),
}

impl From<sqlx::Error> for Lost {
    fn from(error: sqlx::Error) -> Self {
        Self::Db(error.into())
    }
}

impl Db {
    /// Takes the video that has been due for longest: queued ones and those whose worker let its lease
    /// end, in one order, so that neither waits behind the other.
    pub async fn claim(&self, lease: Duration) -> Result<Option<Claim>, DbError> {
        let statement = "update video_ingest.videos set
                state = 'running', due_at = {now} + $2,
                lease_token = case when state = 'running' then $3 else $1 end
            where (video_id, lesson_id) = (
                select video_id, lesson_id from video_ingest.videos
                where due_at <= {now}
                order by due_at limit 1 {skip_locked})
            returning video_id, lesson_id, lease_token, requested, {now} - requested_at as asked,
                wanted, forced, attempts, {now} - failing_since as failing, code, message,
                {now} - waiting_since as waited, mp4_sha, json_sha, stored_sha, commit_sha, sha256,
                size_bytes, duration_ms, width, height, storage_path, metadata, warnings";
        let token = uuid::Uuid::new_v4().simple().to_string();
        // Only the token can tell what the row's state was: a row is returned as it is afterwards.
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

    /// Prolongs a lease. `Err(Lost::Lease)`: somebody else may have the video; stop.
    pub async fn renew(&self, claim: &Claim, lease: Duration) -> Result<(), Lost> {
        let statement = "update video_ingest.videos set due_at = {now} + $4
            where video_id = $1 and lesson_id = $2 and lease_token = $3 and state = 'running'";
        let mut unit = self.unit(&self.write).await?;
        let done = self
            .query(statement)
            .bind(claim.key.video_id.to_string())
            .bind(claim.key.lesson_id.to_string())
            .bind(claim.token.as_str())
            .bind(lease.as_millis() as i64)
            .execute(unit.connection())
            .await?;
        unit.commit().await?;
        match done.rows_affected() {
            0 => Err(Lost::Lease),
            _ => Ok(()),
        }
    }

    /// Hands a video back untouched, for the next worker to take at once.
    pub async fn hand_back(&self, claim: &Claim) -> Result<(), DbError> {
        let statement =
            "update video_ingest.videos set state = 'queued', due_at = {now}, lease_token = null
            where video_id = $1 and lesson_id = $2 and lease_token = $3 and state = 'running'";
        let mut unit = self.unit(&self.write).await?;
        self.query(statement)
            .bind(claim.key.video_id.to_string())
            .bind(claim.key.lesson_id.to_string())
            .bind(claim.token.as_str())
            .execute(unit.connection())
            .await?;
        unit.commit().await?;
        self.announce(claim.key.video_id, VideoState::Queued);
        Ok(())
    }

    /// Writes how a claim ended: our row, the app's row and the timeline, in one commit, fenced by
    /// the lease. If more was asked for meanwhile, the video is queued again.
    pub async fn finish(
        &self,
        claim: &Claim,
        pair: Option<Blobs>,
        end: &End,
        steps: &[Entry],
    ) -> Result<(), Lost> {
        let mut tx = self.transaction().await?;
        let state = self.finish_video(&mut tx, claim, pair, end).await?;
        match end {
            End::Ready {
                published, user_id, ..
            } => {
                self.publish(&mut tx, claim.key, published, *user_id)
                    .await?;
            }
            End::Failed { failure, .. } => {
                let blob = pair.unwrap_or(claim.history.observed).0;
                self.report(&mut tx, claim.key, failure, blob).await?;
            }
            End::Unchanged | End::Waiting { .. } | End::Retry { .. } => {}
        }
        if !steps.is_empty() {
            let statement =
                "insert into video_ingest.events (video_id, lesson_id, at, seq, step, detail, ms)
                select $1, $2, cast(s.value ->> 'at' as bigint), cast(s.value ->> 'seq' as bigint),
                    s.value ->> 'step', s.value ->> 'detail', cast(s.value ->> 'ms' as bigint)
                from {each}($3{jsonb}) as s";
            let steps: Vec<_> = steps
                .iter()
                .zip(1..)
                .map(|(s, seq): (_, i64)| {
                    json!({"at": s.at, "seq": seq, "step": s.step, "detail": s.detail, "ms": s.ms})
                })
                .collect();
            self.query(statement)
                .bind(claim.key.video_id.to_string())
                .bind(claim.key.lesson_id.to_string())
                .bind(serde_json::Value::from(steps).to_string())
                .execute(tx.connection())
                .await?;
        }
        self.count_end(&mut tx, claim, end).await?;
        tx.commit().await?;
        self.announce(claim.key.video_id, state);
        Ok(())
    }

    /// The state that the video has now: queued if more was asked for meanwhile.
    async fn finish_video(
        &self,
        tx: &mut Unit,
        claim: &Claim,
        pair: Option<Blobs>,
        end: &End,
    ) -> Result<VideoState, Lost> {
        let state = end.state();
        let (code, message) = end.reason().unzip();
        let again = matches!(end, End::Retry { .. });
        let observed = pair.unwrap_or(claim.history.observed);
        let statement = "update video_ingest.videos set
                state = case when requested > $4 then 'queued' else $5 end,
                due_at = case when requested > $4 then {now} when $6 < 0 then null else {now} + $6 end,
                lease_token = null,
                observed = case when $7 = 1 then observed else $4 end,
                forced = case when $7 = 1 or requested > $4 then forced else 0 end,
                attempts = attempts + $8,
                failing_since = case
                    when $7 = 0 then null
                    when $8 = 1 then coalesce(failing_since, {now})
                    else failing_since end,
                waiting_since = case
                    when $5 <> 'waiting' then null
                    when code = $9 then coalesce(waiting_since, {now})
                    else {now} end,
                code = $9, message = $10, mp4_sha = $11, json_sha = $12,
                updated_at = {now}
            where video_id = $1 and lesson_id = $2 and lease_token = $3 and state = 'running'
            returning requested";
        let done = self
            .query(statement)
            .bind(claim.key.video_id.to_string())
            .bind(claim.key.lesson_id.to_string())
            .bind(claim.token.as_str())
            .bind(claim.requested)
            .bind(state.as_str())
            .bind(end.look_again().map_or(-1, |wait| wait.as_millis() as i64))
            .bind(i64::from(again))
            .bind(i64::from(end.is_counted()))
            .bind(code.map(Code::as_str))
            .bind(message)
            .bind(observed.0.map(|sha| sha.to_string()))
            .bind(observed.1.map(|sha| sha.to_string()))
            .fetch_optional(tx.connection())
            .await?;
        match done {
            None => Err(Lost::Lease),
            Some(row) if row.get::<i64, _>("requested") > claim.requested => Ok(VideoState::Queued),
            Some(_) => Ok(state),
        }
    }

    /// The app's row and our record of it. The lease was checked in this transaction.
    async fn publish(
        &self,
        tx: &mut Unit,
        key: VideoKey,
        published: &Published,
        user_id: uuid::Uuid,
    ) -> Result<(), Lost> {
        let statement = "update video_ingest.videos set
                stored_sha = $3, commit_sha = $4, sha256 = $5, size_bytes = $6, duration_ms = $7,
                width = $8, height = $9, storage_path = $10, metadata = $11, warnings = $12,
                ready_at = {now}
            where video_id = $1 and lesson_id = $2";
        let warnings = json!(published.warnings);
        self.query(statement)
            .bind(key.video_id.to_string())
            .bind(key.lesson_id.to_string())
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
        match self.make_row_ready(tx, key, published, user_id).await? {
            true => Ok(()),
            false => Err(Lost::Row),
        }
    }
}

fn claimed(row: &AnyRow, token_if_expired: &str) -> Result<Claim, sqlx::Error> {
    let id = |column: &str| -> Result<uuid::Uuid, sqlx::Error> {
        let text: String = row.try_get(column)?;
        uuid::Uuid::try_parse(&text).map_err(|e| sqlx::Error::Decode(e.into()))
    };
    let sha = |column: &str| -> Result<Option<GitSha>, sqlx::Error> {
        let text: Option<String> = row.try_get(column)?;
        Ok(text.and_then(|t| t.parse().ok()))
    };
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
    let stored = match (sha("stored_sha")?, sha("commit_sha")?) {
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
    let wanted: String = row.try_get("wanted")?;
    let asked = ago("asked")?.unwrap_or_default();
    let now = Instant::now();
    Ok(Claim {
        key: VideoKey {
            lesson_id: id("lesson_id")?,
            video_id: id("video_id")?,
        },
        expired: token == token_if_expired,
        token,
        requested: row.try_get("requested")?,
        asked,
        asked_at: now.checked_sub(asked).unwrap_or(now),
        wanted: wanted
            .split(' ')
            .filter_map(|sha| sha.parse().ok())
            .collect(),
        history: History {
            forced: row.try_get::<i64, _>("forced")? == 1,
            attempts: row.try_get::<i64, _>("attempts")? as u32,
            failing: ago("failing")?,
            code: row
                .try_get::<Option<&str>, _>("code")?
                .and_then(Code::parse),
            message: row.try_get("message")?,
            waited: ago("waited")?.unwrap_or_default(),
            observed: (sha("mp4_sha")?, sha("json_sha")?),
            stored,
        },
    })
}
