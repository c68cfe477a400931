//! The one place where store, backend, firewall and probe are put together.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use flannel_backend::{Paths, UplinkFinder, UplinkOptions};
use flannel_core::{
    Backend, BackendError, Migrating, MigrationOptions, NetworkConfig, Node, NodeId, NodeOptions,
    Store, StoreError, Subnet,
};
use flannel_firewall::{FirewallOptions, Firewalled, ModeChoice};
use flannel_netlink::{Namespace, iface::InterfaceChanges};
use flannel_probe::Prober;
use flannel_store::{LeaseOptions, Registry, RegistryError, RegistryStore, network_config};
use ipnetwork::IpNetwork;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{
    Backends, DaemonError, DaemonOptions, InvalidOptions, Orchestrator,
    backend_source::{self, Source},
    error::chain,
    handle::{DaemonHandle, Facts},
    host_lock::{self, HostLock},
    journal::{FIND_UPLINK, READ_CONFIG, READ_NODE, SET_UP_NETWORK},
    node_id::{self, KeptId},
    path_monitor::PathMonitor,
    previous_lease::previous_lease,
    retry::{PAUSE, Retry},
    sandbox::{self, Allowed, BpfRights},
    store_metrics::TimedRegistry,
    stores::{OpenStore, StorePlan},
    subnet_file,
};

/// What a node is made of.
pub(crate) struct Parts {
    pub(crate) options: DaemonOptions,
    pub(crate) plan: StorePlan,
    pub(crate) backends: Backends,
    pub(crate) namespace: Option<Namespace>,
    pub(crate) sandboxed: bool,
    pub(crate) allowed: Allowed,
}

/// A node that is about to run, with its name.
pub(crate) struct Composed {
    pub(crate) node: Node,
    /// What looks at the paths to peers, if that is asked for.
    pub(crate) path_monitor: Option<PathMonitor>,
    /// What wants to know whether the node is ready, if there is one.
    pub(crate) orchestrator: Option<Box<dyn Orchestrator>>,
    /// No other process of this machine may use the name meanwhile.
    _kept: Option<KeptId>,
    /// Nor may another node of the network run on this host.
    pub(crate) host_lock: HostLock,
}

/// A store that answers, and what it says of the network.
enum Connected {
    Registry(TimedRegistry),
    Store(Arc<dyn Store>, NodeId),
}

