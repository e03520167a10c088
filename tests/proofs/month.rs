//! A month at a hundred times today's load, on a moved clock, with everything that goes wrong in one.

use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;
use video_ingest::app::Injected;
use video_ingest::standin::{Delivery, Fault};
use video_ingest::sweep::SweepOptions;

use crate::support::story::{AppRow, Backend, GOOD, SECOND, Story, Video};

/// A few lessons a day get a video: ten is generous.
const VIDEOS_PER_DAY_TODAY: u64 = 10;

/// How many times as many there are here.
const LOAD: u64 = 100;

const DAYS: u64 = 30;

/// The time between sweeps by default; also how long the clock stands still at a time.
const SLOT: Duration = Duration::from_secs(300);
const SLOTS_PER_HOUR: u64 = 12;
const SLOTS_PER_DAY: u64 = 24 * SLOTS_PER_HOUR;

/// GitHub's limit for a token. Source: GitHub's documentation, "Rate limits for the REST API".
const CALLS_PER_HOUR: u32 = 5000;

/// What is left of it in an hour in which others use the token, too.
const CALLS_LEFT_OVER: u32 = 60;

/// The branch is tidied up every night: it keeps the videos of so many days.
const DAYS_IN_BRANCH: u64 = 1;

/// An outage lasts up to so many slots: four hours.
const OUTAGE_SLOTS_MAX: u64 = 4 * SLOTS_PER_HOUR;

/// What waits at most: what comes during the longest two outages after another and their retries.
const QUEUE_MAX: u64 = 4 * VIDEOS_PER_DAY_TODAY * LOAD * OUTAGE_SLOTS_MAX / SLOTS_PER_DAY;

/// After the last push everything heals, and within this time all is ready: retries are hourly by then.
const DRAIN_SLOTS: u64 = 3 * SLOTS_PER_HOUR;

const TOKEN: &str = "github_pat_of_the_month";

/// In how many of a thousand cases.
const WEBHOOK_LOST: u32 = 100;
const WEBHOOK_TWICE: u32 = 20;
const WEBHOOK_LATE: u32 = 50;
const RENDERED_AGAIN: u32 = 20;
const OUTAGE_BEGINS: u32 = 4;
const HOUR_SHARED: u32 = 50;

#[derive(Default)]
struct Figures {
    videos: usize,
    lost: usize,
    twice: usize,
    late: usize,
    again: usize,
    outage_slots: [u64; 2],
    shared_hours: usize,
    calls: usize,
    calls_in_an_hour_max: usize,
    refused: usize,
    queue_max: u64,
}

struct Month {
    t: Story,
    rng: fastrand::Rng,
    figures: Figures,
    slot: u64,
    /// What each video's bytes have to be in the end.
    pushed: HashMap<Uuid, Video>,
    /// What is in the branch, by the day of its push.
    in_branch: Vec<Vec<Video>>,
    late: Vec<Delivery>,
    /// Until which slot GitHub and the store are out.
    out_until: [u64; 2],
    calls_this_hour: usize,
}

