//! What to do next to get a lease: a plain function of what is there.

use flannel_core::{Lease, LeaseAttrs, NetworkConfig, NetworkFull, NodeId, Subnet, choose};

use crate::registry::{Lifetime, Record};

/// The next step of acquiring a lease.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Decision<'a> {
    /// Take this free subnet.
    Create(Subnet),
    /// Remove this lease of our own, which cannot be used.
    Delete(&'a Record),
    /// Make this record ours, or keep it.
    Take(&'a Record),
}

/// What `node` should do next to hold a subnet that it publishes `attrs` with, given all `records`.
pub(crate) fn decide<'a>(
    config: &NetworkConfig,
    records: &'a [Record],
    node: &NodeId,
    attrs: &LeaseAttrs,
    hint: Option<&Subnet>,
) -> Result<Decision<'a>, NetworkFull> {
    let entries = entries(records);
    let usable = |(subnet, record): &&(Subnet, &'a Record)| {
        config.admits(subnet) && !is_lost(subnet, record, &entries)
    };
    let own = || entries.iter().filter(|(_, record)| is_own(record, node, attrs));
    let kept = own().filter(usable).min_by_key(|(subnet, record)| order(subnet, record, hint));
    // A reservation was made by a person, who may still want it.
    let surplus = own().find(|(subnet, record)| {
        record.lifetime != Lifetime::Unbounded && kept.is_none_or(|(kept, _)| kept != subnet)
    });
    if let Some((_, record)) = surplus {
        return Ok(Decision::Delete(record));
    }
    if let Some((_, record)) = kept {
        return Ok(Decision::Take(record));
    }
    let adoptable = entries.iter().filter(|(_, record)| {
        attrs.address().is_some() && !is_named(record) && address(record) == attrs.address()
    });
    if let Some((_, record)) =
        adoptable.filter(usable).min_by_key(|(subnet, record)| order(subnet, record, hint))
    {
        return Ok(Decision::Take(record));
    }
    // Whatever has the key of a subnet takes that subnet, also if it is no lease: creating it would fail. What stands under
    // another spelling takes it too: flannel follows such keys.
    let odd = odd(records);
    let all = entries.iter().map(|(subnet, _)| subnet);
    choose(config, all.chain(odd.iter().map(|(subnet, _)| subnet)), node, hint)
        .or_else(|_| choose(config, live(&entries).chain(live(&odd)), node, hint))
        .map(Decision::Create)
}

/// The lease that `node` holds already. Flannel's own are known by their address, which is then the node's id.
pub(crate) fn previous(records: &[Record], node: &NodeId, hint: Option<&Subnet>) -> Option<Lease> {
    let entries = entries(records);
    // Reading all leases to find one would cost more than anything else at a start.
    let may_be_ours = |record: &Record| match &record.owner {
        Some(owner) if is_named(record) => owner == node,
        _ => node.address().is_some(),
    };
    let candidates = entries.iter().filter(|(_, record)| may_be_ours(record));
    let leases = candidates.filter_map(|(subnet, record)| {
        let lease = record.lease().ok().filter(|_| !is_lost(subnet, record, &entries))?;
        let ours = match &lease.node {
            Some(owner) => owner == node,
            None => lease.attrs.address().is_some() && lease.attrs.address() == node.address(),
        };
        ours.then_some((lease.node.is_none(), order(subnet, record, hint), lease))
    });
    leases.min_by_key(|(adopted, order, _)| (*adopted, *order)).map(|(_, _, lease)| lease)
}

/// Whether `node`, which publishes `attrs`, holds the record.
///
/// A node that is named by an address holds what has the address that the node has now: the address may have been another
/// node's when that one took its lease, and the lease says where that node is now.
fn is_own(record: &Record, node: &NodeId, attrs: &LeaseAttrs) -> bool {
    let Some(named_after) = node.address() else { return record.owner.as_ref() == Some(node) };
    if record.owner.is_none() || is_named(record) {
        return false;
    }
    let Some(address) = address(record) else { return record.owner.as_ref() == Some(node) };
    // What we have not published yet says our address of before.
    let unpublished = record.owner.as_ref() == Some(node) && address == named_after;
    attrs.address() == Some(address) || unpublished
}

/// Whether the owner has a name that lasts.
fn is_named(record: &Record) -> bool {
    record.owner.as_ref().is_some_and(|owner| owner.address().is_none())
}

fn address(record: &Record) -> Option<std::net::IpAddr> {
    record.lease().ok().and_then(|lease| lease.attrs.address())
}

fn entries(records: &[Record]) -> Vec<(Subnet, &Record)> {
    records.iter().filter_map(|record| Some((record.subnet()?, record))).collect()
}

/// Records whose keys are about a subnet and are not its key.
fn odd(records: &[Record]) -> Vec<(Subnet, &Record)> {
    let odd = records.iter().filter(|record| record.subnet().is_none());
    odd.filter_map(|record| Some((Subnet::of_any_spelling(&record.key)?, record))).collect()
}

fn live<'a>(entries: &'a [(Subnet, &Record)]) -> impl Iterator<Item = &'a Subnet> + Clone {
    let live = entries.iter().filter(|(_, record)| record.lifetime != Lifetime::Lapsed);
    live.map(|(subnet, _)| subnet)
}

/// Whether the record's time is over and somebody has taken the addresses under another key.
fn is_lost(subnet: &Subnet, record: &Record, entries: &[(Subnet, &Record)]) -> bool {
    record.lifetime == Lifetime::Lapsed && live(entries).any(|other| other.overlaps(subnet))
}

/// Which of several leases to keep: the one that this node is known to use, a reservation, one that lasts, the oldest.
fn order(
    subnet: &Subnet,
    record: &Record,
    hint: Option<&Subnet>,
) -> (bool, bool, bool, u64, Subnet) {
    (
        hint != Some(subnet),
        record.lifetime != Lifetime::Unbounded,
        record.lifetime == Lifetime::Lapsed,
        record.revision,
        *subnet,
    )
}

#[cfg(test)]
mod tests;
