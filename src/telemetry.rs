//! Logs: readable text on a terminal, JSON elsewhere, with the same field names in both.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogConfig, LogFormat};

/// octocrab logs every failed call as an error; ours are logged once, where they are handled.
const QUIET: &str = "octocrab=off,hyper=off,sqlx=error";

/// Starts logging to standard error.
pub fn init(log: &LogConfig) {
    let filter = EnvFilter::new(format!("{QUIET},{}", log.filter));
    let json = match log.format {
        Some(LogFormat::Json) => true,
        Some(LogFormat::Text) => false,
        None => !std::io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match json {
        true => registry.with(layer.json().flatten_event(true)).init(),
        false => registry.with(layer.with_target(false)).init(),
    }
}
