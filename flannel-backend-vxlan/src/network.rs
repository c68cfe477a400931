//! The running data path: our own devices, and what leads to all peers.

use std::sync::Arc;

use async_trait::async_trait;
use flannel_backend::{PathFacts, PathsWatch, PeerTable, TableOptions, UplinkWatch};
use flannel_core::{
    BackendConfig, BackendError, Fault, FaultKind, Lease, LeaseAttrs, Network, Peers, Subnet,
    SyncReport, Transport,
};
use flannel_netlink::{LogLimit, Monitor, Namespace, Notice, Subject, Topic, state::Link};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::{
    backend::Shared,
    device::DeviceState,
    family::Family,
    mac_owners::MacOwners,
    plan::Facts,
    underlay::{Overlay, UnderlayWatch},
};

/// The devices of one network, and the way to all its peers.
#[derive(Debug)]
pub(crate) struct VxlanNetwork {
    shared: Arc<Shared>,
    uplink: UplinkWatch,
    /// With direct routing only.
    underlay: Option<UnderlayWatch>,
    table: PeerTable,
    mac_owners: MacOwners,
    facts: Option<Facts>,
    watched: Vec<Link>,
    namespace: Namespace,
    paths: PathsWatch,
    /// Tells of changed settings, of which a device's attributes say nothing: forwarding, and features.
    settings: Option<(Monitor, &'static [Topic])>,
    log: LogLimit,
    /// Whether plans may be others because of Ethernet addresses that several claim.
    contested: bool,
    /// What we should publish, if the lease says something else.
    unpublished: Option<LeaseAttrs>,
    /// When a device may be repaired that somebody keeps altering, or something is to be published.
    look_again_at: Option<Instant>,
}

impl VxlanNetwork {
    pub(crate) fn new(
        shared: Arc<Shared>,
        namespace: Namespace,
        uplink: UplinkWatch,
        table: PeerTable,
    ) -> Self {
        let paths = shared.paths.watch();
        Self {
            shared,
            namespace,
            paths,
            settings: None,
            log: LogLimit::default(),
            contested: false,
            uplink,
            underlay: None,
            table,
            mac_owners: MacOwners::default(),
            facts: None,
            watched: Vec::new(),
            unpublished: None,
            look_again_at: None,
        }
    }

    /// Lets drift of these devices be told.
    fn watch(&mut self, links: Vec<Link>) {
        for link in &self.watched {
            if !links.iter().any(|other| other.name == link.name) {
                self.table.table().unwatch_link(&link.name);
            }
        }
        for link in &links {
            // Watching anew would tell what was told before.
            if !self.watched.contains(link) {
                // How long its queue is, is up to the operator.
                self.table.table().watch_link(Link { queue: 0, ..link.clone() });
            }
        }
        self.watched = links;
    }

    /// Sees to it that what our devices are is published, when a sync found it to be other than the lease says. It is told once,
    /// since the store may be away.
    async fn compare(&mut self, own: &Lease) {
        let mut attrs = own.attrs.clone();
        self.shared.devices().lock().await.publish(&mut attrs);
        if attrs == own.attrs {
            self.unpublished = None;
        } else if self.unpublished.as_ref() != Some(&attrs) {
            self.unpublished = Some(attrs);
            self.look_again_at = Some(Instant::now());
        }
    }

    /// Finds out which peers are on the link, if that makes a difference.
    async fn look_at_underlay(&mut self, peers: &Peers) -> Result<(), BackendError> {
        if !self.shared.settings().direct_routing {
            self.underlay = None;
            return Ok(());
        }
        if self.underlay.is_none() {
            let TableOptions { protocol, networks, .. } = self.shared.routes.clone();
            let overlay = Overlay { protocol, networks };
            self.underlay = Some(UnderlayWatch::open(&self.namespace, overlay).await?);
        }
        match &mut self.underlay {
            Some(underlay) => underlay.ask_about(peers).await,
            None => Ok(()),
        }
    }

    /// Lets changed settings of our devices be told, and changed features if we want any other than the kernel's.
    fn watch_settings(&mut self, PathFacts { software_checksums, .. }: &PathFacts) {
        let topics: &[Topic] = match software_checksums.is_empty() {
            true => &[Topic::Netconf],
            false => &[Topic::Links, Topic::Netconf],
        };
        if self.settings.as_ref().is_none_or(|(_, watched)| *watched != topics) {
            let opened = Monitor::open_for(&self.namespace, topics);
            self.settings = opened
                .map_err(|error| warn!(%error, "whether others change settings of devices will be seen late"))
                .ok()
                .map(|monitor| (monitor, topics));
        }
    }

