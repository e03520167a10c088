//! What a sweep reads before it decides: the branch, our records, the app's rows, OpenHands.

use std::collections::{HashMap, HashSet};

use super::{Stopped, Sweep, SweepOptions};
use crate::domain::generation::GenerationStatus;
use crate::domain::ids::VideoKey;
use crate::domain::plan::Blobs;
use crate::domain::report::ServiceError;
use crate::domain::verdict::{AgentStatus, PendingRow, Record, Snapshot};
use crate::services::github::Listing;

/// Look-ups of single files in one sweep where the listing is truncated; the next sweep goes on.
const LOOKUPS_MAX: usize = 500;

/// The mark that says where a truncated listing's look-ups go on.
const CURSOR: &str = "lookup_cursor";

impl Sweep {
    /// Everything that verdicts are made of, except for what OpenHands says.
    pub(super) async fn snapshot(
        &self,
        listing: &Listing,
        keep_cursor: bool,
    ) -> Result<Snapshot, Stopped> {
        let records = self.db.records().await?;
        let pending = self.db.pending_rows().await?;
        let ready = self.db.ready_objects().await?;
        let files = listing.files.iter();
        let mut listed: HashMap<_, _> = files.map(|(key, pair)| (*key, pair.blobs())).collect();
        if !listing.complete {
            let found = self.look_up(listing, &pending, &records, keep_cursor);
            listed.extend(found.await?);
        }
        Ok(Snapshot {
            listed,
            complete: listing.complete,
            records,
            pending,
            ready: ready.into_iter().map(|object| object.key).collect(),
        })
    }

    /// What a truncated listing leaves open, file by file and the oldest rows first: [`LOOKUPS_MAX`] of
    /// them now and the rest in later sweeps.
    async fn look_up(
        &self,
        listing: &Listing,
        pending: &[PendingRow],
        records: &HashMap<VideoKey, Record>,
        keep_cursor: bool,
    ) -> Result<Vec<(VideoKey, Blobs)>, Stopped> {
        let mut open: Vec<VideoKey> = pending.iter().map(|row| row.key).collect();
        let mut recorded: Vec<VideoKey> = records.keys().copied().collect();
        recorded.sort();
        open.extend(recorded);
        let mut seen = HashSet::new();
        open.retain(|key| !listing.files.contains_key(key) && seen.insert(*key));
        let cursor = self.db.mark(CURSOR).await?;
        let start = cursor.and_then(|stem| open.iter().position(|key| key.to_string() == stem));
        open.rotate_left(start.unwrap_or(0));
        let mut found = Vec::new();
        for key in open.iter().take(LOOKUPS_MAX) {
            let pair = self.github.lookup(*key, listing.head).await?;
            found.push((*key, pair.blobs()));
        }
        if keep_cursor && let Some(next) = open.get(LOOKUPS_MAX) {
            self.db.set_mark(CURSOR, &next.to_string()).await?;
        }
        Ok(found)
    }

    /// What OpenHands says of the rows that have neither a pushed file nor a verdict, and which services
    /// did not respond.
    pub(super) async fn ask_openhands(
        &self,
        snapshot: &Snapshot,
        options: &SweepOptions,
    ) -> Result<(HashMap<VideoKey, AgentStatus>, Vec<ServiceError>), Stopped> {
        let asked: Vec<(&PendingRow, &String)> = snapshot
            .pending
            .iter()
            .filter(|row| row.failed.is_none() && row.age < self.generation_deadline)
            .filter(|row| snapshot.blobs(&row.key) == Some((None, None)))
            .filter(|row| options.includes(row.key))
            .filter_map(|row| Some((row, row.conversation_id.as_ref()?)))
            .collect();
        let Some(openhands) = self.openhands.as_ref().filter(|_| !asked.is_empty()) else {
            return Ok((HashMap::new(), Vec::new()));
        };
        let before = self.db.statuses().await?;
        let conversations: Vec<String> = asked.iter().map(|(_, id)| (*id).clone()).collect();
        let probed = openhands.probe(&conversations).await;
        let mut changed: Vec<(VideoKey, &str, &GenerationStatus)> = Vec::new();
        let mut said = HashMap::new();
        for (row, conversation) in asked {
            let Some(status) = probed.statuses.get(conversation) else {
                said.insert(row.key, AgentStatus::NoAnswer);
                continue;
            };
            let since = before
                .get(&row.key.video_id)
                .filter(|stored| stored.conversation_id == *conversation)
                .filter(|stored| stored.status.is_same_kind(status))
                .map(|stored| stored.since);
            changed.push((row.key, conversation, status));
            let status = status.clone();
            said.insert(row.key, AgentStatus::Said { status, since });
        }
        if !options.dry_run {
            self.db.keep_statuses(&changed).await?;
        }
        Ok((said, probed.errors))
    }
}
