//! The userspace engine: threads that forward packets between the device and the sockets.
//!
//! Each worker has a queue of the device and a socket for each family. The kernel spreads flows over queues, and peers over
//! sockets, so packets of one flow keep their order. Workers share nothing that they write.

mod inbound;
mod outbound;
mod worker;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use flannel_netlink::Namespace;
use flannel_tunnel::{handover, snapshot::Snapshot, socket::PeerSocket, tun::Tun};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

use crate::{
    plan::ForwardingPlan,
    stats::{Counters, Features},
    table::Table,
};

/// Running workers. They keep running when this is dropped: the data path stays until it is [stopped](Self::stop), another engine
/// [takes over](Self::start), or the process ends.
#[derive(Debug)]
pub(crate) struct Forwarder {
    shared: Arc<Shared>,
    features: Features,
    threads: Vec<thread::JoinHandle<()>>,
}

/// What workers and their owner share.
#[derive(Debug)]
struct Shared {
    table: Snapshot<Table>,
    counters: Vec<Counters>,
    /// Readable when workers are to stop.
    wake: OwnedFd,
    stops: AtomicBool,
    /// Workers that have not ended.
    running: AtomicUsize,
    failure: Mutex<Option<Failure>>,
    /// Notified when a worker ends by itself.
    ended: Notify,
}

/// Why a worker ended by itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Failure {
    /// A device or socket is no longer usable.
    Broken(String),
    /// Another engine has taken over the device.
    TakenOver,
}

/// What workers are started with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Setup {
    /// The device's name.
    pub(crate) device: String,
    /// The device's index, by which the engine that carries its packets is found.
    pub(crate) index: u32,
    /// The device's own addresses.
    pub(crate) own: Vec<IpAddr>,
    /// The local addresses to listen on, one per family.
    pub(crate) local: Vec<SocketAddr>,
    pub(crate) workers: usize,
    /// Whether sockets enable `UDP_GRO`. BPF programs cannot split coalesced datagrams.
    pub(crate) joins: bool,
    /// Whether datagrams are sent with DF.
    pub(crate) path_mtu_discovery: bool,
}

/// Why workers could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("attach to device {name}")]
    Attach { name: String, source: io::Error },
    #[error("listen on UDP {address}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("start a thread to carry packets")]
    Thread { source: io::Error },
}

impl Forwarder {
    /// Starts workers in `namespace`. An engine that serves the same device stops once they run.
    pub(crate) fn start(
        namespace: &Namespace,
        setup: &Setup,
        plan: &ForwardingPlan,
    ) -> Result<Self, StartError> {
        let thread_error = |source| StartError::Thread { source };
        let tun = Tun::attach(namespace, &setup.device, setup.workers)
            .map_err(|source| StartError::Attach { name: setup.device.clone(), source })?;
        let mut sockets = Vec::with_capacity(tun.queues.len());
        for _ in &tun.queues {
            let open = |address: &SocketAddr| {
                PeerSocket::open(namespace, *address, setup.joins, setup.path_mtu_discovery)
                    .map_err(|source| StartError::Listen { address: *address, source })
            };
            sockets.push(setup.local.iter().map(open).collect::<Result<Vec<_>, _>>()?);
        }
        let features = features(&tun, sockets.iter().flatten().next(), setup.joins);
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|error| thread_error(error.into()))?;
        let shared = Arc::new(Shared {
            table: Snapshot::default(),
            counters: tun.queues.iter().map(|_| Counters::default()).collect(),
            wake,
            stops: AtomicBool::new(false),
            running: AtomicUsize::new(tun.queues.len()),
            failure: Mutex::default(),
            ended: Notify::new(),
        });
        shared.table.replace(Table::new(plan));
        let mut forwarder = Self { shared, features, threads: Vec::new() };
        for (n, (queue, sockets)) in tun.queues.into_iter().zip(sockets).enumerate() {
            let shared = Arc::clone(&forwarder.shared);
            let worker = worker::Worker::new(
                n,
                queue,
                sockets,
                setup.own.clone(),
                &tun_joins(&forwarder.features),
            );
            let spawned = thread::Builder::new()
                .name(format!("udp-{n}"))
                .spawn(move || worker.run(&shared))
                .map_err(thread_error);
            match spawned {
                Ok(thread) => forwarder.threads.push(thread),
                Err(error) => {
                    forwarder.stop();
                    return Err(error);
                }
            }
        }
        // The other engine receives packets until it stops; queues and sockets here buffer the rest.
        let listener = handover::take_over(namespace, &format!("flannel-udp.{}", setup.index));
        let shared = Arc::clone(&forwarder.shared);
        let guard = thread::Builder::new()
            .name("udp-guard".into())
            .spawn(move || handover::guard(listener, &*shared));
        match guard {
            Ok(thread) => forwarder.threads.push(thread),
            Err(source) => {
                forwarder.stop();
                return Err(StartError::Thread { source });
            }
        }
        Ok(forwarder)
    }

    /// Makes workers use `plan` from now on.
    pub(crate) fn replace(&self, plan: &ForwardingPlan) {
        self.shared.table.replace(Table::new(plan));
    }

    pub(crate) fn features(&self) -> &Features {
        &self.features
    }

    pub(crate) fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.shared))
    }

    /// Why a worker ended by itself, if one did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resolves once a worker has ended by itself.
    pub(crate) async fn ended(&self) {
        loop {
            let ended = self.shared.ended.notified();
            if self.failure().is_some() {
                return;
            }
            ended.await;
        }
    }

    /// Stops the workers and waits for them.
    pub(crate) fn stop(mut self) {
        self.shared.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// The counters of workers, also after they have ended.
#[derive(Clone, Debug)]
pub(crate) struct Meter(Arc<Shared>);

impl Meter {
    pub(crate) fn counters(&self) -> &[Counters] {
        &self.0.counters
    }
}

impl Shared {
    fn stop(&self) {
        self.stops.store(true, Ordering::Release);
        // It stays readable, for all workers.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn stops(&self) -> bool {
        self.stops.load(Ordering::Acquire)
    }

    fn fail(&self, failure: Failure) {
        if !self.stops() {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
            self.ended.notify_waiters();
        }
        self.stop();
    }
}

impl handover::Engine for Shared {
    fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn stops(&self) -> bool {
        self.stops()
    }

    fn taken_over(&self) {
        self.fail(Failure::TakenOver);
    }

    fn runs(&self) -> bool {
        self.running.load(Ordering::Acquire) > 0
    }
}

/// Which large packets the device accepts: any, and UDP.
fn tun_joins(features: &Features) -> (bool, bool) {
    (features.tun_tcp, features.tun_udp)
}

fn features(tun: &Tun, socket: Option<&PeerSocket>, joins: bool) -> Features {
    let mut features = Features {
        workers: tun.queues.len(),
        tun_tcp: tun.tcp,
        tun_udp: tun.udp,
        udp_segment: socket.is_some_and(PeerSocket::sends_segments),
        udp_gro: socket.is_some_and(PeerSocket::receives_joined),
        missing: tun.missing.clone(),
    };
    if !features.udp_segment {
        features
            .missing
            .push("several datagrams in one call (UDP_SEGMENT): needs Linux 4.18".into());
    }
    if !features.udp_gro {
        let why = if joins { "needs Linux 5.0" } else { "BPF programs cannot take them apart" };
        features.missing.push(format!("datagrams that come as one (UDP_GRO): {why}"));
    }
    features
}
