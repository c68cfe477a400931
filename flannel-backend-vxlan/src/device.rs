//! Our own devices, made and kept as they should be.

mod checksums;
mod sysctl;
mod vtep_device;

use std::collections::BTreeSet;

use flannel_backend::opened;
use flannel_core::{BackendError, Lease, LeaseAttrs, NodeId};
use flannel_netlink::{
    Connection, Ensured, KernelError, Namespace, delete_link,
    iface::Interface,
    link_by_name, list_links,
    state::{IpFamily, Link, LinkKind, MacAddress},
};
use tokio::time::Instant;
use tracing::{info, warn};

use self::{
    checksums::Repaired,
    sysctl::{forward, no_router_advertisements},
    vtep_device::{Device, is_same, vxlan_port},
};
use crate::{config::Settings, family::Family, lease_data, plan::Vtep};

/// The devices of one node, one for each family.
#[derive(Debug)]
pub(crate) struct Devices {
    namespace: Namespace,
    connection: Option<Connection>,
    settings: Settings,
    devices: Vec<Device>,
    /// The families whose checksums are computed before packets enter the device.
    software_checksums: BTreeSet<IpFamily>,
}

/// What became of the devices.
#[derive(Debug, Default)]
pub(crate) struct DeviceState {
    /// The devices that are there.
    pub(crate) vteps: Vec<Vtep>,
    /// The same as the kernel should show them.
    pub(crate) links: Vec<Link>,
    /// When to look again, because somebody keeps altering one.
    pub(crate) due: Option<Instant>,
    /// What somebody else had changed and is as it should be again, in words.
    pub(crate) repaired: Vec<String>,
    /// Why the device of a family is missing.
    pub(crate) errors: Vec<(Family, BackendError)>,
}

impl Devices {
    pub(crate) fn new(namespace: &Namespace, settings: Settings) -> Self {
        let device = |family: &Family| Device::new(*family, family.device(settings.vni));
        let devices = settings.families.iter().map(device).collect();
        Self {
            namespace: namespace.clone(),
            connection: None,
            settings,
            devices,
            software_checksums: BTreeSet::new(),
        }
    }

    /// From now on the checksums of these families are computed before packets enter the device. Of others they stay as they are.
    pub(crate) fn compute_checksums(&mut self, families: BTreeSet<IpFamily>) {
        self.software_checksums = families;
    }

    /// Makes the devices fit `uplink` and `settings`. What is right is not touched.
    ///
    /// The Ethernet address of a new device is that of the `previous` lease, or else derived from the node's name.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a device half made; the next call finishes it.
    pub(crate) async fn ensure(
        &mut self,
        settings: Settings,
        uplink: &Interface,
        previous: Option<&Lease>,
        node: &NodeId,
    ) -> DeviceState {
        self.settings = settings;
        let mut state = DeviceState::default();
        for index in 0..self.devices.len() {
            // A family that has never had an address goes without a device, and the other one serves.
            if self.devices[index].family.local(uplink).is_none() {
                continue;
            }
            if let Err(error) = self.ensure_one(index, uplink, previous, node, &mut state).await {
                state.errors.push((self.devices[index].family, error));
            }
        }
        self.ensure_forwarding(&mut state);
        self.ensure_checksums(&mut state).await;
        state
    }

    /// What our devices let us publish.
    pub(crate) fn publish(&self, attrs: &mut LeaseAttrs) {
        for device in &self.devices {
            let data = device.mac.map(|mac| lease_data::print(self.settings.vni, mac));
            match device.family {
                Family::V4 => attrs.backend_data = data,
                Family::V6 => attrs.backend_v6_data = data,
            }
        }
    }

    /// The Ethernet addresses that peers know.
    pub(crate) fn macs(&self) -> Vec<(Family, MacAddress)> {
        self.devices.iter().filter_map(|device| Some((device.family, device.mac?))).collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.devices.iter().map(|device| device.name.clone()).collect()
    }