/// Opens the store and makes a node on it.
///
/// The network says which families an uplink needs, and the uplink names the node: so they come in this order.
///
/// Where there is an orchestrator, a task of `tasks` has it show the node's notices from then on.
pub(crate) async fn compose(
    parts: Parts,
    daemon: &DaemonHandle,
    tasks: &mut JoinSet<()>,
) -> Result<Composed, DaemonError> {
    let Parts { mut options, plan, backends, namespace, sandboxed, allowed } = parts;
    let namespace = match namespace {
        Some(namespace) => namespace,
        None => Namespace::current().map_err(DaemonError::Namespace)?,
    };
    let host_lock = host_lock::lock(plan.identity.as_deref(), &options.store, &namespace).await?;
    if let Some(network) = &options.network {
        // Before the network is stored.
        uplink_finder(&namespace, network, &options)?;
    }
    let store = plan.open().await?;
    let (mut orchestrator, network) = (None, options.network.as_ref());
    let (store, config) = match store {
        OpenStore::Orchestrator(it) => {
            let (notices, present) = watch::channel(Vec::new());
            tasks.spawn(it.show(present));
            tasks.spawn(daemon.clone().watch_notices(notices));
            addresses_of_operators(&*it, &mut options.uplink, daemon).await?;
            let connected = read_config(it.store(), it.node(), daemon).await?;
            orchestrator = Some(it);
            connected
        }
        OpenStore::Registry(registry) => {
            let registry = TimedRegistry::new(registry, daemon.store_metrics(), allowed);
            connect(registry, network, daemon).await?
        }
        OpenStore::Store(store, id) => read_config(store, id, daemon).await?,
    };
    backends.check(&config)?;
    if options.require_encryption {
        options.firewall.tunnels = backends.tunnels(&config)?;
    }
    without_effect(&options, &config);
    // The backend from before may be needed for a while.
    let mut before = backend_source::recalled(&options.subnet_file);
    if sandboxed && !backends.loads_bpf(&config) && !before.any(|it| backends.loads_bpf(&it)) {
        sandbox::give_up(BpfRights::Load);
    }
    if !config.backend().is_explicit() {
        warn!("the network config names no Backend, which means udp; vxlan is usually better");
    }
    let finder = uplink_finder(&namespace, &config, &options)?;
    let kept = match &store {
        Connected::Registry(_) => kept_id(&options),
        Connected::Store(..) => None,
    };
    let named = match &store {
        Connected::Store(_, id) => Some(id.clone()),
        Connected::Registry(_) => {
            options.node_id.clone().or_else(|| Some(kept.as_ref()?.id.clone()))
        }
    };
    let paths = Paths::default();
    let source = Source {
        backends,
        namespace: namespace.clone(),
        uplink: finder.clone(),
        node: named.clone(),
        paths: paths.clone(),
        blackhole: options.blackhole,
        require_encryption: options.require_encryption,
        subnet_file: options.subnet_file.clone(),
        wireguard_key_file: options.wireguard_key_file.clone(),
        starts: AtomicBool::new(true),
    };
    let source = Arc::new(source);
    let backend = Migrating::new(source.clone(), &config, MigrationOptions::default());
    let backend = Arc::new(backend.map_err(InvalidOptions::new)?);
    source.has_started();
    if sandboxed {
        sandbox::give_up(BpfRights::Try);
    }
    let firewall = firewall_options(&options, &config);
    let backend: Arc<dyn Backend> = Arc::new(Firewalled::new(backend, &namespace, firewall));
    let held = subnet_file::read(&options.subnet_file).held();
    if let (Connected::Registry(registry), Some(held)) = (&store, &held) {
        keep_address(registry, held, &finder).await;
    }
    let address = uplink_address(&finder, &config, daemon).await?;
    let id = match named {
        Some(id) => id,
        None => address.ok_or(DaemonError::NoAddress)?.into(),
    };
    let network = [
        config.ipv4().map(|it| it.network().to_string()),
        config.ipv6().map(|it| it.network().to_string()),
    ];
    info!(
        version = env!("CARGO_PKG_VERSION"),
        store = %options.store,
        backend = config.backend().kind(),
        network = network.into_iter().flatten().collect::<Vec<_>>().join(","),
        node = %id,
        kernel = kernel(),
        "starting the node"
    );
    let store: Arc<dyn Store> = match store {
        Connected::Registry(registry) => {
            let lease_options = LeaseOptions { hint: held, ttl: options.lease_ttl };
            Arc::new(RegistryStore::new(registry, id.clone(), lease_options))
        }
        Connected::Store(store, _) => store,
    };
    let (on_lease_loss, renew_margin) = (options.on_lease_loss, options.renew_margin);
    let node_options = NodeOptions { on_lease_loss, renew_margin, ..NodeOptions::default() };
    let node = Node::from_parts(store, Arc::clone(&backend), node_options);
    let path_monitor = options.probe.map(|options| {
        let (prober, handle) = Prober::new(&namespace, options);
        PathMonitor { prober, handle, finder, config, paths }
    });
    let facts = Facts { id, store: options.store.to_string(), backend };
    daemon.runs(facts, node.handle());
    Ok(Composed { node, path_monitor, orchestrator, _kept: kept, host_lock })
}

/// Finds the interface that the options ask for, in this network.
fn uplink_finder(
    namespace: &Namespace,
    config: &NetworkConfig,
    options: &DaemonOptions,
) -> Result<UplinkFinder, InvalidOptions> {
    UplinkFinder::new(namespace, config, &options.uplink).map_err(InvalidOptions::new)
}

/// Stores the network that is asked for if there is none, and reads the one that there is.
async fn connect(
    registry: TimedRegistry,
    network: Option<&NetworkConfig>,
    daemon: &DaemonHandle,
) -> Result<(Connected, NetworkConfig), DaemonError> {
    if let Some(network) = network {
        let mut retry = Retry::new(SET_UP_NETWORK, daemon);
        while retry
            .outcome(init(&registry, network).await, is_retryable)
            .map_err(DaemonError::Config)?
            .is_none()
        {
            sleep(PAUSE).await;
        }
    }
    let mut retry = Retry::new(READ_CONFIG, daemon);
    loop {
        let read = network_config(&registry).await;
        if let Some(config) = retry.outcome(read, StoreError::is_retryable)? {
            return Ok((Connected::Registry(registry), config));
        }
        sleep(PAUSE).await;
    }
}

/// Reads the network of a store that knows which node this is.
async fn read_config(
    store: Arc<dyn Store>,
    id: NodeId,
    daemon: &DaemonHandle,
) -> Result<(Connected, NetworkConfig), DaemonError> {
    let mut retry = Retry::new(READ_CONFIG, daemon);
    loop {
        if let Some(config) = retry.outcome(store.config().await, StoreError::is_retryable)? {
            return Ok((Connected::Store(store, id), config));
        }
        sleep(PAUSE).await;
    }
}

/// Takes the addresses that operators want the node to publish, in the place of those of the options, as flanneld does.
async fn addresses_of_operators(
    orchestrator: &dyn Orchestrator,
    uplink: &mut UplinkOptions,
    daemon: &DaemonHandle,
) -> Result<(), DaemonError> {
    let mut retry = Retry::new(READ_NODE, daemon);
    loop {
        let read = orchestrator.node_addresses().await;
        if let Some((ipv4, ipv6)) = retry.outcome(read, StoreError::is_retryable)? {
            uplink.public_ip = ipv4.or(uplink.public_ip);
            uplink.public_ipv6 = ipv6.or(uplink.public_ipv6);
            return Ok(());
        }
        sleep(PAUSE).await;
    }
}