pub async fn prove(seed: u64) {
    println!("a month at {LOAD} times today's load, seed={seed}");
    let t = Story::begin_injected(Backend::Embedded, Injected::default(), |config| {
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
        in_branch: Vec::new(),
        late: Vec::new(),
        out_until: [0; 2],
        calls_this_hour: 0,
    };
    for day in 1..=DAYS {
        for _ in 0..SLOTS_PER_DAY {
            month.break_and_heal();
            month.push().await;
            month.pass().await;
        }
        month.tidy_up();
        if day % 5 == 0 {
            println!("  day {day}: {} videos pushed", month.figures.videos);
        }
    }
    month.out_until = [0; 2];
    month.heal();
    for _ in 0..DRAIN_SLOTS {
        month.pass().await;
    }
    month.audit().await;
}

impl Month {
    fn chance(&mut self, of_a_thousand: u32) -> bool {
        self.rng.u32(..1000) < of_a_thousand
    }

    /// Outages of GitHub and of the store begin and end; they may overlap.
    fn break_and_heal(&mut self) {
        // The store has its folder with the first video.
        if self.slot < SLOTS_PER_HOUR {
            return;
        }
        for service in 0..2 {
            if self.out_until[service] == self.slot {
                self.out_until[service] = 0;
                match service {
                    0 => self.t.github.clear_faults(),
                    _ => self.t.heal_store(),
                }
            }
            if self.out_until[service] == 0 && self.chance(OUTAGE_BEGINS) {
                self.out_until[service] = self.slot + self.rng.u64(1..=OUTAGE_SLOTS_MAX);
                let down = Fault::Status {
                    code: 503,
                    headers: Vec::new(),
                    body: String::new(),
                };
                match service {
                    0 => self.t.github.fault(|_| true, down),
                    _ => self.t.break_store(),
                }
            }
            self.figures.outage_slots[service] += u64::from(self.out_until[service] > 0);
        }
    }

    fn heal(&mut self) {
        self.t.github.clear_faults();
        if !self.t.data_dir().join("store/lesson-assets").is_dir() {
            self.t.heal_store();
        }
    }

    /// What agents render in one slot, and what becomes of its webhook.
    async fn push(&mut self) {
        let mean = VIDEOS_PER_DAY_TODAY * LOAD / SLOTS_PER_DAY;
        let mut videos: Vec<_> = (0..self.rng.u64(0..=2 * mean + 1))
            .map(|_| Video::good())
            .collect();
        let rows: Vec<_> = videos
            .iter()
            .map(|video| AppRow {
                key: video.key,
                age: Duration::from_secs(600),
                mime_type: "video/mp4",
                storage_path: None,
                conversation: None,
            })
            .collect();
        self.t.rows(&rows).await;
        self.figures.videos += videos.len();
        if self.chance(RENDERED_AGAIN)
            && let Some(day) = self.in_branch.last_mut()
            && let Some(at) = day.iter().position(|video| video.mp4 == GOOD)
        {
            videos.push(day.swap_remove(at).rerendered(SECOND));
            self.figures.again += 1;
        }
        if videos.is_empty() {
            return;
        }
        let before = self.t.github.head();
        self.t.github.commit(|c| {
            videos.iter().fold(c, |c, video| {
                c.write(video.mp4_path(), video.mp4.clone())
                    .write(video.json_path(), video.json.clone())
            })
        });
        let delivery = self.t.github.push(before, self.t.github.head());
        let day = (self.slot / SLOTS_PER_DAY) as usize;
        self.in_branch.resize_with(day + 1, Vec::new);
        for video in videos {
            self.pushed.insert(video.key.video_id, video.clone());
            self.in_branch[day].push(video);
        }
        for late in std::mem::take(&mut self.late) {
            self.t.deliver(&late).await.expect_accepted();
        }
        if self.chance(WEBHOOK_LOST) {
            self.figures.lost += 1;
        } else if self.chance(WEBHOOK_LATE) {
            self.figures.late += 1;
            self.late.push(delivery);
        } else {
            self.t.deliver(&delivery).await.expect_accepted();
            if self.chance(WEBHOOK_TWICE) {
                self.figures.twice += 1;
                self.t.deliver(&delivery).await.expect_accepted();
            }
        }
    }

    /// Five minutes: what is due is done, a sweep looks for the rest.
    async fn pass(&mut self) {
        if self.slot.is_multiple_of(SLOTS_PER_HOUR) {
            let shared = self.chance(HOUR_SHARED);
            self.figures.shared_hours += usize::from(shared);
            let left = if shared {
                CALLS_LEFT_OVER
            } else {
                CALLS_PER_HOUR
            };
            let reset = self.t.clock.now_ms() / 1000 + 3600;
            self.t.github.quota(left, reset.unsigned_abs());
            self.calls_this_hour = 0;
        }
        self.t.work().await;
        // A sweep during an outage of GitHub says so, and the next one is the retry.
        let swept = self.t.worker.sweep.run(&SweepOptions::default()).await;
        assert!(swept.is_ok() || self.out_until[0] > 0 || self.exhausted());
        self.t.work().await;
        let queued = "select cast(count(*) as text) from videos
            where state in ('queued', 'running', 'waiting')";
        let queued = self.t.text(queued).await.unwrap().parse().unwrap();
        self.figures.queue_max = self.figures.queue_max.max(queued);
        let calls = self.t.github.take_calls();
        let refused = calls.iter().filter(|c| c.status == Some(403)).count();
        // A call that changed nothing costs nothing, as GitHub counts.
        let counted = calls.iter().filter(|c| c.status != Some(304)).count();
        self.figures.refused += refused;
        self.figures.calls += counted;
        self.calls_this_hour += counted;
        let most = &mut self.figures.calls_in_an_hour_max;
        *most = (*most).max(self.calls_this_hour);
        self.slot += 1;
        self.t.later(SLOT);
    }

    fn exhausted(&self) -> bool {
        self.t.github.calls().iter().any(|c| c.status == Some(403))
            || self.calls_this_hour as u32 >= CALLS_LEFT_OVER - 10
    }

    /// What was pushed before yesterday is removed from the branch.
    fn tidy_up(&mut self) {
        let keep = self.in_branch.len().saturating_sub(DAYS_IN_BRANCH as usize);
        let old: Vec<Video> = self.in_branch[..keep]
            .iter_mut()
            .flat_map(std::mem::take)
            .collect();
        self.t.github.commit(|c| {
            old.iter().fold(c, |c, video| {
                c.remove(video.mp4_path()).remove(video.json_path())
            })
        });
    }

    /// Nothing is lost, the calls were within the limit, the queue was bounded.
    async fn audit(&mut self) {
        let figures = &self.figures;
        println!(
            "  {} videos and {} rendered again; webhooks: {} lost, {} late, {} twice",
            figures.videos, figures.again, figures.lost, figures.late, figures.twice
        );
        let [github, store] = figures.outage_slots.map(|n| n / SLOTS_PER_HOUR);
        println!(
            "  GitHub was out for {github} h, the store for {store} h, the token shared for {} h",
            figures.shared_hours
        );
        println!(
            "  {:.1} calls per video, sweeps included; {} in one hour at most; {} refused",
            figures.calls as f64 / figures.videos as f64,
            figures.calls_in_an_hour_max,
            figures.refused
        );
        println!("  at most {} videos waited", figures.queue_max);
        let not_ready = "select cast(count(*) as text) from lesson_assets
            where storage_path is null or mime_type <> 'video/mp4'";
        assert_eq!(
            self.t.text(not_ready).await.unwrap(),
            "0",
            "every row is ready"
        );
        for video in self.pushed.values() {
            let stored = self.t.stored(video);
            assert!(stored.as_deref() == Some(&video.mp4[..]), "{}", video.id());
        }
        assert!(self.pushed.values().any(|video| video.mp4 != GOOD));
        println!("  {} rows ready with the right bytes", self.pushed.len());
        assert!(figures.calls_in_an_hour_max <= CALLS_PER_HOUR as usize);
        assert!(figures.queue_max <= QUEUE_MAX, "over {QUEUE_MAX}");
    }
}
