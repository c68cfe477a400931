//! Ports and masquerading by iptables, of either kind.

use std::{fs, os::unix::fs::symlink, path::Path};

use flannel_netlink::Namespace;
use serde_json::{Value, json};

use crate::{
    portmap::{ask, bridge_config, mappings, pod_with_server, portmap_config},
    support::{Node, Pod, Reply, program},
};

/// A node whose iptables is of one kind.
struct Machine {
    node: Node,
    kind: &'static str,
    path: String,
}

impl Machine {
    fn new(kind: &'static str) -> Self {
        let node = Node::new();
        let tools = node.folder.path().join("tools");
        fs::create_dir(&tools).unwrap();
        for family in ["iptables", "ip6tables"] {
            for suffix in ["", "-save", "-restore"] {
                let program = format!("/usr/sbin/xtables-{kind}-multi");
                symlink(program, tools.join(format!("{family}{suffix}"))).unwrap();
            }
        }
        let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
        program(&node.host, Path::new("ip"), &["link", "set", "lo", "up"]);
        Self { node, kind, path }
    }

    fn run(&self, plugin: &str, verb: &str, pod: &Pod, config: &Value) -> Reply {
        Reply::of(self.node.start(&[plugin], verb, pod, config, &[("PATH", &self.path)]))
    }

    /// What `iptables -t nat` says to these words.
    fn nat(&self, words: &str) -> String {
        self.of_family("iptables", words)
    }

    fn of_family(&self, family: &str, words: &str) -> String {
        let name = format!("{family}-{}", self.kind);
        let words: Vec<&str> = ["-w", "-t", "nat"].into_iter().chain(words.split(' ')).collect();
        program(&self.node.host, Path::new(&name), &words)
    }
}

/// Without a backend: these nodes have iptables.
fn config(previous: &Value, mappings: Value) -> Value {
    let mut config = portmap_config(previous, mappings);
    config.as_object_mut().unwrap().remove("backend");
    config
}

