//! Kernel settings without which packets are dropped silently.

use std::net::IpAddr;

use super::{
    Broken, broken,
    leases::Ends,
    underlay::{Way, hop},
};
use crate::explain::facts::Facts;

pub(super) fn settings(facts: &Facts, ends: &Ends, way: &Way<'_>) -> Result<String, Broken> {
    let near = hop(facts, ends.near).ok().and_then(|hop| facts.host.device(hop.link));
    let setting = |path: &str| facts.host.settings.get(path).map(String::as_str);
    let forwards = match ends.near {
        IpAddr::V4(_) => "net/ipv4/ip_forward",
        IpAddr::V6(_) => "net/ipv6/conf/all/forwarding",
    };
    must_be_on(forwards, setting(forwards))?;
    if ends.near.is_ipv6() {
        return Ok("this host forwards".into());
    }
    for device in near.filter(|device| !device.loopback).into_iter().chain([way.device]) {
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
