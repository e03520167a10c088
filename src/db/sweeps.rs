//! What a sweep reads and writes: many rows at a time, in pages by key, so that none starves.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use sqlx::Row as _;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::{Db, DbError, Dialect, Lost, state};
use crate::domain::failure::{Code, Failure};
use crate::domain::generation::GenerationStatus;
use crate::domain::ids::{GitSha, VideoKey};
use crate::domain::plan::Blobs;
use crate::domain::state::VideoState;
use crate::domain::verdict::{PendingRow, Record};

/// Rows read at once.
const PAGE_ROWS: i64 = 1000;

/// Rows pruned at once, so that no statement holds up the others for long.
const PRUNE_ROWS: i64 = 5000;

/// What OpenHands last said of a pending row.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredStatus {
    /// What.
    pub status: GenerationStatus,
    /// Which conversation it was about: a row may be generated again.
    pub conversation_id: String,
    /// For how long it has said so.
    pub since: Duration,
}

/// A ready row and the object it names.
#[derive(Clone, Debug)]
pub struct ReadyObject {
    /// Its ids.
    pub key: VideoKey,
    /// The object's bucket.
    pub bucket: String,
    /// The object's path.
    pub path: String,
    /// Its size in bytes, if we stored it.
    pub size: Option<u64>,
}

impl Db {
    /// Everything we have a record of.
    pub async fn records(&self) -> Result<HashMap<VideoKey, Record>, DbError> {
        let statement =
            "select video_id, lesson_id, state, code, message, mp4_sha, json_sha, requested
            from video_ingest.videos where (video_id, lesson_id) > ($1, $2)
            order by video_id, lesson_id limit $3";
        let mut all = HashMap::new();
        let mut last = (String::new(), String::new());
        loop {
            let mut unit = self.unit(&self.read).await?;
            let rows = self
                .query(statement)
                .bind(last.0.as_str())
                .bind(last.1.as_str())
                .bind(PAGE_ROWS)
                .fetch_all(unit.connection())
                .await?;
            unit.commit().await?;
            for row in &rows {
                last = (row.get("video_id"), row.get("lesson_id"));
                let sha = |column| -> Option<GitSha> {
                    row.get::<Option<String>, _>(column)?.parse().ok()
                };
                let record = Record {
                    state: state(row),
                    code: row
                        .get::<Option<String>, _>("code")
                        .as_deref()
                        .and_then(Code::parse),
                    message: row.get::<Option<String>, _>("message").unwrap_or_default(),
                    observed: (sha("mp4_sha"), sha("json_sha")),
                    requested: row.get("requested"),
                };
                if let Some(key) = key_of(&last.1, &last.0) {
                    all.insert(key, record);
                }
            }
            if rows.len() < PAGE_ROWS as usize {
                return Ok(all);
            }
        }
    }

    /// The app's rows without a video, the oldest first.
    pub async fn pending_rows(&self) -> Result<Vec<PendingRow>, DbError> {
        let created = self.created_at();
        let statement = format!(
            "select id{{text}} as id, lesson_id{{text}} as lesson_id, {{now}} - {created} as age, conversation_id, mime_type
            from lesson_assets where kind = 'video' and storage_path is null and id > $1{{uuid}}
            order by id limit $2"
        );
        let rows = self.in_pages_by_id(&statement).await?;
        let pending = rows.iter().filter_map(|row| {
            let mime: String = row.get("mime_type");
            Some(PendingRow {
                key: key_of(
                    &row.get::<String, _>("lesson_id"),
                    &row.get::<String, _>("id"),
                )?,
                age: Duration::from_millis(row.get::<i64, _>("age").max(0) as u64),
                conversation_id: row.get("conversation_id"),
                failed: mime
                    .strip_prefix("error:")
                    .map(|reason| reason.trim().to_owned()),
            })
        });
        let mut all: Vec<PendingRow> = pending.collect();
        all.sort_by_key(|row| std::cmp::Reverse(row.age));
        Ok(all)
    }

