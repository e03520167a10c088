//! The input of sweeps and scans: the listing, our records, the app's rows and the generation statuses.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Sweep, SweepError, SweepOptions};
use crate::db::DbError;
use crate::domain::generation::GenerationStatus;
use crate::domain::ids::VideoKey;
use crate::domain::plan::Blobs;
use crate::domain::report::ServiceError;
use crate::domain::verdict::{AgentStatus, PendingRow, Record, Snapshot};
use crate::services::github::Listing;

/// The maximum number of videos that one sweep or scan looks up. The next one continues.
const LOOKUPS_MAX: usize = 50;

/// The calls of GitHub's API that one look-up takes.
const LOOKUP_CALLS: usize = 2;

/// The maximum number of calls for look-ups in [`LOOKUP_PERIOD`], by all servers together. The rest of
/// GitHub's 5,000 is for pushes.
const LOOKUP_CALLS_MAX: i64 = 1000;

/// The period of [`LOOKUP_CALLS_MAX`].
const LOOKUP_PERIOD: Duration = Duration::from_secs(3600);

/// The maximum duration of the look-ups of one sweep or scan.
const LOOKUP_TIME_MAX: Duration = Duration::from_secs(30);

/// The mark that contains the number of calls in the current period.
const CALLS: &str = "lookup_calls";

/// The mark that contains the first video of the next look-ups.
const CURSOR: &str = "lookup_cursor";

impl Sweep {
    /// The input of verdicts without the generation statuses. `keep_cursor`: whether to store the position
    /// of the look-ups.
    pub(super) async fn snapshot(
        &self,
        listing: &Listing,
        keep_cursor: bool,
    ) -> Result<Snapshot, SweepError> {
        let records = self.db.records().await?;
        let (pending, odd) = self.db.pending_rows().await?;
        for row in &odd {
            tracing::warn!(
                row.id = row.id,
                column = row.column,
                "skipped a row of lesson_assets because of an unusable value; correct it"
            );
        }
        let ready = self.db.ready_objects().await?;
        let files = listing.files.iter();
        let mut listed: HashMap<_, _> = files.map(|(key, pair)| (*key, pair.blobs())).collect();
        if !listing.complete {
            let found = self.look_up(listing, &pending, &records, keep_cursor);
            listed.extend(found.await?);
        }
        let mismatched = self.db.mismatched().await?.into_iter();
        let released = mismatched.filter(|(key, other)| {
            listed.contains_key(key) && listing.complete && !listed.contains_key(other)
        });
        Ok(Snapshot {
            released: released.map(|(key, _)| key).collect(),
            listed,
            complete: listing.complete,
            records,
            pending,
            odd: odd.into_iter().map(|row| (row.key, row.column)).collect(),
            ready: ready.into_iter().map(|object| object.key).collect(),
            changed: HashSet::new(),
        })
    }

    /// Looks up known videos that a truncated listing does not contain: [`LOOKUPS_MAX`] of them now, the rest
    /// in later sweeps. The oldest pending rows come first. A failure ends the look-ups, but not the sweep.
    async fn look_up(
        &self,
        listing: &Listing,
        pending: &[PendingRow],
        records: &HashMap<VideoKey, Record>,
        keep_cursor: bool,
    ) -> Result<Vec<(VideoKey, Blobs)>, DbError> {
        let mut unlisted: Vec<VideoKey> = pending.iter().map(|row| row.key).collect();
        let mut recorded: Vec<VideoKey> = records.keys().copied().collect();
        recorded.sort();
        unlisted.extend(recorded);
        let mut seen = HashSet::new();
        unlisted.retain(|key| !listing.files.contains_key(key) && seen.insert(*key));
        let cursor = self.db.mark(CURSOR).await?;
        let start = cursor.and_then(|stem| unlisted.iter().position(|key| key.to_string() == stem));
        unlisted.rotate_left(start.unwrap_or(0));
        let chunk = unlisted.len().min(LOOKUPS_MAX);
        let calls = chunk * LOOKUP_CALLS;
        // A dry run writes nothing, so its calls are not counted.
        if keep_cursor
            && !self
                .db
                .spend(CALLS, calls, LOOKUP_CALLS_MAX, LOOKUP_PERIOD)
                .await?
        {
            tracing::info!(
                unlisted = unlisted.len(),
                "look-ups suspended until the next hour"
            );
            return Ok(Vec::new());
        }
        let until = Instant::now() + LOOKUP_TIME_MAX;
        let mut found = Vec::new();
        let mut tried = 0;
        for key in &unlisted[..chunk] {
            tried += 1;
            match timeout_at(until, self.github.lookup(*key, listing.head)).await {
                Ok(Ok(pair)) => found.push((*key, pair.blobs())),
                Ok(Err(failure)) => {
                    tracing::warn!(video.id = %key.video_id, code = %failure.code, "look-ups ended early: {}", failure.message);
                    break;
                }
                Err(_) => {
                    tracing::warn!(video.id = %key.video_id, "look-ups ended early: GitHub responds slowly");
                    break;
                }
            }
        }
        // The failed one is skipped, so that a video that always fails does not stop the others.
        if keep_cursor && tried < unlisted.len() {
            self.db
                .set_mark(CURSOR, &unlisted[tried].to_string())
                .await?;
        }
        Ok(found)
    }

    /// The generation statuses of pending rows that have no pushed file, have not failed and are not overdue.
    /// Also returns the errors of the API.
    pub(super) async fn generation_statuses(
        &self,
        snapshot: &Snapshot,
        options: &SweepOptions,
    ) -> Result<(HashMap<VideoKey, AgentStatus>, Vec<ServiceError>), SweepError> {
        let rows: Vec<(&PendingRow, &String)> = snapshot
            .pending
            .iter()
            .filter(|row| row.failed.is_none() && row.age < self.generation_deadline)
            .filter(|row| snapshot.blobs(&row.key) == Some((None, None)))
            .filter(|row| options.includes(row.key))
            .filter_map(|row| Some((row, row.conversation_id.as_ref()?)))
            .collect();
        let Some(openhands) = self.openhands.as_ref().filter(|_| !rows.is_empty()) else {
            return Ok((HashMap::new(), Vec::new()));
        };
        let stored = self.db.statuses().await?;
        let conversations: Vec<String> = rows.iter().map(|(_, id)| (*id).clone()).collect();
        let probed = openhands.probe(&conversations).await;
        let mut reported: Vec<(VideoKey, &str, &GenerationStatus)> = Vec::new();
        let mut statuses = HashMap::new();
        for (row, conversation) in rows {
            let Some(status) = probed.statuses.get(conversation) else {
                statuses.insert(row.key, AgentStatus::Unavailable);
                continue;
            };
            let since = stored
                .get(&row.key.video_id)
                .filter(|stored| stored.conversation_id == *conversation)
                .filter(|stored| stored.status.is_same_kind(status))
                .map(|stored| stored.since);
            reported.push((row.key, conversation, status));
            let status = status.clone();
            statuses.insert(row.key, AgentStatus::Reported { status, since });
        }
        if !options.dry_run {
            self.db.keep_statuses(&reported).await?;
        }
        Ok((statuses, probed.errors))
    }
}
