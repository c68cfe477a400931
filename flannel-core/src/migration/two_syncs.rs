//! How one sync becomes those of two networks, so that each peer has a way at every moment.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{
    merge::{add, fault},
    migrating_network::MigratingNetwork,
    migration_plan::{MigrationPlan, Published, Side, Situation},
    projection::{attrs_of, with_attrs},
    shared_state::Running,
};
use crate::{
    backend::BackendError,
    lease::Lease,
    peers::{NetworkShare, Peers, RouteScope},
    report::SyncReport,
    subnet::Subnet,
};

impl MigratingNetwork {
    /// The sync of a node with one backend. Peers that publish it as their second one are reached by it as well.
    pub(super) async fn sync_alone(
        &mut self,
        base: &Running,
        peers: &Peers,
        scope: RouteScope,
    ) -> Result<SyncReport, BackendError> {
        self.via = None;
        if self.is_plain(peers) && scope == RouteScope::Network {
            return self.base.sync(peers).await;
        }
        let share = NetworkShare { scope, ..NetworkShare::default() };
        let shown = |lease: &Arc<Lease>| {
            let attrs = match lease.attrs.second {
                Some(_) => attrs_of(&lease.attrs, &base.backend_type),
                None => None,
            };
            Some(attrs.map_or_else(|| Arc::clone(lease), |attrs| with_attrs(lease, attrs)))
        };
        self.base.sync(&peers.shared(base.own_lease(peers.own()), share, shown)).await
    }

    /// Whether nobody has a second backend. Looks at those that have changed since it was so: there may be ten thousand others.
    fn is_plain(&mut self, peers: &Peers) -> bool {
        let has_second = |lease: &Lease| lease.attrs.second.is_some();
        let changed = self.plain_at.take().and_then(|known| peers.changed_since(&known));
        let has_any = match changed {
            Some(changed) => changed.iter().filter_map(|it| peers.get(it)).any(has_second),
            None => peers.iter().any(has_second),
        };
        let is_plain = !has_any && !has_second(peers.own());
        self.plain_at = is_plain.then(|| peers.revision().clone());
        is_plain
    }

    /// Starts the second backend, if that is not done yet.
    pub(super) async fn start_beside(
        &mut self,
        beside: &Running,
        own: &Lease,
    ) -> Result<(), BackendError> {
        if self.beside.is_some() {
            return Ok(());
        }
        // Devices may have to be there before it can be said what is published of them.
        let attrs = beside.backend.advertise(Some(&beside.own_lease(own))).await?;
        let lease = with_attrs(own, attrs.clone());
        self.beside = Some(beside.backend.start(&lease).await?);
        if let Some(running) = &mut self.shared.state().beside {
            running.attrs = Some(attrs);
        }
        Ok(())
    }

    /// Syncs one of two networks with the peers that `serves` says are sent to by it, and those that it has to know otherwise.
    pub(super) async fn sync_side(
        &mut self,
        side: Side,
        running: &Running,
        peers: &Peers,
        serves: impl Fn(&Subnet) -> bool,
    ) -> Result<SyncReport, BackendError> {
        let Some(network) = self.network(side) else { return Ok(SyncReport::default()) };
        let knows_senders = network.knows_senders();
        let (mut standby, mut shown) = (BTreeSet::new(), BTreeMap::new());
        for peer in peers.iter() {
            let is_served = serves(&peer.subnet);
            let attrs = match attrs_of(&peer.attrs, &running.backend_type) {
                _ if !is_served && !knows_senders => None,
                None => network.foresee(&peer.attrs),
                attrs => attrs,
            };
            let Some(attrs) = attrs else { continue };
            if !is_served {
                standby.insert(peer.subnet);
            }
            shown.insert(peer.subnet, with_attrs(peer, attrs));
        }
        let scope = match side {
            Side::Base => RouteScope::Network,
            Side::Beside => RouteScope::Peers,
        };
        let share = NetworkShare { standby, scope };
        let own = running.own_lease(peers.own());
        network.sync(&peers.shared(own, share, |lease| shown.get(&lease.subnet).cloned())).await
    }

