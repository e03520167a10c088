//! The generation statuses that OpenHands last reported for pending rows.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Db, DbError, duration};
use crate::domain::generation::GenerationStatus;
use crate::domain::ids::VideoKey;

/// A status that is reported again unchanged is written at most this often: `at` is the time of the last
/// report, less up to this long.
const UNCHANGED_EVERY: Duration = Duration::from_secs(60);

/// The status that OpenHands last reported for a pending row.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredStatus {
    /// The status.
    pub status: GenerationStatus,
    /// The conversation that it belongs to. A row's conversation changes when its video is generated
    /// again.
    pub conversation_id: String,
    /// The time since this status was first reported.
    pub since: Duration,
}

impl Db {
    /// The last reported statuses, by video.
    pub async fn statuses(&self) -> Result<HashMap<Uuid, StoredStatus>, DbError> {
        let statement = "select video_id, status, detail, conversation_id, {now} - first_at as since from video_ingest.statuses";
        let rows = self.fetch_all(self.query(statement)).await?;
        Ok(rows
            .iter()
            .filter_map(|row| {
                let id: Uuid = row.get::<String, _>("video_id").parse().ok()?;
                let kind: String = row.get("status");
                let stored = StoredStatus {
                    status: GenerationStatus::from_stored(&kind, row.get("detail")),
                    conversation_id: row.get("conversation_id"),
                    since: duration(row, "since"),
                };
                Some((id, stored))
            })
            .collect())
    }

    /// Stores the statuses of these videos' conversations.
    pub async fn keep_statuses(
        &self,
        statuses: &[(VideoKey, &str, &GenerationStatus)],
    ) -> Result<(), DbError> {
        if statuses.is_empty() {
            return Ok(());
        }
        // `first_at` survives a new reason, but not a new status or conversation: a failure must be
        // reported twice for the same conversation before it counts. A time in the future, recorded before
        // the clock was set back, counts as now. The last `where` avoids most writes if nothing has changed,
        // which is the common case.
        let statement = "insert into video_ingest.statuses as statuses
                (video_id, conversation_id, status, detail, first_at, at)
            select k.value ->> 'video_id', k.value ->> 'conversation_id', k.value ->> 'status',
                k.value ->> 'detail', {now}, {now}
            from {each}($1{jsonb}) as k where true
            on conflict (video_id) do update set
                conversation_id = excluded.conversation_id, status = excluded.status,
                detail = excluded.detail, at = excluded.at,
                first_at = case when statuses.status = excluded.status
                    and statuses.conversation_id = excluded.conversation_id
                    and statuses.first_at <= {now}
                    then statuses.first_at else excluded.first_at end
            where statuses.status <> excluded.status or statuses.detail <> excluded.detail
                or statuses.conversation_id <> excluded.conversation_id or statuses.first_at > {now}
                or statuses.at not between {now} - $2 and {now}";
        // Replicas that sweep at the same time write the same rows. A common order prevents deadlocks.
        let mut statuses: Vec<_> = statuses.iter().collect();
        statuses.sort_by_key(|(key, ..)| key.video_id);
        let rows: serde_json::Value = statuses
            .iter()
            .map(|(key, conversation, status)| {
                json!({"video_id": key.video_id, "conversation_id": conversation,
                    "status": status.as_str(), "detail": status.reason()})
            })
            .collect();
        let unchanged_ms = UNCHANGED_EVERY.as_millis() as i64;
        let query = self.query(statement).bind(rows.to_string());
        self.execute(query.bind(unchanged_ms)).await?;
        Ok(())
    }
}
