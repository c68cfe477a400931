//! What to take down.

use std::path::PathBuf;

use clap::Args;
use flannel_core::NodeId;
use flannel_daemon::teardown::TeardownOptions;
use ipnetwork::IpNetwork;

use super::{StoreArgs, values};

/// What to take down.
#[derive(Args, Debug)]
pub(crate) struct TeardownArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// The blocks of the network. Without it, those that the subnet file names, or else the store.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', value_parser = values::block)]
    pub(crate) network: Vec<IpNetwork>,

    /// The subnet file of the node; it is removed too.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) subnet_file: PathBuf,

    /// Give the subnet back as well, so that another node may have it at once.
    #[arg(long)]
    pub(crate) release: bool,

    /// With --release: the node's name in the store, if it was given one.
    #[arg(long, value_name = "ID")]
    pub(crate) node_id: Option<NodeId>,

    /// With --release: the folder that the node's name is kept in.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state_dir: Option<PathBuf>,
}

impl TeardownArgs {
    pub(crate) fn options(&self) -> TeardownOptions {
        TeardownOptions {
            store: self.store.options(),
            network: self.network.clone(),
            subnet_file: self.subnet_file.clone(),
            release: self.release,
            node_id: self.node_id.clone(),
            state_dir: self.state_dir.clone(),
        }
    }
}
