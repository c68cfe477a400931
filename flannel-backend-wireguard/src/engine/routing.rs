//! Which peer a packet is for, and which peer a message is from.

use std::{collections::HashMap, net::IpAddr, net::SocketAddr, sync::Arc};

use flannel_netlink::wireguard::PublicKey;
use flannel_tunnel::prefixes::Prefixes;

use super::session::Session;

/// All peers, by all that they are found by. Never changed: a new one takes its place.
#[derive(Default)]
pub(super) struct Routing {
    blocks: Prefixes<Arc<Session>>,
    indices: HashMap<u32, Arc<Session>>,
    keys: HashMap<PublicKey, Arc<Session>>,
    endpoints: HashMap<SocketAddr, Arc<Session>>,
}

impl Routing {
    /// That of peers with the 24 bits that their local indices begin with.
    pub(super) fn new<'a>(peers: impl IntoIterator<Item = (u32, &'a Arc<Session>)>) -> Self {
        let mut routing = Self::default();
        for (index, session) in peers {
            for block in session.allowed_ips() {
                routing.blocks.insert(block, Arc::clone(session));
            }
            if let Some(endpoint) = session.lock().config.endpoint {
                routing.endpoints.insert(endpoint, Arc::clone(session));
            }
            routing.indices.insert(index, Arc::clone(session));
            routing.keys.insert(session.key, Arc::clone(session));
        }
        routing
    }

    /// The peer that has `ip`.
    pub(super) fn find(&self, ip: IpAddr) -> Option<&Arc<Session>> {
        self.blocks.find(ip)
    }

    /// The peer of the session with this local index.
    pub(super) fn of_index(&self, index: u32) -> Option<&Arc<Session>> {
        self.indices.get(&(index >> 8))
    }

    pub(super) fn of_key(&self, key: &PublicKey) -> Option<&Arc<Session>> {
        self.keys.get(key)
    }

    /// The peer that was at `endpoint` when peers were last set.
    pub(super) fn of_endpoint(&self, endpoint: SocketAddr) -> Option<&Arc<Session>> {
        self.endpoints.get(&endpoint)
    }
}
