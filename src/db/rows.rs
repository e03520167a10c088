//! The app's table `lesson_assets`: its rows, and all statements that write to them.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use sqlx::Row as _;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::{BATCH_ROWS, ClaimError, Db, DbError, Dialect, Unit, duration};
use crate::domain::failure::Failure;
use crate::domain::ids::{GitSha, VideoKey};
use crate::domain::plan::Published;
use crate::domain::verdict::PendingRow;
use crate::format::causes;

/// A row of any kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The lesson that it belongs to.
    pub lesson_id: Uuid,
    /// Its owner, the first folder of the storage path.
    pub user_id: Uuid,
    /// `video`, or a kind that this server does not process.
    pub kind: String,
    /// The storage bucket of the object.
    pub bucket: String,
    /// The path of the object within the bucket; `None` while the row is pending.
    pub storage_path: Option<String>,
}

/// A ready row and its object.
#[derive(Clone, Debug)]
pub struct ReadyObject {
    /// The video.
    pub key: VideoKey,
    /// The object's bucket.
    pub bucket: String,
    /// The object's path within the bucket.
    pub path: String,
    /// Its size in bytes; `None` if it was not uploaded by this server.
    pub size: Option<u64>,
    /// Its SHA-256, under the same condition.
    pub sha256: Option<String>,
}

/// A row with a value that the server cannot use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OddRow {
    /// Its id, as text.
    pub id: String,
    /// The video, if the ids are UUIDs.
    pub key: Option<VideoKey>,
    /// The column with the value.
    pub column: &'static str,
}

/// The owner of inserted rows.
#[derive(Clone, Copy, Debug)]
pub enum RowOwner {
    /// The lesson's owner, from the app's table `lessons`.
    OfLesson,
    /// A fixed user. The embedded mode has no lessons.
    Fixed(Uuid),
}

/// The largest accepted difference between a row's `created_at` and now. Beyond it, the value is unusable.
const ROW_AGE_MAX: Duration = Duration::from_secs(20 * 365 * 86_400);

/// Why a readable row cannot be updated.
const NOT_UPDATABLE: &str = "row-level security allows reading the row but not updating it, because the policy \"video_ingest updates videos\" is missing or a restrictive policy applies";

/// The reason if nothing else explains why an update changes no row.
const UPDATE_DISCARDED: &str = "a trigger of lesson_assets discards the update";

/// SQL for SQLite: `metadata`, or an empty object if it is not an object.
const METADATA: &str = "case when json_valid(metadata) then case json_type(metadata)
    when 'object' then metadata else '{}' end else '{}' end";

/// The longest reason that is written to `mime_type`, in characters. Longer messages are cut off.
const REASON_CHARS_MAX: usize = 100;

impl Db {
    /// The row with this id, of any lesson and kind.
    pub async fn find_row(&self, video_id: Uuid) -> Result<Option<Row>, DbError> {
        let statement = "select lesson_id{text} as lesson_id, user_id{text} as user_id, kind,
                coalesce(storage_bucket, '') as storage_bucket, storage_path
            from lesson_assets where id = $1{uuid}";
        let query = self.query(statement).bind(video_id.to_string());
        let found = self.fetch_optional(query).await?;
        Ok(found.and_then(|row| {
            Some(Row {
                lesson_id: row.get::<String, _>("lesson_id").parse().ok()?,
                user_id: row.get::<String, _>("user_id").parse().ok()?,
                kind: row.get("kind"),
                bucket: row.get("storage_bucket"),
                storage_path: row.get("storage_path"),
            })
        }))
    }

