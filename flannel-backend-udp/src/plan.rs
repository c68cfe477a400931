//! What an engine has to do, worked out of leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use flannel_core::{Family, Fields, Lease, LeaseAttrs, PeerFault, RawJson, Subnet};
use ipnetwork::IpNetwork;

use crate::{KIND, config::SourceCheck, stats::EBPF};

/// All that an engine is told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Orders {
    /// Our own subnet.
    pub(crate) own: Subnet,
    /// The index of the network card that leads to peers.
    pub(crate) link: u32,
    /// That card's own addresses, one for each family of the network: datagrams come from and go to these.
    pub(crate) local: Vec<IpAddr>,
    /// The port that we listen on and send from.
    pub(crate) port: u16,
    /// Whether sources are checked.
    pub(crate) source_check: SourceCheck,
    /// Whether routers are kept from cutting datagrams, so that they say what a path takes.
    pub(crate) path_mtu_discovery: bool,
    /// Peers that decapsulate in their kernel: they take packets whose checksums are unfinished.
    pub(crate) in_kernel: BTreeSet<IpAddr>,
    /// Where each block of each peer is reached. Blocks may be of different lengths and overlap: the longest prefix counts.
    pub(crate) endpoints: BTreeMap<IpNetwork, SocketAddr>,
}

/// Where the blocks of `peer` are reached from the node that holds `own`, and why some are not. `port` is that of peers that
/// name none. Families that the node does not have are not looked at.
pub(crate) fn endpoints(
    own: &Subnet,
    peer: &Lease,
    port: u16,
) -> (Vec<(IpNetwork, SocketAddr)>, Vec<PeerFault>) {
    // Without a name, as flannel's udp backend publishes it.
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
                    format!("its public address {address} is inside of its own subnet {block}");
                faults.push(PeerFault::Refused { detail });
            }
            (Some(block), Some(address)) => found.push((block, SocketAddr::new(address, port))),
        }
    }
    (found, faults)
}

/// The port that a node published, if it uses another than the network's.
fn published_port(attrs: &LeaseAttrs) -> Result<Option<u16>, String> {
    let Some(data) = &attrs.backend_data else {
        return Ok(None);
    };
    let fields = Fields::parse(data.as_str()).map_err(|error| error.to_string())?;
    let port = fields.integer("Port", 1..=u64::from(u16::MAX));
    // The range makes the conversion lossless.
    port.map(|port| port.map(|port| port as u16)).map_err(|error| error.to_string())
}

/// Whether a node said that it decapsulates in its kernel.
pub(crate) fn is_in_kernel(attrs: &LeaseAttrs) -> bool {
    let fields = attrs.backend_data.as_ref().and_then(|data| Fields::parse(data.as_str()).ok());
    fields.is_some_and(|fields| matches!(fields.text("Engine"), Ok(Some(engine)) if engine == EBPF))
}

/// What a node publishes about itself, if it is anything: flannel's nodes publish nothing and do not look at it.
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
            assert_eq!((published_port(&attrs), is_in_kernel(&attrs)), (Ok(port), in_kernel));
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
