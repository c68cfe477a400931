//! The userspace engine: threads that forward packets between the device and the sockets.
//!
//! Each worker has a queue of the device and a socket for each family. The kernel spreads flows over queues, and peers over
//! sockets, so packets of one flow keep their order. Workers share nothing that they write, but the
//! counts of peers.

mod inbound;
mod outbound;
mod worker;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use flannel_netlink::Namespace;
pub(crate) use flannel_tunnel::control::Failure;
use flannel_tunnel::{
    control::Control, path_mtus::PathMtus, snapshot::Snapshot, socket::PeerSocket, tun::Tun,
    worker::Workers,
};

use self::worker::Worker;
use crate::{
    stats::{Counters, Features},
    table::Table,
};

/// Running workers. They keep running when this is dropped: the data path stays until it is [stopped](Self::stop), another engine
/// [takes over](Self::start), or the process ends.
#[derive(Debug)]
pub(crate) struct Forwarder {
    workers: Workers<Shared>,
    features: Features,
}

/// What workers and their owner share.
#[derive(Debug)]
struct Shared {
    control: Control,
    table: Snapshot<Table>,
    counters: Vec<Counters>,
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
    #[error("open a socket to ask for path MTUs")]
    Paths { source: io::Error },
    #[error("start a thread to carry packets")]
    Thread { source: io::Error },
}

impl Forwarder {
    /// Starts workers in `namespace`. An engine that serves the same device stops once they run.
    pub(crate) fn start(
        namespace: &Namespace,
        setup: &Setup,
        table: Table,
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
            let opened = setup.local.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            let paths = PathMtus::open(namespace, &setup.local);
            sockets.push((opened, paths.map_err(|source| StartError::Paths { source })?));
        }
        let features =
            features(&tun, sockets.iter().flat_map(|(sockets, _)| sockets).next(), setup.joins);
        let shared = Shared {
            control: Control::new(tun.queues.len()).map_err(thread_error)?,
            table: Snapshot::default(),
            counters: tun.queues.iter().map(|_| Counters::default()).collect(),
        };
        shared.table.replace(table);
        let mut workers = Workers::new(shared);
        let started = start(namespace, setup, tun, sockets, &mut workers);
        if let Err(source) = started {
            workers.stop();
            return Err(thread_error(source));
        }
        Ok(Self { workers, features })
    }

    /// Makes workers go by `table` from now on.
    pub(crate) fn replace(&self, table: Table) {
        self.workers.shared().table.replace(table);
    }

    pub(crate) fn features(&self) -> &Features {
        &self.features
    }

    pub(crate) fn meter(&self) -> Meter {
        Meter(Arc::clone(self.workers.shared()))
    }

    /// Why a worker ended by itself, if one did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.workers.shared().control.failure()
    }

    /// Resolves once a worker has ended by itself.
    pub(crate) async fn ended(&self) {
        self.workers.shared().control.ended().await;
    }

    /// Stops the workers and waits for them.
    pub(crate) fn stop(self) {
        self.workers.stop();
    }
}

fn start(
    namespace: &Namespace,
    setup: &Setup,
    tun: Tun,
    sockets: Vec<(Vec<PeerSocket>, PathMtus)>,
    workers: &mut Workers<Shared>,
) -> io::Result<()> {
    let joins = (tun.tcp, tun.udp);
    for (number, (queue, (sockets, paths))) in tun.queues.into_iter().zip(sockets).enumerate() {
        let own = setup.own.clone();
        let worker = Worker { number, queue, sockets, paths, own, joins };
        workers.spawn(format!("udp-{number}"), move |shared| worker.run(shared))?;
    }
    workers.take_over(namespace, &format!("flannel-udp.{}", setup.index))
}

impl AsRef<Control> for Shared {
    fn as_ref(&self) -> &Control {
        &self.control
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