    /// The titles of these lessons, as far as our role may read them.
    pub async fn lesson_titles(&self, lessons: Vec<Uuid>) -> HashMap<Uuid, String> {
        // The embedded mode has no lessons.
        if self.dialect == Dialect::Sqlite || lessons.is_empty() {
            return HashMap::new();
        }
        let titles = async {
            // Without the privilege, the statement below would fail and Postgres would log an error each time.
            let readable = "select count(*) as columns from pg_attribute
                where attrelid = to_regclass('lessons') and attname in ('id', 'title')
                    and not attisdropped and has_column_privilege(attrelid, attnum, 'select')";
            let readable = self.fetch_optional(self.query(readable)).await?;
            if readable.is_none_or(|row| row.get::<i64, _>("columns") < 2) {
                return Ok(HashMap::new());
            }
            let statement = "select l.id{text} as id, l.title{text} as title
                from {each}($1{jsonb}) as k join lessons as l on l.id = (k.value ->> 'id'){uuid}";
            let ids = lessons.iter().map(|id| json!({"id": id}));
            let ids: serde_json::Value = ids.collect();
            let rows = self
                .fetch_all(self.query(statement).bind(ids.to_string()))
                .await?;
            let title = |row: &AnyRow| {
                let id = row.get::<String, _>("id").parse().ok()?;
                Some((id, row.get::<Option<String>, _>("title")?))
            };
            Ok::<_, DbError>(rows.iter().filter_map(title).collect())
        };
        titles.await.unwrap_or_else(|error| {
            tracing::debug!(error = causes(&error), "the lessons cannot be read");
            HashMap::new()
        })
    }

    /// The pending rows, the oldest first, and those that are skipped because of an unusable value.
    pub async fn pending_rows(&self) -> Result<(Vec<PendingRow>, Vec<OddRow>), DbError> {
        let statement = format!(
            "select id{{text}} as id, lesson_id{{text}} as lesson_id,
                cast({{now}} - {} as bigint) as age, conversation_id, mime_type
            from lesson_assets where kind = 'video' and storage_path is null and id > $1{{uuid}}
            order by id limit $2",
            self.created_ms("created_at")
        );
        let rows = self.fetch_pages(&statement).await?;
        let (mut pending, mut odd) = (Vec::new(), Vec::new());
        for row in &rows {
            let key = row_key(row);
            let age: i64 = row.get("age");
            let (Some(key), true) = (key, age.unsigned_abs() <= ROW_AGE_MAX.as_millis() as u64)
            else {
                let column = key.map_or("id or lesson_id", |_| "created_at");
                let id = row.get("id");
                odd.push(OddRow { id, key, column });
                continue;
            };
            let mime: Option<String> = row.get("mime_type");
            let failed = mime.as_deref().and_then(|mime| mime.strip_prefix("error:"));
            pending.push(PendingRow {
                key,
                age: duration(row, "age"),
                conversation_id: row.get("conversation_id"),
                failed: failed.map(|reason| reason.trim().to_owned()),
            });
        }
        pending.sort_by_key(|row| std::cmp::Reverse(row.age));
        Ok((pending, odd))
    }

    /// SQL that converts a timestamp of the app's tables to milliseconds since the Unix epoch. Postgres also
    /// stores infinite timestamps and years that the rest of the server cannot represent. These are clamped
    /// to the years 1 to 9999.
    pub(super) fn created_ms(&self, column: &str) -> String {
        match self.dialect {
            Dialect::Sqlite => format!("cast({column} as integer)"),
            Dialect::Postgres => format!(
                "(extract(epoch from least(greatest({column}, '0001-01-01Z'), '9999-12-31Z')) * 1000)::bigint"
            ),
        }
    }

    /// The ready rows and their objects.
    pub async fn ready_objects(&self) -> Result<Vec<ReadyObject>, DbError> {
        let statement = "select a.id{text} as id, a.lesson_id{text} as lesson_id, coalesce(a.storage_bucket, '') as storage_bucket,
                a.storage_path, v.size_bytes, v.sha256
            from lesson_assets as a left join video_ingest.videos as v
                on v.video_id = a.id{text} and v.lesson_id = a.lesson_id{text} and v.storage_path = a.storage_path
            where a.kind = 'video' and a.storage_path is not null and a.id > $1{uuid}
            order by a.id limit $2";
        let rows = self.fetch_pages(statement).await?;
        let ready = rows.iter().filter_map(|row| {
            Some(ReadyObject {
                key: row_key(row)?,
                bucket: row.get("storage_bucket"),
                path: row.get("storage_path"),
                size: row
                    .get::<Option<i64>, _>("size_bytes")
                    .map(|size| size as u64),
                sha256: row.get("sha256"),
            })
        });
        Ok(ready.collect())
    }

