//! The table `deliveries`: recording deliveries together with the requests that follow from them, and
//! claiming scans.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use sqlx::Row as _;

use super::events::INSERT_REQUESTS;
use super::videos::{self, UPSERT_REQUESTS};
use super::{Db, DbError, Dialect, WAKE_CHANNEL, duration};
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

/// A claimed scan. The claim is valid for [`SCAN_LEASE`].
#[derive(Clone, Debug)]
pub struct Scan {
    /// The delivery that requires the scan.
    pub guid: String,
    /// The head after the push. The listing must contain it.
    pub after: GitSha,
    /// The time since the delivery was received.
    pub age: Duration,
    /// Whether the delivery was redelivered. Rejected blobs are then ingested again.
    pub redelivered: bool,
    /// The end of the lease, in milliseconds since the Unix epoch. It also identifies the claim.
    due_at: i64,
}

/// The lease of a scan. It is not renewed.
pub const SCAN_LEASE: Duration = Duration::from_secs(120);

/// Inserts deliveries, or counts a redelivery and repeats its scan. `$1`: an array of [`to_json`].
///
/// `where true` is required by SQLite, which could not tell `on conflict` from the `on` of a join.
/// Source: "Parsing Ambiguity" in SQLite's documentation of UPSERT.
const INSERT_DELIVERIES: &str = "insert into video_ingest.deliveries
        (guid, event, before_sha, after_sha, received_at, scan, scan_due_at, status, videos, ignored)
    select d.value ->> 'guid', d.value ->> 'event', d.value ->> 'before', d.value ->> 'after', {now},
        cast(d.value ->> 'scan' as bigint),
        case when cast(d.value ->> 'scan' as bigint) = 1 then {now} end,
        'accepted', d.value ->> 'videos', d.value ->> 'ignored'
    from {each}($1{jsonb}) as d
    where true
    on conflict (guid) do update set
        redeliveries = deliveries.redeliveries + 1, scan_due_at = excluded.scan_due_at";

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
        self.commit_requests(deliveries, requests).await
    }

    /// Requests videos without a delivery: for sweeps, scans, retries and repairs.
    pub async fn request(
        &self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<(), DbError> {
        self.commit_requests(&[], Request::merged(requests)).await
    }

    /// Commits deliveries and requests atomically, in one round trip to the database.
    async fn commit_requests(
        &self,
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
        let (statement, mut unit) = match self.dialect {
            // All parts of one statement see the same snapshot, so the upsert of the requests cannot read
            // the inserted deliveries from their table. It reads them from `recorded`.
            Dialect::Postgres => (
                format!(
                    "with recorded as ({INSERT_DELIVERIES} returning guid, redeliveries),
                    requested as ({UPSERT_REQUESTS}), noted as ({INSERT_REQUESTS})
                    select pg_notify('{WAKE_CHANNEL}', '')::text"
                ),
                self.unit(&self.write).await?,
            ),
            Dialect::Sqlite => (
                format!("{INSERT_DELIVERIES}; {UPSERT_REQUESTS}; {INSERT_REQUESTS}"),
                self.transaction().await?,
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

    /// Claims the scan that has been due for the longest time.
    pub async fn claim_scan(&self) -> Result<Option<Scan>, DbError> {
        let statement = "update video_ingest.deliveries set scan_due_at = {now} + $1
            where guid = (
                select guid from video_ingest.deliveries where scan_due_at <= {now}
                order by scan_due_at limit 1 {skip_locked})
            returning guid, after_sha, {now} - received_at as age, redeliveries, scan_due_at";
        let mut unit = self.unit(&self.write).await?;
        let found = self
            .query(statement)
            .bind(SCAN_LEASE.as_millis() as i64)
            .fetch_optional(unit.connection())
            .await?;
        unit.commit().await?;
        Ok(found.and_then(|row| {
            Some(Scan {
                guid: row.get("guid"),
                after: row.get::<String, _>("after_sha").parse().ok()?,
                age: duration(&row, "age"),
                redelivered: row.get::<i64, _>("redeliveries") > 0,
                due_at: row.get("scan_due_at"),
            })
        }))
    }

    /// Ends a scan, or schedules the next attempt after `retry_in`.
    ///
    /// Has no effect if `scan_due_at` has changed: the delivery was redelivered, or the lease has expired
    /// and another worker has claimed the scan.
    pub async fn settle_scan(
        &self,
        scan: &Scan,
        retry_in: Option<Duration>,
    ) -> Result<(), DbError> {
        let statement = "update video_ingest.deliveries
            set scan_due_at = case when $3 < 0 then null else {now} + $3 end
            where guid = $1 and scan_due_at = $2";
        let query = self
            .query(statement)
            .bind(scan.guid.as_str())
            .bind(scan.due_at)
            .bind(retry_in.map_or(-1, |wait| wait.as_millis() as i64));
        self.execute(query).await?;
        Ok(())
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
