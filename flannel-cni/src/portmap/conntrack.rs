//! Tracked UDP flows to the node's ports: they would keep going where they went before the rules changed.

use std::{collections::HashSet, net::IpAddr};

use flannel_netlink::{
    Attribute, Connection, KernelError, Message, Namespace, Request, list_addresses,
    netfilter_header, push_attribute, state::AddressFilter,
};

use super::portmap_keys::{Mapping, UDP};
use crate::{kernel, sandbox::chain};

/// Has the kernel forget UDP flows to these ports of the node. It is a help for flows that exist; what fails is only said.
pub(super) async fn forget(host: &Namespace, mappings: &[Mapping]) {
    let mut udp = mappings.iter().filter(|mapping| mapping.protocol == UDP).peekable();
    if udp.peek().is_none() {
        return;
    }
    let destinations = match Destinations::of(host, udp).await {
        Ok(destinations) => destinations,
        Err(reason) => return eprintln!("{FAILED}: {reason}"),
    };
    let mut connection = match Connection::open_netfilter(host) {
        Ok(connection) => connection,
        Err(error) => return eprintln!("{FAILED}: {}", chain(&error)),
    };
    for family in [AF_INET, AF_INET6] {
        if let Err(error) = forget_family(&mut connection, family, &destinations).await {
            eprintln!("{FAILED}: {error}");
        }
    }
}

/// Where a port of the node is sent to. The same port of others, such as that of a service, is not ours.
#[derive(Debug, Default)]
struct Destinations {
    endpoints: HashSet<(IpAddr, u16)>,
    /// Of all addresses that are the node's alone.
    loopback: HashSet<u16>,
}

impl Destinations {
    async fn of(
        host: &Namespace,
        mappings: impl Iterator<Item = &Mapping>,
    ) -> Result<Self, String> {
        let mut connection = kernel::connect(host).map_err(|error| error.to_string())?;
        let addresses = list_addresses(&mut connection, AddressFilter::default()).await;
        let addresses = addresses.map_err(|error| error.to_string())?;
        let addresses: Vec<IpAddr> = addresses.iter().map(|it| it.address.ip()).collect();
        let mut destinations = Self::default();
        for mapping in mappings {
            let port = mapping.host_port;
            match mapping.host_ip.filter(|address| !address.is_unspecified()) {
                Some(address) => {
                    destinations.endpoints.insert((address, port));
                }
                None => {
                    destinations.endpoints.extend(addresses.iter().map(|it| (*it, port)));
                    destinations.loopback.insert(port);
                }
            }
        }
        Ok(destinations)
    }

    fn has(&self, address: IpAddr, port: u16) -> bool {
        self.endpoints.contains(&(address, port))
            || address.is_loopback() && self.loopback.contains(&port)
    }
}

async fn forget_family(
    connection: &mut Connection,
    family: u8,
    destinations: &Destinations,
) -> Result<(), KernelError> {
    let list = Request::new(kind(IPCTNL_MSG_CT_GET), 0, &netfilter_header(family, 0));
    let flows = connection.dump(&list, |message| flow_to(message, destinations)).await;
    let deletions: Vec<Request> = flows?
        .into_iter()
        .map(|flow| {
            let body = [&netfilter_header(family, 0)[..], &flow].concat();
            Request::new(kind(IPCTNL_MSG_CT_DELETE), 0, &body)
        })
        .collect();
    let results = connection.apply(&deletions).await;
    // A flow that ended by itself is fine.
    let failed = |result: Result<(), KernelError>| result.err().filter(|error| !error.not_found());
    results.into_iter().find_map(failed).map_or(Ok(()), Err)
}

