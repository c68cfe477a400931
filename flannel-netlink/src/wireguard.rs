//! WireGuard devices: their keys, ports and peers.
//!
//! The device itself is made as [`LinkSpecKind::Wireguard`](crate::LinkSpecKind::Wireguard). The kernel sends no notifications of
//! what is set here: to know what others change, read it.

mod keys;
mod messages;

use std::{collections::BTreeSet, fmt, net::SocketAddr, time::Duration};

use ipnetwork::IpNetwork;

pub use self::keys::{InvalidKey, PublicKey, SecretKey};
use self::messages::{fold, get_device, set_device, set_peers};
use crate::{Connection, KernelError, Namespace, OpenError, generic};

/// Reads and sets the WireGuard devices of one namespace.
#[derive(Debug)]
pub struct Wireguard {
    connection: Connection,
    /// The number of WireGuard in generic netlink; `None` before the kernel was asked.
    family: Option<u16>,
}

/// A device as the kernel shows it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct Device {
    /// The private key, which the kernel shows to those who may set it.
    pub private_key: Option<SecretKey>,
    /// The public key that the kernel derives from it.
    pub public_key: Option<PublicKey>,
    /// The UDP port.
    pub listen_port: u16,
    /// In the order in which they were added.
    pub peers: Vec<Peer>,
}

/// A peer of a device as the kernel shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Peer {
    /// How it is configured. The endpoint is what was set, or where the peer's last packet came from.
    pub config: PeerConfig,
    /// When the last handshake was completed, since 1970; `None` for never.
    pub last_handshake: Option<Duration>,
    /// Bytes sent to it, including those of handshakes that nobody answers.
    pub sent: u64,
}

/// The configuration of a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerConfig {
    /// Its public key, by which the kernel knows it.
    pub key: PublicKey,
    /// What both ends must know as well.
    pub preshared_key: Option<SecretKey>,
    /// Where packets to it go; `None` leaves that as it is.
    pub endpoint: Option<SocketAddr>,
    /// After so many seconds without a packet to it one is sent; 0 for never.
    pub keepalive: u16,
    /// The addresses behind it: packets to them are for it, and packets of other sources from it are dropped. The last peer that
    /// an address is given to has it.
    pub allowed_ips: BTreeSet<IpNetwork>,
}

/// A change to one peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PeerChange {
    /// The peer is removed, if it is there.
    Remove(PublicKey),
    /// The peer is added or altered to be so.
    Set(PeerConfig),
}

impl PeerChange {
    /// The key of the peer.
    pub const fn key(&self) -> PublicKey {
        match self {
            Self::Remove(key) | Self::Set(PeerConfig { key, .. }) => *key,
        }
    }
}

impl fmt::Display for PeerChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remove(key) => write!(f, "remove the WireGuard peer {key}"),
            Self::Set(config) => write!(f, "set the WireGuard peer {}", config.key),
        }
    }
}

impl Wireguard {
    /// Opens a socket in `namespace`. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    ///
    /// [`OpenError`] when the namespace cannot be entered or the socket cannot be made.
    pub fn open(namespace: &Namespace) -> Result<Self, OpenError> {
        Ok(Self { connection: Connection::open_generic(namespace)?, family: None })
    }

    /// Whether the kernel has WireGuard; one that has it as a module loads that.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn is_supported(&mut self) -> Result<bool, KernelError> {
        match self.family().await {
            Ok(_) => Ok(true),
            Err(error) if error.not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The device of this index.
    ///
    /// # Errors
    ///
    /// What the kernel said; [`KernelError::not_found`] if there is no such device, or the kernel has no WireGuard.
    ///
    /// # Cancel safety
    ///
    /// Reads only.
    pub async fn get(&mut self, link: u32) -> Result<Device, KernelError> {
        let request = get_device(self.family().await?, link);
        self.connection.wiped().dump_into(&request, Device::default, fold).await
    }

    /// Sets the private key and the port of the device of this index.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves it done or not.
    pub async fn set(
        &mut self,
        link: u32,
        private_key: &SecretKey,
        listen_port: u16,
    ) -> Result<(), KernelError> {
        let request = set_device(self.family().await?, link, private_key, listen_port);
        self.connection.wiped().apply_one(request).await
    }

    /// Makes `changes` to the peers of the device of this index, many in one message, and says for each whether the kernel did it. A
    /// message that fails may have made a part of its changes; making them again does no harm.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves a part of them made.
    pub async fn set_peers(
        &mut self,
        link: u32,
        changes: &[PeerChange],
    ) -> Vec<Result<(), KernelError>> {
        let family = match self.family().await {
            Ok(family) => family,
            Err(error) => return vec![Err(error); changes.len()],
        };
        let mut results = vec![Ok(()); changes.len()];
        let (requests, covered): (Vec<_>, Vec<_>) =
            set_peers(family, link, changes).map(|batch| (batch.request, batch.changes)).unzip();
        let answers = self.connection.wiped().apply(&requests).await;
        for (answer, covered) in answers.into_iter().zip(covered) {
            if answer.is_err() {
                results[covered].fill(answer);
            }
        }
        results
    }

    async fn family(&mut self) -> Result<u16, KernelError> {
        if let Some(family) = self.family {
            return Ok(family);
        }
        let family = generic::family(&mut self.connection, "wireguard").await?;
        self.family = Some(family);
        Ok(family)
    }
}
