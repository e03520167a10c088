//! Read-only queries for the API and the status page.

use std::collections::HashMap;

use serde::Serialize;
use sqlx::Row as _;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::{Db, DbError, Dialect};
use crate::domain::failure::Code;
use crate::domain::generation::GenerationStatus;
use crate::domain::ids::{VideoKey, canonical_uuid};
use crate::domain::request::Source;
use crate::domain::state::VideoState;
use crate::domain::timeline::Step;

/// The maximum page size, in rows.
pub const PAGE_ROWS_MAX: i64 = 200;

/// The default page size, in rows.
const PAGE_ROWS: i64 = 50;

/// The maximum number of results for an id prefix, by video and by lesson each.
const PREFIX_ROWS_MAX: i64 = 20;

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
    /// Only videos that match this id of a video or lesson, id prefix or file name.
    pub q: Option<String>,
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
    #[schema(value_type = String)]
    pub state: VideoState,
    #[schema(value_type = Option<String>)]
    pub code: Option<Code>,
    pub message: Option<String>,
    #[schema(value_type = Option<String>)]
    pub source: Option<Source>,
    pub attempts: i64,
    pub size_bytes: Option<i64>,
    pub duration_ms: Option<i64>,
    pub storage_path: Option<String>,
    pub commit: Option<String>,
    pub updated_at: String,
    pub created_at: String,
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
}

/// A delivery in the API.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names are those of the API")]
pub struct DeliveryView {
    pub delivery: String,
    pub event: String,
    pub received_at: String,
    pub before: String,
    pub after: String,
    pub status: String,
    pub scan: bool,
    pub videos: serde_json::Value,
    pub ignored: serde_json::Value,
    pub redeliveries: i64,
}

const COLUMNS: &str = "video_id, lesson_id, state, code, message, source, attempts, size_bytes,
    duration_ms, storage_path, commit_sha, updated_at, created_at";

