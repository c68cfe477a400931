//! What to do next to get a lease: a plain function of what is there.

use flannel_core::{Lease, LeaseAttrs, NetworkConfig, NetworkFull, NodeId, Subnet, choose};

use crate::{
    registry::{Lifetime, Record},
    registry_store::protocol::{Candidate, Request},
};

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
    in_use: &[String],
) -> Result<Decision<'a>, NetworkFull> {
    let entries = entries(records);
    let usable = |(subnet, record): &&(Subnet, &'a Record)| {
        config.admits(subnet) && winner(record, records).is_none()
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
    // Leases of the node that has it now are in the way of ours, though not of its own.
    let usable_as_ours = |(subnet, record): &&(Subnet, &'a Record)| {
        let owner = record.owner.as_ref().map(|_| node.clone());
        config.admits(subnet) && winner(&Record { owner, ..(*record).clone() }, records).is_none()
    };
    let at_our_address = |named: bool| {
        let found = entries.iter().filter(move |(_, record)| {
            attrs.address().is_some()
                && is_named(record) == named
                && address(record) == attrs.address()
                && !in_use.contains(&record.key)
        });
        found.filter(usable_as_ours).min_by_key(|(subnet, record)| order(subnet, record, hint))
    };
    // One that is named is that of another node, unless this one has lost its name.
    if let Some((_, record)) = at_our_address(false).or_else(|| at_our_address(true)) {
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
        let lease = record.lease().ok()?;
        let ours = match &lease.node {
            Some(owner) => owner == node,
            None => lease.attrs.address().is_some() && lease.attrs.address() == node.address(),
        };
        let ours = ours && winner(record, records).is_none();
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

/// The lease that overlaps `record` and keeps its addresses, so that the holder of `record` has to take others.
///
/// Whoever wrote a lease without an owner, as flannel does, does not know of this rule, and is left alone. Else a reservation
/// stays, and then the older lease. What is no lease has no holder, and takes nothing from anybody. A lease that has lapsed gives
/// way to all others, but for a lease of its own node, which that one gives up for it; a reservation it cannot give up.
pub(crate) fn winner<'a>(record: &Record, records: &'a [Record]) -> Option<&'a Record> {
    let rank = |it: &Record| {
        let is_reserved = it.lifetime == Lifetime::Unbounded;
        (it.owner.is_some(), !is_reserved, it.created, it.key.clone())
    };
    let has_lapsed = record.lifetime == Lifetime::Lapsed;
    records.iter().find(|other| {
        let is_reserved = has_lapsed && other.lifetime == Lifetime::Unbounded;
        other.overlaps(&record.key)
            && (other.owner.is_none() || other.owner != record.owner || is_reserved)
            && (has_lapsed
                || other.lease().is_ok() && (other.owner.is_none() || rank(other) < rank(record)))
    })
}

/// Why the subnet of `request` is taken, for people.
pub(crate) fn reason(request: &Request, candidate: &Candidate<'_>, records: &[Record]) -> String {
    let Candidate { config, node, hint, .. } = candidate;
    let chosen = match request {
        Request::Update { was, .. } => {
            return match &was.owner {
                Some(owner) if owner == *node => format!("it is leased to {node}"),
                Some(owner) => {
                    format!("it is leased to {owner} at our address, who does not answer")
                }
                None => "it is leased to our address".into(),
            };
        }
        Request::Create { key, .. } => key,
        Request::Delete(_) | Request::List | Request::Touch { .. } => return String::new(),
    };
    let Some(hint) = hint else { return "this node had none before".into() };
    if *chosen == hint.to_string() {
        return "this node had it before".into();
    }
    if !config.admits(hint) {
        return format!("{hint}, which this node had before, does not fit the network");
    }
    match records.iter().find(|it| it.key == hint.to_string() || it.overlaps(&hint.to_string())) {
        Some(Record { key, owner: Some(owner), .. }) => {
            format!("{hint}, which this node had before, is leased to {owner} ({key})")
        }
        Some(Record { key, .. }) => {
            format!("{hint}, which this node had before, is taken by {key}")
        }
        None => format!("{hint}, which this node had before, is taken"),
    }
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
