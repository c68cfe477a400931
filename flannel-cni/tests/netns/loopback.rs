use serde_json::{Value, json};

use crate::support::{Node, Pod, Reply, ip};

fn config(version: &str) -> Value {
    json!({"cniVersion": version, "name": "lo", "type": "loopback"})
}

fn is_up(pod: &Pod) -> bool {
    let flags = ip(&pod.namespace, "link show lo")[0]["flags"].clone();
    flags.as_array().unwrap().contains(&"UP".into())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn loopback_is_up_after_add_and_down_after_del() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    let result = node.run("loopback", "ADD", &pod, &config("1.0.0")).ok();
    assert!(is_up(&pod));
    let expected = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": pod.netns()}],
        "ips": [
            {"address": "127.0.0.1/8", "interface": 0}, {"address": "::1/128", "interface": 0},
        ],
    });
    assert_eq!(result, expected);
    node.run("loopback", "CHECK", &pod, &config("1.0.0")).ok();
    node.run("loopback", "DEL", &pod, &config("1.0.0")).ok();
    assert!(!is_up(&pod));
    let (code, message) = node.run("loopback", "CHECK", &pod, &config("1.0.0")).refused();
    assert_eq!((code, &*message), (102, "loopback interface is down"));
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn what_came_before_is_passed_on_whatever_the_arguments_say() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    let mut config = config("0.4.0");
    config["prevResult"] = json!({
        "cniVersion": "0.4.0", "interfaces": [{"name": "eth0"}], "dns": {},
        "ips": [{"version": "4", "address": "10.1.2.3/24"}],
    });
    let odd = [("CNI_ARGS", "UNKNOWN=1")];
    let result = Reply::of(node.start(&["loopback"], "ADD", &pod, &config, &odd)).ok();
    assert_eq!(result, config["prevResult"]);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_container_that_is_gone_fails_add_and_not_del() {
    let (node, mut pod) = (Node::new(), Pod::new("c1"));
    pod.netns = Some("/run/netns/nowhere".to_owned());
    assert_eq!(node.run("loopback", "ADD", &pod, &config("1.0.0")).refused().0, 3);
    node.run("loopback", "DEL", &pod, &config("1.0.0")).ok();
    pod.netns = None;
    node.run("loopback", "DEL", &pod, &config("1.0.0")).ok();
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn the_hosts_own_namespace_is_no_container() {
    let (node, mut pod) = (Node::new(), Pod::new("c1"));
    pod.netns = Some("/proc/self/ns/net".to_owned());
    let (code, message) = node.run("loopback", "ADD", &pod, &config("1.0.0")).refused();
    assert_eq!(code, 8, "{message}");
    let allowed = [("CNI_NETNS_OVERRIDE", "true")];
    Reply::of(node.start(&["loopback"], "ADD", &pod, &config("1.0.0"), &allowed)).ok();
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn verbs_are_there_since_their_version() {
    let (node, pod) = (Node::new(), Pod::new("c1"));
    let version = node.run("loopback", "VERSION", &pod, &Value::Null).ok();
    assert_eq!(version["supportedVersions"].as_array().unwrap().len(), 7);
    for (verb, old, new) in
        [("CHECK", "0.3.1", "0.4.0"), ("GC", "1.0.0", "1.1.0"), ("STATUS", "1.0.0", "1.1.0")]
    {
        let (code, message) = node.run("loopback", verb, &pod, &config(old)).refused();
        assert_eq!(code, 1, "{message}");
        node.run("loopback", "ADD", &pod, &config(new)).ok();
        node.run("loopback", verb, &pod, &config(new)).ok();
    }
}
