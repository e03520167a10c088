//! Pages of videos, and single ones with their history, for the API and the status page.

use std::collections::HashMap;

use serde::Serialize;
use sqlx::Row as _;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::{Db, DbError, Dialect};
use crate::domain::advice::advice;
use crate::domain::failure::Code;
use crate::domain::generation::GenerationStatus;
use crate::domain::ids::{VideoKey, canonical_uuid};
use crate::domain::request::Source;
use crate::domain::state::VideoState;
use crate::domain::timeline::Step;

/// The maximum page size, in rows.
pub const PAGE_ROWS_MAX: i64 = 200;

/// The default page size, in rows.
pub(super) const PAGE_ROWS: i64 = 50;

/// The maximum number of results for an id prefix, by video and by lesson each.
const PREFIX_ROWS_MAX: i64 = 20;

/// Whether our role may read the app's rows.
#[derive(Clone, Copy, PartialEq)]
enum AppRows {
    Readable,
    Denied,
}

/// A page of results.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// The opaque cursor of the next page; `None` on the last page.
    pub next: Option<String>,
}

/// Parameters of a list of videos.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only videos in this state.
    pub state: Option<VideoState>,
    /// Only videos with this failure code.
    pub code: Option<Code>,
    /// Only videos that match this id of a video or lesson, id prefix or file name.
    pub q: Option<String>,
    /// Only videos that were read from a commit whose SHA begins with these hexadecimal digits, or that a
    /// delivery of such a commit names.
    pub commit: Option<String>,
    /// Only videos that changed at or after this time, in milliseconds since the Unix epoch.
    pub since_ms: Option<i64>,
    /// Only videos that changed at or before this time, in milliseconds since the Unix epoch.
    pub until_ms: Option<i64>,
    /// [`Page::next`] of the previous page.
    pub cursor: Option<String>,
    /// The page size, at most [`PAGE_ROWS_MAX`].
    pub limit: Option<i64>,
}

/// A video in the API.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct VideoView {
    pub video_id: Uuid,
    pub lesson_id: Uuid,
    /// `null` if the server may not read the app's lessons.
    pub lesson_title: Option<String>,
    #[schema(value_type = String)]
    pub state: VideoState,
    #[schema(value_type = Option<String>)]
    pub code: Option<Code>,
    pub message: Option<String>,
    /// What to do about the failure.
    pub advice: Option<&'static str>,
    #[schema(value_type = Option<String>)]
    pub source: Option<Source>,
    pub attempts: i64,
    /// When the server tries the video again without a request.
    pub next_attempt_at: Option<String>,
    pub size_bytes: Option<i64>,
    pub duration_ms: Option<i64>,
    pub storage_path: Option<String>,
    pub commit: Option<String>,
    pub conversation_id: Option<String>,
    /// The web page of the agent's conversation.
    pub conversation_url: Option<String>,
    /// `null` unless the video is being generated.
    pub generation: Option<GenerationView>,
    pub updated_at: String,
    pub created_at: String,
    /// The same times, in milliseconds since the Unix epoch.
    #[serde(skip)]
    pub times: Times,
}

/// Times of a video, in milliseconds since the Unix epoch.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// When the record or its state, failure or files changed.
    pub updated_ms: i64,
    /// When the video was last requested.
    pub requested_ms: Option<i64>,
    /// [`VideoView::next_attempt_at`].
    pub next_attempt_ms: Option<i64>,
    /// When OpenHands was last asked.
    pub checked_ms: Option<i64>,
    /// When the app inserted its row.
    pub row_created_ms: Option<i64>,
    /// [`GenerationView::deadline_at`].
    pub deadline_ms: Option<i64>,
}

/// What is known about the generation of a video in the API.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct GenerationView {
    /// `generating`, `finished`, `failed`, `blocked`, `unknown` or `not_asked`.
    pub status: &'static str,
    /// The status as a sentence.
    pub detail: String,
    /// When OpenHands was last asked.
    pub checked_at: Option<String>,
    /// When the video fails unless it was pushed before.
    pub deadline_at: Option<String>,
    /// The status; `None` if OpenHands has never reported one.
    #[serde(skip)]
    pub reported: Option<GenerationStatus>,
}

