//! Why the kernel does not carry packets for us.

use std::io;

use flannel_netlink::{KernelError, OpenError};
use nix::libc;

/// Why the eBPF engine cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BpfError {
    /// There is no way through the kernel's own unpacking.
    #[error("no detour: {reason}")]
    Detour { reason: &'static str },
    /// The kernel refuses the detour's device.
    #[error("cannot {operation}")]
    Device { operation: &'static str, source: KernelError },
    /// Somebody else's filter stands where ours belongs.
    #[error("another program's filter is at priority {priority}, handle {handle} of device {link}")]
    FilterTaken { link: u32, priority: u16, handle: u32 },
    /// The kernel refuses a filter, or what filters hang on.
    #[error("cannot {operation} on device {link}")]
    Filter { operation: &'static str, link: u32, source: KernelError },
    /// A map cannot be made, read or written.
    #[error("cannot {operation} BPF map {map}")]
    Map { operation: &'static str, map: String, source: io::Error },
    /// bpf(2) is refused altogether.
    #[error(
        "bpf(2) is not permitted: CAP_BPF and CAP_NET_ADMIN are needed, outside of user namespaces"
    )]
    NotPermitted,
    /// The programs of this build are for another machine.
    #[error("the BPF programs are not for this machine's byte order")]
    Object,
    /// A socket cannot be had.
    #[error("cannot ask about filters")]
    Open { source: OpenError },
    /// The kernel does not take a program.
    #[error("the kernel refuses BPF program {program}{}{log}", if log.is_empty() { "" } else { ": " })]
    Program { program: String, log: String, source: io::Error },
    /// Routes take no programs.
    #[error("the kernel runs no BPF programs on routes (CONFIG_LWTUNNEL_BPF)")]
    Route { source: KernelError },
    /// Notifications cannot be read.
    #[error("cannot follow filters")]
    Watch { source: io::Error },
}

impl BpfError {
    pub(super) fn map(operation: &'static str, map: &str, source: io::Error) -> Self {
        if source.raw_os_error() == Some(libc::EPERM) {
            return Self::NotPermitted;
        }
        Self::Map { operation, map: map.to_owned(), source }
    }

    pub(super) fn filter(operation: &'static str, link: u32, source: KernelError) -> Self {
        Self::Filter { operation, link, source }
    }
}
