//! Our own devices, created and kept as they should be.

use std::{path::PathBuf, sync::Arc};

use flannel_backend::opened;
use flannel_core::BackendError;
use flannel_netlink::{
    Connection, Ensured, KernelError, LinkSpec, LinkSpecKind, LogLimit, Namespace, delete_link,
    ensure_link,
    iface::Interface,
    link_by_name,
    state::{Link, LinkKind},
    wireguard::{Device, PeerChange, PublicKey, SecretKey, Wireguard},
};
use ipnetwork::IpNetwork;
use tokio::time::Instant;
use tracing::info;

use crate::{
    KIND,
    config::{EngineChoice, Instance, KERNEL, OVERHEAD, Settings, TunnelSpec, USERSPACE},
    key_file,
    userspace::{EngineStats, Userspace},
};

/// The devices of one node, and its private key.
#[derive(Debug)]
pub(crate) struct Devices {
    namespace: Namespace,
    instance: Instance,
    key_file: PathBuf,
    /// Whether the key's file goes with the devices.
    pub(crate) renews_key: bool,
    /// Read once.
    key: Option<SecretKey>,
    connection: Option<Connection>,
    wireguard: Option<Wireguard>,
    userspace: Userspace,
    /// `None` before the first device.
    is_userspace: Option<bool>,
    stats: Arc<EngineStats>,
    log: LogLimit,
}

/// A device as it was when [`Devices::ensure`] was done with it.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    pub(crate) spec: TunnelSpec,
    pub(crate) link: Link,
    pub(crate) device: Device,
    pub(crate) ensured: Ensured,
}

impl Devices {
    pub(crate) fn new(
        namespace: &Namespace,
        networks: &[IpNetwork],
        instance: Instance,
        key_file: PathBuf,
        stats: Arc<EngineStats>,
    ) -> Self {
        Self {
            namespace: namespace.clone(),
            instance,
            key_file,
            renews_key: false,
            key: None,
            connection: None,
            wireguard: None,
            userspace: Userspace::new(namespace, networks, Arc::clone(&stats)),
            is_userspace: None,
            stats,
            log: LogLimit::default(),
        }
    }

    /// Makes the devices fit, and writes nothing to those that do. A family that the uplink has no address of has its device as well:
    /// without one, its packets between pods would follow the host's other routes, in the clear.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave a device half made; the next call finishes it.
    pub(crate) async fn ensure(
        &mut self,
        settings: &Settings,
        uplink: &Interface,
    ) -> Result<Vec<Tunnel>, BackendError> {
        let mtu = settings.device_mtu(uplink);
        if mtu < settings.smallest_mtu() {
            return Err(too_narrow(&uplink.name, uplink.mtu, settings.smallest_mtu()));
        }
        let key = match &self.key {
            Some(key) => key.clone(),
            None => self.key.insert(key_file::load(&self.key_file)?).clone(),
        };
        let is_userspace = self.is_userspace(settings.engine).await?;
        let mut tunnels = Vec::new();
        for spec in settings.tunnels() {
            tunnels.push(match is_userspace {
                true => self.ensure_userspace(spec, mtu, &key).await?,
                false => self.ensure_one(spec, mtu, &key).await?,
            });
        }
        Ok(tunnels)
    }

    /// Whether threads of this process encrypt packets, which stays as it is once it is decided.
    async fn is_userspace(&mut self, engine: EngineChoice) -> Result<bool, BackendError> {
        if let Some(is_userspace) = self.is_userspace {
            return Ok(is_userspace);
        }
        let is_userspace = match engine {
            EngineChoice::Kernel => false,
            EngineChoice::Userspace => true,
            EngineChoice::Auto => {
                // Asked without making a device: one of an earlier run may be there.
                let asked = self.wireguard()?.is_supported().await;
                let has_it = asked.map_err(|error| BackendError::Kernel {
                    operation: "ask the kernel for WireGuard".into(),
                    source: error.into(),
                })?;
                if !has_it {
                    info!("the kernel has no WireGuard: threads of this process encrypt packets");
                }
                !has_it
            }
        };
        self.stats.chose(if is_userspace { USERSPACE } else { KERNEL });
        self.is_userspace = Some(is_userspace);
        Ok(is_userspace)
    }

    async fn ensure_userspace(
        &mut self,
        spec: TunnelSpec,
        mtu: u32,
        key: &SecretKey,
    ) -> Result<Tunnel, BackendError> {
        let name = spec.name;
        let connection = opened(&mut self.connection, &self.namespace)?;
        let failed = |error| refused(name, error);
        let mut before = link_by_name(connection, name).await.map_err(failed)?;
        if let Some(link) = before.take_if(|link| link.kind == LinkKind::Other(KIND.into())) {
            delete_link(connection, link.index).await.map_err(failed)?;
        }
        let (link, ensured) = self.userspace.ensure(&spec, before, mtu, key).await?;
        let device = self.read(&link).await?;
        Ok(Tunnel { spec, link, device, ensured })
    }