impl VideoView {
    /// The video's ids.
    pub fn key(&self) -> VideoKey {
        VideoKey {
            lesson_id: self.lesson_id,
            video_id: self.video_id,
        }
    }
}

/// An entry of a timeline in the API.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct EventView {
    pub at: String,
    #[schema(value_type = String)]
    pub step: Step,
    pub detail: String,
    pub ms: Option<i64>,
}

/// A video in the API, with its metadata and timeline.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct VideoDetail {
    #[serde(flatten)]
    pub video: VideoView,
    pub metadata: serde_json::Value,
    pub warnings: serde_json::Value,
    pub timeline: Vec<EventView>,
    pub deliveries: Vec<String>,
    /// The bucket in the app's row.
    #[serde(skip)]
    pub bucket: Option<String>,
}

const COLUMNS: &str = "video_id, lesson_id, state, code, message, source, attempts, size_bytes,
    duration_ms, storage_path, commit_sha, due_at, requested_at, updated_at, created_at";

/// The ids of the app's row, cast before the join with its table: with row-level security, Postgres uses an index
/// only for conditions without such casts, which could disclose rows by their errors, and would scan the table.
const ROW_IDS: &str = "video_id{uuid} as row_id, lesson_id{uuid} as row_lesson_id";

/// The columns of [`COLUMNS`] that a pending row without a record does not have.
const NO_RECORD: &str = "cast(null as text) as code, cast(null as text) as message,
    cast(null as text) as source, cast(0 as bigint) as attempts, cast(null as bigint) as size_bytes,
    cast(null as bigint) as duration_ms, cast(null as text) as storage_path,
    cast(null as text) as commit_sha, cast(null as bigint) as due_at, cast(null as bigint) as requested_at";

impl Db {
    /// Videos, the most recently changed first. Pending rows without a record are included as `generating`.
    ///
    /// Each half of the union is sorted and limited by an index, so the cost depends on the page size
    /// only. For the app's rows, this requires the index of `deploy/supabase/indexes.sql`.
    ///
    /// If our role may not read the app's rows, only the records are included.
    pub async fn videos(&self, filter: &Filter) -> Result<Page<VideoView>, DbError> {
        match self.videos_with(filter, AppRows::Readable).await {
            Err(DbError::Denied(_)) => self.videos_with(filter, AppRows::Denied).await,
            result => result,
        }
    }

    async fn videos_with(
        &self,
        filter: &Filter,
        rows: AppRows,
    ) -> Result<Page<VideoView>, DbError> {
        let limit = filter.limit.unwrap_or(PAGE_ROWS).clamp(1, PAGE_ROWS_MAX);
        let search = match filter.q.as_deref().map(Search::parse) {
            // Neither an id nor the prefix of one, so no video can match.
            Some(None) => return Ok(page(&[], limit, video_view, next_video)),
            search => search.flatten(),
        };
        let cursor = filter.cursor.as_deref().and_then(Cursor::parse);
        let recorded = self.recorded(filter, cursor.is_some(), search);
        let pending = self.pending(cursor.is_some(), search);
        // A pending row without a record has no failure and no commit.
        let needs_record =
            filter.code.is_some() || filter.commit.is_some() || rows == AppRows::Denied;
        let parts = match filter.state {
            None if !needs_record => format!("{recorded} union all {pending}"),
            Some(VideoState::Generating) if needs_record => {
                return Ok(page(&[], limit, video_view, next_video));
            }
            Some(VideoState::Generating) => pending,
            _ => recorded,
        };
        let order = "order by sorted_at desc, video_id desc";
        let parts = format!("select parts.*, {ROW_IDS} from ({parts}) as parts {order} limit $1");
        let statement = self.with_rows(&parts, "sorted_at", rows);
        let statement = format!("{statement} {order}");
        let cursor = cursor.unwrap_or_default();
        let (recorded_at, recorded_id) = cursor.in_milliseconds();
        let Search { video, lesson, .. } = search.unwrap_or_default();
        let commit = filter.commit.as_deref().unwrap_or_default();
        let query = self
            .query(&statement)
            .bind(limit + 1)
            .bind(filter.state.map_or("", VideoState::as_str))
            .bind(recorded_at)
            .bind(recorded_id)
            .bind(cursor.at_us)
            .bind(cursor.id.to_string())
            .bind(video.first.to_string())
            .bind(video.last.to_string())
            .bind(lesson.first.to_string())
            .bind(lesson.last.to_string())
            .bind(search.map_or(0, Search::rows_max))
            .bind(filter.code.map_or("", Code::as_str))
            .bind(commit.to_ascii_lowercase())
            // Greater than every hexadecimal digit.
            .bind(format!("{}g", commit.to_ascii_lowercase()))
            .bind(filter.since_ms.unwrap_or(i64::MIN / 1000))
            .bind(filter.until_ms.unwrap_or(i64::MAX / 1000));
        let rows = self.fetch_all(query).await?;
        Ok(page(&rows, limit, video_view, next_video))
    }

