//! What happens in a world.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;
use uuid::Uuid;
use video_ingest::domain::failure::Code;
use video_ingest::domain::ids::GitSha;
use video_ingest::fake_github::Changes;
use video_ingest::pipeline::sweep::SweepOptions;
use video_ingest::pipeline::worker::Worker;

use super::faults::{Fault, Hold};
use super::model::{BUCKETS, Files, Hook, World, drain};
use crate::support::scenario::Backend;

/// The longest time for which GitHub's API is behind a push in reality, and for which the server waits less
/// some.
const STALE_MAX: Duration = Duration::from_secs(100);
const LEASE: Duration = Duration::from_secs(30);
/// How many workers poll while the app locks its table.
const POLLS: usize = 8;
/// How long a delivery may take while the app locks its table. Real time.
const INTAKE_MAX: Duration = Duration::from_secs(2);

impl World {
    pub async fn live(mut self) {
        for _ in 0..self.rng.usize(20..=60) {
            self.event().await;
            if !self.one_in(5) {
                self.work().await;
            }
            if self.one_in(2) {
                self.pass_time().await;
            }
            self.check(false).await;
        }
        Box::pin(self.end()).await;
    }

    async fn pass_time(&mut self) {
        let seconds = [3, 3, 7, 20, 20, 70, 150, 700, 4000];
        let seconds = seconds[self.rng.usize(0..seconds.len())];
        self.later(Duration::from_secs(seconds)).await;
    }

    async fn event(&mut self) {
        const EVENTS: [(&str, u32); 31] = [
            ("push", 16),
            ("time", 4),
            ("row", 3),
            ("calm", 2),
            ("sweep", 4),
            ("verify", 2),
            ("stale", 6),
            ("compare", 2),
            ("late-upload", 2),
            ("bucket-limit", 2),
            ("bucket-types", 1),
            ("bucket-gone", 1),
            ("move-lesson", 2),
            ("move-owner", 2),
            ("move-bucket", 2),
            ("row-denied", 2),
            ("storage-quota", 1),
            ("storage-paused", 1),
            ("storage-down", 1),
            ("storage-key", 1),
            ("lfs", 2),
            ("truncated", 2),
            ("clock", 1),
            ("lock", 1),
            ("merge", 2),
            ("hooks", 3),
            ("forced", 4),
            ("death", 3),
            ("race", 3),
            ("retry", 3),
            ("outage", 1),
        ];
        let base = ["push", "time", "row", "calm", "sweep", "verify"];
        let possible: Vec<_> = EVENTS
            .iter()
            .filter(|(name, _)| base.contains(name) || self.has(name))
            .filter(|(name, _)| self.sweeps || !["sweep", "verify"].contains(name))
            .collect();
        let mut at = self
            .rng
            .u32(0..possible.iter().map(|(_, weight)| weight).sum());
        let (name, _) = possible
            .iter()
            .find(|(_, weight)| {
                let found = at < *weight;
                at = at.saturating_sub(*weight);
                found
            })
            .unwrap();
        // On the heap: the futures of all events together are too large for the stack of a thread.
        Box::pin(self.happen(name)).await;
        // A later sweep would repair it.
        if ["merge", "forced", "move-lesson", "race", "death"].contains(name) && self.one_in(4) {
            Box::pin(self.calm()).await;
        }
    }

    async fn happen(&mut self, name: &'static str) {
        match name {
            "push" => self.push(false).await,
            "stale" => self.push(true).await,
            "forced" => self.push_forced().await,
            "merge" => self.push_merge().await,
            "time" => self.pass_time().await,
            "row" => self.row().await,
            "calm" => self.calm().await,
            "sweep" | "verify" => self.sweep(name == "verify").await,
            "retry" => self.retry().await,
            "hooks" => self.replay().await,
            "late-upload" => self.late_upload().await,
            "move-lesson" | "move-owner" | "move-bucket" => self.move_row(name).await,
            "death" => self.death().await,
            "race" => self.race().await,
            "clock" => self.jump().await,
            "lock" => self.lock().await,
            "outage" => self.outage().await,
            _ => self.fault(name).await,
        }
    }

