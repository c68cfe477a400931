//! What packages ship beside the program: completions and a manual page, made of the definition of the command line.

use std::io::{Write, stdout};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

/// Prints the script that completes our command line in `shell`.
pub(crate) fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "flannel-node", &mut script);
    stdout().write_all(&script).context("cannot print the completions")
}

/// Prints the manual page, with a section for each command.
pub(crate) fn page() -> Result<()> {
    let mut page = Vec::new();
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command).render(&mut page).context("cannot make the manual page")?;
    stdout().write_all(&page).context("cannot print the manual page")
}
