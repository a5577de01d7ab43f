//! Logs: text for people or JSON for collectors, on standard error.
//!
//! The level given by the user is for s3view alone. Dependencies stay at `warn` at most, whatever
//! is asked for: at their debug levels HTTP and signing libraries print headers.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text for each event.
    Text,
    /// One JSON object for each event.
    Json,
}

/// Sends all further events to standard error. Call once, before anything is logged.
pub fn init(format: LogFormat, level: LevelFilter) {
    let dependencies = level.min(LevelFilter::WARN);
    let filter = Targets::new()
        .with_default(dependencies)
        .with_target("s3view", level)
        .with_target("s3view_node", level)
        .with_target("s3view_controller", level);
    let registry = tracing_subscriber::registry().with(filter);
    let layer = fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).init(),
        LogFormat::Text => registry.with(layer.with_ansi(std::io::stderr().is_terminal())).init(),
    }
}