    /// Breaks something for a while.
    async fn fault(&mut self, name: &'static str) {
        let bucket = self.rng.usize(0..BUCKETS.len());
        let fault = match name {
            "compare" => Fault::Compare([500, 502, 404][self.rng.usize(0..3)]),
            "lfs" => Fault::LfsQuota,
            "truncated" => Fault::Truncated(self.rng.usize(2..6)),
            "row-denied" => Fault::RowDenied,
            "storage-down" => Fault::StorageDown,
            // A folder has no limits and no keys.
            _ if !self.postgres() => return,
            "bucket-limit" => Fault::Limit(bucket),
            "bucket-types" => Fault::Types(bucket),
            "bucket-gone" => Fault::Gone(bucket),
            "storage-quota" => Fault::StorageQuota,
            "storage-paused" => Fault::StoragePaused,
            "storage-key" => Fault::StorageKey,
            _ => unreachable!("{name}"),
        };
        if self.faults.is(|active| active == fault) {
            return;
        }
        match fault {
            Fault::Limit(_)
            | Fault::Types(_)
            | Fault::Gone(_)
            | Fault::RowDenied
            | Fault::Truncated(_)
            | Fault::StorageDown => self.occurred(name),
            // Counted when a call meets them.
            _ => {}
        }
        let waiting = self.seen().await;
        if waiting
            .values()
            .any(|seen| seen.state.as_deref() == Some("waiting"))
        {
            self.occurred("waiting");
        }
        let minutes = [1, 5, 20, 70, 200][self.rng.usize(0..5)];
        self.begin_fault(fault, Duration::from_secs(60 * minutes))
            .await;
        if self.one_in(2) {
            self.push(false).await;
        }
    }

    // Pushes.

    /// Changes the files of a video in a commit.
    fn change(&mut self, video: usize, files: &mut Files, commit: Changes) -> Changes {
        let paths = self.video(video);
        let waiting = self.has("waiting");
        let json = self.json(video);
        match self.rng.u8(0..14) {
            0 if files.mp4.is_some() => {
                *files = Files::default();
                self.videos[video].kept = false;
                paths.remove(commit)
            }
            // The other file comes later, or never.
            1 if waiting && files.mp4.is_none() => {
                files.json = true;
                self.videos[video].kept = false;
                commit.write(paths.json_path(), json)
            }
            kind => {
                let lfs = kind < 4 && self.has("lfs");
                let version = self.new_version(video);
                files.mp4 = Some(version);
                let mp4 = self.version(video, version).mp4.clone();
                let commit = if lfs {
                    commit.write_lfs(paths.mp4_path(), mp4)
                } else {
                    commit.write(paths.mp4_path(), mp4)
                };
                if waiting && kind == 5 {
                    return commit;
                }
                files.json = true;
                if lfs && self.one_in(2) {
                    commit.write_lfs(paths.json_path(), json)
                } else {
                    commit.write(paths.json_path(), json)
                }
            }
        }
    }

    /// Commits changes of these videos.
    fn commit(&mut self, videos: &[usize]) -> GitSha {
        let mut tree = self.trees[&self.t.github.head()].clone();
        let mut commit = Changes::default();
        for video in videos {
            commit = self.change(*video, &mut tree[*video], commit);
        }
        self.commit_tree(commit, tree)
    }

    fn commit_tree(&mut self, changes: Changes, tree: Vec<Files>) -> GitSha {
        let commit = self.t.github.commit(|_| changes);
        self.trees.insert(commit, tree);
        commit
    }

    fn some_videos(&mut self) -> Vec<usize> {
        let count = self.rng.usize(1..=3).min(self.videos.len());
        let mut all: Vec<_> = (0..self.videos.len()).collect();
        self.rng.shuffle(&mut all);
        all.truncate(count);
        all
    }

    async fn push(&mut self, stale: bool) {
        let before = self.t.github.head();
        let videos = self.some_videos();
        let mut after = before;
        for _ in 0..self.rng.usize(1..=2) {
            after = self.commit(&videos);
        }
        self.note(format!(
            "push of {videos:?}: {} to {}",
            before.short(),
            after.short()
        ));
        if stale {
            self.be_stale(before).await;
        }
        self.announce(before, after, videos).await;
        if stale {
            self.work_in_small_steps().await;
        }
    }

