//! Devices as messages to the kernel: bridges, pairs and ports.

use std::os::fd::{AsFd, AsRawFd};

use flannel_netlink::{
    Namespace, Request, push_attribute, push_nested, push_text, state::MacAddress,
};

use super::{NLM_F_CREATE, NLM_F_EXCL, RTM_DELLINK, RTM_NEWLINK, RTM_SETLINK};

/// A bridge to make.
#[derive(Clone, Debug)]
pub(crate) struct BridgeSpec<'a> {
    pub(crate) name: &'a str,
    /// 0 leaves it to the kernel.
    pub(crate) mtu: u32,
    pub(crate) mac: MacAddress,
    pub(crate) promiscuous: bool,
    /// Whether it keeps the VLANs of its ports apart.
    pub(crate) vlan_filtering: bool,
}

/// A pair to make, with one end here and the other in a container.
#[derive(Clone, Debug)]
pub(crate) struct VethSpec<'a> {
    pub(crate) name: &'a str,
    /// The bridge's index.
    pub(crate) bridge: u32,
    pub(crate) peer: &'a str,
    pub(crate) peer_namespace: &'a Namespace,
    pub(crate) peer_mac: Option<MacAddress>,
    /// 0 leaves it to the kernel.
    pub(crate) mtu: u32,
}

/// How a bridge treats one of its ports.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Port {
    pub(crate) hairpin: bool,
    pub(crate) isolated: bool,
}

/// VLANs that a port is in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct VlanRange {
    pub(crate) first: u16,
    pub(crate) last: u16,
    /// Packets without a tag are of it, and it is one only.
    pub(crate) untagged: bool,
}

/// Makes a bridge that is up.
///
/// Its address is given, because the kernel would otherwise change it with each port that comes and goes.
pub(crate) fn bridge(spec: &BridgeSpec<'_>) -> Request {
    let flags = if spec.promiscuous { IFF_UP | IFF_PROMISC } else { IFF_UP };
    let mut body = header(AF_UNSPEC, 0, flags, flags);
    push_text(&mut body, IFLA_IFNAME, spec.name);
    push_mtu(&mut body, spec.mtu);
    push_attribute(&mut body, IFLA_ADDRESS, &spec.mac.octets());
    push_nested(&mut body, IFLA_LINKINFO, |body| {
        push_text(body, IFLA_INFO_KIND, "bridge");
        if spec.vlan_filtering {
            push_nested(body, IFLA_INFO_DATA, |body| {
                push_attribute(body, IFLA_BR_VLAN_FILTERING, &[1]);
            });
        }
    });
    Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// Makes a pair. The end that is here is up and a port of the bridge.
pub(crate) fn veth(spec: &VethSpec<'_>) -> Request {
    let mut body = header(AF_UNSPEC, 0, IFF_UP, IFF_UP);
    push_text(&mut body, IFLA_IFNAME, spec.name);
    push_mtu(&mut body, spec.mtu);
    push_attribute(&mut body, IFLA_MASTER, &spec.bridge.to_ne_bytes());
    push_nested(&mut body, IFLA_LINKINFO, |body| {
        push_text(body, IFLA_INFO_KIND, "veth");
        push_nested(body, IFLA_INFO_DATA, |body| {
            push_nested(body, VETH_INFO_PEER, |body| {
                body.extend_from_slice(&header(AF_UNSPEC, 0, 0, 0));
                push_text(body, IFLA_IFNAME, spec.peer);
                push_mtu(body, spec.mtu);
                if let Some(mac) = spec.peer_mac {
                    push_attribute(body, IFLA_ADDRESS, &mac.octets());
                }
                let fd = spec.peer_namespace.as_fd().as_raw_fd();
                push_attribute(body, IFLA_NET_NS_FD, &fd.to_ne_bytes());
            });
        });
    });
    Request::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body)
}