    /// The app's ready rows, with what we know of their objects.
    pub async fn ready_objects(&self) -> Result<Vec<ReadyObject>, DbError> {
        let statement = "select a.id{text} as id, a.lesson_id{text} as lesson_id, a.storage_bucket,
                a.storage_path, v.size_bytes
            from lesson_assets as a left join video_ingest.videos as v
                on v.video_id = a.id{text} and v.lesson_id = a.lesson_id{text} and v.storage_path = a.storage_path
            where a.kind = 'video' and a.storage_path is not null and a.id > $1{uuid}
            order by a.id limit $2";
        let rows = self.in_pages_by_id(statement).await?;
        let ready = rows.iter().filter_map(|row| {
            Some(ReadyObject {
                key: key_of(
                    &row.get::<String, _>("lesson_id"),
                    &row.get::<String, _>("id"),
                )?,
                bucket: row.get("storage_bucket"),
                path: row.get("storage_path"),
                size: row
                    .get::<Option<i64>, _>("size_bytes")
                    .map(|size| size as u64),
            })
        });
        Ok(ready.collect())
    }

    /// Every row of a statement over `lesson_assets` that goes on after the id `$1` for `$2` rows.
    async fn in_pages_by_id(&self, statement: &str) -> Result<Vec<AnyRow>, DbError> {
        let mut all = Vec::new();
        let mut last = Uuid::nil().to_string();
        loop {
            let mut unit = self.unit(&self.read).await?;
            let rows = self
                .query(statement)
                .bind(last.as_str())
                .bind(PAGE_ROWS)
                .fetch_all(unit.connection())
                .await?;
            unit.commit().await?;
            let full = rows.len() == PAGE_ROWS as usize;
            all.extend(rows);
            match all.last() {
                Some(row) if full => last = row.get("id"),
                _ => return Ok(all),
            }
        }
    }

    /// Takes over videos that somebody else made ready: recorded as they are, nothing fetched.
    pub async fn adopt(&self, videos: &[(VideoKey, Blobs)]) -> Result<(), DbError> {
        let statement = "insert into video_ingest.videos
                (video_id, lesson_id, state, source, requested, observed, requested_at, mp4_sha, json_sha, created_at, updated_at)
            select k.value ->> 'video_id', k.value ->> 'lesson_id', 'ready', 'sweep', 1, 1, {now},
                k.value ->> 'mp4', k.value ->> 'json', {now}, {now}
            from {each}($1{jsonb}) as k where true
            on conflict (video_id, lesson_id) do nothing";
        let rows: Vec<_> = videos
            .iter()
            .map(|(key, (mp4, json))| {
                json!({"video_id": key.video_id, "lesson_id": key.lesson_id, "mp4": mp4, "json": json})
            })
            .collect();
        let mut unit = self.unit(&self.write).await?;
        self.query(statement)
            .bind(serde_json::Value::from(rows).to_string())
            .execute(unit.connection())
            .await?;
        Ok(unit.commit().await?)
    }