    /// Deletes the devices; all of them, even if one is refused.
    pub(crate) async fn delete(&mut self) -> Result<(), BackendError> {
        let mut result = Ok(());
        let connection = opened(&mut self.connection, &self.namespace)?;
        for device in &mut self.devices {
            device.last = None;
            let refused = |error: KernelError| BackendError::Kernel {
                operation: format!("delete device {}", device.name),
                source: error.into(),
            };
            let deleted = match link_by_name(connection, &device.name).await {
                Ok(Some(link)) if is_of(&link, &self.settings) => {
                    delete_link(connection, link.index).await
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            let deleted = deleted.map_err(refused);
            result = result.and(deleted);
        }
        result
    }

    /// An error is told once: it does not come and go.
    fn ensure_forwarding(&mut self, state: &mut DeviceState) {
        for device in &mut self.devices {
            if !state.vteps.iter().any(|vtep| vtep.family == device.family) {
                continue;
            }
            match forward(&self.namespace, device.family, &device.name) {
                Ok(false) => device.forwarding_error = None,
                Ok(true) => {
                    state.repaired.push(format!("forwarding of {} switched off", device.name))
                }
                Err(error) if device.forwarding_error.as_ref() != Some(&error) => {
                    warn!(device = device.name, error, "cannot make the device forward");
                    device.forwarding_error = Some(error);
                }
                Err(_) => {}
            }
        }
    }

    /// Gives the device of a family another Ethernet address, because a peer with a better right to it has the one that it has.
    pub(crate) fn change_mac(&mut self, family: Family, mac: MacAddress) {
        for device in self.devices.iter_mut().filter(|device| device.family == family) {
            info!(device = device.name, before = device.mac.map(tracing::field::display), now = %mac, "a peer has our Ethernet address: taking another one");
            (device.mac, device.last) = (Some(mac), None);
        }
    }

    async fn ensure_checksums(&mut self, state: &mut DeviceState) {
        let Self { namespace, devices, software_checksums, .. } = self;
        for device in devices {
            let vtep = state.vteps.iter().find(|vtep| vtep.family == device.family);
            let Some(vtep) = vtep.filter(|vtep| software_checksums.contains(&vtep.family.ip()))
            else {
                continue;
            };
            match device.checksums.compute(namespace, &device.name, vtep.link).await {
                Repaired::No => {}
                Repaired::Postponed(due) => state.due = state.due.into_iter().chain([due]).min(),
                Repaired::Yes(what) => state.repaired.push(what),
            }
        }
    }

    async fn ensure_one(
        &mut self,
        index: usize,
        uplink: &Interface,
        previous: Option<&Lease>,
        node: &NodeId,
        state: &mut DeviceState,
    ) -> Result<(), BackendError> {
        let Self { namespace, connection, settings, devices, .. } = self;
        let device = &mut devices[index];
        let wanted = device.wanted(settings, uplink)?;
        let connection = opened(connection, namespace)?;
        let name = device.name.clone();
        let refused = |error: KernelError| BackendError::Kernel {
            operation: format!("set up device {name}"),
            source: error.into(),
        };
        let actual = match link_by_name(connection, &device.name).await {
            Ok(actual) => actual,
            // It is there until the kernel says that it is not, and so is what leads through it.
            Err(error) => {
                if let Some((wanted, link)) = &device.last {
                    device.add_to(state, *wanted, link);
                }
                return Err(refused(error));
            }
        };
        let now = Instant::now();
        let left = device.last.as_ref().filter(|(before, _)| *before == wanted);
        if let Some((_, left)) = left {
            let there = actual.as_ref().filter(|actual| actual.index == left.index);
            let is_right = there.is_some_and(|actual| is_same(actual, left));
            let due = device.repairs.due(now).filter(|_| !is_right);
            if is_right || due.is_some() {
                if let Some(link) = there.map(|_| left).or(actual.as_ref()) {
                    device.add_to(state, wanted, link);
                }
                state.due = state.due.into_iter().chain(due).min();
                return Ok(());
            }
        }
        let was_altered = left.is_some();
        let mac = device.choose_mac(actual.as_ref(), previous, node);
        let made = device.make(connection, settings, wanted, mac, actual.as_ref()).await;
        let (link, ensured) = match made {
            Ok(made) => made,
            Err(error) => {
                return Err(match conflict(connection, settings, &error).await {
                    Some(conflict) => BackendError::Kernel {
                        operation: format!("set up device {name}"),
                        source: format!(
                            "device {conflict} has VNI {} and the same port: delete it, or give one of the two another VNI or Port",
                            settings.vni
                        )
                        .into(),
                    },
                    // Whoever tries again asks for the same.
                    None if actual.is_none() && error.invalid() => BackendError::Unsupported {
                        backend: crate::KIND.into(),
                        reason: format!("the kernel refuses device {name}: {error}"),
                    },
                    None => refused(error),
                });
            }
        };
        if was_altered {
            device.repairs.done(now);
        }
        if ensured != Ensured::Altered || device.last.is_none() {
            no_router_advertisements(namespace, &device.name);
        }
        device.log(&link, ensured, wanted, now);
        device.add_to(state, wanted, &link);
        // As it should be: somebody may have been faster than the reading back.
        device.last = Some((wanted, Link { mac: device.mac, mtu: wanted.mtu, up: true, ..link }));
        Ok(())
    }
}

/// The device that takes what is to come to ours, if that is why ours cannot be made.
async fn conflict(
    connection: &mut Connection,
    settings: &Settings,
    error: &KernelError,
) -> Option<String> {
    if !error.exists() {
        return None;
    }
    let is_ours = |link: &Link| {
        settings.families.iter().any(|family| family.device(settings.vni) == link.name)
    };
    let port = Some(settings.port.unwrap_or(USUAL_PORT));
    let links = list_links(connection).await.ok()?;
    let mut others = links.into_iter().filter(|link| is_of(link, settings) && !is_ours(link));
    others.find(|link| vxlan_port(link) == port).map(|link| link.name)
}

fn is_of(link: &Link, settings: &Settings) -> bool {
    matches!(&link.kind, LinkKind::Vxlan(vxlan) if vxlan.vni == settings.vni.number())
}

/// What Linux takes if no port is given.
const USUAL_PORT: u16 = 8472;
