//! Whatever a lost webhook left: the whole branch against all rows. Takes no input but the present,
//! needs no memory of webhooks, and ends in the same request as a push.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use serde::Serialize;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use uuid::Uuid;

use crate::clock::Clock;
use crate::db::{Db, DbError, PendingRow, Request, Scan, Source};
use crate::domain::failure::{Class, Code, Failure, causes};
use crate::domain::generation::GenerationStatus;
use crate::domain::ids::{FileKind, VideoKey};
use crate::domain::verdict::{self, Blobs, Facts, Record, RowState, Verdict, verdict};
use crate::pipeline::ingest::{PUSH_LAG_MAX, PUSH_LAG_WAIT};
use crate::services::github::{Freshness, Github, Listing, Pair};
use crate::services::openhands::{OpenHands, ServiceError};
use crate::services::storage::{ObjectPath, Store};
use crate::telemetry::metrics;

/// Look-ups of single files in one sweep, where the listing is truncated; the next sweep goes on.
const LOOKUPS_MAX: usize = 500;

/// Objects whose size is asked at once, when a sweep verifies.
const VERIFY_AT_ONCE: usize = 8;

/// Failures of the store in a row before a sweep leaves the rest to the next one.
const VERIFY_FAILURES_IN_A_ROW_MAX: usize = 8;

/// Between two looks at whether what was found is ready.
const WAIT_LOOK: Duration = Duration::from_millis(200);

/// After a failure of GitHub's.
const SCAN_AGAIN: Duration = Duration::from_secs(5);

/// Where a truncated listing's look-ups go on.
const CURSOR: &str = "lookup_cursor";

/// Everything a sweep touches.
#[derive(Clone)]
pub struct Sweep {
    /// Our records and the app's rows.
    pub db: Db,
    /// The branch.
    pub github: Arc<Github>,
    /// For `verify`.
    pub store: Arc<Store>,
    /// Whom to ask about generations; `None`: nobody.
    pub agent: Option<Arc<OpenHands>>,
    /// `videos`
    pub videos_dir: Arc<str>,
    /// The age at which a row without a video is failed.
    pub generation_deadline: Duration,
    /// What is older is forgotten.
    pub history_retention: Duration,
    /// Stamps the report.
    pub clock: Clock,
    /// Told when something was asked for.
    pub wake: Arc<Notify>,
    /// One sweep at a time in this process.
    pub running: Arc<Mutex<()>>,
}

/// What one sweep is asked to do.
#[derive(Clone, Debug, Default)]
pub struct SweepOptions {
    /// Write nothing.
    pub dry_run: bool,
    /// How long to wait for what was found to become ready.
    pub wait: Duration,
    /// Only this video.
    pub only: Option<Uuid>,
    /// Compare ready rows with their objects too.
    pub verify: bool,
}

/// What a sweep found. The names are the contract's, the first six the old poll's.
#[derive(Clone, Debug, Default, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the names are the contract's")]
pub struct SweepReport {
    pub checked: usize,
    pub still_generating: usize,
    pub found: usize,
    pub processed: usize,
    pub failed: usize,
    pub timestamp: String,
    pub queued: usize,
    pub waiting: usize,
    pub unknown: usize,
    pub orphans: Vec<String>,
    pub errors: Vec<ServiceError>,
    pub videos: Vec<SweptVideo>,
}

/// One video's outcome.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct SweptVideo {
    /// Its lesson.
    pub lesson_id: Uuid,
    /// Its id.
    pub video_id: Uuid,
    /// `processed`, `queued`, `generating`, `waiting`, `failed`, `unknown`.
    pub outcome: &'static str,
    /// In words.
    pub detail: String,
    /// The branch holds something new for it.
    #[serde(skip)]
    found: bool,
}

impl SweptVideo {
    fn key(&self) -> VideoKey {
        VideoKey {
            lesson_id: self.lesson_id,
            video_id: self.video_id,
        }
    }
}

/// The present, as far as verdicts need it.
struct Present {
    listed: HashMap<VideoKey, Blobs>,
    /// What is not listed is not in the branch.
    complete: bool,
    records: HashMap<VideoKey, Record>,
    pending: Vec<PendingRow>,
    ready: std::collections::HashSet<VideoKey>,
}

impl Present {
    /// What the branch holds of a video; `None`: not known.
    fn blobs(&self, key: &VideoKey) -> Option<Blobs> {
        match self.listed.get(key) {
            None if self.complete => Some((None, None)),
            found => found.copied(),
        }
    }

