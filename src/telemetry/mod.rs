//! Logs: readable text on a terminal, JSON elsewhere, with the same field names in both.

pub mod metrics;

use std::io::IsTerminal as _;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt};

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
    match json {
        true => registry.with(json_lines(std::io::stderr)).init(),
        false => {
            let layer = fmt::layer().with_writer(std::io::stderr);
            registry.with(layer.with_target(false)).init();
        }
    }
}

/// One JSON object per line, the fields beside time, level and message.
pub fn json_lines<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fmt::layer().with_writer(writer).json().flatten_event(true)
}
