//! The table `deliveries`: recording deliveries together with the requests that follow from them.

use std::collections::BTreeMap;

use serde_json::json;

use super::events::INSERT_REQUESTS;
use super::heads::INSERT_HEADS;
use super::scan::REQUEST_SCAN;
use super::videos::{self, UPSERT_REQUESTS};
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
