//! Runs a node: chooses store and backend, and tells the host about the subnet.

use std::{error::Error, pin::pin, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use flannel_backend::{Paths, UplinkFinder, UplinkOptions};
use flannel_backend_hostgw::HostGw;
use flannel_backend_udp::{Meter, Udp};
use flannel_backend_vxlan::Vxlan;
use flannel_core::{Backend, NetworkConfig, Node, NodeId, NodeOptions, OnLeaseLoss};
use flannel_firewall::Firewalled;
use flannel_netlink::{Namespace, iface::InterfaceNews};
use flannel_probe::Prober;
use flannel_store::{
    EtcdRegistry, FileRegistry, FileStore, LeaseOptions, MemoryCluster, Registry, RegistryError,
    RegistryStore, network_config,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    args::{LeaseLossArg, NetworkArg, NodeArgs, StoreArg},
    health::{self, Listener},
    host,
    journal::{FIND_UPLINK, READ_CONFIG, SET_UP_NETWORK},
    mistake::Mistake,
    node_id::{self, KeptId},
    observed::{Facts, Observed},
    probing::{self, Probing},
    sandbox::{self, Rights},
    socket,
    sole::{Sole, sole},
    subnet_file, supervisor,
    timed::Timed,
};

/// Whether the network and the store that the command line asks for can be. Touches nothing.
///
/// # Errors
///
/// A [`Mistake`] in it.
pub(crate) fn check(args: &NodeArgs) -> Result<()> {
    let wanted = wanted(args)?;
    match &args.store.store {
        Some(StoreArg::Memory) if wanted.is_none() => {
            let reason = anyhow!("--store memory needs --network: it has none by itself");
            Err(Mistake::new(reason).into())
        }
        Some(_) => Ok(()),
        None => Ok(EtcdRegistry::new(&args.store.etcd()).map(drop).map_err(Mistake::new)?),
    }
}

/// Runs until SIGTERM or SIGINT, which leave lease and data path as they are.
pub(crate) async fn run(args: NodeArgs, rights: Rights) -> Result<()> {
    without_effect(&args.without_effect());
    rights.log();
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut stop = pin!(async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        supervisor::stopping();
    });
    let observed = Observed::new(&args.subnet_file, args.traffic.ip_masq);
    let mut beside = JoinSet::new();
    if let Some(listener) = health::listen(&args.health).await? {
        beside.spawn(health::serve(listener, observed.clone()));
    }
    let _socket = match socket::listen(&socket::beside(&args.subnet_file)) {
        Ok((listener, file)) => {
            beside.spawn(health::serve(Listener::Operators(listener), observed.clone()));
            Some(file)
        }
        Err(error) => {
            warn!("flannel-node status will not work: {error:#}");
            None
        }
    };
    beside.spawn(supervisor::watchdog(observed.clone()));
    let node = tokio::select! {
        biased;
        () = &mut stop => None,
        node = with_store(args, &observed) => Some(node?),
    };
    if let Some(Joined { node, probing, _kept, _sole }) = node {
        beside.spawn(host::tell(node.handle(), observed.clone()));
        if let Some(probing) = probing {
            beside.spawn(probing::run(probing, node.handle(), observed.clone()));
        }
        beside.spawn(observed.follow());
        node.run_until(stop).await?;
    }
    info!("stopped; lease and data path stay");
    Ok(())
}

/// Says of flags that they change nothing.
fn without_effect(texts: &[String]) {
    texts.iter().for_each(|text| warn!("without effect: {text}"));
}

/// A node that is about to run, with its name.
struct Joined {
    node: Node,
    /// What looks at the ways to peers, if that is asked for.
    probing: Option<Probing>,
    /// No other process of this machine may use the name meanwhile.
    _kept: Option<KeptId>,
    /// Nor may another node of the network run on this host.
    _sole: Sole,
}

/// Opens the store that the command line names, and makes a node on it.
async fn with_store(args: NodeArgs, observed: &Observed) -> Result<Joined> {
    let wanted = wanted(&args)?;
    match &args.store.store {
        Some(StoreArg::File(path)) => {
            if let Some(wanted) = &wanted {
                FileStore::init(path, wanted).await?;
            }
            let registry = FileRegistry::open(path).await?;
            with_registry(registry, args, observed).await
        }
        Some(StoreArg::Memory) => {
            let config = wanted.context("a store in memory has no network by itself")?;
            let registry = MemoryCluster::new(&config).registry(NodeId::new("memory")?);
            with_registry(registry, args, observed).await
        }
        None => {
            let registry = EtcdRegistry::new(&args.store.etcd()).map_err(Mistake::new)?;
            if let Some(wanted) = &wanted {
                let init = patiently(SET_UP_NETWORK, observed, async || {
                    init(&registry, wanted).await.map_err(|error| (is_retryable(&error), error))
                });
                init.await?;
            }
            with_registry(registry, args, observed).await
        }
    }
}

