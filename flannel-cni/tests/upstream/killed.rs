//! The whole chain, killed at any system call: what it made goes with `DEL`, whatever is left of the container by then, or with `GC`.

use std::{fs, path::Path, time::Duration};

use serde_json::{Value, json};

use crate::{
    strace::Traced,
    support::{Node, Pod, ip, program},
    theirs::absent,
};

const ENV: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_IPV6_NETWORK=fd00:1::/48\n\
    FLANNEL_IPV6_SUBNET=fd00:1:0:2::1/64\nFLANNEL_MTU=1410\nFLANNEL_IPMASQ=false\n";

/// The configuration of `flannel`, which gives the bridge all that it can have.
fn flannel(node: &Node) -> Value {
    let folder = node.folder.path();
    json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "flannel",
        "subnetFile": folder.join("subnet.env"), "dataDir": folder.join("flannel"),
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        "ipam": {"dataDir": folder.join("networks"), "keepAddressesFor": ["*/*"]},
    })
}

/// The configuration of `portmap` behind it.
fn portmap(previous: &Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "portmap", "backend": "nftables", "prevResult": previous,
        "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        ]},
    })
}

/// What there is of containers on the node.
fn left(node: &Node) -> Vec<String> {
    let mut left = Vec::new();
    for link in ip(&node.host, "link show").as_array().unwrap() {
        let name = link["ifname"].as_str().unwrap();
        left.extend(name.starts_with("veth").then(|| name.to_owned()));
    }
    for folder in ["networks/cbr0", "networks/.flannel-cni/cbr0/owners", "flannel"] {
        let Ok(files) = fs::read_dir(node.folder.path().join(folder)) else { continue };
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        left.extend(names.filter(|name| name != "lock" && !name.starts_with("last_reserved_ip")));
    }
    let rules = program(&node.host, Path::new("nft"), &["list", "ruleset"]);
    let of_container = |line: &&str| line.contains("c1") || line.contains("10.1.2.");
    left.extend(rules.lines().filter(of_container).map(|line| line.trim().to_owned()));
    left
}

/// Removes as a runtime does that knows nothing of what `ADD` answered.
fn remove(node: &Node, pod: &Pod) {
    let config = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap"});
    node.run("portmap", "DEL", pod, &config).ok();
    node.run("flannel", "DEL", pod, &flannel(node)).ok();
}

fn collect(node: &Node) {
    let ports = json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "portmap"});
    for (plugin, mut config) in [("flannel", flannel(node)), ("portmap", ports)] {
        config["cni.dev/valid-attachments"] = json!([]);
        node.run(plugin, "GC", &absent(""), &config).ok();
    }
}

/// What is left once the kernel has done with namespaces that are gone.
fn left_at_last(node: &Node) -> Vec<String> {
    for _ in 0..200 {
        let left = left(node);
        if !left.iter().any(|it| it.starts_with("veth")) {
            return left;
        }
        #[expect(clippy::disallowed_methods, reason = "the kernel says nothing about it")]
        std::thread::sleep(Duration::from_millis(10));
    }
    left(node)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN and strace: run ./ci.sh cni"]
fn a_chain_that_is_killed_at_any_system_call_leaves_nothing() {
    let node = Node::new();
    fs::write(node.folder.path().join("subnet.env"), ENV).unwrap();
    let config = flannel(&node);
    let (mut ways, mut killed) = (0, 0);
    for plugin in ["flannel", "portmap"] {
        let prepared = || {
            let pod = Pod::new("c1");
            let config = match plugin {
                "flannel" => config.clone(),
                _ => portmap(&node.run("flannel", "ADD", &pod, &config).ok()),
            };
            (pod, config)
        };
        let (pod, config) = prepared();
        let calls = Traced { node: &node, plugin, pod: &pod, config: &config }.system_calls();
        remove(&node, &pod);
        assert_eq!(left(&node), [""; 0]);
        drop(pod);
        for (name, count) in calls {
            for nth in 1..=count {
                let (pod, config) = prepared();
                let status =
                    Traced { node: &node, plugin, pod: &pod, config: &config }.stop_at(&name, nth);
                killed += u32::from(!status.success());
                ways += 1;
                let how = match ways % 3 {
                    0 => {
                        remove(&node, &pod);
                        let inside = ip(&pod.namespace, "link show");
                        assert_eq!(inside.as_array().unwrap().len(), 1, "{inside:#}");
                        "DEL"
                    }
                    1 => {
                        drop(pod);
                        collect(&node);
                        "GC without the container"
                    }
                    _ => {
                        drop(pod);
                        remove(&node, &absent("c1"));
                        "DEL without the container"
                    }
                };
                let what = format!("{plugin} killed at {name} number {nth} ({status}), then {how}");
                assert_eq!(left_at_last(&node), [""; 0], "{what}");
            }
        }
    }
    assert!(killed > 100, "{killed} of {ways} system calls");
}