impl Db {
    /// Videos, the most recently changed first. Pending rows without a record are included as `generating`.
    ///
    /// Each half of the union is sorted and limited by an index, so the cost depends on the page size
    /// only. For the app's rows, this requires the index of `deploy/supabase/indexes.sql`.
    pub async fn videos(&self, filter: &Filter) -> Result<Page<VideoView>, DbError> {
        let limit = filter.limit.unwrap_or(PAGE_ROWS).clamp(1, PAGE_ROWS_MAX);
        let search = match filter.q.as_deref().map(Search::parse) {
            // Neither an id nor the prefix of one, so no video can match.
            Some(None) => return Ok(page(&[], limit, video_view, next_video)),
            search => search.flatten(),
        };
        let cursor = filter.cursor.as_deref().and_then(Cursor::parse);
        let recorded = self.recorded(filter, cursor.is_some(), search);
        let pending = self.pending(cursor.is_some(), search);
        let parts = match filter.state {
            None => format!("{recorded} union all {pending}"),
            Some(VideoState::Generating) => pending,
            Some(_) => recorded,
        };
        let statement = format!("{parts} order by sorted_at desc, video_id desc limit $1");
        let cursor = cursor.unwrap_or_default();
        let (recorded_at, recorded_id) = cursor.in_milliseconds();
        let Search { video, lesson, .. } = search.unwrap_or_default();
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
            .bind(search.map_or(0, Search::rows_max));
        let rows = self.fetch_all(query).await?;
        Ok(page(&rows, limit, video_view, next_video))
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
        let before = if has_cursor {
            "(updated_at, video_id) < ($3, $4)"
        } else {
            "true"
        };
        format!(
            "select * from (
                select {COLUMNS}, updated_at * 1000 as sorted_at from {videos}
                where {state} and {before}
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
                    r.status as code, r.detail as message,
                    cast(null as text) as source, cast(0 as bigint) as attempts,
                    cast(null as bigint) as size_bytes, cast(null as bigint) as duration_ms,
                    cast(null as text) as storage_path, cast(null as text) as commit_sha,
                    {created} as updated_at, {created} as created_at, {created_us} as sorted_at
                from lesson_assets as a left join video_ingest.statuses as r on r.video_id = a.id{{text}}
                where a.kind = 'video' and a.storage_path is null and a.mime_type not like 'error:%'
                    and {before} and {matches}
                    and not exists (select 1 from video_ingest.videos as v
                        where v.video_id = a.id{{text}} and v.lesson_id = a.lesson_id{{text}})
                order by a.created_at desc, a.id desc limit $1) as pending"
        )
    }

    /// A video with its timeline; `None` if it has neither a record nor a pending row.
    pub async fn video(&self, video_id: Uuid) -> Result<Option<VideoDetail>, DbError> {
        // A video has several records if files name it with different lessons. The record that was
        // published, or else the one that matches the row's lesson, takes precedence.
        let statement = format!(
            "select {COLUMNS}, metadata, warnings from video_ingest.videos where video_id = $1
            order by case when stored_sha is null then 1 else 0 end,
                case when code = 'row_mismatch' then 1 else 0 end, updated_at desc limit 1"
        );
        let mut unit = self.unit(&self.read).await?;
        let found = self
            .query(&statement)
            .bind(video_id.to_string())
            .fetch_optional(unit.connection())
            .await?;
        let Some(row) = found else {
            drop(unit);
            let filter = Filter {
                // Of any lesson.
                q: Some(format!("_{video_id}")),
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

    /// Deliveries, newest first.
    pub async fn deliveries(&self, cursor: Option<&str>) -> Result<Page<DeliveryView>, DbError> {
        let (before_at, before_id) = before(cursor);
        let statement = "select guid, event, received_at, before_sha, after_sha, status, scan, videos, ignored, redeliveries
            from video_ingest.deliveries where (received_at, guid) < ($1, $2)
            order by received_at desc, guid desc limit $3";
        let limit = PAGE_ROWS;
        let query = self
            .query(statement)
            .bind(before_at)
            .bind(before_id)
            .bind(limit + 1);
        let rows = self.fetch_all(query).await?;
        Ok(page(&rows, limit, delivery_view, |row| {
            let (at, id): (i64, String) = (row.get("received_at"), row.get("guid"));
            format!("{at}.{id}")
        }))
    }
}

/// The position of a cursor in the list of deliveries. An invalid cursor means the first page.
fn before(cursor: Option<&str>) -> (i64, String) {
    cursor
        .and_then(|cursor| cursor.split_once('.'))
        // Postgres rejects text that contains NUL.
        .and_then(|(at, id)| Some((at.parse().ok()?, id.replace('\0', ""))))
        .unwrap_or((i64::MAX, String::new()))
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
fn page<T>(
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
    let (code, message) = if state == VideoState::Generating {
        // The two columns contain the status that OpenHands last reported, see `pending`.
        let message = text("code").map(|kind| {
            GenerationStatus::from_stored(&kind, text("message").unwrap_or_default()).sentence()
        });
        (None, message)
    } else {
        (
            text("code").as_deref().and_then(Code::parse),
            text("message"),
        )
    };
    VideoView {
        video_id: uuid(row, "video_id"),
        lesson_id: uuid(row, "lesson_id"),
        state,
        code,
        message,
        source: text("source").as_deref().and_then(Source::parse),
        attempts: row.get("attempts"),
        size_bytes: row.get("size_bytes"),
        duration_ms: row.get("duration_ms"),
        storage_path: row.get("storage_path"),
        commit: row.get("commit_sha"),
        updated_at: timestamp(row.get("updated_at")),
        created_at: timestamp(row.get("created_at")),
    }
}

fn delivery_view(row: &AnyRow) -> DeliveryView {
    DeliveryView {
        delivery: row.get("guid"),
        event: row.get("event"),
        received_at: timestamp(row.get("received_at")),
        before: row.get("before_sha"),
        after: row.get("after_sha"),
        status: row.get("status"),
        scan: row.get::<i64, _>("scan") == 1,
        videos: json_column(row, "videos"),
        ignored: json_column(row, "ignored"),
        redeliveries: row.get("redeliveries"),
    }
}

fn json_column(row: &AnyRow, column: &str) -> serde_json::Value {
    row.get::<Option<String>, _>(column)
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

fn uuid(row: &AnyRow, column: &str) -> Uuid {
    row.get::<String, _>(column).parse().unwrap_or_default()
}

/// RFC 3339, from milliseconds since the Unix epoch.
pub(super) fn timestamp(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map(|t| t.to_string())
        .unwrap_or_default()
}
