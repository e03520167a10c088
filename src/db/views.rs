//! What people and pages read. Nothing here writes.

use std::collections::HashMap;

use serde::Serialize;
use sqlx::Row as _;
use sqlx::any::AnyRow;
use uuid::Uuid;

use super::{Db, DbError, Dialect};

/// The most rows that one page holds.
pub const PAGE_ROWS_MAX: i64 = 200;

/// Timeline entries that one video's answer holds; older ones are left out.
const TIMELINE_ENTRIES_MAX: i64 = 500;

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
    pub state: Option<String>,
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
    pub video_id: String,
    pub lesson_id: String,
    pub state: String,
    pub code: Option<String>,
    pub message: Option<String>,
    pub source: Option<String>,
    pub attempts: i64,
    pub size_bytes: Option<i64>,
    pub duration_ms: Option<i64>,
    pub storage_path: Option<String>,
    pub commit: Option<String>,
    pub updated_at: String,
    pub created_at: String,
}

/// One entry of a timeline.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct EventView {
    pub at: String,
    pub step: String,
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
    pub async fn videos(&self, filter: &Filter) -> Result<Page<VideoView>, DbError> {
        let limit = filter.limit.unwrap_or(50).clamp(1, PAGE_ROWS_MAX);
        let (before_at, before_id) = before(filter.cursor.as_deref());
        let sought = filter.q.as_deref().map(Sought::parse);
        let created = match self.dialect {
            Dialect::Sqlite => "a.created_at",
            Dialect::Postgres => "(extract(epoch from a.created_at) * 1000)::bigint",
        };
        let (recorded_match, pending_match) = match &sought {
            None => ("$4 = $5", "$4 = $5"),
            Some(Sought::Either(_)) => (
                "(video_id like $4 or lesson_id like $5)",
                "(a.id{text} like $4 or a.lesson_id{text} like $5)",
            ),
            Some(Sought::Both(..)) => (
                "(video_id like $4 and lesson_id like $5)",
                "(a.id{text} like $4 and a.lesson_id{text} like $5)",
            ),
        };
        let recorded_state = match filter.state.as_deref() {
            None => "$6 = ''",
            Some(_) => "state = $6",
        };
        let pending_state = "($6 = '' or $6 = 'generating')";
        let statement = format!(
            "select * from (
                select * from (
                    select {COLUMNS} from video_ingest.videos
                    where (updated_at, video_id) < ($1, $2) and {recorded_match} and {recorded_state}
                    order by updated_at desc, video_id desc limit $3) as recorded
                union all
                select * from (
                    select a.id{{text}}, a.lesson_id{{text}}, 'generating', cast(null as text),
                        r.reading || case when r.detail = '' then '' else ': ' || r.detail end,
                        cast(null as text), cast(0 as bigint), cast(null as bigint), cast(null as bigint),
                        cast(null as text), cast(null as text), {created} as updated_at, {created} as created_at
                    from lesson_assets as a left join video_ingest.readings as r on r.video_id = a.id{{text}}
                    where a.kind = 'video' and a.storage_path is null and a.mime_type not like 'error:%'
                        and ({created}, a.id{{text}}) < ($1, $2) and {pending_match} and {pending_state}
                        and not exists (select 1 from video_ingest.videos as v
                            where v.video_id = a.id{{text}} and v.lesson_id = a.lesson_id{{text}})
                    order by {created} desc, a.id desc limit $3) as pending
            ) as page order by updated_at desc, video_id desc limit $3"
        );
        let (video_pattern, lesson_pattern) = sought.map(Sought::patterns).unwrap_or_default();
        let mut unit = self.unit(&self.read).await?;
        let rows = self
            .query(&statement)
            .bind(before_at)
            .bind(before_id)
            .bind(limit + 1)
            .bind(video_pattern)
            .bind(lesson_pattern)
            .bind(storable(filter.state.as_deref().unwrap_or_default()))
            .fetch_all(unit.connection())
            .await?;
        unit.commit().await?;
        Ok(page(&rows, limit, video_view, |row| {
            let (at, id): (i64, String) = (row.get("updated_at"), row.get("video_id"));
            format!("{at}.{id}")
        }))
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
                q: Some(video_id.to_string()),
                state: Some("generating".into()),
                ..Filter::default()
            };
            let pending = self.videos(&filter).await?.items;
            let row = pending
                .into_iter()
                .find(|v| v.video_id == video_id.to_string());
            return Ok(row.map(|video| VideoDetail {
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
            .bind(video.video_id.as_str())
            .bind(video.lesson_id.as_str())
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
                step: event.get("step"),
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
    pub async fn states(&self, video_ids: &[String]) -> Result<HashMap<String, String>, DbError> {
        let statement = "select v.video_id, v.state from {each}($1{jsonb}) as k
            join video_ingest.videos as v on v.video_id = k.value ->> 'id'
            order by case when v.stored_sha is null then 0 else 1 end";
        let ids: Vec<_> = video_ids
            .iter()
            .map(|id| serde_json::json!({"id": id}))
            .collect();
        let mut unit = self.unit(&self.read).await?;
        let rows = self
            .query(statement)
            .bind(serde_json::Value::from(ids).to_string())
            .fetch_all(unit.connection())
            .await?;
        unit.commit().await?;
        let pair = |row: &AnyRow| (row.get("video_id"), row.get("state"));
        Ok(rows.iter().map(pair).collect())
    }

    /// Deliveries, newest first.
    pub async fn deliveries(&self, cursor: Option<&str>) -> Result<Page<DeliveryView>, DbError> {
        let (before_at, before_id) = before(cursor);
        let statement = "select guid, event, received_at, before_sha, after_sha, status, scan, videos, ignored, redeliveries
            from video_ingest.deliveries where (received_at, guid) < ($1, $2)
            order by received_at desc, guid desc limit $3";
        let limit = 50;
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

/// What a person who searches has pasted.
enum Sought {
    /// One id, or its beginning: a video's or a lesson's.
    Either(String),
    /// A file's name: lesson and video.
    Both(String, String),
}

impl Sought {
    fn parse(text: &str) -> Self {
        let name = text.trim().rsplit('/').next().unwrap_or_default();
        let stem = name
            .strip_suffix(".mp4")
            .or(name.strip_suffix(".json"))
            .unwrap_or(name);
        // What has a meaning in LIKE is in no id.
        let id = |part: &str| storable(&part.to_lowercase()).replace(['%', '_', '\\'], "");
        match stem.split_once('_') {
            Some((lesson, video)) => Self::Both(id(lesson), id(video)),
            None => Self::Either(id(stem)),
        }
    }

    /// LIKE patterns for the video's id and for the lesson's.
    fn patterns(self) -> (String, String) {
        match self {
            Self::Either(id) => (format!("{id}%"), format!("{id}%")),
            Self::Both(lesson, video) => (format!("{video}%"), format!("{lesson}%")),
        }
    }
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
    VideoView {
        video_id: row.get("video_id"),
        lesson_id: row.get("lesson_id"),
        state: row.get("state"),
        code: row.get("code"),
        message: row.get("message"),
        source: row.get("source"),
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

fn timestamp(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map(|t| t.to_string())
        .unwrap_or_default()
}
