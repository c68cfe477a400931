//! Our device as the kernel shows it: whose it is, and made to be as it should.

use std::{fs, path::PathBuf, time::Duration};

use flannel_backend::opened;
use flannel_core::BackendError;
use flannel_netlink::{
    Connection, KernelError, LinkChange, Namespace, alter_link, delete_link, link_by_name,
    list_addresses,
    state::{AddressFilter, Link, LinkKind},
};
use ipnetwork::IpNetwork;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::tun::Tun;

/// The TUN device of one node.
#[derive(Debug)]
pub struct Device {
    /// The backend that it belongs to, for errors.
    backend: &'static str,
    namespace: Namespace,
    connection: Option<Connection>,
    networks: Vec<IpNetwork>,
    /// The name that it should have, and the one that it has.
    wanted: String,
    name: Option<String>,
    /// Whether nobody but the engine can send from our own addresses.
    is_checked: bool,
    /// How the device was left.
    left: Option<Link>,
}

impl Device {
    /// The device of `backend` that is to be called `wanted`, for packets of `networks`. `is_checked` says whether nobody but the
    /// engine can send from the device's own addresses.
    pub fn new(
        backend: &'static str,
        namespace: &Namespace,
        wanted: &str,
        networks: &[IpNetwork],
        is_checked: bool,
    ) -> Self {
        Self {
            backend,
            namespace: namespace.clone(),
            connection: None,
            networks: networks.to_vec(),
            wanted: wanted.to_owned(),
            name: None,
            is_checked,
            left: None,
        }
    }

