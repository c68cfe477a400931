//! `flannel-node status`: what a node that runs says of itself.

use anyhow::{Context, Result};
use flannel_daemon::{status, status_socket_path};

use crate::{
    args::StatusArgs,
    output::{print, say},
};

mod page;
mod udp;

/// Asks the node and prints what it says. Fine is a node that is ready.
pub(crate) fn show(args: &StatusArgs) -> Result<bool> {
    let path = status_socket_path(&args.subnet_file);
    let status = status::ask(&path).with_context(|| {
        format!(
            "no node answers on {}: is one running, with --subnet-file {}?",
            path.display(),
            args.subnet_file.display()
        )
    })?;
    let (is_ready, status) = (status.ready, serde_json::to_value(&status)?);
    if args.json {
        say!("{status:#}");
    } else {
        print(format_args!("{}", page::render(&status)));
    }
    Ok(is_ready)
}
