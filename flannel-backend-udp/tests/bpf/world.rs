//! Hosts whose nodes run engines of the test's choice, and what tests do to them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use flannel_backend::testing::KernelWorld;
use flannel_backend_udp::{Stats, Udp};
use flannel_core::{
    Backend, NetworkConfig,
    testing::network::{NetworkWorld, Nodes},
};
use flannel_netlink::Namespace;
use flannel_testbed::Host;

use crate::support;

/// Makes the backend of a host.
pub(crate) type Factory = Box<dyn Fn(&Host, &NetworkConfig) -> Arc<dyn Backend> + Send + Sync>;

/// Some hosts, their nodes, and what the nodes' backends say of themselves.
pub(crate) struct Cluster {
    pub(crate) world: KernelWorld<Factory>,
    pub(crate) nodes: Nodes,
    backends: Arc<Mutex<BTreeMap<String, Arc<Udp>>>>,
}

impl Cluster {
    /// With the userspace engine on the hosts named so, and the eBPF engine on all others.
    pub(crate) async fn new(config: &'static str, userspace: &'static [&'static str]) -> Self {
        Self::with(config, move |host, config| {
            let engine = if userspace.contains(&host.name()) { "userspace" } else { "ebpf" };
            support::udp(host, &config.replace("userspace", engine).parse().unwrap())
        })
        .await
    }

    /// With the backends that `make` makes for a host and this configuration.
    pub(crate) async fn with(
        config: &'static str,
        make: impl Fn(&Host, &str) -> Udp + Send + Sync + 'static,
    ) -> Self {
        let backends: Arc<Mutex<BTreeMap<String, Arc<Udp>>>> = Arc::default();
        let made = Arc::clone(&backends);
        let make: Factory = Box::new(move |host, _| {
            let udp = Arc::new(make(host, config));
            made.lock().unwrap().insert(host.name().to_owned(), Arc::clone(&udp));
            udp
        });
        let world = KernelWorld::new(config, make).await;
        let nodes = Nodes::start(&world).await;
        Self { world, nodes, backends }
    }

    pub(crate) fn backend(&self, host: usize) -> Arc<Udp> {
        Arc::clone(&self.backends.lock().unwrap()[self.host(host).name()])
    }

    pub(crate) fn stats(&self, host: usize) -> Stats {
        self.backend(host).stats()
    }

    pub(crate) fn host(&self, host: usize) -> &Host {
        self.world.testbed().host(host)
    }

    /// Runs iproute2 or nft on a host, which has to succeed.
    pub(crate) fn run(&self, host: usize, command: &str) -> String {
        run(self.host(host).namespace(), command)
    }

    pub(crate) async fn reaches(&self, from: usize, to: usize) -> bool {
        self.world.reaches(from, to).await
    }
}

pub(crate) fn run(namespace: &Namespace, command: &str) -> String {
    let mut words = command.split(' ');
    let program = words.next().unwrap();
    let done = namespace.run(|| std::process::Command::new(program).args(words).output().unwrap());
    let done = done.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(done.status.success(), "{command}: {}", text(&done.stderr));
    text(&done.stdout)
}
