//! A month at a hundred times today's load, on a moved clock, with everything that goes wrong in one.
//!
//! What was pushed, what GitHub answered and when it was out is kept here; the server is asked for nothing
//! that it is judged by.

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

/// A few lessons a day get a video: ten is generous.
const VIDEOS_PER_DAY_TODAY: u64 = 10;

/// How many times as many there are here.
const LOAD: u64 = 100;

const DAYS: u64 = 30;

/// The clock stands still for as long as one of these lasts.
const SLOT: Duration = Duration::from_secs(300);
const SLOTS_PER_HOUR: u64 = 12;
const SLOTS_PER_DAY: u64 = 24 * SLOTS_PER_HOUR;

/// Between two sweeps: 55 minutes, so that they fall at any time of the hour. By default they are eleven
/// times as frequent, which only finds sooner what was lost; but each reads every row that there is, and
/// they would take longer than all the rest.
const SLOTS_PER_SWEEP: u64 = 11;

/// GitHub's limit for a token. Source: GitHub's documentation, "Rate limits for the REST API".
const CALLS_PER_HOUR: u32 = 5000;

/// What is left of it in an hour in which others use the token, too.
const CALLS_LEFT_OVER: u32 = 60;

/// The branch is tidied up every night: it keeps the videos of so many days.
const DAYS_IN_BRANCH: usize = 1;

/// An outage lasts up to so many slots: four hours.
const OUTAGE_SLOTS_MAX: u64 = 4 * SLOTS_PER_HOUR;

/// A secondary limit asks to wait for up to so many slots.
const SECONDARY_SLOTS_MAX: u64 = 3;

/// Once nothing is wrong any more, what waits is done within the longest wait of the retry schedule: an
/// hour and a tenth.
const RETRY_SLOTS: u64 = 14;

/// After the last push everything heals, the quota with the hour; then a sweep has to find what was lost.
const DRAIN_SLOTS: u64 = SLOTS_PER_HOUR + SLOTS_PER_SWEEP + RETRY_SLOTS;

const TOKEN: &str = "github_pat_of_the_month";

/// In how many of a thousand slots, pushes or hours.
const WEBHOOK_LOST: u32 = 100;
const WEBHOOK_TWICE: u32 = 20;
const WEBHOOK_LATE: u32 = 50;
const LATE_ONES_ARRIVE: u32 = 100;
const RENDERED_AGAIN: u32 = 20;
const OUTAGE_BEGINS: u32 = 4;
const SECONDARY_LIMIT: u32 = 4;
const HOUR_SHARED: u32 = 50;

/// What may go out.
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
    /// What each video's bytes have to be in the end.
    pushed: HashMap<Uuid, Video>,
    /// What is in the branch, by the day of its push.
    in_branch: Vec<Vec<Video>>,
    /// Webhooks that are still on their way, and how many videos each names.
    late: Vec<(Delivery, u64)>,
    /// Until which slot each service is out.
    out_until: [Option<u64>; 2],
    /// What GitHub grants in this hour, and what it answered so far.
    calls_granted: u32,
    calls_this_hour: u32,
    /// The next call meets the secondary limit, which asks to wait for so many slots.
    secondary_limit: Option<u64>,
    /// Before this slot GitHub wants no call: it said so.
    quiet_until: u64,
    /// For how many slots nothing has been wrong.
    calm_slots: u64,
    /// Videos asked for since nothing waited.
    asked: u64,
    /// Videos pushed since the last sweep, of whom no webhook told.
    untold: u64,
}

