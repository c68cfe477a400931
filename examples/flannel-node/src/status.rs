//! `flannel-node status`: what a node that runs says of itself.

use anyhow::Result;
use flannel_daemon::{status, status_socket_path};

use crate::{
    args::StatusArgs,
    output::{print, say},
};

/// Asks the node and prints what it says. Fine is a node that is ready.
pub(crate) fn show(args: &StatusArgs) -> Result<bool> {
    let status = status::ask(&status_socket_path(&args.subnet_file))?;
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&status)?),
        false => print(format_args!("{status}")),
    }
    Ok(status.ready)
}
