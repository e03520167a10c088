//! The table `events`: the timelines of videos.

use serde_json::json;
use sqlx::Row as _;

use super::views::{EventView, timestamp};
use super::{Db, Unit};
use crate::domain::failure::Failure;
use crate::domain::ids::VideoKey;
use crate::domain::timeline::{Entry, Step};

/// The maximum number of entries that are returned per video. Older entries are omitted.
const TIMELINE_ENTRIES_MAX: i64 = 150;

/// Adds an entry for each request and delivery. `$2`: as for [`super::videos::UPSERT_REQUESTS`].
pub(super) const INSERT_REQUESTS: &str = "insert into video_ingest.events
        (video_id, lesson_id, at, seq, step, detail, delivery)
    select k.value ->> 'video_id', k.value ->> 'lesson_id', {now}, 0,
        case when k.value ->> 'source' = 'push' then 'received' else 'requested' end,
        k.value ->> 'detail', g.value ->> 'guid'
    from {each}($2{jsonb}) as k left join {each}(k.value -> 'deliveries') as g on true";

impl Db {
    /// Adds the entries of an attempt.
    pub(super) async fn insert_attempt(
        &self,
        tx: &mut Unit,
        key: VideoKey,
        entries: &[Entry],
    ) -> Result<(), sqlx::Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let statement =
            "insert into video_ingest.events (video_id, lesson_id, at, seq, step, detail, ms)
            select $1, $2, cast(s.value ->> 'at' as bigint), cast(s.value ->> 'seq' as bigint),
                s.value ->> 'step', s.value ->> 'detail', cast(s.value ->> 'ms' as bigint)
            from {each}($3{jsonb}) as s";
        let entries: serde_json::Value = entries
            .iter()
            .zip(1..)
            .map(|(entry, seq): (_, i64)| {
                json!({"at": entry.at, "seq": seq, "step": entry.step, "detail": entry.detail,
                    "ms": entry.ms})
            })
            .collect();
        self.query_for(statement, key)
            .bind(entries.to_string())
            .execute(tx.connection())
            .await?;
        Ok(())
    }

    /// Adds an entry for a failure that a sweep found.
    pub(super) async fn insert_failure(
        &self,
        tx: &mut Unit,
        key: VideoKey,
        failure: &Failure,
    ) -> Result<(), sqlx::Error> {
        let statement =
            "insert into video_ingest.events (video_id, lesson_id, at, seq, step, detail)
            values ($1, $2, {now}, 0, 'failed', $3)";
        self.query_for(statement, key)
            .bind(failure.to_string())
            .execute(tx.connection())
            .await?;
        Ok(())
    }

    /// The timeline of a video, oldest entry first, and the GUIDs of the deliveries in it.
    pub(super) async fn timeline(
        &self,
        unit: &mut Unit,
        key: VideoKey,
    ) -> Result<(Vec<EventView>, Vec<String>), sqlx::Error> {
        let statement = "select at, step, detail, ms, delivery from video_ingest.events
            where video_id = $1 and lesson_id = $2 order by at desc, seq desc limit $3";
        let events = self
            .query_for(statement, key)
            .bind(TIMELINE_ENTRIES_MAX)
            .fetch_all(unit.connection())
            .await?;
        let (mut timeline, mut deliveries) = (Vec::new(), Vec::new());
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
        Ok((timeline, deliveries))
    }
}