    /// The API shows this head for a while.
    async fn be_stale(&mut self, head: GitSha) {
        if self.faults.is(|fault| matches!(fault, Fault::Stale { .. })) {
            return;
        }
        let long = self.one_in(8);
        if self.one_in(4) {
            self.t.github.serve_head(Some(head));
            self.occurred("stale");
        } else {
            let dense = self.rng.u32(1..=4);
            let reads: Vec<bool> = (0..self.rng.usize(1..=12))
                .map(|_| self.rng.u32(0..4) < dense)
                .collect();
            self.note(format!("stale reads of {}: {reads:?}", head.short()));
            self.t.github.serve_stale_head(head, reads);
        }
        let time = if long { 12 * STALE_MAX } else { STALE_MAX };
        self.begin_fault(Fault::Stale { long }, time).await;
        if long {
            for video in &mut self.videos {
                video.kept = false;
            }
        }
    }

    async fn work_in_small_steps(&mut self) {
        let stale = self.t.github.stale_reads();
        for seconds in [0, 3, 3, 10] {
            if self.sweeps && self.one_in(4) {
                self.sweep(false).await;
            }
            self.later(Duration::from_secs(seconds)).await;
            self.work().await;
            self.check(false).await;
        }
        if self.t.github.stale_reads() > stale {
            self.occurred("stale");
        }
    }

    /// Amends the head, moves the branch back, or to any commit that it once was at.
    async fn push_forced(&mut self) {
        let before = self.t.github.head();
        let recent = self.heads.len().saturating_sub(5);
        let target = self.heads[self.rng.usize(recent..self.heads.len())];
        if target == before {
            return;
        }
        let old = self.trees[&before].clone();
        self.t.github.force_to(target);
        let amend = !self.one_in(3);
        if amend {
            let mut videos = self.some_videos();
            if self.one_in(2) {
                // What the head changed is changed again.
                videos.extend((0..old.len()).filter(|v| old[*v] != self.trees[&target][*v]));
                videos.sort();
                videos.dedup();
            }
            self.commit(&videos);
        }
        let after = self.t.github.head();
        let new = &self.trees[&after];
        let named: Vec<_> = (0..old.len()).filter(|v| old[*v] != new[*v]).collect();
        for (video, files) in new.clone().into_iter().enumerate() {
            if files.mp4.is_none() {
                self.videos[video].kept = false;
            }
        }
        self.occurred("forced");
        let how = if amend { "and committed" } else { "" };
        self.note(format!(
            "forced push: {} to {} {how}, which changes {named:?}",
            before.short(),
            after.short()
        ));
        let stale = self.has("stale") && self.one_in(2);
        if stale {
            self.be_stale(before).await;
        }
        self.announce(before, after, named).await;
        if stale {
            self.work_in_small_steps().await;
        }
    }

    /// A side branch deletes a video that the branch renders again; both are merged.
    async fn push_merge(&mut self) {
        let base = self.t.github.head();
        let video = self.any();
        if self.trees[&base][video].mp4.is_none() {
            return;
        }
        let paths = self.video(video);
        let mut tree = self.trees[&base].clone();
        let side_first = self.one_in(2);
        let delete = |world: &Self| {
            let side = world.t.github.commit(|c| paths.remove(c).message("side"));
            world.t.github.force_to(base);
            side
        };
        let mut side = side_first.then(|| delete(self));
        let version = self.new_version(video);
        tree[video] = Files {
            mp4: Some(version),
            json: true,
        };
        let mp4 = self.version(video, version).mp4.clone();
        let json = self.json(video);
        let write = Changes::default().write(paths.mp4_path(), mp4);
        let main = self.commit_tree(write.write(paths.json_path(), json), tree.clone());
        let side = *side.get_or_insert_with(|| delete(self));
        self.t.github.force_to(main);
        let merge = Changes::default().merge(side).message("merge");
        let after = self.commit_tree(merge.write("README.md", side.to_string()), tree);
        self.occurred("merge");
        self.note(format!(
            "merge of a branch that deletes {video}: {}",
            after.short()
        ));
        self.announce(base, after, vec![video]).await;
    }

    // Webhooks.