    fn follow(&mut self, facts: Facts, peers: &Peers) {
        if self.facts.as_ref() == Some(&facts) {
            if std::mem::take(&mut self.contested) {
                self.table.replan();
            }
            return;
        }
        self.table.want_own(facts.own_addresses());
        self.table.replan();
        if facts.on_link.is_some() && self.log.allows(Instant::now()).is_some() {
            let publics = |peer: &Lease| Family::ALL.map(|family| family.public(&peer.attrs));
            let is_direct =
                |peer: &&Lease| publics(peer).into_iter().flatten().any(|ip| facts.is_direct(ip));
            let direct = peers.iter().filter(is_direct).count();
            info!(direct, encapsulated = peers.len() - direct, "routing modes of peers chosen");
        }
        self.facts = Some(facts);
    }
}

#[async_trait]
impl Network for VxlanNetwork {
    fn mtu(&self) -> u32 {
        let uplink = self.shared.uplink();
        self.shared.settings().pod_mtu(uplink.as_ref().unwrap_or_else(|| self.uplink.current()))
    }

    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError> {
        let shared = Arc::clone(&self.shared);
        let uplink = shared.uplink().unwrap_or_else(|| self.uplink.current().clone());
        let own = peers.own();
        let known = self.paths.current();
        // Before the devices are looked at, so that no change is missed.
        self.watch_settings(&known);
        let PathFacts { mtus, software_checksums, .. } = known;
        shared.devices().lock().await.compute_checksums(software_checksums);
        self.contested |= self.mac_owners.follow(peers);
        let macs = shared.devices().lock().await.macs();
        for family in self.mac_owners.lost_by(peers, &macs) {
            shared.change_mac(family, own).await;
        }
        let state = shared.ensure(&uplink, own.attrs.address(), Some(own)).await;
        let DeviceState { vteps, links, due, repaired, mut errors } = state;
        self.look_at_underlay(peers).await?;
        self.look_again_at = due;
        self.watch(links);
        self.compare(own).await;
        let facts = Facts {
            own: own.clone(),
            vteps,
            uplink: uplink.index,
            on_link: self.underlay.as_ref().map(|underlay| underlay.current().clone()),
            protocol: shared.routes.protocol,
            table: shared.routes.table,
            limits: mtus,
        };
        self.follow(facts, peers);
        let (mac_owners, facts) = (&self.mac_owners, self.facts.as_ref().expect("followed above"));
        let plan = |peer: &Lease| {
            facts.plan(peer, |family, mac| mac_owners.conflict(peers, family, mac, &peer.subnet))
        };
        let mut report = self.table.sync(peers, plan).await?;
        report.postponed += u64::from(due.is_some());
        report.faults.extend(self.uplink.faults());
        for what in &repaired {
            report.repaired.add("link", what);
        }
        if self.facts.as_ref().is_some_and(|facts| facts.vteps.is_empty()) && !errors.is_empty() {
            return Err(errors.swap_remove(0).1);
        }
        for (family, error) in errors {
            let operation = format!("serve {family}");
            let kind = FaultKind::FamilyUnusable;
            report.faults.push(Fault::new(kind, family.to_string(), operation, chain(&error)));
        }
        Ok(report)
    }

    fn reconfigure(&mut self, options: &BackendConfig) -> Result<(), BackendError> {
        self.shared.reconfigure(options)
    }

    fn transport(&self, subnet: &Subnet) -> Option<Transport> {
        self.table.transport(subnet)
    }

    async fn drifted(&mut self) -> Result<(), BackendError> {
        let underlay = async {
            match &mut self.underlay {
                Some(underlay) => underlay.changed().await,
                None => std::future::pending().await,
            }
        };
        let settings = async {
            match &mut self.settings {
                Some((monitor, _)) => told_of(monitor, &self.watched).await,
                None => std::future::pending().await,
            }
        };
        let look_again = async {
            match self.look_again_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            drifted = self.table.drifted() => drifted,
            changed = underlay => changed,
            () = look_again => Ok(()),
            () = settings => Ok(()),
            () = self.paths.changed() => Ok(()),
            changed = self.uplink.changed() => {
                self.shared.set_uplink(changed?);
                Ok(())
            }
        }
    }

    async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
        let Self { shared, table, .. } = *self;
        let removed = table.teardown().await;
        let deleted = shared.devices().lock().await.delete().await;
        removed.and(deleted)
    }

    /// The devices stay: flanneld takes them over as we have taken over its own.
    async fn hand_over(self: Box<Self>) -> Result<(), BackendError> {
        self.table.hand_over().await
    }
}

/// Waits until the kernel tells of one of these devices, or may have.
///
/// # Cancel safety
///
/// Dropping it loses nothing.
async fn told_of(monitor: &mut Monitor, links: &[Link]) {
    loop {
        match monitor.next().await {
            Ok(Notice::Added { subject, .. }) => {
                let is_ours = |index| links.iter().any(|ours| ours.index == index);
                match subject {
                    Subject::Link(link) if is_ours(link.index) => return,
                    Subject::Netconf(index) if is_ours(index) => return,
                    _ => {}
                }
            }
            Ok(Notice::Lost) => return,
            // A device that is gone is told of elsewhere.
            Ok(_) => {}
            Err(error) => {
                warn!(%error, "cannot watch settings of devices");
                std::future::pending().await
            }
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
