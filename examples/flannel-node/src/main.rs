//! The daemon: a flannel node made of the crates of this project.
#![forbid(unsafe_code)]

mod args;
mod demo;
mod docker_opts;
#[cfg(test)]
mod documents;
mod explain;
mod health;
mod host;
mod journal;
mod logging;
mod manual;
mod metrics;
mod mistake;
mod node_id;
mod observed;
mod operate;
mod probing;
mod readiness;
mod run;
mod sandbox;
mod socket;
mod sole;
mod status;
mod subnet_file;
mod supervisor;
mod teardown;
mod timed;
mod whole_file;

use std::process::ExitCode;

use args::{Cli, Command};
use mistake::Mistake;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let ended = match cli.command {
        Some(Command::Demo(args)) => demo::main(&args),
        Some(Command::Leases(command)) => block_on(operate::leases(command)),
        Some(Command::Explain(args)) => return explain::main(&args),
        Some(Command::Config(command)) => block_on(operate::config(command)),
        Some(Command::DockerOpts(args)) => block_on(docker_opts::write(&args)),
        Some(Command::Status(args)) => status::show(&args),
        Some(Command::Teardown(args)) => block_on(teardown::teardown(&args)),
        Some(Command::Completions { shell }) => manual::completions(shell),
        Some(Command::Man) => manual::page(),
        None => logging::start(&cli.node.log)
            .and_then(|()| run::check(&cli.node))
            .map(|()| sandbox::enter(&cli.node))
            .and_then(|rights| block_on(run::run(cli.node, rights))),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flannel-node: {error:#}");
            if error.is::<Mistake>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    runtime()?.block_on(work)
}

/// One thread is enough for a node, and keeps it small.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    use anyhow::Context;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().context("cannot start the runtime")
}
