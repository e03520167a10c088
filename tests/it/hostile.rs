//! Malformed bytes and random sequences of events cause no panic and no hang, and at the end the stored
//! videos match the branch.
//!
//! The long forms: `PROPTEST_CASES=100000`, `MODEL_RUNS=10000`, and `tests/fuzz` with cargo-fuzz.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use video_ingest::clock::Clock;
use video_ingest::domain::failure::Class;
use video_ingest::domain::ids::GitSha;
use video_ingest::fake_github::Delivery;
use video_ingest::pipeline::sweep::SweepOptions;
use video_ingest::services::github::Github;

use crate::support::fake_github::{Fault, TestGithub};
use crate::support::scenario::{Backend, GOOD, REPOSITORY, Scenario, Video};
use targets::{TARGETS, Target};

/// The longest time that one input may take, on a slow machine in a debug build.
const HANG: Duration = Duration::from_secs(5);

fn files(dir: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(dir);
    let mut paths: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

/// The target's corpus, and the other fixtures of its kind.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut corpus = files(&format!("fuzz/{target}"));
    match target {
        "mp4" | "pointer" => corpus.extend(files("videos")),
        "push" | "form" => corpus.extend(files("webhooks")),
        "openhands" => corpus.extend(files("openhands")),
        _ => {}
    }
    corpus
}

fn in_time(target: Target, input: &[u8]) {
    let began = Instant::now();
    target(input);
    assert!(
        began.elapsed() < HANG,
        "{:?} for {} bytes",
        began.elapsed(),
        input.len()
    );
}

#[test]
fn the_corpus_causes_no_panic_or_hang() {
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        assert!(corpus.len() >= 3, "{name}: no corpus");
        corpus.iter().for_each(|input| in_time(target, input));
    }
}

#[derive(Clone, Debug)]
enum Mutation {
    Flip(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, usize, usize),
    Delete(prop::sample::Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<prop::sample::Index>;
    let token = prop::sample::select(vec![
        "[", "{\"a\":", "null", "-1", "1e999", "\\ud800", "\"\"", "../", "%00", "\0", "_",
    ]);
    prop_oneof![
        (at(), 1..=255u8).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        (at(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, new)| Mutation::Insert(at, new)),
        (at(), token).prop_map(|(at, new)| Mutation::Insert(at, new.into())),
        (at(), 1..40usize, 1..300usize)
            .prop_map(|(at, bytes, times)| Mutation::Repeat(at, bytes, times)),
        (at(), 1..40usize).prop_map(|(at, bytes)| Mutation::Delete(at, bytes)),
    ]
}

fn mutated(mut input: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let at = |at: &prop::sample::Index| at.index(input.len() + 1);
        match mutation {
            Mutation::Flip(index, bits) => {
                let at = at(index);
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Mutation::Insert(index, new) => {
                let at = at(index);
                input.splice(at..at, new.iter().copied());
            }
            Mutation::Repeat(index, bytes, times) => {
                let at = at(index);
                let piece = input[at..input.len().min(at + bytes)].repeat(*times);
                input.splice(at..at, piece);
            }
            Mutation::Delete(index, bytes) => {
                let at = at(index);
                input.drain(at..input.len().min(at + bytes));
            }
        }
    }
    input
}

proptest! {
    #[test]
    fn a_mutated_corpus_causes_no_panic_or_hang(
        (target, input) in prop::sample::select(TARGETS.to_vec())
            .prop_flat_map(|(name, target)| (Just(target), prop::sample::select(corpus(name)))),
        mutations in prop::collection::vec(mutation(), 0..8),
    ) {
        in_time(target, &mutated(input, &mutations));
    }

    #[test]
    fn random_bytes_cause_no_panic_or_hang(input in prop::collection::vec(any::<u8>(), 0..2000)) {
        TARGETS.iter().for_each(|(_, target)| in_time(*target, &input));
    }
}

/// For every response of GitHub's API about the branch, the result is a listing or a retried failure.
#[test]
fn mutated_listings_cause_no_panic_or_hang() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let github = runtime.block_on(TestGithub::start(REPOSITORY));
    let video = Video::good();
    github.commit(|c| {
        c.write(video.mp4_path(), "x")
            .write("videos/notes.txt", "x")
    });
    let text = |path: &str| {
        let url = format!("{}/repos/{REPOSITORY}/{path}", github.url());
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        runtime.block_on(async { client.get(url).send().await.unwrap().text().await.unwrap() })
    };
    let commit = text("commits/HEAD");
    let tree = serde_json::from_str::<serde_json::Value>(&commit).unwrap()["commit"]["tree"]["sha"]
        .clone();
    let answers = [
        ("/commits/", commit.clone()),
        (
            "/git/trees/",
            text(&format!("git/trees/{}", tree.as_str().unwrap())),
        ),
    ];
    let strategy = (
        prop::sample::select(answers.to_vec()),
        prop::collection::vec(mutation(), 1..5),
    );
    let tried = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })
    .run(&strategy, |((path, answer), mutations)| {
        let body = String::from_utf8_lossy(&mutated(answer.into_bytes(), &mutations)).into_owned();
        github.clear_faults();
        github.fault(
            move |call| call.path.contains(path),
            Fault::Status {
                code: 200,
                headers: vec![],
                body,
            },
        );
        let listed = runtime.block_on(async {
            let client = Github::new(
                &github.url(),
                None,
                REPOSITORY.parse().unwrap(),
                None,
                "videos",
                Clock::default(),
            )
            .unwrap();
            tokio::time::timeout(HANG, client.listing(tokio::time::Instant::now())).await
        });
        match listed {
            Err(_) => prop_assert!(false, "the listing hangs"),
            // A tree with another SHA does not exist.
            Ok(Err(failure)) => prop_assert!(
                [Class::Transient, Class::Configuration].contains(&failure.code.class()),
                "{}",
                failure
            ),
            Ok(Ok(_)) => {}
        }
        Ok(())
    });
    tried.unwrap();
}

