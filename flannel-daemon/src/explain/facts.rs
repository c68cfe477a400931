//! What is known about the way between two pods, as plain values.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use flannel_core::{LeaseAttrs, NetworkConfig, SubnetEnv};
use flannel_firewall::Finding;
use flannel_netlink::state::{Address, ForwardingEntry, Link, Neighbour, Nexthop, Route};
use flannel_store::Record;
use ipnetwork::IpNetwork;
use serde_json::Value;

/// All that a walk looks at.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) stored: Stored,
    pub(crate) host: Host,
    /// What of this host's rules is in the way, or why they could not be read.
    pub(crate) findings: Result<Vec<InTheWay>, String>,
    /// The node that runs on this host; `None` if none answers.
    pub(crate) node: Option<Running>,
    /// What the other side answered; `None` as long as it was not asked.
    pub(crate) answers: Option<Answers>,
}

/// A rule that does something to packets between the two pods.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct InTheWay {
    /// Where the packets come from.
    pub(crate) from: IpAddr,
    /// Where they go.
    pub(crate) to: IpAddr,
    /// The port of encapsulated packets between the hosts, if it is about those.
    pub(crate) port: Option<u16>,
    pub(crate) finding: Finding,
}

/// What the store has.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Where the configuration is, for people.
    pub(crate) place: String,
    pub(crate) config: NetworkConfig,
    pub(crate) records: Vec<Record>,
}

/// What the files and the kernel of this host have.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) subnet_file: PathBuf,
    pub(crate) env: SubnetEnv,
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    /// Those of the main table.
    pub(crate) routes: Vec<Route>,
    pub(crate) nexthops: Vec<Nexthop>,
    pub(crate) neighbours: Vec<Neighbour>,
    pub(crate) forwarding: Vec<ForwardingEntry>,
    /// Where the kernel would send packets to these addresses, or its words why nowhere.
    pub(crate) hops: BTreeMap<IpAddr, Result<Hop, String>>,
    /// Kernel settings by their path under `/proc/sys`.
    pub(crate) settings: BTreeMap<String, String>,
}

/// What the node on this host says of itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Running {
    /// What it lacks to serve pods.
    pub(crate) missing: Vec<String>,
    /// Leases that it does not follow, by subnet, with the reason.
    pub(crate) refused: BTreeMap<String, String>,
    pub(crate) firewall: Option<Firewall>,
    /// What it has found on the ways to peers, by subnet and family, as it shows it.
    pub(crate) paths: BTreeMap<(String, bool), Path>,
}

/// What a node has found on the way to a peer.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Path {
    /// Packets may be as large as needed.
    pub(crate) is_enough: bool,
    /// How large packets may be, bytes, if that is less than what is needed.
    pub(crate) mtu: Option<u64>,
    /// Bytes.
    pub(crate) needed: u64,
    /// Packets get lost whose checksums are left to the hardware: inside of the tunnel, and between the hosts.
    pub(crate) corrupted: [bool; 2],
}

/// The rules that a node keeps.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Firewall {
    /// Who keeps them for it.
    pub(crate) mode: String,
    /// What it could not do.
    pub(crate) faults: Vec<String>,
    /// What of others keeps the rules from their effect.
    pub(crate) notes: Vec<String>,
}

impl Running {
    /// Reads the node's own JSON. What is not there counts as nothing to tell.
    pub(crate) fn read(status: &Value) -> Self {
        let texts = |value: &Value| {
            let all = value.as_array().into_iter().flatten();
            all.filter_map(|text| text.as_str().map(String::from)).collect()
        };
        let firewall = &status["firewall"];
        let peers = status["peers"].as_array().into_iter().flatten();
        let paths = peers.flat_map(|peer| {
            let subnet = peer["subnet"].as_str().unwrap_or_default();
            [("ipv4", true), ("ipv6", false)].into_iter().filter_map(move |(family, is_ipv4)| {
                let path = peer["path"].get(family)?;
                Some(((subnet.to_owned(), is_ipv4), Path::read(path)))
            })
        });
        Self {
            paths: paths.collect(),
            missing: texts(&status["missing"]),
            refused: BTreeMap::new(),
            firewall: firewall.is_object().then(|| Firewall {
                mode: firewall["mode"].as_str().unwrap_or("nobody").to_owned(),
                faults: texts(&firewall["faults"]),
                notes: texts(&firewall["notes"]),
            }),
        }
    }
}

impl Path {
    fn read(path: &Value) -> Self {
        let layers = ["overlay_checksums", "underlay_checksums"];
        Self {
            is_enough: path["state"] == "enough",
            mtu: path["mtu"].as_u64(),
            needed: path["needed"].as_u64().unwrap_or_default(),
            corrupted: layers.map(|layer| path[layer] == "corrupted"),
        }
    }
}

/// Where the kernel sends a packet next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Hop {
    pub(crate) link: u32,
    pub(crate) gateway: Option<IpAddr>,
}

/// What came back from the other side.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// From the peer's own address.
    pub(crate) peer: Option<Answer>,
    /// The same, asked with packets as large as the network card and the configuration say that the way takes: that size, bytes.
    pub(crate) large: Option<(u32, Answer)>,
    /// From the port at the peer's own address that takes encapsulated packets.
    pub(crate) tunnel_port: Option<Answer>,
    /// From the peer through the network: sent from an address of our subnet.
    pub(crate) network: Option<Answer>,
    /// From the pod itself.
    pub(crate) pod: Option<Answer>,
}

