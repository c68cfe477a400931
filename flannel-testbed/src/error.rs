use std::{error::Error, io};

use flannel_netlink::{KernelError, NamespaceError, OpenError};

use crate::Blocks;

/// Why a testbed could not be built or altered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TestbedError {
    /// A block has no address left.
    #[error("cannot give {place} an address: number {number} is not in {block}")]
    AddressesExhausted {
        /// The host or pod.
        place: String,
        /// The number of the address in the block.
        number: u32,
        /// The block.
        block: Blocks,
    },
    /// The socket that answers probes could not be opened.
    #[error("cannot answer probes on {place}")]
    Echo {
        /// The host or pod.
        place: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The real flanneld has not been built.
    #[error(
        "there is no flanneld {} in the target folder: run ./ci.sh flanneld",
        crate::Flanneld::VERSION
    )]
    Flanneld,
    /// The kernel refused a change of devices, addresses or routes, or a listing.
    #[error("cannot {operation} on {place}")]
    Kernel {
        /// What was to be done, with the object's name.
        operation: String,
        /// The host, the pod or the switch.
        place: String,
        /// The kernel's reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The kernel's notifications could not be read.
    #[error("cannot hear of changes on {place}")]
    Monitor {
        /// The host.
        place: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// There is no such device.
    #[error("there is no device {device} on {place}")]
    NoDevice {
        /// The device.
        device: String,
        /// The host, the pod or the switch.
        place: String,
    },
    /// A device did not get or lose its carrier.
    #[error("device {device} on {place} does not follow the state of its other end")]
    NotSettled {
        /// The device.
        device: String,
        /// The host, the pod or the switch.
        place: String,
    },
    /// A namespace could not be made or entered.
    #[error("cannot use a network namespace for {place}")]
    Namespace {
        /// The host, the pod or the switch.
        place: String,
        /// The kernel's reason.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A kernel setting could not be made.
    #[error("cannot set {setting} to {value} on {place}; is /proc/sys mounted read-only?")]
    Setting {
        /// The setting, such as `net/ipv4/ip_forward`.
        setting: String,
        /// The value.
        value: &'static str,
        /// The host, the pod or the switch.
        place: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl TestbedError {
    pub(crate) fn kernel(operation: impl Into<String>, place: &str, source: KernelError) -> Self {
        Self::Kernel {
            operation: operation.into(),
            place: place.to_owned(),
            source: Box::new(source),
        }
    }

    pub(crate) fn namespace(place: &str, source: NamespaceError) -> Self {
        Self::Namespace { place: place.to_owned(), source: Box::new(source) }
    }

    pub(crate) fn socket(place: &str, source: OpenError) -> Self {
        Self::Namespace { place: place.to_owned(), source: Box::new(source) }
    }
}
