//! Takes down what a node has left, and nothing else.

mod error;
mod hand_over;

use std::{
    fs, io,
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use flannel_core::{LeaseAttrs, NodeId, Subnet, SubnetEnv};
use flannel_firewall::{Firewall, FirewallOptions};
use flannel_netlink::{Connection, Namespace, list_addresses, state::AddressFilter};
use flannel_store::{Record, Registry, network_config};
use ipnetwork::IpNetwork;

pub use error::TeardownError;

use crate::{
    FileError, StoreOptions, Stores, backend_source,
    backends::extension_record,
    node_id,
    operate::{self, OperateError},
    status_socket, subnet_file,
};

/// What to take down.
#[derive(Clone, Debug)]
pub struct TeardownOptions {
    /// Where the leases live.
    pub store: StoreOptions,
    /// The blocks of the network. If empty, those that the subnet file names, or else the store.
    pub network: Vec<IpNetwork>,
    /// The subnet file of the node; it is removed too.
    pub subnet_file: PathBuf,
    /// With `keep_traffic`: the file of WireGuard's private key, if it is not `wgkey` beside the subnet file.
    pub wireguard_key_file: Option<PathBuf>,
    /// Leave routes, devices and rules as flanneld would have made them, and the file, so that packets keep flowing until flanneld is
    /// started.
    pub keep_traffic: bool,
    /// Without `keep_traffic`: leave unreachable routes to the network, so that what pods still send to each other does not follow a
    /// default route in the clear.
    pub require_encryption: bool,
    /// Give the subnet back as well, so that another node may have it at once.
    pub release: bool,
    /// With `release`: the node's name in the store, if it was given one.
    pub node_id: Option<NodeId>,
    /// With `release`: the folder that the node's name is kept in.
    pub state_dir: Option<PathBuf>,
}

/// Takes down the data path of the node that wrote the subnet file, removes the file, and gives the subnet back if asked to; or hands
/// all of it over to flanneld.
///
/// `report` gets a line for each thing that was done.
///
/// # Errors
///
/// [`TeardownError`] if a node runs, or something cannot be removed. Another attempt goes on where this one ended.
pub async fn teardown(
    options: &TeardownOptions,
    stores: &Stores,
    mut report: impl FnMut(String),
) -> Result<(), TeardownError> {
    let socket = status_socket::beside(&options.subnet_file);
    if UnixStream::connect(&socket).is_ok() {
        return Err(TeardownError::NodeRuns { subnet_file: options.subnet_file.clone() });
    }
    let env = subnet_file::read(&options.subnet_file);
    let namespace = Namespace::current()?;
    if options.keep_traffic {
        hand_over::hand_over(options, stores, &env, &namespace, &mut report).await?;
        remove(&backend_source::file(&options.subnet_file))?;
        remove(&socket)?;
        return Ok(());
    }
    // Before anything goes: somebody may have to correct the options.
    let lease = match options.release {
        true => own_lease(options, stores, &env, &namespace).await?,
        false => None,
    };
    let networks = networks(options, stores, &env).await?;
    let removed =
        flannel_backend::remove_all(&namespace, &networks, options.require_encryption).await?;
    for device in &removed.devices {
        report(format!("removed the device {device}"));
    }
    report(format!("removed {} routes and nexthop objects", removed.objects));
    for network in networks.iter().filter(|_| options.require_encryption) {
        report(format!("left the unreachable route {network}: ip route del unreachable {network}"));
    }
    let record = extension_record(&options.subnet_file);
    flannel_backend_extension::remove_all(&namespace, &record).await?;
    let nothing = FirewallOptions { forward: false, networks, ..FirewallOptions::default() };
    let rules = Firewall::open(&namespace, nothing).await?.teardown().await?;
    report(format!("removed {rules} rules of the firewall"));
    match lease {
        Some(OwnLease { registry, subnet, record }) => {
            operate::delete(registry.as_ref(), &subnet, &record).await?;
            report(format!("released {subnet}"));
        }
        None if options.release => report("there is no lease to release".into()),
        None => {}
    }
    remove(&backend_source::file(&options.subnet_file))?;
    // Last, so that another attempt finds it.
    for path in [&options.subnet_file, &socket] {
        if remove(path)? {
            report(format!("removed {}", path.display()));
        }
    }
    Ok(())
}

/// The blocks whose routes and devices are the node's.
async fn networks(
    options: &TeardownOptions,
    stores: &Stores,
    env: &SubnetEnv,
) -> Result<Vec<IpNetwork>, TeardownError> {
    if !options.network.is_empty() {
        return Ok(options.network.clone());
    }
    let told =
        env.network.map(IpNetwork::V4).into_iter().chain(env.ipv6_network.map(IpNetwork::V6));
    let told: Vec<_> = told.collect();
    if !told.is_empty() {
        return Ok(told);
    }
    let registry = stores.open(&options.store).await?;
    let config = network_config(registry.as_ref()).await;
    let subnet_file = options.subnet_file.clone();
    let config = config.map_err(|source| TeardownError::NoNetwork { subnet_file, source })?;
    let v4 = config.ipv4().map(|range| range.network().into());
    let v6 = config.ipv6().map(|range| range.network().into());
    Ok(v4.into_iter().chain(v6).collect())
}

/// This node's lease, where it is.
struct OwnLease {
    registry: Box<dyn Registry>,
    subnet: Subnet,
    record: Record,
}

/// The lease of the subnet that the subnet file names, if there is one; it has to be this node's.
async fn own_lease(
    options: &TeardownOptions,
    stores: &Stores,
    env: &SubnetEnv,
    namespace: &Namespace,
) -> Result<Option<OwnLease>, TeardownError> {
    let no_subnet = || TeardownError::NoSubnet { subnet_file: options.subnet_file.clone() };
    let held = env.held().ok_or_else(no_subnet)?;
    let registry = stores.open(&options.store).await?;
    let record = match operate::find(registry.as_ref(), &held).await {
        Err(OperateError::NoLease { .. }) => return Ok(None),
        found => found?,
    };
    let id = options.node_id.clone().or_else(|| node_id::known(options.state_dir.as_deref()));
    let mut connection = Connection::open(namespace)?;
    let addresses = list_addresses(&mut connection, AddressFilter::default()).await?;
    let addresses: Vec<_> = addresses.iter().map(|address| address.address.ip()).collect();
    if !is_ours(&record, id.as_ref(), &addresses) {
        return Err(TeardownError::OtherNode { subnet: held, holder: record.owner });
    }
    Ok(Some(OwnLease { registry, subnet: held, record }))
}

/// Whether a lease is of the node with this name, or, if it is of one that goes by its address, of one with our addresses.
fn is_ours(record: &Record, id: Option<&NodeId>, addresses: &[IpAddr]) -> bool {
    let by_address = || {
        let attrs = record.value.as_ref().ok().and_then(|value| value.parse::<LeaseAttrs>().ok());
        attrs.and_then(|attrs| attrs.address()).is_some_and(|address| addresses.contains(&address))
    };
    match &record.owner {
        Some(owner) if owner.address().is_none() => Some(owner) == id,
        Some(_) | None => by_address(),
    }
}

/// Removes a file; false if there is none.
fn remove(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(FileError { operation: "remove", path: path.to_owned(), source }),
    }
}
