//! WireGuard in threads of this process, for kernels without it.
//!
//! Each queue of the TUN device has a thread that encrypts what pods send, and each pair of sockets has one that decrypts what peers
//! send; the kernel spreads flows over queues, and peers over sockets, so packets of one flow keep their order. A thread holds a peer for one
//! batch, so that peers do not wait for each other, and the two directions of one peer for at most 64 packets. The ticker does what
//! is due by time, and sleeps while nothing is.

mod counters;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod fuzzing;
mod inbound;
mod outbound;
mod peers;
mod routing;
mod session;
mod ticker;
mod worker;

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use boringtun::{noise::rate_limiter::RateLimiter, x25519};
use flannel_core::BackendReport;
use flannel_netlink::{
    Namespace,
    wireguard::{Peer, PeerChange, PublicKey, SecretKey},
};
use flannel_tunnel::{
    control::{Control, Failure},
    snapshot::Snapshot,
    socket::PeerSocket,
    tun::Tun,
    worker::Workers,
};

use self::{
    counters::{Counters, NAMES},
    peers::Peers,
    routing::Routing,
    session::Session,
    ticker::Alarm,
    worker::Worker,
};

/// Running threads. They keep running when this is dropped: the data path stays until it is [stopped](Self::stop), another engine takes
/// over, or the process ends.
pub(crate) struct Engine {
    workers: Workers<Shared>,
    setup: Setup,
    features: Vec<(&'static str, bool)>,
}

/// What an engine is started with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Setup {
    /// The device's name.
    pub(crate) device: String,
    /// The device's index, by which the engine that carries its packets is found.
    pub(crate) index: u32,
    pub(crate) port: u16,
    pub(crate) private_key: SecretKey,
    /// Queues of the device, each with its threads.
    pub(crate) workers: usize,
}

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("attach to device {name}")]
    Attach { name: String, source: io::Error },
    #[error("listen on UDP port {port}")]
    Listen { port: u16, source: io::Error },
    #[error("start a thread to carry packets")]
    Thread { source: io::Error },
}

/// What the threads share.
struct Shared {
    control: Control,
    identity: Identity,
    routing: Snapshot<Routing>,
    peers: Mutex<Peers>,
    counters: Vec<Counters>,
    /// The device's, bytes.
    mtu: AtomicUsize,
    alarm: Alarm,
}

/// Our own keys, and what looks at handshakes.
struct Identity {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    /// Answers handshakes with cookies when there are too many.
    limiter: RateLimiter,
    /// For those that the other one has let pass.
    verified: Arc<RateLimiter>,
}

impl Engine {
    /// Starts an engine in `namespace` with `peers`. One that serves the same device stops before this one carries packets: what comes in
    /// between waits in queues.
    pub(crate) fn start(
        namespace: &Namespace,
        setup: Setup,
        mtu: u32,
        peers: &[PeerChange],
    ) -> Result<Self, StartError> {
        let Setup { port, workers, .. } = setup;
        let thread_error = |source| StartError::Thread { source };
        let tun = Tun::attach(namespace, &setup.device, workers)
            .map_err(|source| StartError::Attach { name: setup.device.clone(), source })?;
        let queues = tun.queues.len();
        let open = || open(namespace, port);
        let sockets = std::iter::repeat_with(open).take(queues).collect::<Result<Vec<_>, _>>();
        let sockets = sockets.map_err(|source| StartError::Listen { port, source })?;
        let socket = sockets.iter().flatten().next();
        let features = vec![
            ("tun_tcp", tun.tcp),
            ("tun_udp", tun.udp),
            ("udp_gro", socket.is_some_and(PeerSocket::receives_joined)),
            ("udp_segment", socket.is_some_and(PeerSocket::sends_segments)),
        ];
        let shared = Shared::new(&setup.private_key, 2 * queues + 1, mtu).map_err(thread_error)?;
        let mut engine = Self { workers: Workers::new(shared), setup, features };
        engine.set_peers(peers);
        let started = engine.start_threads(namespace, tun, sockets);
        if let Err(source) = started {
            engine.stop();
            return Err(StartError::Thread { source });
        }
        Ok(engine)
    }

    fn start_threads(
        &mut self,
        namespace: &Namespace,
        tun: Tun,
        sockets: Vec<Vec<PeerSocket>>,
    ) -> io::Result<()> {
        // As long as there are two engines, the kernel gives each some of what peers send. An answer to a handshake of this one that the
        // other gets is lost, and a handshake is repeated after 5 s only.
        let alone = Arc::new(OnceLock::new());
        let spawned = self.spawn_all(tun, sockets, &alone);
        let took = spawned.and_then(|()| {
            self.workers.take_over(namespace, &format!("flannel-wg.{}", self.setup.index))
        });
        let _ = alone.set(());
        took
    }

    /// Starts threads that carry packets once this engine is `alone`.
    fn spawn_all(
        &mut self,
        tun: Tun,
        sockets: Vec<Vec<PeerSocket>>,
        alone: &Arc<OnceLock<()>>,
    ) -> io::Result<()> {
        let joins = (tun.tcp, tun.udp);
        for (n, (queue, sockets)) in tun.queues.into_iter().zip(sockets).enumerate() {
            let (queue, sockets): (_, Arc<[_]>) = (Arc::new(queue), sockets.into());
            let worker = |number| Worker::new(number, Arc::clone(&queue), Arc::clone(&sockets));
            if n == 0 {
                let ticker = worker(0);
                self.spawn("wg-ticker".into(), alone, move |shared| ticker.tick(shared))?;
            }
            let (outbound, inbound) = (worker(2 * n + 1), worker(2 * n + 2));
            self.spawn(format!("wg-out-{n}"), alone, move |shared| outbound.send(shared))?;
            self.spawn(format!("wg-in-{n}"), alone, move |shared| inbound.receive(shared, joins))?;
        }
        Ok(())
    }

