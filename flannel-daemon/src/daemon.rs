//! A node with everything around it.

use std::{fmt, pin::pin};

use flannel_firewall::Masquerade;
use flannel_netlink::Namespace;
use tokio::task::JoinSet;
use tracing::info;

use crate::{
    Backends, DaemonError, DaemonHandle, DaemonOptions, InvalidOptions, Stores,
    compose::{self, Parts},
    health_server, other_daemon, path_monitor,
    sandbox::{self, Rights},
    status_socket,
    stores::{StorePlan, StoreRequest},
    subnet_publisher, supervisor,
};

/// A node with everything around it: files, firewall, health, metrics, status. Nothing happens until it [runs](Self::run_until).
pub struct Daemon {
    options: DaemonOptions,
    plan: StorePlan,
    backends: Backends,
    namespace: Option<Namespace>,
    handle: DaemonHandle,
    rights: Option<Rights>,
}

impl Daemon {
    /// A daemon with the stores and backends of this project.
    ///
    /// # Errors
    ///
    /// As [`with`](Self::with).
    pub fn new(options: DaemonOptions) -> Result<Self, InvalidOptions> {
        Self::with(options, &Stores::default(), Backends::default())
    }

    /// A daemon that chooses among these stores and backends. Touches nothing.
    ///
    /// # Errors
    ///
    /// [`InvalidOptions`] that names what is wrong with the store or with the network that is to be stored.
    pub fn with(
        options: DaemonOptions,
        stores: &Stores,
        backends: Backends,
    ) -> Result<Self, InvalidOptions> {
        let network = options.network.as_ref();
        if let Some(network) = network {
            backends.check(network)?;
        }
        let plan = stores.plan(&StoreRequest { options: &options.store, network, create: true })?;
        let handle =
            DaemonHandle::new(&options.subnet_file, options.firewall.masquerade != Masquerade::Off);
        Ok(Self { options, plan, backends, namespace: None, handle, rights: None })
    }

    /// Runs the node in this network namespace instead of the process's own.
    #[must_use]
    pub fn in_namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }

    /// A view of this daemon that stays useful while it runs.
    pub fn handle(&self) -> DaemonHandle {
        self.handle.clone()
    }

    /// Gives up rights that this daemon does not need: those of the calling thread and of threads that it starts from now on, for good.
    /// So call it before the runtime is built, in a program that does nothing else.
    pub fn enter_sandbox(&mut self) {
        self.rights = Some(sandbox::enter(&self.options, &self.plan));
    }

    /// Runs until `stop` resolves. Lease and data path stay as they are.
    ///
    /// # Errors
    ///
    /// [`DaemonError`]: what somebody has to correct first. What a retry can fix is retried.
    ///
    /// # Cancel safety
    ///
    /// Dropping it stops the daemon at once; lease and data path stay.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> Result<(), DaemonError> {
        let Self { options, plan, backends, namespace, handle, rights } = self;
        sandbox::log(rights.as_ref());
        let sandboxed = rights.is_some();
        let allowed = rights.map(|rights| rights.allowed).unwrap_or_default();
        let mut stop = pin!(async {
            stop.await;
            supervisor::stopping();
        });
        let mut tasks = JoinSet::new();
        handle.explains(options.health_explain, namespace.clone());
        if let Some(address) = options.health {
            let listener = health_server::listen(address).await?;
            tasks.spawn(health_server::serve(listener, handle.clone()));
        }
        let socket = status_socket::beside(&options.subnet_file);
        tasks.spawn(status_socket::serve(socket, handle.clone(), allowed.clone()));
        tasks.spawn(supervisor::watchdog(handle.clone()));
        let parts =
            Parts { options, plan, backends, namespace, sandboxed, allowed: allowed.clone() };
        let composed = tokio::select! {
            biased;
            () = &mut stop => None,
            composed = compose::compose(parts, &handle, &mut tasks) => Some(composed?),
        };
        if let Some(composed) = composed {
            let node = composed.node;
            if let Some(socket) = composed.host_lock.name() {
                tasks.spawn(other_daemon::watch(socket.to_owned()));
            }
            tasks.spawn(subnet_publisher::publish(node.handle(), handle.clone(), allowed));
            if let Some(monitor) = composed.path_monitor {
                tasks.spawn(path_monitor::run(monitor, node.handle(), handle.clone()));
            }
            // Also where nobody is told: how long it has been so is known then.
            let (ready, is_ready) = tokio::sync::watch::channel(false);
            tasks.spawn(handle.clone().watch_readiness(ready));
            if let Some(orchestrator) = composed.orchestrator {
                tasks.spawn(orchestrator.heed(is_ready.clone()));
            }
            tasks.spawn(handle.follow());
            node.run_until(stop).await?;
        }
        info!("stopped; lease and data path stay");
        Ok(())
    }
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").field("options", &self.options).finish_non_exhaustive()
    }
}
