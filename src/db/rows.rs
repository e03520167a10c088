//! The app's table `lesson_assets`: every statement of ours that touches it.

use serde_json::json;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Db, DbError, Dialect, Lost, Unit};
use crate::domain::failure::Failure;
use crate::domain::ids::{GitSha, VideoKey};
use crate::domain::plan::Published;

/// A row as the app made it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The lesson it belongs to.
    pub lesson_id: Uuid,
    /// Its owner, the first folder of the storage path.
    pub user_id: Uuid,
    /// `video`, or something that is not ours.
    pub kind: String,
    /// Where the app looks for the object.
    pub bucket: String,
    /// Set: the video is ready.
    pub storage_path: Option<String>,
}

/// Who owns a row that we insert.
#[derive(Clone, Copy, Debug)]
pub enum RowOwner {
    /// The lesson's owner, from the app's table `lessons`.
    OfLesson,
    /// Always the same: embedded mode has no lessons.
    Fixed(Uuid),
}

/// The longest reason that is written into `mime_type`, in characters. Source: the contract.
const REASON_CHARS_MAX: usize = 100;

impl Db {
    /// The row with this id, whatever its lesson and kind.
    pub async fn find_row(&self, video_id: Uuid) -> Result<Option<Row>, DbError> {
        let statement = "select lesson_id{text} as lesson_id, user_id{text} as user_id, kind,
                storage_bucket, storage_path
            from lesson_assets where id = $1{uuid}";
        let mut unit = self.unit(&self.read).await?;
        let found = self
            .query(statement)
            .bind(video_id.to_string())
            .fetch_optional(unit.connection())
            .await?;
        unit.commit().await?;
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

    /// Inserts a pending row, unless there is one with that id, be it one that we may not see.
    /// `false`: there is no such lesson to own it.
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
        // SQLite's `created_at` is ours to fill; the app's has a default.
        let (column, value) = match self.dialect {
            Dialect::Sqlite => ("created_at, ", "{now}, "),
            Dialect::Postgres => ("", ""),
        };
        let statement = format!(
            "insert into lesson_assets ({column}id, lesson_id, user_id, kind, storage_bucket, mime_type)
             select {value}$1{{uuid}}, $2{{uuid}}, {from} on conflict (id) do nothing"
        );
        let mut unit = self.unit(&self.write).await?;
        let mut query = self
            .query(&statement)
            .bind(key.video_id.to_string())
            .bind(key.lesson_id.to_string())
            .bind(bucket);
        if let RowOwner::Fixed(user) = owner {
            query = query.bind(user.to_string());
        }
        let inserted = query.execute(unit.connection()).await?.rows_affected() > 0;
        unit.commit().await?;
        match owner {
            RowOwner::OfLesson if !inserted => self.has_lesson(key.lesson_id).await,
            RowOwner::OfLesson | RowOwner::Fixed(_) => Ok(true),
        }
    }

    async fn has_lesson(&self, lesson_id: Uuid) -> Result<bool, DbError> {
        let statement = "select 1 from lessons where id = $1{uuid}";
        let mut unit = self.unit(&self.write).await?;
        let found = self
            .query(statement)
            .bind(lesson_id.to_string())
            .fetch_optional(unit.connection())
            .await?;
        unit.commit().await?;
        Ok(found.is_some())
    }

    /// Queues the videos that were waiting for a row which is there now, or which can be inserted now
    /// that its owner, the lesson, is there. Returns how many.
    pub async fn wake_those_with_rows(&self, missing: Option<RowOwner>) -> Result<u64, DbError> {
        let lesson = match missing {
            Some(RowOwner::OfLesson) => {
                "or exists (select 1 from lessons as l where l.id = videos.lesson_id{uuid})"
            }
            Some(RowOwner::Fixed(_)) | None => "",
        };
        let statement = format!(
            "update video_ingest.videos set state = 'queued', due_at = {{now}}
            where state = 'waiting' and code = 'no_row'
              and (exists (select 1 from lesson_assets as a where a.id = videos.video_id{{uuid}}) {lesson})"
        );
        let mut unit = self.unit(&self.write).await?;
        let done = self.query(&statement).execute(unit.connection()).await?;
        unit.commit().await?;
        Ok(done.rows_affected())
    }

    /// Makes the row ready if it is still the one that was read. One statement, so that the app's
    /// Realtime subscribers see one change.
    pub(super) async fn make_row_ready(
        &self,
        tx: &mut Unit,
        key: VideoKey,
        published: &Published,
        user_id: Uuid,
    ) -> Result<bool, sqlx::Error> {
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
            where id = $1{{uuid}} and lesson_id = $2{{uuid}} and user_id = $3{{uuid}} and kind = 'video'",
            self.with_ingest("$7")
        );
        let done = self
            .query(&statement)
            .bind(key.video_id.to_string())
            .bind(key.lesson_id.to_string())
            .bind(user_id.to_string())
            .bind(published.storage_path.as_str())
            .bind(published.duration_ms as i64)
            .bind(published.conversation_id.as_deref())
            .bind(ingest.to_string())
            .execute(tx.connection())
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Says in the row that the video failed. A ready video stays ready, with the error beside it.
    pub(super) async fn report(
        &self,
        tx: &mut Unit,
        key: VideoKey,
        failure: &Failure,
        blob_sha: Option<GitSha>,
    ) -> Result<(), Lost> {
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
        self.query(&statement)
            .bind(key.video_id.to_string())
            .bind(key.lesson_id.to_string())
            .bind(format!("error: {reason}"))
            .bind(failed.to_string())
            .bind(last.to_string())
            .execute(tx.connection())
            .await?;
        Ok(())
    }

    /// `metadata` with its key `ingest` replaced; what else is in it stays.
    fn with_ingest(&self, value: &str) -> String {
        match self.dialect {
            Dialect::Sqlite => {
                format!("json_set(coalesce(metadata, '{{}}'), '$.ingest', json({value}))")
            }
            Dialect::Postgres => format!(
                "case when jsonb_typeof(metadata) = 'object' then metadata else '{{}}'::jsonb end
                 || jsonb_build_object('ingest', {value}::jsonb)"
            ),
        }
    }

    /// `metadata` with `ingest.last_error` set; what else is in it stays.
    fn with_last_error(&self, value: &str) -> String {
        match self.dialect {
            Dialect::Sqlite => {
                format!("json_set(coalesce(metadata, '{{}}'), '$.ingest.last_error', json({value}))")
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
