//! The daemon: a flannel node made of the crates of this project.
#![deny(unsafe_code)]

mod args;
mod demo;
mod heap;
mod kubectl;
mod logging;
mod manual;
mod operate;
mod output;
mod run;
mod status;

use std::process::ExitCode;

use anyhow::{Context, Result};
use args::{Cli, Command, ExplainArgs};
use flannel_daemon::{
    DaemonError, InvalidOptions, OpenStoreError, Stores, cni_conf, docker_options,
    explain::{self, ExplainError},
    operate::OperateError,
    teardown::{self, TeardownError},
};
use flannel_kube::ConfigError;
use output::say;

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let fine = |()| true;
    let ended = match cli.command {
        Some(Command::Demo(args)) => demo::main(&args).map(fine),
        Some(Command::Leases(command)) => block_on(operate::leases(command)).map(fine),
        Some(Command::Explain(args)) => explain(&args),
        Some(Command::Config(command)) => block_on(operate::config(command)).map(fine),
        Some(Command::DockerOpts(args)) => {
            let written =
                async { Ok(docker_options::write(environment(), &args.options()).await?) };
            block_on(written).map(fine)
        }
        Some(Command::InstallConf(args)) => {
            cni_conf::install(&args.source, &args.destination).map(|_| true).map_err(Into::into)
        }
        Some(Command::Kubectl(command)) => block_on(kubectl::run(command)),
        Some(Command::BenchPeer(args)) => block_on(kubectl::bench_peer(&args)).map(fine),
        Some(Command::Status(args)) => status::show(&args),
        Some(Command::Teardown(args)) => {
            let (options, report) = (args.options(), |line| say!("{line}"));
            let done =
                async { Ok(teardown::teardown(&options, &Stores::default(), report).await?) };
            block_on(done).map(fine)
        }
        Some(Command::Completions { shell }) => manual::completions(shell).map(fine),
        Some(Command::Man) => manual::page().map(fine),
        None => logging::start(&cli.node.log).and_then(|()| run::run(&cli.node)).map(fine),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("flannel-node: {error:#}");
            if is_usage(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Whether the command line, the environment or the network's configuration has to be corrected.
fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<InvalidOptions>()
        || error.is::<ConfigError>()
        || matches!(
            error.downcast_ref(),
            Some(
                DaemonError::InvalidOptions(_)
                    | DaemonError::OpenStore(OpenStoreError::InvalidOptions(_))
            )
        )
        || matches!(error.downcast_ref(), Some(ExplainError::InvalidOptions(_)))
        || matches!(error.downcast_ref(), Some(OpenStoreError::InvalidOptions(_)))
        || matches!(error.downcast_ref(), Some(OperateError::InvalidOptions(_)))
        || matches!(
            error.downcast_ref(),
            Some(
                TeardownError::InvalidOptions(_)
                    | TeardownError::OpenStore(OpenStoreError::InvalidOptions(_))
            )
        )
}

/// Explains. Fine is a path on which nothing is broken.
fn explain(args: &ExplainArgs) -> Result<bool> {
    let options = args.options()?;
    let explained = async { Ok(explain::explain(&options, &Stores::default()).await?) };
    let explanation = block_on(explained)?;
    match args.json {
        true => say!("{}", serde_json::to_string(&explanation)?),
        false => output::print(format_args!("{explanation}")),
    }
    Ok(explanation.broken.is_none())
}

/// The variables of the environment that are text.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    runtime()?.block_on(work)
}

/// One thread is enough for a node, and keeps it small.
fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().context("cannot start the runtime")
}
