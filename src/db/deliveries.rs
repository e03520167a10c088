//! Recording what GitHub told us, together with the work that follows from it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use sqlx::Row as _;

use super::videos::{self, INSERT_TIMELINE, UPSERT_REQUESTS};
use super::{Db, DbError, Dialect, WAKE_CHANNEL};
use crate::domain::ids::{GitSha, VideoKey};
use crate::domain::request::Request;
use crate::domain::state::VideoState;

/// One verified delivery, as it is recorded.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// `X-GitHub-Delivery`; a redelivery carries the same.
    pub guid: String,
    /// `X-GitHub-Event`.
    pub event: String,
    /// The branch's head before the push.
    pub before: GitSha,
    /// The branch's head after the push.
    pub after: GitSha,
    /// The push's file lists may be incomplete: look at the whole tree.
    pub scan: bool,
    /// The videos it names.
    pub videos: Vec<VideoKey>,
    /// What else it names in our folder, for the person who reads the answer: `[{"path","reason"}]`.
    pub ignored: serde_json::Value,
}

/// A look at the whole tree that a delivery asked for, claimed for [`SCAN_LEASE`].
#[derive(Clone, Debug)]
pub struct Scan {
    /// The delivery that asked.
    pub guid: String,
    /// The push's head, which the tree must contain.
    pub after: GitSha,
    /// How long ago the delivery came.
    pub age: Duration,
    /// It was delivered again: rejected blobs are looked at again.
    pub redelivered: bool,
    due_at: i64,
}

/// After this time a scan that did not end is anybody's again.
pub const SCAN_LEASE: Duration = Duration::from_secs(120);

/// `$1`: JSON as [`to_json`] makes it.
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
    /// Records deliveries and asks for their videos.
    ///
    /// A GUID that is already known asks again for its videos, rejected blobs included.
    pub async fn record(&self, deliveries: &[Delivery]) -> Result<(), DbError> {
        let requests = Request::merged(deliveries.iter().flat_map(|d| {
            d.videos
                .iter()
                .map(|key| Request::pushed(*key, d.after, &d.guid))
        }));
        self.take_in(deliveries, requests).await
    }

    /// Asks for videos: what every sweep, retry and repair does.
    pub async fn request(
        &self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<(), DbError> {
        self.take_in(&[], Request::merged(requests)).await
    }

    /// All of it or nothing, in one commit and one trip to the database, which for SQLite is a thread.
    async fn take_in(
        &self,
        deliveries: &[Delivery],
        requests: BTreeMap<VideoKey, Request>,
    ) -> Result<(), DbError> {
        let mut deliveries: Vec<&Delivery> = deliveries.iter().collect();
        deliveries.sort_by(|a, b| a.guid.cmp(&b.guid));
        deliveries.dedup_by(|a, b| a.guid == b.guid);
        let json = |rows: Vec<serde_json::Value>| serde_json::Value::from(rows).to_string();
        let (statement, mut unit) = match self.dialect {
            Dialect::Postgres => (
                format!(
                    "with recorded as ({INSERT_DELIVERIES} returning guid, redeliveries),
                    asked as ({UPSERT_REQUESTS}), told as ({INSERT_TIMELINE})
                    select pg_notify('{WAKE_CHANNEL}', '')::text"
                ),
                self.unit(&self.write).await?,
            ),
            Dialect::Sqlite => (
                format!("{INSERT_DELIVERIES}; {UPSERT_REQUESTS}; {INSERT_TIMELINE}"),
                self.transaction().await?,
            ),
        };
        self.query(&statement)
            .bind(json(deliveries.into_iter().map(to_json).collect()))
            .bind(json(requests.values().map(videos::to_json).collect()))
            .execute(unit.connection())
            .await?;
        unit.commit().await?;
        for key in requests.keys() {
            self.announce(key.video_id, VideoState::Queued);
        }
        Ok(())
    }

    /// Takes the oldest scan that is due.
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
                age: Duration::from_millis(row.get::<i64, _>("age").max(0) as u64),
                redelivered: row.get::<i64, _>("redeliveries") > 0,
                due_at: row.get("scan_due_at"),
            })
        }))
    }

    /// Ends a scan (`again` is `None`) or puts it off. Does nothing if it was asked for anew meanwhile.
    pub async fn settle_scan(&self, scan: &Scan, again: Option<Duration>) -> Result<(), DbError> {
        let statement = "update video_ingest.deliveries
            set scan_due_at = case when $3 < 0 then null else {now} + $3 end
            where guid = $1 and scan_due_at = $2";
        let mut unit = self.unit(&self.write).await?;
        self.query(statement)
            .bind(scan.guid.as_str())
            .bind(scan.due_at)
            .bind(again.map_or(-1, |wait| wait.as_millis() as i64))
            .execute(unit.connection())
            .await?;
        Ok(unit.commit().await?)
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
