use std::{fs, io, path::Path};

use flannel_netlink::Namespace;

use crate::TestbedError;

/// Makes the kernel settings that every namespace of a testbed has, whatever this machine's defaults are.
pub(crate) fn make(namespace: &Namespace, place: &str) -> Result<(), TestbedError> {
    namespace
        .run(|| SETTINGS.iter().try_for_each(|(setting, value)| set(setting, value, place)))
        .map_err(|source| TestbedError::namespace(place, source))?
}

/// Whether the kernel has IPv6 at all.
pub(crate) fn ipv6_enabled() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// Reads first: `/proc/sys` may be read-only and right.
fn set(setting: &str, value: &'static str, place: &str) -> Result<(), TestbedError> {
    let path = Path::new("/proc/sys").join(setting);
    let written = match fs::read_to_string(&path) {
        Ok(current) if current.trim() == value => Ok(()),
        Ok(_) => fs::write(&path, value),
        // A kernel without IPv6. An IPv6 address on such a testbed fails by itself.
        Err(error) if error.kind() == io::ErrorKind::NotFound && setting.contains("ipv6") => Ok(()),
        Err(error) => Err(error),
    };
    written.map_err(|source| TestbedError::Setting {
        setting: setting.to_owned(),
        value,
        place: place.to_owned(),
        source,
    })
}

/// A host forwards. No reverse path filter, because a fault may make paths asymmetric and must not be hidden by it.
/// IPv6 addresses are usable at once, without duplicate detection, and nobody configures itself from advertisements.
const SETTINGS: [(&str, &str); 12] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv6/conf/all/disable_ipv6", "0"),
    ("net/ipv6/conf/default/disable_ipv6", "0"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/all/accept_ra", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
];
