//! Which path to explain.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use flannel_daemon::explain::{ExplainOptions, LeaseSource};

use super::StoreArgs;

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

impl ExplainArgs {
    pub(crate) fn options(&self) -> ExplainOptions {
        ExplainOptions {
            source: self.source,
            destination: self.destination,
            subnet_file: self.subnet_file.clone(),
            leases: LeaseSource::Store(self.store.options().into()),
            namespace: None,
        }
    }
}
