//! A month at a hundred times today's load on a simulated clock, with outages, lost webhooks and rate limits.
//!
//! The pushes, GitHub's responses and the outages are recorded here, so that no check relies on what the
//! server reports about itself.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;
use video_ingest::app::Injected;
use video_ingest::domain::ids::VideoKey;
use video_ingest::fake_github::Delivery;
use video_ingest::pipeline::sweep::SweepOptions;

use crate::support::fake_github::Fault;
use crate::support::scenario::{AppRow, Backend, GOOD, SECOND, Scenario, Video};

/// Today, a few videos are rendered per day; ten is an upper estimate.
const VIDEOS_PER_DAY_TODAY: u64 = 10;

/// The multiple of today's load.
const LOAD: u64 = 100;

const DAYS: u64 = 30;

/// The clock moves in steps of this length.
const SLOT: Duration = Duration::from_secs(300);
const SLOTS_PER_HOUR: u64 = 12;
const SLOTS_PER_DAY: u64 = 24 * SLOTS_PER_HOUR;

/// The time between two sweeps: 55 minutes, so that they run at different times of the hour. The default is
/// eleven times as frequent, which would only find lost videos sooner. Each sweep reads every row, so that
/// the sweeps would take longer than everything else.
const SLOTS_PER_SWEEP: u64 = 11;

/// GitHub's limit for a token. Source: GitHub's documentation, "Rate limits for the REST API".
const CALLS_PER_HOUR: u32 = 5000;

/// What is left of the limit in an hour in which other programs use the token, too.
const CALLS_LEFT_OVER: u32 = 60;

/// Old videos are removed from the branch every night; the videos of this many days are kept.
const DAYS_IN_BRANCH: usize = 1;

/// The longest outage: four hours.
const OUTAGE_SLOTS_MAX: u64 = 4 * SLOTS_PER_HOUR;

/// The longest wait that a secondary rate limit asks for, in slots.
const SECONDARY_SLOTS_MAX: u64 = 3;

/// Once all faults have ended, waiting videos finish within the longest wait of the retry schedule: 66
/// minutes.
const RETRY_SLOTS: u64 = 14;

/// After the last push, all faults end, and the rate limit resets with the hour; then a sweep must find the
/// lost videos.
const DRAIN_SLOTS: u64 = SLOTS_PER_HOUR + SLOTS_PER_SWEEP + RETRY_SLOTS;

const TOKEN: &str = "github_pat_of_the_month";

/// Probabilities in thousandths, per slot, push or hour.
const WEBHOOK_LOST: u32 = 100;
const WEBHOOK_TWICE: u32 = 20;
const WEBHOOK_LATE: u32 = 50;
const LATE_ONES_ARRIVE: u32 = 100;
const RENDERED_AGAIN: u32 = 20;
const OUTAGE_BEGINS: u32 = 4;
const SECONDARY_LIMIT: u32 = 4;
const HOUR_SHARED: u32 = 50;

/// A service that may have an outage.
#[derive(Clone, Copy)]
enum Service {
    Github,
    Store,
}

#[derive(Default)]
struct Figures {
    videos: u64,
    lost: u64,
    twice: u64,
    late: u64,
    again: u64,
    outage_slots: [u64; 2],
    quiet_slots: u64,
    shared_hours: u64,
    secondary_limits: u64,
    calls: u64,
    calls_in_an_hour_max: u32,
    refused: u64,
    waiting_max: u64,
}

struct Month {
    t: Scenario,
    rng: fastrand::Rng,
    figures: Figures,
    slot: u64,
    /// The expected content of each video at the end.
    pushed: HashMap<Uuid, Video>,
    /// The videos in the branch, by the day of their push.
    in_branch: Vec<Vec<Video>>,
    /// Webhooks that are delayed, and how many videos each names.
    late: Vec<(Delivery, u64)>,
    /// The slot in which the outage of each service ends.
    out_until: [Option<u64>; 2],
    /// The requests that GitHub grants in this hour, and those that it has counted so far.
    calls_granted: u32,
    calls_this_hour: u32,
    /// The next request exceeds the secondary rate limit, which asks to wait for this many slots.
    secondary_limit: Option<u64>,
    /// GitHub has asked for no requests before this slot.
    quiet_until: u64,
    /// The number of slots since the last fault.
    calm_slots: u64,
    /// Videos requested since the queue was last empty.
    requested: u64,
    /// Videos pushed since the last sweep, without a webhook.
    unannounced: u64,
}

