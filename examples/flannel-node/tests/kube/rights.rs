//! What a node asks of the API server, compared with the rights that it is given.

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use flannel_testbed::kube::Right;
use serde_json::json;

use crate::cluster::{Cluster, eventually, ipv4};

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh kube"]
async fn nodes_use_all_the_rights_that_they_are_given_and_no_others() {
    let cluster = Cluster::new(2, &ipv4("host-gw")).await;
    let server = &cluster.server;
    let given = rights_of_the_manifest();
    server.behave(|it| it.allowed = Some(given.clone()));
    let _first = cluster.start_ours(0).await;
    eventually("it tells its condition", async || cluster.condition(0).is_some()).await;
    // Nodes that are new have no block in a watch of metadata. They use another backend: the event of one is counted again for the next.
    for (count, name) in [(1, "other1"), (2, "other2")] {
        cluster.add_stranger(name, 100 + count);
        eventually("the node's event is told", async || {
            let events = server.names("events").into_iter();
            let events: Vec<_> = events.filter_map(|key| server.get("events", &key)).collect();
            events.iter().any(|event| event["count"] == count)
        })
        .await;
    }
    // An API server that has forgotten what happened and streams no lists.
    server.behave(|it| it.watch_list = false);
    server.compact();
    server.cut_streams();
    let mut used = BTreeSet::new();
    let mut uses = |resource: &str| {
        let asked = server.take_requests().into_iter();
        used.extend(asked.filter_map(|it| it.right()).map(|it| Right { namespace: None, ..it }));
        (used.iter().any(|it| it.verb == "list" && it.resource == resource), used.clone())
    };
    eventually("it lists all nodes", async || uses("nodes").0).await;
    assert_eq!(uses("nodes").1, given, "what is used, and what the manifest gives");

    // What it may do besides, if its options want that.
    let documented = rights_of_the_documents();
    let in_namespace = |right: Right| match right.resource.as_str() {
        "configmaps" | "pods" => Right { namespace: Some("kube-flannel".into()), ..right },
        _ => right,
    };
    let given = documented.iter().cloned().map(in_namespace).collect();
    server.behave(|it| it.allowed = Some(given));
    let pod = json!({"metadata": {"name": "flannel-1"}, "spec": {"nodeName": "node1"}});
    server.put("pods", "kube-flannel/flannel-1", pod);
    let data = json!({"net-conf.json": ipv4("host-gw")});
    let map = json!({"metadata": {"name": "kube-flannel-cfg"}, "data": data});
    server.put("configmaps", "kube-flannel/kube-flannel-cfg", map);
    let mut command = Command::new(env!("CARGO_BIN_EXE_flannel-node"));
    command.args(["--kube-subnet-mgr", "--iface=eth0", "--kube-api-url", &server.url()]);
    command.arg("--net-config-map=kube-flannel/kube-flannel-cfg");
    command.arg("--subnet-file").arg(cluster.subnet_file(1));
    command
        .env_remove("NODE_NAME")
        .envs([("POD_NAMESPACE", "kube-flannel"), ("POD_NAME", "flannel-1")]);
    let mut second = cluster.host(1).spawn(command).unwrap();
    let ready = |line: &str| line.contains(" ready subnet=");
    second.line(Duration::from_secs(60), ready).await.unwrap();
    eventually("it follows the ConfigMap", async || {
        let watches =
            |it: &Right| (it.verb.as_str(), it.resource.as_str()) == ("watch", "configmaps");
        uses("configmaps").1.iter().any(watches)
    })
    .await;
    assert_eq!(uses("configmaps").1, documented, "what is used, and what docs/kubernetes.md says");
}

/// What the ClusterRole grants.
fn rights_of_the_manifest() -> BTreeSet<Right> {
    let manifest = text("dist/kubernetes/kube-flannel.yml");
    let mut roles = manifest.split("\n---\n").filter(|it| it.contains("Role\nmetadata:"));
    let (Some(role), None) = (roles.next(), roles.next()) else { panic!("not one role") };
    let rules: Vec<&str> = role.split_once("\nrules:\n").unwrap().1.lines().collect();
    let list = |line: &str, name: &str| {
        let line = line.trim_start_matches(['-', ' ']).strip_prefix(name).expect(name);
        let words = line.trim_matches([':', ' ', '[', ']']).split(", ");
        words.map(|word| word.trim_matches('"').to_owned()).collect::<Vec<_>>()
    };
    let mut rights = BTreeSet::new();
    for rule in rules.chunks(3) {
        let [groups, resources, verbs] = rule else { panic!("{rule:?}") };
        assert_eq!(list(groups, "apiGroups"), [""]);
        for resource in list(resources, "resources") {
            rights.extend(list(verbs, "verbs").into_iter().map(|verb| right(&verb, &resource)));
        }
    }
    rights
}

/// What the table of docs/kubernetes.md says, without the namespaces.
fn rights_of_the_documents() -> BTreeSet<Right> {
    let page = text("docs/kubernetes.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| core | "));
    let mut rights = BTreeSet::new();
    for row in rows {
        let mut columns = row.split(" | ").map(|column| column.split('`').skip(1).step_by(2));
        let resource = columns.next().and_then(|mut it| it.next()).unwrap();
        rights.extend(columns.next().unwrap().map(|verb| right(verb, resource)));
    }
    rights
}

fn right(verb: &str, resource: &str) -> Right {
    let (verb, resource) = (verb.into(), resource.into());
    Right { verb, group: String::new(), resource, namespace: None }
}

fn text(file: &str) -> String {
    fs::read_to_string(format!("{}/../../{file}", env!("CARGO_MANIFEST_DIR"))).expect(file)
}
