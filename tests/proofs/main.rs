//! Long-running checks: the binary is killed, and its database fails, many times.
//!
//! ```text
//! cargo test --test proofs                                     the short form, for CI
//! cargo test --release --test proofs -- long                   the long form
//! cargo test --release --test proofs -- long kill seed=7       one of them, repeated
//! cargo test --release --test proofs -- pages                  a million videos; only on request
//! cargo test --test proofs -- screenshots                      saves target/screenshots; only on request
//! cargo test --release --test proofs -- world seed=7 worlds=200   200 randomized worlds
//! cargo test --release --test proofs -- month seed=7           a month at 100 times the load; only on request
//! ```
//!
//! The list of acknowledged deliveries is kept here, outside the server processes. The first check that fails
//! panics, so that the exit code is not 0.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::time::Instant;

use tokio::runtime::Runtime;

mod database;
mod environment;
mod kill;
mod month;
mod pages;
mod screenshots;
mod server;
#[allow(dead_code)] // Written for the scenarios of `it`; the proofs use only a part.
#[path = "../it/support/mod.rs"]
mod support;
mod worlds;

/// The arguments of the command line.
pub struct Options {
    long: bool,
    /// Random, unless it is given.
    seed: u64,
    /// The seed of the first world. Without `seed=` always the same, so that the short form is repeatable.
    first_world: u64,
    only: Option<String>,
    /// `worlds=`: how many worlds.
    worlds: Option<usize>,
    /// `only=`: the behaviours of the worlds; none: all.
    behaviours: Vec<String>,
}

fn main() {
    let mut options = Options {
        long: false,
        seed: fastrand::u64(..1 << 32),
        first_world: 1,
        only: None,
        worlds: None,
        behaviours: Vec::new(),
    };
    // Options such as `--nocapture` are for the other test targets.
    #[expect(
        clippy::disallowed_methods,
        reason = "what to run is chosen by arguments"
    )]
    let words = std::env::args();
    for word in words.skip(1).filter(|word| !word.starts_with('-')) {
        match word.split_once('=') {
            None if word == "long" => options.long = true,
            None => options.only = Some(word),
            Some(("seed", seed)) => {
                options.seed = seed.parse().expect("seed=<number>");
                options.first_world = options.seed;
            }
            Some(("worlds", worlds)) => {
                options.worlds = Some(worlds.parse().expect("worlds=<number>"));
            }
            Some(("only", names)) => {
                options.behaviours = names.split(',').map(str::to_owned).collect();
            }
            Some((name, _)) => panic!("there is no option {name}"),
        }
    }
    let runtime = Runtime::new().unwrap();
    type Prove = fn(&Runtime, &Options);
    let proofs: [(_, _, Prove); 6] = [
        ("kill", true, |runtime, options| {
            kill::prove(runtime, options.long, options.seed);
        }),
        ("database", true, |runtime, options| {
            database::prove(runtime, options.long, options.seed);
        }),
        ("world", true, |_, options| worlds::prove(options)),
        ("pages", false, |runtime, _| {
            runtime.block_on(pages::prove());
        }),
        ("screenshots", false, |runtime, _| {
            runtime.block_on(screenshots::take());
        }),
        ("month", false, |runtime, options| {
            runtime.block_on(month::prove(options.seed));
        }),
    ];
    for (name, by_default, prove) in proofs {
        if options
            .only
            .as_deref()
            .map_or(by_default, |only| only == name)
        {
            let began = Instant::now();
            prove(&runtime, &options);
            println!("  took {} s", began.elapsed().as_secs());
        }
    }
}

/// Runs the jobs on this many threads. Tasks would not suffice, because jobs block while their processes
/// start. No job begins after one has failed.
fn side_by_side<J: Send, T: Send>(
    threads: usize,
    jobs: Vec<J>,
    run: impl Fn(J) -> T + Sync,
) -> Vec<T> {
    let jobs = Mutex::new(jobs.into_iter());
    let work = || {
        let mut done = Vec::new();
        loop {
            let Some(job) = jobs.lock().unwrap().next() else {
                return done;
            };
            match catch_unwind(AssertUnwindSafe(|| run(job))) {
                Ok(result) => done.push(result),
                Err(panic) => {
                    jobs.lock().unwrap().by_ref().for_each(drop);
                    resume_unwind(panic);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let done = threads.into_iter().map(|thread| thread.join());
        done.flat_map(|done| done.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}
