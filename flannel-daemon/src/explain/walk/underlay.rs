//! The way to our own pod, and the way between the hosts.

use std::net::IpAddr;

use flannel_netlink::state::Link;

use super::{Broken, broken, leases::Peer};
use crate::explain::facts::{Answer, Facts, Hop, Tunnel};

/// The way to the peer's own address.
#[derive(Debug)]
pub(super) struct Way<'a> {
    pub(super) device: &'a Link,
    /// The device that encapsulates for this peer; `None` if packets go as they are.
    pub(super) tunnel: Option<Tunnel>,
    pub(super) says: String,
}

/// A pod of this host is behind a device that is up and that leads nowhere else.
pub(super) fn pod(facts: &Facts, pod: IpAddr) -> Result<String, Broken> {
    const LINK: &str = "pod";
    let host = &facts.host;
    let remedy = format!(
        "see that the pod runs and that its CNI plugin gives it the subnet of {}",
        host.subnet_file.display()
    );
    let hop = hop(facts, pod)
        .map_err(|why| broken(LINK, format!("nothing leads to the pod {pod}: {why}"), &*remedy))?;
    let Some(device) = host.device(hop.link).filter(|_| hop.gateway.is_none()) else {
        let says = format!("packets to the pod {pod} leave this host {}", host.shown(hop));
        return Err(broken(LINK, says, remedy));
    };
    if !device.running && !device.loopback {
        let says =
            format!("{}, which leads to the pod {pod}, {}", device.name, what_is_wrong(device));
        return Err(broken(LINK, says, remedy));
    }
    Ok(format!("{pod} is behind {}", device.name))
}

pub(super) fn way<'a>(facts: &'a Facts, peer: &Peer) -> Result<Way<'a>, Broken> {
    const LINK: &str = "underlay";
    let (host, public) = (&facts.host, peer.public);
    let hop = hop(facts, public).map_err(|why| {
        let says = format!("this host knows no way to the peer at {public}: {why}");
        broken(LINK, says, "give this host a route to the peer, or a default route")
    })?;
    let kind = facts.stored.config.backend().kind();
    let tunnel = Tunnel::of(&facts.stored.config, public.is_ipv4());
    let Some(device) = host.device(hop.link) else {
        return Err(broken(
            LINK,
            format!("the device that leads to {public} is gone"),
            "run this again",
        ));
    };
    if tunnel.as_ref().is_some_and(|tunnel| tunnel.device == device.name)
        || peer.block.contains(public)
    {
        let says =
            format!("the way to the peer at {public} leads into the tunnel that it is to carry");
        return Err(broken(
            LINK,
            says,
            "keep the hosts' addresses out of the network, and routes to them off its devices",
        ));
    }
    if !device.running {
        let says = format!(
            "{}, which leads to the peer at {public}, {}",
            device.name,
            what_is_wrong(device)
        );
        let remedy = format!("bring it up: ip link set {} up, or put in the cable", device.name);
        return Err(broken(LINK, says, remedy));
    }
    if let (Some(gateway), "host-gw") = (hop.gateway, kind) {
        let says = format!(
            "the peer at {public} is behind {gateway}, and host-gw needs all hosts on one link"
        );
        return Err(broken(
            LINK,
            says,
            "use the backend vxlan, with DirectRouting if most hosts share a link",
        ));
    }
    let next = hop.gateway.unwrap_or(public);
    let looked_for =
        host.neighbours.iter().find(|it| (it.link, it.address) == (device.index, next));
    let answer = facts.answers.as_ref().and_then(|answers| answers.peer.as_ref());
    let silent = answer.is_some_and(|answer| !answer.is_alive());
    if looked_for.is_some_and(|neighbour| neighbour.mac.is_none()) && silent {
        let says = format!("{next} does not say its Ethernet address on {}", device.name);
        return Err(broken(
            LINK,
            says,
            format!("see that {next} is up and on the same link as {}", device.name),
        ));
    }
    if let Some(Answer::Unreachable(why)) = answer {
        let says = format!("packets to the peer at {public} come back: {why}");
        return Err(broken(
            LINK,
            says,
            "see that the peer's host is up, and what the routers and firewalls in between refuse",
        ));
    }
    let says = format!(
        "{public} is {} (MTU {})",
        host.shown(hop).replace("straight to", "on the link of"),
        device.mtu
    );
    let tunnel = tunnel.filter(|tunnel| !tunnel.is_direct(host, public));
    Ok(Way { device, tunnel, says })
}

/// Where the kernel sends packets to `address`.
pub(super) fn hop(facts: &Facts, address: IpAddr) -> Result<Hop, String> {
    facts.host.hops.get(&address).cloned().unwrap_or_else(|| Err("it was not looked for".into()))
}

/// Why a device carries no packets.
pub(super) fn what_is_wrong(device: &Link) -> &'static str {
    if device.up { "has no carrier" } else { "is down" }
}