    /// The SQL that adds the app's row and the generation status to the rows of `page`.
    fn with_rows(&self, page: &str, others: &str, rows: AppRows) -> String {
        // Not `page.*`: the driver cannot decode the columns of [`ROW_IDS`].
        let columns = COLUMNS.split(',').chain(others.split(','));
        let columns: Vec<_> = columns
            .map(|name| format!("page.{0} as {0}", name.trim()))
            .collect();
        let columns = columns.join(", ");
        if rows == AppRows::Denied {
            return format!(
                "select {columns}, {{now}} as now_ms, cast(null as text) as conversation_id,
                    cast(null as text) as storage_bucket, 0 as is_pending,
                    cast(null as bigint) as row_created_at, cast(null as text) as agent_status,
                    cast(null as text) as agent_detail, cast(null as bigint) as agent_asked_at
                from ({page}) as page"
            );
        }
        let created = self.created_ms("a.created_at");
        format!(
            "select {columns}, {{now}} as now_ms, a.conversation_id, a.storage_bucket,
                case when a.storage_path is null and a.mime_type not like 'error:%' then 1 else 0 end as is_pending,
                {created} as row_created_at,
                s.status as agent_status, s.detail as agent_detail, s.at as agent_asked_at
            from ({page}) as page
            left join lesson_assets as a on a.id = page.row_id
                and a.lesson_id = page.row_lesson_id and a.kind = 'video'
            left join video_ingest.statuses as s on s.video_id = page.video_id
                and s.conversation_id = a.conversation_id"
        )
    }