/// Stores `wanted` as the network's configuration if there is none.
async fn init(registry: &impl Registry, wanted: &NetworkConfig) -> Result<(), RegistryError> {
    let was = registry.config().await?;
    let json = serde_json::to_string(wanted).expect("a network config is valid JSON");
    match &was.text {
        None => registry.set_config(&was, &json).await,
        Some(text) if *text == json => Ok(()),
        Some(_) => {
            info!("{} has a network config already, which is used", was.place);
            Ok(())
        }
    }
}

/// Whether a registry may do what it did not do if it is asked again.
fn is_retryable(error: &RegistryError) -> bool {
    matches!(error, RegistryError::ConfigConflict | RegistryError::Unavailable { .. })
}

/// Keeps the address under which this host holds its subnet, also if it is another than we would choose: the lease is found by it.
async fn keep_address(registry: &impl Registry, held: &Subnet, finder: &UplinkFinder) {
    let Ok(addresses) = finder.host_addresses().await else { return };
    // With one address there is no choice, and reading all leases takes time.
    if addresses.len() < 2 {
        return;
    }
    if let Ok(snapshot) = registry.list().await
        && let Some(lease) = previous_lease(&snapshot.records, held, &addresses)
        && let Err(error) = finder.find_for(Some(&lease)).await
    {
        debug!(%error, "there is no uplink yet");
    }
}

/// Waits for an uplink. Also where the id is known: whoever waits for a network card should not wait for long.
async fn uplink_address(
    finder: &UplinkFinder,
    config: &NetworkConfig,
    daemon: &DaemonHandle,
) -> Result<Option<std::net::IpAddr>, DaemonError> {
    let mut changes = None;
    let mut retry = Retry::new(FIND_UPLINK, daemon);
    let uplink = loop {
        if let Some(uplink) = retry.outcome(finder.find().await, BackendError::is_retryable)? {
            break uplink;
        }
        match &mut changes {
            // A card that comes is seen at once.
            Some(changes) => drop(timeout(PAUSE, InterfaceChanges::next(changes)).await),
            // One that came before we listen is seen by looking again.
            None => match finder.changes() {
                Ok(opened) => changes = Some(opened),
                Err(_) => sleep(PAUSE).await,
            },
        }
    };
    if let Some((address, network)) = uplink.inside_of(config) {
        warn!(
            "this host's address {address} is inside of the network {network}: leases may cover the link between hosts; give the \
             network another block, or leave that link out with SubnetMin and SubnetMax"
        );
    }
    Ok(uplink.address())
}

/// The kernel's release, such as `6.12.9`.
fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The id in the state folder, if the options name none. Without one, the node goes by its address.
fn kept_id(options: &DaemonOptions) -> Option<KeptId> {
    if options.node_id.is_some() {
        return None;
    }
    match node_id::keep(options.state_dir.as_deref()) {
        Ok(kept) => Some(kept),
        Err(error) => {
            warn!(
                "{}; until then this node's address is its name, and its lease is lost with it",
                chain(&error)
            );
            None
        }
    }
}

/// The network's configuration says who keeps the rules, unless the options do.
fn firewall_options(options: &DaemonOptions, config: &NetworkConfig) -> FirewallOptions {
    let mode = match options.firewall.mode {
        ModeChoice::Auto => ModeChoice::of(config),
        chosen => chosen,
    };
    // What the node was in before, the subnet file still says: rules of then are this node's too.
    let env = subnet_file::read(&options.subnet_file);
    let before = env.network.map(IpNetwork::V4).into_iter();
    let before = before.chain(env.ipv6_network.map(IpNetwork::V6));
    let networks = options.firewall.networks.iter().copied().chain(before).collect();
    FirewallOptions { mode, networks, ..options.firewall.clone() }
}

/// Says which options change nothing in this network, with the reason and what to do.
fn without_effect(options: &DaemonOptions, config: &NetworkConfig) {
    let UplinkOptions { public_ip, public_ipv6, .. } = &options.uplink;
    if public_ip.is_some() && config.ipv4().is_none() {
        warn!("without effect: --public-ip: the network has no IPv4; leave it out");
    }
    if public_ipv6.is_some() && config.ipv6().is_none() {
        warn!(
            "without effect: --public-ipv6: the network has no IPv6; leave it out, or set EnableIPv6 and IPv6Network"
        );
    }
    let usual: Duration = FirewallOptions::default().check_every;
    if options.firewall.check_every != usual && config.enable_nftables() == Some(true) {
        warn!(
            "without effect: --iptables-resync: rules are kept in nftables, which tells of changes by itself; leave it out"
        );
    }
}