    fn row(&self, key: &VideoKey, pending: &HashMap<VideoKey, &PendingRow>) -> RowState {
        match pending.get(key) {
            Some(row) => RowState::Pending {
                age: row.age,
                failed: row.failed.clone(),
            },
            None if self.ready.contains(key) => RowState::Ready,
            None => RowState::Missing,
        }
    }
}

impl Sweep {
    /// The look at the whole tree that a delivery asked for. Verdicts on generations are left to the
    /// sweep; what the branch holds is asked for.
    pub async fn scan(&self, scan: &Scan) -> Result<(), DbError> {
        let result = self.scanned(scan).await;
        let again = match &result {
            Ok(()) => None,
            Err(Stopped::Db(_)) => Some(SCAN_AGAIN),
            Err(Stopped::Failure(failure)) => {
                tracing::warn!(delivery.id = scan.guid, code = %failure.code, "not scanned yet: {}", failure.message);
                Some(failure.retry_after.unwrap_or(SCAN_AGAIN))
            }
        };
        self.db.settle_scan(scan, again).await?;
        match result {
            Err(Stopped::Db(error)) => Err(error),
            _ => Ok(()),
        }
    }

    async fn scanned(&self, scan: &Scan) -> Result<(), Stopped> {
        let listing = self.github.listing(Instant::now()).await?;
        let fresh = self.github.freshness(&listing, &[scan.after]).await?;
        if fresh == Freshness::Behind && scan.age < PUSH_LAG_MAX {
            let message = "GitHub does not serve the pushed commit yet";
            return Err(Failure::new(Code::GithubUnavailable, message)
                .after(PUSH_LAG_WAIT)
                .into());
        }
        let present = self.present(&listing, None).await?;
        let pending: HashMap<_, _> = present.pending.iter().map(|row| (row.key, row)).collect();
        let mut asks = Vec::new();
        let mut adopted = Vec::new();
        for (key, listed) in &present.listed {
            let facts = Facts {
                listed: Some(*listed),
                row: present.row(key, &pending),
                record: present.records.get(key).cloned(),
                agent: verdict::Agent::NotAsked,
            };
            match verdict(&facts, self.generation_deadline) {
                Verdict::Ask(_) => {
                    asks.push(self.asked(*key, "found by the scan that a push asked for", false))
                }
                Verdict::Failed(_) | Verdict::Waiting(_)
                    if scan.redelivered && *listed != (None, None) =>
                {
                    asks.push(self.asked(*key, "the push was delivered again", true));
                }
                Verdict::Adopt => adopted.push((*key, *listed)),
                _ => {}
            }
        }
        self.write(asks, &adopted, &[]).await?;
        tracing::info!(
            delivery.id = scan.guid,
            listed = present.listed.len(),
            "scanned"
        );
        Ok(())
    }

    /// One sweep, as the contract defines it.
    ///
    /// # Errors
    /// The branch cannot be read, or our database does not answer.
    pub async fn run(&self, options: &SweepOptions) -> Result<SweepReport, Stopped> {
        let swept = self.swept(options).await;
        if !options.dry_run {
            metrics::swept(swept.as_ref().ok());
        }
        if let Err(stopped) = &swept {
            tracing::warn!(error = causes(stopped), "no sweep");
        }
        swept
    }

