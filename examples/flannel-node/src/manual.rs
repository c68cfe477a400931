//! What packages ship beside the program: completions and a manual page, made of the definition of the command line.

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{args::Cli, output};

/// Prints the script that completes our command line in `shell`.
pub(crate) fn completions(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "flannel-node", &mut script);
    print(script)
}

/// Prints the manual page, with a section for each command.
pub(crate) fn page() -> Result<()> {
    let mut page = Vec::new();
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command).render(&mut page).context("cannot make the manual page")?;
    print(page)
}

fn print(text: Vec<u8>) -> Result<()> {
    let text = String::from_utf8(text).context("not a text")?;
    output::print(format_args!("{text}"));
    Ok(())
}