pub async fn prove(seed: u64) {
    println!("{DAYS} days at {LOAD} times today's load, seed={seed}");
    // The jitter of the retries uses this thread's random numbers.
    fastrand::seed(seed);
    let t = Scenario::begin_injected(Backend::Embedded, Injected::default(), |config| {
        config.github.token = Some(TOKEN.into());
        config.agent = None;
    })
    .await;
    t.github.require_token(TOKEN);
    // A scenario prints the server's log, which would be too long here.
    let _quiet = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::default());
    let mut month = Month {
        t,
        rng: fastrand::Rng::with_seed(seed),
        figures: Figures::default(),
        slot: 0,
        pushed: HashMap::new(),
        in_branch: vec![Vec::new()],
        late: Vec::new(),
        out_until: [None; 2],
        calls_granted: 0,
        calls_this_hour: 0,
        secondary_limit: None,
        quiet_until: 0,
        calm_slots: 0,
        requested: 0,
        unannounced: 0,
    };
    for day in 1..=DAYS {
        for _ in 0..SLOTS_PER_DAY {
            let shared = month.chance(HOUR_SHARED);
            month.grant(shared);
            month.begin_and_end_outages();
            month.push().await;
            month.pass().await;
        }
        month.remove_old_videos();
        month.expect_no_error_row().await;
        if day % 5 == 0 {
            println!("  day {day}: {} videos pushed", month.figures.videos);
        }
    }
    for service in [Service::Github, Service::Store] {
        month.end_outage(service);
    }
    for _ in 0..DRAIN_SLOTS {
        month.grant(false);
        month.pass().await;
    }
    month.audit().await;
}

impl Month {
    fn chance(&mut self, of_a_thousand: u32) -> bool {
        self.rng.u32(..1000) < of_a_thousand
    }

    fn is_out(&self, service: Service) -> bool {
        self.out_until[service as usize].is_some()
    }

    /// Resets the rate limit every hour, to the full limit or to what other programs leave of it.
    fn grant(&mut self, shared: bool) {
        if !self.slot.is_multiple_of(SLOTS_PER_HOUR) {
            return;
        }
        self.figures.shared_hours += u64::from(shared);
        self.calls_granted = if shared {
            CALLS_LEFT_OVER
        } else {
            CALLS_PER_HOUR
        };
        self.calls_this_hour = 0;
        let reset = self.t.clock.now_ms() / 1000 + 3600;
        self.t
            .github
            .quota(self.calls_granted, reset.unsigned_abs());
    }

    /// Begins and ends outages of GitHub and of the storage, which may overlap, and the secondary rate limit.
    fn begin_and_end_outages(&mut self) {
        for service in [Service::Github, Service::Store] {
            if self.out_until[service as usize] == Some(self.slot) {
                self.end_outage(service);
            }
            if !self.is_out(service) && self.chance(OUTAGE_BEGINS) {
                let slots = self.rng.u64(1..=OUTAGE_SLOTS_MAX);
                self.out_until[service as usize] = Some(self.slot + slots);
                match service {
                    Service::Github => self.t.github.fault(|_| true, answer(503, Vec::new())),
                    Service::Store => swap_store(self.t.data_dir(), "store", "away"),
                }
            }
            self.figures.outage_slots[service as usize] += u64::from(self.is_out(service));
        }
        if self.secondary_limit.is_none() && self.chance(SECONDARY_LIMIT) {
            let slots = self.rng.u64(1..=SECONDARY_SLOTS_MAX);
            self.secondary_limit = Some(slots);
            let wait = slots * SLOT.as_secs();
            let headers = vec![("retry-after", wait.to_string())];
            self.t.github.fault_once(|_| true, answer(429, headers));
        }
    }

    fn end_outage(&mut self, service: Service) {
        if self.out_until[service as usize].take().is_some() {
            match service {
                Service::Github => {
                    self.secondary_limit = None;
                    self.t.github.clear_faults();
                }
                Service::Store => swap_store(self.t.data_dir(), "away", "store"),
            }
        }
    }

