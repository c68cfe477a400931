//! What carries packets, told what to do.

use std::{
    net::SocketAddr,
    sync::{Mutex, PoisonError},
};

use flannel_core::BackendError;
use flannel_netlink::{Namespace, state::Link};
use ipnetwork::IpNetwork;
use tracing::{info, warn};

use crate::{
    bpf,
    plan::Orders,
    pump::{Failure, Meter, Pump, Setup, StartError},
    stats::{Engine, Features, Stats},
};

/// What an embedder can read, from the first engine to the last.
#[derive(Debug, Default)]
pub(crate) struct Account(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// Of engines that have ended.
    past: Stats,
    present: Option<(Features, Meter)>,
    /// What carries most packets while the other has the rest.
    ebpf: Option<bpf::Meter>,
    refused: Option<String>,
}

impl Account {
    pub(crate) fn stats(&self) -> Stats {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.stats()
    }

    fn begin(&self, features: Features, meter: Meter) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, meter)) = entries.present.replace((features, meter)) {
            add_userspace(&meter, &mut entries.past);
        }
    }

    /// BPF programs carry packets from now on, if they do not already; whether that is news.
    pub(crate) fn speed_up(&self, engine: &bpf::Engine) -> bool {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.ebpf.is_some() {
            return false;
        }
        (entries.ebpf, entries.refused) = (Some(engine.meter()), None);
        true
    }

    /// BPF programs do not carry packets, or no more.
    pub(crate) fn slow_down(&self, reason: &str) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.refused = Some(reason.to_owned());
        if let Some(meter) = entries.ebpf.take() {
            entries.past.add_ebpf(&meter.counts());
        }
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
    pump: Pump,
    setup: Setup,
    orders: Orders,
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
        let failure = self.running.as_ref().and_then(|running| running.pump.failure());
        self.is_over |= failure == Some(Failure::TakenOver);
        if self.is_over {
            let reason = "another node of this machine has taken over its device: stop one of them";
            return Err(BackendError::Unsupported {
                backend: crate::KIND.into(),
                reason: reason.into(),
            });
        }
        Ok(())
    }

    /// Carries packets of this device by these orders. What is right goes on untouched. `joins` is whether the kernel may join
    /// datagrams for us.
    ///
    /// # Errors
    ///
    /// [`BackendError::Kernel`] if no worker can be started. The next call tries again.
    pub(crate) fn apply(
        &mut self,
        link: &Link,
        orders: Orders,
        joins: bool,
        account: &Account,
    ) -> Result<(), BackendError> {
        let setup = Setup {
            device: link.name.clone(),
            index: link.index,
            own: [orders.own.ipv4().map(IpNetwork::V4), orders.own.ipv6().map(IpNetwork::V6)]
                .into_iter()
                .flatten()
                .map(|block| block.network())
                .collect(),
            local: orders.local.iter().map(|ip| SocketAddr::new(*ip, orders.port)).collect(),
            workers: self.workers,
            joins,
            path_mtu_discovery: orders.path_mtu_discovery,
        };
        if let Some(running) = &mut self.running {
            let failure = running.pump.failure();
            if failure.is_none() && running.setup == setup {
                if running.orders != orders {
                    running.pump.replace(&orders);
                    running.orders = orders;
                }
                return Ok(());
            }
            if let Some(Failure::Broken(reason)) = failure {
                warn!(device = setup.device, reason, "packets were not carried: starting again");
            }
        }
        if let Some(Running { pump, .. }) = self.running.take() {
            pump.stop();
        }
        let pump = Pump::start(&self.namespace, &setup, &orders).map_err(refused)?;
        let features = pump.features();
        info!(device = setup.device, workers = features.workers, tun_tcp = features.tun_tcp, tun_udp = features.tun_udp,
            udp_segment = features.udp_segment, udp_gro = features.udp_gro, missing = ?features.missing, "userspace engine carries packets");
        account.begin(features.clone(), pump.meter());
        self.running = Some(Running { pump, setup, orders });
        Ok(())
    }

    /// Resolves when packets are not carried any more, and a sync may change that.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn ended(&self) {
        match &self.running {
            Some(running) if !self.is_over => running.pump.ended().await,
            _ => std::future::pending().await,
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some(Running { pump, .. }) = self.running.take() {
            pump.stop();
        }
    }
}

fn refused(error: StartError) -> BackendError {
    let operation = error.to_string();
    match error {
        StartError::Attach { source, .. }
        | StartError::Listen { source, .. }
        | StartError::Thread { source } => {
            BackendError::Kernel { operation, source: source.into() }
        }
    }
}