/// Stores `wanted` as the network's configuration if there is none.
async fn init(registry: &impl Registry, wanted: &NetworkConfig) -> Result<(), RegistryError> {
    let was = registry.config().await?;
    if was.text.is_some() {
        info!("{} has a network config already, which is used", was.place);
        return Ok(());
    }
    let json = serde_json::to_string(wanted).expect("a network config is valid JSON");
    registry.set_config(&was, &json).await
}

/// Whether a registry may do what it did not do if it is asked again.
fn is_retryable(error: &RegistryError) -> bool {
    matches!(error, RegistryError::ConfigConflict | RegistryError::Unavailable { .. })
}

/// The network says which families an uplink needs, and the uplink names the node: so they come in this order.
async fn with_registry(
    registry: impl Registry,
    args: NodeArgs,
    observed: &Observed,
) -> Result<Joined> {
    let registry = Timed::new(registry, observed.times());
    let config = patiently(READ_CONFIG, observed, async || {
        network_config(&registry).await.map_err(|error| (error.is_retryable(), error))
    });
    let config = config.await?;
    ensure_backend(&config)?;
    without_effect(&args.without_effect_in(&config));
    sandbox::settle(&args, config.backend().kind());
    if !config.backend().is_explicit() {
        warn!("the network config names no Backend, which means udp; vxlan is usually better");
    }
    let sole = sole(&args.store).await?;
    let kept = kept_id(&args);
    let namespace = Namespace::current().context("cannot open our own network namespace")?;
    let uplink = UplinkOptions {
        names: args.iface,
        patterns: args.iface_regex,
        can_reach: args.iface_can_reach,
        public_ip: args.public_ip,
        public_ipv6: args.public_ipv6,
    };
    let finder = UplinkFinder::new(&namespace, &config, &uplink)?;
    let named = args.node_id.or_else(|| Some(kept.as_ref()?.id.clone()));
    let paths = Paths::default();
    let drops_unused = args.traffic.ip_blackhole_route;
    let (backend, udp) = backend(&config, &finder, named.as_ref(), &paths, drops_unused)?;
    let firewall = args.traffic.firewall(&config);
    let backend = Arc::new(Firewalled::new(backend, &namespace, firewall));
    // Also where the id is known: whoever waits for a network card should not wait for long.
    let mut news = None;
    let find = async || finder.find().await.map_err(|error| (error.is_retryable(), error));
    let uplink = patiently_with(FIND_UPLINK, observed, find, async || match &mut news {
        // A card that comes is seen at once.
        Some(news) => drop(timeout(RETRY, InterfaceNews::next(news)).await),
        // One that came before we listen is seen by looking again.
        None => match finder.news() {
            Ok(opened) => news = Some(opened),
            Err(_) => sleep(RETRY).await,
        },
    });
    let uplink = uplink.await?;
    if let Some((address, network)) = uplink.inside_of(&config) {
        warn!(
            "this host's address {address} is inside of the network {network}: leases may cover the link between hosts; give the \
             network another block, or leave that link out with SubnetMin and SubnetMax"
        );
    }
    let id = match named {
        Some(id) => id,
        None => uplink.address().context("the uplink has no address")?.into(),
    };
    let hint = subnet_file::read(&args.subnet_file).held();
    let ttl = Duration::from_secs(args.lease_ttl.into());
    info!(node = %id, "joining");
    let store = RegistryStore::new(registry, id.clone(), LeaseOptions { hint, ttl });
    let on_lease_loss = match args.on_lease_loss {
        LeaseLossArg::Exit => OnLeaseLoss::Exit,
        LeaseLossArg::Reacquire => OnLeaseLoss::Reacquire,
    };
    let renew_margin = Duration::from_secs(60 * u64::from(args.subnet_lease_renew_margin));
    let options = NodeOptions { on_lease_loss, renew_margin, ..NodeOptions::default() };
    let node = Node::from_parts(Arc::new(store), backend, options);
    let probing = args.probe.options().map(|options| {
        let (prober, handle) = Prober::new(&namespace, options);
        Probing { prober, handle, finder, config: config.clone(), paths }
    });
    observed.runs(Facts { id, config, store: args.store.to_string(), udp }, node.handle());
    Ok(Joined { node, probing, _kept: kept, _sole: sole })
}

