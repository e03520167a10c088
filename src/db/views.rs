//! What people and pages read. Nothing here writes.

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

/// The most rows that one page holds.
pub const PAGE_ROWS_MAX: i64 = 200;

/// As many as one page holds unless asked otherwise.
const PAGE_ROWS: i64 = 50;

/// Of an id's beginning that many ids share, so many matches are shown by video and so many by lesson.
const BEGINNING_ROWS_MAX: i64 = 20;

/// Timeline entries that one video's answer holds; older ones are left out.
const TIMELINE_ENTRIES_MAX: i64 = 150;

/// A page of results and where the next one begins.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// Opaque; `None` on the last page.
    pub next: Option<String>,
}

/// Which videos to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// One state.
    pub state: Option<VideoState>,
    /// An id of a video or a lesson, the beginning of one, or a file name.
    pub q: Option<String>,
    /// From the page before.
    pub cursor: Option<String>,
    /// At most this many.
    pub limit: Option<i64>,
}

/// A video as the API shows it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names are the contract's")]
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
    /// Its ids.
    pub fn key(&self) -> VideoKey {
        VideoKey {
            lesson_id: self.lesson_id,
            video_id: self.video_id,
        }
    }
}

/// One entry of a timeline.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct EventView {
    pub at: String,
    #[schema(value_type = String)]
    pub step: Step,
    pub detail: String,
    pub ms: Option<i64>,
}

/// A video with everything that may be shown of it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct VideoDetail {
    #[serde(flatten)]
    pub video: VideoView,
    pub metadata: serde_json::Value,
    pub warnings: serde_json::Value,
    pub timeline: Vec<EventView>,
    pub deliveries: Vec<String>,
}

/// A delivery as the API shows it.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names are the contract's")]
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
    /// Videos, the last changed first; rows that wait for their first push are there as `generating`.
    ///
    /// However many there are, little more is read than is shown, with the index of
    /// `deploy/supabase/indexes.sql` for the app's rows.
    pub async fn videos(&self, filter: &Filter) -> Result<Page<VideoView>, DbError> {
        let limit = filter.limit.unwrap_or(PAGE_ROWS).clamp(1, PAGE_ROWS_MAX);
        let sought = match filter.q.as_deref().map(Sought::parse) {
            // What is not even the beginning of an id is in no record.
            Some(None) => return Ok(page(&[], limit, video_view, next_video)),
            sought => sought.flatten(),
        };
        let cursor = filter.cursor.as_deref().and_then(Cursor::parse);
        let recorded = self.recorded(filter, cursor.is_some(), sought);
        let pending = self.pending(cursor.is_some(), sought);
        let parts = match filter.state {
            None => format!("{recorded} union all {pending}"),
            Some(VideoState::Generating) => pending,
            Some(_) => recorded,
        };
        let statement = format!("{parts} order by sorted_at desc, video_id desc limit $1");
        let cursor = cursor.unwrap_or_default();
        let (recorded_at, recorded_id) = cursor.in_milliseconds();
        let Sought { video, lesson, .. } = sought.unwrap_or_default();
        let mut unit = self.unit(&self.read).await?;
        let rows = self
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
            .bind(sought.map_or(0, Sought::rows_max))
            .fetch_all(unit.connection())
            .await?;
        unit.commit().await?;
        Ok(page(&rows, limit, video_view, next_video))
    }

    /// The half of a page that we have records of.
    fn recorded(&self, filter: &Filter, goes_on: bool, sought: Option<Sought>) -> String {
        let videos = match sought {
            None => "video_ingest.videos".to_owned(),
            Some(Sought { both: true, .. }) => "(select * from video_ingest.videos
                where video_id between $7 and $8 and lesson_id between $9 and $10
                order by video_id limit $11) as sought"
                .to_owned(),
            Some(_) => {
                let by = |id: &str, first: u8, last: u8| {
                    format!(
                        "select * from (select {COLUMNS} from video_ingest.videos
                            where {id} between ${first} and ${last} order by {id} limit $11) as by_{id}"
                    )
                };
                let (video, lesson) = (by("video_id", 7, 8), by("lesson_id", 9, 10));
                format!("({video} union {lesson}) as sought")
            }
        };
        let state = match filter.state {
            None => "true",
            Some(_) => "state = $2",
        };
        let before = match goes_on {
            false => "true",
            true => "(updated_at, video_id) < ($3, $4)",
        };
        format!(
            "select * from (
                select {COLUMNS}, updated_at * 1000 as sorted_at from {videos}
                where {state} and {before}
                order by updated_at desc, video_id desc limit $1) as recorded"
        )
    }

    /// The half of a page that only the app knows.
    fn pending(&self, goes_on: bool, sought: Option<Sought>) -> String {
        // The app's rows have microseconds, where its database has: the order of a page is as exact.
        let (created, created_us, before) = match self.dialect {
            Dialect::Sqlite => (
                "a.created_at",
                "a.created_at * 1000",
                "(a.created_at, a.id) < ($3, $4)",
            ),
            Dialect::Postgres => (
                "(extract(epoch from a.created_at) * 1000)::bigint",
                "(extract(epoch from a.created_at) * 1000000)::bigint",
                "(a.created_at, a.id) < ('epoch'::timestamptz + $5 * interval '1 microsecond', $6::uuid)",
            ),
        };
        let before = if goes_on { before } else { "true" };
        let matches = match sought.map(|sought| sought.both) {
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
                    r.reading as code, r.detail as message,
                    cast(null as text) as source, cast(0 as bigint) as attempts,
                    cast(null as bigint) as size_bytes, cast(null as bigint) as duration_ms,
                    cast(null as text) as storage_path, cast(null as text) as commit_sha,
                    {created} as updated_at, {created} as created_at, {created_us} as sorted_at
                from lesson_assets as a left join video_ingest.readings as r on r.video_id = a.id{{text}}
                where a.kind = 'video' and a.storage_path is null and a.mime_type not like 'error:%'
                    and {before} and {matches}
                    and not exists (select 1 from video_ingest.videos as v
                        where v.video_id = a.id{{text}} and v.lesson_id = a.lesson_id{{text}})
                order by a.created_at desc, a.id desc limit $1) as pending"
        )
    }

    /// One video with its timeline; `None` if neither we nor the app know it.
    pub async fn video(&self, video_id: Uuid) -> Result<Option<VideoDetail>, DbError> {
        // A file may name a video under another lesson than its row does: the one that got further counts.
        let statement = format!(
            "select {COLUMNS}, metadata, warnings from video_ingest.videos where video_id = $1
            order by case when stored_sha is null then 1 else 0 end, code = 'row_mismatch', updated_at desc limit 1"
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
                // Of whatever lesson.
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
        let events = self
            .query(
                "select at, step, detail, ms, delivery from video_ingest.events
                where video_id = $1 and lesson_id = $2 order by at desc, seq desc limit $3",
            )
            .bind(video.video_id.to_string())
            .bind(video.lesson_id.to_string())
            .bind(TIMELINE_ENTRIES_MAX)
            .fetch_all(unit.connection())
            .await?;
        unit.commit().await?;
        let mut deliveries = Vec::new();
        let mut timeline = Vec::new();
        for event in events.iter().rev() {
            if let Some(guid) = event.get::<Option<String>, _>("delivery")
                && !deliveries.contains(&guid)
            {
                deliveries.push(guid);
            }
            timeline.push(EventView {
                at: timestamp(event.get("at")),
                step: Step::parse(&event.get::<String, _>("step")).unwrap_or(Step::Requested),
                detail: event.get("detail"),
                ms: event.get("ms"),
            });
        }
        Ok(Some(VideoDetail {
            video,
            metadata: json_column(&row, "metadata"),
            warnings: json_column(&row, "warnings"),
            timeline,
            deliveries,
        }))
    }

    /// The states of these videos, by their ids; of two records of one id, the one that got further.
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
        let ids: Vec<_> = video_ids
            .into_iter()
            .map(|id| serde_json::json!({"id": id}))
            .collect();
        let mut unit = self.unit(&self.read).await?;
        let rows = self
            .query(statement)
            .bind(serde_json::Value::from(ids).to_string())
            .fetch_all(unit.connection())
            .await?;
        unit.commit().await?;
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
        let mut unit = self.unit(&self.read).await?;
        let rows = self
            .query(statement)
            .bind(before_at)
            .bind(before_id)
            .bind(limit + 1)
            .fetch_all(unit.connection())
            .await?;
        unit.commit().await?;
        Ok(page(&rows, limit, delivery_view, |row| {
            let (at, id): (i64, String) = (row.get("received_at"), row.get("guid"));
            format!("{at}.{id}")
        }))
    }
}

