//! Which path to explain.

use std::{net::IpAddr, path::PathBuf};

use clap::Args;
use flannel_daemon::{
    InvalidOptions, StoreOptions,
    explain::{ExplainOptions, LeaseSource},
};

use super::{KubernetesArgs, StoreArgs};

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

    #[command(flatten)]
    pub(crate) kubernetes: KubernetesArgs,
}

impl ExplainArgs {
    /// What to explain.
    ///
    /// # Errors
    ///
    /// [`InvalidOptions`] for two stores.
    pub(crate) fn options(&self) -> Result<ExplainOptions, InvalidOptions> {
        let leases = match (self.kubernetes.kube_subnet_mgr, &self.store.store) {
            (true, Some(_)) => {
                let reason = "--kube-subnet-mgr and --store say where the leases are: give one";
                return Err(InvalidOptions::new(reason));
            }
            (true, None) => StoreOptions::kubernetes(self.kubernetes.config(&self.subnet_file)),
            (false, _) => self.store.options(),
        };
        Ok(ExplainOptions {
            source: self.source,
            destination: self.destination,
            subnet_file: self.subnet_file.clone(),
            leases: LeaseSource::Store(leases.into()),
            namespace: None,
        })
    }
}
