//! Router advertisements on a machine that begins to forward.
//!
//! The kernel of a machine that forwards ignores them: the default route that came from one goes at once, and the address later.
//! With `accept_ra` at 2 it takes them all the same; without forwarding that is the same as 1, so it need not be undone.

use std::{collections::BTreeSet, fs, io, path::Path};

/// Sets `accept_ra` of these interfaces, where it is 1, to 2. Says which were set, and which could not be.
pub(crate) fn keep_accepting(
    root: &Path,
    interfaces: &BTreeSet<String>,
) -> (Vec<String>, Vec<(String, io::Error)>) {
    let (mut set, mut failed) = (Vec::new(), Vec::new());
    for interface in interfaces {
        let path = root.join("ipv6/conf").join(interface).join("accept_ra");
        if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
            match fs::write(&path, "2") {
                Ok(()) => set.push(interface.clone()),
                Err(error) => failed.push((interface.clone(), error)),
            }
        }
    }
    (set, failed)
}

/// The interfaces that have routes by router advertisements, given the kernel's table of IPv6 routes as in `/proc/net/ipv6_route`.
pub(crate) fn interfaces_by_advertisement(routes: &str) -> BTreeSet<String> {
    let interface = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [destination, .., flags, interface] = columns[..] else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let is_link_local = destination.starts_with("fe80") || destination.starts_with("ff");
        (flags & RTF_ADDRCONF != 0 && !is_link_local).then(|| interface.to_owned())
    };
    routes.lines().filter_map(interface).collect()
}

/// linux/ipv6_route.h: made by router advertisements.
const RTF_ADDRCONF: u32 = 0x0004_0000;

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "\
20010db8000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00440001     eth0
fe800000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00040001     eth1
20010db8000100000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth2
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth3
garbage
";

    #[test]
    fn interfaces_that_routers_have_configured_go_on_listening() {
        let interfaces = interfaces_by_advertisement(ROUTES);
        assert_eq!(interfaces, BTreeSet::from(["eth0".to_owned(), "eth3".to_owned()]));
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| root.path().join("ipv6/conf").join(name).join("accept_ra");
        for (name, value) in [("eth0", "1\n"), ("eth2", "1\n"), ("eth3", "0\n")] {
            fs::create_dir_all(file(name).parent().unwrap()).unwrap();
            fs::write(file(name), value).unwrap();
        }
        let (set, failed) = keep_accepting(root.path(), &interfaces);
        assert_eq!((set, failed.len()), (vec!["eth0".to_owned()], 0));
        let values = ["eth0", "eth2", "eth3"].map(|name| fs::read_to_string(file(name)).unwrap());
        assert_eq!(values, ["2", "1\n", "0\n"]);
    }
}
