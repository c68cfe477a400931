//! The peers that the engine was told of.

use std::{collections::BTreeMap, sync::Arc};

use flannel_netlink::wireguard::{PeerChange, PublicKey};
use ipnetwork::IpNetwork;

use super::{Identity, session::Session};

/// Peers by key, each with the 24 bits that its local indices begin with.
#[derive(Default)]
pub(super) struct Peers {
    pub(super) sessions: BTreeMap<PublicKey, (u32, Arc<Session>)>,
    /// Whose a block is.
    owners: BTreeMap<IpNetwork, PublicKey>,
    next: u32,
}

impl Peers {
    /// Nobody yet.
    pub(super) fn new() -> Self {
        Self { next: rand_index(), ..Self::default() }
    }

    /// Makes a change to one peer.
    pub(super) fn apply(&mut self, change: &PeerChange, identity: &Identity) {
        let key = change.key();
        self.owners.retain(|_, owner| *owner != key);
        let config = match change {
            PeerChange::Remove(_) => {
                self.sessions.remove(&key);
                return;
            }
            PeerChange::Set(config) => config,
        };
        for block in &config.allowed_ips {
            let before = self.owners.insert(*block, key);
            // The last peer that an address is given to has it.
            if let Some((_, other)) = before.and_then(|other| self.sessions.get(&other)) {
                other.lock().config.allowed_ips.remove(block);
            }
        }
        if let Some((index, session)) = self.sessions.get(&key) {
            session.configure(identity, config, *index);
        } else {
            let index = self.next;
            self.next = (index + 1) & INDICES;
            let session = Arc::new(Session::new(identity, config.clone(), index));
            self.sessions.insert(key, (index, session));
        }
    }
}

/// Where local indices begin: not where those of an earlier engine did, whose sessions peers may still use.
fn rand_index() -> u32 {
    let mut bytes = [0; 4];
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    u32::from_ne_bytes(bytes) & INDICES
}

/// Local indices begin with 24 bits that say whose they are.
const INDICES: u32 = 0x00ff_ffff;
