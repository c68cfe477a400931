use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::support::{Node, Pod, Reply, ip, program};

const ENV: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\n\
    FLANNEL_IPV6_NETWORK=fd00:1::/48\nFLANNEL_IPV6_SUBNET=fd00:1:0:2::1/64\n\
    FLANNEL_MTU=1410\nFLANNEL_IPMASQ=true\n";

fn config(node: &Node, keys: Value) -> Value {
    let folder = node.folder.path();
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "cbr0", "type": "flannel",
        "subnetFile": folder.join("subnet.env"), "dataDir": folder.join("flannel"),
        "delegate": {"hairpinMode": true, "isDefaultGateway": true},
        "ipam": {"dataDir": folder.join("networks")},
    });
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn write_env(node: &Node, text: &str) {
    fs::write(node.folder.path().join("subnet.env"), text).unwrap();
}

fn record(node: &Node, id: &str) -> Option<Value> {
    let text = fs::read(node.folder.path().join("flannel").join(id)).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_pod_gets_an_address_of_each_family_and_the_mtu() {
    let (node, one, two) = (Node::new(), Pod::new("c1"), Pod::new("c2"));
    write_env(&node, ENV);
    let mut config = config(&node, json!({}));
    let result = node.run("flannel", "ADD", &one, &config).ok();
    node.run("flannel", "ADD", &two, &config).ok();
    assert_eq!(result["ips"][0]["address"], "10.1.2.2/24");
    assert_eq!(result["ips"][1]["address"], "fd00:1:0:2::2/64");
    assert_eq!(ip(&one.namespace, "link show eth0")[0]["mtu"], 1410);
    for address in ["10.1.2.3", "fd00:1:0:2::3"] {
        program(&one.namespace, Path::new("ping"), &["-c1", "-W2", address]);
    }
    let kept = record(&node, "c1").unwrap();
    assert_eq!(
        (&kept["type"], &kept["name"], &kept["mtu"]),
        (&json!("bridge"), &json!("cbr0"), &json!(1410))
    );
    config["prevResult"] = result;
    node.run("flannel", "CHECK", &one, &config).ok();
    program(&one.namespace, Path::new("ip"), &["link", "set", "eth0", "down"]);
    assert_eq!(node.run("flannel", "CHECK", &one, &config).refused().0, 102);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn del_needs_no_subnet_file_and_knows_the_old_subnet() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    write_env(&node, ENV);
    let config = config(&node, json!({}));
    node.run("flannel", "ADD", &pod, &config).ok();
    fs::remove_file(node.folder.path().join("subnet.env")).unwrap();
    let file = node.folder.path().join("networks/cbr0/10.1.2.2");
    assert!(file.exists());
    for _ in 0..2 {
        node.run("flannel", "DEL", &pod, &config).ok();
        assert!(!file.exists() && record(&node, "c1").is_none());
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_pod_goes_though_values_have_wrong_types() {
    let (node, one, two) = (Node::new(), Pod::new("c1"), Pod::new("c2"));
    write_env(&node, ENV);
    let mut config = config(&node, json!({}));
    node.run("flannel", "ADD", &one, &config).ok();
    node.run("flannel", "ADD", &two, &config).ok();
    config["subnetFileWait"] = "long".into();
    config["runtimeConfig"] = 7.into();
    config["delegate"]["type"] = 7.into();
    config["ipam"]["routes"] = "default".into();
    node.run("flannel", "ADD", &Pod::new("c3"), &config).refused();
    // As a full disk leaves it: the configuration has to do.
    fs::write(node.folder.path().join("flannel/c1"), "{").unwrap();
    node.run("flannel", "DEL", &one, &config).ok();
    let file = |name: &str| node.folder.path().join("networks/cbr0").join(name).exists();
    assert!(!file("10.1.2.2") && file("10.1.2.3") && record(&node, "c2").is_some());
    config["cni.dev/valid-attachments"] = json!([]);
    node.run("flannel", "GC", &two, &config).ok();
    assert!(!file("10.1.2.3") && record(&node, "c2").is_none());
}

/// The delegate in the ConfigMap of the shipped manifest.
fn shipped_delegate() -> Value {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../dist/kubernetes/kube-flannel.yml");
    let text = fs::read_to_string(manifest).unwrap();
    let (_, after) = text.split_once("cni-conf.json: |\n").unwrap();
    let list: String = after.lines().take_while(|line| line.starts_with("    ")).collect();
    serde_json::from_str::<Value>(&list).unwrap()["plugins"][0]["delegate"].take()
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_node_that_gets_another_subnet_moves_its_bridge() {
    let (node, old, new) = (Node::new(), Pod::new("c1"), Pod::new("c2"));
    write_env(&node, ENV);
    let config = config(&node, json!({"delegate": shipped_delegate()}));
    node.run("flannel", "ADD", &old, &config).ok();
    write_env(&node, &ENV.replace("10.1.2.", "10.1.9.").replace("fd00:1:0:2:", "fd00:1:0:9:"));
    let result = node.run("flannel", "ADD", &new, &config).ok();
    assert_eq!(result["ips"][0]["address"], "10.1.9.2/24");
    for gateway in ["10.1.9.1", "fd00:1:0:9::1"] {
        program(&new.namespace, Path::new("ping"), &["-c1", "-W2", gateway]);
    }
    let routes = ip(&node.host, "-4 route show dev cni0");
    let to: Vec<_> = routes.as_array().unwrap().iter().map(|route| &route["dst"]).collect();
    assert_eq!(to, ["10.1.9.0/24"], "another node may have the old subnet");
    node.run("flannel", "DEL", &old, &config).ok();
    node.run("flannel", "DEL", &new, &config).ok();
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn without_a_subnet_file_pods_are_asked_to_come_again() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    let config = config(&node, json!({"subnetFileWait": 0}));
    let (code, message) = node.run("flannel", "ADD", &pod, &config).refused();
    assert_eq!(code, 11);
    assert!(message.starts_with("failed to load flannel 'subnet.env' file"), "{message}");
    let (code, message) = node.run("flannel", "STATUS", &pod, &config).refused();
    assert_eq!(code, 50, "{message}");
    write_env(&node, ENV);
    node.run("flannel", "STATUS", &pod, &config).ok();
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_del_that_fails_is_remembered() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    write_env(&node, ENV);
    let config = config(&node, json!({}));
    node.run("flannel", "ADD", &pod, &config).ok();
    // The record's network cannot be locked: its folder is a file.
    let networks = node.folder.path().join("networks");
    fs::rename(networks.join("cbr0"), networks.join("away")).unwrap();
    fs::write(networks.join("cbr0"), "").unwrap();
    let (code, message) = node.run("flannel", "DEL", &pod, &config).refused();
    assert_eq!(code, 5, "{message}");
    assert!(record(&node, "c1").is_some());
    fs::remove_file(networks.join("cbr0")).unwrap();
    fs::rename(networks.join("away"), networks.join("cbr0")).unwrap();
    node.run("flannel", "DEL", &pod, &config).ok();
    assert!(record(&node, "c1").is_none() && !networks.join("cbr0/10.1.2.2").exists());
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn gc_forgets_who_is_gone_and_no_other_network() {
    let (node, one, two) = (Node::new(), Pod::new("c1"), Pod::new("c2"));
    write_env(&node, ENV);
    let mut config = config(&node, json!({}));
    node.run("flannel", "ADD", &one, &config).ok();
    node.run("flannel", "ADD", &two, &config).ok();
    fs::write(node.folder.path().join("flannel/c3"), r#"{"name": "other"}"#).unwrap();
    fs::write(node.folder.path().join("flannel/c4"), "garbage").unwrap();
    config["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    node.run("flannel", "GC", &one, &config).ok();
    assert!(record(&node, "c1").is_none() && record(&node, "c2").is_some());
    assert!(record(&node, "c3").is_some());
    let networks = node.folder.path().join("networks/cbr0");
    assert!(!networks.join("10.1.2.2").exists() && networks.join("10.1.2.3").exists());
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_delegate_of_others_is_run_as_a_program() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    write_env(&node, ENV);
    let bin = node.folder.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let seen = node.folder.path().join("seen");
    let script = format!(
        "#!/bin/sh\ncat >{0}\nif [ $CNI_COMMAND = DEL ]; then echo '{{\"code\": 42, \"msg\": \"no\", \"details\": \"why\"}}'; exit 1; fi\n\
         echo '{{\"cniVersion\": \"1.1.0\", \"ips\": [{{\"address\": \"10.1.2.9/24\"}}]}}'\n",
        seen.display()
    );
    let plugin = bin.join("vendor");
    fs::write(&plugin, script).unwrap();
    fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = config(&node, json!({"delegate": {"type": "vendor", "master": "eth7"}}));
    let result = node.run("flannel", "ADD", &pod, &config).ok();
    assert_eq!(result["ips"][0]["address"], "10.1.2.9/24");
    let told: Value = serde_json::from_slice(&fs::read(&seen).unwrap()).unwrap();
    assert_eq!(Some(told), record(&node, "c1"));
    // Its errors are passed on as they are.
    assert_eq!(node.run("flannel", "DEL", &pod, &config).refused(), (42, "no".to_owned()));
    let missing = super::flannel::config(&node, json!({"delegate": {"type": "missing"}}));
    let (code, message) = node.run("flannel", "ADD", &pod, &missing).refused();
    assert_eq!(code, 103);
    assert!(message.starts_with("failed to find plugin \"missing\""), "{message}");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_record_that_cannot_be_read_does_not_keep_the_pod() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    write_env(&node, ENV);
    let config = config(&node, json!({}));
    node.run("flannel", "ADD", &pod, &config).ok();
    // What a full disk leaves, on a node that has no subnet any more.
    fs::write(node.folder.path().join("flannel/c1"), "").unwrap();
    fs::remove_file(node.folder.path().join("subnet.env")).unwrap();
    node.run("flannel", "DEL", &pod, &config).ok();
    assert!(!node.folder.path().join("flannel/c1").exists());
    assert!(!node.folder.path().join("networks/cbr0/10.1.2.2").exists());
    assert!(
        ip(&pod.namespace, "link show").as_array().unwrap().iter().all(|it| it["ifname"] != "eth0")
    );
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn every_interface_of_a_container_goes() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    write_env(&node, ENV);
    let (one, other) = (config(&node, json!({})), config(&node, json!({"name": "cbr1"})));
    let attachments = [("eth0", &one), ("net1", &one), ("net2", &other)];
    let run = |verb, (interface, config): (&str, &Value)| {
        let environment = [("CNI_IFNAME", interface)];
        Reply::of(node.start(&["flannel"], verb, &pod, config, &environment)).ok()
    };
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        for attachment in attachments {
            run("ADD", attachment);
        }
        let addresses = || {
            let of = |network| node.folder.path().join("networks").join(network);
            let files = [of("cbr0"), of("cbr1")].map(|folder| fs::read_dir(folder).unwrap());
            let names = files.into_iter().flatten().map(|it| it.unwrap().file_name());
            names.filter(|name| name.to_str().is_some_and(|it| it.starts_with("10."))).count()
        };
        assert_eq!(addresses(), 3);
        for (left, attachment) in order.iter().rev().enumerate().rev().zip(order) {
            run("DEL", attachments[attachment]);
            assert_eq!(addresses(), left.0, "{order:?}");
        }
        let links = ip(&pod.namespace, "link show");
        let names = links.as_array().unwrap().iter().map(|link| link["ifname"].clone());
        assert_eq!(names.collect::<Vec<_>>(), ["lo"]);
        assert_eq!(record(&node, "c1"), None);
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn what_no_file_can_be_named_after_is_gone() {
    let node = Node::new();
    fs::create_dir(node.folder.path().join("flannel")).unwrap();
    for (id, network) in [(255, 4), (64, 200), (300, 4)] {
        let keys = json!({"name": "n".repeat(network)});
        node.run("flannel", "DEL", &Pod::new(&"c".repeat(id)), &config(&node, keys)).ok();
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn what_add_would_refuse_today_can_be_deleted() {
    for refused in [
        json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1000}}}),
        json!({"delegate": {"type": 7}}),
        json!({"subnetFileWait": -1}),
        json!({"prevResult": 7}),
    ] {
        let (node, pod) = (Node::new(), Pod::new("c1"));
        write_env(&node, ENV);
        node.run("flannel", "ADD", &pod, &config(&node, json!({}))).ok();
        let refused = config(&node, refused);
        Reply::of(node.start(&["flannel"], "DEL", &pod, &refused, &[("CNI_ARGS", "IP=x")])).ok();
        assert!(!node.folder.path().join("networks/cbr0/10.1.2.2").exists(), "{refused}");
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn gc_without_a_list_removes_nothing() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    write_env(&node, ENV);
    let mut config = config(&node, json!({}));
    node.run("flannel", "ADD", &pod, &config).ok();
    let (code, message) = node.run("flannel", "GC", &pod, &config).refused();
    assert_eq!((code, &*message), (7, "GC without \"cni.dev/valid-attachments\""));
    assert!(record(&node, "c1").is_some());
    config["cni.dev/valid-attachments"] = Value::Null;
    node.run("flannel", "GC", &pod, &config).ok();
    assert!(record(&node, "c1").is_none());
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn plugins_that_would_call_each_other_are_refused() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    write_env(&node, ENV);
    for kind in ["bridge", "flannel", "portmap", "loopback"] {
        let looped = json!({
            "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br7", "ipam": {"type": kind},
            "subnetFile": node.folder.path().join("subnet.env"), "dataDir": node.folder.path().join("flannel"),
        });
        let (code, message) = node.run("bridge", "ADD", &pod, &looped).refused();
        assert_eq!((code, message), (7, format!("plugin {kind:?} gives no addresses")));
        node.run("bridge", "DEL", &pod, &looped).ok();
    }
    for kind in ["flannel", "portmap", "loopback", "host-local"] {
        let looped = config(&node, json!({"delegate": {"type": kind}}));
        let (code, message) = node.run("flannel", "ADD", &pod, &looped).refused();
        assert_eq!((code, message), (7, format!("plugin {kind:?} makes no interfaces for others")));
        node.run("flannel", "DEL", &pod, &looped).ok();
    }
    assert_eq!(ip(&node.host, "link show").as_array().unwrap().len(), 1);
}
