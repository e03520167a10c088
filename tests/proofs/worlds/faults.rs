//! What is broken for a while, and how it is repaired.

use std::collections::HashMap;
use std::time::Duration;

use video_ingest::domain::failure::Code;

use super::model::{BUCKET_LIMIT, BUCKETS, World};
use crate::month::swap_store;
use crate::support::fake_github;
use crate::support::fake_storage::{self, Answer, Op};

/// Below the size of the largest clip, in bytes.
const LOW_LIMIT: u64 = 8_000;
/// How long a look-up of a single file takes while listings are truncated. Real time.
const LOOKUP_TIME: Duration = Duration::from_millis(2);
/// After a late commit, the object may be an older version for so long.
const REPAIR_MAX: Duration = Duration::from_secs(30 * 60);

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Reads of the head are stale, longer than two minutes after the push if `long`.
    Stale {
        long: bool,
    },
    /// Comparisons of commits fail with this status.
    Compare(u16),
    GithubDown,
    /// The LFS quota is used up.
    LfsQuota,
    /// Listings are truncated after so many entries.
    Truncated(usize),
    StorageDown,
    StorageQuota,
    StoragePaused,
    StorageKey,
    /// The limit, the types or the existence of a bucket.
    Limit(usize),
    Types(usize),
    Gone(usize),
    /// The app's rows cannot be updated.
    RowDenied,
    /// An upload of this video was not answered. It is committed at the end.
    CommitLate(usize),
}

#[derive(Default)]
pub struct Faults {
    active: Vec<(Fault, Duration)>,
    rows_denied: bool,
    store_away: bool,
    /// Until when the object of a video may be older than its row.
    late_until: HashMap<usize, Duration>,
    /// When the server last did everything that was due.
    pub worked_at: Duration,
    refused: u64,
    /// The status of failing comparisons.
    pub compare: Option<u16>,
    /// A service was down for more than a day.
    pub long_outage: bool,
    /// The clock was set back.
    pub set_back: bool,
}

impl Faults {
    pub fn is(&self, fault: impl Fn(Fault) -> bool) -> bool {
        self.active.iter().any(|(active, _)| fault(*active))
    }

    pub fn any(&self) -> bool {
        !self.active.is_empty()
    }

    /// Whether the head may be an old one, and not only shortly after a push.
    pub fn long_stale(&self) -> bool {
        self.is(|fault| fault == Fault::Stale { long: true })
    }

    /// Whether a sweep cannot, or need not, read the head.
    pub fn hides_head(&self) -> bool {
        let hides = |fault| {
            matches!(
                fault,
                // A head that cannot be compared is doubted.
                Fault::Stale { .. } | Fault::Compare(_) | Fault::GithubDown
            )
        };
        self.is(hides)
    }

    /// Whether the test itself does not see the objects.
    pub fn hides_objects(&self) -> bool {
        self.store_away
    }

    /// Whether the object of a video may be older than its row, because an upload of it was committed late.
    /// While its attempts fail, no attempt can repair it.
    pub fn late_upload(&self, video: usize, fails: bool) -> bool {
        let until = self.late_until.get(&video);
        until.is_some_and(|until| fails || self.worked_at < *until) || self.holds_upload(video)
    }

    pub fn holds_upload(&self, video: usize) -> bool {
        self.is(|fault| fault == Fault::CommitLate(video))
    }

    /// The object of a video is the right one.
    pub fn is_repaired(&mut self, video: usize) {
        self.late_until.remove(&video);
    }
}

impl World {
    /// Breaks something for a while.
    pub async fn begin_fault(&mut self, fault: Fault, time: Duration) {
        self.note(format!("{fault:?} for {} s", time.as_secs()));
        self.faults.active.push((fault, self.elapsed + time));
        self.apply_faults().await;
    }

    /// Ends the faults whose time is over, or all but those that are for good.
    pub async fn end_faults(&mut self, all: bool) {
        let active = std::mem::take(&mut self.faults.active);
        let (ended, active) = active.into_iter().partition::<Vec<_>, _>(|(_, until)| {
            (all && *until < Duration::MAX / 2) || *until <= self.elapsed
        });
        self.faults.active = active;
        if ended.is_empty() {
            return;
        }
        let held = ended.iter().filter_map(|(fault, _)| match fault {
            Fault::CommitLate(video) => Some(*video),
            _ => None,
        });
        let held: Vec<_> = held.collect();
        if !held.is_empty() {
            self.commit_held(held);
        }
        for (fault, _) in ended {
            self.note(format!("end of {fault:?}"));
            match fault {
                Fault::Stale { long } => {
                    if long {
                        // The server has stopped waiting for the newer head: only a sweep finds it. It may
                        // have published the older one since the last check: a head that was served for two
                        // minutes is accepted.
                        for video in &mut self.videos {
                            (video.lost, video.floor) = (true, 0);
                        }
                    }
                    self.t.github.serve_head(None);
                    self.t.github.serve_stale_head(self.t.github.head(), []);
                }
                Fault::StorageQuota | Fault::StoragePaused | Fault::StorageKey => {
                    let refused = self.t.storage.refused();
                    if refused > self.faults.refused {
                        self.faults.refused = refused;
                        self.occurred(match fault {
                            Fault::StorageQuota => "storage-quota",
                            Fault::StoragePaused => "storage-paused",
                            _ => "storage-key",
                        });
                    }
                }
                _ => {}
            }
        }
        self.apply_faults().await;
    }

    /// Commits all uploads that are held.
    fn commit_held(&mut self, videos: Vec<usize>) {
        self.t.storage.clear_faults();
        if self.t.storage.commit_held() == 0 {
            return;
        }
        self.occurred("late-upload");
        let until = self.elapsed + REPAIR_MAX;
        let others = (0..self.videos.len()).filter(|other| self.faults.holds_upload(*other));
        let late: Vec<_> = others.chain(videos).collect();
        self.faults
            .late_until
            .extend(late.iter().map(|video| (*video, until)));
    }