    async fn swept(&self, options: &SweepOptions) -> Result<SweepReport, Stopped> {
        let one_at_a_time = self.running.lock().await;
        let listing = self.github.listing(Instant::now()).await?;
        let present = self.present(&listing, Some(options)).await?;
        let pending: HashMap<_, _> = present.pending.iter().map(|row| (row.key, row)).collect();
        let mut report = SweepReport {
            timestamp: jiff::Timestamp::from_millisecond(self.clock.now_ms())
                .map(|t| t.to_string())
                .unwrap_or_default(),
            ..SweepReport::default()
        };
        if !options.dry_run {
            // Before anybody else is asked: it waits neither for the agent nor for the store.
            let pushed = self.pushed(&present, &pending, options.only);
            self.write(pushed, &[], &[]).await?;
        }
        let agent = self.ask_agent(&present, options, &mut report).await?;
        let drifted = match options.verify {
            true => self.drifted(options, &mut report).await?,
            false => HashMap::new(),
        };

        let mut keys: Vec<VideoKey> = present.pending.iter().map(|row| row.key).collect();
        keys.extend(
            present
                .listed
                .keys()
                .filter(|key| !pending.contains_key(*key)),
        );
        keys.extend(
            drifted
                .keys()
                .filter(|key| !present.listed.contains_key(*key) && !pending.contains_key(*key)),
        );
        keys.retain(|key| options.only.is_none_or(|only| key.video_id == only));

        let (mut asks, mut adopted, mut verdicts) = (Vec::new(), Vec::new(), Vec::new());
        for key in keys {
            let known = present.blobs(&key);
            let listed = known.unwrap_or_default();
            let row = present.row(&key, &pending);
            if row == RowState::Missing {
                let names = [(listed.0, FileKind::Video), (listed.1, FileKind::Metadata)];
                let present = names.iter().filter(|(blob, _)| blob.is_some());
                report.orphans.extend(
                    present
                        .map(|(_, kind)| format!("{}/{}", self.videos_dir, key.file_name(*kind))),
                );
            }
            let record = present.records.get(&key);
            let facts = Facts {
                listed: known,
                row,
                record: record.cloned(),
                agent: agent.get(&key).cloned().unwrap_or(verdict::Agent::NotAsked),
            };
            let mut decided = verdict(&facts, self.generation_deadline);
            if let Some(reason) = drifted.get(&key)
                && matches!(decided, Verdict::Settled | Verdict::Adopt)
            {
                decided = match listed.0 {
                    Some(_) => Verdict::Ask(reason),
                    None => Verdict::Failed(format!(
                        "{reason}, and the branch has no file to replace it: push the video again"
                    )),
                };
            }
            let (outcome, detail) = match decided {
                Verdict::Ask(reason) => {
                    if drifted.contains_key(&key) {
                        asks.push(self.asked(key, reason, true));
                    }
                    ("queued", reason.to_owned())
                }
                Verdict::Busy => ("queued", "already queued or running".to_owned()),
                Verdict::Adopt => {
                    adopted.push((key, listed));
                    continue;
                }
                Verdict::Settled => continue,
                Verdict::Waiting(detail) => ("waiting", detail),
                Verdict::Generating(detail) => ("generating", detail),
                Verdict::Failed(detail) => ("failed", detail),
                Verdict::Unknown(detail) => ("unknown", detail),
                Verdict::Fail(code, message) => {
                    verdicts.push((key, record, Failure::new(code, message.as_str())));
                    ("failed", message)
                }
            };
            report.videos.push(SweptVideo {
                lesson_id: key.lesson_id,
                video_id: key.video_id,
                outcome,
                detail,
                found: outcome == "queued",
            });
        }
        report.orphans.sort();
        if !options.dry_run {
            self.write(asks, &adopted, &verdicts).await?;
            // Whoever waits for videos keeps nobody else from sweeping.
            drop(one_at_a_time);
            self.wait_for(&mut report, options.wait).await?;
            self.db.prune(self.history_retention).await?;
        }
        count(&mut report);
        if !options.dry_run && options.only.is_none() {
            let counted = serde_json::json!({
                "checked": report.checked, "found": report.found, "failed": report.failed,
                "generating": report.still_generating, "errors": report.errors.len(),
            });
            self.db.note_sweep(&counted).await?;
        }
        tracing::info!(
            checked = report.checked,
            found = report.found,
            processed = report.processed,
            failed = report.failed,
            generating = report.still_generating,
            dry_run = options.dry_run,
            "swept"
        );
        Ok(report)
    }

    /// What is to be asked for whatever the agent and the store say.
    fn pushed(
        &self,
        present: &Present,
        pending: &HashMap<VideoKey, &PendingRow>,
        only: Option<Uuid>,
    ) -> Vec<Request> {
        let listed = present.listed.iter();
        let listed = listed.filter(|(key, _)| only.is_none_or(|only| key.video_id == only));
        let ask = |(key, listed): (&VideoKey, &Blobs)| {
            let facts = Facts {
                listed: Some(*listed),
                row: present.row(key, pending),
                record: present.records.get(key).cloned(),
                agent: verdict::Agent::NotAsked,
            };
            match verdict(&facts, self.generation_deadline) {
                Verdict::Ask(reason) => Some(self.asked(*key, reason, false)),
                _ => None,
            }
        };
        listed.filter_map(ask).collect()
    }