    /// The name that the device has, or would have if it were made now: the wanted one, or else the first that is free, as with
    /// flannel. A device of ours keeps its name.
    pub async fn name(&mut self) -> Result<String, BackendError> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        for name in candidates(&self.wanted.clone()) {
            let connection = opened(&mut self.connection, &self.namespace)?;
            let link =
                link_by_name(connection, &name).await.map_err(|error| refused(&name, error))?;
            let is_ours = match &link {
                None => true,
                Some(link) => self.is_ours(link).await?,
            };
            if is_ours {
                self.name = Some(name.clone());
                return Ok(name);
            }
            info!(device = name, "somebody else's device has this name: taking another");
        }
        Err(BackendError::Unsupported {
            backend: self.backend.into(),
            reason: format!(
                "{} and all names like it are taken by other devices: delete one",
                self.wanted
            ),
        })
    }

    /// Makes the device and sets it up with this MTU. What is right is not touched.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future may leave the device half made; the next call finishes it.
    pub async fn ensure(&mut self, mtu: u32) -> Result<Link, BackendError> {
        let name = self.name().await?;
        let connection = opened(&mut self.connection, &self.namespace)?;
        let failed = |error| refused(&name, error);
        let mut actual = link_by_name(connection, &name).await.map_err(failed)?;
        let how = match &actual {
            Some(link) => match &self.left {
                Some(left) if is_same(left, link) && left.mtu == mtu && link.queue >= QUEUE => {
                    return Ok(link.clone());
                }
                Some(left) if left.mtu == mtu => "device put right",
                Some(_) => "device follows its link",
                None => "device adopted",
            },
            None => {
                // It stays though nobody is attached.
                Tun::attach(&self.namespace, &name, 1).map_err(|source| BackendError::Kernel {
                    operation: format!("make the TUN device {name}"),
                    source: source.into(),
                })?;
                actual = link_by_name(connection, &name).await.map_err(failed)?;
                "device created"
            }
        };
        let link = actual.ok_or_else(|| BackendError::Kernel {
            operation: format!("make the TUN device {name}"),
            source: "it vanished right after it was made".into(),
        })?;
        let change = LinkChange {
            mtu: (link.mtu != mtu).then_some(mtu),
            queue: (link.queue < QUEUE).then_some(QUEUE),
            up: (!link.up).then_some(true),
            no_link_local: link.link_local,
            ..LinkChange::default()
        };
        if change.mtu.is_some()
            || change.queue.is_some()
            || change.up.is_some()
            || change.no_link_local
        {
            // In this order: a device that is up would have a link-local address at once.
            let quiet = LinkChange { up: None, ..change.clone() };
            alter_link(connection, link.index, &quiet).await.map_err(failed)?;
            if change.up.is_some() {
                let up = LinkChange { up: Some(true), ..LinkChange::default() };
                alter_link(connection, link.index, &up).await.map_err(failed)?;
            }
        }
        self.hear_ourselves(&name);
        info!(device = name, mtu, "{how}");
        let queue = link.queue.max(QUEUE);
        let link = Link { mtu, queue, up: true, link_local: false, ..link };
        self.left = Some(link.clone());
        Ok(link)
    }

    /// Lets packets into the host that the engine sends from the device's own address: what it tells senders of packets that
    /// cannot be carried. The kernel takes them for forged otherwise, and they are lost as flannel's are.
    fn hear_ourselves(&self, name: &str) {
        let path = PathBuf::from("/proc/sys/net/ipv4/conf").join(name).join("accept_local");
        let wanted = if self.is_checked { "1" } else { "0" };
        let written = self.namespace.run(|| match fs::read_to_string(&path) {
            // Read first: /proc/sys may be read-only and right.
            Ok(current) if current.trim() == wanted => Ok(()),
            Ok(_) => fs::write(&path, wanted),
            Err(error) => Err(error),
        });
        let error = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        warn!(device = name, path = %path.display(), error, "senders are not told of packets that cannot be carried");
    }

    /// Waits until the device carries packets: the kernel starts that in its own time after somebody attaches.
    pub async fn settle(&mut self) -> Result<(), BackendError> {
        let name = self.name().await?;
        let connection = opened(&mut self.connection, &self.namespace)?;
        let deadline = Instant::now() + SETTLES;
        while Instant::now() < deadline {
            let link =
                link_by_name(connection, &name).await.map_err(|error| refused(&name, error))?;
            if link.is_none_or(|link| link.running) {
                break;
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Deletes the device.
    pub async fn delete(&mut self) -> Result<(), BackendError> {
        let name = self.name().await?;
        self.left = None;
        let connection = opened(&mut self.connection, &self.namespace)?;
        let deleted = match link_by_name(connection, &name).await {
            Ok(Some(link)) if is_tun(&link) => delete_link(connection, link.index).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        deleted.map_err(|source| BackendError::Kernel {
            operation: format!("delete device {name}"),
            source: source.into(),
        })
    }

    /// Whether a device is one that an earlier run has left: a TUN device whose addresses, if it has any, are single ones inside
    /// of our networks.
    async fn is_ours(&mut self, link: &Link) -> Result<bool, BackendError> {
        if !is_tun(link) {
            return Ok(false);
        }
        let connection = opened(&mut self.connection, &self.namespace)?;
        let filter = AddressFilter { link: Some(link.index) };
        let addresses =
            list_addresses(connection, filter).await.map_err(|error| refused(&link.name, error))?;
        let is_ours = |block: IpNetwork| match block {
            IpNetwork::V6(v6) if v6.ip().is_unicast_link_local() => true,
            IpNetwork::V4(v4) if v4.prefix() != 32 => false,
            IpNetwork::V6(v6) if v6.prefix() != 128 => false,
            block => self.networks.iter().any(|network| network.contains(block.ip())),
        };
        Ok(addresses.iter().all(|address| is_ours(address.address)))
    }
}

/// The name itself, and those of the same series: flannel's template is `flannel%d`.
fn candidates(wanted: &str) -> impl Iterator<Item = String> {
    let stem = wanted.trim_end_matches(|c: char| c.is_ascii_digit());
    let has_number = stem.len() < wanted.len();
    let others = (0..MAX_NAMES).map(move |n| format!("{stem}{n}")).filter(move |_| has_number);
    std::iter::once(wanted.to_owned())
        .chain(others.filter(move |name| name != wanted && name.len() <= MAX_NAME_BYTES))
}

fn is_tun(link: &Link) -> bool {
    link.kind == LinkKind::Other("tun".into())
}

fn is_same(left: &Link, actual: &Link) -> bool {
    let compared = |link: &Link| (link.index, link.mtu, link.up);
    compared(left) == compared(actual)
}

fn refused(name: &str, error: KernelError) -> BackendError {
    BackendError::Kernel { operation: format!("set up device {name}"), source: error.into() }
}

/// Packets that wait in each queue of the device while its worker has no processor. A worker is a thread like others, and on a busy
/// machine was seen to wait for half a second; at the kernel's 500 packets were lost by then. More is left as it is.
const QUEUE: u32 = 4096;
/// What the kernel usually needs, many times over.
const SETTLES: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Names that are tried.
const MAX_NAMES: u32 = 256;
/// `IFNAMSIZ` without the end.
const MAX_NAME_BYTES: usize = 15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_names_are_of_the_same_series() {
        let first = |wanted: &str| candidates(wanted).take(3).collect::<Vec<_>>();
        assert_eq!(first("flannel0"), ["flannel0", "flannel1", "flannel2"]);
        assert_eq!(first("flannel1"), ["flannel1", "flannel0", "flannel2"]);
        assert_eq!(first("pods"), ["pods"]);
        assert!(candidates("a-name-of-15-c0").all(|name| name.len() <= 15));
    }
}
