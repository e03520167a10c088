//! The input of sweeps and scans: the listing, our records, the app's rows and the generation statuses.

use std::collections::{HashMap, HashSet};

use super::{Sweep, SweepError, SweepOptions};
use crate::domain::generation::GenerationStatus;
use crate::domain::ids::VideoKey;
use crate::domain::plan::Blobs;
use crate::domain::report::ServiceError;
use crate::domain::verdict::{AgentStatus, PendingRow, Record, Snapshot};
use crate::services::github::Listing;

/// The maximum number of look-ups of single videos per sweep. The next sweep continues.
const LOOKUPS_MAX: usize = 500;

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
        })
    }

    /// Looks up known videos that a truncated listing does not contain: [`LOOKUPS_MAX`] of them now, the rest
    /// in later sweeps. The oldest pending rows come first.
    async fn look_up(
        &self,
        listing: &Listing,
        pending: &[PendingRow],
        records: &HashMap<VideoKey, Record>,
        keep_cursor: bool,
    ) -> Result<Vec<(VideoKey, Blobs)>, SweepError> {
        let mut unlisted: Vec<VideoKey> = pending.iter().map(|row| row.key).collect();
        let mut recorded: Vec<VideoKey> = records.keys().copied().collect();
        recorded.sort();
        unlisted.extend(recorded);
        let mut seen = HashSet::new();
        unlisted.retain(|key| !listing.files.contains_key(key) && seen.insert(*key));
        let cursor = self.db.mark(CURSOR).await?;
        let start = cursor.and_then(|stem| unlisted.iter().position(|key| key.to_string() == stem));
        unlisted.rotate_left(start.unwrap_or(0));
        let mut found = Vec::new();
        for key in unlisted.iter().take(LOOKUPS_MAX) {
            let pair = self.github.lookup(*key, listing.head).await?;
            found.push((*key, pair.blobs()));
        }
        if keep_cursor && let Some(next) = unlisted.get(LOOKUPS_MAX) {
            self.db.set_mark(CURSOR, &next.to_string()).await?;
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
