use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::Duration,
};

use flannel_netlink::Namespace;
use serde_json::{Value, json};

use crate::support::{Node, Pod, program};

/// Network and container of the vectors in upstream's tests for names.
pub(crate) const NETWORK: &str = "test";
pub(crate) const CONTAINER: &str = "1234";

pub(crate) fn bridge_config(node: &Node, bridge: &str, subnet: &str, ipv6: &str) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": NETWORK, "type": "bridge", "bridge": bridge, "isDefaultGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": node.folder.path().join(bridge),
            "ranges": [[{"subnet": subnet}], [{"subnet": ipv6}]],
        },
    })
}

pub(crate) fn portmap_config(previous: &Value, mappings: Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": NETWORK, "type": "portmap", "prevResult": previous,
        "backend": "nftables", "runtimeConfig": {"portMappings": mappings},
    })
}

pub(crate) fn mappings() -> Value {
    json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
    ])
}

/// A container on a bridge, with a server that says who asked.
pub(crate) fn pod_with_server(node: &Node) -> (Pod, Value) {
    let pod = Pod::new(CONTAINER);
    let previous = node
        .run("bridge", "ADD", &pod, &bridge_config(node, "cni0", "10.1.2.0/24", "fd00:1::/64"))
        .ok();
    let listener = pod.namespace.run(|| TcpListener::bind("[::]:80").unwrap()).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_canonical().to_string().as_bytes());
        }
    });
    (pod, previous)
}

/// Who the server sees when it is asked from `namespace` at `address`; `None` if nobody answers.
pub(crate) fn ask(namespace: &Namespace, address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let asked = namespace.run(|| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    });
    asked.unwrap()
}

