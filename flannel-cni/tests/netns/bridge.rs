use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Node, Pod, ip, program};

fn config(node: &Node, keys: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "bridge", "bridge": "cni0",
        "isDefaultGateway": true, "hairpinMode": true, "mtu": 1400,
        "ipam": {
            "type": "host-local", "dataDir": node.folder.path().join("networks"),
            "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]],
            "routes": [{"dst": "10.1.0.0/16"}, {"dst": "fd00::/16", "mtu": 1300}],
        },
    });
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// The addresses of an interface that are not the kernel's own.
fn addresses(link: &Value) -> Vec<String> {
    let infos = link[0]["addr_info"].as_array().unwrap().iter();
    let global = infos.filter(|info| info["scope"] == "global");
    global
        .map(|info| format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"]))
        .collect()
}

fn routes(pod: &Pod, family: &str) -> Vec<String> {
    let listed = ip(&pod.namespace, &format!("{family} route show"));
    let listed = listed.as_array().unwrap().iter();
    let mut routes: Vec<_> = listed
        .filter(|route| route["gateway"].is_string())
        .map(|route| {
            format!("{} {}", route["dst"].as_str().unwrap(), route["gateway"].as_str().unwrap())
        })
        .collect();
    routes.sort();
    routes
}

fn ports(node: &Node) -> Vec<Value> {
    let listed = ip(&node.host, "-d link show type veth");
    listed.as_array().cloned().unwrap_or_default()
}

fn ping(from: &Pod, address: &str) {
    program(&from.namespace, Path::new("ping"), &["-c1", "-W2", address]);
}

fn address_files(node: &Node) -> Vec<String> {
    let folder = node.folder.path().join("networks/net1");
    let files = std::fs::read_dir(folder).map(|files| {
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect()
    });
    let mut files: Vec<String> = files.unwrap_or_default();
    files.sort();
    files
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn containers_reach_each_other_and_the_node_at_once() {
    let (node, one, two) = (Node::new(), Pod::new("c1"), Pod::new("c2"));
    let config = config(&node, json!({}));
    let result = node.run("bridge", "ADD", &one, &config).ok();
    let second = node.run("bridge", "ADD", &two, &config).ok();
    // No address is still being asked for: the first packet of each family arrives.
    for address in ["10.1.2.3", "fd00:1::3", "10.1.2.1", "fd00:1::1"] {
        ping(&one, address);
    }
    assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
    assert_eq!(result["interfaces"][2]["sandbox"], one.netns());
    assert_eq!(
        result["ips"][0],
        json!({
            "address": "10.1.2.2/24", "gateway": "10.1.2.1", "interface": 2,
        })
    );
    assert_eq!(second["ips"][1]["address"], "fd00:1::3/64");
    let dsts: Vec<_> = result["routes"].as_array().unwrap().iter().map(|it| &it["dst"]).collect();
    assert_eq!(dsts, ["10.1.0.0/16", "fd00::/16", "0.0.0.0/0", "::/0"]);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn the_kernel_has_what_the_result_says() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    let result = node.run("bridge", "ADD", &pod, &config(&node, json!({}))).ok();
    let eth0 = ip(&pod.namespace, "addr show eth0");
    assert_eq!(addresses(&eth0), ["10.1.2.2/24", "fd00:1::2/64"]);
    assert_eq!(eth0[0]["addr_info"][0]["broadcast"], "10.1.2.255");
    assert_eq!((&eth0[0]["mtu"], &eth0[0]["operstate"]), (&json!(1400), &json!("UP")));
    assert_eq!(eth0[0]["address"], result["interfaces"][2]["mac"]);
    assert_eq!(routes(&pod, "-4"), ["10.1.0.0/16 10.1.2.1", "default 10.1.2.1"]);
    assert_eq!(routes(&pod, "-6"), ["default fd00:1::1", "fd00::/16 fd00:1::1"]);
    let cni0 = ip(&node.host, "addr show cni0");
    assert_eq!(addresses(&cni0), ["10.1.2.1/24", "fd00:1::1/64"]);
    assert_eq!(cni0[0]["address"], result["interfaces"][0]["mac"]);
    let ports = ports(&node);
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0]["ifname"], result["interfaces"][1]["name"]);
    assert_eq!(ports[0]["address"], result["interfaces"][1]["mac"]);
    assert_eq!((&ports[0]["master"], &ports[0]["operstate"]), (&json!("cni0"), &json!("UP")));
    let port = &ports[0]["linkinfo"]["info_slave_data"];
    assert_eq!((&port["hairpin"], &port["isolated"]), (&json!(true), &json!(false)));
    for setting in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        let value = program(&node.host, Path::new("sysctl"), &["-n", setting]);
        assert_eq!(value.trim(), "1");
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn the_bridges_mac_does_not_change_with_its_ports() {
    let (node, one, two) = (Node::new(), Pod::new("c1"), Pod::new("c2"));
    // Made by somebody else, with whatever address the kernel chooses.
    program(&node.host, Path::new("ip"), &["link", "add", "cni0", "type", "bridge"]);
    let config = config(&node, json!({}));
    let mac = |node: &Node| ip(&node.host, "link show cni0")[0]["address"].clone();
    let first = node.run("bridge", "ADD", &one, &config).ok();
    let pinned = mac(&node);
    assert_eq!(first["interfaces"][0]["mac"], pinned);
    node.run("bridge", "ADD", &two, &config).ok();
    node.run("bridge", "DEL", &one, &config).ok();
    node.run("bridge", "DEL", &two, &config).ok();
    assert_eq!(mac(&node), pinned);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn del_leaves_nothing_and_can_be_repeated() {
    let (node, mut pod) = (Node::new(), Pod::new("c1"));
    let config = config(&node, json!({}));
    node.run("bridge", "ADD", &pod, &config).ok();
    assert_eq!(address_files(&node), ["10.1.2.2", "fd00:1::2"]);
    for _ in 0..2 {
        node.run("bridge", "DEL", &pod, &config).ok();
        assert!(ports(&node).is_empty() && address_files(&node).is_empty());
    }
    node.run("bridge", "ADD", &pod, &config).ok();
    // The namespace went first, as when the machine's runtime was killed.
    pod.netns = Some("/run/netns/nowhere".into());
    node.run("bridge", "DEL", &pod, &config).ok();
    assert!(address_files(&node).is_empty());
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn both_ends_carry_packets_when_add_returns() {
    let node = Node::new();
    let config = config(&node, json!({}));
    for number in 0..40 {
        let pod = Pod::new(&format!("c{number}"));
        node.run("bridge", "ADD", &pod, &config).ok();
        assert_eq!(ip(&pod.namespace, "link show eth0")[0]["operstate"], "UP");
    }
    assert!(ports(&node).iter().all(|port| port["operstate"] == "UP"));
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn what_add_would_refuse_today_can_be_deleted() {
    let node = Node::new();
    for keys in [
        json!({"promiscMode": true, "vlan": 7, "runtimeConfig": {"mac": "x"}}),
        json!({"vlan": "100"}),
        json!({"vlanTrunk": [{"id": "5"}, null]}),
        json!({"runtimeConfig": {"bandwidth": {"ingressRate": -1}}}),
        json!({"runtimeConfig": 7, "args": 7, "dns": 7, "bridge": 7}),
        json!({"mtu": -1, "isGateway": "yes", "macspoofchk": "yes"}),
    ] {
        let (one, two) = (Pod::new("c1"), Pod::new("c2"));
        let fine = config(&node, json!({"cniVersion": "1.1.0"}));
        node.run("bridge", "ADD", &one, &fine).ok();
        node.run("bridge", "ADD", &two, &fine).ok();
        let mut changed = fine;
        changed.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        node.run("bridge", "ADD", &Pod::new("c3"), &changed).refused();
        node.run("bridge", "DEL", &one, &changed).ok();
        assert_eq!((ports(&node).len(), address_files(&node).len()), (1, 2), "{keys}");
        changed["cni.dev/valid-attachments"] = json!([]);
        node.run("bridge", "GC", &two, &changed).ok();
        assert!(address_files(&node).is_empty(), "{keys}");
        node.run("bridge", "DEL", &two, &changed).ok();
    }
    let (unknown, pod) = (config(&node, json!({"ipam": "host-local"})), Pod::new("c1"));
    node.run("bridge", "ADD", &pod, &unknown).refused();
    node.run("bridge", "DEL", &pod, &unknown).ok();
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn del_of_a_name_too_long_for_add_is_fine() {
    let (node, pod) = (Node::new(), Pod::new(&"c".repeat(240)));
    let config = config(&node, json!({"macspoofchk": true}));
    node.run("bridge", "ADD", &pod, &config).refused();
    node.run("bridge", "DEL", &pod, &config).ok();
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn an_add_that_fails_leaves_nothing() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    // A route that the kernel refuses, at the very end.
    let mut config = config(&node, json!({}));
    config["ipam"]["routes"] = json!([{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]);
    let (code, message) = node.run("bridge", "ADD", &pod, &config).refused();
    assert_eq!(code, 100);
    assert!(
        message.starts_with("failed to add route 10.9.0.0/16 via 192.0.2.1 dev eth0"),
        "{message}"
    );
    assert!(ports(&node).is_empty() && address_files(&node).is_empty());
    assert_eq!(ip(&pod.namespace, "link show").as_array().unwrap().len(), 1, "lo");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_second_add_is_an_error_and_changes_nothing() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    let mut config = config(&node, json!({}));
    node.run("bridge", "ADD", &pod, &config).ok();
    let (code, message) = node.run("bridge", "ADD", &pod, &config).refused();
    assert_eq!(code, 101);
    assert!(message.contains("duplicate allocation is not allowed"), "{message}");
    // Without addresses it is the interface that is there already.
    config["ipam"] = json!({});
    let (_, message) = node.run("bridge", "ADD", &pod, &config).refused();
    assert!(message.contains("already exists"), "{message}");
    assert_eq!(ports(&node).len(), 1);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn check_finds_what_was_changed() {
    let breakages: [(&str, &[&str], &str); 6] = [
        ("pod", &["addr", "del", "10.1.2.2/24", "dev", "eth0"], "does not have 10.1.2.2/24"),
        ("pod", &["route", "del", "10.1.0.0/16"], "no route 10.1.0.0/16"),
        (
            "pod",
            &["link", "set", "eth0", "address", "02:00:00:00:00:01"],
            "has MAC 02:00:00:00:00:01",
        ),
        ("pod", &["link", "del", "eth0"], "\"eth0\""),
        ("host", &["link", "set", "cni0", "address", "02:00:00:00:00:01"], "has MAC"),
        ("host", &["link", "del", "cni0"], "\"cni0\""),
    ];
    for (side, arguments, expected) in breakages {
        let (node, pod) = (Node::new(), Pod::new("c1"));
        let mut config = config(&node, json!({}));
        config["prevResult"] = node.run("bridge", "ADD", &pod, &config).ok();
        config["cniVersion"] = "1.0.0".into();
        node.run("bridge", "CHECK", &pod, &config).ok();
        let namespace = if side == "pod" { &pod.namespace } else { &node.host };
        program(namespace, Path::new("ip"), arguments);
        let (code, message) = node.run("bridge", "CHECK", &pod, &config).refused();
        assert_eq!(code, 102, "{message}");
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn an_address_conflict_is_an_error_unless_forced() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    program(&node.host, Path::new("ip"), &["link", "add", "cni0", "type", "bridge"]);
    program(&node.host, Path::new("ip"), &["addr", "add", "10.7.0.1/24", "dev", "cni0"]);
    let (_, message) = node.run("bridge", "ADD", &pod, &config(&node, json!({}))).refused();
    assert_eq!(message, "\"cni0\" already has an IP address different from 10.1.2.1/24");
    node.run("bridge", "ADD", &pod, &config(&node, json!({"forceAddress": true}))).ok();
    let cni0 = ip(&node.host, "addr show cni0");
    assert_eq!(addresses(&cni0), ["10.1.2.1/24", "fd00:1::1/64"]);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_requested_mac_and_address_are_given() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    let wishes = json!({"mac": "c2:11:22:33:44:55", "ips": ["10.1.2.77/24"]});
    let config = config(&node, json!({"runtimeConfig": wishes}));
    let result = node.run("bridge", "ADD", &pod, &config).ok();
    assert_eq!(result["interfaces"][2]["mac"], "c2:11:22:33:44:55");
    assert_eq!(result["ips"][0]["address"], "10.1.2.77/24");
    let other = Pod::new("c2");
    let (_, message) = node.run("bridge", "ADD", &other, &config).refused();
    assert!(message.contains("10.1.2.77 is not available"), "{message}");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn what_another_ethernet_address_sends_is_dropped_if_that_is_asked_for() {
    let node = Node::new();
    let config = config(&node, json!({"macspoofchk": true, "hairpinMode": false}));
    let (one, two) = (Pod::new("c1"), Pod::new("c2"));
    node.run("bridge", "ADD", &one, &config).ok();
    node.run("bridge", "ADD", &two, &config).ok();
    ping(&one, "10.1.2.3");
    ping(&two, "10.1.2.2");
    program(
        &one.namespace,
        Path::new("ip"),
        &["link", "set", "eth0", "address", "02:00:00:00:00:01"],
    );
    let shell = "ping -c1 -W1 10.1.2.3 >/dev/null && echo reached || echo dropped";
    assert_eq!(program(&one.namespace, Path::new("sh"), &["-c", shell]).trim(), "dropped");
    ping(&two, "10.1.2.1");
    let rules = || program(&node.host, Path::new("nft"), &["list", "ruleset", "bridge"]);
    assert!(rules().contains("c1-eth0") && rules().contains("c2-eth0"));
    node.run("bridge", "DEL", &one, &config).ok();
    assert!(!rules().contains("c1-eth0") && rules().contains("c2-eth0"), "{}", rules());
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn the_check_of_ethernet_addresses_ends_whatever_the_configuration_says_by_then() {
    let node = Node::new();
    let rules = || program(&node.host, Path::new("nft"), &["list", "ruleset", "bridge"]);
    let mut with = config(&node, json!({"cniVersion": "1.1.0", "macspoofchk": true}));
    let pods = ["c1", "c2", "c3"].map(Pod::new);
    pods.iter().for_each(|pod| drop(node.run("bridge", "ADD", pod, &with).ok()));
    let mut other = with.clone();
    other["name"] = "net2".into();
    other["ipam"] = json!({});
    node.run("bridge", "ADD", &Pod::new("c4"), &other).ok();
    let checked = || ["c1", "c2", "c3", "c4"].map(|id| rules().contains(&format!("{id}-eth0")));
    assert_eq!(checked(), [true; 4], "{}", rules());
    with["macspoofchk"] = false.into();
    // Addresses cannot be taken back; all else goes.
    let mut failing = with.clone();
    failing["ipam"]["dataDir"] = "/proc/none".into();
    node.run("bridge", "DEL", &pods[0], &failing).refused();
    assert_eq!(checked(), [false, true, true, true], "{}", rules());
    with["cni.dev/valid-attachments"] = json!([{"containerID": "c3", "ifname": "eth0"}]);
    node.run("bridge", "GC", &pods[0], &with).ok();
    assert_eq!(checked(), [false, false, true, true], "{}", rules());
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn without_ipam_there_is_a_link_and_no_address() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    let config = config(&node, json!({"ipam": {}}));
    node.run("bridge", "ADD", &pod, &config).ok();
    let eth0 = ip(&pod.namespace, "addr show eth0");
    assert_eq!(eth0[0]["operstate"], "UP");
    assert!(addresses(&eth0).is_empty());
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn gc_and_status_reach_whoever_gives_addresses() {
    let (node, one, two) = (Node::new(), Pod::new("c1"), Pod::new("c2"));
    let mut config = config(&node, json!({"cniVersion": "1.1.0"}));
    node.run("bridge", "ADD", &one, &config).ok();
    node.run("bridge", "ADD", &two, &config).ok();
    node.run("bridge", "STATUS", &one, &config).ok();
    config["cni.dev/valid-attachments"] = json!([{"containerID": "c2", "ifname": "eth0"}]);
    node.run("bridge", "GC", &one, &config).ok();
    assert_eq!(address_files(&node), ["10.1.2.3", "fd00:1::3"]);
    config["ipam"]["ranges"] =
        json!([[{"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.3", "rangeEnd": "10.1.2.3"}]]);
    let (code, message) = node.run("bridge", "STATUS", &one, &config).refused();
    assert_eq!(code, 50);
    assert!(message.starts_with("no IP addresses available"), "{message}");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn addresses_can_be_checked_for_duplicates() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    node.run("bridge", "ADD", &pod, &config(&node, json!({"enabledad": true}))).ok();
    let eth0 = ip(&pod.namespace, "addr show eth0");
    assert_eq!(addresses(&eth0), ["10.1.2.2/24", "fd00:1::2/64"]);
    assert!(!eth0.to_string().contains("tentative") && !eth0.to_string().contains("nodad"));
}
