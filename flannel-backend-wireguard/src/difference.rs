//! The changes from the peers that a device has to those that it should have.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use flannel_netlink::wireguard::{Peer, PeerChange, PeerConfig, PublicKey};

use crate::{handshakes::has_session, plan::PeerSpec};

/// The changes that lead from `actual` to `wanted`, removals first. What is right is not touched.
///
/// `announced` is the endpoint in a peer's lease when the peer was set last. Another endpoint than that is where the peer's packets
/// came from, and stays until the lease changes. It also stays if that is not known, as after a restart, but the peer answers there:
/// its last handshake was not long before `now`, since 1970.
pub(crate) fn difference(
    wanted: &BTreeMap<PublicKey, PeerSpec>,
    actual: &[Peer],
    announced: impl Fn(&PublicKey) -> Option<SocketAddr>,
    now: Duration,
) -> Vec<PeerChange> {
    let present: BTreeSet<_> = actual.iter().map(|peer| peer.config.key).collect();
    let gone = present.iter().filter(|key| !wanted.contains_key(key)).copied();
    let mut changes: Vec<_> = gone.map(PeerChange::Remove).collect();
    for peer in actual {
        let actual = &peer.config;
        let Some(spec) = wanted.get(&actual.key) else { continue };
        let endpoint_stays = match (actual.endpoint, announced(&actual.key)) {
            (None, _) => false,
            (Some(endpoint), _) if endpoint == spec.endpoint => true,
            (Some(_), Some(announced)) => announced == spec.endpoint,
            (Some(_), None) => has_session(peer, now),
        };
        let endpoint = if endpoint_stays { actual.endpoint } else { Some(spec.endpoint) };
        let config = spec.config(actual.key, endpoint);
        if config != *actual {
            let endpoint = config.endpoint.filter(|_| !endpoint_stays);
            changes.push(PeerChange::Set(PeerConfig { endpoint, ..config }));
        }
    }
    let new = wanted.iter().filter(|(key, _)| !present.contains(key));
    changes.extend(new.map(|(key, spec)| PeerChange::Set(spec.config(*key, Some(spec.endpoint)))));
    changes
}

#[cfg(test)]
pub(crate) mod difference_tests;