    fn spawn(
        &mut self,
        name: String,
        alone: &Arc<OnceLock<()>>,
        run: impl FnOnce(&Shared) -> Result<(), String> + Send + 'static,
    ) -> io::Result<()> {
        let alone = Arc::clone(alone);
        self.workers.spawn(name, move |shared| {
            // What boringtun has to say of each handshake, at up to the level of errors, would be the peers' to choose.
            let _quiet = tracing::subscriber::set_default(tracing::subscriber::NoSubscriber::new());
            alone.wait();
            run(shared)
        })
    }

    pub(crate) const fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Goes on with a device of this MTU, bytes.
    pub(crate) fn set_mtu(&self, mtu: u32) {
        self.workers.shared().mtu.store(mtu as usize, Ordering::Relaxed);
    }

    /// Makes `changes` to peers. Sessions of others go on, and so do those of peers that keep their preshared key.
    pub(crate) fn set_peers(&self, changes: &[PeerChange]) {
        let shared = self.workers.shared();
        let mut peers = shared.lock_peers();
        changes.iter().for_each(|change| peers.apply(change, &shared.identity));
        if changes.is_empty() {
            return;
        }
        let of = peers.sessions.values().map(|(index, session)| (*index, session));
        shared.routing.replace(Routing::new(of));
        // The ticker has to find them there.
        for change in changes {
            if let PeerChange::Set(config) = change
                && config.keepalive > 0
                && let Some((_, session)) = peers.sessions.get(&config.key)
            {
                shared.wake(session);
            }
        }
    }

    /// The peers as the kernel would show them.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        self.workers
            .shared()
            .lock_peers()
            .sessions
            .values()
            .map(|(_, session)| session.show())
            .collect()
    }

    /// Why a thread ended by itself, if one did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.workers.shared().control.failure()
    }

    /// Stops the threads and waits for them.
    pub(crate) fn stop(self) {
        self.workers.stop();
    }

    pub(crate) fn meter(&self) -> Meter {
        Meter { shared: Arc::clone(self.workers.shared()), features: self.features.clone() }
    }
}

/// The counters of threads, also after they have ended, and the features of the kernel that they use.
#[derive(Clone)]
pub(crate) struct Meter {
    shared: Arc<Shared>,
    features: Vec<(&'static str, bool)>,
}

impl Meter {
    /// Adds what became of packets so far to `report`.
    pub(crate) fn add_to(&self, report: &mut BackendReport) {
        let queues = (self.shared.counters.len() - 1) / 2;
        report.properties.insert("workers".into(), queues.to_string().into());
        for (name, used) in &self.features {
            let used = if *used { "used" } else { "unused" };
            report.properties.insert((*name).into(), used.into());
        }
        for counters in &self.shared.counters {
            for (name, value) in NAMES.into_iter().zip(counters.values()) {
                *report.counters.entry(name.into()).or_default() += value;
            }
        }
    }

    /// The features of the kernel that are not used.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        self.features.iter().filter(|(_, used)| !used).map(|(name, _)| *name).collect()
    }
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").field("features", &self.features).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("setup", &self.setup).finish_non_exhaustive()
    }
}

impl AsRef<Control> for Shared {
    fn as_ref(&self) -> &Control {
        &self.control
    }
}

impl Shared {
    /// For so many threads, and a device of this MTU, bytes.
    fn new(private_key: &SecretKey, threads: usize, mtu: u32) -> io::Result<Self> {
        Ok(Self {
            control: Control::new(threads)?,
            identity: Identity::new(private_key),
            routing: Snapshot::default(),
            peers: Mutex::new(Peers::new()),
            counters: (0..threads).map(|_| Counters::default()).collect(),
            mtu: AtomicUsize::new(mtu as usize),
            alarm: Alarm::new()?,
        })
    }

    fn lock_peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mtu(&self) -> usize {
        self.mtu.load(Ordering::Relaxed)
    }

    /// Lets the ticker look at a peer.
    fn wake(&self, session: &Arc<Session>) {
        self.alarm.ring(Arc::clone(session));
    }
}

impl Identity {
    fn new(private_key: &SecretKey) -> Self {
        let private = x25519::StaticSecret::from(*private_key.bytes());
        let public = x25519::PublicKey::from(&private);
        Self {
            limiter: RateLimiter::new(&public, HANDSHAKES_PER_SECOND),
            verified: Arc::new(RateLimiter::new(&public, u64::MAX)),
            private,
            public,
        }
    }
}

/// The public key that belongs to a private one.
pub(crate) fn public_key(private_key: &SecretKey) -> PublicKey {
    let private = x25519::StaticSecret::from(*private_key.bytes());
    PublicKey::new(x25519::PublicKey::from(&private).to_bytes())
}

/// A socket for each family that the host has.
fn open(namespace: &Namespace, port: u16) -> io::Result<Vec<PeerSocket>> {
    let open = |local: SocketAddr| PeerSocket::open(namespace, local, true, false);
    let mut sockets = vec![open((Ipv4Addr::UNSPECIFIED, port).into())?];
    match open((Ipv6Addr::UNSPECIFIED, port).into()) {
        Ok(socket) => sockets.push(socket),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
        // A host without IPv6.
        Err(_) => {}
    }
    Ok(sockets)
}

/// Handshakes a second above which the next ones are answered with a cookie: together they take a quarter of a processor.
const HANDSHAKES_PER_SECOND: u64 = 1000;
