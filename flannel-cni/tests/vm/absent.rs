//! Kernels without nf_tables, and without netfilter's netlink.

use std::{fs, path::Path};

use flannel_netlink::Namespace;
use serde_json::{Value, json};

use crate::support::{Node, Pod, program};

/// Modules are not loaded again while this is there.
struct WithoutLoading(String);

const LOADER: &str = "/proc/sys/kernel/modprobe";

impl WithoutLoading {
    fn new() -> Self {
        let before = fs::read_to_string(LOADER).unwrap();
        fs::write(LOADER, "\n").unwrap();
        Self(before)
    }
}

impl Drop for WithoutLoading {
    fn drop(&mut self) {
        fs::write(LOADER, &self.0).unwrap();
    }
}

/// Takes a module out of the kernel, and those that need it before.
fn unload(module: &str) {
    for attempt in 0.. {
        let modules = fs::read_to_string("/proc/modules").unwrap();
        let Some(line) = modules.lines().find(|line| line.split(' ').next() == Some(module)) else {
            return;
        };
        assert!(attempt < 100, "{line}");
        let needed_by = line.split(' ').nth(3).unwrap();
        needed_by.split(',').filter(|name| name.len() > 1).for_each(unload);
        // Namespaces that are gone hold it for a moment.
        let shell = format!("rmmod {module} 2>/dev/null || sleep 0.1");
        program(&Namespace::current().unwrap(), Path::new("sh"), &["-c", &shell]);
    }
}

#[test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
fn containers_of_a_kernel_without_rules_come_and_go() {
    // What else is needed is there.
    program(&Node::new().host, Path::new("ip"), &["link", "add", "type", "bridge"]);
    program(&Node::new().host, Path::new("ip"), &["link", "add", "type", "veth"]);
    let _kernel = WithoutLoading::new();
    for module in ["nf_tables", "nfnetlink"] {
        unload(module);
        let (node, pod) = (Node::new(), Pod::new("c1"));
        let bridge = json!({
            "cniVersion": "1.1.0", "name": "net1", "type": "bridge", "isGateway": true, "ipMasq": true,
            "ipMasqBackend": "nftables", "macspoofchk": true, "cni.dev/valid-attachments": [],
            "ipam": {
                "type": "host-local", "dataDir": node.folder.path().join("networks"),
                "ranges": [[{"subnet": "10.1.2.0/24"}]],
            },
        });
        let (code, message) = node.run("bridge", "ADD", &pod, &bridge).refused();
        assert!(code == 100 || code == 5, "{module}: {code} {message}");
        assert!(message.contains("spoof-check") || message.contains("netlink"), "{message}");
        let mut plain = bridge.clone();
        plain["ipMasq"] = false.into();
        plain["macspoofchk"] = false.into();
        let result = node.run("bridge", "ADD", &pod, &plain).ok();
        let portmap = |previous: &Value| {
            json!({
                "cniVersion": "1.1.0", "name": "net1", "type": "portmap", "backend": "nftables",
                "prevResult": previous, "cni.dev/valid-attachments": [],
                "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]},
            })
        };
        node.run("portmap", "ADD", &pod, &portmap(&result)).refused();
        assert_eq!(node.run("portmap", "STATUS", &pod, &portmap(&result)).refused().0, 50);
        // Nothing is there that would have to be removed.
        for verb in ["DEL", "GC"] {
            node.run("portmap", verb, &pod, &portmap(&result)).ok();
            node.run("bridge", verb, &pod, &bridge).ok();
        }
    }
}
