//! Devices as messages to the kernel.

use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage},
};
use rtnetlink::{LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, LinkWireguard};

use super::{LinkSpec, LinkSpecKind};
use crate::{Namespace, Request, state::Vxlan};

pub(super) fn create(spec: &LinkSpec) -> Request {
    let message = match &spec.kind {
        LinkSpecKind::Bridge => finish(LinkBridge::new(&spec.name), spec),
        LinkSpecKind::Veth { peer, peer_namespace } => {
            let mut message = finish(LinkVeth::new(&spec.name, peer), spec);
            if let Some(namespace) = peer_namespace {
                put_peer_into(&mut message, namespace);
            }
            message
        }
        LinkSpecKind::Vxlan(vxlan) => {
            let mut message = finish(vxlan_message(&spec.name, vxlan), spec);
            // It hands packets on at once, so it needs no queue.
            message.attributes.push(LinkAttribute::TxQueueLen(0));
            message
        }
        LinkSpecKind::Wireguard => finish(LinkWireguard::new(&spec.name), spec),
    };
    Request::from_message(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn finish<T>(mut link: LinkMessageBuilder<T>, spec: &LinkSpec) -> LinkMessage {
    if let Some(mtu) = spec.mtu {
        link = link.mtu(mtu);
    }
    if let Some(mac) = spec.mac {
        link = link.address(mac.octets().to_vec());
    }
    // Up at once, it would have a link-local address before it could be told not to.
    if spec.up && !spec.no_link_local {
        link = link.up();
    }
    link.build()
}

fn vxlan_message(name: &str, vxlan: &Vxlan) -> LinkMessageBuilder<LinkVxlan> {
    let mut link = LinkVxlan::new(name, vxlan.vni)
        .learning(vxlan.learning)
        .proxy(vxlan.proxy)
        .rsc(vxlan.rsc)
        .l2miss(vxlan.l2miss)
        .l3miss(vxlan.l3miss)
        .ttl(vxlan.ttl)
        .tos(vxlan.tos);
    if let Some(port) = vxlan.port {
        link = link.port(port);
    }
    link = with_local(link, vxlan.local);
    link = with_group(link, vxlan.group.filter(|group| !group.is_unspecified()));
    if let Some(parent) = vxlan.parent.filter(|parent| *parent != 0) {
        link = link.dev(parent);
    }
    if vxlan.gbp { link.gbp() } else { link }
}

pub(super) fn with_local(
    link: LinkMessageBuilder<LinkVxlan>,
    local: Option<IpAddr>,
) -> LinkMessageBuilder<LinkVxlan> {
    match local {
        Some(IpAddr::V4(local)) => link.local(local),
        Some(IpAddr::V6(local)) => link.local6(local),
        None => link,
    }
}

pub(super) fn with_group(
    link: LinkMessageBuilder<LinkVxlan>,
    group: Option<IpAddr>,
) -> LinkMessageBuilder<LinkVxlan> {
    match group {
        Some(IpAddr::V4(group)) => link.group(group),
        Some(IpAddr::V6(group)) => link.group6(group),
        None => link,
    }
}

fn put_peer_into(message: &mut LinkMessage, namespace: &Namespace) {
    use netlink_packet_route::link::{InfoData, InfoVeth, LinkInfo};

    for attribute in &mut message.attributes {
        let LinkAttribute::LinkInfo(infos) = attribute else {
            continue;
        };
        for info in infos {
            if let LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))) = info {
                peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_fd().as_raw_fd()));
            }
        }
    }
}

/// The kernel takes this only in a message of its own, not while the device is made.
pub(super) fn no_link_local(index: u32) -> Request {
    let mut message = LinkUnspec::new_with_index(index).build();
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
        AfSpecInet6::AddrGenMode(In6AddrGenMode::None),
    ])]));
    message.header.interface_family = AddressFamily::Unspec;
    Request::from_message(RouteNetlinkMessage::SetLink(message), 0)
}
