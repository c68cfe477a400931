//! Why the kernel does not carry packets for us.

use std::{error::Error, io};

use flannel_netlink::{KernelError, OpenError};
use rustix::io::Errno;

/// Why the eBPF engine cannot work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BpfError {
    /// The kernel refuses a filter, or what filters hang on.
    #[error("cannot {operation} on device {link}")]
    Filter { operation: &'static str, link: u32, source: KernelError },
    /// Another program's filter is where ours belongs.
    #[error("another program's filter is at priority {priority}, handle {handle} of device {link}")]
    FilterTaken { link: u32, priority: u16, handle: u32 },
    /// The kernel does not take the programs, or their maps.
    #[error("cannot load BPF program {program}: {reason}")]
    Load { program: &'static str, reason: String },
    /// A map cannot be written.
    #[error("cannot write BPF map {map}")]
    Map { map: &'static str, source: aya::maps::MapError },
    /// bpf(2) is refused altogether.
    #[error(
        "bpf(2) is not permitted: CAP_BPF and CAP_NET_ADMIN are needed, outside of user namespaces"
    )]
    NotPermitted,
    /// A netlink socket cannot be opened.
    #[error("cannot ask about filters")]
    Open { source: OpenError },
    /// Notifications cannot be read.
    #[error("cannot follow filters")]
    Watch { source: io::Error },
}

impl BpfError {
    pub(super) fn filter(operation: &'static str, link: u32, source: KernelError) -> Self {
        Self::Filter { operation, link, source }
    }

    pub(super) fn load(program: &'static str, error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            // A program that the verifier refuses is EACCES.
            if error.downcast_ref().and_then(Errno::from_io_error) == Some(Errno::PERM) {
                return Self::NotPermitted;
            }
            cause = error.source();
        }
        // The verifier's words may be thousands of lines, of which the last say what is wrong.
        let text = error.to_string();
        let tail = text.char_indices().rev().nth(MAX_REASON).map_or(0, |(at, _)| at);
        Self::Load { program, reason: text[tail..].trim().to_owned() }
    }
}

/// Characters.
const MAX_REASON: usize = 400;

#[cfg(test)]
mod tests {
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn what_the_verifier_refuses_is_not_a_lack_of_rights() {
        let refused = |errno: Errno| {
            let error = SyscallError { call: "bpf_prog_load", io_error: errno.into() };
            BpfError::load("flannel_decap", &error)
        };
        assert!(matches!(refused(Errno::PERM), BpfError::NotPermitted));
        assert!(matches!(refused(Errno::ACCESS), BpfError::Load { .. }));
    }
}
