//! The tables.

use serde_json::{Value, json};

use crate::matrix::{
    Case,
    Step::{self, Call, CallWith, Gone, Ip, Write},
    compare,
};

pub(crate) const VERSIONS: [&str; 8] =
    ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", "9.9.9"];
pub(crate) const FAMILIES: [(&str, &[&str]); 3] =
    [("v4", &["10.1.2.0/24"]), ("v6", &["fd00:1::/64"]), ("dual", &["10.1.2.0/24", "fd00:1::/64"])];

/// The life of two containers, with calls that a runtime repeats.
pub(crate) fn life() -> Vec<Step> {
    vec![
        Call("ADD", "c1"),
        Call("CHECK", "c1"),
        Call("ADD", "c2"),
        Call("ADD", "c1"),
        Call("STATUS", "c1"),
        Call("DEL", "c1"),
        Call("DEL", "c1"),
        Call("CHECK", "c1"),
        Call("ADD", "c1"),
        Call("DEL", "c2"),
        Gone("c1"),
        Call("DEL", "c1"),
    ]
}

/// The life of one, beside another.
pub(crate) fn short_life() -> Vec<Step> {
    vec![Call("ADD", "c1"), Call("CHECK", "c1"), Call("ADD", "c2"), Call("DEL", "c1")]
}

pub(crate) fn host_local(subnets: &[&str]) -> Value {
    let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{"subnet": subnet}])).collect();
    json!({"type": "host-local", "dataDir": "FOLDER/networks", "ranges": ranges})
}