pub(crate) fn table(node: &Node, family: &str, name: &str) -> String {
    let listed = program(&node.host, Path::new("nft"), &["list", "ruleset", family]);
    let start = listed.find(&format!("table {family} {name} "));
    start.map(|start| listed[start..].split("\n}\n").next().unwrap().to_owned()).unwrap_or_default()
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn ports_of_the_node_lead_to_the_container() {
    let node = Node::new();
    program(&node.host, Path::new("ip"), &["link", "set", "lo", "up"]);
    let (pod, previous) = pod_with_server(&node);
    let client = Pod::new("client");
    let other = bridge_config(&node, "cni1", "10.2.0.0/24", "fd00:2::/64");
    node.run("bridge", "ADD", &client, &other).ok();
    let config = portmap_config(&previous, mappings());
    assert_eq!(node.run("portmap", "ADD", &pod, &config).ok(), previous);
    // From the node itself, and from another host.
    assert_eq!(ask(&node.host, "127.0.0.1:8080").as_deref(), Some("10.1.2.1"));
    assert_eq!(ask(&client.namespace, "10.1.2.1:8080").as_deref(), Some("10.2.0.2"));
    assert_eq!(ask(&client.namespace, "[fd00:1::1]:8080").as_deref(), Some("fd00:2::2"));
    node.run("portmap", "CHECK", &pod, &config).ok();
    node.run("portmap", "DEL", &pod, &config).ok();
    assert_eq!(ask(&node.host, "127.0.0.1:8080"), None);
    assert_eq!(node.run("portmap", "CHECK", &pod, &config).refused().0, 102);
    node.run("portmap", "DEL", &pod, &config).ok();
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn the_rules_are_those_of_upstream() {
    let node = Node::new();
    let (pod, previous) = pod_with_server(&node);
    node.run("portmap", "ADD", &pod, &portmap_config(&previous, mappings())).ok();
    // A second container adds to them.
    let two = Pod::new("two");
    node.run("portmap", "ADD", &two, &portmap_config(&previous, mappings())).ok();
    node.run("portmap", "DEL", &two, &portmap_config(&previous, mappings())).ok();
    let found = table(&node, "ip", "cni_hostport");
    let lines: Vec<&str> = found.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    // What nft shows after knftables wrote portMapperNFTables.forwardPorts of containernetworking/plugins 1.10.0.
    let expected = [
        "table ip cni_hostport {",
        "comment \"CNI portmap plugin\"",
        "chain hostports {",
        "tcp dport 8080 dnat to 10.1.2.2:80 comment \"1234\"",
        "ip daddr 127.0.0.1 udp dport 5353 dnat to 10.1.2.2:53 comment \"1234\"",
        "}",
        "chain hostip_hostports {",
        "}",
        "chain hostports_all {",
        "jump hostip_hostports",
        "jump hostports",
        "}",
        "chain prerouting {",
        "type nat hook prerouting priority dstnat; policy accept;",
        "fib daddr type local jump hostports_all",
        "}",
        "chain output {",
        "type nat hook output priority -100; policy accept;",
        "fib daddr type local jump hostports_all",
        "}",
        "chain masquerading {",
        "type nat hook postrouting priority srcnat; policy accept;",
        "ip saddr 10.1.2.2 ip daddr 10.1.2.2 masquerade comment \"1234\"",
        "ip saddr 127.0.0.1 ip daddr 10.1.2.2 masquerade comment \"1234\"",
        "}",
    ];
    assert_eq!(lines, expected);
    let ipv6 = table(&node, "ip6", "cni_hostport");
    assert!(ipv6.contains("tcp dport 8080 dnat to [fd00:1::2]:80 comment \"1234\""), "{ipv6}");
    assert!(!ipv6.contains("5353"), "a hostIP is for its family: {ipv6}");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn only_what_fulfils_the_conditions_is_led_to_the_container() {
    let node = Node::new();
    let (pod, previous) = pod_with_server(&node);
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let other = bridge_config(&node, "cni1", "10.2.0.0/24", "fd00:2::/64");
    node.run("bridge", "ADD", &one, &other).ok();
    node.run("bridge", "ADD", &two, &other).ok();
    let mut config = portmap_config(&previous, mappings());
    config["conditionsV4"] = json!(["ip", "saddr", "!=", "10.2.0.2"]);
    config["conditionsV6"] = json!(["ip6 saddr fd00:2::2"]);
    node.run("portmap", "ADD", &pod, &config).ok();
    node.run("portmap", "CHECK", &pod, &config).ok();
    let asked = |pod: &Pod| {
        ["10.1.2.1:8080", "[fd00:1::1]:8080"].map(|address| ask(&pod.namespace, address).is_some())
    };
    assert_eq!(asked(&one), [false, true]);
    assert_eq!(asked(&two), [true, false]);
    // Those of who comes next count.
    node.run(
        "portmap",
        "ADD",
        &Pod::new("x"),
        &portmap_config(
            &previous,
            json!([{
                "hostPort": 81, "containerPort": 81, "protocol": "tcp",
            }]),
        ),
    )
    .ok();
    assert_eq!((asked(&one), asked(&two)), ([true, true], [true, true]));
    config["conditionsV6"] = json!(["no such words"]);
    let pod = Pod::new("y");
    let (code, message) = node.run("portmap", "ADD", &pod, &config).refused();
    assert!(code == 100 && message.contains("nft says: "), "{message}");
    let left = table(&node, "ip", "cni_hostport") + &table(&node, "ip6", "cni_hostport");
    assert!(!left.contains("\"y\"") && left.contains("\"1234\""), "{left}");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn rules_that_containers_share_are_made_right_and_then_left_alone() {
    let node = Node::new();
    let (one, previous) = pod_with_server(&node);
    let nft = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        program(&node.host, Path::new("nft"), &words)
    };
    let add = |pod: &Pod| node.run("portmap", "ADD", pod, &portmap_config(&previous, mappings()));
    let shared = || {
        let chains = ["prerouting", "output", "hostports_all"];
        chains.map(|chain| nft(&format!("-a list chain ip cni_hostport {chain}"))).concat()
    };
    add(&one).ok();
    let right = shared();
    add(&Pod::new("two")).ok();
    assert_eq!(shared(), right, "the same handles");
    nft("add rule ip cni_hostport prerouting counter");
    nft("flush chain ip cni_hostport hostports_all");
    add(&Pod::new("three")).ok();
    let without_handles = |text: &str| {
        let lines = text.lines().map(|line| line.split(" # handle").next().unwrap().to_owned());
        lines.collect::<Vec<_>>()
    };
    assert_eq!(without_handles(&shared()), without_handles(&right));
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn containers_that_come_and_go_at_once_do_not_disturb_each_other() {
    let node = Node::new();
    let (_pod, previous) = pod_with_server(&node);
    let config = portmap_config(&previous, mappings());
    node.program("portmap");
    let work = |worker: usize| {
        for number in 0..5 {
            let pod = Pod::new(&format!("c{worker}-{number}"));
            node.run("portmap", "ADD", &pod, &config).ok();
            node.run("portmap", "CHECK", &pod, &config).ok();
            node.run("portmap", "DEL", &pod, &config).ok();
            assert_eq!(node.run("portmap", "CHECK", &pod, &config).refused().0, 102);
        }
    };
    std::thread::scope(|scope| {
        let work = &work;
        (0..8).for_each(|worker| drop(scope.spawn(move || work(worker))));
    });
    assert!(!table(&node, "ip", "cni_hostport").contains("comment \"c"));
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn without_ports_the_result_is_passed_on_and_nothing_is_made() {
    let node = Node::new();
    let (pod, previous) = pod_with_server(&node);
    let config = portmap_config(&previous, json!([]));
    assert_eq!(node.run("portmap", "ADD", &pod, &config).ok(), previous);
    assert_eq!(table(&node, "ip", "cni_hostport"), "");
    let mut unchained = config;
    unchained["prevResult"] = Value::Null;
    let (_, message) = node.run("portmap", "ADD", &pod, &unchained).refused();
    assert_eq!(message, "must be called as chained plugin");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_udp_flow_follows_the_port_to_its_new_container() {
    let node = Node::new();
    program(&node.host, Path::new("ip"), &["link", "set", "lo", "up"]);
    let (pod, previous) = pod_with_server(&node);
    let client = node.host.run(|| UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
    // The flow is there before the rules, and goes nowhere.
    client.send_to(b"x", "127.0.0.1:5353").unwrap();
    let server = pod.namespace.run(|| UdpSocket::bind("0.0.0.0:53").unwrap()).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Without a rule in a nat chain, the kernel tracks no flow.
    let two = Pod::new("two");
    let other = json!([{"hostPort": 1, "containerPort": 1, "protocol": "tcp"}]);
    node.run("portmap", "ADD", &two, &portmap_config(&previous, other)).ok();
    let _ = client.send_to(b"x", "127.0.0.1:5353");
    node.run("portmap", "ADD", &pod, &portmap_config(&previous, mappings())).ok();
    // The first may report that nobody listened before.
    let _ = client.send_to(b"hello", "127.0.0.1:5353");
    client.send_to(b"hello", "127.0.0.1:5353").unwrap();
    let mut buffer = [0; 16];
    let length = server.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"hello");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn del_removes_what_the_other_plugin_made_with_iptables() {
    let node = Node::new();
    let pod = Pod::new(CONTAINER);
    let chain = "CNI-DN-2bbe0c48b91a7d1b8a675";
    let iptables = |rule: &str| {
        let words: Vec<&str> = ["-w", "-t", "nat"].into_iter().chain(rule.split(' ')).collect();
        program(&node.host, Path::new("iptables-nft"), &words)
    };
    for rule in [
        "-N CNI-HOSTPORT-DNAT",
        &format!("-N {chain}"),
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        &format!("-A CNI-HOSTPORT-DNAT -p tcp -m multiport --destination-ports 8080 -j {chain}"),
        &format!("-A {chain} -p tcp --dport 8080 -j DNAT --to-destination 10.1.2.2:80"),
    ] {
        iptables(rule);
    }
    node.run("portmap", "DEL", &pod, &portmap_config(&Value::Null, mappings())).ok();
    let left = iptables("-S");
    assert!(!left.contains("CNI-DN") && left.contains("-N CNI-HOSTPORT-DNAT"), "{left}");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_bridge_masquerades_what_leaves_its_subnet() {
    let node = Node::new();
    let (one, two) = (Pod::new("one"), Pod::new("two"));
    let mut config = bridge_config(&node, "cni0", "192.168.1.0/24", "fd00:1::/64");
    config["name"] = "unit-test".into();
    config["ipMasq"] = true.into();
    config["ipMasqBackend"] = "nftables".into();
    let outside = Pod::new("outside");
    let mut other = bridge_config(&node, "cni1", "10.2.0.0/24", "fd00:2::/64");
    other["name"] = "outside".into();
    node.run("bridge", "ADD", &outside, &other).ok();
    let listener = outside.namespace.run(|| TcpListener::bind("[::]:80").unwrap()).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = stream.write_all(peer.ip().to_canonical().to_string().as_bytes());
        }
    });
    node.run("bridge", "ADD", &one, &config).ok();
    node.run("bridge", "ADD", &two, &config).ok();
    assert_eq!(ask(&one.namespace, "10.2.0.2:80").as_deref(), Some("10.2.0.1"));
    assert_eq!(ask(&one.namespace, "[fd00:2::2]:80").as_deref(), Some("fd00:2::1"));
    let found = table(&node, "inet", "cni_plugins_masquerade");
    let rule = "ip saddr 192.168.1.2 ip daddr != 192.168.1.0/24 masquerade comment \"6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one\"";
    assert!(found.contains(rule), "{found}");
    assert!(
        found.contains(
            "ip daddr 224.0.0.0/4 return\n\t\tip6 daddr ff00::/8 return\n\t\tgoto masq_checks"
        ),
        "{found}"
    );
    // Also for who does not want it any more.
    config["ipMasq"] = false.into();
    config["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "eth0"}]);
    node.run("bridge", "GC", &one, &config).ok();
    let found = table(&node, "inet", "cni_plugins_masquerade");
    assert!(!found.contains("id: one") && found.contains("id: two"), "{found}");
    node.run("bridge", "DEL", &two, &config).ok();
    assert!(!table(&node, "inet", "cni_plugins_masquerade").contains("id: two"));
}
