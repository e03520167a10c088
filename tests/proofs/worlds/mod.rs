//! Randomized worlds: everything around the server is late, stale and moving, and at the end it must not show.
//!
//! Each world is a server (or two replicas) with fakes, a worker that is driven by hand and a clock that is
//! moved. Random events change it; then everything recovers, and each video must be what the branch says.
//! [`model`] says what must be true, [`events`] what happens, [`faults`] what is broken during them, and
//! [`end`] what must be true at the end.
//!
//! A violation prints the seed of its world. `world seed=<seed> worlds=1` repeats this world, with the
//! server's log. `only=<behaviour>,<behaviour>` leaves the other behaviours out, to see what causes it.

mod end;
mod events;
mod faults;
mod model;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Builder;

use crate::{Options, side_by_side};
use model::World;

/// How many worlds exist at the same time.
const THREADS: usize = 2;

/// The worlds of the short form, and of the long one.
const WORLDS: [usize; 2] = [20, 200];

/// From so many worlds on, each behaviour must have occurred [`OCCURRED_MIN`] times.
const WORLDS_COUNTED: usize = 200;
const OCCURRED_MIN: usize = 20;

/// A world that takes longer hangs. Real time.
const WORLD_MAX: Duration = Duration::from_secs(180);

/// What may happen in a world. The names are those of `only=`.
pub const BEHAVIOURS: [&str; 29] = [
    "sweep",
    "verify",
    "stale",
    "compare",
    "late-upload",
    "bucket-limit",
    "bucket-types",
    "bucket-gone",
    "move-lesson",
    "move-owner",
    "move-bucket",
    "row-denied",
    "storage-quota",
    "storage-paused",
    "storage-down",
    "storage-key",
    "lfs",
    "truncated",
    "clock",
    "lock",
    "merge",
    "hooks",
    "forced",
    "death",
    "race",
    "retry",
    "waiting",
    "odd-row",
    "outage",
];

/// What happened in a world. Shared with the thread that reports a violation.
#[derive(Default)]
pub struct Log {
    /// On which back end.
    pub backend: String,
    /// The events so far.
    pub events: Vec<String>,
    /// How often each behaviour occurred.
    pub occurred: BTreeMap<&'static str, usize>,
    /// The calls to GitHub.
    pub calls: usize,
}

/// A world in which something was not true.
struct Violation {
    seed: u64,
    message: String,
}

pub fn prove(options: &Options) {
    let worlds = options.worlds.unwrap_or(WORLDS[usize::from(options.long)]);
    println!("{worlds} randomized worlds, seed={}", options.first_world);
    for name in &options.behaviours {
        assert!(BEHAVIOURS.contains(&&**name), "only= of {BEHAVIOURS:?}");
    }
    let seeds = (0..worlds as u64).map(|n| options.first_world.wrapping_add(n));
    let done = side_by_side(THREADS, seeds.collect(), |seed| run(seed, options, worlds));
    let mut occurred: BTreeMap<_, _> = BEHAVIOURS.map(|name| (name, (0, 0))).into();
    let (mut violations, mut calls, mut calls_max) = (Vec::new(), 0, 0);
    for (log, violation) in done {
        for (name, times) in &log.occurred {
            let (sum, worlds) = occurred.entry(name).or_default();
            (*sum, *worlds) = (*sum + times, *worlds + 1);
        }
        calls += log.calls;
        calls_max = calls_max.max(log.calls);
        violations.extend(violation);
    }
    for (name, (times, worlds)) in &occurred {
        println!("  {name}: {times} times in {worlds} worlds");
    }
    println!("  {calls} calls to GitHub, at most {calls_max} in one world");
    violations.sort_by_key(|violation| violation.seed);
    for Violation { seed, message } in &violations {
        println!("  violated: seed={seed}: {message}");
    }
    let found = violations.len();
    assert!(found == 0, "{found} of {worlds} worlds were violated");
    if worlds >= WORLDS_COUNTED && options.behaviours.is_empty() {
        for (name, (times, _)) in occurred {
            assert!(times >= OCCURRED_MIN, "{name} occurred only {times} times");
        }
    }
    println!("  0 violations");
}

/// One world, from beginning to end.
fn run(seed: u64, options: &Options, worlds: usize) -> (Log, Option<Violation>) {
    // The jitter of the retries uses this thread's random numbers.
    fastrand::seed(seed);
    let log = Arc::<Mutex<Log>>::default();
    let live = async {
        let only = options.behaviours.clone();
        let world = World::begin(seed, only, log.clone(), worlds == 1);
        let lived = async { Box::pin(world).await.live().await };
        let lived = tokio::time::timeout(WORLD_MAX, Box::pin(lived)).await;
        assert!(lived.is_ok(), "the world hangs");
    };
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let lived = catch_unwind(AssertUnwindSafe(|| runtime.block_on(Box::pin(live))));
    runtime.shutdown_background();
    let log = std::mem::take(&mut *log.lock().unwrap_or_else(|e| e.into_inner()));
    let violation = lived.err().map(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        let message = text.unwrap_or("a panic without a text").to_owned();
        println!(
            "world seed={seed} on {}: {message}\n    {}",
            log.backend,
            log.events.join("\n    ")
        );
        let message = format!(
            "on {}: {}",
            log.backend,
            message.lines().next().unwrap_or_default()
        );
        Violation { seed, message }
    });
    (log, violation)
}