    /// Pushes the videos of one slot, and delivers, delays or loses their webhook.
    async fn push(&mut self) {
        let mean = VIDEOS_PER_DAY_TODAY * LOAD / SLOTS_PER_DAY;
        let mut videos: Vec<_> = (0..self.rng.u64(0..=2 * mean + 1))
            .map(|_| {
                Video::of(VideoKey {
                    lesson_id: Uuid::from_u128(self.rng.u128(..)),
                    video_id: Uuid::from_u128(self.rng.u128(..)),
                })
            })
            .collect();
        let rows: Vec<_> = videos.iter().map(|v| AppRow::pending(v.key)).collect();
        self.t.rows(&rows).await;
        self.figures.videos += videos.len() as u64;
        if self.chance(RENDERED_AGAIN)
            && let Some(today) = self.in_branch.last_mut()
            && let Some(at) = today.iter().position(|video| video.mp4 == GOOD)
        {
            videos.push(today.swap_remove(at).rerendered(SECOND));
            self.figures.again += 1;
        }
        if self.chance(LATE_ONES_ARRIVE) {
            for (late, videos) in std::mem::take(&mut self.late) {
                self.requested += videos;
                self.t.deliver(&late).await.expect_accepted();
            }
        }
        if videos.is_empty() {
            return;
        }
        let before = self.t.github.head();
        self.t
            .github
            .commit(|c| videos.iter().fold(c, |c, video| video.write(c)));
        let delivery = self.t.github.push(before, self.t.github.head());
        let named = videos.len() as u64;
        for video in videos {
            self.pushed.insert(video.key.video_id, video.clone());
            self.in_branch.last_mut().unwrap().push(video);
        }
        if self.chance(WEBHOOK_LOST) {
            self.figures.lost += 1;
            self.unannounced += named;
        } else if self.chance(WEBHOOK_LATE) {
            self.figures.late += 1;
            self.unannounced += named;
            self.late.push((delivery, named));
        } else {
            self.requested += named;
            self.t.deliver(&delivery).await.expect_accepted();
            if self.chance(WEBHOOK_TWICE) {
                self.figures.twice += 1;
                self.t.deliver(&delivery).await.expect_accepted();
            }
        }
    }

    /// Runs the work of one slot, and a sweep if one is due.
    async fn pass(&mut self) {
        self.t.work().await;
        self.count_calls();
        if self.slot.is_multiple_of(SLOTS_PER_SWEEP) {
            self.sweep().await;
        }
        self.expect_bounded_queue().await;
        self.figures.quiet_slots += u64::from(self.slot < self.quiet_until);
        self.slot += 1;
        self.t.later(SLOT);
    }

    /// A sweep needs only GitHub: it must succeed if GitHub is available and accepts requests. Otherwise, the
    /// next sweep is its retry, unless it could use the last listing, because only a comparison was refused.
    async fn sweep(&mut self) {
        let swept = self.t.worker.sweep.run(&SweepOptions::default()).await;
        self.count_calls();
        let kept_away = self.is_out(Service::Github) || self.slot < self.quiet_until;
        let used_last_listing = self.t.worker.ingest.branch.lag().is_some();
        assert!(
            swept.is_err() == kept_away || (kept_away && used_last_listing),
            "slot {}: {swept:?}",
            self.slot
        );
        if !kept_away {
            self.requested += std::mem::take(&mut self.unannounced);
        }
        self.t.work().await;
        self.count_calls();
    }

    /// Checks the requests since the last check: never more than GitHub granted, and none before the time that
    /// GitHub asked to wait for.
    fn count_calls(&mut self) {
        for call in self.t.github.take_calls() {
            let slot = self.slot;
            assert!(slot >= self.quiet_until, "slot {slot}: {call:?}");
            match call.status.unwrap() {
                403 => {
                    // The full limit is enough for an hour, even after an outage.
                    assert_eq!(self.calls_granted, CALLS_LEFT_OVER, "in slot {slot}");
                    self.figures.refused += 1;
                    self.quiet_until = (slot / SLOTS_PER_HOUR + 1) * SLOTS_PER_HOUR;
                }
                429 => {
                    self.figures.secondary_limits += 1;
                    self.quiet_until = slot + self.secondary_limit.take().unwrap();
                }
                // GitHub counts neither a 304 nor a request during an outage.
                304 | 503 => {}
                _ => {
                    self.figures.calls += 1;
                    self.calls_this_hour += 1;
                }
            }
        }
        assert!(self.calls_this_hour <= self.calls_granted);
        let most = &mut self.figures.calls_in_an_hour_max;
        *most = (*most).max(self.calls_this_hour);
    }

