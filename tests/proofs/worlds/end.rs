//! Everything recovers, and what must be true then.

use std::time::Duration;

use video_ingest::domain::failure::Code;
use video_ingest::pipeline::sweep::SweepOptions;

use super::model::{Seen, World, drain};
use crate::support::postgres::Postgres;

/// Longer than the waits of the retry schedule that can be left, than the wait for a commit, and then than
/// the wait for a JSON file.
const CALM_SECONDS: [u64; 11] = [0, 3, 6, 20, 70, 130, 400, 1100, 4000, 4000, 700];
/// Longer than the longest wait of a configuration failure.
const CONFIGURATION_HOURS: u64 = 28;
/// The sweeps of the last hour, and the calls to GitHub that each may cost.
const LAST_SWEEPS: usize = 12;
const CALLS_PER_SWEEP: usize = 4;

impl World {
    /// Everything works again and all webhooks have arrived: without a sweep, no video may be stuck or have
    /// an old content.
    pub async fn calm(&mut self) {
        self.note("calm");
        self.end_faults(true).await;
        self.move_back().await;
        self.rng.shuffle(&mut self.hooks);
        for hook in std::mem::take(&mut self.hooks) {
            self.deliver(hook).await;
        }
        for seconds in CALM_SECONDS {
            self.later(Duration::from_secs(seconds)).await;
            for worker in self.workers() {
                drain(worker).await;
            }
            self.faults.worked_at = self.elapsed;
            self.check(false).await;
        }
        let all = self.check(true).await;
        for (video, model) in self.videos.iter().enumerate() {
            if !model.has_row || model.lost {
                continue;
            }
            let seen = all.get(&model.key.video_id.to_string());
            self.check_calm(video, seen.unwrap_or(&Seen::default()));
        }
    }

    fn check_calm(&self, video: usize, seen: &Seen) {
        let files = self.head_files(video);
        let pushed = files.mp4.filter(|mp4| self.version(video, *mp4).good);
        let code = Code::parse(&seen.code);
        match seen.state.as_deref() {
            None => assert!(
                pushed.is_none(),
                "video {video} was pushed, and nothing happened"
            ),
            Some("queued" | "running") => {
                assert!(self.faults.set_back, "video {video} is stuck: {seen:?}");
            }
            Some("ready") => {
                let ready = self.contents.get(&seen.sha256).map(|(_, version)| *version);
                assert!(
                    pushed.is_none() || ready == pushed,
                    "video {video} is ready with version {ready:?}, but the branch has {pushed:?}"
                );
            }
            Some("waiting") => {
                let missing = match code {
                    Some(Code::VideoMissing) => files.mp4.is_none(),
                    Some(Code::MetadataMissing) => false,
                    _ => false,
                };
                assert!(
                    missing || self.faults.set_back,
                    "video {video} waits for nothing: {seen:?}"
                );
            }
            Some(_) => {
                let really = pushed.is_none()
                    || code.is_some_and(|code| {
                        code == Code::GaveUp
                            || code == Code::NoRow
                            || self.videos[video].excuses.contains(&code)
                    });
                assert!(
                    really,
                    "video {video} is failed, but version {pushed:?} is good: {seen:?}"
                );
            }
        }
    }

    pub async fn end(mut self) {
        self.calm().await;
        self.note("the end");
        for _ in 0..CONFIGURATION_HOURS / 4 {
            self.later(Duration::from_secs(4 * 3600)).await;
            self.work().await;
        }
        for verify in [false, true, false] {
            let options = SweepOptions {
                verify,
                ..SweepOptions::default()
            };
            let swept = self.t.worker.sweep.run(&options).await;
            assert!(swept.is_ok(), "the sweep at the end failed: {swept:?}");
            for seconds in [0, 130, 4000] {
                self.later(Duration::from_secs(seconds)).await;
                self.work().await;
            }
        }
        for video in &mut self.videos {
            (video.drifted, video.lost) = (false, false);
        }
        let all = self.check(true).await;
        for video in 0..self.videos.len() {
            let id = self.videos[video].key.video_id.to_string();
            self.check_end(video, all.get(&id).unwrap_or(&Seen::default()));
        }
        self.check_cost().await;
        self.leave().await;
    }

    fn check_end(&self, video: usize, seen: &Seen) {
        let files = self.head_files(video);
        let state = seen.state.as_deref().unwrap_or("none");
        assert!(
            !matches!(state, "queued" | "running"),
            "video {video} is still {state} at the end: {seen:?}"
        );
        let Some(version) = files.mp4 else {
            return;
        };
        if !self.videos[video].has_row {
            assert_eq!(seen.code, "no_row", "video {video} has no row: {seen:?}");
        } else if self.version(video, version).good {
            let ready = self.contents.get(&seen.sha256).map(|(_, version)| *version);
            assert!(
                state == "ready" && seen.path.is_some() && ready == Some(version),
                "at the end, video {video} is not ready with version {version}: {seen:?}"
            );
        } else {
            assert_eq!(
                (state, &*seen.code),
                ("failed", "truncated"),
                "video {video} is broken: {seen:?}"
            );
        }
    }

    /// Nothing costs calls for ever.
    async fn check_cost(&mut self) {
        self.count_calls();
        let mut calls = 0;
        for _ in 0..LAST_SWEEPS {
            let swept = self.t.worker.sweep.run(&SweepOptions::default()).await;
            assert!(swept.is_ok(), "a sweep in the last hour failed: {swept:?}");
            self.work().await;
            self.later(Duration::from_secs(300)).await;
            calls += self.count_calls();
        }
        assert!(
            calls <= LAST_SWEEPS * CALLS_PER_SWEEP,
            "{calls} calls to GitHub in the last hour, in which nothing happened"
        );
    }

    async fn leave(self) {
        let database = self
            .t
            .database
            .as_ref()
            .map(|database| database.name.clone());
        if let Some(replica) = &self.replica {
            replica.db.close().await;
        }
        self.t.finish().await;
        if let Some(name) = database {
            Postgres::shared().remove_database(&name).await;
        }
    }
}
