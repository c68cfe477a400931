//! Addresses that pods get back by their names.

use serde_json::{Value, json};

use crate::support::{Node, Pod, Reply};

fn config(node: &Node, patterns: Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net1", "type": "bridge", "bridge": "cni0", "isGateway": true,
        "ipam": {
            "type": "host-local", "dataDir": node.folder.path().join("networks"),
            "ranges": [[{"subnet": "10.1.2.0/29"}], [{"subnet": "fd00:1::/64"}]], "keepAddressesFor": patterns,
        },
    })
}

/// Connects a container that is this pod, and returns its addresses.
fn add(node: &Node, id: &str, pod: &str, config: &Value) -> [String; 2] {
    let arguments = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME={pod}");
    let container = Pod::new(id);
    let variables = [("CNI_ARGS", &*arguments)];
    let result = Reply::of(node.start(&["bridge"], "ADD", &container, config, &variables)).ok();
    // As for a restart of the pod; what the runtime says of it then does not matter.
    node.run("bridge", "DEL", &container, config).ok();
    [0, 1].map(|index| result["ips"][index]["address"].as_str().unwrap().to_owned())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn a_pod_has_its_addresses_after_a_restart_and_others_get_them_last() {
    let node = Node::new();
    let some = config(&node, json!(["prod/db-*"]));
    let of_db = add(&node, "c1", "db-0", &some);
    assert_eq!(of_db, ["10.1.2.2/29", "fd00:1::2/64"]);
    // Five addresses of IPv4 are left to the others.
    let others: Vec<_> =
        (0..8).map(|number| add(&node, &format!("w{number}"), "web", &some)).collect();
    assert!(others.iter().all(|of_web| of_web[0] != of_db[0]), "{others:?}");
    assert_eq!(add(&node, "c2", "db-0", &some), of_db);
    // Without a free one besides, it is given to whoever needs it.
    let others = ["a", "b", "c", "d"].map(Pod::new);
    for pod in &others {
        node.run("bridge", "ADD", pod, &some).ok();
    }
    assert_eq!(add(&node, "c3", "web", &some)[0], of_db[0]);
    // Its address of the other family is not kept alone.
    let kept = node.folder.path().join("networks/.flannel-cni/net1/kept");
    assert_eq!(std::fs::read_dir(kept).unwrap().count(), 0);
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
fn gc_forgets_pods_that_are_not_to_get_theirs_back_any_more() {
    let node = Node::new();
    let of_db = add(&node, "c1", "db-0", &config(&node, json!(["prod/db-*"])));
    let mut none = config(&node, json!([]));
    none["cni.dev/valid-attachments"] = json!([]);
    node.run("bridge", "GC", &Pod::new("x"), &none).ok();
    assert_ne!(add(&node, "c2", "db-0", &config(&node, json!(["prod/db-*"]))), of_db);
}