/// What identifies a flow, as attributes, if it is UDP and was sent to one of these.
fn flow_to(message: &Message<'_>, destinations: &Destinations) -> Option<Vec<u8>> {
    let (_, attributes) = message.split(HEADER)?;
    let attributes: Vec<Attribute<'_>> = attributes.collect();
    let find = |kind| attributes.iter().find(|attribute| attribute.kind == kind);
    let original = find(CTA_TUPLE_ORIG)?;
    let protocol = original.nested().find(|it| it.kind == CTA_TUPLE_PROTO)?;
    let inner = |kind| protocol.nested().find(|it| it.kind == kind);
    let port = inner(CTA_PROTO_DST_PORT)?.u16_be()?;
    let addresses = original.nested().find(|it| it.kind == CTA_TUPLE_IP)?;
    let address = addresses.nested().find_map(|it| match it.kind {
        CTA_IP_V4_DST => Some(IpAddr::from(*it.value.first_chunk::<4>()?)),
        CTA_IP_V6_DST => Some(IpAddr::from(*it.value.first_chunk::<16>()?)),
        _ => None,
    })?;
    if inner(CTA_PROTO_NUM)?.u8()? != UDP || !destinations.has(address, port) {
        return None;
    }
    let mut flow = Vec::new();
    push_attribute(&mut flow, CTA_TUPLE_ORIG | NLA_F_NESTED, original.value);
    for kind in [CTA_ID, CTA_ZONE] {
        if let Some(attribute) = find(kind) {
            push_attribute(&mut flow, kind, attribute.value);
        }
    }
    Some(flow)
}

const fn kind(operation: u16) -> u16 {
    NFNL_SUBSYS_CTNETLINK << 8 | operation
}

// linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_conntrack.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const NLA_F_NESTED: u16 = 0x8000;
const FAILED: &str = "failed to delete stale UDP conntrack entries";
/// The size of `struct nfgenmsg`.
const HEADER: usize = 4;

#[cfg(test)]
mod tests {
    use flannel_netlink::push_nested;
    use proptest::prelude::*;

    use super::*;

    /// What the kernel lists for a flow.
    fn flow(protocol: u8, destination: &str, port: u16) -> Vec<u8> {
        let mut body = netfilter_header(AF_INET, 0).to_vec();
        push_nested(&mut body, CTA_TUPLE_ORIG, |body| {
            push_nested(body, CTA_TUPLE_IP, |body| match destination.parse().unwrap() {
                IpAddr::V4(address) => push_attribute(body, CTA_IP_V4_DST, &address.octets()),
                IpAddr::V6(address) => push_attribute(body, CTA_IP_V6_DST, &address.octets()),
            });
            push_nested(body, CTA_TUPLE_PROTO, |body| {
                push_attribute(body, CTA_PROTO_NUM, &[protocol]);
                push_attribute(body, CTA_PROTO_DST_PORT, &port.to_be_bytes());
            });
        });
        push_attribute(&mut body, CTA_ID, &[1, 2, 3, 4]);
        body
    }

    fn destinations() -> Destinations {
        let endpoints = [("192.0.2.1", 53), ("fd00::1", 53), ("192.0.2.9", 54)];
        let endpoints = endpoints.map(|(address, port)| (address.parse().unwrap(), port)).into();
        Destinations { endpoints, loopback: [53].into() }
    }

    #[test]
    fn flows_to_the_nodes_ports_are_found_and_no_others() {
        for (protocol, address, port, expected) in [
            (UDP, "192.0.2.1", 53, true),
            (UDP, "fd00::1", 53, true),
            (UDP, "127.0.0.53", 53, true),
            (UDP, "192.0.2.9", 54, true),
            (UDP, "127.0.0.53", 54, false),
            (UDP, "192.0.2.1", 54, false),
            (UDP, "10.96.0.10", 53, false),
            (6, "192.0.2.1", 53, false),
        ] {
            let request = Request::new(0, 0, &flow(protocol, address, port));
            let found = flow_to(&request.message().unwrap(), &destinations());
            assert_eq!(found.is_some(), expected, "{address} {port}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..160)) {
            let request = Request::new(0, 0, &body);
            let _ = flow_to(&request.message().unwrap(), &destinations());
        }
    }
}