    /// A sweep's verdict: the row says that the video failed, and so does our record. `seen`: the record's
    /// count of requests when the sweep read it (`None`: there was no record). Void if the video was
    /// requested since then, or if the row has a video by now: asking OpenHands takes long enough for a
    /// push to arrive and be ingested.
    pub async fn give_verdict(
        &self,
        key: VideoKey,
        seen: Option<i64>,
        failure: &Failure,
    ) -> Result<(), DbError> {
        let statement = "insert into video_ingest.videos as videos
                (video_id, lesson_id, state, source, requested, observed, requested_at, code, message, created_at, updated_at)
            select $1, $2, 'failed', 'sweep', 1, 1, {now}, $3, $4, {now}, {now}
            from lesson_assets as a
            where a.id = $1{uuid} and a.lesson_id = $2{uuid} and a.kind = 'video' and a.storage_path is null
            on conflict (video_id, lesson_id) do update set
                state = 'failed', code = excluded.code, message = excluded.message, due_at = null,
                mp4_sha = null, json_sha = null, updated_at = excluded.updated_at
            where videos.requested = $5 and videos.state not in ('queued', 'running')";
        let mut tx = self.transaction().await?;
        let done = self
            .query(statement)
            .bind(key.video_id.to_string())
            .bind(key.lesson_id.to_string())
            .bind(failure.code.as_str())
            .bind(failure.message.as_str())
            .bind(seen.unwrap_or(0))
            .execute(tx.connection())
            .await?;
        if done.rows_affected() == 0 {
            return Ok(());
        }
        match self.report(&mut tx, key, failure, None).await {
            Ok(()) => {}
            Err(Lost::Db(error)) => return Err(error),
            Err(Lost::Lease | Lost::Row) => return Ok(()),
        }
        self.query(
            "insert into video_ingest.events (video_id, lesson_id, at, seq, step, detail)
            values ($1, $2, {now}, 0, 'failed', $3)",
        )
        .bind(key.video_id.to_string())
        .bind(key.lesson_id.to_string())
        .bind(failure.to_string())
        .execute(tx.connection())
        .await?;
        self.count_failed(&mut tx).await?;
        tx.commit().await?;
        self.announce(key.video_id, VideoState::Failed);
        Ok(())
    }

    /// How many of these videos are queued or running.
    pub async fn count_busy(&self, keys: &[VideoKey]) -> Result<usize, DbError> {
        let statement = "select count(*) as busy from {each}($1{jsonb}) as k
            join video_ingest.videos as v
                on v.video_id = k.value ->> 'video_id' and v.lesson_id = k.value ->> 'lesson_id'
            where v.state in ('queued', 'running')";
        let mut unit = self.unit(&self.read).await?;
        let row = self
            .query(statement)
            .bind(keys_to_json(keys))
            .fetch_one(unit.connection())
            .await?;
        unit.commit().await?;
        Ok(row.get::<i64, _>("busy") as usize)
    }

    /// What the agent's API last said, by video.
    pub async fn statuses(&self) -> Result<HashMap<Uuid, StoredStatus>, DbError> {
        let statement = "select video_id, reading, detail, conversation_id, {now} - first_at as since from video_ingest.readings";
        let mut unit = self.unit(&self.read).await?;
        let rows = self.query(statement).fetch_all(unit.connection()).await?;
        unit.commit().await?;
        Ok(rows
            .iter()
            .filter_map(|row| {
                let id: Uuid = row.get::<String, _>("video_id").parse().ok()?;
                let stored = StoredStatus {
                    status: GenerationStatus::stored(
                        &row.get::<String, _>("reading"),
                        row.get("detail"),
                    ),
                    conversation_id: row.get("conversation_id"),
                    since: Duration::from_millis(row.get::<i64, _>("since").max(0) as u64),
                };
                Some((id, stored))
            })
            .collect())
    }

    /// Keeps what OpenHands says of these videos' conversations. What says the same as before is not
    /// written again.
    pub async fn keep_statuses(
        &self,
        statuses: &[(VideoKey, &str, &GenerationStatus)],
    ) -> Result<(), DbError> {
        if statuses.is_empty() {
            return Ok(());
        }
        let statement = "insert into video_ingest.readings as readings
                (video_id, conversation_id, reading, detail, first_at, at)
            select k.value ->> 'video_id', k.value ->> 'conversation_id', k.value ->> 'reading',
                k.value ->> 'detail', {now}, {now}
            from {each}($1{jsonb}) as k where true
            on conflict (video_id) do update set
                conversation_id = excluded.conversation_id, reading = excluded.reading,
                detail = excluded.detail, at = excluded.at,
                first_at = case when readings.reading = excluded.reading
                    and readings.conversation_id = excluded.conversation_id
                    then readings.first_at else excluded.first_at end
            where readings.reading <> excluded.reading or readings.detail <> excluded.detail
                or readings.conversation_id <> excluded.conversation_id";
        let rows: Vec<_> = statuses
            .iter()
            .map(|(key, conversation, status)| {
                json!({"video_id": key.video_id, "conversation_id": conversation,
                    "reading": status.as_str(), "detail": status.reason()})
            })
            .collect();
        let mut unit = self.unit(&self.write).await?;
        self.query(statement)
            .bind(serde_json::Value::from(rows).to_string())
            .execute(unit.connection())
            .await?;
        Ok(unit.commit().await?)
    }

