//! A host's network card, and what can happen to it.

use std::net::IpAddr;

use flannel_netlink::{
    LinkChange,
    state::{Address, MacAddress, Neighbour},
};
use ipnetwork::IpNetwork;

use crate::{
    Host, ProcessError, TestbedError,
    etcd::program,
    host::UPLINK,
    kernel::{LinkState, addresses, default_route, uplink_mac},
};

/// What the host's own network configuration wants the card to be like.
#[derive(Clone, Debug)]
pub(crate) struct Uplink {
    pub(crate) addresses: Vec<IpNetwork>,
    /// Where default routes lead to; none without.
    pub(crate) gateway: Vec<IpAddr>,
    pub(crate) mtu: u32,
    /// Neighbours that are entered by hand.
    pub(crate) neighbours: Vec<(IpAddr, MacAddress)>,
}

/// Faults and changes of the uplink.
impl Host {
    /// Sets the uplink down, as an administrator does. The kernel removes its routes, and its IPv6 addresses.
    ///
    /// # Errors
    ///
    /// [`TestbedError::NoDevice`] or [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it done or not.
    pub async fn link_down(&self) -> Result<(), TestbedError> {
        let uplink = self.kernel().link(UPLINK).await?;
        let down = LinkChange { up: Some(false), ..LinkChange::default() };
        self.kernel().alter(&uplink, &down).await
    }

    /// Sets the uplink up and restores its addresses and default route, as a host's network configuration does. Other
    /// routes through it stay away.
    ///
    /// # Errors
    ///
    /// [`TestbedError::NoDevice`] or [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it half done; another call finishes it.
    pub async fn link_up(&self) -> Result<(), TestbedError> {
        let wanted = self.state().uplink.clone();
        let uplink = self.kernel().link(UPLINK).await?;
        let up = LinkChange {
            up: Some(true),
            mtu: (uplink.mtu != wanted.mtu).then_some(wanted.mtu),
            ..LinkChange::default()
        };
        self.kernel().alter(&uplink, &up).await?;
        let mut objects = addresses(&uplink, &wanted.addresses);
        for gateway in wanted.gateway {
            objects.push(default_route(gateway, &uplink));
        }
        for (address, mac) in wanted.neighbours {
            objects.push(Neighbour::new(uplink.index, address, mac).into());
        }
        self.kernel().put(&objects).await?;
        self.settle_uplink().await
    }

    /// Pulls the cable out of the switch: the uplink loses its carrier and keeps addresses and routes.
    ///
    /// # Errors
    ///
    /// [`TestbedError::NoDevice`] or [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it done or not.
    pub async fn unplug(&self) -> Result<(), TestbedError> {
        self.switch().set_plugged(self.number(), false).await?;
        self.settle_uplink().await
    }

    /// Puts the cable in again after [`unplug`](Self::unplug).
    ///
    /// # Errors
    ///
    /// [`TestbedError::NoDevice`] or [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it done or not.
    pub async fn plug(&self) -> Result<(), TestbedError> {
        self.switch().set_plugged(self.number(), true).await?;
        self.settle_uplink().await
    }

    /// From now on packets larger than this get lost without a word between the switch and the host, in both directions. The host
    /// sees nothing of it.
    ///
    /// # Errors
    ///
    /// [`TestbedError::NoDevice`] or [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it done or not.
    pub async fn set_path_mtu(&self, bytes: u32) -> Result<(), TestbedError> {
        self.switch().set_mtu(self.number(), bytes).await
    }

    /// Deletes the network card. Everything that was on it or bound to it goes too. Fine if it is gone already.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it done or not.
    pub async fn delete_uplink(&self) -> Result<(), TestbedError> {
        self.kernel().delete(UPLINK).await
    }

    /// Puts in a network card after [`delete_uplink`](Self::delete_uplink), with the same name, Ethernet address, IP
    /// addresses and default route. Its index is another.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it half done; another call finishes it.
    pub async fn create_uplink(&self) -> Result<(), TestbedError> {
        let uplink = self.switch().connect(self.number(), self.kernel(), UPLINK).await?;
        let own = LinkChange { mac: Some(uplink_mac(self.number())), ..LinkChange::default() };
        self.kernel().alter(&uplink, &own).await?;
        self.link_up().await
    }

