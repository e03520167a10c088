//! Logs and metrics. Logs are text on a terminal and JSON otherwise, with the same field names.

pub mod metrics;
pub mod refused;

use std::io::IsTerminal as _;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::config::{LogConfig, LogFormat};

/// Directives for dependencies. octocrab is off because it logs every failed call as an error, and we log
/// errors once, where they are handled.
const QUIET: &str = "octocrab=off,hyper=off,sqlx=error";

/// Configures logging to standard error.
pub fn init(log: &LogConfig) {
    let filter = EnvFilter::new(format!("{QUIET},{}", log.filter));
    let json = match log.format {
        Some(LogFormat::Json) => true,
        Some(LogFormat::Text) => false,
        None => !std::io::stderr().is_terminal(),
    };
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(json_lines(std::io::stderr)).init();
    } else {
        let layer = fmt::layer().with_writer(std::io::stderr);
        registry.with(layer.with_target(false)).init();
    }
}

/// A layer that writes one JSON object per line, with the fields at the top level.
pub fn json_lines<S, W>(writer: W) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fmt::layer().with_writer(writer).json().flatten_event(true)
}
