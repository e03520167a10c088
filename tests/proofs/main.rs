//! Long-running checks: the binary is killed, and its database fails, many times.
//!
//! ```text
//! cargo test --test proofs                                     the short form, for CI
//! cargo test --release --test proofs -- long                   the long form
//! cargo test --release --test proofs -- long kill seed=7       one of them, repeated
//! cargo test --release --test proofs -- pages                  a million videos; only on request
//! cargo test --test proofs -- screenshots                      saves target/screenshots; only on request
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
mod kill;
mod month;
mod pages;
mod screenshots;
mod server;
#[allow(dead_code)] // Written for the scenarios of `it`; the proofs use only a part.
#[path = "../it/support/mod.rs"]
mod support;
mod world;

/// The arguments of the command line.
struct Options {
    long: bool,
    seed: u64,
    only: Option<String>,
}

fn main() {
    let mut options = Options {
        long: false,
        seed: fastrand::u64(..1 << 32),
        only: None,
    };
    // Options such as `--nocapture` are for the other test targets.
    #[expect(
        clippy::disallowed_methods,
        reason = "what to run is chosen by arguments"
    )]
    let words = std::env::args();
    for word in words.skip(1).filter(|word| !word.starts_with('-')) {
        match (word.as_str(), word.strip_prefix("seed=")) {
            ("long", _) => options.long = true,
            (_, Some(seed)) => options.seed = seed.parse().expect("seed=<number>"),
            _ => options.only = Some(word),
        }
    }
    let runtime = Runtime::new().unwrap();
    for (name, by_default, prove) in [
        ("kill", true, kill::prove as fn(&Runtime, bool, u64)),
        ("database", true, database::prove),
        ("pages", false, |runtime, _, _| {
            runtime.block_on(pages::prove())
        }),
        ("screenshots", false, |runtime, _, _| {
            runtime.block_on(screenshots::take())
        }),
        ("month", false, |runtime, _, seed| {
            runtime.block_on(month::prove(seed))
        }),
    ] {
        if options
            .only
            .as_deref()
            .map_or(by_default, |only| only == name)
        {
            let began = Instant::now();
            prove(&runtime, options.long, options.seed);
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