    /// The sync of a node with two backends: the one that gains peers comes first, and the other one lets go of them after that.
    pub(super) async fn sync_both(
        &mut self,
        [base, beside]: [&Running; 2],
        target: Side,
        peers: &Peers,
    ) -> Result<(SyncReport, MigrationPlan), BackendError> {
        let running = |side: Side| if side == Side::Base { base } else { beside };
        let situation = Situation {
            types: [&base.backend_type, &beside.backend_type],
            target,
            published: Published::by(&peers.own().attrs),
        };
        let published_done =
            situation.published.is_done_with(&running(target.other()).backend_type);
        self.refused.clear();
        let all_by_base = || peers.iter().map(|peer| (peer.subnet, Side::Base)).collect();
        let before = self.via.clone().unwrap_or_else(all_by_base);
        let awaited = Cell::new(false);
        let mut report = SyncReport::default();
        loop {
            let plan = situation.plan(peers, |side, subnet| {
                let is_known = before.get(subnet) == Some(&side) || published_done;
                let network =
                    if side == Side::Base { Some(&self.base) } else { self.beside.as_ref() };
                let accepts =
                    is_known || network.is_some_and(|network| network.is_accepted(subnet));
                awaited.set(awaited.get() || !accepts);
                !self.refused.contains(subnet) && accepts
            });
            let moves_to = |side: Side| {
                let from = Some(&side.other());
                plan.via.iter().any(|(subnet, to)| *to == side && before.get(subnet) == from)
            };
            let first = match (moves_to(Side::Base), moves_to(Side::Beside)) {
                (true, false) => Side::Base,
                (false, true) => Side::Beside,
                _ => target,
            };
            let both_ways = moves_to(Side::Base) && moves_to(Side::Beside);
            let serves = |side: Side| {
                let via = &plan.via;
                move |subnet: &Subnet| via.get(subnet) == Some(&side)
            };
            let keeps = |side: Side| {
                let (before, via) = (&before, &plan.via);
                // What the process before has left may be of either side.
                move |subnet: &Subnet| {
                    via.get(subnet) == Some(&side)
                        || before.get(subnet).is_none_or(|it| *it == side)
                }
            };
            let synced = match both_ways {
                true => self.sync_side(first, running(first), peers, keeps(first)).await,
                false => self.sync_side(first, running(first), peers, serves(first)).await,
            };
            let of_first = match synced {
                Ok(synced) => synced,
                Err(error) if first == Side::Base => return Err(error),
                Err(error) => {
                    // Nobody is let go of, and what the base has is kept as it should be.
                    let of_base =
                        self.sync_side(Side::Base, base, peers, keeps(Side::Base)).await?;
                    add(&mut report, of_base, serves(Side::Base), Side::Base);
                    let operation = format!("serve peers by {}", beside.kind());
                    report.faults.push(fault(operation, &error));
                    return Ok((report, plan_that_waits(plan, &before, situation)));
                }
            };
            let failed: BTreeSet<_> = of_first
                .problems
                .iter()
                .map(|problem| problem.peer)
                .filter(|peer| before.get(peer) == Some(&first.other()))
                .filter(|peer| !self.refused.contains(peer))
                .collect();
            add(&mut report, of_first, serves(first), first);
            if first == target && !failed.is_empty() {
                self.refused.extend(failed);
                continue;
            }
            let second = first.other();
            let synced = self.sync_side(second, running(second), peers, serves(second)).await;
            match synced {
                Ok(synced) => add(&mut report, synced, serves(second), second),
                Err(error) if second == Side::Base => return Err(error),
                Err(error) => {
                    let operation = format!("serve peers by {}", beside.kind());
                    report.faults.push(fault(operation, &error));
                }
            }
            if both_ways {
                let again = self.sync_side(first, running(first), peers, serves(first)).await?;
                add(&mut report, again, |_| false, first);
            }
            self.via = Some(plan.via.clone());
            if awaited.get() {
                self.look_at = Some(Instant::now() + AWAIT);
            }
            return Ok((report, plan));
        }
    }
}

/// The plan of a node whose second backend does not work right now: nobody moves.
fn plan_that_waits(
    plan: MigrationPlan,
    before: &BTreeMap<Subnet, Side>,
    situation: Situation<'_>,
) -> MigrationPlan {
    let via = before.clone();
    let layout = situation.layout_without_progress();
    MigrationPlan { via, layout, ..plan }
}

/// How often it is looked whether a peer accepts packets by now, which nobody tells.
const AWAIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