    /// All rows of a statement over `lesson_assets` that returns `$2` rows with ids greater than `$1`.
    ///
    /// Each page is a statement of its own, so that a large table does not block a connection for long.
    async fn fetch_pages(&self, statement: &str) -> Result<Vec<AnyRow>, DbError> {
        let mut all: Vec<AnyRow> = Vec::new();
        let mut last = Uuid::nil().to_string();
        loop {
            let query = self.query(statement).bind(last.as_str()).bind(BATCH_ROWS);
            let rows = self.fetch_all(query).await?;
            let is_full = rows.len() == BATCH_ROWS as usize;
            all.extend(rows);
            match all.last() {
                Some(row) if is_full => last = row.get("id"),
                _ => return Ok(all),
            }
        }
    }

    /// Inserts a pending row unless a row with this id exists. Returns `false` if the lesson, which
    /// provides the owner, does not exist.
    pub async fn create_row(
        &self,
        key: VideoKey,
        owner: RowOwner,
        bucket: &str,
    ) -> Result<bool, DbError> {
        let from = match owner {
            RowOwner::OfLesson => {
                "l.user_id, 'video', $3, 'video/mp4' from lessons as l where l.id = $2{uuid}"
            }
            RowOwner::Fixed(_) => "$4{uuid}, 'video', $3, 'video/mp4' where true",
        };
        // In the app's database, `created_at` has a default.
        let (column, value) = match self.dialect {
            Dialect::Sqlite => ("created_at, ", "{now}, "),
            Dialect::Postgres => ("", ""),
        };
        let statement = format!(
            "insert into lesson_assets ({column}id, lesson_id, user_id, kind, storage_bucket, mime_type)
             select {value}$1{{uuid}}, $2{{uuid}}, {from} on conflict (id) do nothing"
        );
        let mut query = self.query_for(&statement, key).bind(bucket);
        if let RowOwner::Fixed(user) = owner {
            query = query.bind(user.to_string());
        }
        let mut tx = self.transaction().await?;
        let is_inserted = query.execute(tx.connection()).await?.rows_affected() > 0;
        if is_inserted {
            let statement = "update video_ingest.videos set created_row = 1
                where video_id = $1 and lesson_id = $2";
            let query = self.query_for(statement, key);
            query.execute(tx.connection()).await?;
        }
        tx.commit().await?;
        match owner {
            // Either the lesson is missing, or the insert conflicted with a row that may be hidden from
            // us by row-level security.
            RowOwner::OfLesson if !is_inserted => self.has_lesson(key.lesson_id).await,
            RowOwner::OfLesson | RowOwner::Fixed(_) => Ok(true),
        }
    }

    /// Whether this server inserted the row of a video.
    pub async fn has_created_row(&self, key: VideoKey) -> Result<bool, DbError> {
        let statement = "select 1 from video_ingest.videos
            where video_id = $1 and lesson_id = $2 and created_row = 1";
        Ok(self
            .fetch_optional(self.query_for(statement, key))
            .await?
            .is_some())
    }

    /// Moves a row that this server inserted from the lesson `from` to the lesson of `key`. A ready row stays
    /// ready: it names its object until the next one is published. Returns `false` if nothing was moved.
    ///
    /// # Errors
    /// [`DbError::Denied`] if our role may not change the lesson of a row, as in Supabase mode.
    pub async fn move_created_row(
        &self,
        from: Uuid,
        key: VideoKey,
        owner: RowOwner,
    ) -> Result<bool, DbError> {
        let owned = match owner {
            RowOwner::Fixed(_) => "",
            RowOwner::OfLesson => {
                ", user_id = (select l.user_id from lessons as l where l.id = $2{uuid})"
            }
        };
        let row = format!(
            "update lesson_assets set lesson_id = $2{{uuid}} {owned}
            where id = $1{{uuid}} and lesson_id = $3{{uuid}} and kind = 'video'"
        );
        let records = "update video_ingest.videos set
                created_row = case when lesson_id = $2 then 1 else 0 end,
                stored_sha = case when lesson_id = $2 then stored_sha end
            where video_id = $1 and lesson_id in ($2, $3)";
        let mut tx = self.transaction().await?;
        let query = self.query_for(&row, key).bind(from.to_string());
        if query.execute(tx.connection()).await?.rows_affected() == 0 {
            return Ok(false);
        }
        let query = self.query_for(records, key).bind(from.to_string());
        query.execute(tx.connection()).await?;
        tx.commit().await?;
        Ok(true)
    }

