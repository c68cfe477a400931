//! What to take down.

use std::{path::PathBuf, str::FromStr};

use clap::{ArgAction, Args};
use flannel_core::{ConfigError, NetworkConfig, NodeId};
use flannel_daemon::teardown::TeardownOptions;
use ipnetwork::IpNetwork;

use super::{StoreArgs, values};

/// The blocks of a network.
#[derive(Clone, Debug)]
pub(crate) struct NetworkBlocks(Vec<IpNetwork>);

impl FromStr for NetworkBlocks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !text.trim_start().starts_with('{') {
            return text.split(',').map(values::block).collect::<Result<_, _>>().map(Self);
        }
        let config: NetworkConfig = text.parse().map_err(|error: ConfigError| error.to_string())?;
        let ipv4 = config.ipv4().map(|range| range.network().into());
        let ipv6 = config.ipv6().map(|range| range.network().into());
        Ok(Self(ipv4.into_iter().chain(ipv6).collect()))
    }
}

/// What to take down.
#[derive(Args, Debug)]
pub(crate) struct TeardownArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// The blocks of the network, or flannel's JSON as for a node. Without it, those that the subnet file names, or else the store.
    #[arg(long, value_name = "CIDR,...|JSON")]
    pub(crate) network: Option<NetworkBlocks>,

    /// The subnet file of the node; it is removed too.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) subnet_file: PathBuf,

    /// Leave routes, devices and rules as flanneld would have made them, and the subnet file: packets keep flowing, and flanneld can be
    /// started in the place of the node.
    #[arg(long, conflicts_with = "release")]
    pub(crate) keep_traffic: bool,

    /// Without --keep-traffic: leave unreachable routes to the network, so that what pods still send to each other does not follow a default
    /// route in the clear.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub(crate) require_encryption: bool,

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
            network: self.network.clone().map_or_else(Vec::new, |network| network.0),
            subnet_file: self.subnet_file.clone(),
            wireguard_key_file: values::wireguard_key_file(),
            keep_traffic: self.keep_traffic,
            require_encryption: self.require_encryption,
            release: self.release,
            node_id: self.node_id.clone(),
            state_dir: self.state_dir.clone(),
        }
    }
}