    /// Delivers the webhook of a push; or not, or not yet.
    async fn announce(&mut self, before: GitSha, after: GitSha, named: Vec<usize>) {
        self.heads.push(after);
        let delivery = self.t.github.push(before, after);
        let hook = Hook { delivery, named };
        for video in &hook.named {
            self.videos[*video].lost = true;
        }
        match self.rng.u8(0..8) {
            0 if self.sweeps && self.has("hooks") => {
                self.occurred("hooks");
                self.note("its webhook is lost");
            }
            1 if self.has("hooks") => {
                self.occurred("hooks");
                self.note("its webhook is late");
                self.hooks.push(hook);
            }
            _ => self.deliver(hook).await,
        }
    }

    pub async fn deliver(&mut self, hook: Hook) {
        let answer = self.t.deliver(&hook.delivery).await.expect_accepted();
        let requested = answer.json["videos"].to_string();
        for video in &hook.named {
            let model = &mut self.videos[*video];
            // A late webhook of a deletion requests nothing, although more may have been pushed since.
            if answer.json["scan"] == true || requested.contains(&model.key.video_id.to_string()) {
                model.lost = false;
            }
        }
        self.delivered.push(hook);
    }

    /// Late webhooks arrive in any order; old ones are redelivered, or replayed with new GUIDs.
    async fn replay(&mut self) {
        self.rng.shuffle(&mut self.hooks);
        for hook in std::mem::take(&mut self.hooks) {
            self.note("a late webhook arrives");
            self.deliver(hook).await;
        }
        if self.delivered.is_empty() {
            return;
        }
        let at = self.rng.usize(0..self.delivered.len());
        let times = [1, 2, 20][self.rng.usize(0..3)];
        let (scan, fresh) = (self.one_in(2), self.one_in(2));
        let mut delivery = self.delivered[at].delivery.clone();
        self.note(format!(
            "webhook {at} again, {times} times; scan: {scan}, new GUIDs: {fresh}"
        ));
        self.occurred("hooks");
        for _ in 0..times {
            if scan {
                delivery.payload["before"] = "0".repeat(40).into();
            }
            if fresh {
                delivery.guid = Uuid::from_u128(self.rng.u128(..)).to_string();
            }
            self.t.deliver(&delivery).await.expect_accepted();
        }
    }

    // The app.

    async fn row(&mut self) {
        if self.one_in(3) && self.postgres() && self.has("odd-row") {
            let (id, lesson, user) = (Uuid::new_v4(), Uuid::new_v4(), self.t.user);
            let at = ["infinity", "-infinity", "2999-01-01"][self.rng.usize(0..3)];
            let metadata = ["null", "'[]'", "'\"text\"'"][self.rng.usize(0..3)];
            self.note(format!("a row of {at}"));
            self.occurred("odd-row");
            let insert = format!(
                "insert into lessons (id, user_id, title) values ('{lesson}', '{user}', 'odd');
                 insert into lesson_assets (id, lesson_id, user_id, kind, storage_bucket, mime_type, created_at, metadata)
                 values ('{id}', '{lesson}', '{user}', 'video', 'odd', '', '{at}', {metadata})"
            );
            return self.t.sql(&insert).await;
        }
        let missing: Vec<_> = (0..self.videos.len())
            .filter(|video| !self.videos[*video].has_row)
            .collect();
        if let Some(video) = missing.first()
            && self.app_can_update()
        {
            self.insert_row(*video).await;
            self.excuse();
        }
    }

    /// The app changes a row while its video is ingested.
    async fn move_row(&mut self, name: &'static str) {
        let video = self.any();
        if !self.videos[video].has_row || !self.app_can_update() || self.faults.hides_objects() {
            return;
        }
        let before = self.t.github.head();
        let after = self.commit(&[video]);
        self.note(format!(
            "push of {video} before its row moves: {}",
            after.short()
        ));
        self.announce(before, after, vec![video]).await;
        let hold = self.hold();
        let (worker, mut reached) = (self.any_worker(), false);
        {
            let mut work = Box::pin(drain(worker));
            tokio::select! {
                () = &mut work => {}
                () = hold.reached() => reached = true,
            }
            self.move_now(name, video).await;
            hold.release();
            if reached {
                work.await;
            }
        }
        if reached {
            self.occurred(name);
        }
    }

