//! Runs a node in the foreground.

use anyhow::{Context, Result};
use flannel_daemon::Daemon;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tracing::warn;

use crate::{
    args::{NodeArgs, Sandbox},
    heap,
};

/// Runs until SIGTERM or SIGINT, which leave lease and data path as they are.
pub(crate) fn run(args: &NodeArgs) -> Result<()> {
    heap::share();
    let mut daemon = Daemon::new(args.options()?)?;
    if args.sandbox.sandbox == Sandbox::Auto {
        daemon.enter_sandbox();
    }
    args.without_effect().iter().for_each(|text| warn!("without effect: {text}"));
    crate::block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(heap::trim(daemon.handle()));
        Ok(daemon.run_until(stop).await?)
    })
}