    /// The SQL of the videos that have a record.
    fn recorded(&self, filter: &Filter, has_cursor: bool, search: Option<Search>) -> String {
        let videos = match search {
            None => "video_ingest.videos".to_owned(),
            Some(Search { both: true, .. }) => "(select * from video_ingest.videos
                where video_id between $7 and $8 and lesson_id between $9 and $10
                order by video_id limit $11) as search"
                .to_owned(),
            Some(_) => {
                let by = |id: &str, first: u8, last: u8| {
                    format!(
                        "select * from (select {COLUMNS} from video_ingest.videos
                            where {id} between ${first} and ${last} order by {id} limit $11) as by_{id}"
                    )
                };
                let (video, lesson) = (by("video_id", 7, 8), by("lesson_id", 9, 10));
                format!("({video} union {lesson}) as search")
            }
        };
        let state = match filter.state {
            None => "true",
            Some(_) => "state = $2",
        };
        let code = match filter.code {
            None => "true",
            Some(_) => "code = $12",
        };
        let commit = match filter.commit {
            None => "true",
            Some(_) => {
                "video_id in (
                    select c.video_id from video_ingest.videos as c where c.commit_sha between $13 and $14
                    union all select k.value ->> 'video_id'
                    from video_ingest.deliveries as d, {each}(d.videos{jsonb}) as k
                    where d.after_sha between $13 and $14)"
            }
        };
        let before = if has_cursor {
            "(updated_at, video_id) < ($3, $4)"
        } else {
            "true"
        };
        format!(
            "select * from (
                select {COLUMNS}, updated_at * 1000 as sorted_at from {videos}
                where {state} and {code} and {commit} and {before} and updated_at between $15 and $16
                order by updated_at desc, video_id desc limit $1) as recorded"
        )
    }

    /// The SQL of the pending rows that have no record.
    fn pending(&self, has_cursor: bool, search: Option<Search>) -> String {
        // Postgres stores `created_at` in microseconds. With a cursor in milliseconds, rows of the same
        // millisecond would be skipped or repeated.
        let created = self.created_ms("a.created_at");
        let (created_us, before) = match self.dialect {
            Dialect::Sqlite => (
                "cast(a.created_at as integer) * 1000",
                "(a.created_at, a.id) < ($3, $4)",
            ),
            Dialect::Postgres => (
                "(extract(epoch from least(greatest(a.created_at, '0001-01-01Z'), '9999-12-31Z')) * 1000000)::bigint",
                "(a.created_at, a.id) < ('epoch'::timestamptz + $5 * interval '1 microsecond', $6::uuid)",
            ),
        };
        let before = if has_cursor { before } else { "true" };
        let matches = match search.map(|search| search.both) {
            None => "true",
            Some(true) => {
                "a.id between $7{uuid} and $8{uuid} and a.lesson_id between $9{uuid} and $10{uuid}"
            }
            Some(false) => {
                "(a.id between $7{uuid} and $8{uuid} or a.lesson_id between $9{uuid} and $10{uuid})"
            }
        };
        format!(
            "select * from (
                select a.id{{text}} as video_id, a.lesson_id{{text}} as lesson_id, 'generating' as state,
                    {NO_RECORD}, {created} as updated_at, {created} as created_at, {created_us} as sorted_at
                from lesson_assets as a
                where a.kind = 'video' and a.storage_path is null and a.mime_type not like 'error:%'
                    and {before} and {matches} and {created} between $15 and $16
                    and not exists (select 1 from video_ingest.videos as v
                        where v.video_id = a.id{{text}} and v.lesson_id = a.lesson_id{{text}})
                order by a.created_at desc, a.id desc limit $1) as pending"
        )
    }

    /// A video with its timeline; `None` if it has neither a record nor a pending row. `lesson_id`: `None`
    /// means any lesson.
    pub async fn video(
        &self,
        video_id: Uuid,
        lesson_id: Option<Uuid>,
    ) -> Result<Option<VideoDetail>, DbError> {
        // Between the two statements that look for a record and for a row without one, a push can create the
        // record. Then neither finds the video.
        match self.readable_video(video_id, lesson_id).await? {
            None => self.readable_video(video_id, lesson_id).await,
            found => Ok(found),
        }
    }

    async fn readable_video(
        &self,
        video_id: Uuid,
        lesson_id: Option<Uuid>,
    ) -> Result<Option<VideoDetail>, DbError> {
        match self
            .video_with(video_id, lesson_id, AppRows::Readable)
            .await
        {
            Err(DbError::Denied(_)) => self.video_with(video_id, lesson_id, AppRows::Denied).await,
            result => result,
        }
    }

    async fn video_with(
        &self,
        video_id: Uuid,
        lesson_id: Option<Uuid>,
        rows: AppRows,
    ) -> Result<Option<VideoDetail>, DbError> {
        let lesson = lesson_id.map_or_else(String::new, |id| id.to_string());
        // A video has several records if files name it with different lessons. The record that was
        // published, or else the one that matches the row's lesson, takes precedence.
        let record = format!(
            "select {COLUMNS}, metadata, warnings, {ROW_IDS} from video_ingest.videos
            where video_id = $1 and ($2 = '' or lesson_id = $2)
            order by case when stored_sha is null then 1 else 0 end,
                case when code = 'row_mismatch' then 1 else 0 end, updated_at desc limit 1"
        );
        let statement = self.with_rows(&record, "metadata, warnings", rows);
        let mut unit = self.unit(&self.read).await?;
        let found = self
            .query(&statement)
            .bind(video_id.to_string())
            .bind(lesson.as_str())
            .fetch_optional(unit.connection())
            .await?;
        let Some(row) = found else {
            drop(unit);
            let filter = Filter {
                q: Some(format!("{lesson}_{video_id}")),
                state: Some(VideoState::Generating),
                ..Filter::default()
            };
            let pending = self.videos(&filter).await?.items.pop();
            return Ok(pending.map(|video| VideoDetail {
                video,
                metadata: serde_json::Value::Null,
                warnings: serde_json::json!([]),
                timeline: Vec::new(),
                deliveries: Vec::new(),
                bucket: None,
            }));
        };
        let video = video_view(&row);
        let (timeline, deliveries) = self.timeline(&mut unit, video.key()).await?;
        unit.commit().await?;
        Ok(Some(VideoDetail {
            video,
            metadata: json_column(&row, "metadata"),
            warnings: json_column(&row, "warnings"),
            timeline,
            deliveries,
            bucket: row.get("storage_bucket"),
        }))
    }

    /// Whether the video is being generated: its row is pending and not failed, and nothing was pushed. There
    /// may be a record of an earlier generation under the same id.
    pub async fn is_generating(&self, key: VideoKey) -> Result<bool, DbError> {
        let never_pushed = [
            Code::GenerationFailed,
            Code::GenerationTimeout,
            Code::FinishedWithoutVideo,
            Code::VideoMissing,
        ]
        .map(|code| format!("'{code}'"))
        .join(", ");
        let statement = format!(
            "select 1 from lesson_assets as a
            where a.id = $1{{uuid}} and a.lesson_id = $2{{uuid}} and a.kind = 'video'
                and a.storage_path is null and a.mime_type not like 'error:%'
                and not exists (select 1 from video_ingest.videos as v
                    where v.video_id = a.id{{text}} and v.lesson_id = a.lesson_id{{text}}
                        and not (v.state = 'failed' and v.code in ({never_pushed})
                            and v.mp4_sha is null and v.json_sha is null))"
        );
        let found = self.fetch_optional(self.query_for(&statement, key)).await?;
        Ok(found.is_some())
    }

    /// The states of these videos, by id. If a video has several records, the published one counts.
    pub async fn states(
        &self,
        video_ids: Vec<String>,
    ) -> Result<HashMap<String, VideoState>, DbError> {
        let statement = "select * from (
                select k.value ->> 'id' as video_id, (
                    select v.state from video_ingest.videos as v where v.video_id = k.value ->> 'id'
                    order by case when v.stored_sha is null then 1 else 0 end limit 1) as state
                from {each}($1{jsonb}) as k) as found
            where state is not null";
        let ids = video_ids.iter().map(|id| serde_json::json!({"id": id}));
        let ids: serde_json::Value = ids.collect();
        let query = self.query(statement).bind(ids.to_string());
        let rows = self.fetch_all(query).await?;
        let pair = |row: &AnyRow| (row.get("video_id"), super::state(row));
        Ok(rows.iter().map(pair).collect())
    }
}

