//! Proofs by numbers: the real binary is killed, and its database taken away, again and again.
//!
//! ```text
//! cargo test --test proofs                                     the short form, for CI
//! cargo test --release --test proofs -- long                   the long form
//! cargo test --release --test proofs -- long kill seed=7       one of them, repeated
//! cargo test --release --test proofs -- pages                  a million videos; only if asked for
//! cargo test --test proofs -- screenshots                      the pages into target/screenshots; only if asked for
//! ```
//!
//! What was acknowledged is kept here, outside the processes. Ends with a panic, and so with an exit
//! code, at the first promise that does not hold.

use std::time::Instant;

mod database;
mod kill;
mod pages;
mod screenshots;
mod server;
#[allow(dead_code)] // Made for the stories of `it`; the proofs need less of it.
#[path = "../it/support/mod.rs"]
mod support;
mod world;

/// What the command line asks for.
struct Asked {
    long: bool,
    seed: u64,
    only: Option<String>,
}

fn main() {
    let mut asked = Asked {
        long: false,
        seed: fastrand::u64(..1 << 32),
        only: None,
    };
    // Options such as `--nocapture` are for the other test targets.
    for word in std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
    {
        match (word.as_str(), word.strip_prefix("seed=")) {
            ("long", _) => asked.long = true,
            (_, Some(seed)) => asked.seed = seed.parse().expect("seed=<number>"),
            _ => asked.only = Some(word),
        }
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let wanted = |name: &str| asked.only.as_deref().is_none_or(|only| only == name);
    if wanted("kill") {
        let began = Instant::now();
        runtime.block_on(kill::prove(asked.long, asked.seed));
        println!("  took {} s", began.elapsed().as_secs());
    }
    if wanted("database") {
        let began = Instant::now();
        runtime.block_on(database::prove(asked.long, asked.seed));
        println!("  took {} s", began.elapsed().as_secs());
    }
    if asked.only.as_deref() == Some("pages") {
        let began = Instant::now();
        runtime.block_on(pages::prove());
        println!("  took {} s", began.elapsed().as_secs());
    }
    if asked.only.as_deref() == Some("screenshots") {
        runtime.block_on(screenshots::take());
    }
}