    /// Gives the uplink these addresses instead of those it has. The default route stays if its gateway is still there.
    ///
    /// While the network card is missing they are remembered for the next one.
    ///
    /// # Errors
    ///
    /// [`TestbedError::Kernel`].
    ///
    /// # Panics
    ///
    /// When there is none.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it half done; [`link_up`](Self::link_up) finishes it.
    pub async fn set_addresses(
        &self,
        wanted: impl IntoIterator<Item = IpNetwork>,
    ) -> Result<(), TestbedError> {
        let wanted: Vec<_> = wanted.into_iter().collect();
        assert!(!wanted.is_empty(), "an uplink has at least one address");
        let before = std::mem::replace(&mut self.state().uplink.addresses, wanted.clone());
        let Some(uplink) = self.kernel().find(UPLINK).await? else {
            return Ok(());
        };
        let mut connection = self.kernel().connection().await;
        for old in before.iter().filter(|old| !wanted.contains(old)) {
            let delete = Address::new(uplink.index, *old).delete();
            match connection.apply_one(delete).await {
                Err(error) if !error.not_found() => {
                    let operation = format!("delete address {old}");
                    return Err(TestbedError::kernel(operation, self.name(), error));
                }
                _ => {}
            }
        }
        drop(connection);
        self.kernel().put(&addresses(&uplink, &wanted)).await
    }

    /// Gives the uplink more addresses. Each stands for a peer that answers on the underlay but has no namespace of its
    /// own, which makes thousands of peers cheap.
    ///
    /// # Errors
    ///
    /// [`TestbedError::NoDevice`] or [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it half done; [`link_up`](Self::link_up) finishes it.
    pub async fn add_addresses(
        &self,
        more: impl IntoIterator<Item = IpNetwork>,
    ) -> Result<(), TestbedError> {
        let more: Vec<_> = more.into_iter().collect();
        self.state().uplink.addresses.extend_from_slice(&more);
        let uplink = self.kernel().link(UPLINK).await?;
        self.kernel().put(&addresses(&uplink, &more)).await
    }

    /// Sets offloads of the uplink as `ethtool -K` does; all others are as with a new veth device.
    ///
    /// # Errors
    ///
    /// [`ProcessError`] without ethtool, or where the kernel does not know one of them.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it half done; another call finishes it.
    pub async fn set_offloads(&self, settings: &str) -> Result<(), ProcessError> {
        for settings in [VETH_OFFLOADS, settings].into_iter().filter(|it| !it.is_empty()) {
            let mut ethtool = program("ethtool");
            ethtool.args(["-K", UPLINK]).args(settings.split(' '));
            self.run(ethtool).await?;
        }
        Ok(())
    }

    /// Sets the uplink's MTU, bytes. The switch keeps its own.
    ///
    /// # Errors
    ///
    /// [`TestbedError::NoDevice`] or [`TestbedError::Kernel`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it done or not.
    pub async fn set_mtu(&self, bytes: u32) -> Result<(), TestbedError> {
        self.state().uplink.mtu = bytes;
        let uplink = self.kernel().link(UPLINK).await?;
        let change = LinkChange { mtu: Some(bytes), ..LinkChange::default() };
        self.kernel().alter(&uplink, &change).await
    }

    /// Waits until the uplink carries packets, or does not, as its own state and the cable's say.
    async fn settle_uplink(&self) -> Result<(), TestbedError> {
        let Some(uplink) = self.kernel().find(UPLINK).await? else {
            return Ok(());
        };
        if uplink.up && self.switch().plugged(self.number()).await? {
            self.switch().settle(self.number()).await?;
            self.kernel().settle(UPLINK, LinkState::Addressed).await
        } else {
            self.kernel().settle(UPLINK, LinkState::Silent).await
        }
    }
}

/// Settings for [`Host::set_offloads`] that change what a host hands over to its network card, or takes from it, starting with those
/// of veth: large packets and unfinished checksums are handed over, and nothing is joined on arrival.
pub const OFFLOADS: [&str; 6] = [
    "",
    "tx off",
    "tx-udp-segmentation off",
    "gro on",
    "gro on rx-gro-list on",
    "gro on rx-udp-gro-forwarding on",
];

const VETH_OFFLOADS: &str =
    "tx on tso on gso on tx-udp-segmentation on gro off rx-gro-list off rx-udp-gro-forwarding off";