/// The position of the last video of a page: its time, in microseconds since the Unix epoch, and its id.
#[derive(Clone, Copy, Default)]
struct Cursor {
    at_us: i64,
    id: Uuid,
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let (at_us, id) = text.split_once('.')?;
        Some(Self {
            at_us: at_us.parse().ok()?,
            id: canonical_uuid(id)?,
        })
    }

    /// The same position among the records, whose times are in milliseconds. Within a millisecond, it is
    /// rounded up, so that no record is skipped.
    fn in_milliseconds(self) -> (i64, String) {
        match self.at_us.rem_euclid(1000) {
            0 => (self.at_us / 1000, self.id.to_string()),
            _ => (self.at_us.div_euclid(1000) + 1, String::new()),
        }
    }
}

/// A search term: ids or id prefixes.
#[derive(Clone, Copy, Default)]
struct Search {
    video: IdRange,
    lesson: IdRange,
    /// Whether both must match, as for a file name. Otherwise, one of them is sufficient.
    both: bool,
}

/// All ids with a common prefix.
#[derive(Clone, Copy, Default, PartialEq)]
struct IdRange {
    first: Uuid,
    last: Uuid,
}

impl Search {
    fn parse(text: &str) -> Option<Self> {
        let name = text.trim().rsplit('/').next().unwrap_or_default();
        let stem = name
            .strip_suffix(".mp4")
            .or(name.strip_suffix(".json"))
            .unwrap_or(name);
        let (lesson, video) = stem.split_once('_').unwrap_or((stem, stem));
        Some(Self {
            video: IdRange::with_prefix(video)?,
            lesson: IdRange::with_prefix(lesson)?,
            both: stem.contains('_'),
        })
    }

    /// The maximum number of matches.
    fn rows_max(self) -> i64 {
        if self.lesson.first == self.lesson.last {
            PAGE_ROWS_MAX
        } else {
            PREFIX_ROWS_MAX
        }
    }
}

