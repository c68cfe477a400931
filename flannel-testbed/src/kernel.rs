//! The few kernel operations that hosts, pods and the switch share, with errors that name the place.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use flannel_netlink::{
    Connection, LinkChange, LinkSpec, Namespace, alter_link, delete_link, ensure_link,
    link_by_name, list_addresses,
    state::{Address, AddressFilter, Link, MacAddress, Object, Route},
};
use ipnetwork::IpNetwork;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{interval, timeout},
};

use crate::{TestbedError, settings};

/// A namespace with its settings made, and a connection to it.
#[derive(Debug)]
pub(crate) struct Kernel {
    place: String,
    namespace: Namespace,
    connection: Mutex<Connection>,
}

impl Kernel {
    /// A fresh anonymous namespace whose loopback device is up.
    pub(crate) async fn create(place: &str) -> Result<Self, TestbedError> {
        let namespace =
            Namespace::create().map_err(|source| TestbedError::namespace(place, source))?;
        settings::make(&namespace, place)?;
        let connection =
            Connection::open(&namespace).map_err(|source| TestbedError::socket(place, source))?;
        let kernel =
            Self { place: place.to_owned(), namespace, connection: Mutex::new(connection) };
        let loopback = kernel.link("lo").await?;
        let up = LinkChange { up: Some(true), ..LinkChange::default() };
        kernel.alter(&loopback, &up).await?;
        Ok(kernel)
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) async fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().await
    }

    pub(crate) async fn find(&self, device: &str) -> Result<Option<Link>, TestbedError> {
        link_by_name(&mut *self.connection().await, device)
            .await
            .map_err(|source| TestbedError::kernel(format!("find {device}"), &self.place, source))
    }

    pub(crate) async fn link(&self, device: &str) -> Result<Link, TestbedError> {
        let found = self.find(device).await?;
        found.ok_or_else(|| TestbedError::NoDevice {
            device: device.to_owned(),
            place: self.place.clone(),
        })
    }

    pub(crate) async fn ensure(&self, spec: &LinkSpec) -> Result<Link, TestbedError> {
        match ensure_link(&mut *self.connection().await, spec).await {
            Ok((link, _)) => Ok(link),
            Err(source) => {
                let operation = format!("make {}", spec.name);
                Err(TestbedError::kernel(operation, &self.place, source))
            }
        }
    }

    pub(crate) async fn alter(&self, link: &Link, change: &LinkChange) -> Result<(), TestbedError> {
        alter_link(&mut *self.connection().await, link.index, change).await.map_err(|source| {
            TestbedError::kernel(format!("alter {}", link.name), &self.place, source)
        })
    }

    /// Fine if there is no such device.
    pub(crate) async fn delete(&self, device: &str) -> Result<(), TestbedError> {
        let Some(link) = self.find(device).await? else {
            return Ok(());
        };
        delete_link(&mut *self.connection().await, link.index)
            .await
            .map_err(|source| TestbedError::kernel(format!("delete {device}"), &self.place, source))
    }

    /// Waits until the device is in `state`.
    ///
    /// The kernel starts a device some time after its other end came up, and drops what is sent before that.
    pub(crate) async fn settle(&self, device: &str, state: LinkState) -> Result<(), TestbedError> {
        let settled = async {
            let mut ticks = interval(POLL);
            loop {
                ticks.tick().await;
                let link = self.link(device).await?;
                let there = match state {
                    LinkState::Addressed => link.running && self.has_link_local(&link).await?,
                    LinkState::Running => link.running,
                    LinkState::Silent => !link.running,
                };
                if there {
                    return Ok(());
                }
            }
        };
        timeout(PATIENCE, settled).await.unwrap_or_else(|_| {
            Err(TestbedError::NotSettled { device: device.to_owned(), place: self.place.clone() })
        })
    }

    /// True on a kernel without IPv6, where nobody has one.
    async fn has_link_local(&self, link: &Link) -> Result<bool, TestbedError> {
        if !settings::ipv6_enabled() {
            return Ok(true);
        }
        let filter = AddressFilter { link: Some(link.index) };
        let listed = list_addresses(&mut *self.connection().await, filter).await;
        let addresses = listed.map_err(|source| {
            TestbedError::kernel(format!("list addresses of {}", link.name), &self.place, source)
        })?;
        let link_local = |address: &Address| match address.address {
            IpNetwork::V4(_) => false,
            IpNetwork::V6(v6) => v6.ip().is_unicast_link_local() && !address.tentative,
        };
        Ok(addresses.iter().any(link_local))
    }

    pub(crate) async fn put(&self, objects: &[Object]) -> Result<(), TestbedError> {
        let requests: Vec<_> = objects.iter().map(Object::replace).collect();
        let results = self.connection().await.apply(&requests).await;
        for (object, result) in objects.iter().zip(results) {
            result.map_err(|source| {
                TestbedError::kernel(format!("put {object}"), &self.place, source)
            })?;
        }
        Ok(())
    }
}

/// What [`Kernel::settle`] waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkState {
    /// It carries packets and has the IPv6 link-local address that the kernel gives it when it does.
    Addressed,
    /// It carries packets.
    Running,
    /// It carries none, because it or its other end is down.
    Silent,
}

/// Addresses of a device, usable at once.
pub(crate) fn addresses(link: &Link, addresses: &[IpNetwork]) -> Vec<Object> {
    let object = |address: &IpNetwork| {
        let mut address = Address::new(link.index, *address);
        address.no_duplicate_detection = true;
        Object::Address(address)
    };
    addresses.iter().map(object).collect()
}

/// A default route through a gateway on a device.
pub(crate) fn default_route(gateway: IpAddr, link: &Link) -> Object {
    let everywhere = match gateway {
        IpAddr::V4(_) => IpNetwork::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => IpNetwork::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    let route = Route::new(everywhere.expect("0 is a prefix length"), RTPROT_STATIC);
    Object::Route(route.via_gateway(gateway, link.index))
}

/// The Ethernet address of a host's uplink. A new network card has the one of the old.
pub(crate) const fn uplink_mac(host: u32) -> MacAddress {
    mac(1, host)
}

/// A locally administered Ethernet address that says what it belongs to.
pub(crate) const fn mac(kind: u8, number: u32) -> MacAddress {
    let [_, a, b, c] = number.to_be_bytes();
    MacAddress::new([0x02, 0xf1, kind, a, b, c])
}

/// Routes made by an administrator, linux/rtnetlink.h.
pub(crate) const RTPROT_STATIC: u8 = 4;
/// The kernel looks at changed carriers at once or, when there are many, once per second.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(1);
