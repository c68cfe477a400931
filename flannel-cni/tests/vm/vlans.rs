//! Containers in VLANs of one bridge.

use std::path::Path;

use flannel_netlink::Namespace;
use serde_json::{Value, json};

use crate::support::{Node, Pod, program};

fn config(keys: Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "net1", "type": "bridge", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": "FOLDER/networks",
            "ranges": [[{"subnet": "10.1.2.0/24"}], [{"subnet": "fd00:1::/64"}]],
        },
    });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

mod once {
    use serde_json::json;

    use super::config;
    use crate::matrix::{
        Case,
        Step::{Call, Ip},
        compare,
    };

    // Emulation is slow: a look takes a second.
    #[test]
    #[ignore = "needs another kernel: run ./ci.sh vm"]
    fn containers_in_vlans_are_as_upstreams() {
        let trunk = json!([{"minID": 10, "maxID": 12}, {"id": 20}]);
        let (bridge, other_default) = (
            Ip("host", "link add cni0 type bridge"),
            Ip("host", "link add cni0 type bridge vlan_filtering 1 vlan_default_pvid 7"),
        );
        let cases = [
            ("vlan", json!({"vlan": 100, "mtu": 1400}), vec![]),
            ("default kept", json!({"vlan": 100, "preserveDefaultVlan": true}), vec![bridge]),
            ("another default", json!({"vlan": 100}), vec![other_default]),
            ("trunk", json!({"vlanTrunk": trunk, "ipam": {}}), vec![]),
            (
                "trunk with vlan",
                json!({"vlan": 20, "vlanTrunk": trunk, "isGateway": false}),
                vec![],
            ),
        ];
        let cases = cases.map(|(name, keys, before)| {
            let life =
                [Call("ADD", "c1"), Call("CHECK", "c1"), Call("ADD", "c2"), Call("DEL", "c1")];
            let steps = before.into_iter().chain(life).collect();
            Case { name: name.to_owned(), config: config(keys), steps }
        });
        compare("bridge vlan", &cases);
    }
}

#[test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
fn vlans_are_kept_apart_and_reach_their_gateway() {
    let node = Node::new();
    let connect = |id: &str, network: &str, vlan: u16| {
        let pod = Pod::new(id);
        let mut config = config(json!({"vlan": vlan, "name": network, "isGateway": vlan == 100}));
        config["ipam"]["dataDir"] = node.folder.path().to_str().unwrap().into();
        // The same addresses in both: only the VLAN keeps them apart.
        config["ipam"]["ranges"] = json!([[{
            "subnet": "10.1.2.0/24", "rangeStart": format!("10.1.2.{id}"),
        }]]);
        node.run("bridge", "ADD", &pod, &config).ok();
        pod
    };
    let (one, _two) = (connect("10", "a", 100), connect("11", "a", 100));
    let _other = connect("12", "b", 200);
    let reaches = |address: &str| {
        let shell = format!("ping -c1 -W2 {address} >/dev/null && echo yes || echo no");
        program(&one.namespace, Path::new("sh"), &["-c", &shell]).trim() == "yes"
    };
    let reached = ["10.1.2.11", "10.1.2.1", "10.1.2.12"].map(reaches);
    assert_eq!(reached, [true, true, false]);
}

#[test]
#[ignore = "needs another kernel: run ./ci.sh vm"]
fn a_gateway_that_does_not_lead_to_the_bridge_is_not_taken() {
    let (node, elsewhere) = (Node::new(), Pod::new("elsewhere"));
    let on = |namespace: &Namespace, words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        program(namespace, Path::new("ip"), &words)
    };
    on(&node.host, "link add cni0.100 type veth peer name other");
    on(&node.host, &format!("link set other netns {}", elsewhere.netns()));
    on(&elsewhere.namespace, "link set other up");
    let mut config = config(json!({"vlan": 100}));
    config["ipam"]["dataDir"] = node.folder.path().to_str().unwrap().into();
    let (_, message) = node.run("bridge", "ADD", &Pod::new("c1"), &config).refused();
    assert!(message.contains("no port of \"cni0\" leads there"), "{message}");
    on(&node.host, "link delete cni0.100");
    node.run("bridge", "ADD", &Pod::new("c1"), &config).ok();
}
