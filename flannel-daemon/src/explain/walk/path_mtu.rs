//! What the node has found on the way to the peer by asking it.

use flannel_netlink::{Features, state::Link};

use super::{Broken, broken, leases::Peer, underlay::Way};
use crate::{
    explain::facts::{Facts, Path},
    path_monitor::remedy,
};

/// The way takes what it should; nothing where the node does not ask its peers.
pub(super) fn path(
    facts: &Facts,
    peer: &Peer,
    tunnel: Option<&Link>,
    way: &Way<'_>,
) -> Result<Option<String>, Broken> {
    let public = peer.public;
    let key = (peer.lease.subnet.to_string(), public.is_ipv4());
    let found = facts.node.as_ref().and_then(|node| node.paths.get(&key));
    let Some(Path { is_enough, mtu, needed, corrupted: [inside, outside] }) = found else {
        return Ok(None);
    };
    if let Some(mtu) = mtu {
        let says = format!(
            "the path MTU to the peer at {public} is {mtu}, and {needed} are needed: larger packets get lost without a word"
        );
        return Err(broken("path MTU", says, remedy(tunnel.is_some(), &way.device.name, *mtu)));
    }
    let device = tunnel.filter(|_| *inside).or_else(|| outside.then_some(way.device));
    if let Some(device) = device {
        let says = format!(
            "packets to the peer at {public} through {} whose checksums are left to the hardware get lost, others arrive",
            device.name
        );
        let remedy = format!("ethtool -K {} {} off", device.name, Features::TX_CHECKSUM);
        return Err(broken("checksums", says, remedy));
    }
    Ok(is_enough
        .then(|| format!("packets of {needed} bytes reach {public}, as the node found out")))
}
