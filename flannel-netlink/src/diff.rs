//! What to do so that the kernel holds what it should, and in which order.

use std::collections::{BTreeMap, BTreeSet};

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
    /// Stale routes go.
    Prepare,
    /// What is wanted comes.
    Put,
    /// What only stale routes needed goes.
    Remove,
}

impl Stage {
    pub(crate) const ALL: [Self; 3] = [Self::Prepare, Self::Put, Self::Remove];

    /// The kinds that there may be steps for, in their order: what needs others comes after them, and goes before them.
    pub(crate) const fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Prepare => &[Kind::Route],
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

    fn has(self, op: &Op) -> bool {
        match op {
            Op::Delete(Object::Route(_)) => self == Self::Prepare,
            Op::Delete(_) => self == Self::Remove,
            Op::Replace(_) => self == Self::Put,
        }
    }
}

/// The steps that turn `actual` into `desired`. `actual` is what is ours to delete, and whatever
/// stands at a desired key.
///
/// The order is such that a route never stands without what it needs: stale routes go first; then
/// come addresses, nexthop objects, forwarding entries, neighbours and routes; last goes what only
/// stale routes needed. And it never is without a route that stays wanted: that is replaced in place.
/// So a peer whose Ethernet address changes has a forwarding entry at every
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
            ops.extend(between(wanted, found).map(Op::Replace));
            ops.push(Op::Replace(*wanted));
            0
        }
    };
    let others = found.iter().enumerate().filter(|(index, _)| *index != kept);
    ops.extend(others.map(|(_, object)| Op::Delete(*object)));
}

/// What has to stand between the first of `found` and a route that is wanted.
///
/// Of two IPv4 routes through one nexthop object that differ only in their settings, the kernel gives the new one the settings of
/// the old one; not so if they differ in their protocol.
fn between(wanted: &Object, found: &[Object]) -> Option<Object> {
    let (Object::Route(wanted), Object::Route(first)) = (wanted, found.first()?) else {
        return None;
    };
    let is_plain = matches!(wanted.via, Via::Nexthop(_)) && wanted.mtu.is_none();
    let is_mixed_up = wanted.destination.is_ipv4()
        && is_plain
        && (first.mtu.is_some() || first.has_metrics)
        && (first.via, first.protocol) == (wanted.via, wanted.protocol);
    is_mixed_up.then(|| Route { protocol: Route::BOOT, ..*wanted }.into())
}

#[cfg(test)]
mod diff_tests;
