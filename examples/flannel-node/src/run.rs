//! Runs a node: chooses store and backend, and tells the host about the subnet.

use std::{error::Error, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use flannel_backend::{UplinkFinder, UplinkOptions};
use flannel_backend_hostgw::HostGw;
use flannel_backend_udp::Udp;
use flannel_backend_vxlan::Vxlan;
use flannel_core::{
    Backend, NetworkConfig, Node, NodeHandle, NodeId, NodeOptions, OnLeaseLoss, Status, SubnetEnv,
};
use flannel_netlink::Namespace;
use flannel_store::{
    Allocating, EtcdRegistry, FileRegistry, FileStore, MemoryCluster, Options, Registry,
    RegistryError, network_config,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use tracing::{info, warn};

use crate::{
    args::{LeaseLossArg, NetworkArg, NodeArgs, StoreArg},
    mistake::Mistake,
    node_id::{self, KeptId},
    sandbox::Rights,
    subnet_file,
};

/// Whether the network that the command line asks for can be.
///
/// # Errors
///
/// A [`Mistake`] in it.
pub(crate) fn check(args: &NodeArgs) -> Result<()> {
    wanted(args).map(drop)
}

/// Runs until SIGTERM or SIGINT, which leave lease and data path as they are.
pub(crate) async fn run(args: NodeArgs, rights: Rights) -> Result<()> {
    for text in args.without_effect() {
        warn!("without effect: {text}");
    }
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        ended = with_store(args, rights) => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }?;
    info!("stopped; lease and data path stay");
    Ok(())
}

/// Opens the store that the command line names, and runs a node on it.
async fn with_store(args: NodeArgs, rights: Rights) -> Result<()> {
    let wanted = wanted(&args)?;
    match &args.store.store {
        Some(StoreArg::File(path)) => {
            if let Some(wanted) = &wanted {
                FileStore::init(path, wanted).await?;
            }
            let registry = FileRegistry::open(path).await?;
            with_registry(registry, args, rights).await
        }
        Some(StoreArg::Memory) => {
            let config = wanted.context("--store memory needs --network: it has none by itself");
            let config = config.map_err(Mistake::new)?;
            let registry = MemoryCluster::new(&config).registry(NodeId::new("memory")?);
            with_registry(registry, args, rights).await
        }
        None => {
            let registry = EtcdRegistry::new(&args.store.etcd()).map_err(Mistake::new)?;
            if let Some(wanted) = &wanted {
                let init = patiently("set up the network", async || {
                    init(&registry, wanted).await.map_err(|error| (is_retryable(&error), error))
                });
                init.await?;
            }
            with_registry(registry, args, rights).await
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
async fn with_registry(registry: impl Registry, args: NodeArgs, rights: Rights) -> Result<()> {
    rights.log();
    let config = patiently("read the network config", async || {
        network_config(&registry).await.map_err(|error| (error.is_retryable(), error))
    });
    let config = config.await?;
    if !config.backend().is_explicit() {
        warn!("the network config names no Backend, which means udp; vxlan is usually better");
    }
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
    let backend = backend(&config, &finder, named.as_ref())?;
    // Also where the id is known: whoever waits for a network card should not wait for long.
    let uplink = patiently("find the uplink", async || {
        finder.find().await.map_err(|error| (error.is_retryable(), error))
    });
    let uplink = uplink.await?;
    let id = match named {
        Some(id) => id,
        None => uplink.address().context("the uplink has no address")?.into(),
    };
    let hint = subnet_file::read(&args.subnet_file).held();
    let ttl = Duration::from_secs(args.lease_ttl.into());
    info!(node = %id, "joining");
    let store = Allocating::new(registry, id, Options { hint, ttl });
    let on_lease_loss = match args.on_lease_loss {
        LeaseLossArg::Exit => OnLeaseLoss::Exit,
        LeaseLossArg::Reacquire => OnLeaseLoss::Reacquire,
    };
    let renew_margin = Duration::from_secs(60 * u64::from(args.subnet_lease_renew_margin));
    let options = NodeOptions { on_lease_loss, renew_margin, ..NodeOptions::default() };
    let node = Node::from_parts(Arc::new(store), backend, options);
    let handle = node.handle();
    tokio::select! {
        ended = node.run() => match ended? {},
        () = tell_host(handle, config, args.subnet_file) => bail!("the node ended without a reason"),
    }
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

/// The backend that the network asks for, for the node of this name if it has one apart from its address.
fn backend(
    config: &NetworkConfig,
    finder: &UplinkFinder,
    node: Option<&NodeId>,
) -> Result<Arc<dyn Backend>> {
    match config.backend().kind() {
        "host-gw" => Ok(Arc::new(HostGw::new(config, finder.clone()))),
        "udp" => Ok(Arc::new(Udp::new(config, finder.clone())?)),
        "vxlan" => {
            let vxlan = Vxlan::new(config, finder.clone())?;
            Ok(match node {
                Some(node) => Arc::new(vxlan.with_identity(node.clone())),
                None => Arc::new(vxlan),
            })
        }
        "" => bail!("network config: Backend has no Type, expected one of: {BACKENDS}"),
        other => bail!("network config: Backend.Type is {other:?}, expected one of: {BACKENDS}"),
    }
}

/// Keeps `subnet.env` equal to what the node holds, whenever it can serve pods with that. Ends with the node.
async fn tell_host(mut handle: NodeHandle, config: NetworkConfig, path: PathBuf) {
    let held = |status: &Status| {
        let lease = status.lease.as_ref().filter(|_| status.is_ready())?;
        Some(SubnetEnv::new(&config, &lease.subnet, status.mtu?, false))
    };
    let mut told = None;
    loop {
        let news = |status: &Status| held(status).is_some_and(|env| told.as_ref() != Some(&env));
        let Some(status) = handle.wait_for(news).await else {
            return;
        };
        let (Some(env), Some(lease)) = (held(&status), &status.lease) else { continue };
        if let Err(error) = subnet_file::write(&path, &env) {
            warn!("{error:#}; trying again");
            sleep(RETRY).await;
            continue;
        }
        info!(subnet = %lease.subnet, mtu = env.mtu, file = %path.display(), "ready");
        told = Some(env);
    }
}

/// Calls until it succeeds or fails in a way that waiting does not help; the call says which.
async fn patiently<T, E: Error + Send + Sync + 'static>(
    what: &str,
    mut call: impl AsyncFnMut() -> Result<T, (bool, E)>,
) -> Result<T> {
    let mut said = String::new();
    loop {
        match call().await {
            Ok(value) => return Ok(value),
            Err((false, error)) => return Err(error.into()),
            Err((true, error)) => {
                let text = format!("{:#}", anyhow::Error::from(error));
                if text != said {
                    warn!("cannot {what}, trying again: {text}");
                    said = text;
                }
                sleep(RETRY).await;
            }
        }
    }
}

/// Between attempts to get what is needed before there is a node: 1 s as flannel's.
const RETRY: Duration = Duration::from_secs(1);

/// The backends of this program.
const BACKENDS: &str = "host-gw, udp, vxlan";

#[cfg(test)]
mod tests {
    use flannel_core::testing::FakeBackend;
    use flannel_store::Write;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_host_is_told_of_a_new_subnet_when_its_data_path_is_up() {
        let config: NetworkConfig = r#"{"Network":"10.3.0.0/16"}"#.parse().unwrap();
        let cluster = MemoryCluster::new(&config);
        let backend = FakeBackend::new([192, 0, 2, 1].into());
        let node = Node::new(cluster.store("n1".parse().unwrap()), backend.clone());
        let mut handle = node.handle();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subnet.env");
        let told = || subnet_file::read(&path).held();
        tokio::spawn(node.run());
        tokio::spawn(tell_host(handle.clone(), config, path.clone()));
        let first = handle.wait_for(Status::is_ready).await.unwrap().lease.unwrap();
        while told().is_none() {
            sleep(RETRY).await;
        }
        assert_eq!(told(), Some(first.subnet));

        backend.fail_starts(u32::MAX);
        let owner = Some("n2".parse().unwrap());
        let thief = Write { value: first.attrs.to_string(), owner, ttl: None };
        cluster.put(&first.subnet.to_string(), &thief);
        let moved = |status: &Status| {
            status.lease.as_ref().is_some_and(|lease| lease.subnet != first.subnet)
        };
        let second = handle.wait_for(moved).await.unwrap().lease.unwrap();
        sleep(10 * RETRY).await;
        assert_eq!(told(), Some(first.subnet));

        backend.fail_starts(0);
        handle.wait_for(Status::is_ready).await.unwrap();
        sleep(RETRY).await;
        assert_eq!(told(), Some(second.subnet));
    }
}
