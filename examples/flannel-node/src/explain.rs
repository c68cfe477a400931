//! `flannel-node explain`: follows the way between two pod addresses through this host, and names what is broken first.

mod answers;
mod collect;
mod facts;
mod report;
mod walk;

use std::{net::IpAddr, path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::Args;

use crate::args::StoreArgs;

pub(crate) use facts::Tunnel;

/// Which way to explain.
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// The address of a pod.
    pub(crate) source: IpAddr,

    /// The address of another pod. One of the two has to be on this host.
    pub(crate) destination: IpAddr,

    /// The file in which this host's node says which subnet it has.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) subnet_file: PathBuf,

    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// Explains, and ends with 0 when nothing is broken and with 1 when something is.
pub(crate) fn main(args: &ExplainArgs) -> ExitCode {
    match crate::runtime().and_then(|runtime| runtime.block_on(explain(args))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("flannel-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn explain(args: &ExplainArgs) -> Result<bool> {
    ensure!(
        args.source.is_ipv4() == args.destination.is_ipv4(),
        "{} and {} are of two address families: give both addresses of one",
        args.source,
        args.destination
    );
    let explanation = match collect::collect(args).await? {
        Ok(mut facts) => {
            let explanation = walk::walk(&facts);
            if explanation.broken.is_none() {
                collect::ask_peer(&mut facts, args).await?;
            }
            walk::walk(&facts)
        }
        Err(broken) => walk::Explanation::broken_at_once(args.source, args.destination, broken),
    };
    match args.json {
        true => println!("{}", report::json(&explanation)),
        false => print!("{}", report::text(&explanation)),
    }
    Ok(explanation.broken.is_none())
}