impl IdRange {
    fn with_prefix(text: &str) -> Option<Self> {
        let digits = text.replace('-', "");
        Some(Self {
            first: Uuid::try_parse(&format!("{digits:0<32}")).ok()?,
            last: Uuid::try_parse(&format!("{digits:f<32}")).ok()?,
        })
    }
}

fn next_video(row: &AnyRow) -> String {
    let (at_us, id): (i64, String) = (row.get("sorted_at"), row.get("video_id"));
    format!("{at_us}.{id}")
}

/// Builds a page from up to `limit + 1` rows. The additional row only shows that there is a next page.
pub(super) fn page<T>(
    rows: &[AnyRow],
    limit: i64,
    view: impl Fn(&AnyRow) -> T,
    cursor: impl Fn(&AnyRow) -> String,
) -> Page<T> {
    let shown = &rows[..rows.len().min(limit as usize)];
    Page {
        items: shown.iter().map(view).collect(),
        next: shown
            .last()
            .filter(|_| rows.len() > shown.len())
            .map(cursor),
    }
}

fn video_view(row: &AnyRow) -> VideoView {
    let text = |column| row.get::<Option<String>, _>(column);
    let state = super::state(row);
    let code = text("code").as_deref().and_then(Code::parse);
    let is_generating = state == VideoState::Generating && row.get::<i64, _>("is_pending") == 1;
    let generation = is_generating.then(|| generation_view(row));
    let mut message = text("message");
    if state == VideoState::Generating {
        let status = generation.as_ref().and_then(|g| g.reported.as_ref());
        message = status.map(GenerationStatus::sentence);
    }
    let is_later = |due_ms: &i64| *due_ms > row.get::<i64, _>("now_ms");
    // The end of a lease is no attempt, and a ready video is only compared.
    let next_attempt_ms = match state {
        VideoState::Queued | VideoState::Waiting | VideoState::Failed => {
            row.get::<Option<i64>, _>("due_at").filter(is_later)
        }
        VideoState::Generating | VideoState::Running | VideoState::Ready => None,
    };
    let updated_ms = row.get("updated_at");
    VideoView {
        video_id: uuid(row, "video_id"),
        lesson_id: uuid(row, "lesson_id"),
        lesson_title: None,
        state,
        code,
        message,
        advice: code.map(advice),
        source: text("source").as_deref().and_then(Source::parse),
        attempts: row.get("attempts"),
        // Without its row or its MP4, the video fails then.
        next_attempt_at: next_attempt_ms
            .filter(|_| state != VideoState::Waiting || code == Some(Code::MetadataMissing))
            .map(timestamp),
        size_bytes: row.get("size_bytes"),
        duration_ms: row.get("duration_ms"),
        storage_path: row.get("storage_path"),
        commit: row.get("commit_sha"),
        conversation_id: text("conversation_id"),
        conversation_url: None,
        times: Times {
            updated_ms,
            requested_ms: row.get("requested_at"),
            next_attempt_ms,
            checked_ms: row.get("agent_asked_at"),
            row_created_ms: row.get("row_created_at"),
            deadline_ms: None,
        },
        generation,
        updated_at: timestamp(updated_ms),
        created_at: timestamp(row.get("created_at")),
    }
}

fn generation_view(row: &AnyRow) -> GenerationView {
    let kind: Option<String> = row.get("agent_status");
    let detail: Option<String> = row.get("agent_detail");
    let reported =
        kind.map(|kind| GenerationStatus::from_stored(&kind, detail.unwrap_or_default()));
    let asked_ms: Option<i64> = row.get("agent_asked_at");
    GenerationView {
        status: reported
            .as_ref()
            .map_or("not_asked", GenerationStatus::as_str),
        detail: reported.as_ref().map_or_else(
            || "OpenHands has not reported a status yet.".to_owned(),
            GenerationStatus::sentence,
        ),
        checked_at: asked_ms.map(timestamp),
        deadline_at: None,
        reported,
    }
}

pub(super) fn json_column(row: &AnyRow, column: &str) -> serde_json::Value {
    row.get::<Option<String>, _>(column)
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

fn uuid(row: &AnyRow, column: &str) -> Uuid {
    row.get::<String, _>(column).parse().unwrap_or_default()
}

/// RFC 3339, from milliseconds since the Unix epoch.
pub fn timestamp(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map(|t| t.to_string())
        .unwrap_or_default()
}
