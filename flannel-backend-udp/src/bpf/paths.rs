//! Paths to peers that take less than the network card does.
//!
//! Where routers may not cut datagrams (IPv6, and `PathMTUDiscovery`) they say so to the address that datagrams come from, which the
//! kernel notes because a socket listens there. The programs cannot look into those notes: so whenever they have seen such a word, the
//! kernel is asked about all peers, and what differs goes into the map of endpoints. What the kernel forgets, after ten minutes if
//! nobody told it otherwise, is forgotten here.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use flannel_netlink::Namespace;
use rustix::net::sockopt;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::socket::overhead;

/// What is known of paths.
#[derive(Debug)]
pub(super) struct Paths {
    namespace: Namespace,
    /// Where it takes less than the network card does: the largest packet inside of a datagram, bytes.
    narrow: BTreeMap<IpAddr, u16>,
    asked: BTreeSet<IpAddr>,
    /// How often routers had told something.
    told: u64,
    /// They had just told it: the kernel may note it only after the programs have seen it.
    is_fresh: bool,
    /// When all are asked about again.
    next: Instant,
    /// When narrow ones are.
    next_narrow: Instant,
    /// Not before then.
    not_before: Instant,
}

/// Whom to ask about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a> {
    /// Where datagrams come from.
    pub(super) local: &'a [IpAddr],
    pub(super) peers: &'a BTreeSet<IpAddr>,
    /// What the network card takes, bytes.
    pub(super) mtu: u32,
    /// How often routers have told something.
    pub(super) told: u64,
}

impl Paths {
    pub(super) fn new(namespace: &Namespace) -> Self {
        let now = Instant::now();
        Self {
            namespace: namespace.clone(),
            narrow: BTreeMap::new(),
            asked: BTreeSet::new(),
            told: 0,
            is_fresh: false,
            next: now,
            next_narrow: now,
            not_before: now,
        }
    }

    pub(super) fn narrow(&self) -> &BTreeMap<IpAddr, u16> {
        &self.narrow
    }

    /// How often routers had told something when the kernel was asked.
    pub(super) fn told(&self) -> u64 {
        self.told
    }

    /// Asks the kernel where that may tell something new, and returns whether it did.
    pub(super) fn refresh(&mut self, query: Query<'_>) -> bool {
        let began = Instant::now();
        if began < self.not_before {
            return false;
        }
        let is_fresh = query.told != self.told;
        let asks_all = is_fresh || self.is_fresh || began >= self.next;
        self.is_fresh = is_fresh;
        let asks_narrow = began >= self.next_narrow;
        let wanted: Vec<IpAddr> = query
            .peers
            .iter()
            .filter(|peer| {
                asks_all
                    || !self.asked.contains(*peer)
                    || asks_narrow && self.narrow.contains_key(*peer)
            })
            .copied()
            .collect();
        self.told = query.told;
        self.asked.retain(|peer| query.peers.contains(peer));
        self.asked.extend(&wanted);
        let mut narrow = self.narrow.clone();
        narrow.retain(|peer, _| query.peers.contains(peer));
        let answers = match wanted[..] {
            [] => Ok(Vec::new()),
            _ => self.namespace.run(|| ask(query.local, &wanted)),
        };
        match answers {
            Ok(answers) => {
                for (peer, mtu) in answers {
                    match takes(mtu, query.mtu, peer) {
                        Some(takes) => narrow.insert(peer, takes),
                        None => narrow.remove(&peer),
                    };
                }
            }
            Err(error) => debug!(%error, "paths cannot be asked about"),
        }
        let took = began.elapsed();
        self.not_before = began + took * SHARE;
        self.next_narrow = if asks_narrow { began + NARROW_EVERY } else { self.next_narrow };
        if asks_all {
            self.next = began + ALL_EVERY.max(took * ALL_SHARE);
        }
        let is_news = narrow != self.narrow;
        if is_news {
            info!(paths = ?narrow, "paths that take less than the network card");
            self.narrow = narrow;
        }
        is_news
    }
}

/// What goes into a datagram on this path, if it is less than the network card takes.
fn takes(path: u32, card: u32, peer: IpAddr) -> Option<u16> {
    let inside = path.saturating_sub(overhead(peer) as u32);
    (path < card).then(|| u16::try_from(inside).unwrap_or(u16::MAX).max(1))
}

/// The kernel's notes about the paths to `peers`. One whom it knows no way to has none.
fn ask(local: &[IpAddr], peers: &[IpAddr]) -> Vec<(IpAddr, u32)> {
    let mut sockets = BTreeMap::new();
    for address in local {
        if let Ok(socket) = UdpSocket::bind(SocketAddr::new(*address, 0)) {
            sockets.insert(address.is_ipv4(), socket);
        }
    }
    let mut answers = Vec::with_capacity(peers.len());
    for peer in peers {
        let Some(socket) = sockets.get(&peer.is_ipv4()) else {
            continue;
        };
        let asked = || -> io::Result<u32> {
            // Nothing is sent.
            socket.connect(SocketAddr::new(*peer, DISCARD))?;
            Ok(match peer {
                IpAddr::V4(_) => sockopt::ip_mtu(socket)?,
                IpAddr::V6(_) => sockopt::ipv6_mtu(socket)?,
            })
        };
        if let Ok(mtu) = asked() {
            answers.push((*peer, mtu));
        }
    }
    answers
}

/// Any port: the kernel keeps its notes by address.
const DISCARD: u16 = 9;
/// One part in so many is what asking may take of the time.
const SHARE: u32 = 20;
/// The same for asking without a reason.
const ALL_SHARE: u32 = 1000;
/// A route may have been given a size by hand.
const ALL_EVERY: Duration = Duration::from_secs(60);
/// What the kernel has forgotten is to be tried again soon.
const NARROW_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_path_that_takes_less_than_the_card_is_noted() {
        let (v4, v6) = (IpAddr::from([192, 0, 2, 2]), "2001:db8::2".parse().unwrap());
        assert_eq!(takes(1500, 1500, v4), None);
        assert_eq!(takes(9000, 1500, v4), None);
        assert_eq!(takes(1300, 1500, v4), Some(1272));
        assert_eq!(takes(1300, 1500, v6), Some(1252));
        // 0 would mean that nothing is noted.
        assert_eq!(takes(20, 1500, v4), Some(1));
    }

    #[tokio::test]
    async fn peers_are_asked_about_once_until_something_is_told() {
        let mut paths = Paths::new(&Namespace::current().unwrap());
        let peers = BTreeSet::from([IpAddr::from([127, 0, 0, 1])]);
        let local = [IpAddr::from([127, 0, 0, 1])];
        // IP_MTU says 65535 of loopback.
        let mut query = Query { local: &local, peers: &peers, mtu: 1500, told: 0 };
        assert!(!paths.refresh(query));
        let mut soon = |query: Query<'_>| {
            paths.not_before = Instant::now();
            paths.refresh(query)
        };
        query.mtu = 100_000;
        assert!(!soon(query), "it was asked about");
        query.told = 1;
        assert!(soon(query));
        query.mtu = 1500;
        assert!(soon(query), "it is asked about once more");
        query.mtu = 100_000;
        assert!(!soon(query), "and no more");
        query.told = 2;
        assert!(soon(query));
        assert_eq!(paths.narrow(), &BTreeMap::from([(local[0], 65_507)]));
        paths.not_before = Instant::now();
        let nobody = BTreeSet::new();
        assert!(paths.refresh(Query { peers: &nobody, ..query }));
        assert!(paths.narrow().is_empty() && paths.asked.is_empty());
    }
}
