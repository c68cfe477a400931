//! Settings of devices under `/proc/sys`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use flannel_netlink::Namespace;
use tracing::warn;

use crate::family::Family;

/// Keeps the kernel from configuring the device by router advertisements. As with flannel it is no failure if that cannot be done.
pub(super) fn no_router_advertisements(namespace: &Namespace, device: &str) {
    if let Err(error) = set_sysctl(namespace, &setting("ipv6", device, "accept_ra"), "0", || true) {
        warn!(device, error, "cannot switch off router advertisements");
    }
}

/// Lets the device forward if the host as a whole does; true if somebody had switched that off.
pub(super) fn forward(namespace: &Namespace, family: Family, device: &str) -> Result<bool, String> {
    let protocol = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let all = setting(protocol, "all", "forwarding");
    let host_does = || fs::read_to_string(&all).is_ok_and(|it| it.trim() == "1");
    set_sysctl(namespace, &setting(protocol, device, "forwarding"), "1", host_does)
}

fn setting(protocol: &str, device: &str, name: &str) -> PathBuf {
    ["/proc/sys/net", protocol, "conf", device, name].iter().collect()
}

/// Whether it was another value, and is to be this one.
fn set_sysctl(
    namespace: &Namespace,
    path: &Path,
    value: &str,
    is_to_be: impl FnOnce() -> bool + Send,
) -> Result<bool, String> {
    let written = namespace.run(|| match fs::read_to_string(path) {
        // Read first: /proc/sys may be read-only and right.
        Ok(current) if current.trim() == value => Ok(false),
        Ok(_) if !is_to_be() => Ok(false),
        Ok(_) => fs::write(path, value).map(|()| true),
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    });
    match written {
        Ok(Ok(was_other)) => Ok(was_other),
        Ok(Err(error)) => Err(format!("cannot write {}: {error}", path.display())),
        Err(error) => Err(error.to_string()),
    }
}
