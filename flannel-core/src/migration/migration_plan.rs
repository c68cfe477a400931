//! Which peer is sent to by which backend, and what the node publishes: a plain function of leases.

use std::collections::BTreeMap;

use crate::{
    lease::{LeaseAttrs, SecondBackend, SecondRole},
    peers::Peers,
    subnet::Subnet,
};

/// One of the two backends of a node that migrates.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Side {
    /// The one that the node had before. It has the route for the whole network, if there is such a route.
    Base,
    /// The one that was started beside it.
    Beside,
}

impl Side {
    pub(crate) const ALL: [Self; 2] = [Self::Base, Self::Beside];

    pub(crate) const fn other(self) -> Self {
        match self {
            Self::Base => Self::Beside,
            Self::Beside => Self::Base,
        }
    }
}

/// What a node publishes about its backends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Published<'a> {
    pub(crate) first: &'a str,
    pub(crate) second: Option<(&'a str, SecondRole)>,
}

impl<'a> Published<'a> {
    pub(crate) fn by(attrs: &'a LeaseAttrs) -> Self {
        let second = |it: &'a SecondBackend| (&*it.backend_type, it.role);
        Self { first: &attrs.backend_type, second: attrs.second.as_deref().map(second) }
    }

    /// Whether it is this backend and no other.
    pub(crate) fn is_only(&self, name: &str) -> bool {
        self.first == name && self.second.is_none()
    }

    /// The backend by which the node wants to be sent to. It is never taken down while it is that.
    pub(crate) fn target(&self) -> &'a str {
        match self.second {
            Some((second, SecondRole::Next)) => second,
            _ => self.first,
        }
    }

    pub(crate) fn offers(&self, backend: &str) -> bool {
        self.first == backend || self.second.is_some_and(|(second, _)| second == backend)
    }

    /// Whether the node sends to nobody by `backend`.
    pub(crate) fn is_done_with(&self, backend: &str) -> bool {
        !self.offers(backend) || self.second == Some((backend, SecondRole::Unused))
    }
}

/// What a node with two backends knows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Situation<'a> {
    /// The types of both as they are published, base first.
    pub(crate) types: [&'a str; 2],
    /// Which of them is the network's.
    pub(crate) target: Side,
    /// Our own lease as it is in the store.
    pub(crate) published: Published<'a>,
}

/// What a node publishes, by side.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Layout {
    Only(Side),
    Both { first: Side, role: SecondRole },
}

/// What follows from a situation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct MigrationPlan {
    /// By which backend each peer is sent to. Those that are reached by neither are missing.
    pub(crate) via: BTreeMap<Subnet, Side>,
    pub(crate) layout: Layout,
    /// Who is not done with the backend that is left, by its own word or because it takes nothing else.
    pub(crate) waiting: Vec<Subnet>,
    /// Those of them that are sent to by it: the others wait for such nodes themselves.
    pub(crate) late: Vec<Subnet>,
}

impl Situation<'_> {
    const fn name(&self, side: Side) -> &str {
        self.types[side as usize]
    }

    /// Plans for all `peers`. `is_accepted` says whether a peer is known to accept what a side sends, and is asked only where that
    /// makes a difference.
    pub(crate) fn plan(
        &self,
        peers: &Peers,
        is_accepted: impl Fn(Side, &Subnet) -> bool,
    ) -> MigrationPlan {
        let leaves = self.target.other();
        let (mut via, mut waiting, mut late) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut has_moved = true;
        for peer in peers.iter() {
            let theirs = Published::by(&peer.attrs);
            let wanted = self.choose(&theirs, |side| is_accepted(side, &peer.subnet));
            let chosen = wanted.map(|side| self.announced(side, &theirs));
            via.extend(chosen.map(|side| (peer.subnet, side)));
            has_moved &= [wanted, chosen].iter().flatten().all(|side| *side == self.target);
            if chosen == Some(leaves) {
                late.push(peer.subnet);
            }
            if chosen == Some(leaves) || !theirs.is_done_with(self.name(leaves)) {
                waiting.push(peer.subnet);
            }
        }
        let has_left = self.published.is_only(self.name(self.target));
        // What the lease does not name any more is named again only for a peer that takes nothing else. Others wait until it comes back as
        // a new one.
        let layout = match has_left && late.is_empty() {
            true => Layout::Only(self.target),
            false => self.layout(has_moved, waiting.is_empty()),
        };
        MigrationPlan { via, layout, waiting, late }
    }

    /// By which side to send to a peer: by the one that it wants, because that is the one that it will not take down.
    fn choose(&self, theirs: &Published<'_>, is_accepted: impl Fn(Side) -> bool) -> Option<Side> {
        let wanted = Side::ALL.into_iter().find(|side| self.name(*side) == theirs.target());
        let other = Side::ALL
            .into_iter()
            .find(|side| Some(*side) != wanted && theirs.offers(self.name(*side)));
        match (wanted, other) {
            (Some(wanted), Some(other)) if !is_accepted(wanted) => Some(other),
            (wanted, other) => wanted.or(other),
        }
    }

    /// `side`, unless our lease says that we send to nobody by it: then that has to change first, because the peer may count on it.
    fn announced(&self, side: Side, theirs: &Published<'_>) -> Side {
        let (is_denied, other) =
            (self.published.is_done_with(self.name(side)), self.name(side.other()));
        if is_denied && theirs.offers(other) && !self.published.is_done_with(other) {
            return side.other();
        }
        side
    }

    /// What to publish while peers cannot be moved.
    pub(crate) fn layout_without_progress(&self) -> Layout {
        self.layout(false, false)
    }

    fn layout(&self, sends_by_target: bool, nobody_waits: bool) -> Layout {
        let (target, leaves) = (self.target, self.target.other());
        let Published { first, second } = self.published;
        let has_moved = first == self.name(target);
        let was_unused = match second {
            None => true,
            Some((second, role)) => second == self.name(leaves) && role == SecondRole::Unused,
        };
        match (has_moved, sends_by_target) {
            // Everybody knows for sure that we are done, before we say that we accept nothing by it.
            (true, true) if was_unused && nobody_waits => Layout::Only(target),
            (_, true) => Layout::Both { first: target, role: SecondRole::Unused },
            (true, false) => Layout::Both { first: target, role: SecondRole::InUse },
            (false, false) => Layout::Both { first: leaves, role: SecondRole::Next },
        }
    }
}
