//! Devices that threads of this process serve, where the kernel has no WireGuard.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use flannel_core::{BackendError, BackendReport};
use flannel_netlink::{
    Ensured, Namespace,
    state::Link,
    wireguard::{Device, PeerChange, SecretKey},
};
use flannel_tunnel::{control::Failure, device::Device as TunDevice};
use ipnetwork::IpNetwork;
use tracing::{info, warn};

use crate::{
    KIND,
    config::TunnelSpec,
    engine::{Engine, Meter, Setup, StartError, public_key},
};

/// The TUN devices of one node, and the engine of each.
#[derive(Debug)]
pub(crate) struct Userspace {
    namespace: Namespace,
    networks: Vec<IpNetwork>,
    stats: Arc<EngineStats>,
    served: BTreeMap<&'static str, Served>,
}

#[derive(Debug)]
struct Served {
    device: TunDevice,
    /// `None` before peers were set: until then, that of an earlier run goes on.
    engine: Option<Engine>,
    setup: Setup,
    mtu: u32,
}

/// What carries packets, and what became of them since the backend was made.
#[derive(Debug, Default)]
pub(crate) struct EngineStats(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    engine: Option<&'static str>,
    /// Of engines that have ended.
    past: BackendReport,
    present: BTreeMap<&'static str, Meter>,
}

impl EngineStats {
    pub(crate) fn report(&self) -> BackendReport {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = BackendReport::default();
        if let Some(engine) = entries.engine {
            report.properties.insert("engine".into(), engine.into());
        }
        report.counters.clone_from(&entries.past.counters);
        entries.present.values().for_each(|meter| meter.add_to(&mut report));
        report
    }

    /// Notes what carries packets.
    pub(crate) fn chose(&self, engine: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).engine = Some(engine);
    }

    fn started(&self, device: &'static str, meter: Meter) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = entries.present.insert(device, meter) {
            before.add_to(&mut entries.past);
        }
    }
}

impl Userspace {
    pub(crate) fn new(
        namespace: &Namespace,
        networks: &[IpNetwork],
        stats: Arc<EngineStats>,
    ) -> Self {
        let served = BTreeMap::new();
        Self { namespace: namespace.clone(), networks: networks.to_vec(), stats, served }
    }

    /// Makes the device fit. Its engine is started by [`set_peers`](Self::set_peers).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave the device half made; the next call finishes it.
    pub(crate) async fn ensure(
        &mut self,
        spec: &TunnelSpec,
        before: Option<Link>,
        mtu: u32,
        key: &SecretKey,
    ) -> Result<(Link, Ensured), BackendError> {
        let Self { namespace, networks, served, .. } = self;
        let served = served.entry(spec.name).or_insert_with(|| Served {
            device: TunDevice::new(KIND, namespace, spec.name, networks, false),
            engine: None,
            setup: setup(spec, key, 0),
            mtu,
        });
        let failure = served.engine.as_ref().and_then(Engine::failure);
        if failure == Some(Failure::TakenOver) {
            let reason = "another node on this machine has taken over the device: stop one of them";
            return Err(BackendError::Unsupported { backend: KIND.into(), reason: reason.into() });
        }
        let link = served.device.ensure(mtu).await?;
        (served.setup, served.mtu) = (setup(spec, key, link.index), mtu);
        if let Some(engine) = &served.engine {
            engine.set_mtu(mtu);
            if failure.is_some() || *engine.setup() != served.setup {
                if let Some(Failure::Broken(reason)) = failure {
                    warn!(device = spec.name, reason, "the engine failed: restarting it");
                }
                served.engine.take().into_iter().for_each(Engine::stop);
            }
        }
        let ensured = match before {
            None => Ensured::Created,
            Some(before) if before.mtu == mtu && before.up && before.index == link.index => {
                Ensured::Adopted
            }
            Some(_) => Ensured::Altered,
        };
        Ok((link, ensured))
    }

    /// The device as the kernel would show it. Without a running engine it has no port and no peers.
    pub(crate) fn read(&self, name: &str, key: Option<&SecretKey>) -> Device {
        let mut device = Device::default();
        device.private_key = key.cloned();
        device.public_key = key.map(public_key);
        let engine = self.served.get(name).and_then(|served| served.engine.as_ref());
        if let Some(engine) = engine
            && !matches!(engine.failure(), Some(Failure::Broken(_)))
        {
            device.listen_port = engine.setup().port;
            device.peers = engine.peers();
        }
        device
    }

    /// Makes `changes` to the peers of a device, whose engine is started if it does not run.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves them made or not.
    pub(crate) async fn set_peers(
        &mut self,
        name: &str,
        changes: &[PeerChange],
    ) -> Result<(), BackendError> {
        let Some((name, served)) =
            self.served.iter_mut().find(|(known, _)| **known == name).map(|(k, v)| (*k, v))
        else {
            return Err(BackendError::Kernel {
                operation: format!("set the peers of {name}"),
                source: "there is no such device".into(),
            });
        };
        if let Some(engine) = &served.engine {
            engine.set_peers(changes);
            return Ok(());
        }
        let Served { setup, mtu, .. } = served;
        let engine = Engine::start(&self.namespace, setup.clone(), *mtu, changes);
        let engine = engine.map_err(|error| refused(&error))?;
        let meter = engine.meter();
        info!(device = name, port = setup.port, missing = ?meter.missing(), "userspace engine started");
        self.stats.started(name, meter);
        served.engine = Some(engine);
        served.device.settle().await
    }

    /// Stops the engines.
    pub(crate) fn stop(&mut self) {
        for served in self.served.values_mut() {
            served.engine.take().into_iter().for_each(Engine::stop);
        }
        self.served.clear();
    }
}

fn setup(spec: &TunnelSpec, key: &SecretKey, index: u32) -> Setup {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Setup {
        device: spec.name.to_owned(),
        index,
        port: spec.port,
        private_key: key.clone(),
        workers: cores.min(MAX_WORKERS),
    }
}

fn refused(error: &StartError) -> BackendError {
    let operation = error.to_string();
    let source = match error {
        StartError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            format!("{source}: stop what uses the port, or set another ListenPort").into()
        }
        StartError::Attach { source, .. }
        | StartError::Listen { source, .. }
        | StartError::Thread { source } => source.to_string().into(),
    };
    BackendError::Kernel { operation, source }
}

/// Above so many queues of a device, packets are not carried faster.
const MAX_WORKERS: usize = 4;