    async fn move_now(&mut self, name: &'static str, video: usize) {
        let id = self.videos[video].key.video_id;
        let model = &mut self.videos[video];
        let update = match name {
            "move-owner" => {
                model.user = Uuid::from_u128(self.rng.u128(..));
                format!("user_id = '{}'", model.user)
            }
            "move-bucket" => {
                let old = model.bucket;
                model.bucket = BUCKETS[usize::from(old == BUCKETS[0])];
                let new = model.bucket;
                let seen = self
                    .seen()
                    .await
                    .remove(&id.to_string())
                    .unwrap_or_default();
                // The app copies the object first.
                if let Some(path) = seen.path {
                    self.copy(old, new, &path);
                }
                format!("storage_bucket = '{new}'")
            }
            _ => {
                let lesson = if model.lesson_moved {
                    model.key.lesson_id
                } else {
                    Uuid::from_u128(self.rng.u128(..))
                };
                model.lesson_moved = !model.lesson_moved;
                model.excuses.insert(Code::RowMismatch);
                model.drifted |= model.was_ready;
                if self.postgres() {
                    let user = self.t.user;
                    let database = self.t.database.as_ref().unwrap();
                    database.insert_lesson(lesson, user).await;
                }
                format!("lesson_id = '{lesson}'")
            }
        };
        self.note(format!("row {video} moves: {update}"));
        let update = format!("update lesson_assets set {update} where id = '{id}'");
        self.t.sql(&update).await;
        self.excuse();
    }

    fn copy(&self, from: &str, to: &str, path: &str) {
        if self.postgres() {
            let storage = &self.t.storage;
            return storage.copy(&format!("{from}/{path}"), &format!("{to}/{path}"));
        }
        let store = self.t.data_dir().join("store");
        let target = store.join(to).join(path);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        let _ = std::fs::copy(store.join(from).join(path), target);
    }

    /// Rows come back to their lessons.
    pub async fn move_back(&mut self) {
        for video in 0..self.videos.len() {
            if self.videos[video].lesson_moved {
                self.move_now("move-lesson", video).await;
            }
        }
    }

    /// The app holds a lock on its table while webhooks arrive and all workers poll.
    async fn lock(&mut self) {
        // A pooler has fewer connections than a server: those that wait for the lock can use up all.
        let database = match (&self.t.database, self.t.backend) {
            (Some(database), Backend::Supabase) => database,
            _ => return,
        };
        let mut held = database.admin.begin().await.unwrap();
        let statement = "lock table lesson_assets in access exclusive mode";
        sqlx::raw_sql(statement).execute(&mut *held).await.unwrap();
        self.note("the app locks its table");
        self.occurred("lock");
        let worker = self.any_worker();
        let polls = join_all((0..POLLS).map(|_| worker.run_once()));
        let before = self.t.github.head();
        let videos = self.some_videos();
        let after = self.commit(&videos);
        self.heads.push(after);
        let delivery = self.t.github.push(before, after);
        let deliver = async {
            let blocked = "select count(*)::text from pg_locks as l join pg_database as d on d.oid = l.database
                where d.datname = current_database() and not l.granted";
            for _ in 0..50 {
                sleep(Duration::from_millis(10)).await;
                if self.t.text(blocked).await.unwrap() == POLLS.to_string() {
                    break;
                }
            }
            let answer = tokio::time::timeout(INTAKE_MAX, self.t.deliver(&delivery)).await;
            held.rollback().await.unwrap();
            answer.map(|answer| answer.status)
        };
        let (polls, answer) = tokio::join!(polls, deliver);
        for poll in polls {
            if let Err(error) = poll {
                self.note(format!("a worker failed: {error}"));
            }
        }
        assert_eq!(answer, Ok(202), "a delivery while the app locks its table");
        self.note(format!("push of {videos:?}: {}", after.short()));
    }

    // The server.

    async fn sweep(&mut self, verify: bool) {
        let worker = self.any_worker();
        let options = SweepOptions {
            verify,
            ..SweepOptions::default()
        };
        let swept = worker.sweep.run(&options).await;
        self.occurred(if verify { "verify" } else { "sweep" });
        self.note(format!("sweep, verify: {verify}: {}", swept.is_ok()));
        match swept {
            Ok(_)
                if !self.faults.hides_head()
                    && !self.faults.is(|f| matches!(f, Fault::Truncated(_))) =>
            {
                for video in &mut self.videos {
                    video.lost = false;
                }
            }
            Ok(_) => {}
            Err(error) => assert!(
                self.faults.hides_head(),
                "a sweep failed: {}",
                video_ingest::format::causes(&error)
            ),
        }
    }