pub async fn prove(seed: u64) {
    println!("{DAYS} days at {LOAD} times today's load, seed={seed}");
    // The retries' jitter is this thread's.
    fastrand::seed(seed);
    let t = Scenario::begin_injected(Backend::Embedded, Injected::default(), |config| {
        config.github.token = Some(TOKEN.into());
        config.agent = None;
    })
    .await;
    t.github.require_token(TOKEN);
    // A story shows what the server logs: too much of it here.
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
        asked: 0,
        untold: 0,
    };
    for day in 1..=DAYS {
        for _ in 0..SLOTS_PER_DAY {
            let shared = month.chance(HOUR_SHARED);
            month.grant(shared);
            month.break_and_heal();
            month.push().await;
            month.pass().await;
        }
        month.tidy_up();
        month.expect_no_error_row().await;
        if day % 5 == 0 {
            println!("  day {day}: {} videos pushed", month.figures.videos);
        }
    }
    for service in [Service::Github, Service::Store] {
        month.heal(service);
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

    /// Every hour GitHub grants its calls anew, or what others leave of them.
    fn grant(&mut self, shared: bool) {
        if !self.slot.is_multiple_of(SLOTS_PER_HOUR) {
            return;
        }
        self.figures.shared_hours += u64::from(shared);
        self.calls_granted = match shared {
            true => CALLS_LEFT_OVER,
            false => CALLS_PER_HOUR,
        };
        self.calls_this_hour = 0;
        let reset = self.t.clock.now_ms() / 1000 + 3600;
        self.t
            .github
            .quota(self.calls_granted, reset.unsigned_abs());
    }

    /// Outages of GitHub and of the store begin and end, and may overlap; GitHub's secondary limit strikes.
    fn break_and_heal(&mut self) {
        for service in [Service::Github, Service::Store] {
            if self.out_until[service as usize] == Some(self.slot) {
                self.heal(service);
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

    fn heal(&mut self, service: Service) {
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

    /// What agents render in one slot, and what becomes of its webhook.
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
                self.asked += videos;
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
            self.untold += named;
        } else if self.chance(WEBHOOK_LATE) {
            self.figures.late += 1;
            self.untold += named;
            self.late.push((delivery, named));
        } else {
            self.asked += named;
            self.t.deliver(&delivery).await.expect_accepted();
            if self.chance(WEBHOOK_TWICE) {
                self.figures.twice += 1;
                self.t.deliver(&delivery).await.expect_accepted();
            }
        }
    }

    /// Five minutes: what is due is done, and a sweep looks for the rest if it is time for one.
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

    /// A sweep needs GitHub and nothing else: it succeeds if GitHub is there and wants calls, else the next
    /// one is its retry.
    async fn sweep(&mut self) {
        let swept = self.t.worker.sweep.run(&SweepOptions::default()).await;
        self.count_calls();
        let kept_away = self.is_out(Service::Github) || self.slot < self.quiet_until;
        assert_eq!(swept.is_err(), kept_away, "slot {}: {swept:?}", self.slot);
        if swept.is_ok() {
            self.asked += std::mem::take(&mut self.untold);
        }
        self.t.work().await;
        self.count_calls();
    }

    /// What GitHub answered since the last look: never more than it granted, and nothing was asked of it
    /// after it had said when to come back.
    fn count_calls(&mut self) {
        for call in self.t.github.take_calls() {
            let slot = self.slot;
            assert!(slot >= self.quiet_until, "in slot {slot} it asked {call:?}");
            match call.status.unwrap() {
                403 => {
                    // A whole hour's calls are enough, also after an outage.
                    assert_eq!(self.calls_granted, CALLS_LEFT_OVER, "in slot {slot}");
                    self.figures.refused += 1;
                    self.quiet_until = (slot / SLOTS_PER_HOUR + 1) * SLOTS_PER_HOUR;
                }
                429 => {
                    self.figures.secondary_limits += 1;
                    self.quiet_until = slot + self.secondary_limit.take().unwrap();
                }
                // Nothing has changed: GitHub does not count it. While it is out it counts nothing.
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

    /// What waits was asked for while something was wrong, and is done soon after.
    async fn expect_bounded_queue(&mut self) {
        let wrong = self.is_out(Service::Github)
            || self.is_out(Service::Store)
            || self.slot < self.quiet_until;
        self.calm_slots = match wrong {
            true => 0,
            false => self.calm_slots + 1,
        };
        if self.calm_slots > RETRY_SLOTS {
            self.asked = 0;
        }
        let waiting = "select cast(count(*) as text) from videos
            where state in ('queued', 'running', 'waiting')";
        let waiting: u64 = self.t.text(waiting).await.unwrap().parse().unwrap();
        assert!(waiting <= self.asked, "{waiting} wait of {}", self.asked);
        self.figures.waiting_max = self.figures.waiting_max.max(waiting);
    }

    /// What was pushed before yesterday is removed from the branch.
    fn tidy_up(&mut self) {
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
            "  {} videos and {} rendered again; webhooks: {} lost, {} late, {} twice",
            figures.videos, figures.again, figures.lost, figures.late, figures.twice
        );
        let hours = |slots| slots as f64 / SLOTS_PER_HOUR as f64;
        let [github, store] = figures.outage_slots.map(hours);
        println!(
            "  GitHub was out for {github:.0} h, the store for {store:.0} h; {} hours with the token shared, \
             {} secondary limits: no call for {:.0} h",
            figures.shared_hours,
            figures.secondary_limits,
            hours(figures.quiet_slots),
        );
        println!(
            "  {:.1} calls per video, sweeps included; {} in one hour at most; {} refused",
            figures.calls as f64 / figures.videos as f64,
            figures.calls_in_an_hour_max,
            figures.refused
        );
        println!("  at most {} videos waited", figures.waiting_max);
        // The month was one: each of these did happen.
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
            "  all {} rows ready with their newest bytes",
            self.pushed.len()
        );
        let reasons = "select group_concat(code) from (
            select distinct step || ' ' || substr(detail, 1, instr(detail, ':') - 1) as code from events
            where step in ('retry', 'failed', 'waiting') order by 1)";
        assert_eq!(
            self.t.text(reasons).await.unwrap(),
            "retry github_unavailable,retry rate_limited,retry storage_unavailable",
            "nothing failed of anything else"
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

/// The store's folder is elsewhere, and what is in its place answers nothing: a failure in passing, unlike
/// [`Scenario::break_store`].
fn swap_store(data_dir: &Path, from: &str, to: &str) {
    let [from, to] = [from, to].map(|name| data_dir.join(name));
    if to.exists() {
        std::fs::remove_file(&to).unwrap();
    }
    std::fs::rename(&from, &to).unwrap();
    std::fs::write(&from, "not a folder").unwrap();
}