    async fn has_lesson(&self, lesson_id: Uuid) -> Result<bool, DbError> {
        let statement = "select 1 from lessons where id = $1{uuid}";
        let query = self.query(statement).bind(lesson_id.to_string());
        Ok(self.fetch_optional(query).await?.is_some())
    }

    /// Makes the row ready, unless it was deleted or has another lesson, owner, bucket or kind than when it
    /// was read: the object's place follows from them.
    ///
    /// This is one statement, because every update is sent to the app's Realtime subscribers.
    pub(super) async fn make_row_ready(
        &self,
        tx: &mut Unit,
        key: VideoKey,
        published: &Published,
        user_id: Uuid,
        bucket: &str,
    ) -> Result<(), ClaimError> {
        let ingest = json!({
            "commit": published.commit,
            "blob_sha": published.blob_sha,
            "sha256": published.sha256,
            "size_bytes": published.size_bytes,
            "width": published.width,
            "height": published.height,
            "generated_at": published.generated_at,
            "warnings": published.warnings,
            "ingested_at": self.clock.now().to_string(),
        });
        let statement = format!(
            "update lesson_assets set storage_path = $4, mime_type = 'video/mp4', duration_ms = $5,
                conversation_id = coalesce(conversation_id, $6), metadata = {}
            where id = $1{{uuid}} and lesson_id = $2{{uuid}} and user_id = $3{{uuid}} and kind = 'video'
              and storage_bucket = $8",
            self.with_ingest("$7")
        );
        let done = self
            .query_for(&statement, key)
            .bind(user_id.to_string())
            .bind(published.storage_path.as_str())
            .bind(published.duration_ms as i64)
            .bind(published.conversation_id.as_deref())
            .bind(ingest.to_string())
            .bind(bucket)
            .execute(tx.connection())
            .await?;
        if done.rows_affected() == 1 {
            return Ok(());
        }
        self.lock_row(tx, key, None).await?;
        let same = "select 1 from lesson_assets
            where id = $1{uuid} and lesson_id = $2{uuid} and user_id = $3{uuid} and kind = 'video'
              and storage_bucket = $4";
        let same = self.query_for(same, key).bind(user_id.to_string());
        let same = same.bind(bucket).fetch_optional(tx.connection()).await?;
        match same {
            // To try again at once would end in the same way.
            Some(_) => Err(DbError::Denied(UPDATE_DISCARDED.to_owned()).into()),
            None => Err(ClaimError::RowChanged),
        }
    }

    /// Locks the row until the transaction ends. `generated_by`: only if the row is pending and still belongs
    /// to this conversation. Returns `false` if there is no such row.
    ///
    /// # Errors
    /// [`DbError::Denied`] if the row can be read but not updated.
    pub(super) async fn lock_row(
        &self,
        tx: &mut Unit,
        key: VideoKey,
        generated_by: Option<Option<&str>>,
    ) -> Result<bool, DbError> {
        let and = match generated_by {
            None => "",
            Some(_) => "and storage_path is null and conversation_id is not distinct from $3{text}",
        };
        let read = format!(
            "select 1 from lesson_assets where id = $1{{uuid}} and lesson_id = $2{{uuid}} and kind = 'video' {and}"
        );
        let found = async |statement: &str, tx: &mut Unit| -> Result<bool, sqlx::Error> {
            let mut query = self.query_for(statement, key);
            if let Some(conversation) = generated_by {
                query = query.bind(conversation);
            }
            Ok(query.fetch_optional(tx.connection()).await?.is_some())
        };
        if found(&format!("{read} {{lock}}"), tx).await? {
            return Ok(true);
        }
        // A statement that locks rows does not see rows that no policy allows us to update.
        if self.dialect == Dialect::Postgres && found(&read, tx).await? {
            return Err(DbError::Denied(NOT_UPDATABLE.to_owned()));
        }
        Ok(false)
    }

