//! Where events go.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::args::LogFormat;

/// Writes events to standard error from now on. `RUST_LOG` overrides the level.
pub(crate) fn start(format: LogFormat, verbosity: u8) {
    let level = match verbosity {
        0 => "info",
        1 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let events = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr);
    match format {
        LogFormat::Json => events.json().init(),
        LogFormat::Text => events.with_target(false).with_ansi(stderr().is_terminal()).init(),
    }
}
