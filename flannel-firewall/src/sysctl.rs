//! Settings of the kernel without which nothing is forwarded.

use std::{fs, io, path::Path};

use flannel_netlink::Namespace;
use tracing::info;

use crate::{
    report::FirewallFault,
    router_advertisements::{interfaces_by_advertisement, keep_accepting},
    rules::Family,
};

/// What was found out about forwarding of one family.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Forwarding {
    /// Whether it was off and is on now.
    pub(crate) switched_on: bool,
    pub(crate) fault: Option<FirewallFault>,
    pub(crate) note: Option<String>,
}

/// Sees to it that packets of the family are forwarded.
pub(crate) fn ensure_forwarding(namespace: &Namespace, family: Family) -> Forwarding {
    // The files show the settings of whose thread opens them.
    let done = namespace.run(|| ensure(Path::new(ROOT), family));
    done.unwrap_or_else(|error| {
        let fault = FirewallFault::new("look at forwarding", error.to_string());
        Forwarding { fault: Some(fault), ..Forwarding::default() }
    })
}

/// Whether packets that cross a bridge pass iptables; `None` if that is so, or does not matter because there are no bridges.
pub(crate) fn bridge_note(namespace: &Namespace, family: Family) -> Option<String> {
    let setting = match family {
        Family::Ipv4 => "bridge/bridge-nf-call-iptables",
        Family::Ipv6 => "bridge/bridge-nf-call-ip6tables",
    };
    let there = namespace.run(|| Path::new(ROOT).join(setting).exists()).unwrap_or(true);
    (!there).then(|| {
        "br_netfilter is not loaded: packets between pods of this node pass no rules of iptables, which Kubernetes services \
         need (modprobe br_netfilter)"
            .to_owned()
    })
}

fn ensure(root: &Path, family: Family) -> Forwarding {
    let setting = match family {
        Family::Ipv4 => "ipv4/ip_forward",
        Family::Ipv6 => "ipv6/conf/all/forwarding",
    };
    let path = root.join(setting);
    let mut done = Forwarding::default();
    let name = format!("net.{}", setting.replace('/', "."));
    let fault = |what: &str, error: &io::Error| {
        let reason = format!("{error}; set it outside of this program: sysctl -w {name}=1");
        Some(FirewallFault::new(format!("{what} {name}"), reason))
    };
    match fs::read_to_string(&path) {
        Ok(value) if value.trim() != "0" => return done,
        Ok(_) => {}
        Err(error) => {
            done.fault = fault("read", &error);
            return done;
        }
    }
    if family == Family::Ipv6 {
        done.note = keep_accepting_routers(root);
    }
    match fs::write(&path, "1") {
        Ok(()) => done.switched_on = true,
        Err(error) => done.fault = fault("set", &error),
    }
    done
}

/// Before forwarding is switched on: the kernel drops what came from routers at that moment.
fn keep_accepting_routers(root: &Path) -> Option<String> {
    // Not /proc/net, which is the main thread's.
    let routes = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap_or_default();
    let (set, failed) = keep_accepting(root, &interfaces_by_advertisement(&routes));
    if !set.is_empty() {
        info!(
            interfaces = set.join(" "),
            "accept_ra set to 2: forwarding would end router advertisements"
        );
    }
    let (interface, error) = failed.first()?;
    Some(format!(
        "IPv6 forwarding ends router advertisements, which {interface} has its addresses or routes from, and accept_ra cannot be \
         set: {error}; set net.ipv6.conf.{interface}.accept_ra=2"
    ))
}

const ROOT: &str = "/proc/sys/net";

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder(forward: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for path in ["ipv4", "ipv6/conf/all", "ipv6/conf/eth0"] {
            fs::create_dir_all(folder.path().join(path)).unwrap();
        }
        fs::write(folder.path().join("ipv4/ip_forward"), forward).unwrap();
        fs::write(folder.path().join("ipv6/conf/all/forwarding"), forward).unwrap();
        fs::write(folder.path().join("ipv6/conf/eth0/accept_ra"), "1\n").unwrap();
        folder
    }

    #[test]
    fn what_is_on_is_not_written() {
        let folder = folder("1\n");
        let file = folder.path().join("ipv4/ip_forward");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
        assert_eq!(ensure(folder.path(), Family::Ipv4), Forwarding::default());
        assert_eq!(fs::read_to_string(file).unwrap(), "1\n");
    }

    #[test]
    fn what_is_off_is_switched_on() {
        let folder = folder("0\n");
        let done = ensure(folder.path(), Family::Ipv4);
        assert!(done.switched_on && done.fault.is_none() && done.note.is_none());
        assert_eq!(fs::read_to_string(folder.path().join("ipv4/ip_forward")).unwrap(), "1");
        let done = ensure(folder.path(), Family::Ipv6);
        assert!(done.switched_on && done.note.is_none());
    }

    #[test]
    fn what_cannot_be_switched_on_is_named_with_the_remedy() {
        let done = ensure(Path::new("/nonexistent"), Family::Ipv4);
        let fault = done.fault.unwrap();
        assert_eq!(fault.operation, "read net.ipv4.ip_forward");
        assert!(fault.reason.ends_with("sysctl -w net.ipv4.ip_forward=1"), "{fault}");
    }
}
