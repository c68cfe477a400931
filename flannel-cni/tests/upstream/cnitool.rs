//! Driven by containernetworking's `cnitool`, as by any runtime that uses its library.

use std::{fs, path::Path};

use serde_json::json;

use crate::{
    support::{Node, Pod, ip, program},
    theirs::theirs,
};

#[test]
#[ignore = "writes below /var/lib/cni, and needs CAP_NET_ADMIN and cnitool: run ./ci.sh cni"]
fn cnitool_drives_every_verb() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    let folder = node.folder.path();
    let env = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_MTU=1410\nFLANNEL_IPMASQ=true\n";
    fs::write(folder.join("subnet.env"), env).unwrap();
    let list = json!({
        "name": "cbr0", "cniVersion": "1.1.0",
        "plugins": [
            {
                "type": "flannel", "subnetFile": folder.join("subnet.env"), "dataDir": folder.join("flannel"),
                "delegate": {"hairpinMode": true, "isDefaultGateway": true},
                "ipam": {"dataDir": folder.join("networks")},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    fs::create_dir(folder.join("net.d")).unwrap();
    fs::write(folder.join("net.d/10-flannel.conflist"), list.to_string()).unwrap();
    for plugin in ["bridge", "flannel", "host-local", "portmap"] {
        node.program(plugin);
    }
    let run = |verb: &str| {
        let bin = format!("CNI_PATH={}", folder.join("bin").display());
        let net = format!("NETCONFPATH={}", folder.join("net.d").display());
        let port = r#"CAP_ARGS={"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#;
        let tool = theirs("cnitool");
        let shell = ["-c", r#""$@" 2>&1 || echo failed"#, "sh", "env"];
        let words = [&*bin, &net, port, tool.to_str().unwrap(), verb, "cbr0", pod.netns()];
        program(&node.host, Path::new("sh"), &[&shell[..], &words].concat())
    };
    let rules = || program(&node.host, Path::new("nft"), &["list", "ruleset"]);
    assert_eq!(run("status"), "");
    let result: serde_json::Value = serde_json::from_str(&run("add")).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.1.2.2/24");
    assert!(rules().contains("8080"), "{}", rules());
    assert_eq!(run("check"), "");
    assert_eq!(ip(&pod.namespace, "link show eth0")[0]["mtu"], 1410);
    let address = folder.join("networks/cbr0/10.1.2.2");
    assert!(address.exists());
    assert_eq!(run("del"), "");
    assert!(!address.exists() && !rules().contains("8080"), "{}", rules());
    // It deletes all attachments by itself, and sends no list of those that are valid with GC.
    run("add");
    let address = folder.join("networks/cbr0/10.1.2.3");
    assert!(address.exists());
    let said = run("gc");
    assert!(said.contains("GC without") && said.ends_with("failed\n"), "{said}");
    assert!(!address.exists() && !rules().contains("8080"), "{}", rules());
}
