//! The nodes that the contract of backends runs on.

use std::time::Duration;

use tokio::{
    select,
    time::{sleep, timeout},
};

use super::{HOSTS, NetworkWorld};
use crate::{
    backend::Network,
    config::NetworkConfig,
    lease::{Lease, LeaseEvent},
    peers::Peers,
    report::SyncReport,
};

/// The nodes of a [`NetworkWorld`], without a store: the test decides who knows whom.
#[derive(Debug)]
pub struct Nodes {
    config: NetworkConfig,
    pub(super) leases: Vec<Lease>,
    pub(super) networks: Vec<Box<dyn Network>>,
    repair_time: Duration,
}

impl Nodes {
    /// Starts the backend on every host and lets all of them know each other.
    pub async fn start(world: &impl NetworkWorld) -> Self {
        let mut nodes = Self {
            config: world.config(),
            leases: Vec::new(),
            networks: Vec::new(),
            repair_time: world.repair_time(),
        };
        for host in 0..HOSTS {
            let backend = world.backend(host);
            let attrs = backend.advertise(None).await.expect("advertise");
            let lease = Lease::new(world.subnet(host), attrs);
            nodes.networks.push(backend.start(&lease).await.expect("start"));
            nodes.leases.push(lease);
        }
        for host in 0..HOSTS {
            let report = nodes.sync(host).await;
            assert_eq!(report.problems, [], "host {host}");
        }
        nodes
    }

    /// The lease of a host.
    pub fn lease(&self, host: usize) -> &Lease {
        &self.leases[host]
    }

    /// The running network of a host.
    pub fn network(&mut self, host: usize) -> &mut dyn Network {
        self.networks[host].as_mut()
    }

    /// The lease and the running network of host 0.
    pub fn into_first(self) -> (Lease, Box<dyn Network>) {
        let lease = self.leases.into_iter().next();
        lease.zip(self.networks.into_iter().next()).expect("host 0 was started")
    }

    /// What `host` has to serve if it knows exactly `leases`.
    pub fn peers(&self, host: usize, leases: impl IntoIterator<Item = Lease>) -> Peers {
        let mut peers = Peers::new(self.config.clone(), self.leases[host].clone());
        peers.fold(LeaseEvent::reset(leases));
        peers
    }

    /// Syncs a host with all others.
    pub async fn sync(&mut self, host: usize) -> SyncReport {
        let peers = self.peers(host, self.leases.clone());
        self.networks[host].sync(&peers).await.expect("sync")
    }

    /// Syncs a host with the others, without one of them and with `more`.
    pub async fn sync_other(
        &mut self,
        host: usize,
        without: usize,
        more: Vec<Lease>,
    ) -> SyncReport {
        let mut leases = self.leases.clone();
        leases.remove(without);
        leases.extend(more);
        let peers = self.peers(host, leases);
        self.networks[host].sync(&peers).await.expect("sync")
    }

    /// Ends the node of host 0, as a crash would, and starts it again.
    pub async fn restart(&mut self, world: &impl NetworkWorld) {
        let backend = world.backend(0);
        let attrs = backend.advertise(Some(&self.leases[0])).await.expect("advertise");
        assert_eq!(attrs, self.leases[0].attrs, "a restarted node publishes what it did before");
        self.networks[0] = backend.start(&self.leases[0]).await.expect("start");
    }

    /// Ends the node of a host that is not used any more, in flanneld's favour.
    pub async fn hand_over(&mut self, host: usize) {
        self.networks.remove(host).hand_over().await.expect("hand over");
    }

    /// Waits for drift of host 0 and syncs, as a node does, until `done` or the time for a repair is over.
    pub async fn repair(&mut self, mut done: impl AsyncFnMut() -> bool) -> bool {
        let limit = self.repair_time;
        let repair = async {
            loop {
                // A probe that waits for an answer must not keep the repair waiting, which is what is timed.
                let done = async {
                    let done = done().await;
                    if !done {
                        sleep(POLL).await;
                    }
                    done
                };
                let is_done = select! {
                    biased;
                    drifted = self.networks[0].drifted() => {
                        drifted.expect("drifted");
                        None
                    }
                    is_done = done => Some(is_done),
                };
                match is_done {
                    None => drop(self.sync(0).await),
                    Some(true) => return,
                    Some(false) => {}
                }
            }
        };
        timeout(limit, repair).await.is_ok()
    }
}

/// How often to look whether a repair is done.
const POLL: Duration = Duration::from_millis(20);