/// What became of a datagram to a port that nobody is likely to listen on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    /// It is there: it says that nobody listens, or even answers.
    Alive,
    /// A host on the way, or this one, says in these words that the packet cannot get there.
    Unreachable(String),
    /// Nothing came back.
    Silent,
    /// The packet is larger than the way takes.
    TooLarge,
}

/// The VXLAN device that a network uses for one address family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Tunnel {
    pub(crate) device: String,
    pub(crate) vni: u32,
    pub(crate) port: u16,
    /// The largest packet between hosts, bytes; `None` takes the network card's.
    pub(crate) mtu: Option<u32>,
    /// What encapsulation adds to a packet, bytes.
    pub(crate) overhead: u32,
    pub(crate) direct_routing: bool,
}

impl Tunnel {
    /// The one of the network in `config`; `None` if its backend is no VXLAN. Defaults are the backend's.
    pub(crate) fn of(config: &NetworkConfig, is_ipv4: bool) -> Option<Self> {
        if config.backend().kind() != "vxlan" {
            return None;
        }
        let options = config.backend().options();
        let number = |key| options.integer(key, 0..=u64::from(u32::MAX)).ok().flatten();
        let small = |key| number(key).and_then(|number| u16::try_from(number).ok());
        let vni = number("VNI").and_then(|vni| u32::try_from(vni).ok()).unwrap_or(1);
        Some(Self {
            device: if is_ipv4 { format!("flannel.{vni}") } else { format!("flannel-v6.{vni}") },
            vni,
            port: small("Port").filter(|port| *port != 0).unwrap_or(KERNELS_PORT),
            mtu: small("MTU").map(u32::from),
            overhead: if is_ipv4 { 50 } else { 70 },
            direct_routing: options.boolean("DirectRouting", false).unwrap_or_default(),
        })
    }

    /// Whether packets to a peer at `public` go there as they are.
    pub(crate) fn is_direct(&self, host: &Host, public: IpAddr) -> bool {
        let hop = host.hops.get(&public).and_then(|hop| hop.as_ref().ok());
        self.direct_routing && hop.is_some_and(|hop| hop.gateway.is_none())
    }
}

impl Stored {
    /// The network's block of a family.
    pub(crate) fn network(&self, is_ipv4: bool) -> Option<IpNetwork> {
        match is_ipv4 {
            true => self.config.ipv4().map(|range| IpNetwork::V4(range.network())),
            false => self.config.ipv6().map(|range| IpNetwork::V6(range.network())),
        }
    }

    /// The record under whose key `address` is, and that block.
    pub(crate) fn record_with(&self, address: IpAddr) -> Option<(&Record, IpNetwork)> {
        let block =
            |record: &Record| record.subnet()?.blocks().find(|block| block.contains(address));
        self.records.iter().find_map(|record| Some((record, block(record)?)))
    }

    /// Where the node is reached that has `address` in its subnet.
    pub(crate) fn public(&self, address: IpAddr) -> Option<IpAddr> {
        let attrs = self.attrs(address)?;
        match address {
            IpAddr::V4(_) => attrs.public_ip.map(IpAddr::V4),
            IpAddr::V6(_) => attrs.public_ipv6.map(IpAddr::V6),
        }
    }

    /// What the node says of itself that has `address` in its subnet.
    pub(crate) fn attrs(&self, address: IpAddr) -> Option<LeaseAttrs> {
        Some(self.record_with(address)?.0.lease().ok()?.attrs)
    }
}

impl Host {
    /// This host's own block of a family, according to its subnet file.
    pub(crate) fn block(&self, is_ipv4: bool) -> Option<IpNetwork> {
        self.env.held()?.blocks().find(|block| block.is_ipv4() == is_ipv4)
    }

    /// An address of this host's subnet on one of its devices, to send from.
    pub(crate) fn address_in(&self, block: IpNetwork) -> Option<IpAddr> {
        self.addresses.iter().map(|address| address.address.ip()).find(|ip| block.contains(*ip))
    }

    /// The device that has `address`.
    pub(crate) fn device_with(&self, address: IpAddr) -> Option<&Link> {
        let found = self.addresses.iter().find(|it| it.address.ip() == address)?;
        self.device(found.link)
    }

    pub(crate) fn device(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    pub(crate) fn device_named(&self, name: &str) -> Option<&Link> {
        self.links.iter().find(|link| link.name == name)
    }

    /// The name of a device, for people.
    pub(crate) fn name(&self, index: u32) -> &str {
        self.device(index).map_or("a device that is gone", |link| &link.name)
    }

    /// A hop, for people.
    pub(crate) fn shown(&self, hop: Hop) -> String {
        match hop.gateway {
            Some(gateway) => format!("through {gateway} on {}", self.name(hop.link)),
            None => format!("straight to {}", self.name(hop.link)),
        }
    }
}

impl Answer {
    pub(crate) fn is_alive(&self) -> bool {
        *self == Self::Alive
    }
}

/// Linux's default for VXLAN devices.
const KERNELS_PORT: u16 = 8472;
