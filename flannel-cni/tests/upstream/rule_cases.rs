//! The tables of plugins that keep rules, and of flannel's.

use serde_json::{Value, json};

use crate::{
    cases::{FAMILIES, VERSIONS, case, config, host_local, life, short_life},
    matrix::{
        Step::{self, Call, Gone, Ip, Run, Write},
        compare,
    },
};

/// What the plugin before `portmap` answered, as this version prints it.
fn previous(version: &str, family: &str) -> Value {
    let addresses = [("4", "10.1.2.3/24"), ("6", "fd00:1::3/64")];
    let of_family =
        addresses.into_iter().filter(|(number, _)| family == "dual" || family.ends_with(number));
    if version < "0.3.0" {
        let mut result = json!({"cniVersion": version});
        for (number, address) in of_family {
            result[format!("ip{number}")] = json!({"ip": address});
        }
        return result;
    }
    let ips = of_family.map(|(number, address)| match version < "1.0.0" {
        true => json!({"version": number, "interface": 1, "address": address}),
        false => json!({"interface": 1, "address": address}),
    });
    json!({
        "cniVersion": version,
        "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/c1"}],
        "ips": ips.collect::<Vec<_>>(),
    })
}

fn portmap(version: &str, family: &str, keys: Value) -> Value {
    let mut with = json!({
        "cniVersion": version, "prevResult": previous(version, family),
        "runtimeConfig": {"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp"},
        ]},
    });
    with.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config("portmap", with)
}