    async fn ensure_one(
        &mut self,
        spec: TunnelSpec,
        mtu: u32,
        key: &SecretKey,
    ) -> Result<Tunnel, BackendError> {
        let name = spec.name;
        let mut wanted = LinkSpec::new(name, LinkSpecKind::Wireguard);
        wanted.mtu = Some(mtu);
        let connection = opened(&mut self.connection, &self.namespace)?;
        let (link, mut ensured) =
            ensure_link(connection, &wanted).await.map_err(|error| refused(name, error))?;
        let mut device = self.read(&link).await?;
        if !self.is_right(&spec, &device) {
            let set = self.wireguard()?.set(link.index, key, spec.port).await;
            set.map_err(|error| match error.errno {
                ADDRESS_IN_USE => port_in_use(&spec, &error),
                _ => refused(name, error),
            })?;
            device = self.read(&link).await?;
            if ensured == Ensured::Adopted {
                ensured = Ensured::Altered;
            }
        }
        if ensured != Ensured::Adopted && self.log.allows(Instant::now()).is_some() {
            let key = device.public_key.map(tracing::field::display);
            info!(device = name, mtu, port = spec.port, key, "device {}", past_tense(ensured));
        }
        Ok(Tunnel { spec, link, device, ensured })
    }

    /// The device as it is now.
    pub(crate) async fn read(&mut self, link: &Link) -> Result<Device, BackendError> {
        if self.is_userspace == Some(true) {
            return Ok(self.userspace.read(&link.name, self.key.as_ref()));
        }
        self.wireguard()?.get(link.index).await.map_err(|error| refused(&link.name, error))
    }

    /// Whether a device has the key and the port that [`ensure`](Self::ensure) gives it.
    pub(crate) fn is_right(&self, spec: &TunnelSpec, device: &Device) -> bool {
        self.key.is_some() && device.private_key == self.key && device.listen_port == spec.port
    }

    pub(crate) async fn set_peers(
        &mut self,
        link: &Link,
        changes: &[PeerChange],
    ) -> Result<Vec<Result<(), KernelError>>, BackendError> {
        if self.is_userspace == Some(true) {
            self.userspace.set_peers(&link.name, changes).await?;
            return Ok(vec![Ok(()); changes.len()]);
        }
        Ok(self.wireguard()?.set_peers(link.index, changes).await)
    }

    /// Deletes the devices; all of them, even if one is refused. Then the private key, if another one is wanted next time.
    pub(crate) async fn delete(&mut self) -> Result<(), BackendError> {
        self.userspace.stop();
        let mut result = Ok(());
        for name in self.instance.devices() {
            let connection = opened(&mut self.connection, &self.namespace)?;
            let deleted = match link_by_name(connection, name).await {
                Ok(Some(Link { index, kind: LinkKind::Other(kind), .. }))
                    if kind == KIND || kind == TUN =>
                {
                    delete_link(connection, index).await
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error),
            };
            let refused = |error: KernelError| BackendError::Kernel {
                operation: format!("delete device {name}"),
                source: error.into(),
            };
            let deleted = deleted.map_err(refused);
            result = result.and(deleted);
        }
        if self.renews_key {
            self.key = None;
            let removed = key_file::remove(&self.key_file);
            result = result.and(removed);
        }
        result
    }

    fn wireguard(&mut self) -> Result<&mut Wireguard, BackendError> {
        if self.wireguard.is_none() {
            let opened = Wireguard::open(&self.namespace);
            self.wireguard = Some(opened.map_err(|error| BackendError::Kernel {
                operation: "look at WireGuard devices".into(),
                source: error.into(),
            })?);
        }
        Ok(self.wireguard.as_mut().expect("it was opened above"))
    }
}

/// The public key, which the kernel derives from the private one.
pub(crate) fn public_key(tunnels: &[Tunnel]) -> Option<PublicKey> {
    tunnels.iter().find_map(|tunnel| tunnel.device.public_key)
}

fn too_narrow(uplink: &str, mtu: u32, smallest: u32) -> BackendError {
    let needed = smallest + OVERHEAD;
    let reason =
        format!("{uplink} has an MTU of {mtu} bytes, and pods over WireGuard need {needed}");
    BackendError::Interface { source: reason.into() }
}

fn port_in_use(spec: &TunnelSpec, error: &KernelError) -> BackendError {
    BackendError::Kernel {
        operation: format!("let {} listen on UDP port {}", spec.name, spec.port),
        source: format!("{error}: stop what uses the port, or set another {}", spec.port_option)
            .into(),
    }
}

fn refused(name: &str, error: KernelError) -> BackendError {
    if error.unsupported() {
        return BackendError::Unsupported {
            backend: KIND.into(),
            reason: format!(
                "the kernel has no WireGuard ({error}): load the module wireguard, boot a kernel that has it (Linux 5.6 or newer), or \
                 set Engine to userspace"
            ),
        };
    }
    BackendError::Kernel { operation: format!("set up device {name}"), source: error.into() }
}

const fn past_tense(ensured: Ensured) -> &'static str {
    match ensured {
        Ensured::Altered => "altered",
        Ensured::Created => "created",
        _ => "of another kind replaced",
    }
}

/// The kind of the devices of the userspace engine.
const TUN: &str = "tun";
/// `EADDRINUSE`
const ADDRESS_IN_USE: i32 = 98;

#[cfg(test)]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn an_uplink_below_the_overhead_is_told_the_mtu_that_is_enough() {
        let error = too_narrow("eth0", 68, 1280);
        let text = error.source().unwrap().to_string();
        assert!(text.ends_with("an MTU of 68 bytes, and pods over WireGuard need 1360"), "{text}");
    }

    #[test]
    fn where_the_kernel_has_no_wireguard_the_error_says_what_to_do() {
        // EOPNOTSUPP, which a kernel says to a kind of device that it does not know.
        let error = refused("flannel-wg", KernelError::new(95));
        assert!(!error.is_retryable());
        let text = error.to_string();
        for words in ["the kernel has no WireGuard", "Linux 5.6", "Engine to userspace"] {
            assert!(text.contains(words), "{text}");
        }
    }
}
