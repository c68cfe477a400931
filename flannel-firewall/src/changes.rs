//! What the kernel tells about changes of rules and of forwarding.

use std::io;

use flannel_netlink::{Message, Namespace, OpenError, Protocol, Subscription};

use crate::nftables::{
    Family as TableFamily,
    uapi::{
        HEADER, NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE,
        NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_NEWGEN, NFT_MSG_NEWRULE, NFTA_CHAIN_NAME,
        NFTA_RULE_CHAIN, NFTA_TABLE_NAME,
    },
};

/// Hears of changes in one namespace.
#[derive(Debug)]
pub(crate) struct ChangeListener {
    rules: Option<Subscription>,
    forwarding: Subscription,
    /// The tables whose changes are those of our rules.
    pub(crate) watched: Vec<Watched>,
}

/// A table of nf_tables whose changes matter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Watched {
    pub(crate) family: TableFamily,
    pub(crate) table: String,
    /// Only these chains of it; all of it if there are none.
    pub(crate) chains: Vec<String>,
}

/// What was changed since the last time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Changed {
    /// Our rules, or forwarding.
    pub(crate) ours: bool,
    /// Rules of others.
    pub(crate) others: bool,
}

impl ChangeListener {
    /// Opens the sockets inside of `namespace`. A kernel without nf_tables has nothing to tell about rules.
    pub(crate) fn open(namespace: &Namespace, has_nftables: bool) -> Result<Self, OpenError> {
        let groups = [RTNLGRP_IPV4_NETCONF, RTNLGRP_IPV6_NETCONF];
        let forwarding = Subscription::open(namespace, Protocol::Route, &groups)?;
        let rules = has_nftables
            .then(|| Subscription::open(namespace, Protocol::Netfilter, &[NFNLGRP_NFTABLES]));
        Ok(Self { rules: rules.transpose()?, forwarding, watched: Vec::new() })
    }

    /// Waits until there may be something to [take](Self::take).
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        let rules = async {
            match &self.rules {
                Some(rules) => rules.readable().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = rules => ready,
            ready = self.forwarding.readable() => ready,
        }
    }