    async fn retry(&mut self) {
        let video = self.any();
        let path = format!("/api/videos/{}/retry", self.videos[video].key.video_id);
        let status = self.t.ask(&path).await.status;
        self.note(format!("retry of {video}: {status}"));
        self.occurred("retry");
        assert!([202, 404, 409].contains(&status), "retry: {status}");
        // A failed video can be retried before anything was pushed for it: the branch really does not
        // contain it then.
        if status == 202 && self.videos[video].versions.is_empty() {
            self.videos[video].kept = false;
        }
    }

    /// The next upload of a video is not answered, and is committed after a newer one.
    async fn late_upload(&mut self) {
        let video = self.any();
        if !self.postgres() || self.faults.holds_upload(video) {
            return;
        }
        let very = self.one_in(4);
        let seconds = if very { 4000 } else { 120 };
        self.commit_late(video, Duration::from_secs(seconds)).await;
        self.videos[video].drifted |= very;
        for seconds in [0, 4, 4] {
            let before = self.t.github.head();
            let after = self.commit(&[video]);
            self.note(format!("push of {video}: {}", after.short()));
            self.announce(before, after, vec![video]).await;
            self.later(Duration::from_secs(seconds)).await;
            self.work().await;
        }
    }

    fn hold(&mut self) -> Hold {
        if self.postgres() && self.one_in(2) {
            Hold::Upload(self.t.storage.pause_before_last_byte())
        } else {
            Hold::Download(
                self.t
                    .github
                    .pause(|call| call.path.contains("/git/blobs/")),
            )
        }
    }

    /// A worker dies: after the claim, during the download, or before or after the end of an upload.
    async fn death(&mut self) {
        let worker = self.any_worker();
        if self.one_in(3) {
            if worker.db.claim(LEASE).await.unwrap().is_some() {
                self.occurred("death");
                self.note("a worker dies after its claim");
            }
        } else {
            let hold = self.hold();
            let mut work = Box::pin(drain(worker));
            let reached = tokio::select! {
                () = &mut work => false,
                () = hold.reached() => true,
            };
            if self.one_in(2) {
                drop(work);
                hold.release();
            } else {
                hold.release();
                tokio::task::yield_now().await;
                drop(work);
            }
            if reached {
                self.occurred("death");
                self.note("a worker dies in an attempt");
            }
        }
        if self.one_in(2) {
            self.later(LEASE + Duration::from_secs(1)).await;
        }
    }

    /// All servers work at the same time, and sweep.
    async fn race(&mut self) {
        let Some(replica) = self.replica.clone() else {
            return;
        };
        self.push(false).await;
        self.occurred("race");
        let sweep = async |worker: &Worker, sweeps: bool| {
            if sweeps {
                let _ = worker.sweep.run(&SweepOptions::default()).await;
            }
        };
        let (one, two) = (self.sweeps && self.one_in(2), self.sweeps && self.one_in(2));
        let worker = self.t.worker.clone();
        tokio::join!(
            drain(worker.clone()),
            drain(replica.clone()),
            drain(replica.clone()),
            sweep(&worker, one),
            sweep(&replica, two),
        );
        self.note("both servers worked at the same time");
    }

    async fn jump(&mut self) {
        self.occurred("clock");
        let minutes = self.rng.u64(1..=360);
        let by = Duration::from_secs(60 * minutes);
        if self.one_in(2) && !self.faults.set_back {
            self.note(format!("the clock is set back by {minutes} min"));
            self.faults.set_back = true;
            self.t.earlier(by);
        } else {
            self.note(format!("the clock jumps forward by {minutes} min"));
            self.later(by).await;
        }
    }

    /// A service is down for more than a day.
    async fn outage(&mut self) {
        if self.faults.any() {
            return;
        }
        let fault = match self.one_in(2) {
            true => Fault::GithubDown,
            false => Fault::StorageDown,
        };
        self.faults.long_outage = true;
        self.occurred("outage");
        self.begin_fault(fault, Duration::from_secs(29 * 3600))
            .await;
        for _ in 0..15 {
            if self.one_in(4) {
                self.push(false).await;
            }
            self.work().await;
            self.later(Duration::from_secs(2 * 3600)).await;
        }
        self.check(false).await;
    }
}