    async fn apply_faults(&mut self) {
        let status = |code: u16, body: &str| fake_github::Fault::Status {
            code,
            headers: Vec::new(),
            body: body.to_owned(),
        };
        let github = &self.t.github;
        github.clear_faults();
        github.truncate_trees_at(100_000);
        self.faults.compare = None;
        let mut answer = None;
        let (mut key, mut denied, mut down) = (false, false, false);
        for (fault, _) in &self.faults.active {
            match *fault {
                Fault::GithubDown => github.fault(|_| true, status(503, "")),
                Fault::Compare(code) => {
                    self.faults.compare = Some(code);
                    let body = r#"{"message":"Server Error"}"#;
                    github.fault(|call| call.path.contains("/compare/"), status(code, body));
                }
                Fault::LfsQuota => {
                    let body = r#"{"message":"This repository is over its data quota. Account responsible for LFS bandwidth should purchase more data packs to restore access."}"#;
                    github.fault(
                        |call| call.path.ends_with("/objects/batch"),
                        status(403, body),
                    );
                }
                Fault::Truncated(entries) => {
                    github.truncate_trees_at(entries);
                    let slow = fake_github::Fault::Delay(LOOKUP_TIME);
                    github.fault(|call| call.path.contains("/contents/"), slow);
                }
                Fault::StorageQuota => {
                    let body = r#"{"message":"Service for this project is restricted due to the following violations: exceed_storage_size_quota."}"#;
                    answer = Some(Answer::new(402, "application/json", body));
                }
                Fault::StoragePaused => {
                    answer = Some(Answer::new(540, "text/html", "Project paused"));
                }
                Fault::StorageDown => down = true,
                Fault::StorageKey => key = true,
                Fault::RowDenied => denied = true,
                _ => {}
            }
        }
        self.t.storage.refuse(answer);
        self.t.storage.reject_key(key);
        for (at, name) in BUCKETS.iter().enumerate() {
            let types: &[&str] = match self.faults.is(|fault| fault == Fault::Types(at)) {
                true => &["audio/mpeg"],
                false => &["video/mp4"],
            };
            let limit = match self.faults.is(|fault| fault == Fault::Limit(at)) {
                true => LOW_LIMIT,
                false => BUCKET_LIMIT,
            };
            self.t.storage.create_bucket(name, Some(limit), Some(types));
            if self.faults.is(|fault| fault == Fault::Gone(at)) {
                self.t.storage.remove_bucket(name);
            }
        }
        self.set_store_down(down);
        self.deny_rows(denied).await;
        self.excuse();
    }

    fn set_store_down(&mut self, down: bool) {
        if self.postgres() {
            self.t.storage.set_down(down);
        } else if down != self.faults.store_away {
            let (from, to) = if down {
                ("store", "away")
            } else {
                ("away", "store")
            };
            swap_store(self.t.data_dir(), from, to);
            self.faults.store_away = down;
        }
    }

    async fn deny_rows(&mut self, denied: bool) {
        if denied == self.faults.rows_denied {
            return;
        }
        self.faults.rows_denied = denied;
        let statement = match (self.postgres(), denied) {
            (true, true) => {
                "create policy nobody_updates on lesson_assets as restrictive for update
                    to video_ingest using (false)"
            }
            (true, false) => "drop policy nobody_updates on lesson_assets",
            (false, true) => {
                "create trigger nobody_updates before update on lesson_assets
                    begin select raise(ignore); end"
            }
            (false, false) => "drop trigger nobody_updates",
        };
        self.t.sql(statement).await;
    }

    /// Whether the app itself can update rows. The trigger of SQLite is for everyone.
    pub fn app_can_update(&self) -> bool {
        self.postgres() || !self.faults.rows_denied
    }

    /// The active faults are true reasons for failures.
    pub fn excuse(&mut self) {
        for (fault, _) in &self.faults.active {
            let (of, code) = match *fault {
                Fault::Limit(bucket) => (Some(bucket), Code::TooLarge),
                Fault::Types(bucket) => (Some(bucket), Code::MimeNotAllowed),
                Fault::Gone(bucket) => (Some(bucket), Code::BucketMissing),
                Fault::StorageKey => (None, Code::StorageDenied),
                Fault::StorageQuota => (None, Code::StorageQuota),
                Fault::StoragePaused => (None, Code::StoragePaused),
                Fault::LfsQuota => (None, Code::LfsQuota),
                Fault::RowDenied => (None, Code::RowDenied),
                _ => continue,
            };
            for video in &mut self.videos {
                if of.is_none_or(|bucket| BUCKETS[bucket] == video.bucket) {
                    video.excuses.insert(code);
                }
            }
        }
    }

    /// The next upload of this video is not answered, and is committed `time` later.
    pub async fn commit_late(&mut self, video: usize, time: Duration) {
        let id = self.videos[video].key.video_id.to_string();
        let late = fake_storage::Fault::Hold;
        self.t.storage.fault_at(Op::Upload, &id, late);
        self.begin_fault(Fault::CommitLate(video), time).await;
    }
}

/// Where an attempt is stopped.
pub enum Hold {
    Download(fake_github::Pause),
    Upload(fake_storage::Pause),
}

impl Hold {
    pub async fn reached(&self) {
        match self {
            Self::Download(pause) => pause.held(1).await,
            Self::Upload(pause) => pause.reached().await,
        }
    }

    pub fn release(self) {
        match self {
            Self::Download(pause) => drop(pause),
            Self::Upload(pause) => pause.resume(),
        }
    }
}
