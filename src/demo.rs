//! `video-ingest demo`: the whole way, shown on this machine with nothing configured.

use clap::{ArgMatches, Command};

/// Its command line.
pub fn command() -> Command {
    Command::new("demo")
        .about("Show the whole way from a push to a playable video, with nothing configured")
}

/// Runs it.
///
/// # Errors
/// The video did not become ready, or the stored bytes are not the pushed ones.
pub async fn run(_matches: &ArgMatches) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not there yet")
}