    /// Only videos that were requested during a fault may wait, and only for a limited time after it.
    async fn expect_bounded_queue(&mut self) {
        let wrong = self.is_out(Service::Github)
            || self.is_out(Service::Store)
            || self.slot < self.quiet_until
            // Videos that a sweep found wait while the rest of GitHub's limit is reserved for pushes.
            || self.calls_granted == CALLS_LEFT_OVER;
        self.calm_slots = if wrong { 0 } else { self.calm_slots + 1 };
        if self.calm_slots > RETRY_SLOTS {
            self.requested = 0;
        }
        let waiting = "select cast(count(*) as text) from videos
            where state in ('queued', 'running', 'waiting')";
        let waiting: u64 = self.t.text(waiting).await.unwrap().parse().unwrap();
        assert!(
            waiting <= self.requested,
            "{waiting} videos wait, {} were requested",
            self.requested
        );
        self.figures.waiting_max = self.figures.waiting_max.max(waiting);
    }

    /// Removes the videos that were pushed before yesterday from the branch.
    fn remove_old_videos(&mut self) {
        let keep = self.in_branch.len().saturating_sub(DAYS_IN_BRANCH);
        let old = self.in_branch[..keep].iter_mut().flat_map(std::mem::take);
        self.t
            .github
            .commit(|c| old.fold(c, |c, video| video.remove(c)));
        self.t.github.state().repository.forget_old_trees();
        self.in_branch.push(Vec::new());
    }

    async fn expect_no_error_row(&self) {
        let errors = "select group_concat(distinct mime_type) from lesson_assets
            where mime_type like 'error:%'";
        assert_eq!(self.t.text(errors).await, None, "day's end");
    }

    /// Nothing is lost.
    async fn audit(&mut self) {
        let figures = &self.figures;
        println!(
            "  {} videos, {} rendered again; webhooks: {} lost, {} late, {} delivered twice",
            figures.videos, figures.again, figures.lost, figures.late, figures.twice
        );
        let hours = |slots| slots as f64 / SLOTS_PER_HOUR as f64;
        let [github, store] = figures.outage_slots.map(hours);
        println!(
            "  outages: GitHub {github:.0} h, storage {store:.0} h; {} hours with a shared token, \
             {} secondary rate limits; {:.0} h without requests",
            figures.shared_hours,
            figures.secondary_limits,
            hours(figures.quiet_slots),
        );
        println!(
            "  {:.1} requests per video, including sweeps; {} in the busiest hour; {} refused",
            figures.calls as f64 / figures.videos as f64,
            figures.calls_in_an_hour_max,
            figures.refused
        );
        println!("  longest queue: {} videos", figures.waiting_max);
        // Each of these must have happened.
        for happened in [
            figures.again,
            figures.lost,
            figures.late,
            figures.twice,
            figures.outage_slots[Service::Github as usize],
            figures.outage_slots[Service::Store as usize],
            figures.refused,
            figures.secondary_limits,
        ] {
            assert_ne!(happened, 0);
        }
        self.expect_no_error_row().await;
        let ready = "select cast(count(*) as text) from lesson_assets as a
            join videos as v on v.video_id = a.id and v.state = 'ready'
            where a.storage_path is not null and a.mime_type = 'video/mp4'";
        assert_eq!(
            self.t.text(ready).await.unwrap(),
            self.pushed.len().to_string()
        );
        for video in self.pushed.values() {
            let stored = self.t.stored(video);
            assert!(stored.as_deref() == Some(&video.mp4[..]), "{}", video.id());
        }
        println!(
            "  all {} videos ready with their latest content",
            self.pushed.len()
        );
        let reasons = "select group_concat(code) from (
            select distinct step || ' ' || substr(detail, 1, instr(detail, ':') - 1) as code from events
            where step in ('retry', 'failed', 'waiting') order by 1)";
        assert_eq!(
            self.t.text(reasons).await.unwrap(),
            "retry github_unavailable,retry rate_limited,retry storage_unavailable",
            "no other failures"
        );
    }
}

fn answer(code: u16, headers: Vec<(&'static str, String)>) -> Fault {
    Fault::Status {
        code,
        headers,
        body: String::new(),
    }
}

/// Replaces the folder of the store with a file, or restores it. The failures are transient, unlike those of
/// [`Scenario::break_storage`].
pub fn swap_store(data_dir: &Path, from: &str, to: &str) {
    let [from, to] = [from, to].map(|name| data_dir.join(name));
    if to.exists() {
        std::fs::remove_file(&to).unwrap();
    }
    std::fs::rename(&from, &to).unwrap();
    std::fs::write(&from, "not a folder").unwrap();
}
