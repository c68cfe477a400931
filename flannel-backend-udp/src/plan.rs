//! The forwarding plan of an engine, computed from leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use flannel_core::{Family, Fields, Lease, LeaseAttrs, PeerFault, RawJson, Subnet};
use ipnetwork::IpNetwork;

use crate::{KIND, config::SourceCheck, stats::EBPF};

/// Everything an engine needs to forward packets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct ForwardingPlan {
    /// This node's own subnet.
    pub(crate) own: Subnet,
    /// The index of the uplink.
    pub(crate) link: u32,
    /// The uplink's addresses, one per family of the network, that datagrams are sent from and received on.
    pub(crate) local: Vec<IpAddr>,
    /// The UDP port to listen on and send from.
    pub(crate) port: u16,
    /// How inner sources are checked.
    pub(crate) source_check: SourceCheck,
    /// Whether datagrams are sent with DF, so that routers report the path MTU.
    pub(crate) path_mtu_discovery: bool,
    /// Peers that decapsulate in their kernel and accept partial checksums.
    pub(crate) in_kernel: BTreeSet<IpAddr>,
    /// The endpoint of each block of each peer. Blocks may overlap: the longest prefix wins.
    pub(crate) endpoints: BTreeMap<IpNetwork, SocketAddr>,
}

#[cfg(any(test, feature = "testing"))]
impl ForwardingPlan {
    /// One for tests, of a node at 192.0.2.3 whose peers' blocks are reached there.
    pub(crate) fn to(endpoints: &[(&str, &str)]) -> Self {
        let endpoint = |(block, to): &(&str, &str)| {
            (block.parse().expect("a block"), to.parse().expect("an address"))
        };
        Self {
            own: "10.244.3.0-24".parse().expect("a subnet"),
            link: 2,
            local: vec![IpAddr::from([192, 0, 2, 3])],
            port: 8285,
            source_check: SourceCheck::Subnet,
            path_mtu_discovery: false,
            in_kernel: BTreeSet::new(),
            endpoints: endpoints.iter().map(endpoint).collect(),
        }
    }
}

/// The endpoints of the blocks of `peer` as seen from the node that holds `own`, and the faults of blocks without one. `port` is used
/// for peers that publish none. Families that the node does not have are ignored.
pub(crate) fn endpoints(
    own: &Subnet,
    peer: &Lease,
    port: u16,
) -> (Vec<(IpNetwork, SocketAddr)>, Vec<PeerFault>) {
    // flannel's udp backend publishes an empty type.
    if !peer.attrs.backend_type.is_empty() {
        let theirs = peer.attrs.backend_type.clone().into_owned();
        return (vec![], vec![PeerFault::OtherBackend { ours: KIND.into(), theirs }]);
    }
    let port = match published_port(&peer.attrs) {
        Ok(theirs) => theirs.unwrap_or(port),
        Err(detail) => return (vec![], vec![PeerFault::BadData { detail }]),
    };
    let ipv4 = own.ipv4().and_then(|_| peer.subnet.ipv4()).map(IpNetwork::V4);
    let ipv6 = own.ipv6().and_then(|_| peer.subnet.ipv6()).map(IpNetwork::V6);
    let families = [
        (Family::Ipv4, ipv4, peer.attrs.public_ip.map(IpAddr::V4)),
        (Family::Ipv6, ipv6, peer.attrs.public_ipv6.map(IpAddr::V6)),
    ];
    let (mut found, mut faults) = (Vec::new(), Vec::new());
    for (family, block, address) in families {
        match (block, address) {
            (None, _) => {}
            (Some(_), None) => faults.push(PeerFault::NoAddress { family }),
            (Some(block), Some(address)) if block.contains(address) => {
                let detail =
                    format!("its public address {address} is inside its own subnet {block}");
                faults.push(PeerFault::Refused { detail });
            }
            (Some(block), Some(address)) => found.push((block, SocketAddr::new(address, port))),
        }
    }
    (found, faults)
}

/// The port that a node published, if it differs from the network's.
fn published_port(attrs: &LeaseAttrs) -> Result<Option<u16>, String> {
    let Some(data) = &attrs.backend_data else {
        return Ok(None);
    };
    let fields = Fields::parse(data.as_str()).map_err(|error| error.to_string())?;
    let port = fields.integer("Port", 1..=u64::from(u16::MAX));
    // The range makes the conversion lossless.
    port.map(|port| port.map(|port| port as u16)).map_err(|error| error.to_string())
}

/// Whether a node with these attributes has BPF programs that carry what comes from and goes to other such nodes. The rules of its host
/// do not see those datagrams.
pub fn uses_ebpf(attrs: &LeaseAttrs) -> bool {
    let fields = attrs.backend_data.as_ref().and_then(|data| Fields::parse(data.as_str()).ok());
    fields.is_some_and(|fields| matches!(fields.text("Engine"), Ok(Some(engine)) if engine == EBPF))
}