/// A configuration of `plugin` with these keys.
pub(crate) fn config(plugin: &str, keys: Value) -> Value {
    let mut config = json!({"cniVersion": "1.0.0", "name": "net1", "type": plugin});
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

pub(crate) fn case(name: impl Into<String>, config: Value, steps: Vec<Step>) -> Case {
    Case { name: name.into(), config, steps }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN and containernetworking's plugins: run ./ci.sh cni"]
fn loopback_is_upstreams() {
    let mut cases: Vec<Case> = VERSIONS
        .iter()
        .map(|version| case(*version, config("loopback", json!({"cniVersion": version})), life()))
        .collect();
    let up = || Ip("c1", "link set lo up");
    let again = || vec![Ip("c1", "addr add 10.9.9.9/32 dev lo"), up(), Call("ADD", "c1")];
    cases.push(case("foreign address", config("loopback", json!({})), again()));
    compare("loopback", &cases);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN and containernetworking's plugins: run ./ci.sh cni"]
fn host_local_is_upstreams() {
    let mut cases = Vec::new();
    for version in VERSIONS {
        for (family, subnets) in FAMILIES {
            let keys = json!({"cniVersion": version, "ipam": host_local(subnets)});
            cases.push(case(format!("{version} {family}"), config("host-local", keys), life()));
        }
    }
    let range = |keys: Value| {
        let mut range = json!({"subnet": "10.1.2.0/29"});
        range.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        json!({"ipam": {"type": "host-local", "dataDir": "FOLDER/networks", "ranges": [[range]]}})
    };
    let ipam = |keys: Value| {
        let mut ipam = host_local(&["10.1.2.0/29"]);
        ipam.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        json!({"ipam": ipam})
    };
    for (name, keys) in [
        ("range", range(json!({"rangeStart": "10.1.2.3", "rangeEnd": "10.1.2.4"}))),
        ("one address", range(json!({"rangeStart": "10.1.2.3", "rangeEnd": "10.1.2.3"}))),
        ("gateway", range(json!({"gateway": "10.1.2.3"}))),
        ("gateway outside", range(json!({"gateway": "10.9.2.3"}))),
        ("start outside", range(json!({"rangeStart": "10.9.2.3"}))),
        ("start behind end", range(json!({"rangeStart": "10.1.2.5", "rangeEnd": "10.1.2.3"}))),
        ("host bits", range(json!({"subnet": "10.1.2.1/29"}))),
        ("/30", range(json!({"subnet": "10.1.2.0/30"}))),
        ("/31", range(json!({"subnet": "10.1.2.0/31"}))),
        ("/32", range(json!({"subnet": "10.1.2.0/32"}))),
        ("no subnet", range(json!({"subnet": null}))),
        ("no range", ipam(json!({"ranges": []}))),
        ("empty range", ipam(json!({"ranges": [[]]}))),
        ("no ipam", json!({})),
        (
            "ranges overlap",
            ipam(json!({"ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "10.1.0.0/16"}]]})),
        ),
        (
            "families mixed",
            ipam(json!({"ranges": [[{"subnet": "10.1.2.0/24"}, {"subnet": "fd00::/64"}]]})),
        ),
        (
            "two ranges in a set",
            ipam(json!({"ranges": [[{"subnet": "10.1.2.0/30"}, {"subnet": "10.1.3.0/30"}]]})),
        ),
        (
            "single",
            json!({"ipam": {"type": "host-local", "dataDir": "FOLDER/networks", "subnet": "10.1.2.0/29"}}),
        ),
        (
            "routes",
            ipam(
                json!({"routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "10.1.2.3", "mtu": 1400}]}),
            ),
        ),
        ("route without destination", ipam(json!({"routes": [{"gw": "10.1.2.3"}]}))),
        ("no resolv.conf", ipam(json!({"resolvConf": "FOLDER/none"}))),
    ] {
        cases.push(case(name, config("host-local", keys), short_life()));
    }
    for (name, keys) in [
        ("ips", json!({"runtimeConfig": {"ips": ["10.1.2.4"]}})),
        ("ips with prefix", json!({"runtimeConfig": {"ips": ["10.1.2.4/29"]}})),
        ("ips outside", json!({"runtimeConfig": {"ips": ["10.9.2.4"]}})),
        ("ips gateway", json!({"runtimeConfig": {"ips": ["10.1.2.1"]}})),
        ("args", json!({"args": {"cni": {"ips": ["10.1.2.5"]}}})),
        ("args garbage", json!({"args": {"cni": {"ips": ["x"]}}})),
        ("ip ranges", json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.7.0.0/24"}]]}})),
    ] {
        let mut with = ipam(json!({}));
        with.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        cases.push(case(name, config("host-local", with), short_life()));
    }
    let plain = || config("host-local", ipam(json!({})));
    for (name, arguments) in [
        ("CNI_ARGS", "IP=10.1.2.5"),
        ("CNI_ARGS unknown", "IP=10.1.2.5;K8S_POD_NAME=x"),
        ("CNI_ARGS ignored", "IgnoreUnknown=1;IP=10.1.2.5;K8S_POD_NAME=x"),
        ("CNI_ARGS garbage", "IP"),
        ("CNI_ARGS no address", "IP=x"),
    ] {
        cases.push(case(name, plain(), vec![CallWith("ADD", "c1", arguments), Call("DEL", "c1")]));
    }
    for (name, file, content) in [
        ("somebody's address", "net1/10.1.2.2", "other\r\neth0"),
        ("old file of c1", "net1/10.1.2.2", "c1"),
        ("old file with a line end", "net1/10.1.2.2", "c1\n"),
        ("garbage file", "net1/10.1.2.2", "\u{0}\u{1}"),
        ("garbage name", "net1/10.1.2.999", "x"),
        ("last of all", "net1/last_reserved_ip.0", "10.1.2.6"),
        ("last is elsewhere", "net1/last_reserved_ip.0", "10.9.9.9"),
        ("last is garbage", "net1/last_reserved_ip.0", "x"),
        ("last has a line end", "net1/last_reserved_ip.0", "10.1.2.4\n"),
        ("the folder is a file", "net1", ""),
    ] {
        let steps = [Write(file, content)].into_iter().chain(short_life()).collect();
        cases.push(case(name, plain(), steps));
    }
    compare("host-local", &cases);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN and containernetworking's plugins: run ./ci.sh cni"]
fn bridge_is_upstreams() {
    let mut cases = Vec::new();
    for version in VERSIONS {
        for (family, subnets) in FAMILIES {
            let keys = json!({
                "cniVersion": version, "isDefaultGateway": true, "hairpinMode": true, "mtu": 1400,
                "ipam": host_local(subnets),
            });
            cases.push(case(format!("{version} {family}"), config("bridge", keys), life()));
        }
    }
    compare("bridge", &cases);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN and containernetworking's plugins: run ./ci.sh cni"]
fn the_keys_of_bridge_are_upstreams() {
    let dual = FAMILIES[2].1;
    let routed = |routes: Value| {
        let mut ipam = host_local(dual);
        ipam["routes"] = routes;
        json!({"isGateway": true, "ipam": ipam})
    };
    let mut cases = Vec::new();
    for (name, keys) in [
        ("plain", json!({})),
        ("gateway", json!({"isGateway": true})),
        ("promiscuous", json!({"promiscMode": true})),
        ("hairpin and promiscuous", json!({"promiscMode": true, "hairpinMode": true})),
        ("isolated", json!({"portIsolation": true, "isGateway": true})),
        ("duplicates", json!({"enabledad": true, "isGateway": true})),
        ("no interface", json!({"disableContainerInterface": true})),
        ("no interface, no ipam", json!({"disableContainerInterface": true, "ipam": {}})),
        ("no ipam", json!({"ipam": {}})),
        ("unknown ipam", json!({"ipam": {"type": "none-such"}})),
        ("ipam out of range", json!({"ipam": host_local(&["10.1.2.0/32"])})),
        ("mac", json!({"runtimeConfig": {"mac": "c2:11:22:33:44:55"}})),
        ("mac in args", json!({"args": {"cni": {"mac": "c2:11:22:33:44:55"}}})),
        ("mac garbage", json!({"runtimeConfig": {"mac": "x"}})),
        ("ips", json!({"runtimeConfig": {"ips": ["10.1.2.9", "fd00:1::9"]}})),
        ("dns", json!({"dns": {"nameservers": ["10.9.9.9"], "search": ["a.b"], "options": ["x"]}})),
        ("other bridge", json!({"bridge": "br7", "isGateway": true})),
        ("spoof check", json!({"macspoofchk": true, "isGateway": true})),
        ("small mtu", json!({"mtu": 1000})),
        ("tiny mtu", json!({"mtu": 60})),
        (
            "routes",
            routed(
                json!([{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "mtu": 1300}, {"dst": "fd00::/16"}]),
            ),
        ),
        ("route gateway", routed(json!([{"dst": "10.0.0.0/8", "gw": "10.1.2.77", "priority": 7}]))),
        ("route metrics", routed(json!([{"dst": "10.0.0.0/8", "advmss": 1200, "mtu": 1300}]))),
        ("route table", routed(json!([{"dst": "10.0.0.0/8", "table": 100}]))),
        ("route scope", routed(json!([{"dst": "10.1.7.0/24", "scope": 253}]))),
        ("route unreachable", routed(json!([{"dst": "10.0.0.0/8", "gw": "192.0.2.1"}]))),
        ("route with host bits", routed(json!([{"dst": "10.1.1.1/8"}]))),
        ("bad vlan", json!({"vlan": 5000})),
        ("type of a key", json!({"mtu": "x"})),
    ] {
        let mut with = json!({"ipam": host_local(dual)});
        with.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        cases.push(case(name, config("bridge", with), short_life()));
    }
    let gateway = || config("bridge", json!({"isGateway": true, "ipam": host_local(dual)}));
    let bridge = || Ip("host", "link add cni0 type bridge");
    for (name, steps) in [
        ("bridge is there", vec![bridge()]),
        ("bridge is there and up", vec![bridge(), Ip("host", "link set cni0 up mtu 1300")]),
        (
            "bridge with another address",
            vec![bridge(), Ip("host", "addr add 10.1.2.7/24 dev cni0")],
        ),
        ("bridge with the address", vec![bridge(), Ip("host", "addr add 10.1.2.1/24 dev cni0")]),
        (
            "bridge with another IPv6 network",
            vec![bridge(), Ip("host", "addr add fd00:7::1/64 dev cni0")],
        ),
        (
            "bridge with another IPv6 address",
            vec![bridge(), Ip("host", "addr add fd00:1::7/64 dev cni0")],
        ),
        ("not a bridge", vec![Ip("host", "link add cni0 type veth peer name x")]),
        ("interface is there", vec![Ip("c1", "link add eth0 type bridge")]),
        ("address is there", vec![Write("net1/10.1.2.2", "other\r\neth0")]),
    ] {
        let mut forced = gateway();
        forced["forceAddress"] = true.into();
        for (force, config) in [("", gateway()), (", forced", forced)] {
            let steps = steps.iter().cloned().chain(short_life()).collect();
            cases.push(case(format!("{name}{force}"), config, steps));
        }
    }
    for (name, breakage) in [
        ("address gone", Ip("c1", "addr del 10.1.2.2/24 dev eth0")),
        ("interface down", Ip("c1", "link set eth0 down")),
        ("interface gone", Ip("c1", "link del eth0")),
        ("another mac", Ip("c1", "link set eth0 address 02:00:00:00:00:01")),
        ("bridge gone", Ip("host", "link del cni0")),
        ("bridge promiscuous", Ip("host", "link set cni0 promisc on")),
        ("bridge without address", Ip("host", "addr flush dev cni0")),
    ] {
        let steps = vec![Call("ADD", "c1"), breakage, Call("CHECK", "c1"), Call("DEL", "c1")];
        cases.push(case(name, gateway(), steps));
    }
    let mac = "IgnoreUnknown=1;MAC=c2:11:22:33:44:55";
    cases.push(case(
        "mac in CNI_ARGS",
        gateway(),
        vec![CallWith("ADD", "c1", mac), Call("DEL", "c1")],
    ));
    compare("bridge keys", &cases);
}