    async fn present(
        &self,
        listing: &Listing,
        options: Option<&SweepOptions>,
    ) -> Result<Present, Stopped> {
        let records = self.db.records().await?;
        let pending = self.db.pending_rows().await?;
        let ready = self
            .db
            .ready_objects()
            .await?
            .into_iter()
            .map(|object| object.key)
            .collect();
        let blobs = |pair: &Pair| (pair.mp4.map(|e| e.sha), pair.json.map(|e| e.sha));
        let mut listed: HashMap<_, _> = listing
            .files
            .iter()
            .map(|(key, pair)| (*key, blobs(pair)))
            .collect();
        if !listing.complete {
            let dry_run = options.is_some_and(|options| options.dry_run);
            for (key, found) in self.look_up(listing, &pending, &records, dry_run).await? {
                listed.insert(key, found);
            }
        }
        Ok(Present {
            listed,
            complete: listing.complete,
            records,
            pending,
            ready,
        })
    }

    /// What a truncated listing leaves open: file by file, the oldest rows first, some of them in
    /// this sweep and the rest in the next ones.
    async fn look_up(
        &self,
        listing: &Listing,
        pending: &[PendingRow],
        records: &HashMap<VideoKey, Record>,
        dry_run: bool,
    ) -> Result<Vec<(VideoKey, Blobs)>, Stopped> {
        let mut open: Vec<VideoKey> = pending.iter().map(|row| row.key).collect();
        let mut recorded: Vec<VideoKey> = records.keys().copied().collect();
        recorded.sort();
        open.extend(recorded);
        let mut seen = std::collections::HashSet::new();
        open.retain(|key| !listing.files.contains_key(key) && seen.insert(*key));
        let start = match self.db.mark(CURSOR).await? {
            Some(stem) => open
                .iter()
                .position(|key| key.to_string() == stem)
                .unwrap_or(0),
            None => 0,
        };
        open.rotate_left(start);
        let mut found = Vec::new();
        for key in open.iter().take(LOOKUPS_MAX) {
            let pair = self.github.lookup(*key, listing.head).await?;
            found.push((*key, (pair.mp4.map(|e| e.sha), pair.json.map(|e| e.sha))));
        }
        if !dry_run && let Some(next) = open.get(LOOKUPS_MAX) {
            self.db.set_mark(CURSOR, &next.to_string()).await?;
        }
        Ok(found)
    }

    /// What the agent says of the rows that have neither a pushed file nor a verdict.
    async fn ask_agent(
        &self,
        present: &Present,
        options: &SweepOptions,
        report: &mut SweepReport,
    ) -> Result<HashMap<VideoKey, verdict::Agent>, Stopped> {
        let Some(agent) = &self.agent else {
            return Ok(HashMap::new());
        };
        let asked: Vec<(&PendingRow, &String)> = present
            .pending
            .iter()
            .filter(|row| row.failed.is_none() && row.age < self.generation_deadline)
            .filter(|row| present.blobs(&row.key) == Some((None, None)))
            .filter(|row| options.only.is_none_or(|only| row.key.video_id == only))
            .filter_map(|row| Some((row, row.conversation_id.as_ref()?)))
            .collect();
        if asked.is_empty() {
            return Ok(HashMap::new());
        }
        let before = self.db.statuses().await?;
        let conversations: Vec<String> = asked.iter().map(|(_, id)| (*id).clone()).collect();
        let probed = agent.probe(&conversations).await;
        report.errors.extend(probed.errors);
        let mut kept = Vec::new();
        let mut said = HashMap::new();
        for (row, conversation) in asked {
            let Some(reading) = probed.statuses.get(conversation) else {
                said.insert(row.key, verdict::Agent::NoAnswer);
                continue;
            };
            let since = before
                .get(&row.key.video_id)
                .filter(|stored| stored.conversation_id == *conversation)
                .filter(|stored| stored.reading == reading.as_str())
                .map(|stored| stored.since);
            let detail = match reading {
                GenerationStatus::Failed { reason } | GenerationStatus::Unknown { reason } => {
                    reason.clone()
                }
                GenerationStatus::Generating | GenerationStatus::Finished => String::new(),
            };
            kept.push((
                row.key.video_id,
                conversation.clone(),
                reading.as_str().to_owned(),
                detail,
            ));
            said.insert(
                row.key,
                verdict::Agent::Said {
                    reading: reading.clone(),
                    since,
                },
            );
        }
        if !options.dry_run {
            self.db.keep_statuses(&kept).await?;
        }
        Ok(said)
    }

