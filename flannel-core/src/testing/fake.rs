//! A backend whose kernel is a table in memory, for tests and simulations of everything above the backend.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{sync::Notify, time::sleep};

use crate::{
    backend::{Backend, BackendError, Network},
    lease::{Lease, LeaseAttrs},
    peer_fault::{Family, PeerFault, PeerProblem},
    peers::Peers,
    report::{BackendReport, RoutingMode, SyncReport, Transport},
    subnet::Subnet,
};

/// A host in memory that serves as backend of one node. Clones share the host, so that a test keeps one to look and meddle,
/// and a restarted node finds what the one before it left.
#[derive(Clone, Debug)]
pub struct FakeBackend {
    host: Arc<Host>,
    kind: &'static str,
}

/// The running data path of a [`FakeBackend`].
#[derive(Debug)]
pub struct FakeNetwork {
    host: Arc<Host>,
    kind: &'static str,
}

#[derive(Debug)]
struct Host {
    state: Mutex<State>,
    drift: Notify,
}

#[derive(Debug)]
struct State {
    address: Ipv4Addr,
    is_up: bool,
    mtu: u32,
    routes: BTreeMap<Subnet, IpAddr>,
    started: Vec<Subnet>,
    failing_starts: u32,
    failing_syncs: u32,
    sync_time: Duration,
    syncs: u64,
    writes: u64,
}

impl FakeBackend {
    /// A host with the public address `address` and no routes.
    pub fn new(address: Ipv4Addr) -> Self {
        Self::of_kind("fake", address)
    }

    /// The same, published as a backend of this kind.
    pub fn of_kind(kind: &'static str, address: Ipv4Addr) -> Self {
        let state = State {
            address,
            is_up: false,
            mtu: 1500,
            routes: BTreeMap::new(),
            started: Vec::new(),
            failing_starts: 0,
            failing_syncs: 0,
            sync_time: Duration::ZERO,
            syncs: 0,
            writes: 0,
        };
        Self { host: Arc::new(Host { state: Mutex::new(state), drift: Notify::new() }), kind }
    }

    /// The public address of the host.
    pub fn address(&self) -> Ipv4Addr {
        self.host.state().address
    }

    /// Whether the host's data path accepts packets: it was started and not torn down since.
    pub fn is_up(&self) -> bool {
        self.host.state().is_up
    }

    /// The routes of the host: each peer's subnet and address.
    pub fn routes(&self) -> BTreeMap<Subnet, IpAddr> {
        self.host.state().routes.clone()
    }

    /// The subnets with which the backend was started, in order.
    pub fn started(&self) -> Vec<Subnet> {
        self.host.state().started.clone()
    }

    /// How many syncs were begun.
    pub fn syncs(&self) -> u64 {
        self.host.state().syncs
    }

    /// How many routes were written by syncs.
    pub fn writes(&self) -> u64 {
        self.host.state().writes
    }

    /// Changes the routes as somebody else would, and lets the network notice.
    pub fn meddle(&self, change: impl FnOnce(&mut BTreeMap<Subnet, IpAddr>)) {
        change(&mut self.host.state().routes);
        self.host.drift.notify_one();
    }

    /// Gives the host another public address, and lets the network notice.
    pub fn set_address(&self, address: Ipv4Addr) {
        self.host.state().address = address;
        self.host.drift.notify_one();
    }

    /// Gives pods another MTU, bytes; 1500 before that.
    pub fn set_mtu(&self, mtu: u32) {
        self.host.state().mtu = mtu;
    }

    /// Lets the next `count` starts fail.
    pub fn fail_starts(&self, count: u32) {
        self.host.state().failing_starts = count;
    }

    /// Lets the next `count` syncs fail half way.
    pub fn fail_syncs(&self, count: u32) {
        self.host.state().failing_syncs = count;
    }

    /// Lets every sync take `time` for each peer, and a teardown once.
    pub fn slow_syncs(&self, time: Duration) {
        self.host.state().sync_time = time;
    }
}

