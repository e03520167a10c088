//! Logs and metrics. Logs are text on a terminal and JSON otherwise, with the same field names.

pub mod metrics;
pub mod refusals;
pub mod refused;
mod text;

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
    let terminal = std::io::stderr().is_terminal();
    let json = match log.format {
        Some(LogFormat::Json) => true,
        Some(LogFormat::Text) => false,
        None => !terminal,
    };
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(json_lines(std::io::stderr)).init();
    } else {
        registry.with(text_lines(std::io::stderr, terminal)).init();
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

/// A layer that writes one line of text per event, with escaped control characters. With `colors`, lines are
/// colored unless the environment variable `NO_COLOR` is set.
pub fn text_lines<S, W>(writer: W, colors: bool) -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    let layer = fmt::layer().with_writer(writer).with_target(false);
    let layer = if colors {
        layer
    } else {
        layer.with_ansi(false)
    };
    layer.fmt_fields(text::Fields)
}
