//! The backend: its options, and what we publish.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use flannel_backend::{Paths, TableOptions, Uplink, UplinkFinder, warn_of_unknown_options};
use flannel_core::{
    Backend, BackendConfig, BackendError, Fields, Lease, LeaseAttrs, Network, NetworkConfig,
    NodeId, Place,
};
use flannel_netlink::iface::Interface;

use crate::{
    KIND,
    config::{KNOWN, Settings},
    device::{DeviceState, Devices},
    family::Family,
    mac::derived,
    network::VxlanNetwork,
};

/// Carries packets in the kernel's VXLAN.
#[derive(Debug)]
pub struct Vxlan {
    shared: Arc<Shared>,
    finder: UplinkFinder,
}

/// What the backend and its network work on together.
#[derive(Debug)]
pub(crate) struct Shared {
    settings: Mutex<Settings>,
    pub(crate) routes: TableOptions,
    identity: Option<NodeId>,
    devices: tokio::sync::Mutex<Devices>,
    /// What is known of the ways to peers.
    pub(crate) paths: Paths,
    /// The uplink as it was found last, by whomever.
    uplink: Mutex<Option<Interface>>,
}

impl Vxlan {
    /// The backend of the network in `config`, on the uplink that `finder` finds, with routes in the main table.
    ///
    /// # Errors
    ///
    /// [`BackendError::Config`] if one of the options VNI, Port, MTU, GBP, Learning and DirectRouting is invalid.
    pub fn new(config: &NetworkConfig, finder: UplinkFinder) -> Result<Self, BackendError> {
        let options = config.backend().options();
        let settings = read(&options, Family::of(config))?;
        warn_of_unknown_options(KIND, &options, &KNOWN);
        let shared = Shared {
            routes: TableOptions::new(config),
            identity: None,
            devices: Devices::new(finder.namespace(), settings.clone()).into(),
            settings: settings.into(),
            paths: Paths::default(),
            uplink: Mutex::default(),
        };
        Ok(Self { shared: Arc::new(shared), finder })
    }

    /// The same with another mark on its routes: a routing protocol number and a table. Our routes are told from others by them,
    /// and by lying inside of the network.
    #[must_use]
    pub fn with_mark(mut self, protocol: u8, table: u32) -> Self {
        let routes = &mut self.not_yet_shared().routes;
        (routes.protocol, routes.table) = (protocol, table);
        self
    }

    /// The same beside another backend of the node, or with the second mark.
    #[must_use]
    pub fn at(mut self, place: Place) -> Self {
        self.not_yet_shared().routes.at(place);
        self
    }

    /// The same for a node of this name, from which the Ethernet addresses of new devices are derived. Without it that is the
    /// node's public address.
    #[must_use]
    pub fn with_identity(mut self, node: NodeId) -> Self {
        self.not_yet_shared().identity = Some(node);
        self
    }

    /// The same with what is known of the ways to peers: routes to peers that take less say so, and where checksums get damaged they
    /// are computed before packets enter our device. Both follow what is known while the network runs.
    #[must_use]
    pub fn with_paths(mut self, paths: Paths) -> Self {
        self.not_yet_shared().paths = paths;
        self
    }

    /// The same with routes that drop packets to addresses of our own subnet that no pod has.
    #[must_use]
    pub fn with_blackholes(mut self) -> Self {
        self.not_yet_shared().routes.blackholes = true;
        self
    }

    fn not_yet_shared(&mut self) -> &mut Shared {
        Arc::get_mut(&mut self.shared)
            .expect("only networks share it, and they need a backend that is done")
    }

    async fn ensure_devices(
        &self,
        lease: Option<&Lease>,
    ) -> Result<(Uplink, DeviceState), BackendError> {
        let uplink = self.finder.find_for(lease).await?;
        self.shared.set_uplink(uplink.interface.clone());
        let mut state = self.shared.ensure(&uplink.interface, uplink.address(), lease).await;
        // One family that works is enough.
        match state.vteps.is_empty() {
            true if !state.errors.is_empty() => Err(state.errors.swap_remove(0).1),
            _ => Ok((uplink, state)),
        }
    }
}

impl Shared {
    pub(crate) fn settings(&self) -> Settings {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Goes on with other options from the next [`ensure`](Self::ensure) on.
    pub(crate) fn reconfigure(&self, options: &BackendConfig) -> Result<(), BackendError> {
        let running = self.settings();
        let wanted = read(&options.options(), running.families.clone())?;
        let adopted = running.adopt(wanted).map_err(|fixed| BackendError::Unsupported {
            backend: KIND.into(),
            reason: format!("{fixed} are read when it starts"),
        })?;
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner) = adopted;
        Ok(())
    }

    pub(crate) fn uplink(&self) -> Option<Interface> {
        self.uplink.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_uplink(&self, uplink: Interface) {
        *self.uplink.lock().unwrap_or_else(PoisonError::into_inner) = Some(uplink);
    }

    /// Makes the devices fit. `public` is where peers reach this node.
    pub(crate) async fn ensure(
        &self,
        uplink: &Interface,
        public: Option<IpAddr>,
        lease: Option<&Lease>,
    ) -> DeviceState {
        let (settings, node) = (self.settings(), self.node(public));
        self.devices.lock().await.ensure(settings, uplink, lease, &node).await
    }

    /// Gives the device of `family` an Ethernet address that no other node derives.
    pub(crate) async fn change_mac(&self, family: Family, own: &Lease) {
        let purpose = format!("{} {}", family.device(self.settings().vni), own.subnet);
        let mac = derived(&self.node(own.attrs.address()), &purpose);
        self.devices.lock().await.change_mac(family, mac);
    }

    fn node(&self, public: Option<IpAddr>) -> NodeId {
        let by_address = || public.map_or_else(|| NodeId::from(IpAddr::from([0; 4])), NodeId::from);
        self.identity.clone().unwrap_or_else(by_address)
    }

    pub(crate) const fn devices(&self) -> &tokio::sync::Mutex<Devices> {
        &self.devices
    }
}

#[async_trait]
impl Backend for Vxlan {
    /// Makes the devices, because their Ethernet addresses are published.
    async fn advertise<'a>(
        &'a self,
        previous: Option<&'a Lease>,
    ) -> Result<LeaseAttrs, BackendError> {
        let (uplink, _) = self.ensure_devices(previous).await?;
        let Uplink { public_ip, public_ipv6, .. } = uplink;
        let backend_type = KIND.into();
        let mut attrs =
            LeaseAttrs { public_ip, public_ipv6, backend_type, ..LeaseAttrs::default() };
        self.shared.devices.lock().await.publish(&mut attrs);
        Ok(attrs)
    }

    async fn start(&self, lease: &Lease) -> Result<Box<dyn Network>, BackendError> {
        let (uplink, _) = self.ensure_devices(Some(lease)).await?;
        let namespace = self.finder.namespace();
        let watch = self.finder.watch(&uplink)?;
        let shared = Arc::clone(&self.shared);
        let names = shared.devices.lock().await.names();
        let table = shared.routes.open(namespace, names).await?;
        Ok(Box::new(VxlanNetwork::new(shared, namespace.clone(), watch, table)))
    }
}

fn read(options: &Fields, families: Vec<Family>) -> Result<Settings, BackendError> {
    Settings::read(options, families)
        .map_err(|source| BackendError::Config { backend: KIND.into(), source })
}
