//! The engines' statistics, and the userspace engine as a sync sees it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use flannel_core::BackendError;
use flannel_netlink::{Namespace, state::Link};
use tracing::{info, warn};

use crate::{
    bpf,
    forwarder::{Failure, Forwarder, Meter, Setup, StartError},
    peer_stats::PeerCounters,
    plan::ForwardingPlan,
    stats::{Engine, Features, Stats},
    table::Table,
};

/// Statistics over all engines that a network has had.
#[derive(Debug, Default)]
pub(crate) struct EngineStats(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// Of engines that have ended.
    past: Stats,
    present: Option<(Features, Meter)>,
    /// Set while BPF programs forward the packets of peers that have them; the userspace engine serves the others.
    ebpf: Option<bpf::Meter>,
    refused: Option<String>,
    /// Of all userspace engines, for the peers of the last plan.
    peers: BTreeMap<IpAddr, Arc<PeerCounters>>,
}

impl EngineStats {
    pub(crate) fn stats(&self) -> Stats {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.stats()
    }

    fn userspace_started(&self, features: Features, meter: Meter) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, meter)) = entries.present.replace((features, meter)) {
            add_userspace(&meter, &mut entries.past);
        }
    }

    /// Records that BPF programs forward packets. Returns whether they did not before.
    pub(crate) fn ebpf_started(&self, engine: &bpf::Engine) -> bool {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.ebpf.as_ref().is_some_and(|meter| meter.is_of(engine)) {
            return false;
        }
        if let Some(before) = entries.ebpf.replace(engine.meter()) {
            entries.past.add_ebpf(&before.counts());
        }
        entries.refused = None;
        true
    }

    /// What workers go by. It counts the packets of peers here, and those of others are forgotten.
    fn table(&self, plan: &ForwardingPlan) -> Table {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Entries { peers, past, .. } = &mut *entries;
        let table = Table::new(plan).counted_in(peers);
        past.peers.retain(|ip, _| peers.contains_key(ip));
        table
    }

    /// Whether BPF programs do not forward packets although they might.
    pub(crate) fn is_refused(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).refused.is_some()
    }

    /// Records that BPF programs do not forward packets, and why. Returns whether that was not known.
    pub(crate) fn ebpf_stopped(&self, reason: &str) -> bool {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = entries.refused.replace(reason.to_owned());
        if let Some(meter) = entries.ebpf.take() {
            entries.past.add_ebpf(&meter.counts());
        }
        before.as_deref() != Some(reason)
    }
}

impl Entries {
    fn stats(&self) -> Stats {
        let mut stats = self.past.clone();
        stats.ebpf_refused = self.refused.clone();
        if let Some((features, meter)) = &self.present {
            let features = features.clone();
            add_userspace(meter, &mut stats);
            stats.engine = Some(match &self.ebpf {
                Some(_) => Engine::Ebpf(features),
                None => Engine::Userspace(features),
            });
        }
        if let Some(meter) = &self.ebpf {
            stats.add_ebpf(&meter.counts());
        }
        for (ip, counters) in &self.peers {
            stats.peers.entry(*ip).or_default().add(&counters.read());
        }
        stats
    }
}

fn add_userspace(meter: &Meter, stats: &mut Stats) {
    meter.counters().iter().for_each(|counters| counters.add_to(stats));
}

/// The userspace engine as a sync sees it.
#[derive(Debug)]
pub(crate) struct Userspace {
    namespace: Namespace,
    workers: usize,
    running: Option<Running>,
    /// Another engine has taken the device over: it is not taken back.
    is_over: bool,
}

#[derive(Debug)]
struct Running {
    forwarder: Forwarder,
    setup: Setup,
    plan: ForwardingPlan,
}

impl Userspace {
    pub(crate) fn new(namespace: &Namespace, workers: usize) -> Self {
        Self { namespace: namespace.clone(), workers, running: None, is_over: false }
    }

    /// Whether another engine has taken the device over.
    ///
    /// # Errors
    ///
    /// [`BackendError::Unsupported`] if so.
    pub(crate) fn check(&mut self) -> Result<(), BackendError> {
        let failure = self.running.as_ref().and_then(|running| running.forwarder.failure());
        self.is_over |= failure == Some(Failure::TakenOver);
        if self.is_over {
            let reason = "another node on this machine has taken over the device: stop one of them";
            return Err(BackendError::Unsupported {
                backend: crate::KIND.into(),
                reason: reason.into(),
            });
        }
        Ok(())
    }

    /// Serves this device by `plan`. A running engine that fits stays untouched. `joins` is whether the kernel may coalesce received
    /// datagrams.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if no worker can be started. The next call tries again.
    pub(crate) fn apply(
        &mut self,
        link: &Link,
        plan: ForwardingPlan,
        joins: bool,
        engine_stats: &EngineStats,
    ) -> Result<(), BackendError> {
        let setup = Setup {
            device: link.name.clone(),
            index: link.index,
            own: plan.own.blocks().map(|block| block.network()).collect(),
            local: plan.local.iter().map(|ip| SocketAddr::new(*ip, plan.port)).collect(),
            workers: self.workers,
            joins,
            path_mtu_discovery: plan.path_mtu_discovery,
        };
        if let Some(running) = &mut self.running {
            let failure = running.forwarder.failure();
            if failure.is_none() && running.setup == setup {
                if running.plan != plan {
                    running.forwarder.replace(engine_stats.table(&plan));
                    running.plan = plan;
                }
                return Ok(());
            }
            if let Some(Failure::Broken(reason)) = failure {
                warn!(device = setup.device, reason, "the userspace engine failed: restarting it");
            }
        }
        if let Some(Running { forwarder, .. }) = self.running.take() {
            forwarder.stop();
        }
        let forwarder = Forwarder::start(&self.namespace, &setup, engine_stats.table(&plan))
            .map_err(refused)?;
        let features = forwarder.features();
        info!(device = setup.device, workers = features.workers, tun_tcp = features.tun_tcp, tun_udp = features.tun_udp,
            udp_segment = features.udp_segment, udp_gro = features.udp_gro, missing = ?features.missing, "userspace engine started");
        engine_stats.userspace_started(features.clone(), forwarder.meter());
        self.running = Some(Running { forwarder, setup, plan });
        Ok(())
    }

    /// Resolves when the engine has failed and a sync may restart it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn ended(&self) {
        match &self.running {
            Some(running) if !self.is_over => running.forwarder.ended().await,
            _ => std::future::pending().await,
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some(Running { forwarder, .. }) = self.running.take() {
            forwarder.stop();
        }
    }
}

fn refused(error: StartError) -> BackendError {
    let operation = error.to_string();
    match error {
        StartError::Attach { source, .. }
        | StartError::Listen { source, .. }
        | StartError::Paths { source }
        | StartError::Thread { source } => {
            BackendError::Kernel { operation, source: source.into() }
        }
    }
}
