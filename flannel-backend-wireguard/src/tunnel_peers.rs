//! The peers of one device: what was set, and what has to be set next.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use flannel_core::{BackendError, PeerFault, SyncReport};
use flannel_netlink::{
    LogLimit,
    wireguard::{PeerChange, PublicKey},
};
use tokio::time::Instant;
use tracing::warn;

use crate::{
    config::TunnelSpec,
    device::{Devices, Tunnel},
    difference::difference,
    handshakes::{Handshakes, TIMEOUT, has_session, wall_clock},
    plan::PeerSpec,
};

/// A device and its peers, as the last sync left them.
#[derive(Debug)]
pub(crate) struct TunnelPeers {
    pub(crate) tunnel: Tunnel,
    /// `None` before the first sync.
    wanted: Option<BTreeMap<PublicKey, PeerSpec>>,
    handshakes: Handshakes,
    unanswered: BTreeSet<PublicKey>,
    /// What the kernel refused, which is retried by the next sync and not before.
    refused: BTreeSet<PublicKey>,
}

impl TunnelPeers {
    pub(crate) fn new(tunnel: Tunnel) -> Self {
        Self {
            tunnel,
            wanted: None,
            handshakes: Handshakes::default(),
            unanswered: BTreeSet::new(),
            refused: BTreeSet::new(),
        }
    }

    pub(crate) const fn spec(&self) -> &TunnelSpec {
        &self.tunnel.spec
    }

    /// Makes the peers of the device those in `wanted`, counts that in `report`, and returns what is wrong with some.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves a part of the peers set; the next call sets the rest.
    pub(crate) async fn sync(
        &mut self,
        wanted: &BTreeMap<PublicKey, PeerSpec>,
        devices: &mut Devices,
        log: &mut LogLimit,
        report: &mut SyncReport,
    ) -> Result<Vec<(PublicKey, PeerFault)>, BackendError> {
        let link = self.tunnel.link.clone();
        let peers = &self.tunnel.device.peers;
        let changes = difference(wanted, peers, |key| self.announced(key), wall_clock());
        // An engine that is about to start serves what the one before served: that is no change.
        let starts = self.tunnel.device.listen_port == 0;
        if !starts {
            self.note_drift(wanted, &changes, log, report);
        }
        report.read += peers.len() as u64;
        let present: BTreeSet<_> = peers.iter().map(|peer| peer.config.key).collect();
        let results = devices.set_peers(&link, &changes).await?;
        let mut faults = Vec::new();
        self.refused.clear();
        for (change, result) in changes.iter().zip(results) {
            match (result, change) {
                (Ok(()), _) if starts => {}
                (Ok(()), PeerChange::Remove(_)) => report.removed += 1,
                (Ok(()), PeerChange::Set(config)) if present.contains(&config.key) => {
                    report.replaced += 1;
                }
                (Ok(()), PeerChange::Set(_)) => report.added += 1,
                (Err(error), _) => {
                    self.refused.insert(change.key());
                    let (operation, reason) = (change.to_string(), error.to_string());
                    faults.push((change.key(), PeerFault::Kernel { operation, reason }));
                }
            }
        }
        self.wanted = Some(wanted.clone());
        let peers = &self.tunnel.device.peers;
        self.unanswered = self.handshakes.observe(peers, Instant::now(), wall_clock());
        faults.extend(self.unanswered.iter().filter_map(|key| {
            let port = wanted.get(key)?.endpoint.port();
            Some((*key, PeerFault::NoHandshake { seconds: TIMEOUT.as_secs(), port }))
        }));
        Ok(faults)
    }

    /// Whether the device or its peers are no longer as the last sync left them, or other peers do not answer.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub(crate) async fn has_changed(
        &mut self,
        devices: &mut Devices,
    ) -> Result<bool, BackendError> {
        let device = devices.read(&self.tunnel.link).await?;
        let unanswered = self.handshakes.observe(&device.peers, Instant::now(), wall_clock());
        let Some(wanted) = &self.wanted else { return Ok(true) };
        let changes = difference(wanted, &device.peers, |key| self.announced(key), wall_clock());
        Ok(!devices.is_right(&self.tunnel.spec, &device)
            || unanswered != self.unanswered
            || changes.iter().any(|change| !self.refused.contains(&change.key())))
    }

    /// Whether the peer has answered a handshake whose keys were in use when the device was read last.
    pub(crate) fn has_session(&self, key: &PublicKey) -> bool {
        let mut peers = self.tunnel.device.peers.iter();
        let peer = peers.find(|peer| peer.config.key == *key);
        peer.is_some_and(|peer| has_session(peer, wall_clock()))
    }

    /// Where the lease of a peer said that it is when the peer was set.
    fn announced(&self, key: &PublicKey) -> Option<SocketAddr> {
        let spec = self.wanted.as_ref()?.get(key).filter(|_| !self.refused.contains(key))?;
        Some(spec.endpoint)
    }

    /// Logs and counts the changes to peers that are wanted as they were before: somebody else altered those.
    fn note_drift(
        &self,
        wanted: &BTreeMap<PublicKey, PeerSpec>,
        changes: &[PeerChange],
        log: &mut LogLimit,
        report: &mut SyncReport,
    ) {
        let Some(before) = &self.wanted else { return };
        let is_drift =
            |key: &PublicKey| !self.refused.contains(key) && before.get(key) == wanted.get(key);
        let drifted: Vec<_> = changes.iter().map(PeerChange::key).filter(is_drift).collect();
        let device = &self.tunnel.link.name;
        for (key, left_out) in log.choose(&drifted, Instant::now()) {
            let left_out = Some(left_out).filter(|left_out| *left_out > 0);
            warn!(device, peer = %key, left_out, "peer repaired that somebody else changed");
        }
        for key in &drifted {
            report.repaired.add("peer", format_args!("the peer {key} of {device}"));
        }
        report.drifted += drifted.len() as u64;
    }
}