    /// Checks that the row can be updated, if there is one.
    ///
    /// # Errors
    /// [`DbError::Denied`] if it cannot.
    pub async fn check_row_is_writable(&self, key: VideoKey) -> Result<(), DbError> {
        let mut tx = self.transaction().await?;
        self.lock_row(&mut tx, key, None).await?;
        Ok(tx.commit().await?)
    }

    /// Whether a row that we can read names this object.
    pub async fn is_named(&self, bucket: &str, path: &str) -> Result<bool, DbError> {
        let statement =
            "select 1 from lesson_assets where storage_bucket = $1 and storage_path = $2 limit 1";
        let query = self.query(statement).bind(bucket).bind(path);
        Ok(self.fetch_optional(query).await?.is_some())
    }

    /// Writes a failure to the row, if there is one. A ready row stays ready and gets `ingest.last_error`.
    ///
    /// # Errors
    /// [`DbError::Denied`] if the row cannot be updated.
    pub(super) async fn make_row_failed(
        &self,
        tx: &mut Unit,
        key: VideoKey,
        failure: &Failure,
        blob_sha: Option<GitSha>,
    ) -> Result<(), DbError> {
        if !self.lock_row(tx, key, None).await? {
            return Ok(());
        }
        let reason: String = failure.message.chars().take(REASON_CHARS_MAX).collect();
        let at = self.clock.now().to_string();
        let code = failure.code.as_str();
        let failed =
            json!({"status": "failed", "code": code, "message": failure.message, "at": at});
        let last =
            json!({"code": code, "message": failure.message, "at": at, "blob_sha": blob_sha});
        let statement = format!(
            "update lesson_assets set
                mime_type = case when storage_path is null then $3 else mime_type end,
                metadata = case when storage_path is null then {} else {} end
            where id = $1{{uuid}} and lesson_id = $2{{uuid}} and kind = 'video'",
            self.with_ingest("$4"),
            self.with_last_error("$5"),
        );
        self.query_for(&statement, key)
            .bind(format!("error: {reason}"))
            .bind(failed.to_string())
            .bind(last.to_string())
            .execute(tx.connection())
            .await?;
        Ok(())
    }

    /// SQL for `metadata` with the key `ingest` replaced. The other keys belong to the app and are kept.
    fn with_ingest(&self, value: &str) -> String {
        match self.dialect {
            Dialect::Sqlite => {
                format!("json_set({METADATA}, '$.ingest', json({value}))")
            }
            Dialect::Postgres => format!(
                "case when jsonb_typeof(metadata) = 'object' then metadata else '{{}}'::jsonb end
                 || jsonb_build_object('ingest', {value}::jsonb)"
            ),
        }
    }

    /// SQL for `metadata` with `ingest.last_error` set. All other keys are kept.
    fn with_last_error(&self, value: &str) -> String {
        match self.dialect {
            Dialect::Sqlite => {
                format!(
                    "json_set({METADATA}, '$.ingest', json_set(
                        case json_type({METADATA}, '$.ingest') when 'object' then json_extract({METADATA}, '$.ingest') else '{{}}' end,
                        '$.last_error', json({value})))"
                )
            }
            Dialect::Postgres => format!(
                "case when jsonb_typeof(metadata) = 'object' then metadata else '{{}}'::jsonb end
                 || jsonb_build_object('ingest',
                    case when jsonb_typeof(metadata -> 'ingest') = 'object' then metadata -> 'ingest' else '{{}}'::jsonb end
                    || jsonb_build_object('last_error', {value}::jsonb))"
            ),
        }
    }
}

/// The key of a row, from its columns `id` and `lesson_id`; `None` if they are not UUIDs.
fn row_key(row: &AnyRow) -> Option<VideoKey> {
    Some(VideoKey {
        lesson_id: row.get::<String, _>("lesson_id").parse().ok()?,
        video_id: row.get::<String, _>("id").parse().ok()?,
    })
}