impl Host {
    fn insert(&self, subnet: Subnet, address: IpAddr) -> Option<IpAddr> {
        let mut state = self.state();
        state.writes += 1;
        state.routes.insert(subnet, address)
    }

    fn remove(&self, subnet: &Subnet) {
        let mut state = self.state();
        state.writes += 1;
        state.routes.remove(subnet);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics while it holds the lock")
    }
}

#[async_trait]
impl Backend for FakeBackend {
    async fn advertise<'a>(
        &'a self,
        _previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        let public_ip = Some(self.host.state().address);
        Ok(LeaseAttrs { public_ip, backend_type: self.kind.into(), ..LeaseAttrs::default() })
    }

    fn report(&self) -> BackendReport {
        let mut report = BackendReport::default();
        report.properties.insert("kind".into(), self.kind.into());
        report
    }

    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        let mut state = self.host.state();
        if state.failing_starts > 0 {
            state.failing_starts -= 1;
            return Err(refused("start"));
        }
        state.started.push(lease.subnet);
        state.is_up = true;
        Ok(Box::new(FakeNetwork { host: Arc::clone(&self.host), kind: self.kind }))
    }
}

#[async_trait]
impl Network for FakeNetwork {
    fn mtu(&self) -> u32 {
        self.host.state().mtu
    }

    async fn sync(&mut self, peers: &Peers) -> Result<SyncReport, BackendError> {
        let (pause, fails) = {
            let mut state = self.host.state();
            state.syncs += 1;
            let fails = state.failing_syncs > 0;
            state.failing_syncs -= u32::from(fails);
            (state.sync_time, fails)
        };
        let mut report = SyncReport::default();
        let mut desired = BTreeMap::new();
        for lease in peers.iter() {
            let problem = |fault| PeerProblem::new(lease.subnet, lease.attrs.address(), fault);
            match lease.attrs.address() {
                _ if lease.attrs.backend_type != self.kind => {
                    let theirs = lease.attrs.backend_type.clone().into_owned();
                    report
                        .problems
                        .push(problem(PeerFault::OtherBackend { ours: self.kind.into(), theirs }));
                }
                Some(address) => drop(desired.insert(lease.subnet, address)),
                None => {
                    report.problems.push(problem(PeerFault::NoAddress { family: Family::Ipv4 }))
                }
            }
        }
        let stale: Vec<_> = {
            let state = self.host.state();
            state.routes.keys().filter(|key| !desired.contains_key(key)).copied().collect()
        };
        for subnet in stale {
            sleep(pause).await;
            self.host.remove(&subnet);
            report.removed += 1;
        }
        let half = desired.len() / 2;
        for (done, (subnet, address)) in desired.into_iter().enumerate() {
            if fails && done >= half {
                return Err(refused("sync"));
            }
            if self.host.state().routes.get(&subnet) == Some(&address) {
                continue;
            }
            sleep(pause).await;
            let before = self.host.insert(subnet, address);
            *if before.is_none() { &mut report.added } else { &mut report.replaced } += 1;
        }
        if fails { Err(refused("sync")) } else { Ok(report) }
    }

    fn transport(&self, subnet: &Subnet) -> Option<Transport> {
        let served = self.host.state().routes.contains_key(subnet);
        served.then(|| Transport::new(Some(RoutingMode::Direct), None))
    }

    async fn drifted(&mut self) -> Result<(), BackendError> {
        self.host.drift.notified().await;
        Ok(())
    }

    async fn teardown(self: Box<Self>) -> Result<(), BackendError> {
        let pause = self.host.state().sync_time;
        sleep(pause).await;
        let mut state = self.host.state();
        (state.routes, state.is_up) = (BTreeMap::new(), false);
        Ok(())
    }
}

fn refused(operation: &str) -> BackendError {
    BackendError::Kernel { operation: operation.into(), source: "refused by the test".into() }
}
