//! Deletes old history from all tables.

use std::time::Duration;

use super::{Db, DbError, Dialect};

/// The maximum number of rows that one statement deletes, so that none blocks other writers for long.
const PRUNE_ROWS: i64 = 5000;

impl Db {
    /// Deletes deliveries, timeline entries, hourly counts and former heads that are older than `retention`,
    /// and the generation statuses of rows that are ready or were deleted. Leaves rows that another replica is
    /// deleting.
    pub async fn prune(&self, retention: Duration) -> Result<(), DbError> {
        // The table `events` has no primary key. The name of the physical row id differs.
        let (events_id, statuses_where) = match self.dialect {
            Dialect::Sqlite => ("rowid", "lesson_assets.id = statuses.video_id"),
            Dialect::Postgres => ("ctid", "lesson_assets.id = statuses.video_id::uuid"),
        };
        let events = format!(
            "delete from video_ingest.events where {events_id} in (
                select {events_id} from video_ingest.events where at < {{now}} - $1 limit $2 {{skip_locked}})"
        );
        let deliveries = "delete from video_ingest.deliveries where guid in (
                select guid from video_ingest.deliveries
                where received_at < {now} - $1 limit $2 {skip_locked})";
        let hours = "delete from video_ingest.hours where (hour, what, bucket) in (
                select hour, what, bucket from video_ingest.hours where hour < {now} - $1 limit $2 {skip_locked})";
        let heads = "delete from video_ingest.heads where sha in (
                select sha from video_ingest.heads where first_seen_at < {now} - $1
                    and coalesce(accepted_at, 0) < (
                        select coalesce(max(accepted_at), 1) from video_ingest.heads)
                limit $2 {skip_locked})";
        let statuses = format!(
            "delete from video_ingest.statuses where video_id in (
                select video_id from video_ingest.statuses where not exists (
                    select 1 from lesson_assets where {statuses_where} and storage_path is null)
                {{skip_locked}})"
        );
        for statement in [events.as_str(), deliveries, heads, hours] {
            loop {
                let query = self
                    .query(statement)
                    .bind(retention.as_millis() as i64)
                    .bind(PRUNE_ROWS);
                if self.execute(query).await? < PRUNE_ROWS as u64 {
                    break;
                }
            }
        }
        self.execute(self.query(&statuses)).await?;
        Ok(())
    }
}
