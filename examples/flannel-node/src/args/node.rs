//! How to run a node.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use clap::{ArgAction, Args, ValueEnum};
use flannel_backend::UplinkOptions;
use flannel_core::{ConfigError, NetworkConfig, NodeId, OnLeaseLoss};
use flannel_daemon::{DaemonOptions, InvalidOptions, KubernetesConfig, StoreOptions};
use flannel_netlink::iface::Selector;
use ipnetwork::Ipv4Network;

use super::{
    HealthArgs, KubernetesArgs, LogArgs, ProbeArgs, SandboxArgs, StoreArgs, TrafficArgs,
    refusals::Given, values,
};

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

    /// This node's name in the store, by which it keeps its lease when its address changes. Without it, the id in the file node-id
    /// of --state-dir; without that, its public address.
    #[arg(long, value_name = "ID")]
    pub(crate) node_id: Option<NodeId>,

    /// The folder for what has to outlive a reboot: /var/lib/flannel-node if that is on a disk. The node id in it is made with the
    /// first start.
    #[arg(long, value_name = "FOLDER")]
    pub(crate) state_dir: Option<PathBuf>,

    /// How long our lease lasts without a renewal, in seconds: 24 h as flannel's unless given.
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 60 * 60,
        value_parser = values::number(5..=u32::MAX))]
    pub(crate) lease_ttl: u32,

    /// An interface to reach peers from, by name or address; may be given several times, the first that fits is taken.
    #[arg(long, value_name = "NAME|IP")]
    pub(crate) iface: Vec<String>,

    /// The same by a regular expression on addresses, then on names; tried after --iface.
    #[arg(long, value_name = "REGEX", value_parser = pattern)]
    pub(crate) iface_regex: Vec<String>,

    /// The interface that leads to this address; tried last.
    #[arg(long, value_name = "IP", value_parser = values::ip)]
    pub(crate) iface_can_reach: Option<IpAddr>,

    /// The IPv4 address that peers use to reach this node, if not the interface's first.
    #[arg(long, value_name = "IPV4", value_parser = values::ipv4)]
    pub(crate) public_ip: Option<Ipv4Addr>,

    /// The IPv6 address that peers use to reach this node, if not the interface's first.
    #[arg(long, value_name = "IPV6", value_parser = values::ipv6)]
    pub(crate) public_ipv6: Option<Ipv6Addr>,

    /// The file that tells others about this node's subnet.
    #[arg(long, value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub(crate) subnet_file: PathBuf,

    /// What to do when another node has our lease, or it was deleted.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t)]
    pub(crate) on_lease_loss: LeaseLossArg,

    /// How long before its end a lease is renewed at the latest, in minutes. It is renewed after a third of its life if that is
    /// earlier, and always if it does not last for so long.
    #[arg(long, value_name = "MINUTES", default_value_t = 60, value_parser = values::number(1..=1439_u32))]
    pub(crate) subnet_lease_renew_margin: u32,

    #[command(flatten)]
    pub(crate) traffic: TrafficArgs,

    #[command(flatten)]
    pub(crate) probe: ProbeArgs,

    #[command(flatten)]
    pub(crate) health: HealthArgs,

    #[command(flatten)]
    pub(crate) log: LogArgs,

    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,

    #[command(flatten)]
    pub(crate) kubernetes: KubernetesArgs,

    /// With Kubernetes: keep the node's condition NetworkUnavailable.
    #[arg(long, value_name = "BOOL", value_parser = values::switch, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub(crate) set_node_network_unavailable: bool,

    /// Which of all these were given.
    #[arg(skip)]
    pub(super) given: Given,

    /// Variables that were left out of account, in words.
    #[arg(skip)]
    pub(super) odd: Vec<String>,
}

impl NodeArgs {
    /// What the daemon is to do.
    ///
    /// # Errors
    ///
    /// [`InvalidOptions`] if the network to create is none.
    pub(crate) fn options(&self) -> Result<DaemonOptions, InvalidOptions> {
        let network = self.network.as_ref().map(|network| network.config(&self.backend));
        let store = match self.kubernetes.kube_subnet_mgr {
            true => StoreOptions::kubernetes(KubernetesConfig {
                keep_condition: self.set_node_network_unavailable,
                ..self.kubernetes.config(&self.subnet_file)
            }),
            false => self.store.options(),
        };
        Ok(DaemonOptions {
            store,
            network: network.transpose().map_err(InvalidOptions::new)?,
            node_id: self.node_id.clone(),
            state_dir: self.state_dir.clone(),
            lease_ttl: Duration::from_secs(self.lease_ttl.into()),
            renew_margin: Duration::from_secs(60 * u64::from(self.subnet_lease_renew_margin)),
            on_lease_loss: match self.on_lease_loss {
                LeaseLossArg::Exit => OnLeaseLoss::Exit,
                LeaseLossArg::Reacquire => OnLeaseLoss::Reacquire,
            },
            uplink: UplinkOptions {
                names: self.iface.clone(),
                patterns: self.iface_regex.clone(),
                can_reach: self.iface_can_reach,
                public_ip: self.public_ip,
                public_ipv6: self.public_ipv6,
            },
            subnet_file: self.subnet_file.clone(),
            wireguard_key_file: values::wireguard_key_file(),
            firewall: self.traffic.firewall(),
            blackhole: self.traffic.ip_blackhole_route,
            require_encryption: self.traffic.require_encryption,
            probe: self.probe.options(),
            health: self.health.address(),
            health_explain: self.health.healthz_explain,
        })
    }
}

/// The network to create if there is none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum NetworkArg {
    Block(Ipv4Network),
    Json(String),
}

impl NetworkArg {
    fn config(&self, backend: &str) -> Result<NetworkConfig, ConfigError> {
        match self {
            Self::Json(json) => json.parse(),
            Self::Block(block) => {
                let block = block.to_string();
                let json = serde_json::json!({ "Network": block, "Backend": { "Type": backend } });
                json.to_string().parse()
            }
        }
    }
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

/// A regular expression, as its text: an interface is looked for with it later.
fn pattern(text: &str) -> Result<String, String> {
    match Selector::pattern(text) {
        Ok(_) => Ok(text.into()),
        Err(_) => Err("expected a regular expression such as ^eth[0-9]$".into()),
    }
}