fn mapping(mapping: Value) -> Value {
    let mut full = json!({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"});
    full.as_object_mut().unwrap().extend(mapping.as_object().unwrap().clone());
    json!({"runtimeConfig": {"portMappings": [full]}})
}

/// The way to the containers.
fn wired(steps: Vec<Step>) -> Vec<Step> {
    let bridge = [
        Ip("host", "link add cni0 address 02:00:00:00:00:01 type bridge"),
        Ip("host", "addr add 10.1.2.1/24 dev cni0"),
        Ip("host", "link set cni0 up"),
    ];
    bridge.into_iter().chain(steps).collect()
}

#[test]
#[ignore = "needs CAP_NET_ADMIN and containernetworking's plugins: run ./ci.sh cni"]
fn portmap_is_upstreams() {
    let mut cases = Vec::new();
    for version in VERSIONS {
        cases.push(case(version, portmap(version, "dual", json!({})), wired(short_life())));
    }
    for backend in ["iptables", "nftables"] {
        for (family, _) in FAMILIES {
            let config = portmap("1.0.0", family, json!({"backend": backend}));
            cases.push(case(format!("{backend} {family}"), config, wired(life())));
        }
    }
    compare("portmap", &cases);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN and containernetworking's plugins: run ./ci.sh cni"]
fn the_keys_of_portmap_are_upstreams() {
    let many: Vec<Value> = (1..=17)
        .map(|port| json!({"hostPort": 8000 + port, "containerPort": port, "protocol": "tcp"}))
        .collect();
    let mut cases = Vec::new();
    for backend in ["iptables", "nftables"] {
        for (name, keys) in [
            ("no snat", json!({"snat": false})),
            ("all", json!({"masqAll": true})),
            ("address", mapping(json!({"hostIP": "10.1.2.1"}))),
            ("IPv6 address", mapping(json!({"hostIP": "fd00:1::1"}))),
            ("any address", mapping(json!({"hostIP": "0.0.0.0"}))),
            ("any IPv6 address", mapping(json!({"hostIP": "::"}))),
            ("many", json!({"runtimeConfig": {"portMappings": many}})),
            ("sctp", mapping(json!({"protocol": "sctp"}))),
            ("none", json!({"runtimeConfig": {"portMappings": []}})),
            ("no result", json!({"prevResult": null})),
            ("port 0", mapping(json!({"hostPort": 0}))),
            ("container port 0", mapping(json!({"containerPort": 0}))),
            ("bit", json!({"markMasqBit": 14})),
            ("bad bit", json!({"markMasqBit": 32})),
            ("bit and chain", json!({"markMasqBit": 14, "externalSetMarkChain": "X"})),
            ("condition", json!({"conditionsV4": ["!", "-d", "192.0.2.0/24"]})),
            ("conditions", json!({"conditionsV6": ["-s", "fd00:7::/64"]})),
            ("condition of nft", json!({"conditionsV4": ["ip", "saddr", "!=", "192.0.2.0/24"]})),
            (
                "conditions of nft",
                json!({"conditionsV4": ["iifname != \"lo\""], "conditionsV6": ["ip6 saddr fd00:7::/64"]}),
            ),
            ("wrong condition of nft", json!({"conditionsV6": ["no such words"]})),
        ] {
            let mut with = portmap("1.0.0", "dual", json!({"backend": backend}));
            with.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
            cases.push(case(format!("{name}, {backend}"), with, wired(short_life())));
        }
    }
    let unknown = portmap("1.0.0", "v4", json!({"backend": "x"}));
    cases.push(case("unknown", unknown, wired(short_life())));
    let chain = json!({"backend": "iptables", "externalSetMarkChain": "KUBE-MARK-MASQ"});
    let steps = [Run("iptables -t nat -N KUBE-MARK-MASQ")].into_iter().chain(short_life());
    cases.push(case("chain", portmap("1.0.0", "v4", chain), wired(steps.collect())));
    for (backend, state) in [
        ("iptables", "iptables -t nat -N CNI-HOSTPORT-DNAT"),
        ("iptables", "iptables -t nat -A PREROUTING -j ACCEPT"),
        ("nftables", "nft add table ip cni_hostport"),
        ("nftables", "nft add table ip nat"),
    ] {
        let config = portmap("1.0.0", "v4", json!({"backend": backend}));
        let steps = [Run(state)].into_iter().chain(short_life()).collect();
        cases.push(case(format!("before: {state}"), config, wired(steps)));
    }
    for (backend, damage) in [
        ("iptables", "iptables -t nat -F CNI-HOSTPORT-DNAT"),
        ("nftables", "nft flush chain ip cni_hostport hostports"),
        ("nftables", "nft flush chain ip cni_hostport masquerading"),
    ] {
        let config = portmap("1.0.0", "v4", json!({"backend": backend}));
        let steps = vec![Call("ADD", "c1"), Run(damage), Call("CHECK", "c1"), Call("DEL", "c1")];
        cases.push(case(format!("damage: {damage}"), config, wired(steps)));
    }
    compare("portmap keys", &cases);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN and containernetworking's plugins: run ./ci.sh cni"]
fn masquerading_is_upstreams() {
    let mut cases = Vec::new();
    for backend in [None, Some("iptables"), Some("nftables")] {
        for (family, subnets) in FAMILIES {
            let keys = json!({
                "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": backend, "ipam": host_local(subnets),
            });
            let name = format!("{} {family}", backend.unwrap_or("any"));
            cases.push(case(name, config("bridge", keys), life()));
        }
    }
    compare("bridge masquerade", &cases);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN and containernetworking's plugins: run ./ci.sh cni"]
fn the_check_of_ethernet_addresses_is_upstreams() {
    let mut cases = Vec::new();
    for (name, keys, before) in [
        ("plain", json!({}), None),
        ("requested", json!({"runtimeConfig": {"mac": "c2:11:22:33:44:55"}}), None),
        ("no addresses", json!({"ipam": {}}), None),
        ("table is there", json!({}), Some("nft add table bridge nat")),
        (
            "chains are there",
            json!({}),
            Some("ebtables-nft -t nat -A PREROUTING -s 02:00:00:00:00:01 -j DROP"),
        ),
    ] {
        let mut with =
            json!({"isGateway": true, "macspoofchk": true, "ipam": host_local(FAMILIES[2].1)});
        with.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let steps = before.map(Run).into_iter().chain(life()).collect();
        cases.push(case(name, config("bridge", with), steps));
    }
    compare("bridge spoof check", &cases);
}

const SUBNET_ENV: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n";
const DUAL: &str = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_IPV6_NETWORK=fd00:1::/48\nFLANNEL_IPV6_SUBNET=fd00:1:0:2::1/64\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n";

#[test]
#[ignore = "needs CAP_NET_ADMIN and containernetworking's plugins: run ./ci.sh cni"]
fn flannel_is_upstreams() {
    let flannel = |version: &str, keys: Value| {
        let mut with = json!({
            "cniVersion": version, "subnetFile": "FOLDER/networks/subnet.env", "subnetFileWait": 0,
            "dataDir": "FOLDER/networks/flannel", "ipam": {"dataDir": "FOLDER/networks"},
            "delegate": {"isDefaultGateway": true, "hairpinMode": true},
        });
        with.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        config("flannel", with)
    };
    let on = |env: &'static str, steps: Vec<Step>| {
        [Write("subnet.env", env)].into_iter().chain(steps).collect::<Vec<_>>()
    };
    let mut cases = Vec::new();
    // The other side stands for flannel's plugin, as far as it does the same: it neither looks at versions nor refuses anything.
    for version in VERSIONS.into_iter().filter(|version| *version != "9.9.9") {
        cases.push(case(version, flannel(version, json!({})), on(SUBNET_ENV, short_life())));
    }
    cases.push(case("dual", flannel("1.0.0", json!({})), on(DUAL, life())));
    for (name, keys) in [
        ("no delegate", json!({"delegate": null})),
        ("delegate's mtu", json!({"delegate": {"mtu": 1300}})),
        ("delegate's masquerade", json!({"delegate": {"ipMasq": true}})),
        ("unknown delegate", json!({"delegate": {"type": "none-such"}})),
        ("unknown ipam", json!({"ipam": {"type": "none-such"}})),
        ("mac", json!({"runtimeConfig": {"mac": "c2:11:22:33:44:55"}})),
    ] {
        cases.push(case(name, flannel("1.0.0", keys), on(SUBNET_ENV, short_life())));
    }
    let masquerade = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.2.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=false\n";
    cases.push(case("masquerade", flannel("1.0.0", json!({})), on(masquerade, short_life())));
    cases.push(case("no file", flannel("1.0.0", json!({})), short_life()));
    let moved = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.9.1/24\nFLANNEL_MTU=1300\nFLANNEL_IPMASQ=true\n";
    let steps =
        [Call("ADD", "c1"), Write("subnet.env", moved), Call("DEL", "c1"), Call("DEL", "c1")];
    cases.push(case("moved", flannel("1.0.0", json!({})), on(SUBNET_ENV, steps.to_vec())));
    let steps = [Call("ADD", "c1"), Gone("c1"), Call("DEL", "c1")];
    cases.push(case("gone", flannel("1.0.0", json!({})), on(SUBNET_ENV, steps.to_vec())));
    compare("flannel", &cases);
}