/// What a node publishes about itself; flannel's nodes publish nothing and ignore it.
pub(crate) fn backend_data(port: Option<u16>, in_kernel: bool) -> Option<RawJson> {
    let engine = in_kernel.then(|| format!(r#""Engine":"{EBPF}""#));
    let members: Vec<_> =
        engine.into_iter().chain(port.map(|it| format!(r#""Port":{it}"#))).collect();
    let text = format!("{{{}}}", members.join(","));
    (!members.is_empty()).then(|| RawJson::new(&text).expect("an object"))
}

#[cfg(test)]
mod tests {

    use super::*;

    fn lease(key: &str) -> Lease {
        let attrs = LeaseAttrs {
            public_ip: Some([192, 0, 2, 2].into()),
            public_ipv6: Some("2001:db8::2".parse().unwrap()),
            ..LeaseAttrs::default()
        };
        Lease::new(key.parse().unwrap(), attrs)
    }

    fn planned(own: &str, peer: &Lease) -> (Vec<String>, Vec<PeerFault>) {
        let (found, faults) = endpoints(&own.parse().unwrap(), peer, 8285);
        (found.into_iter().map(|(block, to)| format!("{block} at {to}")).collect(), faults)
    }

    #[test]
    fn each_family_that_both_have_has_an_endpoint() {
        let dual = lease("10.3.2.0-24&fd00:2::-64");
        let v4 = "10.3.2.0/24 at 192.0.2.2:8285".to_owned();
        let v6 = "fd00:2::/64 at [2001:db8::2]:8285".to_owned();
        assert_eq!(planned("10.3.1.0-24&fd00:1::-64", &dual).0, [v4.clone(), v6.clone()]);
        assert_eq!(planned("10.3.1.0-24", &dual).0, [v4]);
        assert_eq!(planned("fd00:1::-64", &dual).0, [v6]);
    }

    #[test]
    fn a_peer_may_name_another_port() {
        let mut peer = lease("10.3.2.0-24");
        let mut with = |data: &str| {
            peer.attrs.backend_data = Some(RawJson::new(data).unwrap());
            planned("10.3.1.0-24", &peer)
        };
        assert_eq!(with(r#"{"Port":9000}"#).0, ["10.3.2.0/24 at 192.0.2.2:9000"]);
        assert_eq!(with("{}").0, ["10.3.2.0/24 at 192.0.2.2:8285"]);
        for data in [r#"{"Port":0}"#, r#"{"Port":65536}"#, "[]", r#""x""#] {
            let (found, faults) = with(data);
            assert!(found.is_empty(), "{data}");
            assert!(matches!(faults[..], [PeerFault::BadData { .. }]), "{data}");
        }
    }

    #[test]
    fn what_a_node_publishes_is_what_its_peers_read() {
        for (port, in_kernel) in
            [(None, true), (Some(9000), true), (Some(9000), false), (None, false)]
        {
            let attrs =
                LeaseAttrs { backend_data: backend_data(port, in_kernel), ..LeaseAttrs::default() };
            assert_eq!((published_port(&attrs), uses_ebpf(&attrs)), (Ok(port), in_kernel));
        }
        assert_eq!(backend_data(None, false), None, "as flannel");
    }

    #[test]
    fn a_peer_without_an_address_is_named_and_its_other_family_served() {
        let mut peer = lease("10.3.2.0-24&fd00:2::-64");
        peer.attrs.public_ip = None;
        let (found, faults) = planned("10.3.1.0-24&fd00:1::-64", &peer);
        assert_eq!(faults, [PeerFault::NoAddress { family: Family::Ipv4 }]);
        assert_eq!(found, ["fd00:2::/64 at [2001:db8::2]:8285"]);
    }

    #[test]
    fn a_peer_that_would_be_reached_through_itself_is_refused() {
        let mut peer = lease("10.3.2.0-24");
        peer.attrs.public_ip = Some([10, 3, 2, 7].into());
        let (found, faults) = planned("10.3.1.0-24", &peer);
        assert!(found.is_empty());
        assert!(matches!(faults[..], [PeerFault::Refused { .. }]));
    }

    #[test]
    fn a_peer_of_another_backend_is_skipped() {
        let mut peer = lease("10.3.2.0-24");
        peer.attrs.backend_type = "vxlan".into();
        let (found, faults) = planned("10.3.1.0-24", &peer);
        assert!(found.is_empty());
        assert_eq!(
            faults,
            [PeerFault::OtherBackend { ours: "udp".into(), theirs: "vxlan".into() }]
        );
    }
}
