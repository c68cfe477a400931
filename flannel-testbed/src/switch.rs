use std::collections::BTreeMap;

use flannel_netlink::{LinkChange, LinkSpec, LinkSpecKind, Namespace, Request, state::Link};
use ipnetwork::IpNetwork;
use tokio::sync::Mutex;

use crate::{
    TestbedError,
    kernel::{Kernel, LinkState, addresses, mac},
};

/// The underlay: a namespace with a bridge, and one port per host.
///
/// A partition is a second bridge to which the ports of some hosts move. A host sees nothing of it: its uplink keeps its
/// carrier, packets just stop coming.
#[derive(Debug)]
pub(crate) struct Switch {
    kernel: Kernel,
    mtu: u32,
    wiring: Mutex<Wiring>,
}

#[derive(Debug)]
struct Wiring {
    /// The bridge that everybody is on unless separated.
    main: u32,
    /// The other bridges, by name, so that they can be removed.
    islands: Vec<String>,
    /// Which host's port is on which of them.
    separated: BTreeMap<u32, u32>,
    islands_made: u32,
}

impl Switch {
    pub(crate) async fn create(mtu: u32, gateway: &[IpNetwork]) -> Result<Self, TestbedError> {
        let kernel = Kernel::create("switch").await?;
        let mut spec = LinkSpec::new("br0", LinkSpecKind::Bridge);
        spec.mac = Some(mac(0, 0));
        spec.mtu = Some(mtu);
        let bridge = kernel.ensure(&spec).await?;
        kernel.put(&addresses(&bridge, gateway)).await?;
        Ok(Self {
            kernel,
            mtu,
            wiring: Mutex::new(Wiring {
                main: bridge.index,
                islands: Vec::new(),
                separated: BTreeMap::new(),
                islands_made: 0,
            }),
        })
    }

    /// Makes host number `host` a port, whose other end `device` is in `to`, down and without an address.
    pub(crate) async fn connect(
        &self,
        host: u32,
        to: &Kernel,
        device: &str,
    ) -> Result<Link, TestbedError> {
        let kind = LinkSpecKind::Veth {
            peer: device.to_owned(),
            peer_namespace: Some(to.namespace().clone()),
        };
        let mut spec = LinkSpec::new(port_name(host), kind);
        spec.mtu = Some(self.mtu);
        let port = self.kernel.ensure(&spec).await?;
        let wiring = self.wiring.lock().await;
        let bridge = wiring.separated.get(&host).copied().unwrap_or(wiring.main);
        self.kernel.alter(&port, &member_of(bridge)).await?;
        to.link(device).await
    }

    /// Pulls out or puts in the cable of a host.
    pub(crate) async fn set_plugged(&self, host: u32, plugged: bool) -> Result<(), TestbedError> {
        let port = self.kernel.link(&port_name(host)).await?;
        let change = LinkChange { up: Some(plugged), ..LinkChange::default() };
        self.kernel.alter(&port, &change).await
    }

    /// Whether the cable of a host is in.
    pub(crate) async fn plugged(&self, host: u32) -> Result<bool, TestbedError> {
        let port = self.kernel.find(&port_name(host)).await?;
        Ok(port.is_some_and(|port| port.up))
    }

    /// Waits until the port of a host carries packets.
    pub(crate) async fn settle(&self, host: u32) -> Result<(), TestbedError> {
        self.kernel.settle(&port_name(host), LinkState::Running).await
    }

    /// Lets the port of a host forward frames, or drop those of both directions.
    pub(crate) async fn set_forwarding(
        &self,
        host: u32,
        forwarding: bool,
    ) -> Result<(), TestbedError> {
        let name = port_name(host);
        let port = self.kernel.link(&name).await?;
        let request = port_state(port.index, forwarding);
        let result = self.kernel.connection().await.apply_one(request).await;
        result.map_err(|source| {
            TestbedError::kernel(format!("set the state of port {name}"), "switch", source)
        })
    }

    /// Loses frames with packets larger than this between here and a host, in both directions.
    pub(crate) async fn set_mtu(&self, host: u32, bytes: u32) -> Result<(), TestbedError> {
        let port = self.kernel.link(&port_name(host)).await?;
        let change = LinkChange { mtu: Some(bytes), ..LinkChange::default() };
        self.kernel.alter(&port, &change).await
    }

    pub(crate) const fn namespace(&self) -> &Namespace {
        self.kernel.namespace()
    }

    /// Moves these hosts to a bridge of their own.
    pub(crate) async fn separate(&self, hosts: &[u32]) -> Result<(), TestbedError> {
        let mut wiring = self.wiring.lock().await;
        wiring.islands_made += 1;
        let name = format!("island{}", wiring.islands_made);
        let mut spec = LinkSpec::new(&name, LinkSpecKind::Bridge);
        spec.mtu = Some(self.mtu);
        let island = self.kernel.ensure(&spec).await?;
        wiring.islands.push(name);
        for host in hosts {
            wiring.separated.insert(*host, island.index);
            self.move_port(*host, island.index).await?;
        }
        Ok(())
    }

    /// Moves everybody back to the main bridge.
    pub(crate) async fn heal(&self) -> Result<(), TestbedError> {
        let mut wiring = self.wiring.lock().await;
        while let Some((host, _)) = wiring.separated.pop_first() {
            self.move_port(host, wiring.main).await?;
        }
        while let Some(island) = wiring.islands.pop() {
            self.kernel.delete(&island).await?;
        }
        Ok(())
    }

    /// A host whose network card is missing has no port to move.
    async fn move_port(&self, host: u32, bridge: u32) -> Result<(), TestbedError> {
        match self.kernel.find(&port_name(host)).await? {
            Some(port) => self.kernel.alter(&port, &member_of(bridge)).await,
            None => Ok(()),
        }
    }
}

fn port_name(host: u32) -> String {
    format!("port{host}")
}

fn member_of(bridge: u32) -> LinkChange {
    LinkChange { controller: Some(bridge), up: Some(true), ..LinkChange::default() }
}

/// `RTM_SETLINK` of the bridge family with `IFLA_PROTINFO { IFLA_BRPORT_STATE }`.
///
/// A port that does not forward is "disabled" and not "blocking", because a bridge without the spanning tree protocol
/// sets a blocking port to forwarding at once.
fn port_state(port: u32, forwarding: bool) -> Request {
    let state = if forwarding { BR_STATE_FORWARDING } else { BR_STATE_DISABLED };
    let [p0, p1, p2, p3] = port.to_ne_bytes();
    let mut body = vec![AF_BRIDGE, 0, 0, 0, p0, p1, p2, p3, 0, 0, 0, 0, 0, 0, 0, 0];
    for (length, kind) in [(12_u16, IFLA_PROTINFO | NLA_F_NESTED), (5, IFLA_BRPORT_STATE)] {
        body.extend_from_slice(&length.to_ne_bytes());
        body.extend_from_slice(&kind.to_ne_bytes());
    }
    body.extend_from_slice(&[state, 0, 0, 0]);
    Request::new(RTM_SETLINK, 0, &body)
}

// linux/rtnetlink.h, linux/if_link.h, linux/if_bridge.h
const RTM_SETLINK: u16 = 19;
const AF_BRIDGE: u8 = 7;
const IFLA_PROTINFO: u16 = 12;
const IFLA_BRPORT_STATE: u16 = 1;
const NLA_F_NESTED: u16 = 0x8000;
const BR_STATE_DISABLED: u8 = 0;
const BR_STATE_FORWARDING: u8 = 3;
