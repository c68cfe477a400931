//! What the store says about the two ends.

use std::net::IpAddr;

use flannel_core::Lease;
use flannel_store::{Lifetime, Record};
use ipnetwork::IpNetwork;

use super::{Broken, broken};
use crate::explain::facts::Facts;

/// Whose the two addresses are.
#[derive(Debug)]
pub(super) struct Ends {
    /// This host's block.
    pub(super) block: IpNetwork,
    pub(super) near: IpAddr,
    /// The one on another host, if any.
    pub(super) far: Option<IpAddr>,
    pub(super) says: String,
}

/// The node on the other side.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) lease: Lease,
    pub(super) block: IpNetwork,
    /// Where it is reached.
    pub(super) public: IpAddr,
    pub(super) says: String,
}

pub(super) fn network(facts: &Facts) -> Result<String, Broken> {
    const LINK: &str = "network";
    let stored = &facts.stored;
    let family = if facts.source.is_ipv4() { "IPv4" } else { "IPv6" };
    let Some(network) = stored.network(facts.source.is_ipv4()) else {
        let says = format!("the network has no {family} ({})", stored.place);
        return Err(broken(
            LINK,
            says,
            format!("set Enable{family} and the blocks in its configuration"),
        ));
    };
    for address in [facts.source, facts.destination] {
        if !network.contains(address) {
            let says = format!("{address} is outside of the network {network} ({})", stored.place);
            return Err(broken(LINK, says, "give addresses of pods; others are not routed here"));
        }
    }
    Ok(format!("{network}, backend {}", stored.config.backend().kind()))
}

pub(super) fn ends(facts: &Facts) -> Result<Ends, Broken> {
    const LINK: &str = "own subnet";
    let file = facts.host.subnet_file.display();
    let Some(block) = facts.host.block(facts.source.is_ipv4()) else {
        let says = format!("{file} names no subnet of this host");
        let remedy = "start flannel-node here and see what it logs until it is ready, or give its --subnet-file";
        return Err(broken(LINK, says, remedy));
    };
    let says = format!("{block} ({file})");
    let (near, far) = match (block.contains(facts.source), block.contains(facts.destination)) {
        (true, true) => (facts.source, None),
        (true, false) => (facts.source, Some(facts.destination)),
        (false, true) => (facts.destination, Some(facts.source)),
        (false, false) => {
            let says = format!("neither address is in this host's subnet {block} ({file})");
            let remedy = match facts.stored.public(facts.source) {
                Some(public) => {
                    format!("run this on the host at {public}, which has {}", facts.source)
                }
                None => {
                    format!("no lease has {} either: start flannel-node on its host", facts.source)
                }
            };
            return Err(broken(LINK, says, remedy));
        }
    };
    Ok(Ends { block, near, far, says })
}

pub(super) fn own(facts: &Facts, ends: &Ends) -> Result<String, Broken> {
    const LINK: &str = "own lease";
    let remedy = "peers send nothing here without it; a running flannel-node takes it again, unless another node has it";
    let (record, _) = facts.stored.record_with(ends.near).ok_or_else(|| {
        broken(LINK, format!("no lease has this host's subnet {}", ends.block), remedy)
    })?;
    let lease = valid(LINK, record, remedy)?;
    let public = address(&lease, ends.near.is_ipv4());
    let Some(public) = public else {
        let says =
            format!("our lease {} says no address at which peers reach this host", record.key);
        return Err(broken(
            LINK,
            says,
            "start flannel-node again with the right --iface or --public-ip",
        ));
    };
    match facts.host.device_with(public) {
        Some(device) => Ok(format!("{} leads peers to {public} on {}", record.key, device.name)),
        None if facts.stored.config.backend().kind() == "host-gw" => {
            let says = format!(
                "our lease {} leads peers to {public}, which is no address of this host",
                record.key
            );
            Err(broken(
                LINK,
                says,
                "a running flannel-node publishes a new address within seconds: see whether it runs here, or whether another host uses this store with the same subnet",
            ))
        }
        None => Ok(format!(
            "{} leads peers to {public}, which is no address of this host: something in between has to translate it",
            record.key
        )),
    }
}

pub(super) fn peer(facts: &Facts, ends: &Ends, far: IpAddr) -> Result<Peer, Broken> {
    const LINK: &str = "peer's lease";
    let remedy = format!("start flannel-node on the host of {far}, with the same store");
    let (record, block) = facts
        .stored
        .record_with(far)
        .ok_or_else(|| broken(LINK, format!("no lease has {far}"), &*remedy))?;
    let lease = valid(LINK, record, &remedy)?;
    let theirs = &*lease.attrs.backend_type;
    let ours = facts.stored.config.backend().kind();
    let published = facts.stored.config.backend().lease_type();
    let also = lease.attrs.second.as_ref().map(|second| &second.backend_type);
    if theirs != published && also != Some(&published) {
        let says = format!(
            "the lease {} is of the backend {theirs:?}, and the network's is {ours:?}",
            record.key
        );
        return Err(broken(
            LINK,
            says,
            "start the node there again, so that it takes up the network's configuration",
        ));
    }
    if let Some(reason) = facts.node.as_ref().and_then(|node| node.refused.get(&record.key)) {
        let says = format!("flannel-node does not follow the lease {}: {reason}", record.key);
        let remedy = format!(
            "if no node holds it, release it: flannel-node leases release '{}'; else start the node there again",
            record.key
        );
        return Err(broken(LINK, says, remedy));
    }
    let public = address(&lease, far.is_ipv4()).ok_or_else(|| {
        let says = format!("the lease {} says no address at which its node is reached", record.key);
        broken(LINK, says, "start the node there again with the right --iface or --public-ip")
    })?;
    if facts.host.device_with(public).is_some() {
        let says =
            format!("the lease {} leads to {public}, which is this host's own address", record.key);
        let remedy = format!(
            "if it is left over from an earlier subnet of this host, release it: flannel-node leases release '{}'",
            record.key
        );
        return Err(broken(LINK, says, remedy));
    }
    let says = format!("{} is at {public}", record.key);
    debug_assert_ne!(block, ends.block);
    Ok(Peer { lease, block, public, says })
}

/// The lease in a record, if it is one and counts.
fn valid(link: &'static str, record: &Record, remedy: &str) -> Result<Lease, Broken> {
    if record.lifetime == Lifetime::Lapsed {
        return Err(broken(link, format!("the lease {} has lapsed", record.key), remedy));
    }
    record.lease().map_err(|why| {
        let says = format!("the record {} is not a lease: {why}", record.key);
        broken(link, says, format!("delete it: flannel-node leases release '{}'", record.key))
    })
}

fn address(lease: &Lease, is_ipv4: bool) -> Option<IpAddr> {
    match is_ipv4 {
        true => lease.attrs.public_ip.map(IpAddr::V4),
        false => lease.attrs.public_ipv6.map(IpAddr::V6),
    }
}
