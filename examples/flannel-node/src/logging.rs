//! Where events go.

use std::io::{IsTerminal, stderr};

use anyhow::{Context, Result};
use tracing::{Metadata, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer,
    filter::{Targets, filter_fn},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use flannel_daemon::InvalidOptions;

use crate::args::{LogArgs, LogFormat, ModuleLevels, level};

/// Writes events to standard error from now on. `RUST_LOG`, if set, says which instead of the flags.
///
/// # Errors
///
/// A [`InvalidOptions`] in `RUST_LOG`.
pub(crate) fn start(args: &LogArgs) -> Result<()> {
    let events = tracing_subscriber::fmt::layer().with_writer(stderr);
    let events = match args.log_format {
        LogFormat::Json => events.json().boxed(),
        LogFormat::Text => events.with_target(false).with_ansi(stderr().is_terminal()).boxed(),
    };
    let registry = tracing_subscriber::registry();
    match std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()) {
        Some(text) => {
            let targets = text.parse::<Targets>().context(
                "RUST_LOG cannot be read, expected a level or targets such as info,flannel_core=debug",
            );
            registry.with(events.with_filter(targets.map_err(InvalidOptions::new)?)).init();
        }
        None => {
            let (modules, level) = (args.vmodule.clone().unwrap_or_default(), level(args.v));
            let most = modules.most().map_or(level, |most| most.max(level));
            let wanted = filter_fn(move |event| is_wanted(event, &modules, level));
            registry.with(events.with_filter(wanted.with_max_level_hint(most))).init();
        }
    }
    Ok(())
}

fn is_wanted(event: &Metadata<'_>, modules: &ModuleLevels, level: LevelFilter) -> bool {
    *event.level() <= modules.level_of(event.target()).unwrap_or(level)
}
