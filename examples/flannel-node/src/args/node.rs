//! How to run a node.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use flannel_core::NodeId;
use ipnetwork::Ipv4Network;

use super::StoreArgs;

/// How to run a node.
#[derive(Args, Debug)]
pub(crate) struct NodeArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// The network to create if the store has none: an IPv4 block, or flannel's JSON.
    #[arg(long, value_name = "CIDR|JSON", value_parser = parse_network)]
    pub(crate) network: Option<NetworkArg>,

    /// The backend of a network that is created from a block.
    #[arg(long, value_name = "TYPE", default_value = "vxlan", requires = "network")]
    pub(crate) backend: String,

    /// This node's name in the store. Without it, its public address.
    #[arg(long, value_name = "ID")]
    pub(crate) node_id: Option<NodeId>,

    /// How long our lease lasts without a renewal, in seconds: 24 h as flannel's unless given.
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 60 * 60,
        value_parser = clap::value_parser!(u32).range(5..))]
    pub(crate) lease_ttl: u32,

    /// An interface to reach peers from, by name or address; may be given several times, the first that fits is taken.
    #[arg(long, value_name = "NAME|IP")]
    pub(crate) iface: Vec<String>,

    /// The same by a regular expression on addresses, then on names; tried after --iface.
    #[arg(long, value_name = "REGEX")]
    pub(crate) iface_regex: Vec<String>,

    /// The interface that leads to this address; tried last.
    #[arg(long, value_name = "IP")]
    pub(crate) iface_can_reach: Option<IpAddr>,

    /// The IPv4 address that peers use to reach this node, if not the interface's own.
    #[arg(long, value_name = "IPV4")]
    pub(crate) public_ip: Option<Ipv4Addr>,

    /// The IPv6 address that peers use to reach this node, if not the interface's own.
    #[arg(long, value_name = "IPV6")]
    pub(crate) public_ipv6: Option<Ipv6Addr>,

    /// The file that tells others about this node's subnet.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) subnet_file: PathBuf,

    /// What to do when another node has our lease, or it was deleted.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub(crate) on_lease_loss: LeaseLossArg,

    /// How logs are written to standard error.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: LogFormat,

    /// How much is logged: 0 for changes and faults, 1 for each step, 2 and more for everything.
    #[arg(short, long, value_name = "LEVEL", default_value_t = 0)]
    pub(crate) v: u8,
}

/// The network to create if there is none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum NetworkArg {
    Block(Ipv4Network),
    Json(String),
}

/// What to do when the lease is lost.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LeaseLossArg {
    /// End with an error; the data path stays.
    Exit,
    /// Take a lease anew.
    #[default]
    Reacquire,
}

/// How logs look.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    #[default]
    Text,
}

fn parse_network(text: &str) -> Result<NetworkArg, String> {
    if text.trim_start().starts_with('{') {
        return Ok(NetworkArg::Json(text.into()));
    }
    let block = text.contains('/').then(|| text.parse().ok()).flatten();
    block.map(NetworkArg::Block).ok_or_else(|| {
        r#"expected a block such as 10.244.0.0/16 or JSON such as {"Network":"10.244.0.0/16"}"#
            .into()
    })
}