    /// A single fact that outlives the process.
    pub async fn mark(&self, name: &str) -> Result<Option<String>, DbError> {
        let mut unit = self.unit(&self.read).await?;
        let row = self
            .query("select value from video_ingest.marks where name = $1")
            .bind(name)
            .fetch_optional(unit.connection())
            .await?;
        unit.commit().await?;
        Ok(row.map(|row| row.get("value")))
    }

    /// Sets a single fact.
    pub async fn set_mark(&self, name: &str, value: &str) -> Result<(), DbError> {
        let statement = "insert into video_ingest.marks (name, value, at) values ($1, $2, {now})
            on conflict (name) do update set value = excluded.value, at = excluded.at";
        let mut unit = self.unit(&self.write).await?;
        self.query(statement)
            .bind(name)
            .bind(value)
            .execute(unit.connection())
            .await?;
        Ok(unit.commit().await?)
    }

    /// Forgets deliveries, timeline entries and counts that are older than `retention`, and readings of rows
    /// that have a video by now.
    pub async fn prune(&self, retention: Duration) -> Result<(), DbError> {
        let (events_id, readings_where) = match self.dialect {
            Dialect::Sqlite => ("rowid", "lesson_assets.id = readings.video_id"),
            Dialect::Postgres => ("ctid", "lesson_assets.id = readings.video_id::uuid"),
        };
        let events = format!(
            "delete from video_ingest.events where {events_id} in (
                select {events_id} from video_ingest.events where at < {{now}} - $1 limit $2)"
        );
        let deliveries = "delete from video_ingest.deliveries where guid in (
                select guid from video_ingest.deliveries
                where received_at < {now} - $1 and scan_due_at is null limit $2)";
        let readings = format!(
            "delete from video_ingest.readings where not exists (
                select 1 from lesson_assets where {readings_where} and storage_path is null)"
        );
        let hours = "delete from video_ingest.hours where (hour, what, bucket) in (
                select hour, what, bucket from video_ingest.hours where hour < {now} - $1 limit $2)";
        for statement in [events.as_str(), deliveries, hours] {
            loop {
                let mut unit = self.unit(&self.write).await?;
                let done = self
                    .query(statement)
                    .bind(retention.as_millis() as i64)
                    .bind(PRUNE_ROWS)
                    .execute(unit.connection())
                    .await?;
                unit.commit().await?;
                if done.rows_affected() < PRUNE_ROWS as u64 {
                    break;
                }
            }
        }
        let mut unit = self.unit(&self.write).await?;
        self.query(&readings).execute(unit.connection()).await?;
        Ok(unit.commit().await?)
    }

    fn created_at(&self) -> &'static str {
        match self.dialect {
            Dialect::Sqlite => "created_at",
            Dialect::Postgres => "(extract(epoch from created_at) * 1000)::bigint",
        }
    }
}

fn key_of(lesson: &str, video: &str) -> Option<VideoKey> {
    Some(VideoKey {
        lesson_id: lesson.parse().ok()?,
        video_id: video.parse().ok()?,
    })
}

fn keys_to_json(keys: &[VideoKey]) -> String {
    let rows: Vec<_> = keys
        .iter()
        .map(|key| json!({"video_id": key.video_id, "lesson_id": key.lesson_id}))
        .collect();
    serde_json::Value::from(rows).to_string()
}
