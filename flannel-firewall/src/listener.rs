//! What the kernel tells about changes of rules and of forwarding.

use std::io;

use flannel_netlink::{Namespace, OpenError};
use netlink_sys::{
    Socket,
    protocols::{NETLINK_NETFILTER, NETLINK_ROUTE},
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::RcvBufForce},
};
use tokio::io::unix::AsyncFd;

use crate::{
    netfilter::{HEADER, NFNL_SUBSYS_NFTABLES, read},
    wire::{Message, messages},
};

/// Hears of changes in one namespace, of those that are watched.
#[derive(Debug)]
pub(crate) struct Listener {
    rules: Option<AsyncFd<Socket>>,
    forwarding: AsyncFd<Socket>,
    buffer: Vec<u8>,
    watched: Vec<Watched>,
}

/// A table of nf_tables whose changes matter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Watched {
    /// `NFPROTO_*`.
    pub(crate) family: u8,
    pub(crate) table: String,
    /// Only these chains of it; all of it if there are none.
    pub(crate) chains: Vec<String>,
}

impl Listener {
    /// Opens the sockets inside of `namespace`. A kernel without nf_tables has nothing to tell about rules.
    pub(crate) fn open(namespace: &Namespace, watched: Vec<Watched>) -> Result<Self, OpenError> {
        let rules = open(namespace, NETLINK_NETFILTER, &[NFNLGRP_NFTABLES]);
        let groups = [RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF];
        let forwarding = open(namespace, NETLINK_ROUTE, &groups)?;
        let rules = match rules {
            Err(_) if watched.is_empty() => None,
            rules => Some(rules?),
        };
        Ok(Self { rules, forwarding, buffer: Vec::new(), watched })
    }

