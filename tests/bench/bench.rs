//! The benchmark: every row against its anchor, in turn, in the same run.
//!
//! ```text
//! cargo bench --bench bench                       all rows, at most half an hour
//! cargo bench --bench bench -- --only A           one of them
//! cargo bench --bench bench -- --only soak        an hour of load: does the memory grow?
//! ```
//!
//! Everything runs on this machine's loopback, so clients, fakes and databases share its processors
//! with what is measured; the anchors do so, too. What was acknowledged is looked up in the database
//! afterwards, and every stored object is hashed: a row whose figures cost a promise panics.

mod anchors;
mod intake;
mod link;
mod load;
mod replicas;
mod report;
mod server;
mod starting;
mod storage;
#[allow(dead_code)] // Made for the scenarios of `it`; the benchmark needs less of it.
#[path = "../it/support/mod.rs"]
mod support;
mod sweeps;
mod transfers;

use report::Report;

/// What each row is measured for.
const ROUNDS: usize = 5;

fn main() {
    #[expect(
        clippy::disallowed_methods,
        reason = "what to run is chosen by arguments"
    )]
    let mut words = std::env::args().skip(1);
    let mut only = None;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--only" => only = words.next(),
            // What cargo itself adds.
            "--bench" => {}
            _ => panic!("usage: cargo bench --bench bench -- [--only ROW]"),
        }
    }
    let wanted = |rows: &str| match &only {
        None => rows != "soak",
        Some(only) => rows.split(' ').any(|row| row == only),
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut report = Report::default();
    println!("{}\n", report::machine());
    if wanted("A B C ping") {
        runtime.block_on(intake::measure(&mut report, &wanted));
    }
    if wanted("D E F G") {
        runtime.block_on(transfers::measure(&mut report, &wanted));
    }
    if wanted("H") {
        runtime.block_on(sweeps::measure(&mut report));
    }
    if wanted("I") {
        runtime.block_on(replicas::measure(&mut report));
    }
    if wanted("J") {
        runtime.block_on(starting::measure(&mut report));
    }
    if wanted("soak") {
        runtime.block_on(transfers::soak(&mut report));
    }
    println!("\n{report}");
}