impl Port {
    /// Sets it for the port of this name.
    pub(crate) fn request(self, name: &str) -> Request {
        let mut body = header(AF_UNSPEC, 0, 0, 0);
        push_text(&mut body, IFLA_IFNAME, name);
        push_nested(&mut body, IFLA_LINKINFO, |body| {
            push_text(body, IFLA_INFO_SLAVE_KIND, "bridge");
            push_nested(body, IFLA_INFO_SLAVE_DATA, |body| {
                push_attribute(body, IFLA_BRPORT_MODE, &[self.hairpin.into()]);
                push_attribute(body, IFLA_BRPORT_ISOLATED, &[self.isolated.into()]);
            });
        });
        Request::new(RTM_NEWLINK, 0, &body)
    }
}

/// Sets a bridge's own address, so that the kernel does not take that of a port.
pub(crate) fn pin_mac(index: u32, mac: MacAddress) -> Request {
    let mut body = header(AF_UNSPEC, index, 0, 0);
    push_attribute(&mut body, IFLA_ADDRESS, &mac.octets());
    Request::new(RTM_SETLINK, 0, &body)
}

/// Sets flags of a device on.
pub(crate) fn set_flags(index: u32, up: bool, promiscuous: bool) -> Request {
    let mut flags = 0;
    if up {
        flags |= IFF_UP;
    }
    if promiscuous {
        flags |= IFF_PROMISC;
    }
    Request::new(RTM_SETLINK, 0, &header(AF_UNSPEC, index, flags, flags))
}

/// Puts a port into VLANs.
pub(crate) fn join_vlans(index: u32, ranges: &[VlanRange]) -> Request {
    let mut body = header(AF_BRIDGE, index, 0, 0);
    push_nested(&mut body, IFLA_AF_SPEC, |body| {
        for range in ranges {
            let flags = if range.untagged { VLAN_PVID | VLAN_UNTAGGED } else { 0 };
            push_range(body, range.first, range.last, flags);
        }
    });
    Request::new(RTM_SETLINK, 0, &body)
}

/// Takes a port out of all VLANs, whichever it is in.
pub(crate) fn leave_vlans(index: u32) -> Request {
    let mut body = header(AF_BRIDGE, index, 0, 0);
    push_nested(&mut body, IFLA_AF_SPEC, |body| push_range(body, 1, MOST_VLAN, 0));
    Request::new(RTM_DELLINK, 0, &body)
}

/// `struct bridge_vlan_info`, two of which are a range.
fn push_range(body: &mut Vec<u8>, first: u16, last: u16, flags: u16) {
    let mut push = |id: u16, more: u16| {
        let info = [(flags | more).to_ne_bytes(), id.to_ne_bytes()].concat();
        push_attribute(body, IFLA_BRIDGE_VLAN_INFO, &info);
    };
    if first == last {
        return push(first, 0);
    }
    push(first, VLAN_RANGE_BEGIN);
    push(last, VLAN_RANGE_END);
}

fn push_mtu(body: &mut Vec<u8>, mtu: u32) {
    if mtu != 0 {
        push_attribute(body, IFLA_MTU, &mtu.to_ne_bytes());
    }
}

/// `struct ifinfomsg`.
fn header(family: u8, index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = Vec::with_capacity(256);
    body.extend_from_slice(&[family, 0, 0, 0]);
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&flags.to_ne_bytes());
    body.extend_from_slice(&change.to_ne_bytes());
    body
}

// linux/socket.h, linux/if.h, linux/if_link.h, linux/veth.h, linux/if_bridge.h
const AF_UNSPEC: u8 = 0;
const AF_BRIDGE: u8 = 7;
const IFF_UP: u32 = 0x1;
const IFF_PROMISC: u32 = 0x100;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const VLAN_PVID: u16 = 1 << 1;
const VLAN_UNTAGGED: u16 = 1 << 2;
const VLAN_RANGE_BEGIN: u16 = 1 << 3;
const VLAN_RANGE_END: u16 = 1 << 4;
const MOST_VLAN: u16 = 4094;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const VETH_INFO_PEER: u16 = 1;