/// The chains of the containers `1234` and `two`, in network `test`.
const OF_1234: &str = "CNI-DN-2bbe0c48b91a7d1b8a675";

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn ports_of_the_node_lead_to_the_container() {
    for kind in ["nft", "legacy"] {
        let machine = Machine::new(kind);
        let (pod, previous) = pod_with_server(&machine.node);
        let client = Pod::new("client");
        let other = bridge_config(&machine.node, "cni1", "10.2.0.0/24", "fd00:2::/64");
        machine.run("bridge", "ADD", &client, &other).ok();
        let config = config(&previous, mappings());
        assert_eq!(machine.run("portmap", "ADD", &pod, &config).ok(), previous);
        let asked = |namespace: &Namespace, address| ask(namespace, address);
        let (host, outside) = (&machine.node.host, &client.namespace);
        assert_eq!(asked(host, "127.0.0.1:8080").as_deref(), Some("10.1.2.1"), "{kind}");
        assert_eq!(asked(outside, "10.1.2.1:8080").as_deref(), Some("10.2.0.2"), "{kind}");
        assert_eq!(asked(outside, "[fd00:1::1]:8080").as_deref(), Some("fd00:2::2"), "{kind}");
        machine.run("portmap", "CHECK", &pod, &config).ok();
        machine.run("portmap", "DEL", &pod, &config).ok();
        assert_eq!(asked(host, "127.0.0.1:8080"), None, "{kind}");
        assert_eq!(machine.run("portmap", "CHECK", &pod, &config).refused().0, 102);
        machine.run("portmap", "DEL", &pod, &config).ok();
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn the_rules_are_those_of_upstream() {
    for kind in ["nft", "legacy"] {
        let machine = Machine::new(kind);
        let (pod, previous) = pod_with_server(&machine.node);
        machine.run("portmap", "ADD", &pod, &config(&previous, mappings())).ok();
        let two = Pod::new("two");
        machine.run("portmap", "ADD", &two, &config(&previous, mappings())).ok();
        machine.run("portmap", "DEL", &two, &config(&previous, mappings())).ok();
        // What iptables -S shows after portMapperIPTables.forwardPorts of containernetworking/plugins 1.10.0.
        let expected = [
            "-P PREROUTING ACCEPT",
            "-P INPUT ACCEPT",
            "-P OUTPUT ACCEPT",
            "-P POSTROUTING ACCEPT",
            &format!("-N {OF_1234}"),
            "-N CNI-HOSTPORT-DNAT",
            "-N CNI-HOSTPORT-MASQ",
            "-N CNI-HOSTPORT-SETMARK",
            "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            "-A POSTROUTING -m comment --comment \"CNI portfwd requiring masquerade\" -j CNI-HOSTPORT-MASQ",
            &format!(
                "-A {OF_1234} -s 10.1.2.0/24 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK"
            ),
            &format!(
                "-A {OF_1234} -s 127.0.0.1/32 -p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK"
            ),
            &format!(
                "-A {OF_1234} -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.1.2.2:80"
            ),
            &format!(
                "-A {OF_1234} -s 10.1.2.0/24 -d 127.0.0.1/32 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK"
            ),
            &format!(
                "-A {OF_1234} -s 127.0.0.1/32 -d 127.0.0.1/32 -p udp -m udp --dport 5353 -j CNI-HOSTPORT-SETMARK"
            ),
            &format!(
                "-A {OF_1234} -d 127.0.0.1/32 -p udp -m udp --dport 5353 -j DNAT --to-destination 10.1.2.2:53"
            ),
            &format!(
                "-A CNI-HOSTPORT-DNAT -p tcp -m comment --comment \"dnat name: \\\"test\\\" id: \\\"1234\\\"\" -m multiport --dports 8080 -j {OF_1234}"
            ),
            &format!(
                "-A CNI-HOSTPORT-DNAT -p udp -m comment --comment \"dnat name: \\\"test\\\" id: \\\"1234\\\"\" -m multiport --dports 5353 -j {OF_1234}"
            ),
            "-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
            "-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j MARK --set-xmark 0x2000/0x2000",
        ];
        let sorted = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            // Chains have no order; rules have one within their chain.
            lines
                .sort_by_key(|line| line.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>());
            lines
        };
        assert_eq!(sorted(&machine.nat("-S")), sorted(&expected.join("\n")), "{kind}");
        let ipv6 = machine.of_family("ip6tables", "-S");
        assert!(ipv6.contains("-j DNAT --to-destination [fd00:1::2]:80"), "{ipv6}");
        // The ports are all led to it, but only one is for this family.
        assert!(!ipv6.contains("--dport 5353"), "{ipv6}");
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn what_containers_share_is_made_right() {
    for kind in ["nft", "legacy"] {
        let machine = Machine::new(kind);
        let (pod, previous) = pod_with_server(&machine.node);
        let config = config(&previous, mappings());
        machine.run("portmap", "ADD", &pod, &config).ok();
        let right = machine.nat("-S");
        for damage in ["-F PREROUTING", "-F CNI-HOSTPORT-SETMARK", "-F POSTROUTING"] {
            machine.nat(damage);
            assert_eq!(machine.run("portmap", "CHECK", &pod, &config).refused().0, 102, "{damage}");
            // The same container again, of which some is there.
            machine.run("portmap", "ADD", &pod, &config).ok();
            machine.run("portmap", "CHECK", &pod, &config).ok();
            assert_eq!(machine.nat("-S").lines().count(), right.lines().count(), "{damage}");
        }
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn containers_that_come_and_go_at_once_do_not_disturb_each_other() {
    for kind in ["nft", "legacy"] {
        let machine = Machine::new(kind);
        let (_pod, previous) = pod_with_server(&machine.node);
        let config = config(&previous, mappings());
        machine.node.program("portmap");
        let work = |worker: usize| {
            for number in 0..3 {
                let pod = Pod::new(&format!("c{worker}-{number}"));
                machine.run("portmap", "ADD", &pod, &config).ok();
                machine.run("portmap", "CHECK", &pod, &config).ok();
                machine.run("portmap", "DEL", &pod, &config).ok();
            }
        };
        std::thread::scope(|scope| {
            let work = &work;
            (0..4).for_each(|worker| drop(scope.spawn(move || work(worker))));
        });
        let left = machine.nat("-S");
        assert!(!left.contains("CNI-DN") && left.contains("-N CNI-HOSTPORT-DNAT"), "{left}");
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn what_one_family_refuses_is_taken_back_in_the_other() {
    for kind in ["nft", "legacy"] {
        let machine = Machine::new(kind);
        let (pod, previous) = pod_with_server(&machine.node);
        let mut config = config(&previous, mappings());
        config["conditionsV6"] = json!(["--no-such-condition"]);
        machine.run("portmap", "ADD", &pod, &config).refused();
        for family in ["iptables", "ip6tables"] {
            let rules = machine.of_family(family, "-S");
            assert!(!rules.contains("CNI-DN"), "{kind} {family}: {rules}");
        }
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn gc_removes_what_the_runtime_does_not_list_and_nothing_else() {
    for (kind, backend) in [("nft", "iptables"), ("legacy", "iptables"), ("nft", "nftables")] {
        let machine = Machine::new(kind);
        let (_pod, previous) = pod_with_server(&machine.node);
        let mut config = config(&previous, mappings());
        config["backend"] = backend.into();
        let mut of_other_network = config.clone();
        of_other_network["name"] = "other".into();
        machine.run("portmap", "ADD", &Pod::new("kept"), &config).ok();
        machine.run("portmap", "ADD", &Pod::new("stale"), &config).ok();
        machine.run("portmap", "ADD", &Pod::new("of-other"), &of_other_network).ok();
        // As containernetworking's plugin makes them: they do not say which network they are of.
        let nft = |words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            program(&machine.node.host, Path::new("nft"), &words)
        };
        if backend == "nftables" {
            nft(
                "add rule ip cni_hostport hostports tcp dport 1 dnat to 10.1.2.9:1 comment \"foreign\"",
            );
        }
        let rules = || match (backend, kind) {
            ("iptables", _) => machine.nat("-S") + &machine.of_family("ip6tables", "-S"),
            _ => nft("list ruleset"),
        };
        let count = |id: &str| rules().lines().filter(|line| line.contains(id)).count();
        let before = ["kept", "of-other", "foreign"].map(count);
        assert!(count("stale") > 0 && before[0] > 0 && before[1] > 0, "{kind} {backend}");
        let mut gc = config.clone();
        gc["cni.dev/valid-attachments"] = json!([{"containerID": "kept", "ifname": "eth0"}]);
        machine.run("portmap", "GC", &Pod::new("any"), &gc).ok();
        assert_eq!(count("stale"), 0, "{kind} {backend}: {}", rules());
        assert_eq!(["kept", "of-other", "foreign"].map(count), before, "{kind} {backend}");
        assert_eq!(rules().matches("-N CNI-DN-").count() % 2, 0, "of both families");
        machine.run("portmap", "CHECK", &Pod::new("kept"), &config).ok();
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn the_status_names_the_program_without_which_no_pod_can_be_connected() {
    let (node, pod) = (Node::new(), Pod::new("x"));
    let tools = node.folder.path().join("tools");
    fs::create_dir(&tools).unwrap();
    fs::copy("/usr/sbin/xtables-nft-multi", tools.join("xtables-nft-multi")).unwrap();
    let config = |backend: &str, keys: Value| {
        let mut config =
            json!({"cniVersion": "1.1.0", "name": "n", "type": "portmap", "backend": backend});
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        config
    };
    // Where programs usually are there is nothing.
    let hidden = "mount -t tmpfs none /usr/sbin && exec \"$0\"";
    let path = format!("{}:/usr/bin:/bin", tools.display());
    let status = |config: Value| {
        let program = node.program("portmap");
        let words = ["unshare", "-m", "sh", "-c", hidden, program.to_str().unwrap()];
        Reply::of(node.start(&words, "STATUS", &pod, &config, &[("PATH", &path)]))
    };
    let install = |name: &str| {
        for suffix in ["", "-save", "-restore"] {
            symlink("xtables-nft-multi", tools.join(format!("{name}{suffix}"))).unwrap();
        }
    };
    let missing = |name: &str| (50, format!("failed to locate {name}"));
    let of_ipv6 = || config("iptables", json!({"conditionsV6": ["-s", "fd00::/8"]}));
    assert_eq!(status(config("iptables", json!({}))).refused(), missing("iptables"));
    install("iptables");
    // That is all that pods with IPv4 alone need.
    status(config("iptables", json!({}))).ok();
    assert_eq!(status(of_ipv6()).refused(), missing("ip6tables"));
    install("ip6tables");
    status(of_ipv6()).ok();
    status(config("nftables", json!({}))).ok();
    let of_nft = config("nftables", json!({"conditionsV4": ["ip saddr 10.0.0.0/8"]}));
    let (code, message) = status(of_nft).refused();
    assert!(code == 50 && message.ends_with("failed to locate nft"), "{code} {message}");
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn nft_is_found_where_iptables_is() {
    let (node, pod) = (Node::new(), Pod::new("x"));
    let previous = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.2.3/24"}]});
    let mut config = portmap_config(&previous, mappings());
    config["conditionsV4"] = json!(["ip saddr 10.0.0.0/8"]);
    config["snat"] = false.into();
    for verb in ["STATUS", "ADD"] {
        Reply::of(node.start(&["portmap"], verb, &pod, &config, &[("PATH", "/bin")])).ok();
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_bridge_masquerades_what_leaves_its_subnet() {
    for kind in ["nft", "legacy"] {
        let machine = Machine::new(kind);
        let (one, two) = (Pod::new("one"), Pod::new("two"));
        let mut config = bridge_config(&machine.node, "cni0", "192.168.1.0/24", "fd00:1::/64");
        config["ipMasq"] = true.into();
        machine.run("bridge", "ADD", &one, &config).ok();
        machine.run("bridge", "ADD", &two, &config).ok();
        let rules = machine.nat("-S");
        // As setupIPMasqIPTables of containernetworking/plugins 1.10.0.
        let comment = "-m comment --comment \"name: \\\"test\\\" id: \\\"one\\\"\"";
        let line = |start: &str, end: &str| {
            let found = rules.lines().find(|it| it.starts_with(start) && it.ends_with(end));
            assert!(found.is_some(), "{kind}: no {start} ... {end} in {rules}");
            found.unwrap().to_owned()
        };
        let jump = line(&format!("-A POSTROUTING -s 192.168.1.2/32 {comment} -j CNI-"), "");
        let chain = jump.split(' ').next_back().unwrap();
        line(&format!("-A {chain} -d 192.168.1.0/24 {comment}"), "-j ACCEPT");
        line(&format!("-A {chain} ! -d 224.0.0.0/4 {comment}"), "-j MASQUERADE");
        assert!(machine.of_family("ip6tables", "-S").contains("-s fd00:1::2/128"));
        config["cni.dev/valid-attachments"] = json!([{"containerID": "two", "ifname": "eth0"}]);
        machine.run("bridge", "GC", &one, &config).ok();
        let rules = machine.nat("-S");
        assert!(!rules.contains(chain) && rules.contains("\\\"two\\\""), "{rules}");
        machine.run("bridge", "DEL", &two, &config).ok();
        let rules = machine.nat("-S") + &machine.of_family("ip6tables", "-S");
        assert!(!rules.contains("-N CNI-"), "{rules}");
    }
}