/// The id in the state folder, if the command line names none. Without one, the node goes by its address.
fn kept_id(args: &NodeArgs) -> Option<KeptId> {
    if args.node_id.is_some() {
        return None;
    }
    match node_id::keep(args.state_dir.as_deref()) {
        Ok(kept) => Some(kept),
        Err(error) => {
            let error = format!("{:#}", anyhow::Error::from(error));
            warn!(
                "{error}; until then this node's address is its name, and its lease is lost with it"
            );
            None
        }
    }
}

/// The network that the command line asks for, if any.
fn wanted(args: &NodeArgs) -> Result<Option<NetworkConfig>> {
    let wanted = args.network.as_ref().map(|network| wanted_network(network, &args.backend));
    Ok(wanted.transpose().map_err(Mistake::new)?)
}

fn wanted_network(network: &NetworkArg, backend: &str) -> Result<NetworkConfig> {
    let json = match network {
        NetworkArg::Json(json) => json.clone(),
        NetworkArg::Block(block) => {
            let block = block.to_string();
            serde_json::json!({ "Network": block, "Backend": { "Type": backend } }).to_string()
        }
    };
    Ok(json.parse()?)
}

/// The backend that the network asks for, for the node of this name if it has one apart from its address; and where udp's packets
/// are counted.
fn backend(
    config: &NetworkConfig,
    finder: &UplinkFinder,
    node: Option<&NodeId>,
    paths: &Paths,
    drops_unused: bool,
) -> Result<(Arc<dyn Backend>, Option<Meter>)> {
    match config.backend().kind() {
        "host-gw" => {
            let backend = HostGw::new(config, finder.clone()).with_paths(paths.clone());
            let backend = if drops_unused { backend.with_blackholes() } else { backend };
            Ok((Arc::new(backend), None))
        }
        "udp" => {
            let udp = Udp::new(config, finder.clone())?.with_paths(paths.clone());
            let udp = if drops_unused { udp.with_blackholes() } else { udp };
            let meter = udp.meter();
            Ok((Arc::new(udp), Some(meter)))
        }
        "vxlan" => {
            let vxlan = Vxlan::new(config, finder.clone())?.with_paths(paths.clone());
            let vxlan = match node {
                Some(node) => vxlan.with_identity(node.clone()),
                None => vxlan,
            };
            let vxlan = if drops_unused { vxlan.with_blackholes() } else { vxlan };
            Ok((Arc::new(vxlan), None))
        }
        other => Err(no_backend(other)),
    }
}

/// Refuses a network that this program cannot run nodes of: their backend, and its options. Touches nothing.
pub(crate) fn ensure_usable(config: &NetworkConfig) -> Result<()> {
    ensure_backend(config)?;
    let namespace = Namespace::current().context("cannot open our own network namespace")?;
    let finder = UplinkFinder::new(&namespace, config, &UplinkOptions::default())?;
    backend(config, &finder, None, &Paths::default(), false).map(drop)
}

/// Refuses a network whose backend this program does not have, before anything is touched.
fn ensure_backend(config: &NetworkConfig) -> Result<()> {
    let kind = config.backend().kind();
    if BACKENDS.split(", ").any(|known| known == kind) { Ok(()) } else { Err(no_backend(kind)) }
}

fn no_backend(kind: &str) -> anyhow::Error {
    match kind {
        "" => anyhow!("network config: Backend has no Type, expected one of: {BACKENDS}"),
        other => anyhow!("network config: Backend.Type is {other:?}, expected one of: {BACKENDS}"),
    }
}

/// Calls until it succeeds or fails in a way that waiting does not help; the call says which.
async fn patiently<T, E: Error + Send + Sync + 'static>(
    what: &'static str,
    observed: &Observed,
    call: impl AsyncFnMut() -> Result<T, (bool, E)>,
) -> Result<T> {
    patiently_with(what, observed, call, async || sleep(RETRY).await).await
}

/// The same with something else to wait for between two calls.
async fn patiently_with<T, E: Error + Send + Sync + 'static>(
    what: &'static str,
    observed: &Observed,
    mut call: impl AsyncFnMut() -> Result<T, (bool, E)>,
    mut pause: impl AsyncFnMut(),
) -> Result<T> {
    let mut said = String::new();
    loop {
        match call().await {
            Ok(value) => {
                observed.lack(what, None);
                return Ok(value);
            }
            Err((false, error)) => return Err(error.into()),
            Err((true, error)) => {
                let text = format!("{:#}", anyhow::Error::from(error));
                if text != said {
                    warn!("cannot {what}, trying again: {text}");
                    observed.lack(what, Some(text.clone()));
                    said = text;
                }
                pause().await;
            }
        }
    }
}

/// Between attempts to get what is needed before there is a node: 1 s as flannel's.
const RETRY: Duration = Duration::from_secs(1);

/// The backends of this program.
const BACKENDS: &str = "host-gw, udp, vxlan";
