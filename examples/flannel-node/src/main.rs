//! The daemon: a flannel node made of the crates of this project.
#![forbid(unsafe_code)]

mod args;
mod demo;
#[cfg(test)]
mod documents;
mod logging;
mod manual;
mod operate;
mod run;
mod status;

use std::process::ExitCode;

use args::{Cli, Command, ExplainArgs};
use flannel_daemon::{InvalidOptions, Stores, docker_options, explain, teardown};

fn main() -> ExitCode {
    let cli = match Cli::read(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    let ended = match cli.command {
        Some(Command::Demo(args)) => demo::main(&args),
        Some(Command::Leases(command)) => block_on(operate::leases(command)),
        Some(Command::Explain(args)) => return explain(&args),
        Some(Command::Config(command)) => block_on(operate::config(command)),
        Some(Command::DockerOpts(args)) => {
            block_on(docker_options::write(environment(), &args.options()))
        }
        Some(Command::Status(args)) => status::show(&args),
        Some(Command::Teardown(args)) => {
            let (options, report) = (args.options(), |line| println!("{line}"));
            block_on(teardown::teardown(&options, &Stores::default(), report))
        }
        Some(Command::Completions { shell }) => manual::completions(shell),
        Some(Command::Man) => manual::page(),
        None => logging::start(&cli.node.log).and_then(|()| run::run(&cli.node)),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flannel-node: {error:#}");
            if error.is::<InvalidOptions>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// Explains, and ends with 0 when nothing is broken and with 1 when something is.
fn explain(args: &ExplainArgs) -> ExitCode {
    let (options, stores) = (args.options(), Stores::default());
    let explained = runtime().and_then(|it| it.block_on(explain::explain(&options, &stores)));
    match explained {
        Ok(explanation) => {
            match args.json {
                true => println!("{}", serde_json::to_string(&explanation).expect("is valid JSON")),
                false => print!("{explanation}"),
            }
            if explanation.broken.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("flannel-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The variables of the environment that are text.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
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