    /// Resolves when something that matters has changed, or when that cannot be told because too much was told.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub(crate) async fn heard(&mut self) -> io::Result<()> {
        loop {
            if self.take()? {
                return Ok(());
            }
            // Readiness is cleared first, and then all is read: what comes in between makes ready again.
            let rules = async {
                match &self.rules {
                    Some(socket) => socket.readable().await.map(|mut ready| ready.clear_ready()),
                    None => std::future::pending().await,
                }
            };
            let forwarding =
                async { self.forwarding.readable().await.map(|mut ready| ready.clear_ready()) };
            tokio::select! {
                ready = rules => ready?,
                ready = forwarding => ready?,
            }
        }
    }

    /// Reads all that has been told, and says whether any of it matters.
    pub(crate) fn take(&mut self) -> io::Result<bool> {
        let mut matters = false;
        let sockets = self.rules.iter().chain([&self.forwarding]);
        for socket in sockets {
            loop {
                match read(socket.get_ref(), &mut self.buffer) {
                    Ok(false) => break,
                    Ok(true) => {
                        matters |=
                            messages(&self.buffer).any(|message| matter(&message, &self.watched));
                    }
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => matters = true,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(matters)
    }
}

fn open(
    namespace: &Namespace,
    protocol: isize,
    groups: &[u32],
) -> Result<AsyncFd<Socket>, OpenError> {
    let failed = |source| OpenError::Socket { source };
    let socket = namespace.run(|| -> io::Result<_> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        // Not all may have so much. With less, more is listed.
        let _ = setsockopt(&socket, RcvBufForce, &QUEUE_BYTES);
        for group in groups {
            socket.add_membership(*group)?;
        }
        Ok(socket)
    });
    let socket = socket.map_err(|source| OpenError::Namespace { source })?.map_err(failed)?;
    #[expect(deprecated, reason = "the replacement is unsafe; a Socket owns its one descriptor")]
    AsyncFd::new(socket).map_err(failed)
}

/// Whether a notification is about something watched.
fn matter(message: &Message<'_>, watched: &[Watched]) -> bool {
    if message.kind == RTM_NEWNETCONF {
        return is_forwarding_of_all(message);
    }
    if message.kind >> 8 != NFNL_SUBSYS_NFTABLES {
        return false;
    }
    let Some(family) = message.family() else { return false };
    let text = |kind| {
        let mut attributes = message.attributes(HEADER);
        attributes.find(|attribute| attribute.kind == kind).and_then(|found| found.text())
    };
    // Tables, chains and rules have the table's name in the same place.
    let Some(table) = text(NFTA_NAME_OF_TABLE) else { return false };
    let Some(watch) = watched.iter().find(|w| w.family == family && w.table == table) else {
        return false;
    };
    let chain = match message.kind & 0xff {
        NFT_MSG_NEWTABLE => return watch.chains.is_empty(),
        NFT_MSG_DELTABLE => return true,
        NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => text(NFTA_CHAIN_NAME),
        NFT_MSG_NEWRULE | NFT_MSG_DELRULE => text(NFTA_RULE_CHAIN),
        _ => return watch.chains.is_empty(),
    };
    watch.chains.is_empty() || chain.is_some_and(|c| watch.chains.iter().any(|own| own == c))
}

/// Whether it is about forwarding as such, and not about one interface.
fn is_forwarding_of_all(message: &Message<'_>) -> bool {
    let value = |kind| {
        let mut attributes = message.attributes(NETCONF_HEADER);
        attributes.find(|attribute| attribute.kind == kind)?.u32()
    };
    value(NETCONFA_IFINDEX) == Some(NETCONFA_IFINDEX_ALL) && value(NETCONFA_FORWARDING).is_some()
}

/// What we ask as queue: some thousands of notifications.
const QUEUE_BYTES: usize = 1 << 20;

// linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h
const NFNLGRP_NFTABLES: u32 = 7;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_DELRULE: u16 = 8;
const NFTA_NAME_OF_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_CHAIN: u16 = 2;

// linux/rtnetlink.h, linux/netconf.h
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
const RTM_NEWNETCONF: u16 = 80;
/// The size of `struct netconfmsg`, padded.
const NETCONF_HEADER: usize = 4;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_IFINDEX_ALL: u32 = -1_i32 as u32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{netfilter::kind, wire::Writer};

    fn watched() -> [Watched; 2] {
        let whole = Watched { family: 2, table: "flannel-ipv4".into(), chains: vec![] };
        let chains = vec!["POSTROUTING".into(), "FLANNEL-POSTRTG".into()];
        [whole, Watched { family: 2, table: "nat".into(), chains }]
    }

    fn matters(operation: u16, family: u8, attributes: &[(u16, &str)]) -> bool {
        let mut writer = Writer::default();
        writer.message(kind(operation), 0, 0, (family, 0), |out| {
            attributes.iter().for_each(|(kind, text)| out.text(*kind, text));
        });
        let message = messages(writer.bytes()).next().unwrap();
        matter(&message, &watched())
    }

    #[test]
    fn only_what_is_watched_matters() {
        assert!(matters(NFT_MSG_DELTABLE, 2, &[(1, "flannel-ipv4")]));
        assert!(matters(NFT_MSG_NEWRULE, 2, &[(1, "flannel-ipv4"), (2, "x")]));
        assert!(!matters(NFT_MSG_NEWRULE, 10, &[(1, "flannel-ipv4"), (2, "x")]));
        assert!(matters(NFT_MSG_DELRULE, 2, &[(1, "nat"), (2, "POSTROUTING")]));
        assert!(matters(NFT_MSG_DELCHAIN, 2, &[(1, "nat"), (3, "FLANNEL-POSTRTG")]));
        assert!(matters(NFT_MSG_DELTABLE, 2, &[(1, "nat")]));
        // What kube-proxy does all day.
        assert!(!matters(NFT_MSG_NEWRULE, 2, &[(1, "nat"), (2, "KUBE-SERVICES")]));
        assert!(!matters(NFT_MSG_NEWCHAIN, 2, &[(1, "nat"), (3, "KUBE-SVC-X")]));
        assert!(!matters(15, 0, &[]));
    }

    #[test]
    fn forwarding_matters_as_such_and_not_of_one_interface() {
        let about = |index: u32| {
            let mut writer = Writer::default();
            writer.message(RTM_NEWNETCONF, 0, 0, (2, 0), |out| {
                out.attribute(NETCONFA_IFINDEX, &index.to_ne_bytes());
                out.attribute(NETCONFA_FORWARDING, &0_u32.to_ne_bytes());
            });
            matter(&messages(writer.bytes()).next().unwrap(), &[])
        };
        assert!(about(NETCONFA_IFINDEX_ALL));
        assert!(!about(7));
    }

    proptest::proptest! {
        #[test]
        fn any_notification_is_read_without_panic(
            kind in proptest::sample::select(&[80_u16, 2560, 2562, 2563, 2566, 2575]),
            body in proptest::collection::vec(proptest::num::u8::ANY, 0..80),
        ) {
            let message = Message { kind, flags: 0, sequence: 0, body: &body };
            let _ = matter(&message, &watched());
        }
    }
}
