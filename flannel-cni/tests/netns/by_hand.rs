//! The program as people call it.

use std::{fs, path::Path};

use flannel_netlink::Namespace;
use serde_json::json;

use crate::support::{Node, Pod, program};

fn by_hand(namespace: &Namespace, arguments: &[&str]) -> String {
    program(namespace, Path::new(env!("CARGO_BIN_EXE_flannel-cni")), arguments)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_namespace_is_connected_by_hand_and_taken_off_again() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    let folder = node.folder.path();
    let list = json!({
        "name": "net1", "cniVersion": "1.0.0",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isDefaultGateway": true,
                "ipam": {
                    "type": "host-local", "dataDir": folder.join("networks"), "ranges": [[{"subnet": "10.1.2.0/24"}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    let file = folder.join("10-net1.conflist");
    fs::write(&file, list.to_string()).unwrap();
    let options = ["--netns", pod.netns(), "--name", "try", "--config", file.to_str().unwrap()];
    let said = by_hand(&node.host, &[&["add"], &options[..]].concat());
    let expected = format!(
        "eth0 in {}\n  address 10.1.2.2/24, gateway 10.1.2.1\n  route to 0.0.0.0/0\non the node: cni0, veth",
        pod.netns()
    );
    assert!(said.starts_with(&expected), "{said}");
    // A second time is an error, and not the end of the first.
    let shell = ["-c", "\"$0\" add \"$@\" 2>&1 || true", env!("CARGO_BIN_EXE_flannel-cni")];
    let said = program(&node.host, Path::new("sh"), &[&shell[..], &options].concat());
    assert!(said.contains("has been allocated to try"), "{said}");
    program(&pod.namespace, Path::new("ping"), &["-c1", "-W2", "10.1.2.1"]);
    let listed = by_hand(&node.host, &["list", folder.join("networks").to_str().unwrap()]);
    assert!(listed.contains("net1  10.1.2.2  ") && listed.contains("  try  "), "{listed}");
    assert_eq!(by_hand(&node.host, &[&["del"], &options[..]].concat()), "");
    assert!(!folder.join("networks/net1/10.1.2.2").exists());
}