/// Postgres takes a NUL in no text, not even to compare it with others.
fn storable(text: &str) -> String {
    text.replace('\0', "")
}

/// Where the page before ended; what is no cursor is the beginning.
fn before(cursor: Option<&str>) -> (i64, String) {
    cursor
        .and_then(|cursor| cursor.split_once('.'))
        .and_then(|(at, id)| Some((at.parse().ok()?, storable(id))))
        .unwrap_or((i64::MAX, String::new()))
}

/// Where a page ends: the time in microseconds since the Unix epoch, and the id, of its last video.
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

    /// The same place among records, whose times are in milliseconds.
    fn in_milliseconds(self) -> (i64, String) {
        match self.at_us.rem_euclid(1000) {
            0 => (self.at_us / 1000, self.id.to_string()),
            _ => (self.at_us.div_euclid(1000) + 1, String::new()),
        }
    }
}

/// What a person who searches has pasted: ids or their beginnings.
#[derive(Clone, Copy, Default)]
struct Sought {
    video: Ids,
    lesson: Ids,
    /// Both must match, as in a file's name; else either.
    both: bool,
}

/// All ids that begin alike.
#[derive(Clone, Copy, Default, PartialEq)]
struct Ids {
    first: Uuid,
    last: Uuid,
}

impl Sought {
    fn parse(text: &str) -> Option<Self> {
        let name = text.trim().rsplit('/').next().unwrap_or_default();
        let stem = name
            .strip_suffix(".mp4")
            .or(name.strip_suffix(".json"))
            .unwrap_or(name);
        let (lesson, video) = stem.split_once('_').unwrap_or((stem, stem));
        Some(Self {
            video: Ids::beginning_with(video)?,
            lesson: Ids::beginning_with(lesson)?,
            both: stem.contains('_'),
        })
    }

    /// How many matches are looked at.
    fn rows_max(self) -> i64 {
        match self.lesson.first == self.lesson.last {
            true => PAGE_ROWS_MAX,
            false => BEGINNING_ROWS_MAX,
        }
    }
}

impl Ids {
    fn beginning_with(text: &str) -> Option<Self> {
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
        // The two columns hold what OpenHands said last, see `pending`.
        let kind = text("code");
        let said = kind.map(|kind| {
            GenerationStatus::stored(&kind, text("message").unwrap_or_default()).sentence()
        });
        (None, said)
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

/// An id, which only we write here.
fn uuid(row: &AnyRow, column: &str) -> Uuid {
    row.get::<String, _>(column).parse().unwrap_or_default()
}

fn timestamp(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map(|t| t.to_string())
        .unwrap_or_default()
}