/// All versions of each video in the branch, in the order of their commits.
#[derive(Default)]
struct Model {
    versions: HashMap<String, Vec<Bytes>>,
    /// The latest version seen in the storage, by video.
    seen: HashMap<String, usize>,
    /// The stored version at the time of a force push; any other version may follow it.
    forced: HashMap<String, usize>,
}

impl Model {
    /// A playable video that differs from all other versions.
    fn next(&mut self, video: &Video) -> Video {
        let versions = self.versions.entry(video.id()).or_default();
        let mut mp4 = GOOD.to_vec();
        mp4.extend_from_slice(&12u32.to_be_bytes());
        mp4.extend_from_slice(b"free");
        mp4.extend_from_slice(&(versions.len() as u32).to_be_bytes());
        versions.push(mp4.clone().into());
        video.rerendered(&mp4)
    }

    /// Expects that only pushed versions are stored, and none that is older than the one before.
    fn check(&mut self, t: &Scenario, videos: &[Video], what: &str) {
        for video in videos {
            let Some(stored) = t.stored(video) else {
                continue;
            };
            let versions = self.versions.entry(video.id()).or_default();
            let version = versions.iter().position(|bytes| *bytes == stored);
            let version = version.unwrap_or_else(|| panic!("{what}: bytes that were never pushed"));
            let seen = self.seen.entry(video.id()).or_default();
            match self.forced.get(&video.id()) {
                Some(before) if *before == version => continue,
                Some(_) => drop(self.forced.remove(&video.id())),
                None => assert!(version >= *seen, "{what}: version {version} after {seen}"),
            }
            *seen = version;
        }
    }
}