    /// Reads all that has been told. What was lost may have been anything.
    pub(crate) fn take(&mut self) -> io::Result<Changed> {
        let mut changed = Changed::default();
        for subscription in self.rules.iter_mut().chain([&mut self.forwarding]) {
            let lost = subscription.drain(|message| match subject(message, &self.watched) {
                Some(Subject::Ours) => changed.ours = true,
                Some(Subject::Others) => changed.others = true,
                None => {}
            })?;
            changed.ours |= lost;
            changed.others |= lost;
        }
        Ok(changed)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Subject {
    Others,
    Ours,
}

/// Whose rules a notification is about.
fn subject(message: &Message<'_>, watched: &[Watched]) -> Option<Subject> {
    if message.kind == RTM_NEWNETCONF {
        return is_forwarding_of_all(message).then_some(Subject::Ours);
    }
    if message.kind >> 8 != NFNL_SUBSYS_NFTABLES || message.kind & 0xff == NFT_MSG_NEWGEN {
        return None;
    }
    Some(if is_watched(message, watched) { Subject::Ours } else { Subject::Others })
}

fn is_watched(message: &Message<'_>, watched: &[Watched]) -> bool {
    let Some(family) = message.body.first().map(|family| TableFamily(*family)) else {
        return false;
    };
    let text = |kind| {
        let mut attributes = message.split(HEADER)?.1;
        attributes.find(|attribute| attribute.kind == kind)?.text()
    };
    // Tables, chains and rules have the table's name in the same place.
    let Some(table) = text(NFTA_TABLE_NAME) else { return false };
    let operation = message.kind & 0xff;
    let chain = match operation {
        NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => text(NFTA_CHAIN_NAME),
        NFT_MSG_NEWRULE | NFT_MSG_DELRULE => text(NFTA_RULE_CHAIN),
        _ => None,
    };
    watched.iter().filter(|watch| watch.family == family && watch.table == table).any(|watch| {
        operation == NFT_MSG_DELTABLE
            || watch.chains.is_empty()
            || chain.is_some_and(|chain| watch.chains.iter().any(|own| own == chain))
    })
}

/// Whether it is about forwarding as such, and not about one interface.
fn is_forwarding_of_all(message: &Message<'_>) -> bool {
    let value = |kind| {
        let mut attributes = message.split(NETCONF_HEADER)?.1;
        attributes.find(|attribute| attribute.kind == kind)?.u32()
    };
    value(NETCONFA_IFINDEX) == Some(NETCONFA_IFINDEX_ALL) && value(NETCONFA_FORWARDING).is_some()
}

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
    use flannel_netlink::{Request, netfilter_header, push_attribute, push_text};

    use super::*;
    use crate::nftables::uapi::message_type;

    fn watched() -> [Watched; 2] {
        let family = TableFamily::IPV4;
        let whole = Watched { family, table: "flannel-ipv4".into(), chains: vec![] };
        let chains = vec!["POSTROUTING".into(), "FLANNEL-POSTRTG".into()];
        [whole, Watched { family, table: "nat".into(), chains }]
    }

    fn of(operation: u16, family: u8, attributes: &[(u16, &str)]) -> Option<Subject> {
        let mut body = netfilter_header(family, 0).to_vec();
        attributes.iter().for_each(|(kind, text)| push_text(&mut body, *kind, text));
        let request = Request::new(message_type(operation), 0, &body);
        subject(&request.message().unwrap(), &watched())
    }

    #[test]
    fn only_what_is_watched_is_ours() {
        let (ours, others) = (Some(Subject::Ours), Some(Subject::Others));
        assert_eq!(of(NFT_MSG_DELTABLE, 2, &[(1, "flannel-ipv4")]), ours);
        assert_eq!(of(NFT_MSG_NEWRULE, 2, &[(1, "flannel-ipv4"), (2, "x")]), ours);
        assert_eq!(of(NFT_MSG_NEWRULE, 10, &[(1, "flannel-ipv4"), (2, "x")]), others);
        assert_eq!(of(NFT_MSG_DELRULE, 2, &[(1, "nat"), (2, "POSTROUTING")]), ours);
        assert_eq!(of(NFT_MSG_DELCHAIN, 2, &[(1, "nat"), (3, "FLANNEL-POSTRTG")]), ours);
        assert_eq!(of(NFT_MSG_DELTABLE, 2, &[(1, "nat")]), ours);
        // What kube-proxy does all day.
        assert_eq!(of(NFT_MSG_NEWRULE, 2, &[(1, "nat"), (2, "KUBE-SERVICES")]), others);
        assert_eq!(of(NFT_MSG_NEWCHAIN, 2, &[(1, "nat"), (3, "KUBE-SVC-X")]), others);
        assert_eq!(of(NFT_MSG_NEWGEN, 0, &[]), None);
    }

    #[test]
    fn forwarding_matters_as_such_and_not_of_one_interface() {
        let about = |index: u32| {
            let mut body = vec![2, 0, 0, 0];
            push_attribute(&mut body, NETCONFA_IFINDEX, &index.to_ne_bytes());
            push_attribute(&mut body, NETCONFA_FORWARDING, &0_u32.to_ne_bytes());
            let request = Request::new(RTM_NEWNETCONF, 0, &body);
            subject(&request.message().unwrap(), &[])
        };
        assert_eq!(about(NETCONFA_IFINDEX_ALL), Some(Subject::Ours));
        assert_eq!(about(7), None);
    }

    proptest::proptest! {
        #[test]
        fn any_notification_is_read_without_panic(
            kind in proptest::sample::select(&[80_u16, 2560, 2562, 2563, 2566, 2575]),
            body in proptest::collection::vec(proptest::num::u8::ANY, 0..80),
        ) {
            let request = Request::new(kind, 0, &body);
            let _ = subject(&request.message().unwrap(), &watched());
        }
    }
}
