//! What came back from the other side.

use std::net::IpAddr;

use flannel_netlink::state::Link;

use super::{Broken, broken, leases::Peer};
use crate::explain::facts::{Answer, Answers, Facts};

/// The links from this host to the pod that only an answer can prove.
pub(super) fn replies(
    facts: &Facts,
    peer: &Peer,
    tunnel: Option<&Link>,
    far: IpAddr,
) -> Result<Vec<(&'static str, String)>, Broken> {
    let Some(Answers { peer: host, large, tunnel_port, network, pod }) = &facts.answers else {
        return Ok(Vec::new());
    };
    let alive = |answer: &Option<Answer>| answer.as_ref().is_some_and(Answer::is_alive);
    let public = peer.public;
    let reverse = format!(
        "run this on the host at {public}: flannel-node explain {} {}",
        facts.destination, facts.source
    );
    if let (Some(Answer::Alive), Some(device)) = (tunnel_port, tunnel) {
        let says = format!(
            "the peer at {public} is up, and nothing there takes the packets of {}",
            device.name
        );
        return Err(broken(
            "peer",
            says,
            format!("see that flannel-node runs there with this network's VNI and Port; {reverse}"),
        ));
    }
    if let (Some((size, answer)), true) = (large, alive(host)) {
        large_packets(*size, answer, peer, tunnel)?;
    }
    if alive(pod) {
        return Ok(vec![
            ("peer", format!("{public} carries packets both ways")),
            ("far pod", format!("{far} answers")),
        ]);
    }
    if !alive(network) && alive(host) && network.is_some() {
        let port = tunnel
            .map_or_else(String::new, |_| ", see that UDP between the hosts is let through".into());
        let says =
            format!("the peer at {public} answers this host itself, but not through the network");
        return Err(broken("peer", says, format!("{reverse}{port}")));
    }
    if !alive(network) && !alive(host) {
        let says = format!("nothing comes back from the peer at {public}");
        return Err(broken(
            "underlay",
            says,
            format!(
                "see that its host is up and that packets between the hosts are let through both ways; {reverse}"
            ),
        ));
    }
    match pod {
        Some(Answer::Unreachable(why)) => {
            let says = format!("the peer at {public} has no pod {far}: {why}");
            Err(broken(
                "far pod",
                says,
                "see that the pod runs, and that its CNI plugin there gives it that address",
            ))
        }
        _ => Ok(vec![
            ("peer", format!("{public} answers through the network")),
            (
                "far pod",
                format!(
                    "{far} does not answer to UDP, which a rule in front of it may be the reason of"
                ),
            ),
        ]),
    }
}

/// The way takes packets as large as pods are told to send, with what is put around them.
fn large_packets(
    size: u32,
    answer: &Answer,
    peer: &Peer,
    tunnel: Option<&Link>,
) -> Result<(), Broken> {
    let becomes = match answer {
        Answer::Silent => "get lost on the way",
        Answer::TooLarge => "are larger than the way takes",
        Answer::Alive | Answer::Unreachable(_) => return Ok(()),
    };
    let says = format!("packets of {size} bytes to the peer at {} {becomes}", peer.public);
    let remedy = match tunnel {
        Some(_) => {
            "set MTU in the backend's configuration to what the way takes, and start the nodes again"
        }
        None => "set the MTU of the hosts' network cards to what the way takes",
    };
    Err(broken("path MTU", says, remedy))
}