async fn random_events(backend: Backend, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let t = Scenario::begin(backend).await;
    let videos: Vec<Video> = (0..3).map(|_| Video::good()).collect();
    let mut model = Model::default();
    let (mut deliveries, mut heads): (Vec<Delivery>, Vec<GitSha>) =
        (Vec::new(), vec![t.github.head()]);
    for video in &videos {
        t.row(video).await;
    }
    let mut events = Vec::new();
    for _ in 0..random.usize(10..40) {
        let event = random.u8(..13);
        events.push(event);
        let what = format!("seed {seed}, events {events:?}");
        match event {
            // A push whose webhook arrives at once, late (by a replay) or never.
            0..=3 => {
                let video = model.next(&videos[random.usize(..videos.len())]);
                let before = t.github.head();
                t.commit(&video);
                deliveries.push(t.github.push(before, t.github.head()));
                heads.push(t.github.head());
                if random.bool() {
                    t.deliver(deliveries.last().unwrap())
                        .await
                        .expect_accepted();
                }
            }
            // Redelivered, duplicated, out of order.
            4 | 5 if !deliveries.is_empty() => {
                let mut delivery = deliveries[random.usize(..deliveries.len())].clone();
                if random.bool() {
                    delivery.guid = format!("replay-{}", events.len());
                }
                t.deliver(&delivery).await.expect_accepted();
            }
            // A worker claims a video and dies.
            6 => drop(t.db.claim(t.worker.lease).await.unwrap()),
            7 => t.later(Duration::from_secs(random.u64(1..3 * 3600))),
            8 => drop(t.worker.sweep.run(&SweepOptions::default()).await),
            // A force push: the older version is now the correct one.
            9 if random.u8(..4) == 0 => {
                let (new, old) = (t.github.head(), heads[random.usize(..heads.len())]);
                t.github.force_to(old);
                model.forced = model.seen.clone();
                deliveries.push(t.github.push(new, old));
                if new != old {
                    t.deliver(deliveries.last().unwrap())
                        .await
                        .expect_accepted();
                }
            }
            // The API lags behind the push for a moment.
            10 if heads.len() > 1 => {
                let video = model.next(&videos[0]);
                let before = t.github.head();
                t.commit(&video);
                let push = t.github.push(before, t.github.head());
                t.github.serve_head(Some(before));
                t.deliver(&push).await.expect_accepted();
                for _ in 0..3 {
                    t.worker.run_once().await.unwrap();
                }
                t.github.serve_head(None);
                heads.push(t.github.head());
                deliveries.push(push);
            }
            _ => {
                t.worker.run_once().await.unwrap();
            }
        }
        model.check(&t, &videos, &what);
    }
    // At the end, videos without a webhook are found, and the leases of dead workers are taken over.
    for _ in 0..3 {
        t.later(Duration::from_secs(4500));
        t.work().await;
        let _ = t.worker.sweep.run(&SweepOptions::default()).await;
        t.work().await;
    }
    for video in &videos {
        let Some(blob) = t.github.blob_sha(&video.mp4_path()) else {
            continue;
        };
        let of_branch = model.versions[&video.id()]
            .iter()
            .find(|bytes| git_sha(bytes) == blob)
            .unwrap();
        let shown = t.video(video).await;
        assert_eq!(
            shown["state"], "ready",
            "seed {seed}, events {events:?}: {shown:#}"
        );
        t.expect_ready(&video.rerendered(of_branch)).await;
    }
    t.finish().await;
}

fn git_sha(bytes: &[u8]) -> GitSha {
    use sha1::Digest as _;
    let sha = sha1::Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes);
    GitSha::from_bytes(sha.finalize().into())
}

/// Random pushes, replays, reorderings, duplicates, crashes, clock jumps, lags and force pushes.
async fn in_any_order_the_branch_wins(backend: Backend, runs: u64) {
    #[expect(clippy::disallowed_methods, reason = "more of them in the long form")]
    let runs = std::env::var("MODEL_RUNS").map_or(runs, |runs| runs.parse().unwrap());
    for seed in 0..runs {
        random_events(backend, seed).await;
    }
    println!(
        "{runs} random sequences on {backend:?}, seeds 0 to {}: all match the branch",
        runs - 1
    );
}

#[tokio::test]
async fn in_any_order_on_sqlite() {
    in_any_order_the_branch_wins(Backend::Embedded, 40).await;
}

#[tokio::test]
async fn in_any_order_on_postgres() {
    in_any_order_the_branch_wins(Backend::Supabase, 15).await;
}
