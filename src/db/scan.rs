//! The table `scan`: the single scan that is shared by all pushes whose file lists may be incomplete.
//!
//! As in [`super::videos`], `requested` counts the requests, and `observed` is the count that the last
//! completed scan served. One scan serves all requests that were made before it began.

use std::time::Duration;

use sqlx::Row as _;
use tokio::time::Instant;

use super::{Db, DbError, duration};

/// The lease of a scan. It is not renewed: [`SCAN_TIMEOUT`] ends a scan before it expires.
const SCAN_LEASE: Duration = Duration::from_secs(120);

/// The longest time that a scan may take. If it is aborted, the next scan continues its look-ups.
pub const SCAN_TIMEOUT: Duration = Duration::from_secs(100);

/// The shortest time between the end of a scan and the next one.
pub const SCAN_DISTANCE: Duration = Duration::from_secs(5);

/// Requests a scan if one of the deliveries requires it. `$1`: an array of deliveries; `{recorded}`: the
/// recorded ones. `ended_at` may be in the future if the clock was set back.
pub(super) const REQUEST_SCAN: &str = "update video_ingest.scan set
        requested = requested + 1, requested_at = {now},
        forced = case when forced = 1 or exists (
            select 1 from {each}($1{jsonb}) as d
            join {recorded} as recorded on recorded.guid = d.value ->> 'guid'
            where cast(d.value ->> 'scan' as bigint) = 1 and recorded.redeliveries > 0) then 1 else 0 end,
        due_at = case
            when due_at is not null then due_at
            when ended_at between {now} - {distance} and {now} then ended_at + {distance}
            else {now} end
    where exists (
        select 1 from {each}($1{jsonb}) as d where cast(d.value ->> 'scan' as bigint) = 1)";

/// A claimed scan. The claim is valid for two minutes.
#[derive(Clone, Debug)]
pub struct Scan {
    token: String,
    /// The count of requests that this scan serves.
    requested: i64,
    /// The time of the last request, or slightly later. The listing must have begun after it.
    pub requested_at: Instant,
    /// Whether a delivery was redelivered. Rejected blobs are then ingested again.
    pub redelivered: bool,
}

impl Db {
    /// Requests a scan after `wait`, at most two minutes, or with the next one that is due earlier.
    pub async fn request_scan(&self, wait: Duration) -> Result<(), DbError> {
        let statement =
            "update video_ingest.scan set requested = requested + 1, requested_at = {now},
            due_at = coalesce(due_at, {now} + $1)";
        let wait = wait.min(SCAN_LEASE).as_millis() as i64;
        self.execute(self.query(statement).bind(wait)).await?;
        Ok(())
    }

    /// Claims the scan if it is due.
    pub async fn claim_scan(&self) -> Result<Option<Scan>, DbError> {
        // A time further ahead than any lease means that the clock was set back.
        let statement = "update video_ingest.scan set due_at = {now} + $1, lease_token = $2
            where id in (select id from video_ingest.scan
                where due_at is not null and due_at not between {now} + 1 and {now} + $1 {skip_locked})
            returning requested, forced, {now} - requested_at as requested_ago";
        let token = uuid::Uuid::new_v4().simple().to_string();
        let mut unit = self.unit(&self.write).await?;
        let found = self
            .query(statement)
            .bind(SCAN_LEASE.as_millis() as i64)
            .bind(token.as_str())
            .fetch_optional(unit.connection())
            .await?;
        unit.commit().await?;
        let now = Instant::now();
        Ok(found.map(|row| Scan {
            token,
            requested: row.get("requested"),
            requested_at: now
                .checked_sub(duration(&row, "requested_ago"))
                .unwrap_or(now),
            redelivered: row.get::<i64, _>("forced") == 1,
        }))
    }

    /// Ends a scan, or schedules it again after `retry_in`, at most two minutes. If a scan was requested
    /// after this one began, the next one is due after [`SCAN_DISTANCE`].
    ///
    /// Has no effect if the claim is no longer valid.
    pub async fn settle_scan(
        &self,
        scan: &Scan,
        retry_in: Option<Duration>,
    ) -> Result<(), DbError> {
        let statement = "update video_ingest.scan set
                observed = case when $3 < 0 then $2 else observed end,
                forced = case when $3 < 0 and requested = $2 then 0 else forced end,
                due_at = case
                    when $3 >= 0 then {now} + $3
                    when requested > $2 then {now} + {distance} end,
                ended_at = {now}, lease_token = null
            where lease_token = $1";
        let query = self
            .query(statement)
            .bind(scan.token.as_str())
            .bind(scan.requested)
            .bind(retry_in.map_or(-1, |wait| wait.min(SCAN_LEASE).as_millis() as i64));
        self.execute(query).await?;
        Ok(())
    }
}
