//! The benchmark: every row against its baseline, in turn, in the same run.
//!
//! ```text
//! cargo bench --bench bench                       all rows, at most half an hour
//! cargo bench --bench bench -- --only A           one row
//! cargo bench --bench bench -- --only soak        an hour of load, to measure the growth of memory
//! ```
//!
//! Everything runs on one machine, so that clients, fakes and databases share its processors with the server;
//! the same applies to the baselines. Afterwards, every acknowledged delivery must be in the database and
//! every stored object must have the correct hash; otherwise the row panics.

mod baselines;
mod intake;
mod link;
mod load;
mod replicas;
mod report;
mod server;
mod starting;
mod storage;
#[allow(dead_code)] // Written for the scenarios of `it`; the benchmark uses only a part.
#[path = "../it/support/mod.rs"]
mod support;
mod sweeps;
mod transfers;

use report::Report;

/// How often each row is measured.
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
            // Added by cargo.
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
