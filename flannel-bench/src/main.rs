//! The numbers: convergence, throughput, footprint, recovery, acquisition and CNI plugins, side by side with other programs.
#![forbid(unsafe_code)]

mod acquire;
mod args;
mod arrivals;
mod captured;
mod cni;
mod converge;
mod etcd;
mod follow;
mod footprint;
mod kubernetes;
mod leases;
mod network;
mod proc;
mod program;
mod recover;
mod report;
mod session;
mod site;
mod stats;
mod throughput;
mod unit;

use std::{env, path::Path, process::ExitCode, sync::Arc};

use anyhow::{Context, Result, bail};
use args::{Cli, Command};
use clap::Parser;
use flannel_testbed::{capable, enter_user_namespace};
use program::programs;
use report::Report;
use session::Session;
use tokio::{
    runtime,
    signal::{
        ctrl_c,
        unix::{SignalKind, signal},
    },
};

fn main() -> ExitCode {
    match bench(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flannel-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Has to be called before the process has a second thread, because a user namespace is entered by one.
fn bench(cli: Cli) -> Result<()> {
    let programs = match cli.command {
        // It runs plugins and no node.
        Command::Cni(_) => Vec::new(),
        _ => programs(&cli.common)?,
    };
    let session = Arc::new(Session::new(cli.common, programs));
    if !capable() {
        enter_user_namespace().context("benchmarks need network namespaces")?;
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime")?;
    let report = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        tokio::select! {
            report = measure(&session, cli.command) => report,
            // Stores and nodes go with what is dropped.
            _ = ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })?;
    let json = session.common.json.as_deref();
    if json != Some(Path::new("-")) {
        print!("{report}");
    }
    json.map_or(Ok(()), |path| report.write_json(path))
}

async fn measure(session: &Arc<Session>, command: Command) -> Result<Report> {
    let before = proc::machine();
    let (benchmark, tables) = match &command {
        Command::Converge(options) => ("converge", converge::run(session, options).await?),
        Command::Throughput(options) => ("throughput", throughput::run(session, options).await?),
        Command::Footprint(options) => ("footprint", footprint::run(session, options).await?),
        Command::Kubernetes(options) => ("kubernetes", kubernetes::run(session, options).await?),
        Command::Recover(options) => ("recover", recover::run(session, options).await?),
        Command::Acquire(options) => ("acquire", acquire::run(session, options).await?),
        Command::Cni(options) => ("cni", cni::run(Arc::clone(session), options).await?),
    };
    let machine = serde_json::json!({ "before": before, "after": proc::machine() });
    Ok(Report { benchmark, command: env::args().skip(1).collect(), machine, tables })
}