    /// Ready rows whose object is missing or of another size.
    async fn drifted(
        &self,
        options: &SweepOptions,
        report: &mut SweepReport,
    ) -> Result<HashMap<VideoKey, &'static str>, Stopped> {
        let objects = self.db.ready_objects().await?.into_iter();
        let objects = objects.filter(|o| options.only.is_none_or(|only| o.key.video_id == only));
        let mut looked = stream::iter(objects)
            .map(async |object| {
                let Some(path) = ObjectPath::from_stored(&object.bucket, &object.path) else {
                    return Ok(Some((object.key, "its storage path is not one of ours")));
                };
                let info = self.store.info(&path).await?;
                Ok::<_, Failure>(match (info, object.size) {
                    (None, _) => Some((object.key, "its object is missing in the store")),
                    (Some(info), Some(size)) if info.size != size => {
                        Some((object.key, "its object is of another size in the store"))
                    }
                    _ => None,
                })
            })
            .buffer_unordered(VERIFY_AT_ONCE);
        let mut drifted = HashMap::new();
        let mut failures_in_a_row = 0;
        while failures_in_a_row < VERIFY_FAILURES_IN_A_ROW_MAX
            && let Some(result) = looked.next().await
        {
            match result {
                Ok(found) => {
                    failures_in_a_row = 0;
                    drifted.extend(found);
                }
                Err(failure) => {
                    failures_in_a_row += 1;
                    let error = ServiceError {
                        service: "storage",
                        code: failure.code.as_str(),
                    };
                    if !report.errors.contains(&error) {
                        report.errors.push(error);
                    }
                }
            }
        }
        Ok(drifted)
    }

    fn asked(&self, key: VideoKey, reason: &str, forced: bool) -> Request {
        let mut request = Request::asked(key, Source::Sweep, reason);
        request.forced = forced;
        request
    }

    async fn write(
        &self,
        asks: Vec<Request>,
        adopted: &[(VideoKey, Blobs)],
        verdicts: &[(VideoKey, Option<&Record>, Failure)],
    ) -> Result<(), Stopped> {
        if !adopted.is_empty() {
            self.db.adopt(adopted).await?;
        }
        for (key, seen, failure) in verdicts {
            debug_assert_eq!(failure.code.class(), Class::Expired);
            self.db.give_verdict(*key, *seen, failure).await?;
            tracing::warn!(video.id = %key.video_id, code = %failure.code, "failed: {}", failure.message);
        }
        if !asks.is_empty() {
            self.db.request(asks).await?;
            self.wake.notify_waiters();
        }
        Ok(())
    }

    /// Waits for what was queued, then says what became of it.
    async fn wait_for(&self, report: &mut SweepReport, wait: Duration) -> Result<(), Stopped> {
        let queued: Vec<VideoKey> = report
            .videos
            .iter()
            .filter(|video| video.outcome == "queued")
            .map(SweptVideo::key)
            .collect();
        if queued.is_empty() || wait.is_zero() {
            return Ok(());
        }
        let until = Instant::now() + wait;
        while Instant::now() < until && self.db.count_busy(&queued).await? > 0 {
            tokio::time::sleep(WAIT_LOOK).await;
        }
        let records = self.db.records().await?;
        for video in report
            .videos
            .iter_mut()
            .filter(|video| video.outcome == "queued")
        {
            let key = video.key();
            let Some(record) = records.get(&key) else {
                continue;
            };
            let outcome = match record.state.as_str() {
                "ready" => "processed",
                "failed" => "failed",
                "waiting" => "waiting",
                _ => continue,
            };
            video.outcome = outcome;
            video.detail = match outcome {
                "processed" => "ready".to_owned(),
                _ => record.message.clone(),
            };
            if outcome == "processed" {
                // Its row has come since, or was made.
                for kind in [FileKind::Video, FileKind::Metadata] {
                    let file = format!("{}/{}", self.videos_dir, key.file_name(kind));
                    report.orphans.retain(|orphan| *orphan != file);
                }
            }
        }
        Ok(())
    }
}

fn count(report: &mut SweepReport) {
    let of = |outcome: &str| {
        report
            .videos
            .iter()
            .filter(|v| v.outcome == outcome)
            .count()
    };
    report.checked = report.videos.len();
    report.still_generating = of("generating");
    report.processed = of("processed");
    report.queued = of("queued");
    report.waiting = of("waiting");
    report.failed = of("failed");
    report.unknown = of("unknown");
    let was_found = |v: &&SweptVideo| v.found && v.outcome != "waiting";
    report.found = report.videos.iter().filter(was_found).count();
}

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// Our database did not answer.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The branch cannot be read.
    #[error(transparent)]
    Failure(#[from] Failure),
}
