//! What to do so that the kernel holds what it should, and in which order.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::{
    Request,
    state::{Key, Kind, Object, Route, Via},
};

/// One step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Op {
    /// Take it away.
    Delete(Object),
    /// Create it, or put it in the place of the one with the same key.
    Replace(Object),
}

impl Op {
    /// What it is about.
    pub const fn object(&self) -> &Object {
        match self {
            Self::Delete(object) | Self::Replace(object) => object,
        }
    }

    /// The request for the kernel.
    pub fn request(&self) -> Request {
        match self {
            Self::Delete(object) => object.delete(),
            Self::Replace(object) => object.replace(),
        }
    }
}

/// A part of the order that [`diff()`] describes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    /// Stale routes go, and those that stand in the way.
    RemoveRoutes,
    /// What is wanted comes.
    Put,
    /// What only stale routes needed goes.
    Remove,
}

impl Stage {
    pub(crate) const ALL: [Self; 3] = [Self::RemoveRoutes, Self::Put, Self::Remove];

    /// The kinds that there may be steps for, in their order: what needs others comes after them, and goes before them.
    pub(crate) const fn kinds(self) -> &'static [Kind] {
        match self {
            Self::RemoveRoutes => &[Kind::Route],
            Self::Put => &Kind::ALL,
            Self::Remove => &[Kind::Neighbour, Kind::ForwardingEntry, Kind::Nexthop, Kind::Address],
        }
    }

    /// The steps of this stage for one key, under which `found` stand in the kernel's order.
    pub(crate) fn steps_for(self, wanted: Option<&Object>, found: &[Object], ops: &mut Vec<Op>) {
        let first = ops.len();
        steps_for(wanted, found, ops);
        let mut at = first;
        while let Some(op) = ops.get(at) {
            if self.has(op) {
                at += 1;
            } else {
                ops.remove(at);
            }
        }
    }

    const fn has(self, op: &Op) -> bool {
        match op {
            Op::Delete(Object::Route(_)) => matches!(self, Self::RemoveRoutes),
            Op::Delete(_) => matches!(self, Self::Remove),
            Op::Replace(_) => matches!(self, Self::Put),
        }
    }
}

/// The steps that turn `actual` into `desired`. `actual` is what is ours to delete, and whatever
/// stands at a desired key.
///
/// The order is such that a route never stands without what it needs: stale routes go first; then
/// come addresses, nexthop objects, forwarding entries, neighbours and routes; last goes what only
/// stale routes needed. An IPv6 route that leads elsewhere goes first as well, because the kernel
/// does not take the new way while the old one stands. So a peer whose Ethernet address changes has a forwarding entry at every
/// moment and keeps no stale one.
pub fn diff<'a>(
    desired: impl IntoIterator<Item = &'a Object>,
    actual: impl IntoIterator<Item = &'a Object>,
) -> Vec<Op> {
    let desired: BTreeMap<Key, &Object> = desired.into_iter().map(|it| (it.key(), it)).collect();
    let mut found: BTreeMap<Key, Vec<Object>> = BTreeMap::new();
    for object in actual {
        found.entry(object.key()).or_default().push(*object);
    }
    let keys: BTreeSet<&Key> = desired.keys().chain(found.keys()).collect();
    let mut ops = Vec::new();
    for stage in Stage::ALL {
        let of = |kind| keys.iter().filter(move |key| key.kind() == kind);
        for key in stage.kinds().iter().flat_map(|kind| of(*kind)) {
            let found = found.get(*key).map_or(&[][..], Vec::as_slice);
            stage.steps_for(desired.get(*key).copied(), found, &mut ops);
        }
    }
    ops
}

/// All steps for one key, under which `found` stand in the kernel's order.
fn steps_for(wanted: Option<&Object>, found: &[Object], ops: &mut Vec<Op>) {
    let Some(wanted) = wanted else {
        ops.extend(found.iter().map(|object| Op::Delete(*object)));
        return;
    };
    // The kernel uses the first, and replacing replaces the first.
    let kept = match found.iter().position(|object| wanted.fits(object)) {
        Some(kept) => kept,
        None => {
            ops.push(Op::Replace(*wanted));
            if stands_in_the_way(wanted, found) {
                ops.extend(found.iter().map(|object| Op::Delete(*object)));
                return;
            }
            0
        }
    };
    let others = found.iter().enumerate().filter(|(index, _)| *index != kept);
    ops.extend(others.map(|(_, object)| Op::Delete(*object)));
}

/// Whether a route has to go before the one that is wanted is taken.
///
/// Of IPv6, one that leads elsewhere: the kernel refuses an on-link gateway on one device while a route leads to its address through
/// another device, and the gateway of a tunnel is inside of what the route is for. Of IPv4, one with settings in the place of one
/// without: through the same nexthop object the kernel takes them for the same route.
fn stands_in_the_way(wanted: &Object, found: &[Object]) -> bool {
    let Object::Route(wanted) = wanted else {
        return false;
    };
    let is_plain = matches!(wanted.via, Via::Nexthop(_)) && wanted.mtu.is_none();
    let stands = |it: &Route| match wanted.destination {
        IpNetwork::V4(_) => is_plain && (it.mtu.is_some() || it.has_metrics),
        IpNetwork::V6(_) => it.via != wanted.via,
    };
    found.iter().any(|object| matches!(object, Object::Route(it) if stands(it)))
}

#[cfg(test)]
mod diff_tests;
