//! Kernel settings without which packets are dropped silently.

use std::net::IpAddr;

use flannel_firewall::Effect;
use flannel_netlink::state::Link;

use super::{
    Broken, broken,
    leases::Ends,
    underlay::{Way, hop},
};
use crate::explain::facts::{Facts, Firewall, InTheWay};

pub(super) fn settings(
    facts: &Facts,
    ends: &Ends,
    way: &Way<'_>,
    tunnel: Option<&Link>,
) -> Result<String, Broken> {
    let near = hop(facts, ends.near).ok().and_then(|hop| facts.host.device(hop.link));
    let setting = |path: &str| facts.host.settings.get(path).map(String::as_str);
    let forwards = match ends.near {
        IpAddr::V4(_) => "net/ipv4/ip_forward",
        IpAddr::V6(_) => "net/ipv6/conf/all/forwarding",
    };
    must_be_on(forwards, setting(forwards))?;
    if ends.near.is_ipv6() {
        // The kernel asks no single device.
        return Ok("this host forwards".into());
    }
    // Where packets are encapsulated, the uplink forwards none of them.
    let out = tunnel.unwrap_or(way.device);
    for device in near.filter(|device| !device.loopback).into_iter().chain([out]) {
        let path = format!("net/ipv4/conf/{}/forwarding", device.name);
        must_be_on(&path, setting(&path))?;
    }
    // Packets from the peer come in where our lease leads it.
    let public = facts.stored.public(ends.near);
    let enters = public.and_then(|public| facts.host.device_with(public));
    if let Some(enters) = enters.filter(|enters| enters.index != way.device.index) {
        let filter = |name: &str| {
            setting(&format!("net/ipv4/conf/{name}/rp_filter"))
                .and_then(|value| value.parse::<u8>().ok())
        };
        // The kernel takes the larger of the two; 1 is the strict one.
        if filter("all").max(filter(&enters.name)) == Some(1) {
            let says = format!(
                "packets from the peer come in on {}, those to it leave on {}, and rp_filter is strict on {}, which drops them",
                enters.name, way.device.name, enters.name
            );
            let remedy = format!(
                "sysctl -w net.ipv4.conf.{}.rp_filter=2, or let both ways use one device",
                enters.name.replace('.', "/")
            );
            return Err(broken("settings", says, remedy));
        }
    }
    Ok("this host forwards".into())
}

/// What the rules of this host do to the packets, whoever wrote them, and what the node says about its own.
pub(super) fn firewall(facts: &Facts) -> Result<String, Broken> {
    let findings = facts.findings.as_deref().unwrap_or_default();
    if let Some(in_the_way) = findings.iter().find(|it| it.finding.certain) {
        return Err(broken("firewall", shown(in_the_way), remedy(facts, in_the_way)));
    }
    let firewall = facts.node.as_ref().and_then(|node| node.firewall.as_ref());
    if let Some(first) = firewall.and_then(|firewall| firewall.faults.first()) {
        let says = format!("the rules of the network are not as they should be: {first}");
        return Err(broken(
            "firewall",
            says,
            "flannel-node tries again by itself; its status has all it needs",
        ));
    }
    let mut says = match &facts.findings {
        Ok(_) => "no rule here is known to drop or masquerade these packets".to_owned(),
        Err(reason) => format!("the rules of this host were not looked at: {reason}"),
    };
    if let Some(Firewall { mode, notes, .. }) = firewall {
        says.push_str(&format!("; the node keeps its own with {mode}"));
        notes.iter().for_each(|note| says.push_str(&format!("; {note}")));
    }
    for in_the_way in findings {
        says.push_str(&format!("; {}", shown(in_the_way)));
    }
    Ok(says)
}

fn shown(InTheWay { from, to, port, finding }: &InTheWay) -> String {
    match port {
        None => format!("from {from} to {to}: {finding}"),
        Some(port) => format!("encapsulated, from {from} to {to}, UDP port {port}: {finding}"),
    }
}

fn remedy(facts: &Facts, InTheWay { from, port, finding, .. }: &InTheWay) -> String {
    if let Some(port) = port {
        return format!(
            "leave UDP packets to port {port} between the nodes as they are: accept them there before that"
        );
    }
    let config = &facts.stored.config;
    let network = match from {
        IpAddr::V4(_) => config.ipv4().map(|range| range.network().to_string()),
        IpAddr::V6(_) => config.ipv6().map(|range| range.network().to_string()),
    };
    let network = network.unwrap_or_else(|| "the network".into());
    match finding.effect {
        Effect::Masquerades => format!(
            "leave packets from {network} to {network} out there, they have to keep their addresses"
        ),
        _ => format!(
            "accept packets from and to {network} there before that; flannel-node does it in iptables, unless it is started \
             with --iptables-forward-rules=false"
        ),
    }
}

fn must_be_on(path: &str, value: Option<&str>) -> Result<(), Broken> {
    match value {
        Some("0") => {
            // A dot in a device's name is written as a slash.
            let name: Vec<_> = path.split('/').map(|part| part.replace('.', "/")).collect();
            let name = name.join(".");
            Err(broken(
                "settings",
                format!("{name} is 0, so this host forwards nothing there"),
                format!("sysctl -w {name}=1"),
            ))
        }
        _ => Ok(()),
    }
}
