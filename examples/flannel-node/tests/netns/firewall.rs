//! The firewall of a node that runs.

use std::{collections::BTreeSet, fs, time::Duration};

use flannel_testbed::{
    eventually,
    probe::{self, flow},
};
use tokio::time::Instant;

use super::support::{Cluster, HOST_GW, HOST_GW_NFT, asked, program};

/// All rules on the first host, as the programs of others print them.
async fn rules(cluster: &Cluster) -> String {
    cluster.shell(0, "iptables-save; ip6tables-save; nft -s list ruleset").await
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_masquerades_if_it_is_asked_to_and_repairs_that() {
    let cluster = Cluster::new(1, HOST_GW).await;
    let mut command = cluster.command(program(), 0);
    command.arg("--ip-masq");
    let _node = cluster.run(0, command).await;
    let env = fs::read_to_string(cluster.subnet_file(0)).unwrap();
    assert!(env.contains("FLANNEL_IPMASQ=true"), "{env}");
    let masquerades = async || rules(&cluster).await.contains("masquerade fully-random");
    assert!(masquerades().await, "the rules are there before the file");
    cluster.shell(0, "nft flush ruleset").await;
    eventually(masquerades).await;
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn a_node_forwards_and_does_not_masquerade_unless_it_is_asked_to() {
    let cluster = Cluster::new(1, HOST_GW).await;
    let _node = cluster.run(0, cluster.command(program(), 0)).await;
    let rules = rules(&cluster).await;
    assert!(rules.contains("accept") && !rules.contains("masquerade"), "{rules}");
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_numbers_say_who_keeps_the_rules_and_what_that_took() {
    let cluster = Cluster::new(1, HOST_GW).await;
    let mut command = cluster.command(program(), 0);
    command.arg("--ip-masq");
    let _node = cluster.run(0, command).await;
    let socket = cluster.subnet_file(0).with_extension("sock");
    let number = |name: &str| {
        let text = asked(&socket, "/metrics").1;
        let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        line.unwrap_or_else(|| panic!("no {name} in {text}")).trim().parse::<u64>().unwrap()
    };
    assert_eq!(number("flannel_firewall_info{mode=\"iptables\"}"), 1);
    assert_eq!(number("flannel_firewall_exact"), 1);
    // Six rules and two, and a jump to each of the chains; written by one run and proved by another.
    assert_eq!(number("flannel_firewall_rule_writes_total{kind=\"added\"}"), 10);
    assert_eq!(number("flannel_firewall_program_runs_total"), 2);
    cluster.shell(0, "iptables -F FLANNEL-FWD").await;
    eventually(async || number("flannel_firewall_rule_writes_total{kind=\"added\"}") == 12).await;
    assert_eq!(number("flannel_drift_repaired_total{kind=\"chain\"}"), 1);
    assert_eq!(number("flannel_firewall_program_runs_total"), 5);
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn flows_survive_what_others_flush() {
    for (network, others, flush) in [
        (HOST_GW, "iptables -P FORWARD DROP", "iptables -F; iptables -t nat -F"),
        (HOST_GW, "true", "nft flush ruleset"),
        (HOST_GW_NFT, "true", "nft flush ruleset"),
        (HOST_GW_NFT, "iptables -P FORWARD ACCEPT", "iptables -F; iptables -t nat -F"),
    ] {
        let cluster = Cluster::new(3, network).await;
        cluster.shell(0, others).await;
        let (mut nodes, mut pods) = (Vec::new(), Vec::new());
        for n in 0..2 {
            let mut command = cluster.command(program(), n);
            command.arg("--ip-masq");
            nodes.push(cluster.run(n, command).await);
            pods.push(cluster.host(n).add_pod(cluster.subnet(n)).await.unwrap());
        }
        eventually(async || probe::reachability(&pods).await.complete()).await;
        let settled = rules(&cluster).await;
        let ours = |text: &str| {
            let flannels = |line: &&str| line.to_lowercase().contains("flannel");
            // The order of tables is that of their making.
            text.lines().filter(flannels).map(str::to_owned).collect::<BTreeSet<_>>()
        };
        // The one is masqueraded, the other is forwarded.
        let outside = flow(&pods[0], cluster.host(2)).await.unwrap();
        let inside = flow(&pods[0], &pods[1]).await.unwrap();
        eventually(async || outside.rounds() > 100 && inside.rounds() > 100).await;
        cluster.shell(0, flush).await;
        // The program waits for the kernel, which takes its time to forget rules under traffic.
        let flushed = Instant::now();
        // Rules of iptables are none of a node's that keeps its own in nftables.
        if network == HOST_GW || flush.starts_with("nft") {
            let repaired = |line: &str| line.contains("firewall changed by others");
            nodes[0].line(Duration::from_secs(10), repaired).await.unwrap();
        }
        let took = flushed.elapsed();
        eventually(async || ours(&rules(&cluster).await) == ours(&settled)).await;
        let (one, two) = (outside.rounds(), inside.rounds());
        eventually(async || outside.rounds() > one + 100 && inside.rounds() > two + 100).await;
        let longest = [outside.stop().await.unwrap(), inside.stop().await.unwrap()];
        println!("{flush} on {others}: back after {took:?}, longest rounds {longest:?}");
        assert!(took < Duration::from_secs(1), "{flush}: {took:?}: {:?}", nodes[0].output());
    }
}

#[tokio::test]
#[ignore = "needs CAP_NET_ADMIN: run ./ci.sh netns"]
async fn the_commands_of_the_documentation_are_those_of_the_programs() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/firewall.md");
    let page = fs::read_to_string(page).unwrap();
    let commands = page.lines().filter_map(|line| line.strip_prefix("# "));
    let is_of = |line: &&str, program: &str| line.split(' ').next() == Some(program);
    let [of_iptables, of_nft] = ["iptables", "nft"]
        .map(|program| commands.clone().filter(|line| is_of(line, program)).collect::<Vec<_>>());
    assert!(of_iptables.len() >= 6 && !of_nft.is_empty(), "{of_iptables:?} {of_nft:?}");
    for (network, commands) in [(HOST_GW, of_iptables), (HOST_GW_NFT, of_nft)] {
        let cluster = Cluster::new(1, network).await;
        cluster.shell(0, "iptables -N DOCKER-USER").await;
        let mut command = cluster.command(program(), 0);
        command.arg("--ip-masq");
        let _node = cluster.run(0, command).await;
        for line in commands {
            cluster.shell(0, line).await;
        }
    }
}
