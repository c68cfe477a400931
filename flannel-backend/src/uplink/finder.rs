use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use flannel_core::{BackendError, Lease, NetworkConfig, check_chosen_address};
use flannel_netlink::{
    Connection, Namespace,
    iface::{Families, Interface, InterfaceChanges, Search, select_interface},
    list_addresses,
    state::AddressFilter,
};
use tokio::sync::Mutex;

use super::{Uplink, UplinkOptions, UplinkOptionsError, UplinkWatch, selectors};

/// Finds the uplink, as often as it is asked, and keeps to it: an address that was found or published stays while it is usable, and
/// the last one while none is. Clones share what they know.
#[derive(Clone, Debug)]
pub struct UplinkFinder {
    namespace: Namespace,
    shared: Arc<Mutex<Shared>>,
    public_ip: Option<Ipv4Addr>,
    public_ipv6: Option<Ipv6Addr>,
}

/// What clones of a finder have in common.
#[derive(Debug)]
struct Shared {
    connection: Option<Connection>,
    search: Search,
    /// Whether a lease of this node was seen.
    knows_lease: bool,
}

impl UplinkFinder {
    /// A finder for the families of `config` in `namespace`.
    ///
    /// # Errors
    ///
    /// [`UplinkOptionsError`] if a pattern is not a regular expression, or peers could not reach this node at its public address.
    pub fn new(
        namespace: &Namespace,
        config: &NetworkConfig,
        options: &UplinkOptions,
    ) -> Result<Self, UplinkOptionsError> {
        let families = match (config.ipv4(), config.ipv6()) {
            (Some(_), Some(_)) => Families::Dual,
            (_, None) => Families::V4,
            (None, Some(_)) => Families::V6,
        };
        let public_ip = options.public_ip.filter(|_| families.v4());
        let public_ipv6 = options.public_ipv6.filter(|_| families.v6());
        // Packets should come from where peers send theirs to, if the interface has that address.
        let preferred: Vec<_> = [public_ip.map(IpAddr::V4), public_ipv6.map(IpAddr::V6)]
            .into_iter()
            .flatten()
            .collect();
        for address in &preferred {
            check_chosen_address(*address, config)?;
        }
        let mut search = Search::new(families, selectors(options)?);
        search.pods = config.pod_ranges().into_iter().map(|(range, _)| range).collect();
        search.preferred = preferred;
        let shared = Shared { connection: None, search, knows_lease: false };
        let shared = Arc::new(Mutex::new(shared));
        Ok(Self { namespace: namespace.clone(), shared, public_ip, public_ipv6 })
    }

    /// The uplink as it is now. After the first answer there is always one: the last one, with its faults, while none is usable.
    ///
    /// # Errors
    ///
    /// [`BackendError::Interface`] with what was looked for, what was there, and why that was not taken.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn find(&self) -> Result<Uplink, BackendError> {
        self.find_with(|_| {}).await
    }

    /// The same for a node whose lease is, or was before a restart, `lease`: the addresses in it stay while they are usable.
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find).
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn find_for(&self, lease: Option<&Lease>) -> Result<Uplink, BackendError> {
        self.find_with(|shared| {
            if let Some(lease) = lease {
                shared.learn(lease);
            }
        })
        .await
    }

    async fn find_with(&self, prepare: impl FnOnce(&mut Shared)) -> Result<Uplink, BackendError> {
        let mut shared = self.shared.lock().await;
        prepare(&mut shared);
        // Taken out, so that a call that is dropped midway leaves no half-read answer behind for the next one.
        let mut connection = match shared.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.namespace).map_err(no_interface)?,
        };
        let found = select_interface(&mut connection, &shared.search).await;
        shared.connection = Some(connection);
        let found = found.map_err(no_interface)?;
        shared.search.current = Some(found.clone());
        Ok(self.uplink(found))
    }

    /// The addresses by which others may know this host: those of all its devices that packets between machines can have.
    ///
    /// # Errors
    ///
    /// [`BackendError::Interface`] when the kernel cannot be read.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn host_addresses(&self) -> Result<Vec<IpAddr>, BackendError> {
        let mut connection = Connection::open(&self.namespace).map_err(no_interface)?;
        let listed = list_addresses(&mut connection, AddressFilter::default()).await;
        let pods = self.shared.lock().await.search.pods.clone();
        let mut addresses: Vec<_> =
            listed.map_err(no_interface)?.iter().map(|it| it.address.ip()).collect();
        addresses.retain(|address| {
            let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
            !address.is_loopback() && !is_link_local && !pods.iter().any(|it| it.contains(address))
        });
        Ok(addresses)
    }

    /// Tells when [`find`](Self::find) has another answer than `uplink`.
    ///
    /// # Errors
    ///
    /// [`BackendError::Interface`] if the kernel's notifications cannot be had.
    pub fn watch(&self, uplink: &Uplink) -> Result<UplinkWatch, BackendError> {
        Ok(UplinkWatch::new(self.clone(), self.changes()?, uplink.interface.clone()))
    }

    /// Tells when it is worth calling [`find`](Self::find) again.
    ///
    /// # Errors
    ///
    /// [`BackendError::Interface`] if the kernel's notifications cannot be had.
    pub fn changes(&self) -> Result<InterfaceChanges, BackendError> {
        InterfaceChanges::open(&self.namespace).map_err(no_interface)
    }

    /// The namespace that this finder looks into.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn uplink(&self, interface: Interface) -> Uplink {
        Uplink {
            public_ip: self.public_ip.or(interface.v4),
            public_ipv6: self.public_ipv6.or(interface.v6),
            interface,
        }
    }
}

impl Shared {
    /// Peers know this node by the addresses in `lease`.
    fn learn(&mut self, lease: &Lease) {
        let (v4, v6) = (lease.attrs.public_ip, lease.attrs.public_ipv6);
        let published = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6)).collect();
        if !self.knows_lease {
            let differs = |current: &Interface| {
                v4.is_some_and(|v4| current.v4 != Some(v4))
                    || v6.is_some_and(|v6| current.v6 != Some(v6))
            };
            // It was found without knowing what peers know, and nobody has used it yet.
            self.search.current.take_if(|current| differs(current));
            self.knows_lease = true;
        }
        self.search.published = published;
    }
}

fn no_interface(error: impl std::error::Error + Send + Sync + 'static) -> BackendError {
    BackendError::Interface { source: error.into() }
}
