//! Addresses and routes of a container as messages to the kernel.

use std::net::IpAddr;

use flannel_netlink::{Request, push_attribute, push_nested};
use ipnetwork::IpNetwork;

use super::{NLM_F_CREATE, NLM_F_EXCL, RTM_NEWADDR, RTM_NEWROUTE};
use crate::protocol::Route;

/// Gives a device an address, with the broadcast address of its prefix. `detect_duplicates` is IPv6's question whether anybody
/// has it, until whose end the address cannot be used.
pub(crate) fn add_address(index: u32, address: IpNetwork, detect_duplicates: bool) -> Request {
    let mut body = vec![family(address.ip()), address.prefix(), 0, SCOPE_UNIVERSE];
    body.extend_from_slice(&index.to_ne_bytes());
    push_ip(&mut body, IFA_LOCAL, address.ip());
    push_ip(&mut body, IFA_ADDRESS, address.ip());
    match address {
        IpNetwork::V4(v4) if v4.prefix() < 31 => {
            push_ip(&mut body, IFA_BROADCAST, v4.broadcast().into());
        }
        IpNetwork::V6(_) if !detect_duplicates => {
            push_attribute(&mut body, IFA_FLAGS, &IFA_F_NODAD.to_ne_bytes());
        }
        _ => {}
    }
    Request::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// Adds a route through a device.
pub(crate) fn add_route(index: u32, route: &Route) -> Request {
    let table = route.table.unwrap_or(MAIN_TABLE);
    let short_table = u8::try_from(table).unwrap_or(0);
    let scope = route.scope.unwrap_or(SCOPE_UNIVERSE);
    let (destination, prefix) = (route.dst.network(), route.dst.prefix());
    let family = family(destination);
    let mut body =
        vec![family, prefix, 0, 0, short_table, RTPROT_BOOT, scope, RTN_UNICAST, 0, 0, 0, 0];
    if prefix > 0 {
        push_ip(&mut body, RTA_DST, destination);
    }
    if let Some(gateway) = route.gw {
        push_ip(&mut body, RTA_GATEWAY, gateway);
    }
    push_attribute(&mut body, RTA_OIF, &index.to_ne_bytes());
    if route.priority != 0 {
        push_attribute(&mut body, RTA_PRIORITY, &route.priority.to_ne_bytes());
    }
    if table > u8::MAX.into() {
        push_attribute(&mut body, RTA_TABLE, &table.to_ne_bytes());
    }
    let metrics = [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advmss)];
    if metrics.iter().any(|(_, value)| *value != 0) {
        push_nested(&mut body, RTA_METRICS, |body| {
            for (kind, value) in metrics.into_iter().filter(|(_, value)| *value != 0) {
                push_attribute(body, kind, &value.to_ne_bytes());
            }
        });
    }
    Request::new(RTM_NEWROUTE, NLM_F_CREATE, &body)
}

fn push_ip(body: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => push_attribute(body, kind, &v4.octets()),
        IpAddr::V6(v6) => push_attribute(body, kind, &v6.octets()),
    }
}

const fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

// linux/socket.h, linux/if_addr.h, linux/rtnetlink.h
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_NODAD: u32 = 0x02;
const SCOPE_UNIVERSE: u8 = 0;
const MAIN_TABLE: u32 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
