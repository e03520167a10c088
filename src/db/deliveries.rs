//! The table `deliveries`: recording deliveries together with the requests that follow from them, and
//! reading them for the API and the status page.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::events::INSERT_REQUESTS;
use super::heads::INSERT_HEADS;
use super::scan::REQUEST_SCAN;
use super::videos::{self, UPSERT_REQUESTS};
use super::views::{PAGE_ROWS, Page, json_column, page, timestamp};
use super::{Db, DbError, Dialect, Unit, WAKE_CHANNEL};
use crate::domain::ids::{GitSha, VideoKey};
use crate::domain::request::Request;
use crate::domain::state::VideoState;

/// A verified delivery.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// `X-GitHub-Delivery`. A redelivery has the same GUID.
    pub guid: String,
    /// `X-GitHub-Event`.
    pub event: String,
    /// The branch's head before the push.
    pub before: GitSha,
    /// The branch's head after the push.
    pub after: GitSha,
    /// Whether the push's file lists may be incomplete, so that a scan is required.
    pub scan: bool,
    /// The videos that it names.
    pub videos: Vec<VideoKey>,
    /// The other files of the videos folder that it names, for troubleshooting: `[{"path","reason"}]`.
    pub ignored: serde_json::Value,
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

const SELECT_DELIVERY: &str =
    "select guid, event, received_at, before_sha, after_sha, status, scan,
    videos, ignored, redeliveries from video_ingest.deliveries";

/// Inserts deliveries, or counts a redelivery. `$1`: an array of [`to_json`].
///
/// `where true` is required by SQLite, which could not tell `on conflict` from the `on` of a join.
/// Source: "Parsing Ambiguity" in SQLite's documentation of UPSERT.
const INSERT_DELIVERIES: &str = "insert into video_ingest.deliveries
        (guid, event, before_sha, after_sha, received_at, scan, status, videos, ignored)
    select d.value ->> 'guid', d.value ->> 'event', d.value ->> 'before', d.value ->> 'after', {now},
        cast(d.value ->> 'scan' as bigint), 'accepted', d.value ->> 'videos', d.value ->> 'ignored'
    from {each}($1{jsonb}) as d
    where true
    on conflict (guid) do update set redeliveries = deliveries.redeliveries + 1";

impl Db {
    /// Records deliveries and requests their videos.
    ///
    /// A redelivery requests its videos again and forces rejected blobs to be ingested again.
    pub async fn record(&self, deliveries: &[Delivery]) -> Result<(), DbError> {
        let requests = Request::merged(deliveries.iter().flat_map(|d| {
            d.videos
                .iter()
                .map(|key| Request::pushed(*key, d.after, &d.guid))
        }));
        let unit = self.intake_unit().await?;
        self.commit_requests(unit, deliveries, requests).await
    }

    /// Requests videos without a delivery: for sweeps, scans, retries and repairs.
    pub async fn request(
        &self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<(), DbError> {
        let unit = match self.dialect {
            Dialect::Postgres => self.unit(&self.write).await?,
            Dialect::Sqlite => self.transaction().await?,
        };
        self.commit_requests(unit, &[], Request::merged(requests))
            .await
    }

    /// Commits deliveries and requests atomically, in one round trip to the database.
    async fn commit_requests(
        &self,
        mut unit: Unit,
        deliveries: &[Delivery],
        requests: BTreeMap<VideoKey, Request>,
    ) -> Result<(), DbError> {
        // One statement must not upsert a row twice. The common order prevents deadlocks between
        // concurrent commits.
        let mut deliveries: Vec<&Delivery> = deliveries.iter().collect();
        deliveries.sort_by(|a, b| a.guid.cmp(&b.guid));
        deliveries.dedup_by(|a, b| a.guid == b.guid);
        let requested: serde_json::Value = requests.values().map(videos::to_json).collect();
        let deliveries: serde_json::Value = deliveries.into_iter().map(to_json).collect();
        let statement = match self.dialect {
            // All parts of one statement see the same snapshot, so the upsert of the requests cannot read
            // the inserted deliveries from their table. It reads them from `recorded`. Postgres executes the
            // parts in reverse order. The parts that write rows shared by all pushes come first here, so they
            // run last: a delivery that waits for the lock of another row holds no lock on the shared rows.
            Dialect::Postgres => format!(
                "with named as ({INSERT_HEADS}),
                recorded as ({INSERT_DELIVERIES} returning guid, redeliveries),
                scanned as ({REQUEST_SCAN}),
                requested as ({UPSERT_REQUESTS}), noted as ({INSERT_REQUESTS})
                select pg_notify('{WAKE_CHANNEL}', '')::text"
            ),
            Dialect::Sqlite => format!(
                "{INSERT_DELIVERIES}; {UPSERT_REQUESTS}; {INSERT_REQUESTS}; {INSERT_HEADS}; {REQUEST_SCAN}"
            ),
        };
        self.query(&statement)
            .bind(deliveries.to_string())
            .bind(requested.to_string())
            .execute(unit.connection())
            .await?;
        unit.commit().await?;
        for key in requests.keys() {
            self.announce(key.video_id, VideoState::Queued);
        }
        Ok(())
    }

    /// Deliveries, newest first.
    pub async fn deliveries(&self, cursor: Option<&str>) -> Result<Page<DeliveryView>, DbError> {
        let (before_at, before_id) = before(cursor);
        let statement = format!(
            "{SELECT_DELIVERY} where (received_at, guid) < ($1, $2)
            order by received_at desc, guid desc limit $3"
        );
        let limit = PAGE_ROWS;
        let query = self
            .query(&statement)
            .bind(before_at)
            .bind(before_id)
            .bind(limit + 1);
        let rows = self.fetch_all(query).await?;
        Ok(page(&rows, limit, delivery_view, |row| {
            let (at, id): (i64, String) = (row.get("received_at"), row.get("guid"));
            format!("{at}.{id}")
        }))
    }

    /// The delivery with this GUID.
    pub async fn delivery(&self, guid: &str) -> Result<Option<DeliveryView>, DbError> {
        let statement = format!("{SELECT_DELIVERY} where guid = $1");
        // Postgres rejects text that contains NUL.
        let query = self.query(&statement).bind(guid.replace('\0', ""));
        let found = self.fetch_optional(query).await?;
        Ok(found.as_ref().map(delivery_view))
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

fn to_json(delivery: &Delivery) -> serde_json::Value {
    let videos: Vec<_> = delivery
        .videos
        .iter()
        .map(|key| json!({"lesson_id": key.lesson_id, "video_id": key.video_id}))
        .collect();
    json!({
        "guid": delivery.guid,
        "event": delivery.event,
        "before": delivery.before,
        "after": delivery.after,
        "scan": i64::from(delivery.scan),
        "videos": videos,
        "ignored": delivery.ignored,
    })
}
