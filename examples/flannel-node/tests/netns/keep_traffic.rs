//! `flannel-node teardown --keep-traffic`.

use std::process::Command;

use flannel_testbed::probe;

use super::support::{Cluster, HOST_GW, VXLAN, program};

const UDP: &str = r#"{"Network":"10.244.0.0/16","Backend":{"Type":"udp"}}"#;

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn what_flanneld_would_have_made_stays_and_no_packet_is_lost() {
    for (network, device) in [(HOST_GW, "eth0"), (VXLAN, "flannel.1")] {
        let cluster = Cluster::new(2, network).await;
        let (mut nodes, pods) = cluster.start_all().await;
        let peer = cluster.subnet(1).ipv4().unwrap();
        let streams = probe::streams_both_ways(&pods[0], &pods[1], 100).unwrap();
        streams.flowing().await;
        let route = async || cluster.shell(0, &format!("ip route show {peer}")).await;
        assert!(route().await.contains("nhid"), "{}", route().await);

        let refused = teardown(&cluster, false).await.unwrap_err();
        assert!(refused.contains("stop it first"), "{refused}");
        nodes[0].terminate().unwrap();
        nodes[0].wait().await.unwrap();
        let said = teardown(&cluster, true).await.unwrap();
        assert!(said.contains("as flanneld makes them"), "{said}");

        streams.flowing().await;
        let report = streams.stop().await;
        assert_eq!(report.lost, 0, "{network}: {report}");
        let left = route().await;
        assert!(left.contains(&format!("dev {device}")) && !left.contains("nhid"), "{left}");
        assert!(!left.contains("proto"), "{left}");
        assert_eq!(cluster.shell(0, "ip nexthop show").await, "");
        let rules = cluster.shell(0, "iptables-save").await;
        assert!(rules.contains("-A FORWARD") && rules.contains(":FLANNEL-FWD"), "{rules}");
        assert!(cluster.subnet_file(0).exists());
        assert!(!cluster.subnet_file(0).with_extension("sock").exists());
        // The way to and fro: a node takes all of it back.
        let _node = cluster.start(0).await;
        assert!(route().await.contains("nhid"), "{}", route().await);
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn where_nothing_can_be_kept_it_says_so() {
    let cluster = Cluster::new(1, UDP).await;
    let mut node = cluster.start(0).await;
    node.terminate().unwrap();
    node.wait().await.unwrap();
    let refused = teardown(&cluster, true).await.unwrap_err();
    assert!(refused.contains("the udp backend leaves nothing"), "{refused}");
    assert!(refused.contains("leave out --keep-traffic"), "{refused}");
}

/// What the command prints, or what it says when it fails.
async fn teardown(cluster: &Cluster, keep: bool) -> Result<String, String> {
    #[expect(clippy::disallowed_methods, reason = "this test is about the program itself")]
    let mut command = Command::new(program());
    command.args(["teardown", "-store", &cluster.store(), "-subnet-file"]);
    command.arg(cluster.subnet_file(0));
    if keep {
        command.arg("--keep-traffic");
    }
    cluster.host(0).run(command).await.map_err(|error| error.to_string())
}
